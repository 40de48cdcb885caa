"""Ray's temporary folder: private, in a place that can be written, and gone with its processes whatever happened."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from s2a_bench.files import process_runs
from s2a_bench.files.locks import start_time
from s2a_bench.sweeps.ray import folder as folders
from s2a_bench.sweeps.ray import runtime
from s2a_bench.sweeps.workers import Workers

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
MARK = "0a1b2c"
SLEEP = "import sys, time; print('here', flush=True); time.sleep(600)"
PARENT = (
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen([sys.executable, '-c', {SLEEP!r}], stdout=subprocess.DEVNULL)\n"
    "print(child.pid, flush=True); time.sleep(600)"
)


@pytest.fixture
def place(monkeypatch):
    """A short path, as Ray's sockets need it, and the only place for temporary files."""
    with tempfile.TemporaryDirectory(prefix="q", dir="/tmp") as made:
        monkeypatch.setattr(folders, "_places", lambda: [Path(made)])
        yield Path(made)


def start(*arguments: str) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", *arguments], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        return process, process.stdout.readline().strip()


def runs(process: int) -> bool:
    return process_runs(process) and start_time(process) is not None


def test_nobody_else_may_enter_and_nothing_is_left(place):
    with folders.private_folder(MARK) as folder:
        assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
        folder.mkdir()
        folder.chmod(0o777)  # as Ray does
        assert folder.parent.parent == place
        assert len(os.fsencode(folder)) - len(os.fsencode(place)) + folders.LONGEST + 64 <= 107
    assert not list(place.iterdir())


def test_a_place_that_cannot_be_written_is_passed_over(place, monkeypatch):
    good, bad = place / "good", place / "bad"
    good.mkdir()
    bad.write_text("no folder")
    monkeypatch.setattr(folders, "_places", lambda: [bad, place / "absent", good])
    with folders.private_folder(MARK) as folder:
        assert folder.is_relative_to(good)
    monkeypatch.setattr(folders, "_places", lambda: [bad])
    with pytest.raises(runtime.PoolError, match="TMPDIR"), runtime.own_ray(Workers(1, 1), MARK):
        pass


def test_the_users_own_place_comes_first_and_long_ones_are_none(monkeypatch, tmp_path, place):
    monkeypatch.undo()
    monkeypatch.setenv("TMPDIR", str(place))
    assert folders._places()[0] == place
    long = tmp_path / ("long" * 10)
    long.mkdir()
    monkeypatch.setenv("TMPDIR", str(long))
    assert long not in folders._places() and Path("/tmp") in folders._places()


def test_a_process_and_those_that_it_started_end_with_the_folder(place):
    with folders.private_folder(MARK) as folder:
        parent, child = start(PARENT, f"--dir={folder}/session")
        stranger, _ = start(SLEEP, "elsewhere")
        assert runs(int(child))
    parent.wait(30)
    assert not runs(int(child)) and stranger.poll() is None
    stranger.kill()
    stranger.wait(30)


def test_what_dead_processes_left_goes_and_what_living_ones_use_stays(place):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait(60)
    for name, owner in {
        "s2a-aaaaaa-1": f"{dead.pid} 1",
        f"s2a-{MARK}-2": f"{os.getpid()} {start_time(os.getpid())}",  # of the same output, whose lock is ours
        "s2a-bbbbbb-3": f"{os.getpid()} {start_time(os.getpid())}",
        "s2a-bbbbbb-4": f"{os.getpid()} 1",
        "s2a-source-5": "",
    }.items():
        (place / name).mkdir()
        if owner:
            (place / name / "owner").write_text(owner)
    left, _ = start(SLEEP, f"{place}/s2a-aaaaaa-1/r/session")
    with folders.private_folder(MARK):
        pass
    assert sorted(path.name for path in place.iterdir()) == ["s2a-bbbbbb-3", "s2a-source-5"]
    assert left.wait(30) == -signal.SIGTERM


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_start_that_fails_leaves_no_process_beside_the_next(place, monkeypatch):
    import ray

    started: list[subprocess.Popen[str]] = []
    alive: list[int] = []

    def init(_temp_dir: str, **_: object) -> None:
        alive.append(sum(process.poll() is None for process in started))
        started.append(start(SLEEP, f"--temp_dir={_temp_dir}/session")[0])
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray takes the signal
        raise RuntimeError("The current node timed out during startup.")

    monkeypatch.setattr(ray, "init", init)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(runtime.PoolError, match="timed out"), runtime.own_ray(Workers(1, 1), MARK):
        pass
    assert alive == [0, 0, 0] and all(process.wait(30) for process in started)
    assert signal.getsignal(signal.SIGTERM) == before and not list(place.iterdir())


@pytest.mark.full
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_sweep_that_is_told_to_end_leaves_nothing(place, tmp_path):
    line = "--random-weights --datasets digits --methods full --limit-train 320 --epochs 500 --max-concurrent 1".split()
    sweep = subprocess.Popen(
        [sys.executable, "-m", "s2a_bench", "sweep", *line, "--output", str(tmp_path / "out")],
        env={**os.environ, "TMPDIR": str(place), "PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert sweep.stdout is not None
    try:
        with sweep.stdout:
            next(text for text in sweep.stdout if "started" in text)
            (outer,) = place.glob("s2a-*")
            assert stat.S_IMODE(outer.stat().st_mode) == 0o700 and folders._processes(outer)
            sweep.send_signal(signal.SIGTERM)
            sweep.stdout.read()
        assert sweep.wait(120) == 130
    finally:
        sweep.kill()
        sweep.wait(60)
    assert not folders._processes(outer) and not list(place.glob("s2a-*"))  # torch has a folder of its own there
