"""Limits of what is unpacked, against archives that are made to fill memory or disk."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import IO

from s2a_bench.errors import InputError

MAX_FILE_BYTES = 512 << 20
"""Largest file that is read into memory: more than the largest image accepted has unpacked (358 MB), or any list."""

_LEAST = 1 << 30
_RATIO = 200
"""The table's files shrink by up to 3 when packed, dSprites' bits by 120; DEFLATE can do 1,032."""
_BLOCK = 1 << 20


def check_memory(size: int, what: str) -> None:
    """Refuses a file that is too large to be read into memory.

    Raises:
        InputError: It is.
    """
    if size > MAX_FILE_BYTES:
        raise InputError(
            f"{what} has {size:,} bytes, more than the {MAX_FILE_BYTES:,} of the largest image or list that is read; "
            "it is no file of a dataset."
        )


def unpacked_limit(packed: int) -> int:
    """The most bytes that ``packed`` bytes may become when they are unpacked."""
    return max(_LEAST, _RATIO * packed)


def check_unpacked(size: int, limit: int, what: str) -> None:
    """Refuses what becomes larger than ``limit``.

    Raises:
        InputError: It does.
    """
    if size > limit:
        raise InputError(
            f"{what} unpacks to more than {limit:,} bytes, out of all proportion to its own size; it is damaged, or "
            "made to fill the disk, so get it from its makers."
        )


def copy_stream(stream: IO[bytes], out: IO[bytes], limit: int, what: str) -> None:
    """Copies a stream that unpacks itself.

    Raises:
        InputError: It is longer than ``limit``.
    """
    done = 0
    while block := stream.read(_BLOCK):
        done += len(block)
        check_unpacked(done, limit, what)
        out.write(block)


def read_stream(stream: IO[bytes], what: str) -> bytes:
    """A stream's content, which must fit into memory.

    Raises:
        InputError: It does not.
    """
    data = stream.read(MAX_FILE_BYTES + 1)
    check_memory(len(data), what)
    return data


def read_file(path: Path) -> bytes:
    """The content of a regular file, which must fit into memory.

    Raises:
        InputError: It does not.
        OSError: It cannot be read, or is a pipe, a device or a folder.
    """
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):  # Opening a pipe would wait for ever.
        raise OSError(errno.EINVAL, "it is no regular file", os.fspath(path))
    check_memory(found.st_size, str(path))
    return path.read_bytes()
