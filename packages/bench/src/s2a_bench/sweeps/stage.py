"""One stage of a sweep: identified cells in, records out. It prints nothing; listeners receive all that happens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from s2a_bench import failures
from s2a_bench.cells import learning
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps import grid
from s2a_bench.sweeps import plan as planning
from s2a_bench.sweeps.events import Listener, StageEnd, notify
from s2a_bench.sweeps.local import run_locally
from s2a_bench.sweeps.output_lock import only_writer
from s2a_bench.sweeps.plan import Plan, count_cells, results
from s2a_bench.sweeps.ray import pool
from s2a_bench.sweeps.ray.cluster import ClusterError
from s2a_bench.sweeps.ray.runtime import Engine, PoolError
from s2a_bench.sweeps.request import Request, RunOptions
from s2a_bench.sweeps.resources import Placement, place
from s2a_bench.sweeps.search.asha import Halving
from s2a_bench.sweeps.search.choice import Choice


class SweepStopped(RuntimeError):
    """A sweep ended before all of its cells had run; what is done is safe, and the same call goes on from there.

    Attributes:
        records: Those that exist.
    """

    def __init__(self, sentence: str, records: Sequence[Record]) -> None:
        """A stop.

        Args:
            sentence: Why, and what to do.
            records: Those that exist.
        """
        super().__init__(sentence)
        self.records = [*records]


def run_stage(
    cells: Mapping[str, CellConfig],
    request: Request,
    options: RunOptions,
    listeners: Sequence[Listener],
    *,
    find: Callable[[Mapping[str, CellConfig], Path], Plan] = planning.plan,
    choose: Callable[[Mapping[str, Record | None], Path], tuple[Sequence[Choice], bool]] | None = None,
    halving: Callable[[Plan, Path], Halving] | None = None,
    engine: Engine | None = None,
) -> StageEnd:
    """Runs the missing ones of identified cells.

    Args:
        cells: By id.
        request: What they were made from.
        options: How to run them.
        listeners: Receive progress events.
        find: Which cells are missing.
        choose: For the trials of searches: their choices from the records, and whether every search has one.
        halving: Which of them, trials of a search, Ray may stop early; ``None``: none.
        engine: The Ray that several stages share, see ``pool.run_with_ray``.

    Raises:
        InputError: The output folder cannot be written or is in use, or the cluster cannot be used.
        SweepStopped: The output folder cannot be written any more.
        KeyboardInterrupt: As it came, after ``ended`` with the status ``KILLED``.
    """
    output = options.keep.output
    with only_writer(output):
        plan = find(cells, output)
        placement = place(plan, output, request.device, options.resources, small=request.suite in grid.BACKBONES)
        for sentence in plan.problems:
            notify(listeners, "message", sentence, "warning")
        try:
            notify(listeners, "planned", plan)
            notify(listeners, "message", plan_sentence(plan), "info")
            if placement.sentence:
                notify(listeners, "message", placement.sentence, "info")
            if plan.todo:
                stops = halving(plan, output) if halving else None
                _run_cells(plan, options, placement, listeners, stops, engine)
            end = _end(plan, output, choose)
            notify(listeners, "ended", end)
            return end
        except KeyboardInterrupt:
            end = _killed(plan, output)
            notify(listeners, "ended", end)
            text = f"Interrupted: {_done(end)} done; the same command goes on from there."
            notify(listeners, "message", text, "info")
            raise
        except SystemExit:  # Ray's handler of SIGTERM, while Ray starts
            notify(listeners, "ended", _killed(plan, output))
            raise
        except Exception as error:
            end = _killed(plan, output)
            sentence = failures.disk_sentence(error, output, f"{_done(end)} done and safe: ")
            if sentence is not None:
                notify(listeners, "ended", _killed(plan, output, disk_error=True))
                raise SweepStopped(sentence, end.records) from error
            if isinstance(error, InputError):  # a cluster that cannot be joined, say
                notify(listeners, "ended", end)
            raise


def _run_cells(
    plan: Plan,
    options: RunOptions,
    placement: Placement,
    listeners: Sequence[Listener],
    halving: Halving | None,
    engine: Engine | None,
) -> None:
    """With Ray where it is wanted and there, else in this process; a cluster that goes away is only a message."""
    if options.resources.serial:
        run_locally(plan, listeners, options.keep)
        return
    if find_spec("ray") is None:
        notify(
            listeners,
            "message",
            "Ray is not installed: the cells run one after the other (several at once: pip install 's2a-bench[ray]').",
            "warning",
        )
        run_locally(plan, listeners, options.keep)
        return
    try:
        pool.run_with_ray(plan, listeners, options.keep, placement, halving=halving, engine=engine)
    except ClusterError as error:
        notify(listeners, "message", str(error), "error")
    except PoolError as error:
        if halving is not None:
            raise InputError(f"{error}, and --search-scheduler asha needs it; try again, or without.") from error
        notify(listeners, "message", f"{error}; the cells run one after the other instead.", "warning")
        run_locally(plan, listeners, options.keep)


def _end(
    plan: Plan,
    output: Path,
    choose: Callable[[Mapping[str, Record | None], Path], tuple[Sequence[Choice], bool]] | None,
) -> StageEnd:
    found = results(plan, output)
    records = [record for record in found.values() if record is not None]
    if choose is None:
        complete, choices = all(record.status == "done" for record in records) and len(records) == len(found), None
    else:
        choices, complete = choose(found, output)
    status: Literal["FINISHED", "FAILED"] = "FINISHED" if complete else "FAILED"
    return StageEnd(plan, records, status, choices)


def _killed(plan: Plan, output: Path, disk_error: bool = False) -> StageEnd:
    records = [record for record in results(plan, output).values() if record is not None]
    return StageEnd(plan, records, "KILLED", disk_error=disk_error)


def _done(end: StageEnd) -> str:
    return done_sentence(sum(record.status == "done" for record in end.records), len(end.plan.cells))


def done_sentence(done: int, cells: int) -> str:
    """``0 of 1 cell is``, ``2 of 3 cells are``."""
    return f"{done} of {count_cells(cells)} {'is' if cells == 1 else 'are'}"


def plan_sentence(plan: Plan) -> str:
    """How many cells there are, are done, and run: ``12 cells: 4 done, 8 to run, 1 of them failed before.``."""
    again = f", {len(plan.again)} of them failed before" if plan.again else ""
    todo = f"{len(plan.todo)} to run{again}" if plan.todo else "nothing to run"
    newer = f", {len(plan.newer)} of a newer version left alone" if plan.newer else ""
    return f"{count_cells(len(plan.cells))}: {len(plan.done)} done, {todo}{newer}."


def unlearned_sentence(records: Sequence[Record]) -> str:
    """How many of the finished cells did not learn, and what to do about it; empty if all learned."""
    unlearned = [record for record in records if learning.find_problems(record)]
    if not unlearned:
        return ""
    names = list(dict.fromkeys(f"{r.method} on {r.dataset} ({r.backbone})" for r in unlearned))
    few = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    done = sum(record.status == "done" for record in records)
    what = "cell" if done == 1 else "cells"
    return (
        f"{len(unlearned)} of {done} finished {what} did not learn: {few}. The report marks them and every mean "
        "that holds one with †; try another train.lr (a lower one most often), more epochs, or --search."
    )


def failure_line(record: Record, cell: CellConfig, name: str | None = None) -> str:
    """Which cell failed and why, on one line; the cell by its name, its label if left out."""
    return f"FAILED {name or grid.label(cell)}: {failures.cause(record)}"
