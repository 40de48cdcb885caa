"""Files are whole or not there, whatever ends the writer; locks go with their process."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from bench.fault_children import fill, small_disk
from s2a_bench.files import (
    locked,
    move_into_place,
    process_runs,
    replacing,
    temporary_owner,
    write_atomic,
)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_power_cut_finds_the_file_whole_and_its_folders_named(tmp_path, monkeypatch):
    """What must be on the disk, in this order: the content, then the name; and before it the folders' own names."""
    calls = []
    fsync, replace = os.fsync, Path.replace

    def noted(handle):
        calls.append(("sync", str(Path(f"/proc/self/fd/{handle}").readlink())))
        fsync(handle)

    def renamed(source, target):
        calls.append(("sync name", f"{source} -> {target}"))
        return replace(source, target)

    monkeypatch.setattr(os, "fsync", noted)
    monkeypatch.setattr(Path, "replace", renamed)
    path = tmp_path / "new" / "output" / "c0.json"
    write_atomic(path, "content")
    (named,) = [i for i, (what, _) in enumerate(calls) if what == "sync name"]
    temporary = calls[named][1].split(" -> ")[0]
    assert calls.index(("sync", temporary)) < named < calls.index(("sync", str(path.parent)), named)
    for folder in (tmp_path, tmp_path / "new"):
        assert ("sync", str(folder)) in calls[:named], "a folder that is new has to be found again too"

    calls.clear()
    (finished := tmp_path / "finished").write_text("another's")
    move_into_place(finished, path)
    assert [what for what, _ in calls] == ["sync", "sync name", "sync"] and path.read_text() == "another's"


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, OSError])
@pytest.mark.parametrize("old", ["old", None])
def test_an_error_in_the_block_leaves_the_old_content(tmp_path, error, old):
    path = tmp_path / "x"
    if old is not None:
        path.write_text(old)
    with pytest.raises(error, match="injected"), replacing(path) as file:
        file.write(b"half")
        raise error("injected")
    assert names(tmp_path) == ([] if old is None else ["x"])
    assert old is None or path.read_text() == old


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_an_error_of_the_disk_leaves_the_old_content(tmp_path, monkeypatch, call):
    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    write_atomic(tmp_path / "x", "old")
    monkeypatch.setattr(*((os, "fsync") if call == "fsync" else (Path, "replace")), full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(tmp_path / "x", "new")
    assert names(tmp_path) == ["x"] and (tmp_path / "x").read_text() == "old"


@pytest.mark.skipif(sys.platform != "linux", reason="a tmpfs is Linux's")
def test_a_disk_that_is_really_full(tmp_path):
    with small_disk(tmp_path / "disk", "1m") as disk:
        write_atomic(disk / "x", "old")
        filler = fill(disk)
        with pytest.raises(OSError, match="No space left"):
            write_atomic(disk / "x", "n" * 100_000)
        assert (disk / "x").read_text() == "old" and names(disk) == ["filler", "x"]
        filler.unlink()
        write_atomic(disk / "x", "n" * 100_000)
        assert (disk / "x").read_text() == "n" * 100_000


def test_a_kill_leaves_the_old_content_and_a_file_that_names_the_dead(tmp_path):
    path = tmp_path / "x.json"
    write_atomic(path, "old")
    code = (
        "import os, signal, sys; from pathlib import Path; from s2a_bench.files import replacing\n"
        "with replacing(Path(sys.argv[1])) as file:\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    killed = subprocess.Popen([sys.executable, "-c", code, str(path)])
    assert killed.wait(60) == -signal.SIGKILL
    assert path.read_text() == "old"
    (left,) = [each for each in tmp_path.iterdir() if each != path]
    assert left.name.startswith(".x.json.") and left.name.endswith(".tmp")
    assert temporary_owner(left) == killed.pid and not process_runs(killed.pid)
    assert process_runs(os.getpid())


@pytest.mark.parametrize("name", ["mine.tmp", ".x.tmp", ".x.json.part", ".x.json.abc.tmp"])
def test_a_file_of_another_form_names_nobody(name):
    assert temporary_owner(Path(name)) is None


def test_a_file_is_as_readable_as_any_other(tmp_path):
    (tmp_path / "plain").write_text("")
    write_atomic(tmp_path / "x", "")
    assert (tmp_path / "x").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_writers_at_once_leave_the_content_of_one(tmp_path):
    path = tmp_path / "x"
    texts = [f"{n}" * 50_000 for n in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda text: write_atomic(path, text), texts * 5))
    assert path.read_text() in texts and names(tmp_path) == ["x"]


def test_a_lock_has_one_holder(tmp_path):
    with locked(tmp_path, wait=False) as first, locked(tmp_path, wait=False) as second:
        assert (first, second) == (True, False)
    with locked(tmp_path, wait=True) as again:
        assert again


def test_a_race_for_one_place_has_one_winner_at_a_time(tmp_path):
    """Many processes reserve, count up in a file without any atomicity, and let go: no count is lost."""
    count = tmp_path / "count"
    count.write_text("0")
    code = (
        "import sys, time; from pathlib import Path; from s2a_bench.files import reserved\n"
        "count = Path(sys.argv[1]); done = 0\n"
        "while done < 30:\n"
        "    with reserved(count) as held:\n"
        "        if held: value = int(count.read_text()); count.write_text(str(value + 1)); done += 1\n"
    )
    racers = [subprocess.Popen([sys.executable, "-c", code, str(count)]) for _ in range(4)]
    assert [racer.wait(60) for racer in racers] == [0] * 4
    assert count.read_text() == "120"
