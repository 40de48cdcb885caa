"""Files that are written whole or not at all.

What ``replacing`` guarantees, on a local POSIX file system:

* A reader finds the old content of a path, or no file, or the whole new content; never a part of it.
* This also holds after a kill or a power cut at any moment: the new content is on the disk (``fsync``) before the file
  takes its name, and the name is on the disk when the call returns.
* An error in between, a full disk say, leaves the old content and no temporary file.
* Writers at the same time do not mix: each has its own temporary file, and the last to end stays.

A process that is killed leaves a temporary file, ``.NAME.RANDOM.PID.tmp`` beside ``NAME``; whoever owns the folder
removes those of dead processes (see ``temporary_owner``).
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A file to write that becomes ``path`` when the block ends without an error; folders above it are made.

    Yields:
        The temporary file, open for writing bytes and for seeking.

    Raises:
        OSError: It could not be written; ``path`` is as it was.
    """
    make_folder(path.parent)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.{os.getpid()}.tmp")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            _flush(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_atomic(path: Path, text: str) -> None:
    """Writes ``text`` to ``path`` in UTF-8, see ``replacing``; lone surrogates as escapes."""
    with replacing(path) as file:
        file.write(text.encode("utf-8", "backslashreplace"))  # names of files may hold what is no text


def move_into_place(finished: Path, path: Path) -> None:
    """Gives a file that somebody else has written the name ``path``, on the same file system, once it is on the disk.

    Raises:
        OSError: It could not be; ``path`` is as it was.
    """
    _sync(finished)
    finished.replace(path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Puts a file and its name on the disk."""
    _sync(path)
    sync_folder(path.parent)


def make_folder(path: Path) -> None:
    """Makes a folder and those above it, and puts their names on the disk.

    Raises:
        OSError: It could not be made; a file is in its place.
    """
    if not path.is_dir():
        make_folder(path.parent)
        path.mkdir(exist_ok=True)
        sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Puts a folder's list of names on the disk."""
    _sync(path)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        _flush(handle)
    finally:
        os.close(handle)


def _flush(handle: int) -> None:
    try:
        os.fsync(handle)
    except OSError as error:
        # Some file systems (FUSE, SMB) have no fsync, least of all for folders: what can be done has been done.
        if error.errno not in (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOTSUP, errno.EBADF):
            raise


def temporary_owner(path: Path) -> int | None:
    """The process that a temporary file of ``replacing`` is named after; ``None`` for a file of another form."""
    parts = path.name.split(".")
    return int(parts[-2]) if len(parts) > 3 and parts[-1] == "tmp" and parts[-2].isdigit() else None
