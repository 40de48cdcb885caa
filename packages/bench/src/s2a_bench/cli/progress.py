"""What a running sweep shows: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn
from rich.table import Table

from s2a_bench.cells.learning import describe_problems
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.sweeps.events import Level, Listener, StageEnd
from s2a_bench.sweeps.grid import label
from s2a_bench.sweeps.plan import Plan
from s2a_bench.sweeps.search.choice import Choice
from s2a_bench.sweeps.search.run_search import point_text, search_text
from s2a_bench.sweeps.stage import failure_line

Clock = Callable[[], float]

VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}
"""How to print text that must come out as it is, paths and commands above all."""

HEARTBEAT = 60.0
"""Seconds between plain lines about cells that are still running."""


class Tally:
    """Counts a sweep's cells and epochs and estimates the rest.

    Attributes:
        planned: Cells to run.
        finished: How many have ended.
        failed: How many of them failed.
        running: Cell id -> epochs done.
    """

    def __init__(self, cells: Mapping[str, CellConfig], clock: Clock = time.monotonic) -> None:
        self.cells = cells
        self.planned = len(cells)
        self.finished = 0
        self.failed = 0
        self.running: dict[str, int] = {}
        self._epochs = 0
        self._clock = clock
        self._first: tuple[float, float] | None = None

    def begin(self, cell_id: str) -> None:
        """A cell started."""
        self.running[cell_id] = 0

    def advance(self, cell_id: str, epoch: int) -> None:
        """A cell ended epoch number ``epoch``, counted from 1."""
        self.running[cell_id] = epoch
        self._first = self._first or (self._clock(), self.fraction)

    def end(self, record: Record) -> None:
        """A cell ended, well or not."""
        self.running.pop(record.cell_id, None)
        self._epochs += self.cells[record.cell_id].train.epochs
        self.finished += 1
        self.failed += record.status == "failed"

    @property
    def fraction(self) -> float:
        """Share of all epochs that are done; a cell that failed has none left."""
        total = sum(cell.train.epochs for cell in self.cells.values())
        return (self._epochs + sum(self.running.values())) / total if total else 1.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to go at the speed since the first epoch's end; ``None`` before the second's.

        What comes before (processes that start, imports) comes once and says nothing about the rest.
        """
        if self._first is None or self.fraction <= self._first[1]:
            return None
        return (self._clock() - self._first[0]) * (1 - self.fraction) / (self.fraction - self._first[1])

    def eta(self) -> str:
        """``about 3:20 left`` or ``starting``."""
        return "starting" if self.remaining is None else f"about {clock_text(self.remaining)} left"


def clock_text(seconds: float) -> str:
    """``3:20`` or ``1:02:05``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def ended(record: Record, cell: CellConfig) -> str:
    """One line about a cell that ended."""
    notes = "".join(f" ({note})" for note in record.notes)
    if record.status == "failed":
        return f"{failure_line(record, cell)}{notes}"
    if record.status == "stopped":
        last = f"val {record.curve[-1]['val_accuracy']:.1f} %" if record.curve else "nothing"
        return f"stopped {label(cell)}: {last} after epoch {len(record.curve)} of {record.epochs}{notes}"
    took = f" in {clock_text(record.seconds)}" if record.seconds is not None else ""
    resumed = f", resumed {record.resumed}x" if record.resumed else ""
    problems = f", but it {describe_problems(record)}" if describe_problems(record) else ""
    return f"done {label(cell)}: {record.accuracy:.1f} %{took}{resumed}{problems}{notes}"


class Lines:
    """Plain lines: every start and end, and now and then a sign of life."""

    def __init__(self, tally: Tally, console: Console, clock: Clock = time.monotonic) -> None:
        self._tally, self._console, self._clock = tally, console, clock
        self._spoken = clock()

    def started(self, cell_id: str) -> None:
        """Prints the cell."""
        self._tally.begin(cell_id)
        self._say(f"started {label(self._tally.cells[cell_id])}")

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Prints the epoch if nothing was printed for a while."""
        self._tally.advance(cell_id, int(metrics["epoch"]))
        if self._clock() - self._spoken >= HEARTBEAT:
            cell = self._tally.cells[cell_id]
            self._say(f"epoch {int(metrics['epoch'])}/{cell.train.epochs} of {label(cell)}, {self._tally.eta()}")

    def finished(self, record: Record) -> None:
        """Prints the result."""
        self._tally.end(record)
        self._say(f"{ended(record, self._tally.cells[record.cell_id])} ({self._tally.eta()})")

    def _say(self, text: str) -> None:
        self._spoken = self._clock()
        self._console.print(f"[{self._tally.finished}/{self._tally.planned}] {text}", **VERBATIM)


