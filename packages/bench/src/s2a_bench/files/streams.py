"""Standard output and error of a command."""

from __future__ import annotations

import io
import sys


def let_streams_take_any_text() -> None:
    """Makes standard output and error show what their encoding cannot say as escapes, in place of an exception.

    After hours of work nothing must fail for a dash on a terminal that is set to ASCII.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
