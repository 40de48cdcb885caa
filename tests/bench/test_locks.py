"""Locks hold where a file system has no ``flock`` too: one holder at a time, and none that is dead."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from s2a_bench.errors import InputError
from s2a_bench.files import locked, locks, replacing, reserved, write_atomic
from s2a_bench.files.locks import exclusive
from s2a_bench.sweeps.output_lock import only_writer

NO_FLOCK = (
    "import errno, fcntl, os\n"
    "def refuse(*_): raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))\n"
    "fcntl.flock = refuse\n"
)


@pytest.fixture(params=["ENOSYS", "ENOLCK", "EOPNOTSUPP", "EBADF"])
def no_flock(request, monkeypatch) -> None:
    code = getattr(errno, request.param)

    def refuse(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.usefixtures("no_flock")
def test_every_kind_of_lock_has_one_holder_and_leaves_nothing(tmp_path):
    place, folder = tmp_path / "place", tmp_path / "folder"
    folder.mkdir()
    with locked(folder, wait=False) as first, locked(folder, wait=False) as second:
        assert (first, second) == (True, False)
    with reserved(place) as first, reserved(place) as second:
        assert (first, second) == (True, False)
    assert names(tmp_path) == ["folder"]
    with locked(folder, wait=True) as again, reserved(place) as free:
        assert again and free


@pytest.mark.usefixtures("no_flock")
def test_one_sweep_writes_to_an_output_folder(tmp_path):
    with only_writer(tmp_path):
        with pytest.raises(InputError, match=f"process {os.getpid()}"), only_writer(tmp_path):
            pass
    with only_writer(tmp_path):
        assert names(tmp_path) == [".lock", ".lock.held", "records"]
    assert names(tmp_path) == [".lock", "records"]


def test_another_error_of_the_lock_is_a_sentence(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"cannot be locked .*--output"), only_writer(tmp_path):
        pass


@pytest.mark.usefixtures("no_flock")
def test_what_a_killed_process_held_is_free(tmp_path):
    code = NO_FLOCK + (
        "import signal, sys; from pathlib import Path; from s2a_bench.sweeps.output_lock import only_writer\n"
        "with only_writer(Path(sys.argv[1])): os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    assert killed.returncode == -signal.SIGKILL and (tmp_path / ".lock.held").exists()
    with only_writer(tmp_path):
        holder = json.loads((tmp_path / ".lock.held").read_text())
        assert holder["process"] == os.getpid()


@pytest.mark.usefixtures("no_flock")
def test_a_number_that_another_process_has_now_holds_nothing(tmp_path):
    holder = {"machine": locks._machine(), "process": os.getpid(), "started": "1"}
    (tmp_path / ".lock.held").write_text(json.dumps(holder))
    with only_writer(tmp_path):
        pass


@pytest.mark.usefixtures("no_flock")
@pytest.mark.parametrize("content", [json.dumps({"host": "far", "machine": "far", "process": 7}), "", "[]", "\0"])
def test_a_holder_on_another_machine_is_believed_until_it_falls_silent(tmp_path, content):
    file = tmp_path / ".lock.held"
    file.write_text(content)
    with pytest.raises(InputError, match="process 7 on far" if "far" in content else "Another sweep"):
        with only_writer(tmp_path):
            pass
    assert file.read_text() == content
    silent = time.time() - locks.SILENCE - 5
    os.utime(file, (silent, silent))
    with only_writer(tmp_path):
        assert json.loads(file.read_text())["process"] == os.getpid()
    assert names(tmp_path) == [".lock", "records"]


@pytest.mark.usefixtures("no_flock")
def test_a_holder_gives_signs_of_life_and_whoever_waits_gets_the_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "BEAT", 0.01)
    held, got = tmp_path / ".folder.held", threading.Event()
    (tmp_path / "folder").mkdir()

    def wait() -> None:
        with locked(tmp_path / "folder", wait=True) as mine:
            assert mine
            got.set()

    with locked(tmp_path / "folder", wait=False):
        os.utime(held, (0, 0))
        waiting = threading.Thread(target=wait)
        waiting.start()
        while held.stat().st_mtime == 0:
            time.sleep(0.01)
        assert not got.is_set()
    waiting.join(60)
    assert got.is_set() and names(tmp_path) == ["folder"]


def test_a_race_without_flock_has_one_winner_at_a_time(tmp_path):
    """Processes that die while they hold it among them: no count is lost."""
    count = tmp_path / "count"
    count.write_text("0")
    code = NO_FLOCK + (
        "import sys; from pathlib import Path; from s2a_bench.files import reserved\n"
        "count = Path(sys.argv[1]); done = 0\n"
        "while done < 20:\n"
        "    with reserved(count) as held:\n"
        "        if held:\n"
        "            value = int(count.read_text()); count.write_text(str(value + 1)); done += 1\n"
        "            if done == int(sys.argv[2]): os._exit(9)\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code, str(count), last]) for last in ("99", "99", "5")]
    assert [racer.wait(120) for racer in racers] == [0, 0, 9]
    assert count.read_text() == "45"


def test_where_there_is_flock_there_is_no_lock_file(tmp_path):
    with (tmp_path / "x").open("w") as file, exclusive(file.fileno(), tmp_path / "held", wait=False) as held:
        assert held and names(tmp_path) == ["x"]


@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_flush_keeps_the_file(tmp_path, monkeypatch, code):
    def refuse(_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    write_atomic(tmp_path / "new" / "x", "text")
    with replacing(tmp_path / "x") as file:
        file.write(b"text")
    assert (tmp_path / "x").read_text() == (tmp_path / "new" / "x").read_text() == "text"
