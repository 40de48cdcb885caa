"""Ctrl-C and ``kill -9`` of a sweep that runs on Ray, in real processes. ``docs/faults.md`` is the list."""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.fault_children import arguments, command, ended, no_orphans, records, wait_for
from s2a_bench.cells import record
from s2a_bench.cells.record import Record

pytestmark = [
    pytest.mark.ray,
    pytest.mark.skipif(sys.platform != "linux", reason="fork is Linux's"),
    pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),  # MLflow's own, about its dependencies
    pytest.mark.timeout(900),  # a busy machine starts Ray's processes slowly
]


def on_ray(output: Path, *more: str, seeds: int) -> list[str]:
    words = [word for word in arguments(output, *more, seeds=seeds) if word != "--serial"]
    return [*words, "--max-concurrent", "2"]


def found(output: Path) -> dict[str, Record]:
    return {path.stem: record.read(path) for path in records(output)}


def content(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in records(output)}


@pytest.mark.full
def test_ctrl_c_keeps_the_records_and_the_same_command_finishes(tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    asked = on_ray(output, seeds=4)
    sweep = command(log, asked)
    with no_orphans(sweep):
        wait_for(lambda: records(output), sweep)
        os.kill(sweep.pid or 0, signal.SIGINT)
        assert ended(sweep) == 130
    text, before = log.read_text(), content(output)
    assert f"Interrupted: {len(before)} of 4 cells are done; the same command goes on from there." in text
    assert "Traceback" not in text and 1 <= len(before) < 4
    assert not (output / ".ray").exists()
    again = command(log, asked)
    with no_orphans(again):
        assert ended(again, 600) == 0, log.read_text()
    assert len(found(output)) == 4 and {each.status for each in found(output).values()} == {"done"}
    assert before.items() <= content(output).items(), "what was done was not touched"

    here = tmp_path / "here"
    assert ended(command(log, arguments(here, seeds=4))) == 0
    assert {i: each.accuracy for i, each in found(output).items()} == {i: r.accuracy for i, r in found(here).items()}


@pytest.mark.full
@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")
def test_kill_9_in_a_search_that_stops_trials_loses_nothing_and_doubles_nothing(tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    asked = on_ray(output, "--search", "5", "--search-scheduler", "asha", seeds=2)  # as many at the end as cores
    sweep = command(log, asked, tracked=True)
    with no_orphans(sweep):
        wait_for(lambda: len(records(output)) >= 2, sweep)
        sweep.kill()
        assert ended(sweep) == -signal.SIGKILL
    before = content(output)
    again = command(log, asked, tracked=True)
    with no_orphans(again):
        assert ended(again, 600) == 0, log.read_text()
    after = found(output)
    trials = [each for each in after.values() if each.trial]
    assert (len(trials), len(after)) == (5, 7)
    assert {each.status for each in trials} <= {"done", "stopped"}
    assert before.items() <= content(output).items(), "what had ended, or was stopped, did not run again"
    final, other = (each for each in after.values() if not each.trial)
    assert final.status == other.status == "done" and final.search == other.search
    assert final.search is not None and final.search["total_epochs"] == sum(len(each.curve) for each in trials)
    assert not list((output / "checkpoints").glob("*.pt")), "nothing waits to go on"

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{output}/mlflow.db")
    experiment = client.get_experiment_by_name("mini")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")
    assert sorted(run.data.tags["cell_id"] for run in runs) == sorted(after), "one run for each cell"
    assert {run.info.status for run in runs} == {"FINISHED"}
    for run in runs:
        tags = run.data.tags
        assert tags["status"] == after[tags["cell_id"]].status
    assert json.loads((next((output / "search").glob("*.json"))).read_text())["trial"] == final.search["trial"]
