"""Which cells are run, what is left behind when they fail, and the one way through Ray."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec

import pytest
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import record, run
from s2a_bench.cells.outputs import Keep
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, DataConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.events import Listener
from s2a_bench.sweeps.local import run_locally
from s2a_bench.sweeps.output_lock import only_writer
from s2a_bench.sweeps.plan import identify, plan, results
from s2a_bench.sweeps.ray.pool import run_with_ray
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.resources import Placement
from s2a_bench.sweeps.workers import Workers, choose_workers


class Heard(Listener):
    """A listener that remembers."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.records: dict[str, record.Record] = {}

    def started(self, cell_id: str) -> None:
        self.events.append(("started", cell_id))

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        self.events.append((f"epoch {metrics['epoch']}", cell_id))

    def finished(self, record: Record) -> None:
        self.events.append((record.status, record.cell_id))
        self.records[record.cell_id] = record


def cells(*names: str) -> dict[str, CellConfig]:
    return {name: CellConfig(seed=seed) for seed, name in enumerate(names)}


@pytest.fixture
def fake_run(monkeypatch):
    """Cells that end at once: in an accuracy, or in the exception that ``script`` has for their seed."""
    script: dict[int, BaseException] = {}

    def play(cell, on_epoch=None, keep=None, **_):
        if on_epoch:
            on_epoch({"epoch": 1, "loss": 1.0})
        if isinstance(outcome := script.get(cell.seed), RuntimeError):
            error = {"type": "RuntimeError", "message": str(outcome), "traceback": "..."}
            return make_record(cell_id=f"c{cell.seed}", seed=cell.seed, status="failed", accuracy=None, error=error)
        if outcome is not None:
            raise outcome
        return make_record(cell_id=f"c{cell.seed}", seed=cell.seed)

    monkeypatch.setattr(run, "run", play)
    return script


def test_cells_with_the_same_identity_are_one(monkeypatch):
    monkeypatch.setattr(run, "identify", lambda cell: f"id{cell.seed % 2}")
    found = identify([CellConfig(seed=seed) for seed in (3, 2, 1, 0)])
    assert {cell_id: cell.seed for cell_id, cell in found.items()} == {"id1": 3, "id0": 2}
    assert list(found) == ["id1", "id0"], "the order is the grid's"


def test_a_plan_runs_what_has_no_valid_finished_record(tmp_path):
    record.write(make_record(cell_id="good"), tmp_path)
    record.write(make_record(cell_id="bad", status="failed", accuracy=None), tmp_path)
    record.record_path(tmp_path, "torn").write_text('{"schema": 1, "cell')
    record.record_path(tmp_path, "other").write_text(record.record_path(tmp_path, "good").read_text())
    found = plan(cells("missing", "good", "bad", "torn", "other"), tmp_path)
    assert found.todo == ["missing", "bad", "torn", "other"]
    assert (found.done, found.again) == ({"good"}, {"bad"})
    assert len(found.broken) == 2
    assert all("delete it and run the sweep again" in sentence for sentence in found.broken)


def test_a_failing_cell_does_not_stop_the_others_and_is_told_to_everyone(tmp_path, fake_run):
    fake_run[1] = RuntimeError("out of luck")
    fake_run[2] = InputError("The data folder has gone.")
    grid_cells = cells("c0", "c1", "c2", "c3")
    heard, other = Heard(), Heard()
    run_locally(plan(grid_cells, tmp_path), [heard, other], Keep(tmp_path))
    found = results(plan(grid_cells, tmp_path), tmp_path)
    status = {cell_id: written.status for cell_id, written in found.items() if written}
    assert status == {"c0": "done", "c1": "failed", "c2": "failed", "c3": "done"}
    assert heard.events == other.events
    assert heard.events[:3] == [("started", "c0"), ("epoch 1", "c0"), ("done", "c0")]
    gone = record.read(record.record_path(tmp_path, "c2")).error
    assert gone is not None and gone["type"] == "InputError" and "gone" in gone["message"]
    assert plan(grid_cells, tmp_path).todo == ["c1", "c2"], "failed cells are tried again"


def test_an_interrupt_passes_and_keeps_what_is_done(tmp_path, fake_run):
    fake_run[1] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        run_locally(plan(cells("c0", "c1", "c2"), tmp_path), [Heard()], Keep(tmp_path))
    found = plan(cells("c0", "c1", "c2"), tmp_path)
    assert (found.done, found.again, found.broken) == ({"c0"}, frozenset(), ())


