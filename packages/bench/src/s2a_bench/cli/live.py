"""Lines at the bottom of a terminal that say what runs and how far it is, whatever the terminal's width."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

Clock = Callable[[], float]

FRESH = 4
"""Redraws per second."""

_GAP, _LEAST_NAME, _FACTS = "  ", 12, 40
"""Between two things; columns that a name has at least, and that are left for the facts if it is long."""
_BARS = ((100, 24), (72, 12), (0, 0))
"""From which width on a bar has how many columns; narrow terminals have none."""


@dataclasses.dataclass
class Row:
    """What one line says.

    Attributes:
        name: What runs.
        share: How much of it is done, 0 to 1; ``None`` where that is not known: no bar.
        facts: What else there is to say, the most important first: the last ones give way on narrow terminals.
        since: When it began, by the clock: the time that has passed is the last fact; ``None``: it is not said.
    """

    name: str
    share: float | None = None
    facts: Sequence[str] = ()
    since: float | None = None


def clock_text(seconds: float) -> str:
    """``3:20`` or ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def lay_out(rows: Sequence[Row], width: int, height: int, now: float, *, ascii_only: bool = False) -> list[Text]:
    """The rows as lines of at most ``width`` columns; where there are too many, how many are left out.

    Args:
        rows: Top to bottom.
        width: Columns of the terminal.
        height: Lines that may be used.
        now: By the clock of ``Row.since``.
        ascii_only: The terminal shows nothing else.
    """
    shown = rows if len(rows) <= height else rows[: height - 1]
    bar = next(columns for least, columns in _BARS if width >= least)
    others = max((_other_columns(row, bar, now) for row in shown), default=0)
    room = max(_LEAST_NAME, width - min(others, bar + _FACTS) - 2 * len(_GAP))
    name = min(room, max((cell_len(row.name) for row in shown), default=0))
    lines = [_line(row, width, name, "#-" if ascii_only else "━─", bar, now) for row in shown]
    if len(shown) < len(rows):
        lines.append(Text(f"{_GAP}and {len(rows) - len(shown)} more", style="dim"))
    return lines


def _line(row: Row, width: int, name: int, marks: str, bar: int, now: float) -> Text:
    line = Text(_cut(row.name, name, marks == "#-"), no_wrap=True, overflow="crop")
    if row.share is not None and bar:
        done = round(min(max(row.share, 0.0), 1.0) * bar)
        line.append(_GAP).append(marks[0] * done, style="bar.complete")
        line.append(marks[1] * (bar - done), style="bar.back")
    for fact in _facts(row, now):
        if cell_len(line.plain) + len(_GAP) + cell_len(fact) > width:
            break
        line.append(_GAP).append(fact)
    return line


def _facts(row: Row, now: float) -> list[str]:
    return [*row.facts, *([] if row.since is None else [clock_text(now - row.since)])]


def _other_columns(row: Row, bar: int, now: float) -> int:
    """How many columns all of it but its name takes."""
    texts = [*(["━" * bar] if row.share is not None and bar else []), *_facts(row, now)]
    return sum(map(cell_len, texts)) + len(_GAP) * max(0, len(texts) - 1)


def _cut(text: str, width: int, ascii_only: bool) -> str:
    """Text of exactly ``width`` columns; what is cut off is marked."""
    if cell_len(text) <= width:
        return set_cell_size(text, width)
    mark = "..." if ascii_only else "…"
    end = text[-min(12, width // 3) :]  # where a dataset or a seed stands
    return set_cell_size(text, width - len(mark) - cell_len(end)) + mark + end


class Pace:
    """Estimates the rest of a work from how fast it went since it was first looked at."""

    def __init__(self, clock: Clock = time.monotonic) -> None:
        """Nothing is known yet."""
        self._clock = clock
        self._first: tuple[float, float] | None = None
        self._share = 0.0

    def at(self, share: float) -> None:
        """So much of it, 0 to 1, is done now."""
        if self._first is None or share < self._share:
            self._first = (self._clock(), share)
        self._share = share

    def left(self) -> str:
        """``about 3:20 left``; empty in the first seconds, and when nothing is left."""
        if self._first is None:
            return ""
        seconds, done = self._clock() - self._first[0], self._share - self._first[1]
        if seconds < 2 or done <= 0 or self._share >= 1:
            return ""
        return f"about {clock_text(seconds * (1 - self._share) / done)} left"


class LiveRows:
    """Rows at the bottom of a terminal; what is printed meanwhile scrolls above them. Gone when it is closed."""

    def __init__(self, console: Console, rows: Callable[[], Sequence[Row]], clock: Clock = time.monotonic) -> None:
        """Nothing is shown before ``open``.

        Args:
            console: An alive terminal's.
            rows: What is to be shown now.
            clock: For tests.
        """
        self._console, self._rows, self._clock = console, rows, clock
        self._live: Live | None = None

    def __rich__(self) -> Group:
        """What is drawn."""
        height = max(2, self._console.height - 2)
        plain = self._console.options.ascii_only
        return Group(*lay_out(self._rows(), self._console.width, height, self._clock(), ascii_only=plain))

    def open(self) -> None:
        """Shows the rows, if they are not shown yet."""
        if self._live is None:
            self._live = Live(
                self,
                console=self._console,
                refresh_per_second=FRESH,
                transient=True,
                redirect_stdout=sys.stdout.isatty(),  # what goes to a file stays what it is
                redirect_stderr=sys.stderr.isatty(),
            )
            self._live.start()

    def close(self) -> None:
        """Takes them away."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()

    @contextlib.contextmanager
    def shown(self) -> Iterator[None]:
        """Shows the rows for as long as the block lasts."""
        self.open()
        try:
            yield
        finally:
            self.close()


class Heartbeat:
    """Says now and then, on a thread, what goes on, where nothing else was said for a while."""

    def __init__(self, say: Callable[[], None], seconds: float, clock: Clock = time.monotonic) -> None:
        """Nothing is said before ``start``.

        Args:
            say: Says it.
            seconds: Of silence.
            clock: For tests.
        """
        self._say, self._seconds, self._clock = say, seconds, clock
        self._spoken = clock()
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """From now on."""
        if self._thread is None:
            self._stopped.clear()
            self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """No more."""
        self._stopped.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()
        self._thread = None

    def spoken(self) -> None:
        """Something was said."""
        self._spoken = self._clock()

    def beat(self) -> None:
        """Says what goes on if it is time to."""
        if self._clock() - self._spoken >= self._seconds:
            self.spoken()
            self._say()

    def _watch(self) -> None:
        while not self._stopped.wait(min(1.0, self._seconds)):
            self.beat()
