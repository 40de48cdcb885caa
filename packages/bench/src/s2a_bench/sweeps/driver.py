"""Runs a sweep from a request to its records, without a console: what happens goes to listeners as events."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.events import Listener, StageEnd, notify
from s2a_bench.sweeps.grid import expand
from s2a_bench.sweeps.plan import Plan, count_cells, identify, plan, results
from s2a_bench.sweeps.request import Request, RunOptions
from s2a_bench.sweeps.resources import check_device, estimate_sentence
from s2a_bench.sweeps.search import choice as search
from s2a_bench.sweeps.search.choice import Mode
from s2a_bench.sweeps.search.run_search import (
    check_scheduler,
    plan_searches,
    plan_trials,
    point_text,
    run_search,
)
from s2a_bench.sweeps.stage import failure_line, plan_sentence, run_stage, unlearned_sentence


@dataclasses.dataclass(frozen=True)
class SweepResult:
    """What a sweep left.

    Attributes:
        stages: How its stages ended: the trials of a search, then the cells that were asked for.
    """

    stages: tuple[StageEnd, ...]

    @property
    def records(self) -> list[Record]:
        """Those of all cells that have one, in the order of the stages; those of trials have ``trial=True``."""
        return [record for end in self.stages for record in end.records]

    @property
    def missing(self) -> int:
        """How many cells have no record because the cluster they ran on went away."""
        return sum(len(end.plan.cells) - len(end.plan.newer) - len(end.records) for end in self.stages)

    @property
    def newer(self) -> list[str]:
        """A sentence for each cell that was left alone, since a newer version of s2a-bench wrote its record."""
        return [sentence for end in self.stages for sentence in end.plan.newer.values()]

    @property
    def complete(self) -> bool:
        """Whether every cell is done, and every search has chosen."""
        return all(end.status == "FINISHED" for end in self.stages)


def check_cells(request: Request, options: RunOptions, mode: Mode | None) -> list[CellConfig]:
    """The cells of a request, as far as bad input can be found without looking at data, backbones and methods.

    Raises:
        ValueError: Bad input: one sentence.
    """
    if mode is not None:
        check_scheduler(mode, options)
    options.resources.check(request.device)
    check_device(request.device, here=options.resources.ray_address is None)
    return expand(request)


def run_sweep(
    request: Request, options: RunOptions, listeners: Sequence[Listener] = (), mode: Mode | None = None
) -> SweepResult:
    """Runs the missing cells of a request.

    Args:
        request: What to run.
        options: How to run it.
        listeners: Receive progress events.
        mode: Choose learning rate, weight decay and the method's scale on val first; ``None``: no search.

    Raises:
        ValueError: Bad input, before anything ran: one sentence.
        SweepStopped: The output folder cannot be written any more.
        KeyboardInterrupt: As it came; records and checkpoints stay, and the same call goes on from there.
    """
    cells = check_cells(request, options, mode)
    if sentence := grid.backbone_sentence(request):
        notify(listeners, "message", sentence, "info")
    if mode is not None:
        ends = run_search(cells, mode, request, options, listeners)
    else:
        ends = [run_stage(identify(cells), request, options, listeners)]
    if ends[-1].choices is None:
        for record in ends[-1].records:
            if record.status == "failed":
                line = failure_line(record, ends[-1].plan.cells[record.cell_id])
                notify(listeners, "message", line, "error")
        if sentence := unlearned_sentence(ends[-1].records):
            notify(listeners, "message", sentence, "warning")
    return SweepResult(tuple(ends))


# What would run


@dataclasses.dataclass(frozen=True)
class PreviewRow:
    """A cell that a sweep consists of.

    Attributes:
        cell_id: Its id; ``None``: only known after the search.
        state: Of its record.
        text: The cell in words.
        epochs: It trains for so many.
    """

    cell_id: str | None
    state: Literal["done", "failed", "missing", "newer", ""]
    text: str
    epochs: int


@dataclasses.dataclass(frozen=True)
class Preview:
    """What a sweep would run.

    Attributes:
        rows: All of its cells.
        sentence: How many of them.
        estimate: What the missing ones take in time and memory.
        problems: What is wrong with records, as sentences.
    """

    rows: tuple[PreviewRow, ...]
    sentence: str
    estimate: str
    problems: tuple[str, ...] = ()


def preview(request: Request, options: RunOptions, mode: Mode | None = None) -> Preview:
    """What ``run_sweep`` would run; nothing is written.

    Raises:
        ValueError: Bad input: one sentence.
    """
    cells = check_cells(request, options, mode)
    output, small = options.keep.output, request.suite in grid.BACKBONES
    if mode is None:
        found = plan(identify(cells), output)
        todo, rows = [found.cells[cell_id] for cell_id in found.todo], _rows(found)
        sentence, most, problems = plan_sentence(found), "", found.problems
    else:
        todo, rows, problems = _search_rows(cells, mode, request, options)
        sentence = f"{count_cells(len(todo))} to run, trials and final ones."
        stops = mode.scheduler != "none" and any(cell.trial for cell in todo)
        most = " Trials that are stopped take less." if stops else ""
    estimate = estimate_sentence(todo, output, request.device, options.resources, small=small)
    sentence = " ".join(filter(None, (grid.backbone_sentence(request), sentence)))
    return Preview(tuple(rows), sentence, estimate + most, tuple(problems))


def _rows(found: Plan, prefix: str = "", suffix: str = "") -> list[PreviewRow]:
    rows = []
    for cell_id, cell in found.cells.items():
        state = "done" if cell_id in found.done else "failed" if cell_id in found.again else "missing"
        state = "newer" if cell_id in found.newer else state
        text = f"{prefix}{grid.label(cell)}{suffix}"
        rows.append(PreviewRow(cell_id, state, text, cell.train.epochs))
    return rows


def _search_rows(
    cells: Sequence[CellConfig], mode: Mode, request: Request, options: RunOptions
) -> tuple[list[CellConfig], list[PreviewRow], list[str]]:
    """The missing cells, all of them (trials, and final cells, those that wait for the search too), and problems."""
    output = options.keep.output
    known = plan_searches(cells, mode)
    trials = plan_trials(known.trials, output, mode)
    found = results(trials, output)
    todo, rows = [trials.cells[cell_id] for cell_id in trials.todo], _rows(trials, "trial: ")
    problems = trials.problems
    for each, ids in known.each if request.evaluate == "test" else ():
        choice = search.choose(each, ids, found)
        if choice is None:
            todo += each.finals  # with another learning rate, which costs the same
            rows += [PreviewRow(None, "", grid.label(cell), cell.train.epochs) for cell in each.finals]
            continue
        after = plan(identify(search.final_cells(choice)), output)
        todo += [after.cells[cell_id] for cell_id in after.todo]
        rows += _rows(after, suffix=f" ({point_text(choice.point)})")
        problems += after.problems
    return todo, rows, problems
