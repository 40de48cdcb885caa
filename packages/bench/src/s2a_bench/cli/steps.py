"""Shows what a long command is doing, one step after the other."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console

from s2a_bench.cli.common import is_alive, print_verbatim
from s2a_bench.cli.live import Clock, Heartbeat, LiveRows, Pace, Row

if TYPE_CHECKING:
    from s2a_bench.data.verify import Progress

HEARTBEAT = 30.0
"""Seconds between two signs of life where lines cannot be written over."""


class Steps:
    """The step that a command is at: on a terminal a line that changes, elsewhere each step once and how far it is.

    The line is there from the first step until ``close``; after that a further step shows it again.
    """

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        """Nothing is shown yet.

        Args:
            console: Where.
            clock: For tests.
        """
        self._console, self._clock = console, clock
        self._what, self._done, self._total, self._began = "", 0, 0, clock()
        self._pace = Pace(clock)
        self._live = LiveRows(console, self._rows, clock) if is_alive(console) else None
        self._heartbeat = Heartbeat(self._say_how_far, HEARTBEAT, clock)

    def step(self, what: str, done: int = 0, total: int = 0) -> None:
        """A step begins, or goes on.

        Args:
            what: The step in words.
            done: How much of it is done.
            total: Of how much; 0: not known.
        """
        new, self._done, self._total = what != self._what, done, total
        if new:
            self._what, self._began, self._pace = what, self._clock(), Pace(self._clock)
        self._pace.at(done / total if total else 0.0)
        if self._live is not None:
            self._live.open()
        elif new:
            self._heartbeat.spoken()
            print_verbatim(self._console, what)
        if self._live is None:
            self._heartbeat.start()  # A step that reports nothing shows life too.
            self._heartbeat.beat()

    def note(self, text: str) -> None:
        """Prints what is to be read afterwards: it does not give way to the next step."""
        print_verbatim(self._console, text)

    def close(self) -> None:
        """Takes the line away."""
        if self._live is not None:
            self._live.close()
        self._heartbeat.stop()
        self._what = ""

    def _rows(self) -> list[Row]:
        counted = [f"{self._done:,}/{self._total:,}"] if self._total > 1 else [f"{self._done:,}"] * (self._done > 1)
        share = self._done / self._total if self._total > 1 else None
        left = [self._pace.left()] if share is not None else []
        return [Row(self._what, share, [*counted, *filter(None, left)], self._began)]

    def _say_how_far(self) -> None:
        if self._live is None and self._what:
            of = f"/{self._total:,}" if self._total else ""
            print_verbatim(self._console, f"{self._what} {self._done:,}{of}")


@contextlib.contextmanager
def show_steps(console: Console) -> Iterator[Progress]:
    """Shows each step, as ``Steps``; what begins with ``"note: "`` stays."""
    steps = Steps(console, time.monotonic)

    def say(what: str, done: int, total: int) -> None:
        if what.startswith("note: "):
            steps.note(what)
        else:
            steps.step(what, done, total)

    try:
        yield say
    finally:
        steps.close()


@contextlib.contextmanager
def show_activity(console: Console, what: str) -> Iterator[None]:
    """Shows on a terminal, while the block lasts, what is done and for how long; nothing elsewhere."""
    steps = Steps(console, time.monotonic)
    if is_alive(console):
        steps.step(what)
    try:
        yield
    finally:
        steps.close()


@contextlib.contextmanager
def show_training(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Shows a training whose steps are told to what the block gets: on a terminal live, elsewhere a sign of life."""
    steps = Steps(console, time.monotonic)
    if is_alive(console):
        steps.step(what)
    try:
        yield lambda done, total: steps.step(what, done, total)
    finally:
        steps.close()
