"""The lock that makes one process at a time write to an output folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from s2a_bench.cells import outputs
from s2a_bench.errors import InputError
from s2a_bench.files import make_folder


@contextlib.contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Holds the output folder for this process and clears what a killed one left.

    Raises:
        InputError: The folder cannot be written, or another sweep holds it.
    """
    try:
        make_folder(output / "records")
        with tempfile.TemporaryFile(dir=output / "records") as probe:
            probe.write(b"a full disk may still have room for names")
        lock = (output / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"Cannot write to output folder {output} ({error}); pass a writable one to --output."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"Another sweep (process {lock.read().strip() or 'unknown'}) is writing to {output}; "
                "wait for it to end, or pass another --output."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        with contextlib.suppress(OSError):  # the number is for people; a disk that has just filled is told of later
            lock.flush()
        outputs.clean_up(output)
        shutil.rmtree(output / ".ray", ignore_errors=True)
        yield
