"""The lock that makes one process at a time write to an output folder."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from s2a_bench.cells import outputs
from s2a_bench.errors import InputError
from s2a_bench.files import make_folder
from s2a_bench.files.locks import describe_holder, exclusive


@contextlib.contextmanager
def only_writer(output: Path, what: str = "sweep") -> Iterator[None]:
    """Holds the output folder for this process and clears what a killed one left.

    Args:
        output: The folder.
        what: What this process does there, in words, for others that want the folder meanwhile.

    Raises:
        InputError: The folder cannot be written, or another process holds it.
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
    lock_file = output / ".lock.held"
    with contextlib.ExitStack() as stack:
        stack.enter_context(lock)
        try:
            held = stack.enter_context(exclusive(lock.fileno(), lock_file, wait=False))
        except OSError as error:
            raise InputError(
                f"Output folder {output} cannot be locked against a second writer ({error}); pass one on another file "
                "system to --output."
            ) from error
        if not held:
            lock.seek(0)
            process, _, does = lock.read().strip().partition(" ")
            holder = describe_holder(lock_file) or f"process {process or 'unknown'}"
            raise InputError(
                f"Another {does or 'sweep'} ({holder}) is writing to {output}; wait for it to end, or pass another "
                "--output."
            )
        lock.truncate(0)
        lock.write(f"{os.getpid()} {what}")
        with contextlib.suppress(OSError):  # the number is for people; a disk that has just filled is told of later
            lock.flush()
        outputs.clean_up(output)
        shutil.rmtree(output / ".ray", ignore_errors=True)
        yield
