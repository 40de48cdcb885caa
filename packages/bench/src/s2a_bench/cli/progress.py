"""What a running sweep shows: lines that change on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType

from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench.cells.learning import describe_problems
from s2a_bench.cells.record import Record
from s2a_bench.cli.common import is_alive, print_text, print_verbatim
from s2a_bench.cli.live import Clock, Heartbeat, LiveRows, Row, clock_text
from s2a_bench.cli.steps import show_activity
from s2a_bench.config import CellConfig
from s2a_bench.sweeps.events import Level, Listener, StageEnd
from s2a_bench.sweeps.grid import label
from s2a_bench.sweeps.plan import Plan
from s2a_bench.sweeps.search.choice import Choice
from s2a_bench.sweeps.search.run_search import point_text, search_text
from s2a_bench.sweeps.stage import failure_line

HEARTBEAT = 60.0
"""Seconds between plain lines about cells that are still running."""


class Tally:
    """Counts a sweep's cells and epochs and estimates the rest.

    Attributes:
        planned: Cells to run.
        finished: How many have ended.
        failed: How many of them failed.
        running: Cell id -> epochs done; a fraction where the steps within an epoch are known.
        metrics: Cell id -> those of its last epoch, of running cells that have ended one.
        starts: Cell id -> when it started, of running cells.
    """

    def __init__(self, cells: Mapping[str, CellConfig], clock: Clock = time.monotonic) -> None:
        self.cells = cells
        self.planned = len(cells)
        self.finished = 0
        self.failed = 0
        self.running: dict[str, float] = {}
        self.metrics: dict[str, Mapping[str, float]] = {}
        self.starts: dict[str, float] = {}
        self._epochs = 0
        self._clock = clock
        self._first: tuple[float, float] | None = None

    def begin(self, cell_id: str) -> None:
        """A cell started."""
        self.running[cell_id] = 0
        self.starts[cell_id] = self._clock()

    def advance(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """A cell ended the epoch of which ``metrics`` are."""
        self.running[cell_id] = int(metrics["epoch"])
        self.metrics[cell_id] = metrics
        self._first = self._first or (self._clock(), self.fraction)

    def step(self, cell_id: str, done: int, total: int) -> None:
        """A cell made so many of the steps of all its epochs."""
        self.running[cell_id] = self.cells[cell_id].train.epochs * done / total
        self._first = self._first or (self._clock(), self.fraction)

    def end(self, record: Record) -> None:
        """A cell ended, well or not."""
        for known in (self.running, self.metrics, self.starts):
            known.pop(record.cell_id, None)
        self._epochs += self.cells[record.cell_id].train.epochs
        self.finished += 1
        self.failed += record.status == "failed"

    @property
    def fraction(self) -> float:
        """Share of all epochs that are done; a cell that failed has none left."""
        total = sum(cell.train.epochs for cell in self.cells.values())
        return (self._epochs + sum([*self.running.values()])) / total if total else 1.0

    @property
    def remaining(self) -> float | None:
        """Estimated seconds to go at the speed since the first step or epoch's end; ``None`` before the second.

        What comes before (processes that start, imports) comes once and says nothing about the rest.
        """
        if self._first is None or self.fraction <= self._first[1]:
            return None
        return (self._clock() - self._first[0]) * (1 - self.fraction) / (self.fraction - self._first[1])

    def eta(self) -> str:
        """``about 3:20 left`` or ``starting``."""
        if self.remaining is None:
            return "starting"
        return f"about {clock_text(self.remaining)} left" if self.fraction < 1 else "scoring"


def ended(record: Record, cell: CellConfig, name: str | None = None) -> str:
    """One line about a cell that ended, by its name, its label if left out."""
    name = name or label(cell)
    notes = "".join(f" ({note})" for note in record.notes)
    if record.status == "failed":
        return f"{failure_line(record, cell, name)}{notes}"
    if record.status == "stopped":
        last = f"val {record.curve[-1]['val_accuracy']:.1f} %" if record.curve else "nothing"
        return f"stopped {name}: {last} after epoch {len(record.curve)} of {record.epochs}{notes}"
    took = f" in {clock_text(record.seconds)}" if record.seconds is not None else ""
    resumed = f", resumed {record.resumed}x" if record.resumed else ""
    problems = f", but it {describe_problems(record)}" if describe_problems(record) else ""
    return f"done {name}: {record.accuracy:.1f} %{took}{resumed}{problems}{notes}"


def known_of(metrics: Mapping[str, float]) -> list[str]:
    """Loss, accuracy on val and memory of a cell after an epoch, as far as they are known."""
    words = {"loss": "loss {:.3f}", "val_accuracy": "val {:.1f} %", "peak_mb": "{:,.0f} MB"}
    return [text.format(metrics[name]) for name, text in words.items() if name in metrics]


def short_names(cells: Mapping[str, CellConfig]) -> tuple[dict[str, str], str]:
    """What tells cells apart, by id, and what all of them have in common."""
    labels = {cell_id: label(cell).split(", ") for cell_id, cell in cells.items()}
    common = [part for part in next(iter(labels.values()), [])[1:] if all(part in each for each in labels.values())]
    names = {cell_id: ", ".join(part for part in each if part not in common) for cell_id, each in labels.items()}
    if len({*names.values()}) < len(names):
        return {cell_id: ", ".join(each) for cell_id, each in labels.items()}, ""
    return names, ", ".join(common)


class Lines:
    """Plain lines: every start and end, and now and then a sign of life."""

    def __init__(self, tally: Tally, console: Console, clock: Clock = time.monotonic) -> None:
        self._tally, self._console = tally, console
        self.heartbeat = Heartbeat(self._say_running, HEARTBEAT, clock)

    def started(self, cell_id: str) -> None:
        """Prints the cell."""
        self._tally.begin(cell_id)
        self._say(f"started {label(self._tally.cells[cell_id])}")

    def step(self, cell_id: str, done: int, total: int) -> None:
        """Keeps it for the next sign of life."""
        self._tally.step(cell_id, done, total)

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Prints the epoch if nothing was printed for a while."""
        self._tally.advance(cell_id, metrics)
        self.heartbeat.beat()

    def finished(self, record: Record) -> None:
        """Prints the result."""
        self._tally.end(record)
        self._say(f"{ended(record, self._tally.cells[record.cell_id])} ({self._tally.eta()})")

    def _say_running(self) -> None:
        """Names the cells that run, how far they are, and what is known of them."""
        for cell_id, epochs in [*self._tally.running.items()]:
            cell, known = self._tally.cells[cell_id], self._tally.metrics.get(cell_id, {})
            words = ", ".join(["", *known_of(known)])
            self._say(f"epoch {epochs_text(epochs, cell)} of {label(cell)}{words}, {self._tally.eta()}")

    def _say(self, text: str) -> None:
        self.heartbeat.spoken()
        print_verbatim(self._console, f"[{self._tally.finished}/{self._tally.planned}] {text}")


