"""The end of a command whose output nobody reads any more, ``s2a-bench data list | head`` say."""

from __future__ import annotations

import contextlib
import os
import select
import sys
from collections.abc import Iterator
from typing import TextIO

from rich.console import Console

CLOSED_PIPE = 141
"""Exit code, as of ``grep`` and all others that the signal SIGPIPE ends: 128 + 13."""


class PipeConsole(Console):
    """A console that leaves a closed pipe to ``quiet_when_closed``; Rich's own would end with code 1."""

    def on_broken_pipe(self) -> None:
        """Raises what Rich has caught."""
        raise BrokenPipeError


@contextlib.contextmanager
def quiet_when_closed() -> Iterator[None]:
    """Ends the program without a word where its standard output or error is a pipe that nobody reads any more.

    Raises:
        SystemExit: With code 141.
        BrokenPipeError: Of another pipe or connection, as it came.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        closed = [stream for stream in (sys.stdout, sys.stderr) if _is_closed(stream)]
        if not closed:
            raise
        for stream in closed:  # what is left in its buffer must not fail once more when Python ends
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
        raise SystemExit(CLOSED_PIPE) from None


def _is_closed(stream: TextIO) -> bool:
    """Whether the other end of a pipe is gone."""
    try:
        handle = stream.fileno()
    except (OSError, ValueError):
        return False
    poll = select.poll()
    poll.register(handle, 0)  # errors are told unasked
    return any(event & select.POLLERR for _, event in poll.poll(0))
