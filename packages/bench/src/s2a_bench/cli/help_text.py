"""``--help``, with every line broken between words: tyro leaves usage and descriptions as long as they are."""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator

_FRAME = "╭│╰+|"
_STYLE = re.compile(r"\x1b\[[\d;]*m")
_BRACES = re.compile(r"\{[\w,-]{30,}\}")
"""A list of all commands in the usage, which is below it anyway."""


def wrap_help(text: str, width: int) -> str:
    """The text with no line wider than ``width`` but those of tyro's boxes, which are broken already.

    Args:
        text: What tyro prints for ``--help``.
        width: Columns of the terminal.
    """
    lines = []
    for line in text.split("\n"):
        line = _BRACES.sub("COMMAND ...", line)
        plain = _STYLE.sub("", line)
        if len(plain) <= width or plain[0] in _FRAME:
            lines.append(line)
        else:
            indent = "  " if plain.startswith("usage:") else ""
            # A flag is no place to break a line, nor is a path.
            lines += textwrap.wrap(plain, width, subsequent_indent=indent, break_on_hyphens=False)
    return "\n".join(lines)


@contextlib.contextmanager
def wrapping_help() -> Iterator[None]:
    """Breaks what is written to standard output in the block, as ``wrap_help``; passed on when the block ends."""
    real = sys.stdout
    held = _Held(real.isatty(), real.encoding)
    sys.stdout = held
    try:
        yield
    finally:
        sys.stdout = real
        if text := held.getvalue():
            real.write(wrap_help(text, shutil.get_terminal_size().columns))


class _Held(io.StringIO):
    """Text for a terminal, or not."""

    def __init__(self, terminal: bool, encoding: str) -> None:
        super().__init__()
        self._terminal, self._encoding = terminal, encoding

    def isatty(self) -> bool:
        """Whether colours make sense."""
        return self._terminal

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Decides whether boxes are drawn with lines or in ASCII."""
        return self._encoding