def epochs_text(epochs: float, cell: CellConfig) -> str:
    """``3/10`` for the third epoch, whether it runs or has ended."""
    return f"{max(1, -int(-epochs // 1))}/{cell.train.epochs}"


class Bars:
    """A line for the sweep and one for every running cell; cells that ended scroll above them."""

    def __init__(self, tally: Tally, console: Console, clock: Clock = time.monotonic) -> None:
        self._tally, self._console, self._began = tally, console, clock()
        self._names, self.common = short_names(tally.cells)

    def rows(self) -> list[Row]:
        """What is to be shown now."""
        tally = self._tally
        failed = [f"{tally.failed} failed"] if tally.failed else []
        name = f"{tally.finished}/{tally.planned} {'cell' if tally.planned == 1 else 'cells'}"
        facts = [f"{100 * tally.fraction:.0f} %", *failed, tally.eta()]
        return [Row(name, tally.fraction, facts, self._began), *map(self._row, [*tally.running])]

    def _row(self, cell_id: str) -> Row:
        cell, metrics = self._tally.cells[cell_id], self._tally.metrics.get(cell_id, {})
        epochs = self._tally.running.get(cell_id, 0)
        where = epochs_text(epochs, cell) if epochs else "starting"
        if metrics.get("epoch") == cell.train.epochs:
            where = "scoring"
        share = epochs / cell.train.epochs
        return Row(f"  {self._names[cell_id]}", share, [where, *known_of(metrics)], self._tally.starts.get(cell_id))

    def started(self, cell_id: str) -> None:
        """Adds the cell's line."""
        self._tally.begin(cell_id)

    def step(self, cell_id: str, done: int, total: int) -> None:
        """Moves the cell's bar."""
        self._tally.step(cell_id, done, total)

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Moves the cell's bar."""
        self._tally.advance(cell_id, metrics)

    def finished(self, record: Record) -> None:
        """Takes the cell's line away and prints its result."""
        self._tally.end(record)
        text = ended(record, self._tally.cells[record.cell_id], self._names[record.cell_id])
        style = "red" if record.status == "failed" else "yellow" if describe_problems(record) else None
        print_text(self._console, text, style)


@contextlib.contextmanager
def shown(cells: Mapping[str, CellConfig], console: Console) -> Iterator[Lines | Bars]:
    """A listener that shows how the given cells fare, for as long as the block lasts."""
    tally = Tally(cells)
    if not is_alive(console):
        lines = Lines(tally, console)
        lines.heartbeat.start()
        try:
            yield lines
        finally:
            lines.heartbeat.stop()
        return
    bars = Bars(tally, console)
    if bars.common:
        print_text(console, f"In all cells: {bars.common}.")
    with LiveRows(console, bars.rows).shown():
        yield bars


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
        self._preparing = contextlib.ExitStack()
        self._shown: Lines | Bars | None = None
        self._left = 0

    def __enter__(self) -> ConsoleListener:
        """Says on a terminal that data, weights and methods are looked at, which takes a while."""
        self._preparing.enter_context(show_activity(self._console, "checking data, weights and methods"))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes the bars away."""
        self._preparing.close()
        self._stack.close()

    def message(self, text: str, level: Level) -> None:
        """Prints it."""
        print_text(self._console, text, _STYLES[level])

    def planned(self, plan: Plan) -> None:
        """Shows bars for the cells that will run."""
        self._preparing.close()
        self._left = len(plan.todo)
        if plan.todo:
            cells = {cell_id: plan.cells[cell_id] for cell_id in plan.todo}
            self._shown = self._stack.enter_context(shown(cells, self._console))

    def started(self, cell_id: str) -> None:
        """Shows the cell."""
        if self._shown:
            self._shown.started(cell_id)

    def step(self, cell_id: str, done: int, total: int) -> None:
        """Shows the step."""
        if self._shown:
            self._shown.step(cell_id, done, total)

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
            width = self._console.width if self._console.is_terminal else None  # a file gets all columns
            self._console.print(terminal_table(end.records, width))
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
