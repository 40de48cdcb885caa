"""Locks between processes: the system's (``flock``), or a lock file where a file system has none (Lustre, some NFS).

A lock file is made by whoever finds none (``O_EXCL``) and holds, as JSON, the machine, the process and when that
process started. It is stale, and taken over,

* on the same machine, once that process has ended;
* on another machine, whose processes cannot be seen from here, once nobody has touched it for ``SILENCE`` seconds. Its
  holder touches it every ``BEAT`` seconds. Its age is measured against a file that is made beside it at that moment, so
  that clocks which differ between machines do not matter.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

BEAT, SILENCE = 20.0, 300.0
"""Seconds between two signs of life of a holder, and without any after which it is taken for dead."""

_POLL = 0.2
_NO_FLOCK = {errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EINVAL, errno.EBADF}
"""How file systems say that they have no ``flock``; NFS wants files open for writing, which folders never are."""


@contextlib.contextmanager
def exclusive(handle: int, file: Path, wait: bool) -> Iterator[bool]:
    """Holds an exclusive lock, which ends with the block or with the process, however it ends.

    Args:
        handle: What is locked: an open file or folder. Closing it is left to the caller, who does so at once.
        file: Stands for the lock where the file system has none; there is no such file otherwise.
        wait: Whether to wait for another holder.

    Yields:
        Whether the lock was got; always true after waiting.

    Raises:
        OSError: Neither kind of lock can be had.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        yield False
        return
    except OSError as error:
        if error.errno not in _NO_FLOCK:
            raise
    else:
        yield True
        return
    with _lock_file(file, wait) as held:
        yield held


def describe_holder(file: Path) -> str:
    """Who holds a lock file, in words; empty where there is none."""
    holder = _read(file)
    if holder is None:
        return ""
    place = "" if holder.get("machine") == _machine() else f" on {holder.get('host', 'another machine')}"
    return f"process {holder.get('process', 'unknown')}{place}, by {file}"


@contextlib.contextmanager
def locked(folder: Path, wait: bool) -> Iterator[bool]:
    """Holds an exclusive lock on a folder; it is lifted when the process ends, however it ends.

    Args:
        folder: Must exist.
        wait: Whether to wait for another holder.

    Yields:
        Whether the lock was got; always true after waiting.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        with exclusive(handle, folder.with_name(f".{folder.name}.held"), wait) as held:
            yield held
    finally:
        os.close(handle)


@contextlib.contextmanager
def reserved(path: Path) -> Iterator[bool]:
    """Reserves a path that need not exist for this process, by a locked file beside it that goes with the lock.

    Yields:
        Whether it was free; what a dead process reserved is free again.
    """
    beside = path.with_name(f".{path.name}.lock")
    while True:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            with exclusive(handle, path.with_name(f".{path.name}.held"), wait=False) as held:
                if not held:
                    yield False
                    return
                if _is_at(handle, beside):
                    try:
                        yield True
                    finally:
                        beside.unlink(missing_ok=True)
                    return
            # Its holder removed the file between our opening and locking it: the lock is on nothing.
        finally:
            os.close(handle)


def _is_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def process_runs(process: int) -> bool:
    """Whether a process of that number is there, on this machine."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True


@contextlib.contextmanager
def _lock_file(file: Path, wait: bool) -> Iterator[bool]:
    own = json.dumps(
        {
            "host": socket.gethostname(),
            "machine": _machine(),
            "process": os.getpid(),
            "started": start_time(os.getpid()),
            "token": secrets.token_hex(8),
        }
    ).encode()
    while not _create(file, own):
        if _remove_if_stale(file):
            continue
        if not wait:
            yield False
            return
        time.sleep(_POLL)
    ended = threading.Event()
    beating = threading.Thread(target=_touch, args=(file, ended), name="lock file", daemon=True)
    beating.start()
    try:
        yield True
    finally:
        ended.set()
        beating.join()
        with contextlib.suppress(OSError):
            if file.read_bytes() == own:  # else this process was silent for so long that another took over
                file.unlink()


def _create(file: Path, content: bytes) -> bool:
    try:
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    except FileExistsError:
        return False
    try:
        os.write(handle, content)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    finally:
        os.close(handle)
    return True


def _touch(file: Path, ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        with contextlib.suppress(OSError):
            os.utime(file)


def _remove_if_stale(file: Path) -> bool:
    """Whether the lock may be tried again at once: its file is gone, or its holder was dead and it has been removed."""
    try:
        content, touched = file.read_bytes(), file.stat().st_mtime
    except FileNotFoundError:
        return True
    holder = _parse(content)
    if holder is not None and holder.get("machine") == _machine():
        process = holder.get("process")
        dead = not isinstance(process, int) or not process_runs(process)
        stale = dead or start_time(process) != holder.get("started")  # its number may belong to another by now
    else:  # also a file that its holder has just made and not written to
        stale = _now(file) - touched > SILENCE
    if not stale:
        return False
    # Renamed first: of several that find it stale one gets it, and whoever gets a newer one by mistake gives it back.
    aside = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        file.rename(aside)
    except FileNotFoundError:
        return True
    if aside.read_bytes() != content:
        with contextlib.suppress(OSError):
            os.link(aside, file)
    aside.unlink(missing_ok=True)
    return True


def _now(file: Path) -> float:
    """The time by the clock of the file system."""
    probe = file.with_name(f"{file.name}.{secrets.token_hex(4)}")
    try:
        probe.touch(exist_ok=False)
        return probe.stat().st_mtime
    finally:
        probe.unlink(missing_ok=True)


def _read(file: Path) -> dict | None:
    try:
        return _parse(file.read_bytes())
    except OSError:
        return None


def _parse(content: bytes) -> dict | None:
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _machine() -> str:
    """Names what shares process numbers with this process: a boot of a machine, and a container on it."""
    parts = [socket.gethostname()]
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip())
    with contextlib.suppress(OSError):
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)


def start_time(process: object) -> str | None:
    """When a process started, in the kernel's ticks; ``None``: it has ended, or the system does not say."""
    try:
        text = Path(f"/proc/{process}/stat").read_bytes()
    except OSError:
        return None
    # The name, in brackets, may hold anything; state and start are the 1st and 20th fields after it (man 5 proc).
    fields = text.rpartition(b")")[2].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode("ascii")  # ended, but its parent has not looked
