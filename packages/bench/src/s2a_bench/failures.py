"""What went wrong, in words: memory and disks that are full, and who killed whom. Without torch, Ray or MLflow."""

from __future__ import annotations

import contextlib
import errno
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

_FULL = {errno.ENOSPC, errno.EDQUOT}
_DISK = _FULL | {errno.EROFS, errno.EACCES, errno.EPERM, errno.EIO, errno.ESTALE, errno.EFBIG}
_DISK |= {errno.EISDIR, errno.ENOTDIR, errno.EBUSY}
_ALLOCATORS = ("DefaultCPUAllocator", "alloc_cpu", "out of memory", "std::bad_alloc", "Cannot allocate memory")
_PROBE_BYTES = 65_536


def out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out: Python's, the CPU allocator's, CUDA's."""
    names = {cls.__name__ for cls in type(error).__mro__}
    if names & {"MemoryError", "OutOfMemoryError"}:
        return True
    return isinstance(error, RuntimeError | OSError) and any(words in str(error) for words in _ALLOCATORS)


def memory_sentence(error: BaseException, device: str) -> str:
    """What to say, and to do, about memory that ran out."""
    detail = " ".join(str(error).split())[:300] or type(error).__name__
    return (
        f"Memory ran out on {device}: lower train.batch_size, set train.checkpointing=true, or run fewer cells at once "
        f"with --max-concurrent ({detail})"
    )


def disk_sentence(error: BaseException, output: Path, done: str = "") -> str | None:
    """One sentence about an output folder that cannot be written (any more).

    Args:
        error: What stopped the work.
        output: The folder.
        done: What is safe, to be put into the sentence.

    Returns:
        ``None`` if the error has another cause.
    """
    found = next((e for e in _chain(error) if isinstance(e, OSError) and e.errno in _DISK), None)
    if found is None:
        # Ray and MLflow wrap errors, or turn them into text: the folder itself is asked.
        try:
            _probe(output)
        except OSError as refused:
            found = refused
    return None if found is None else _sentence(found, output, done)


def full_sentence(error: OSError) -> str | None:
    """The same about any file; ``None`` unless its disk is full or read-only."""
    return _sentence(error, Path.cwd(), "") if error.errno in _FULL | {errno.EROFS} else None


def _sentence(error: OSError, place: Path, done: str) -> str:
    remedy = "make room" if error.errno in _FULL else "make it writable"
    where = error.filename2 or error.filename or place
    return f"Cannot write to {where} ({error.strerror}); {done}{remedy}, and the same command goes on from there."


def _probe(output: Path) -> None:
    with tempfile.TemporaryFile(dir=output, buffering=0) as file:
        file.write(b"\0" * _PROBE_BYTES)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from; Ray keeps the error of a task in ``cause``."""
    seen: set[int] = set()
    waiting = [error]
    while waiting:
        current = waiting.pop(0)
        if isinstance(current, BaseException) and id(current) not in seen:
            seen.add(id(current))
            yield current
            waiting += [getattr(current, "cause", None), current.__cause__]


class Failed(Protocol):
    """Anything with an ``error`` as in a record: ``type``, ``message`` and ``traceback``, or ``None``."""

    error: dict[str, str] | None


def cause(record: Failed) -> str:
    """Why a cell failed, on one line: ``TYPE: MESSAGE``, or what of the two is known."""
    error = record.error or {}
    text = ": ".join(part for part in (error.get("type"), error.get("message")) if part)
    return " ".join(text.split()) or "no cause recorded"


def worker_death(error: str, detail: str, kills_before: int | None) -> tuple[str, str]:
    """Type and message for a worker process that is gone.

    Args:
        error: Name of the exception that told of it.
        detail: What is known of its end.
        kills_before: ``oom_kills`` when the work began.
    """
    kills = oom_kills()
    killed = kills is not None and kills_before is not None and kills > kills_before
    if killed or error == "OutOfMemoryError":
        who = "The kernel" if killed else "Ray"
        return (
            "OutOfMemory",
            f"{who} has killed processes because the machine's memory ran out, the worker most likely among them: run "
            f"fewer cells at once with --max-concurrent, or lower train.batch_size ({detail})",
        )
    return "WorkerDied", f"The worker process was killed or crashed ({detail})"


def oom_kills() -> int | None:
    """How many processes the kernel has killed so far for want of memory; ``None`` where it does not say."""
    # The first counts those of the whole machine, the others those of a container that does not see it.
    for path in ("/proc/vmstat", "/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError, StopIteration):
            lines = (line.split() for line in Path(path).read_text(encoding="utf-8").splitlines())
            return next(int(line[1]) for line in lines if line[0] == "oom_kill")
    return None
