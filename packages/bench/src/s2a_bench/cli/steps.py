"""Shows what a long command is doing."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from s2a_bench.cli.common import print_verbatim

if TYPE_CHECKING:
    from s2a_bench.data.verify import Progress

_LIVE, _HEARTBEAT = 0.1, 30.0
"""Seconds between two signs of life of one step, on a terminal and in a file."""


@contextlib.contextmanager
def show_steps(console: Console) -> Iterator[Progress]:
    """Shows each step: on a terminal live, elsewhere each step once and, twice a minute, how far."""
    last, spoken = "", time.monotonic()
    status = console.status("") if console.is_terminal else contextlib.nullcontext()

    def say(what: str, done: int, total: int) -> None:
        nonlocal last, spoken
        new, now = what != last, time.monotonic()
        if what.startswith("note: "):  # to be read afterwards: it must not give way to the next step
            print_verbatim(console, what)
            return
        if not new and now - spoken < (_LIVE if console.is_terminal else _HEARTBEAT):
            return
        text = f"{what} {done:,}{f'/{total:,}' if total else ''}"
        if console.is_terminal:
            status.update(text)  # type: ignore[union-attr]
        else:
            print_verbatim(console, what if new else text)
        last, spoken = what, now

    with status:
        yield say
