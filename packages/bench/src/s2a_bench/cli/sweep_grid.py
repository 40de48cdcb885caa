"""What each command does. Here, and only here, the doors meet: sweep, tracker and report."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import s2a
from rich.console import Console
from rich.table import Table

from s2a_bench import failures as faults
from s2a_bench.cells import estimate
from s2a_bench.cells import record as records
from s2a_bench.cells.outputs import CHECKPOINT_SECONDS, Keep
from s2a_bench.cells.record import Record
from s2a_bench.cli import progress
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError, unknown
from s2a_bench.sweeps import grid
from s2a_bench.sweeps import plan as sweeping
from s2a_bench.sweeps import resources as scale
from s2a_bench.sweeps.ray import pool
from s2a_bench.sweeps.ray.cluster import ClusterError
from s2a_bench.sweeps.ray.runtime import Engine, PoolError
from s2a_bench.sweeps.search.asha import Halving
from s2a_bench.tracking import store as track_store
from s2a_bench.tracking.listener import Tracker
from s2a_bench.tracking.runs import TrackingError

DONE, SOME_FAILED, INTERRUPTED = 0, 1, 130

_VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}
"""How to print text that must come out as it is, paths and commands above all."""


@dataclasses.dataclass(frozen=True)
class Conduct:
    """How a sweep is run, as opposed to what it runs.

    Attributes:
        output: Folder of records, report and the default tracking store.
        tracking_uri: MLflow store; ``None`` takes ``<output>/mlflow.db``.
        serial: Run the cells in this process, without Ray.
        max_concurrent: Cells at once.
        dry_run: Only say what would run.
        checkpoint_every: Seconds between checkpoints of a cell, see ``keep.Keep``.
        keep_adapters: Keep the trained state of every cell that runs.
        ray_address: Running Ray cluster to use; ``None``: this machine.
        gpu_memory_gb: Memory of a card, for the shares of cells; ``None``: what this machine's has.
        feature_cache: Run frozen backbones once, see ``features``.
    """

    output: Path = Path("results")
    tracking_uri: str | None = None
    serial: bool = False
    max_concurrent: int | None = None
    dry_run: bool = False
    checkpoint_every: float = CHECKPOINT_SECONDS
    keep_adapters: bool = False
    ray_address: str | None = None
    gpu_memory_gb: float | None = None
    feature_cache: bool = True


def sweep(request: grid.Request, conduct: Conduct, console: Console) -> int:
    """Runs the missing cells of a grid; then shows, tracks and reports all of them.

    Returns:
        0 if every cell is done, 1 if some failed, 130 after Ctrl-C.

    Raises:
        ValueError: Bad input, before anything ran.
    """
    output = conduct.output.absolute()
    Keep(output, conduct.checkpoint_every, conduct.keep_adapters)  # bad numbers are found before anything else
    if conduct.tracking_uri is not None:
        track_store.check_uri(conduct.tracking_uri, output)  # the quickest check of all
    wish = wished(request, conduct)
    cells = sweeping.identify(grid.expand(checked(request, here=wish.address is None)))
    if conduct.dry_run:
        plan = sweeping.plan(cells, output)
        console.print(_plan_table(plan))
        console.print(_planned(plan), **_VERBATIM)
        console.print(estimated([plan.cells[i] for i in plan.todo], request, conduct), **_VERBATIM)
        return DONE
    return run_cells(cells, request, conduct, console)


def wished(request: grid.Request, conduct: Conduct) -> scale.Wish:
    """Where cells shall run.

    Raises:
        InputError: Wishes that exclude each other or the device.
    """
    wish = scale.Wish(conduct.ray_address, conduct.gpu_memory_gb, conduct.max_concurrent, conduct.serial)
    wish.check(request.device)
    return wish


def run_cells(
    cells: Mapping[str, CellConfig],
    request: grid.Request,
    conduct: Conduct,
    console: Console,
    find: Callable[[Mapping[str, CellConfig], Path], sweeping.Plan] = sweeping.plan,
    conclude: Callable[[sweeping.Plan, Path, Tracker, Console], int] | None = None,
    halving: Callable[[sweeping.Plan, Path], Halving] | None = None,
    engine: Engine | None = None,
) -> int:
    """Runs the missing ones of identified cells, followed by the tracker.

    Args:
        cells: By id.
        request: What they were made from.
        conduct: How to run them.
        console: Where to say so.
        find: Which are missing.
        conclude: What to do at the end; its value is returned. ``None``: table, report, failures.
        halving: Which of them, trials of a search, Ray may stop early; ``None``: none.
        engine: The Ray that several sweeps share, see ``pool.run_with_ray``.

    Returns:
        As ``sweep``.
    """
    output = conduct.output.absolute()
    keep = Keep(output, conduct.checkpoint_every, conduct.keep_adapters, conduct.feature_cache)
    with sweeping.only_writer(output):
        plan = find(cells, output)
        where = scale.decide(
            plan, output, request.device, wished(request, conduct), small=request.suite in grid.BACKBONES
        )
        tracker = Tracker(plan, request.suite, conduct.tracking_uri, output)
        for sentence in plan.broken:
            console.print(f"Running a cell again: {sentence}", style="yellow", **_VERBATIM)
        if tracker.missing:
            console.print(f"Nothing is tracked: {tracker.missing}", style="yellow", **_VERBATIM)
        console.print(_planned(plan), **_VERBATIM)
        if where.sentence:
            console.print(where.sentence, **_VERBATIM)
        try:
            if plan.todo:
                stops = halving(plan, output) if halving else None
                _run(plan, keep, None if conduct.serial else where, tracker, console, stops, engine)
            return (conclude or _conclude)(plan, output, tracker, console)
        except KeyboardInterrupt:
            found = _present(sweeping.results(plan, output))
            close(tracker, found, "KILLED", console)
            done = sum(record.status == "done" for record in found)
            console.print(
                f"Interrupted: {done} of {len(plan.cells)} cells are done; the same command goes on from there.",
                **_VERBATIM,
            )
            return INTERRUPTED
        except Exception as error:
            found = _present(sweeping.results(plan, output))
            done = sum(record.status == "done" for record in found)
            safe = f"{done} of {len(plan.cells)} cells are done and safe: "
            sentence = faults.disk_sentence(error, output, safe)
            if sentence is None:
                if isinstance(error, InputError):  # a cluster that cannot be joined, say
                    close(tracker, found, "KILLED", console)
                raise
            with contextlib.suppress(TrackingError):  # its database may lie on the same disk
                tracker.close(found, "KILLED")
            print(f"s2a-bench: {sentence}", file=sys.stderr)
            return SOME_FAILED


def _run(
    plan: sweeping.Plan,
    keep: Keep,
    where: scale.Scale | None,
    tracker: Tracker,
    console: Console,
    halving: Halving | None = None,
    engine: Engine | None = None,
) -> None:
    output = keep.output
    with progress.shown({cell_id: plan.cells[cell_id] for cell_id in plan.todo}, console) as shown:
        if where is None:
            sweeping.run_here(plan, output, [shown, tracker], keep)
        elif find_spec("ray") is None:
            console.print("Ray is not installed; the cells run one after the other.", style="yellow", **_VERBATIM)
            sweeping.run_here(plan, output, [shown, tracker], keep)
        else:
            try:
                pool.run_with_ray(
                    plan,
                    output,
                    [shown, tracker],
                    where.workers,
                    keep,
                    shares=where.shares,
                    join=where.join,
                    halving=halving,
                    engine=engine,
                )
            except ClusterError as error:
                console.print(str(error), style="red", **_VERBATIM)
            except PoolError as error:
                if halving is not None:
                    raise InputError(
                        f"{error}, and --search-scheduler asha needs it; try again, or without."
                    ) from error
                console.print(f"{error}; the cells run one after the other instead.", style="yellow", **_VERBATIM)
                sweeping.run_here(plan, output, [shown, tracker], keep)


def _conclude(plan: sweeping.Plan, output: Path, tracker: Tracker, console: Console) -> int:
    from s2a_bench.reports import build as report
    from s2a_bench.reports.terminal import terminal_table

    found = _present(sweeping.results(plan, output))
    failures = [record for record in found if record.status == "failed"]
    paths = report.build(output)
    close(tracker, found, "FAILED" if failures else "FINISHED", console)
    console.print(terminal_table(found, console.width))
    for record in failures:
        line = f"FAILED {grid.label(plan.cells[record.cell_id])}: {progress.cause(record)}"
        console.print(line, style="red", **_VERBATIM)
    console.print(f"Report: {paths.html}", **_VERBATIM)
    if not tracker.missing:
        console.print(f"MLflow: mlflow server --host 127.0.0.1 --backend-store-uri {tracker.uri}", **_VERBATIM)
    done = len(found) - len(failures)
    if done == len(plan.cells):
        return DONE
    console.print(f"{done} of {len(plan.cells)} cells are done; the same command runs the others again.", **_VERBATIM)
    return SOME_FAILED


def close(tracker: Tracker, found: list[Record], status: str, console: Console) -> None:
    """Closes the tracker; what it could not log is said, and stops nothing."""
    try:
        tracker.close(found, status)
    except TrackingError as error:
        console.print(str(error), style="yellow", **_VERBATIM)


def _present(found: Mapping[str, Record | None]) -> list[Record]:
    return [record for record in found.values() if record is not None]


def _planned(plan: sweeping.Plan) -> str:
    again = f", {len(plan.again)} of them failed before" if plan.again else ""
    todo = f"{len(plan.todo)} to run{again}" if plan.todo else "nothing to run"
    return f"{len(plan.cells)} cells: {len(plan.done)} done, {todo}."


def estimated(todo: Sequence[CellConfig], request: grid.Request, conduct: Conduct) -> str:
    """What the missing cells will take, in words, from the records of the output folder."""
    count = 1
    if todo and not conduct.serial:
        small = request.suite in grid.BACKBONES
        count = sweeping.choose_workers(len(todo), request.device, conduct.max_concurrent, small=small).count
    good = [found for _, found in records.read_all(conduct.output.absolute()) if isinstance(found, Record)]
    return estimate.sentence(todo, good, request.device, count)


def _plan_table(plan: sweeping.Plan) -> Table:
    table = Table("cell", "record", "what", "epochs")
    for cell_id, cell in plan.cells.items():
        state = "done" if cell_id in plan.done else "failed" if cell_id in plan.again else "missing"
        table.add_row(cell_id, state, grid.label(cell), str(cell.train.epochs))
    return table


def checked(request: grid.Request, here: bool = True) -> grid.Request:
    """The request, if its device is there; of a cluster's devices only the workers know."""
    import torch

    try:
        kind = torch.device(request.device).type
    except RuntimeError:
        raise InputError(f"Unknown device {request.device!r}: write cpu, cuda or cuda:0.") from None
    if here and kind == "cuda" and not torch.cuda.is_available():
        raise InputError(
            f"Device {request.device!r} was asked for but torch finds no CUDA device here; use --device cpu."
        )
    return request


