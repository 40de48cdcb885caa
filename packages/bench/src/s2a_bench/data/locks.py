"""Locks between processes on folders and on paths that do not exist yet, with ``flock``."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def lock_folder(folder: Path, wait: bool) -> Iterator[bool]:
    """Holds an exclusive ``flock`` on a folder; the system releases it when the process ends, even if killed.

    Args:
        folder: Must exist.
        wait: Whether to wait for another holder.

    Yields:
        Whether the lock was acquired; always true after waiting.
    """
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(handle)


@contextlib.contextmanager
def reserve_path(path: Path) -> Iterator[bool]:
    """Reserves a path, which need not exist, for this process by locking ``.<name>.lock`` beside it.

    The lock file is removed afterwards.

    Yields:
        Whether the path was free; a reservation ends with its process.
    """
    beside = path.with_name(f".{path.name}.lock")
    while True:
        handle = os.open(beside, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
                return
            if _is_file_at(handle, beside):
                try:
                    yield True
                finally:
                    beside.unlink(missing_ok=True)
                return
            # Its holder removed the file after we opened it and before we locked it: try again with a new file.
        finally:
            os.close(handle)


def _is_file_at(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False
