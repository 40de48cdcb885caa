"""The temporary folder of a Ray of our own: where it lies, who owns it, and which processes belong to it.

Ray makes its folder writable for everybody, so it lies inside one that only this user may enter.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from s2a_bench.files import process_runs
from s2a_bench.files.locks import start_time

LONGEST = 20
"""Bytes of the place's own path: those of Unix sockets have at most 107, of which Ray and we take up to 87."""

PATIENCE = 3.0
"""Seconds that processes are given to end before they are killed, and again to be gone."""

_PROBE_BYTES = 4_000_000  # about what Ray writes there before the first cell runs


@contextlib.contextmanager
def private_folder(mark: str) -> Iterator[Path]:
    """A folder for Ray, which goes with the block, as do the processes that work in it.

    What processes of this user that have died left behind goes first: their folders, and what runs in these.

    Args:
        mark: Part of its name: a hash of the output folder, of which the caller is the only user.

    Raises:
        OSError: No place for it has a short path and can be written.
    """
    for place in _places():
        for old in place.glob(f"s2a-{'[0-9a-f]' * 6}-*"):
            if _is_ours(old) and (old.name.startswith(f"s2a-{mark}-") or not _owner_runs(old)):
                remove(old)
    outer = _make(mark)
    try:
        (outer / "owner").write_text(f"{os.getpid()} {start_time(os.getpid())}", encoding="ascii")
        yield outer / "r"
    finally:
        remove(outer)


def remove(outer: Path) -> None:
    """Ends what works in a folder and removes it."""
    end_processes(outer)
    for _ in range(5):  # a process that was ending may have written once more
        shutil.rmtree(outer, ignore_errors=True)
        if not outer.exists():
            return
        time.sleep(0.1)


def end_processes(folder: Path) -> None:
    """Ends the processes that were started with this folder among their arguments, and those that they started."""
    _signal(folder, signal.SIGTERM)
    if _wait_for_none(folder):
        return
    _signal(folder, signal.SIGKILL)
    _wait_for_none(folder)


def _places() -> list[Path]:
    """Where temporary files may lie, best first, as far as paths are short enough."""
    named = [os.environ.get("TMPDIR"), tempfile.gettempdir(), os.environ.get("XDG_RUNTIME_DIR")]
    found = dict.fromkeys(Path(text) for text in (*named, "/tmp", "/dev/shm", "/var/tmp") if text)
    return [path for path in found if path.is_absolute() and len(os.fsencode(path)) <= LONGEST and path.is_dir()]


def _make(mark: str) -> Path:
    refused = "the paths of all places for temporary files are too long"
    for place in _places():
        outer = None
        try:
            outer = Path(tempfile.mkdtemp(prefix=f"s2a-{mark}-", dir=place))
            probe = outer / "probe"
            probe.write_bytes(bytes(_PROBE_BYTES))
            probe.unlink()
            return outer
        except OSError as error:
            refused = str(error)
            if outer is not None:
                shutil.rmtree(outer, ignore_errors=True)
    raise OSError(f"no folder for temporary files can be used ({refused}); point TMPDIR to one with a short path")


def _is_ours(folder: Path) -> bool:
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()


def _owner_runs(outer: Path) -> bool:
    try:
        process, started = (outer / "owner").read_text(encoding="ascii").split()
        return process_runs(int(process)) and str(start_time(int(process))) == started
    except (OSError, ValueError):
        return True  # of another form, or just being made


def _wait_for_none(folder: Path) -> bool:
    end = time.monotonic() + PATIENCE
    while found := _processes(folder):
        if time.monotonic() > end:
            return False
        for process in found:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(process, os.WNOHANG)  # ours: it has to be waited for before it is gone
        time.sleep(0.05)
    return True


def _signal(folder: Path, number: signal.Signals) -> None:
    for process in _processes(folder):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(process, number)


def _processes(folder: Path) -> set[int]:
    """Running processes of this user that work in a folder, their descendants with them; never this one."""
    needle = os.fsencode(folder) + b"/"
    parents: dict[int, int] = {}
    found = set()
    for entry in Path("/proc").glob("[0-9]*"):
        process = int(entry.name)
        try:
            if entry.stat().st_uid != os.getuid() or start_time(process) is None:
                continue
            parents[process] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
            if needle in (entry / "cmdline").read_bytes():
                found.add(process)
        except (OSError, IndexError):  # it has just ended
            continue
    grown = True
    while grown:
        more = {process for process, parent in parents.items() if parent in found} - found
        found |= more
        grown = bool(more)
    return found - {os.getpid()}