def methods(name: str | None, markdown: bool, console: Console) -> int:
    """Prints the card of every registered method, or of one.

    Raises:
        S2AError: An unknown method.
    """
    from s2a_bench.cli import methods as cards

    texts = [cards.card(found) for found in ([name] if name else s2a.list_methods())]
    if markdown:
        print(cards.page(texts), end="", file=console.file)
        return DONE
    for text in texts:
        table = Table(title=f"{text.name}: {text.title}", show_header=False, title_justify="left", expand=False)
        for key, value in text.rows:
            table.add_row(key, value)
        console.print(table, highlight=False, markup=False)
    return DONE


def report(output: Path, console: Console) -> int:
    """Rebuilds the report from the records.

    Raises:
        InputError: There are none.
    """
    from s2a_bench.reports import build as door
    from s2a_bench.reports.terminal import terminal_table

    paths = door.build(output.absolute())
    good = [found for _, found in records.read_all(output.absolute()) if isinstance(found, Record)]
    console.print(terminal_table(good, console.width))
    console.print(f"Report: {paths.html}", **_VERBATIM)
    return DONE


def track(output: Path, uri: str | None, console: Console) -> int:
    """Rebuilds the tracking store from the records.

    Raises:
        InputError: No records, or a store that cannot be used.
    """
    from s2a_bench.tracking import runs as door

    try:
        count = door.rebuild(output.absolute(), uri)
    except door.TrackingError as error:
        print(f"s2a-bench: {error}", file=sys.stderr)
        return SOME_FAILED
    console.print(f"{count} records are in the store.", **_VERBATIM)
    return DONE


def pretrain(config: Any, data: Path, out: Path, console: Console) -> int:
    """Makes an embedded mini backbone and prints every epoch.

    Raises:
        InputError: Unknown backbone, or no images.
    """
    from s2a_bench.cells.backbones import MINI_BACKBONES
    from s2a_bench.cells.pretrain import pretrain as epochs

    if config.backbone not in MINI_BACKBONES:
        raise unknown("mini backbone", config.backbone, MINI_BACKBONES)
    try:
        for row in epochs(config, data, out):
            console.print(
                f"epoch {row['epoch']}/{config.epochs}: loss {row['loss']:.4f}, test accuracy {row['accuracy']:.2f} %, "
                f"{progress.clock_text(row['seconds'])}",
                highlight=False,
            )
    except FileNotFoundError as error:
        raise InputError(f"{error}; pass the CIFAR-10 class folders, or their .tar.gz, to --data.") from error
    console.print(f"Weights: {out / config.backbone}.safetensors", **_VERBATIM)
    return DONE
