"""MLflow's end of what can happen: a real server that dies half-way, a database on a full disk."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.fault_children import EPOCHS, arguments, command, ended, fill, no_orphans, records, small_disk, wait_for
from s2a_bench.cells import record
from s2a_bench.cells.outputs import adapter_path
from s2a_bench.tracking import names as track_names

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow's own, about its dependencies
    pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed"),
    pytest.mark.skipif(sys.platform != "linux", reason="fork and tmpfs are Linux's"),
    pytest.mark.timeout(900),  # a busy machine starts servers slowly
]


@contextlib.contextmanager
def server(folder: Path, port: int) -> Iterator[subprocess.Popen]:
    """A real ``mlflow server`` with artifacts, on loopback; all of its processes die with the block."""
    folder.mkdir(exist_ok=True)
    line = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    line += ["--backend-store-uri", f"sqlite:///{folder}/server.db", "--artifacts-destination", str(folder / "files")]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(line, stdout=log, stderr=log, start_new_session=True, cwd=folder)
    try:
        wait_for(lambda: process.poll() is not None or answers(port))
        assert process.poll() is None, (folder / "log").read_text()
        yield process
    finally:
        kill(process)


def answers(port: int) -> bool:
    """Whether the server has done real work; its first answer takes seconds."""
    url = f"http://127.0.0.1:{port}/api/2.0/mlflow/experiments/search"
    asked = urllib.request.Request(url, b'{"max_results": 1}', {"Content-Type": "application/json"})
    with contextlib.suppress(OSError), urllib.request.urlopen(asked, timeout=30) as page:
        return page.status == 200
    return False


def kill(process: subprocess.Popen) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


def incomplete(text: str) -> list[str]:
    """The arguments of the command that the one sentence about MLflow names."""
    (sentence,) = [line for line in text.splitlines() if "MLflow is incomplete" in line]
    words = shlex.split(sentence.partition("later, run: ")[2])
    assert words[0] == "s2a-bench" and "Traceback" not in text
    return words[1:]


def check_whole(uri: str, output: Path, tmp_path: Path) -> dict[str, str]:
    """Asserts that the store holds exactly what the records say; the run of every cell."""
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("mini")
    assert experiment is not None
    (parent,) = client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")
    assert parent.info.status == "FINISHED"
    assert {item.path for item in client.list_artifacts(parent.info.run_id)} == {"report.html", "report.md"}
    runs = client.search_runs([experiment.experiment_id], "tags.kind = 'cell' and metrics.accuracy >= 0")
    expected = {path.stem: record.read(path) for path in records(output)}
    assert sorted(run.data.tags["cell_id"] for run in runs) == sorted(expected), "nothing missing, nothing doubled"
    for run in runs:
        own = expected[run.data.tags["cell_id"]]
        assert run.info.status == "FINISHED" and run.data.tags["mlflow.parentRunId"] == parent.info.run_id
        assert run.data.params == track_names.run_params(own)
        assert run.data.metrics["accuracy"] == own.accuracy
        loss = client.get_metric_history(run.info.run_id, "loss")
        assert [(point.step, point.value) for point in sorted(loss, key=lambda point: point.step)] == [
            (point["epoch"], point["loss"]) for point in own.curve
        ]
        assert len(loss) == EPOCHS
        assert "record.json" in {item.path for item in client.list_artifacts(run.info.run_id)}
        if own.adapter_id:
            name = adapter_path(output, own.cell_id).name
            there = client.download_artifacts(run.info.run_id, f"adapter/{name}", str(tmp_path))
            assert Path(there).read_bytes() == adapter_path(output, own.cell_id).read_bytes()
    return {run.data.tags["cell_id"]: run.info.run_id for run in runs}


@pytest.mark.full
def test_a_server_that_dies_half_way_is_made_good_by_track(tmp_path):
    output, log, port = tmp_path / "out", tmp_path / "log", free_port()
    uri = f"http://127.0.0.1:{port}"
    with server(tmp_path / "server", port) as process:
        more = ("--tracking-uri", uri, "--keep-adapters")
        sweep = command(log, arguments(output, *more, seeds=2), tracked=True)
        with no_orphans(sweep):
            wait_for(lambda: records(output), sweep)
            kill(process)
            assert ended(sweep) == 0, "results do not depend on the tracker"
    assert len(records(output)) == 2
    repair = incomplete(log.read_text())
    assert ended(command(log, repair, tracked=True)) == 2, "there is still no server"
    assert uri in log.read_text() and log.read_text().count("\n") == 1

    with server(tmp_path / "server", port):
        assert ended(command(log, repair, tracked=True)) == 0
        first = check_whole(uri, output, tmp_path)
        assert all(record.read(path).adapter_id for path in records(output))
        # Neither once more nor the sweep itself changes anything.
        assert ended(command(log, repair, tracked=True)) == 0
        assert ended(command(log, arguments(output, *more, seeds=2), tracked=True)) == 0
        assert check_whole(uri, output, tmp_path) == first


@pytest.mark.full
def test_a_database_on_a_full_disk_costs_no_result(tmp_path):
    output, log = tmp_path / "out", tmp_path / "log"
    with small_disk(tmp_path / "disk", "8m") as disk:
        uri = f"sqlite:///{disk}/mlflow.db"
        sweep = command(log, arguments(output, "--tracking-uri", uri, seeds=2), tracked=True)
        with no_orphans(sweep):
            wait_for(lambda: records(output), sweep)
            filler = fill(disk)
            assert ended(sweep) == 0
        repair = incomplete(log.read_text())
        filler.unlink()
        assert ended(command(log, repair, tracked=True)) == 0
        check_whole(uri, output, tmp_path)