def test_one_writer_per_output_folder_also_after_a_kill(tmp_path):
    (tmp_path / "records").mkdir()
    torn = tmp_path / "records" / ".abc.json.x1.tmp"
    torn.write_text("half a rec")
    with only_writer(tmp_path):
        assert not torn.exists(), "what a killed writer left is cleared away"
        with pytest.raises(InputError, match=f"process {os.getpid()}") as error, only_writer(tmp_path):
            pass
        assert str(tmp_path) in str(error.value)
    code = (
        "import os, signal, sys; from pathlib import Path; from s2a_bench.sweeps.output_lock import only_writer\n"
        "with only_writer(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL
    with only_writer(tmp_path):
        pass


@pytest.mark.parametrize("place", ["file", "file/inside"])
def test_an_output_that_cannot_be_written_is_bad_input(tmp_path, place):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--output"), only_writer(tmp_path / place):
        pass


@given(st.integers(0, 100), st.sampled_from(["cpu", "cuda"]), st.none() | st.integers(1, 64), st.booleans())
def test_workers_fit_the_machine_and_the_work(count, device, concurrent, small):
    workers = choose_workers(count, device, concurrent, small=small)
    assert 1 <= workers.count <= max(1, count)
    assert workers.cpus >= 1
    if concurrent is None:
        assert workers.count * workers.cpus <= len(os.sched_getaffinity(0))
    else:
        assert workers.count <= concurrent
    assert (workers.gpus == 0) == (device == "cpu")
    if device == "cpu" and concurrent is None and not small:
        assert workers.count == 1, "a large backbone gets the machine to itself"


def test_fewer_than_one_worker_is_bad_input():
    with pytest.raises(InputError, match="--max-concurrent 0"):
        choose_workers(3, "cpu", 0)


def test_the_record_of_a_dead_worker_says_what_and_why(tmp_path):
    cell = dataclasses.replace(CellConfig(), data=DataConfig(dataset="location", limit_train=7), seed=5)
    error = ("WorkerDied", "It was killed.", "trace")
    path = record.write(record.failed_record(cell, "abc", error), tmp_path)
    found = record.read(path)
    assert (found.status, found.dataset, found.group, found.seed) == ("failed", "location", "structured", 5)
    assert found.error == {"type": "WorkerDied", "message": "It was killed.", "traceback": "trace"}
    assert json.loads(path.read_text())["limit_train"] == 7


class Killer(Heard):
    """Kills the worker of one cell at the end of its first epoch."""

    def __init__(self, victim: str) -> None:
        super().__init__()
        self.victim = victim

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        super().epoch(cell_id, metrics)
        if cell_id == self.victim:
            os.kill(int(metrics["pid"]), signal.SIGKILL)


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its dependencies
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(900)  # a busy machine starts Ray's processes slowly
def test_ray_runs_cells_survives_a_killed_worker_and_agrees_with_running_here(tmp_path):
    request = Request(
        datasets=("digits",), methods=("s2a", "bias"), seeds=(0, 1), random_weights=True, limit_train=40, limit_test=40
    )
    recipe = TrainConfig(epochs=2, warmup_epochs=0, batch_size=8)
    found = identify(dataclasses.replace(cell, train=recipe, threads=1) for cell in grid.expand(request))
    victim = next(iter(found))
    heard = Killer(victim)
    keep = Keep(tmp_path, 0)
    run_with_ray(plan(found, tmp_path), [heard], keep, Placement(Workers(count=2, cpus=1)))

    after = plan(found, tmp_path)
    assert (after.todo, after.again) == ([victim], {victim}), "the others ran on"
    error = heard.records[victim].error
    assert error is not None and error["type"] == "WorkerDied" and "killed" in error["message"]
    for cell_id in after.done:
        events = [event for event, cell in heard.events if cell == cell_id]
        assert events == ["started", "epoch 1", "epoch 2", "done"]
    assert {path.name for path in tmp_path.iterdir()} == {"records", "checkpoints", "adapters"}, "Ray's storage is gone"
    assert [path.stem for path in (tmp_path / "checkpoints").iterdir()] == [victim]

    run_locally(after, [], keep)  # the rest: the victim goes on where its worker died
    assert record.read(record.record_path(tmp_path, victim)).resumed == 1
    here = tmp_path / "here"
    run_locally(plan(found, here), [], Keep(here))
    for cell_id in found:
        theirs, ours = (record.read(record.record_path(place, cell_id)) for place in (tmp_path, here))
        assert theirs.accuracy == ours.accuracy
        assert [point["loss"] for point in theirs.curve] == pytest.approx([point["loss"] for point in ours.curve])
