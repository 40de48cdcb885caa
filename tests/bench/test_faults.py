"""What can happen to a sweep, with real processes, signals and file systems. ``docs/faults.md`` is the list."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.fault_children import (
    arguments,
    command,
    eat_memory,
    ended,
    fill,
    limited,
    no_orphans,
    records,
    small_disk,
    start,
    wait_for,
)
from filelock import FileLock
from s2a_bench import failures as faults
from s2a_bench.cells import record, run
from s2a_bench.cells.outputs import Keep, checkpoint_path
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="fork, tmpfs and cgroups are Linux's"),
    pytest.mark.long,
]


def content(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in records(output)}


def results(output: Path) -> dict[str, tuple]:
    """What must not depend on what happened on the way."""
    found = (record.read(path) for path in records(output))
    return {r.cell_id: (r.status, r.accuracy, [(p["epoch"], p["loss"], p["lr"]) for p in r.curve]) for r in found}


def half_written(output: Path) -> list[Path]:
    return [path for path in output.rglob("*") if path.name.endswith(".tmp") or path.name.startswith(".report")]


@pytest.fixture(scope="session")
def undisturbed(shared_folder):
    """The results of three cells that nothing happened to; the first process of this run that asks makes them."""
    folder = shared_folder / "undisturbed"
    with FileLock(shared_folder / "undisturbed.lock"):
        if not folder.exists():
            folder.mkdir()
            assert ended(command(folder / "log", arguments(folder / "out", seeds=3))) == 0
    return results(folder / "out")


def a_checkpoint(output: Path):
    return lambda: list((output / "checkpoints").glob("*.pt"))


def test_kill_9_in_the_middle_of_a_cell_twice(tmp_path, undisturbed):
    output, log = tmp_path / "out", tmp_path / "log"
    for _ in range(2):
        earlier = {path: path.stat().st_mtime_ns for path in a_checkpoint(output)()}
        sweep = command(log, arguments(output))
        with no_orphans(sweep):
            # The first checkpoint of this process, not the one that the killed process left.
            wait_for(lambda e=earlier: {p: p.stat().st_mtime_ns for p in a_checkpoint(output)()} != e, sweep)
            sweep.kill()
            assert ended(sweep) == -signal.SIGKILL
        assert not records(output), "it was killed in the middle"
    assert ended(command(log, arguments(output))) == 0
    assert "resumed 2x" in log.read_text()
    (found,) = results(output).items()
    assert found in undisturbed.items()
    assert record.read(records(output)[0]).resumed == 2
    assert not list((output / "checkpoints").iterdir()), "a finished cell needs none"
    assert not half_written(output)


@pytest.mark.parametrize(
    "sign",
    [pytest.param(signal.SIGINT, id="Ctrl-C"), pytest.param(signal.SIGTERM, id="SIGTERM", marks=pytest.mark.full)],
)
def test_an_interrupt_and_a_second_harness_meanwhile(tmp_path, undisturbed, sign):
    output, log, other = tmp_path / "out", tmp_path / "log", tmp_path / "other"
    sweep = command(log, arguments(output, seeds=2))
    with no_orphans(sweep):
        wait_for(a_checkpoint(output), sweep)
        if sign == signal.SIGINT:
            os.kill(sweep.pid or 0, signal.SIGSTOP)  # so that it is still there, whatever the machine does
            try:
                assert ended(command(other, arguments(output, seeds=2))) == 2
            finally:
                os.kill(sweep.pid or 0, signal.SIGCONT)
            assert f"Another sweep (process {sweep.pid}) is writing to {output}" in other.read_text()
        os.kill(sweep.pid or 0, sign)
        assert ended(sweep) == 130
    assert "of 2 cells are done; the same command goes on from there" in log.read_text()
    assert "Traceback" not in log.read_text()
    assert ended(command(log, arguments(output, seeds=2))) == 0
    assert results(output).items() <= undisturbed.items()
    assert len(records(output)) == 2


@pytest.mark.full
def test_a_disk_that_fills_ends_the_sweep_with_one_sentence_and_loses_nothing(tmp_path, undisturbed):
    log = tmp_path / "log"
    with small_disk(tmp_path / "disk", "4m") as disk:
        output = disk / "out"
        sweep = command(log, arguments(output, seeds=3))
        with no_orphans(sweep):
            wait_for(lambda: records(output), sweep)
            os.kill(sweep.pid or 0, signal.SIGSTOP)
            filler = fill(disk)
            before = content(output)
            os.kill(sweep.pid or 0, signal.SIGCONT)
            assert ended(sweep) == 1
        (sentence,) = [line for line in log.read_text().splitlines() if line.startswith("s2a-bench:")]
        assert "No space left on device" in sentence and f"{len(before)} of 3 cells are done and safe" in sentence
        assert "make room, and the same command goes on" in sentence and "Traceback" not in log.read_text()
        assert content(output) == before and not half_written(output)

        assert ended(command(log, arguments(output, seeds=3))) == 2, "still full: found before anything runs"
        assert "No space left on device" in log.read_text()
        filler.unlink()
        assert ended(command(log, arguments(output, seeds=3))) == 0
        assert results(output) == undisturbed
        assert before.items() <= content(output).items(), "what was done was not touched"

        report = (output / "report.html").read_bytes()
        fill(disk)
        assert ended(command(log, ["report", "--output", str(output)])) == 1
        assert "No space left on device" in log.read_text() and log.read_text().count("s2a-bench:") == 1
        assert (output / "report.html").read_bytes() == report and not half_written(output)


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(900)  # a busy machine starts Ray's processes slowly
def test_a_disk_that_fills_under_rays_workers(tmp_path, undisturbed):
    log = tmp_path / "log"
    with small_disk(tmp_path / "disk", "8m") as disk:
        output = disk / "out"
        asked = [word for word in arguments(output, "--max-concurrent", "1", seeds=3) if word != "--serial"]
        sweep = command(log, asked)
        with no_orphans(sweep):
            wait_for(lambda: records(output), sweep)
            filler = fill(disk)
            before = content(output)
            assert ended(sweep) == 1
        text = log.read_text()
        # The cell that met the full disk may have a line of its own, if its record still found room.
        (sentence,) = [line for line in text.splitlines() if line.startswith("s2a-bench: ")]
        assert "No space left on device" in sentence and "of 3 cells are done and safe" in sentence
        assert "Traceback" not in text
        assert before.items() <= content(output).items() and not half_written(output)
        filler.unlink()
        assert ended(command(log, arguments(output, seeds=3))) == 0
        assert [r[:2] for r in results(output).values()] == [r[:2] for r in undisturbed.values()]


def test_an_output_on_a_read_only_disk_is_bad_input(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        assert ended(command(tmp_path / "log", arguments(disk / "out"))) == 2
        text = (tmp_path / "log").read_text()
        assert "Read-only file system" in text and "--output" in text and text.count("\n") == 1


def cell(batch_size: int = 8, **changes) -> CellConfig:
    values = {
        "data": DataConfig(dataset="digits", limit_train=changes.pop("images", 48), limit_test=48),
        "backbone": BackboneConfig(random_weights=True),
        "method": MethodConfig("s2a"),
        "train": TrainConfig(epochs=4, warmup_epochs=0, batch_size=batch_size),
        "threads": 1,
    }
    return CellConfig(**values | changes)


def test_memory_that_runs_out_fails_the_cell_and_not_the_next(tmp_path):
    large, small = cell(1000, images=1000, method=MethodConfig("full")), cell()
    cells = {run.identify(asked): asked for asked in (large, small)}
    assert ended(start(limited, str(tmp_path), cells, 700_000_000)) == 0
    first, second = (record.read(record.record_path(tmp_path, cell_id)) for cell_id in cells)
    assert (first.status, second.status) == ("failed", "done")
    assert first.error is not None and first.error["type"] == "OutOfMemory"
    assert "train.batch_size" in first.error["message"] and "cpu" in first.error["message"]
    assert "allocat" in first.error["traceback"]


def test_a_loss_that_is_no_number_fails_the_cell_with_its_step(tmp_path):
    asked = cell(train=TrainConfig(epochs=4, warmup_epochs=0, batch_size=8, lr=1e30))
    found = run.run(asked, keep=Keep(tmp_path, 0))
    assert found.status == "failed" and found.accuracy is None and found.error is not None
    assert found.error["type"] == "Diverged" and "lower train.lr" in found.error["message"]
    assert json.loads(record.write(found, tmp_path).read_text())["error"]["type"] == "Diverged"


@pytest.fixture
def cgroup():
    """A memory cgroup of 1 GB, for the kernel to kill in."""
    root = Path("/sys/fs/cgroup")
    one, limit = (root / "memory", "memory.limit_in_bytes") if (root / "memory").is_dir() else (root, "memory.max")
    folder = one / f"s2a-test-{os.getpid()}"
    try:
        folder.mkdir()
        (folder / limit).write_text("1000000000")
    except OSError as error:
        if folder.is_dir():
            folder.rmdir()
        pytest.skip(f"making a memory cgroup is not permitted here ({error})")
    yield folder
    wait_for(lambda: not (folder / "cgroup.procs").read_text().split())
    folder.rmdir()


def test_the_kernel_kills_for_memory_and_the_cell_goes_on_later(tmp_path, cgroup):
    asked = cell()
    before = faults.oom_kills()
    victim = start(eat_memory, str(cgroup), str(tmp_path), asked)
    with no_orphans(victim):
        assert ended(victim) == -signal.SIGKILL
    kind, words = faults.worker_death("ActorDiedError", "it is gone", before)
    assert kind == "OutOfMemory" and "memory ran out" in words and "--max-concurrent" in words
    assert faults.worker_death("ActorDiedError", "it is gone", faults.oom_kills())[0] == "WorkerDied"
    assert checkpoint_path(tmp_path, run.identify(asked)).exists()
    found, whole = run.run(asked, keep=Keep(tmp_path, 0)), run.run(asked)
    assert (found.status, found.resumed, found.accuracy) == ("done", 1, whole.accuracy)
    assert [point["loss"] for point in found.curve] == [point["loss"] for point in whole.curve]


@pytest.mark.full
def test_a_record_that_cannot_be_replaced_ends_the_sweep_in_words(tmp_path):
    """A disk mounted in the record's place stands for whatever a file system neither replaces nor renames."""
    output, log = tmp_path / "out", tmp_path / "log"
    assert ended(command(log, arguments(output))) == 0
    (path,) = records(output)
    shutil.move(path, tmp_path / "kept")
    with small_disk(path, "1m"):
        assert ended(command(log, arguments(output))) == 1
        assert log.read_text().count("s2a-bench: Cannot write to") == 1 and str(path) in log.read_text()
    path.rmdir()
    shutil.move(tmp_path / "kept", path)
    assert ended(command(log, arguments(output))) == 0