class Bars:
    """A bar for the sweep and one for every running cell; cells that ended scroll above them."""

    def __init__(self, tally: Tally, progress: Progress) -> None:
        self._tally, self._progress = tally, progress
        self._bars: dict[str, TaskID] = {}
        self._all = progress.add_task("cells", total=1.0, note="starting")

    def started(self, cell_id: str) -> None:
        """Adds the cell's bar."""
        self._tally.begin(cell_id)
        cell = self._tally.cells[cell_id]
        self._bars[cell_id] = self._progress.add_task(f"  {label(cell)}", total=cell.train.epochs, note="loading")
        self._refresh()

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Moves the cell's bar."""
        epoch = int(metrics["epoch"])
        self._tally.advance(cell_id, epoch)
        epochs = self._tally.cells[cell_id].train.epochs
        note = f"epoch {epoch}/{epochs}" if epoch < epochs else "scoring"
        seen = f", val {metrics['val_accuracy']:.1f} %" if "val_accuracy" in metrics else ""
        note = f"{note}, loss {metrics['loss']:.3f}{seen}"
        self._progress.update(self._bars[cell_id], completed=epoch, note=note)
        self._refresh()

    def finished(self, record: Record) -> None:
        """Takes the cell's bar away and prints its result."""
        self._tally.end(record)
        if (bar := self._bars.pop(record.cell_id, None)) is not None:
            self._progress.remove_task(bar)
        text = ended(record, self._tally.cells[record.cell_id])
        style = "red" if record.status == "failed" else "yellow" if describe_problems(record) else None
        self._progress.console.print(text, style=style, markup=False, highlight=False)
        self._refresh()

    def _refresh(self) -> None:
        tally = self._tally
        failed = f", {tally.failed} failed" if tally.failed else ""
        self._progress.update(
            self._all,
            completed=tally.fraction,
            description=f"{tally.finished}/{tally.planned} cells{failed}",
            note=tally.eta(),
        )


@contextlib.contextmanager
def shown(cells: Mapping[str, CellConfig], console: Console) -> Iterator[Lines | Bars]:
    """A listener that shows how the given cells fare, for as long as the block lasts."""
    tally = Tally(cells)
    if not console.is_terminal:
        yield Lines(tally, console)
        return
    columns = (TextColumn("{task.description}"), BarColumn(bar_width=20), TextColumn("{task.fields[note]}"))
    with Progress(*columns, console=console, transient=True) as progress:
        yield Bars(tally, progress)


_STYLES: dict[Level, str | None] = {"info": None, "warning": "yellow", "error": "red"}


class ConsoleListener(Listener):
    """Prints a sweep: its messages, how its cells fare, and a table at the end of each stage.

    Attributes:
        interrupted: A stage was killed, and a message has said so.
    """

    def __init__(self, console: Console) -> None:
        """Nothing is shown yet; leave the block to take bars away that are still there.

        Args:
            console: Where to print.
        """
        self.interrupted = False
        self._console = console
        self._stack = contextlib.ExitStack()
        self._shown: Lines | Bars | None = None
        self._left = 0

    def __enter__(self) -> ConsoleListener:
        """Shows nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bars away."""
        self._stack.close()

    def message(self, text: str, level: Level) -> None:
        """Prints it."""
        self._console.print(text, style=_STYLES[level], **VERBATIM)

    def planned(self, plan: Plan) -> None:
        """Shows bars for the cells that will run."""
        self._left = len(plan.todo)
        if plan.todo:
            cells = {cell_id: plan.cells[cell_id] for cell_id in plan.todo}
            self._shown = self._stack.enter_context(shown(cells, self._console))

    def started(self, cell_id: str) -> None:
        """Shows the cell."""
        if self._shown:
            self._shown.started(cell_id)

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Shows the epoch."""
        if self._shown:
            self._shown.epoch(cell_id, metrics)

    def finished(self, record: Record) -> None:
        """Shows the result; after the last one the bars go."""
        if self._shown:
            self._shown.finished(record)
        self._left -= 1
        if not self._left:
            self._stack.close()

    def ended(self, end: StageEnd) -> None:
        """Prints the table of the records, or of what the searches chose."""
        from s2a_bench.reports.terminal import terminal_table

        self._stack.close()
        if end.status == "KILLED":
            self.interrupted = True
        elif end.choices is None:
            self._console.print(terminal_table(end.records, self._console.width))
        else:
            self._console.print(_chosen_table(end.choices))


def _chosen_table(choices: Sequence[Choice]) -> Table:
    table = Table(title="Chosen on val", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("search")
    table.add_column("chosen", no_wrap=True)
    table.add_column("val %", no_wrap=True)
    table.add_column("trials")
    for name in ("epochs", "looks"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in choices:
        counts = {"diverged": choice.diverged, "stopped": sum(choice.stopped)}
        trials = ", ".join([str(len(choice.ids)), *(f"{count} {what}" for what, count in counts.items() if count)])
        cost = (str(sum(choice.epochs)), str(sum(choice.looks)))
        chosen = point_text(choice.point).replace(", ", "\n")
        table.add_row(search_text(choice.search), chosen, f"{choice.accuracy:.1f}", trials, *cost)
    return table
