"""The sweep: which cells of a grid are missing, and how they are run. It neither tracks nor reports.

A finished cell is a valid record of status ``done``. Everything else is run: cells that failed before too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import os
import shutil
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from s2a_bench.cells import outputs as keeping
from s2a_bench.cells import record as records
from s2a_bench.cells.outputs import Keep
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, identifying
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError

WORKER_BYTES = 2_000_000_000
"""Memory set aside for a worker when their number is chosen: Python, torch, a mini backbone and its data."""


class Listener(Protocol):
    """Told of what happens, in the driver's process."""

    def started(self, cell_id: str) -> None:
        """A worker took a cell."""

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """A cell ended an epoch."""

    def finished(self, record: Record) -> None:
        """A cell's record was written."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A grid, measured against the records.

    Attributes:
        cells: Every cell by its id, the longest first.
        done: Those with a valid record.
        again: Those whose record says ``failed``.
        broken: Record files that could not be read, as sentences; their cells run again.
    """

    cells: Mapping[str, CellConfig]
    done: frozenset[str]
    again: frozenset[str]
    broken: tuple[str, ...]

    @property
    def todo(self) -> list[str]:
        """Cells to run, in order."""
        return [cell_id for cell_id in self.cells if cell_id not in self.done]


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many cells run at once, and what each is given.

    Attributes:
        count: Cells at once.
        cpus: Cores of each.
        gpus: Share of a card of each.
        cards: Cards of the machine; ``None``: as many as ``count`` such shares make.
    """

    count: int
    cpus: int
    gpus: float = 0.0
    cards: int | None = None


def identify(cells: Iterable[CellConfig]) -> dict[str, CellConfig]:
    """Cells by their id, each once; whatever is wrong with one of them is found here, before anything runs.

    Raises:
        ValueError: A cell that cannot run: one sentence.
    """
    from s2a_bench.cells import run

    found: dict[str, CellConfig] = {}
    for cell in cells:
        found.setdefault(run.identify(cell), cell)
    return found


def plan(cells: Mapping[str, CellConfig], output: Path) -> Plan:
    """Looks for the record of every cell."""
    done, again, broken = set(), set(), []
    for cell_id in cells:
        try:
            record = records.read(records.record_path(output, cell_id))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            broken.append(str(error))
        else:
            if record.status != "stopped":  # what a search ended early is no result, and has not failed either
                (done if record.status == "done" else again).add(cell_id)
    return Plan(cells, frozenset(done), frozenset(again), tuple(broken))


def results(plan: Plan, output: Path) -> dict[str, Record | None]:
    """The record of every cell of a plan; ``None`` where there is none."""
    found: dict[str, Record | None] = {}
    for cell_id in plan.cells:
        try:
            found[cell_id] = records.read(records.record_path(output, cell_id))
        except (OSError, ValueError):
            found[cell_id] = None
    return found


@contextlib.contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Holds the output folder for this process and clears what a killed one left.

    Raises:
        InputError: The folder cannot be written, or another sweep holds it.
    """
    try:
        records.make_folder(output / "records")
        with tempfile.TemporaryFile(dir=output / "records") as probe:
            probe.write(b"a full disk may still have room for names")
        lock = (output / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"Cannot write to output folder {output} ({error}); pass a writable one to --output."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"Another sweep (process {lock.read().strip() or 'unknown'}) is writing to {output}; "
                "wait for it to end, or pass another --output."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        with contextlib.suppress(OSError):  # the number is for people; a disk that has just filled is told of later
            lock.flush()
        keeping.tidy(output)
        shutil.rmtree(output / ".ray", ignore_errors=True)
        yield


def choose_workers(cells: int, device: str, concurrent: int | None = None, *, small: bool = True) -> Workers:
    """Workers for a number of cells on this machine.

    Args:
        cells: How many are to run.
        device: torch device of the cells.
        concurrent: The user's wish; ``None`` chooses.
        small: The cells are small enough for one core each; others get the machine to themselves.

    Raises:
        InputError: Fewer than one worker.
    """
    cpus = len(os.sched_getaffinity(0))
    if concurrent is not None and concurrent < 1:
        raise InputError(f"--max-concurrent {concurrent} is too small; it must be at least 1.")
    cuda = device.startswith("cuda")
    devices = _cuda_devices() if cuda else 0
    if concurrent is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        concurrent = max(1, min(cpus, memory // WORKER_BYTES)) if small else 1
        concurrent = devices if cuda else concurrent
    count = max(1, min(concurrent, cells))
    return Workers(count, max(1, cpus // count), min(1.0, devices / count), devices if cuda else None)


def _cuda_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def run_here(plan: Plan, output: Path, listeners: Sequence[Listener], keep: Keep | None = None) -> None:
    """Runs the missing cells one after the other in this process.

    Args:
        plan: What is to run.
        output: Where records go.
        listeners: Who is told.
        keep: What else the cells leave there; ``None``: checkpoints, at the default distance.

    Raises:
        OSError: A record could not be written.
    """
    from s2a_bench.cells import run

    for cell_id in plan.todo:
        tell(listeners, "started", cell_id)
        try:
            record = run.run(
                plan.cells[cell_id], lambda m, c=cell_id: tell(listeners, "epoch", c, m), keep or Keep(output)
            )
        except ValueError as error:  # what was good at the start has gone bad since, a data folder say
            record = failed(cell_id, plan.cells[cell_id], type(error).__name__, str(error), traceback.format_exc())
        records.write(record, output)
        keeping.settle(record, output)
        tell(listeners, "finished", record)


def failed(cell_id: str, cell: CellConfig, kind: str, message: str, trace: str) -> Record:
    """The record of a cell whose run came to no end of its own, with the cause."""
    return Record(
        cell_id=cell_id,
        status="failed",
        suite=cell.data.suite,
        dataset=cell.data.dataset,
        group=datasets.get_dataset(cell.data.suite, cell.data.dataset).group,
        backbone=cell.backbone.name,
        method=cell.method.name,
        method_config=dict(cell.method.options),
        train_config=identifying(cell.train),
        seed=cell.seed,
        epochs=cell.train.epochs,
        evaluated_on=cell.data.evaluate,
        random_weights=cell.backbone.random_weights,
        limit_train=cell.data.limit_train,
        limit_test=cell.data.limit_test,
        trial=cell.trial,
        search=None if cell.search is None else dict(cell.search),
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        error={"type": kind, "message": message, "traceback": trace},
    )


def tell(listeners: Sequence[Listener], event: str, *arguments: Any) -> None:
    """Passes an event on to every listener."""
    for listener in listeners:
        getattr(listener, event)(*arguments)
