"""Writes records to MLflow: one experiment per suite, a parent run per sweep, a child run per cell.

The records stay the source: ``heal`` brings a store in line with them. Several output folders may share a store: the
runs of each carry its id (``outputs.output_id``), and no other folder touches them. MLflow is imported when a store is
opened.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import hashlib
import json
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from s2a_bench.cells import record as records_door
from s2a_bench.cells.outputs import recorded_adapter
from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError
from s2a_bench.sweeps.output_lock import only_writer
from s2a_bench.tracking import database, mlflow_model, names, outputs, pages
from s2a_bench.tracking import found as found_runs
from s2a_bench.tracking.found import PARENT, CellRun
from s2a_bench.tracking.sqlite_uris import sqlite_path
from s2a_bench.tracking.store import Store, check_uri, first_line, open_store, silence_mlflow

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = [
    "Store",
    "Sweep",
    "TrackingError",
    "check_uri",
    "finish_sweep",
    "heal",
    "heal_alone",
    "list_sweeps",
    "log_cell",
    "open_store",
    "rebuild",
    "start_sweep",
    "sweep_id",
]


class TrackingError(RuntimeError):
    """MLflow could not be written to. The records are safe: ``rebuild`` makes up for it later."""


@dataclasses.dataclass
class Sweep:
    """A parent run, and what its experiment already holds.

    Attributes:
        store: Where.
        suite: Names the experiment.
        experiment_id: The suite's.
        run_id: The parent run's.
        sweep_id: Hash of the cells that the sweep plans.
        cells: Known runs by cell id, those of other sweeps too.
        parents: The parent runs that are there, by their ids, with the sweep of each.
    """

    store: Store
    suite: str
    experiment_id: str
    run_id: str
    sweep_id: str
    cells: dict[str, list[CellRun]]
    parents: dict[str, str]


def sweep_id(cells: Iterable[str]) -> str:
    """12 hex digits for a set of cells: a resumed sweep plans the same cells and finds its parent again."""
    return hashlib.sha256("\n".join(sorted(set(cells))).encode()).hexdigest()[:12]


def start_sweep(store: Store, suite: str, cells: Iterable[str]) -> Sweep:
    """The parent run of a sweep over ``cells``: a new one, or the one that an earlier attempt left.

    Raises:
        TrackingError: MLflow failed.
    """
    cells = list(cells)
    own, client = sweep_id(cells), store.client
    with _explain_failures(f"start the run of sweep {own}"):
        outputs.remember_sweep(store.output, own, suite, cells)
        experiment = found_runs.get_experiment(store, suite)
        known = found_runs.find_cell_runs(store, suite, experiment)
        found = found_runs.find_parents(store, suite, experiment)
        parents = {run.info.run_id: run.data.tags.get("sweep_id", "") for run in found}
        run_id = next((run for run, sweep in parents.items() if sweep == own), None)
        if run_id is not None:
            client.update_run(run_id, status="RUNNING")
        else:
            tags = {"kind": "sweep", "sweep_id": own, "suite": suite, "mlflow.runName": f"sweep {own}"}
            run_id = found_runs.create_run(store, suite, experiment, tags, None)
            parents[run_id] = own
    return Sweep(store, suite, experiment, run_id, own, known, parents)


def log_cell(sweep: Sweep, record: Record) -> str:
    """Makes the sweep hold exactly one run of this record, as its child; a cell of several sweeps has one in each.

    An unchanged record costs nothing; one that changed, or whose logging was cut off, replaces its run, in other sweeps
    too.

    Returns:
        The run's id.

    Raises:
        TrackingError: MLflow failed.
    """
    client, sha = sweep.store.client, names.hash_record(record)
    with _explain_failures(f"log cell {record.cell_id}"):
        kept: CellRun | None = None
        known = sweep.cells.setdefault(record.cell_id, [])
        for run in list(known):
            right = run.complete and run.sha == sha
            elsewhere = run.parent != sweep.run_id and run.parent in sweep.parents
            if (elsewhere and right) or (not run.ours and not right):
                continue
            if elsewhere:
                _create_cell_run(sweep, record, sha, run.parent, run.sweep_id)
            elif right and kept is None:
                kept = run
                continue
            client.delete_run(run.run_id)
            known.remove(run)
        if kept is None:
            return _create_cell_run(sweep, record, sha, sweep.run_id, sweep.sweep_id)
        if kept.parent != sweep.run_id or not kept.ours:  # its parent was deleted, or has no id yet
            tags = {PARENT: sweep.run_id, "sweep_id": sweep.sweep_id, **found_runs.owner_tags(sweep.store)}
            for key, value in tags.items():
                client.set_tag(kept.run_id, key, value)
            kept.parent, kept.sweep_id, kept.ours = sweep.run_id, sweep.sweep_id, True
        return kept.run_id


def finish_sweep(
    sweep: Sweep, records: Sequence[Record], files: Iterable[Path] = (), status: str | None = None
) -> None:
    """Closes the parent run: a written description, the counts, and files (the report) as artifacts.

    Args:
        sweep: Of ``start_sweep``.
        records: All records of the sweep.
        files: To attach; those that do not exist are left out.
        status: ``FINISHED``, ``FAILED`` or ``KILLED``; ``None``: decided by the records.

    Raises:
        TrackingError: MLflow failed.
    """
    from mlflow.entities import Metric

    client, now = sweep.store.client, _milliseconds("")
    failed = sum(record.status == "failed" for record in records)
    stopped = sum(record.status == "stopped" for record in records)
    counts = {"cells_done": len(records) - failed - stopped, "cells_failed": failed}
    counts |= {"cells_stopped": stopped} if stopped else {}
    with _explain_failures(f"close the run of sweep {sweep.sweep_id}"):
        points = [Metric(name, float(value), now, 0) for name, value in counts.items()]
        client.log_batch(sweep.run_id, points)
        pages.show_sweep(sweep.store, sweep.run_id, sweep.sweep_id, records)
        for path in files:
            if path.is_file():
                client.log_artifact(sweep.run_id, str(path))
        client.set_terminated(sweep.run_id, status or ("FAILED" if failed else "FINISHED"))
        shown = {sweep.sweep_id: (sweep.run_id, records)}
        pages.show_experiment(sweep.store, sweep.suite, sweep.experiment_id, shown, all_of_folder=False)


def rebuild(output: Path, uri: str | None = None) -> int:
    """Brings a store in line with the records under ``output``, see ``heal``.

    Returns:
        How many cells were logged.

    Raises:
        InputError: The store cannot be used, or there are no records.
        TrackingError: MLflow failed.
    """
    if not any(isinstance(record, Record) for _, record in records_door.read_all(output)):
        raise InputError(f"There are no records under {output / 'records'}; give the --output of a sweep.")
    return heal_alone(open_store(uri, output))


def heal_alone(store: Store) -> int:
    """As ``heal``; runs that are open are closed, unless a sweep runs in the output folder.

    Returns:
        How many cells were logged.

    Raises:
        TrackingError: MLflow failed.
    """
    with contextlib.ExitStack() as stack:
        alone = True
        try:
            stack.enter_context(only_writer(store.output))
        except InputError:  # a sweep is running there, or nothing can be written: no run is known to be abandoned
            alone = False
        return heal(store, close=alone)


def heal(store: Store, *, close: bool = True) -> int:
    """Brings a store in line with the records of its output folder; what is already right is not touched.

    Every sweep that was run in the folder gets its parent run with a child for each of its records. Records of no known
    sweep get a parent run for their suite. Runs without a record stay.

    Args:
        store: The store.
        close: Also close parent runs that are said to be running: no sweep runs in the folder but the caller's.

    Returns:
        How many cells were logged.

    Raises:
        TrackingError: MLflow failed.
    """
    found = [record for _, record in records_door.read_all(store.output) if isinstance(record, Record)]
    planned = outputs.remembered_sweeps(store.output).values()
    suites = {record.suite for record in found} | {suite for suite, _ in planned}
    with contextlib.ExitStack() as stack:
        if store.own:
            stack.enter_context(database.without_flushes(store.client, sqlite_path(store.uri)))
        return sum(
            _heal_suite(store, suite, {record.cell_id: record for record in found if record.suite == suite}, close)
            for suite in sorted(suites)
        )


def _heal_suite(store: Store, suite: str, own: dict[str, Record], close: bool) -> int:
    with _explain_failures(f"read experiment {suite!r}"):
        experiment = found_runs.get_experiment(store, suite)
        known = found_runs.find_cell_runs(store, suite, experiment)
        parents = {run.info.run_id: run for run in found_runs.find_parents(store, suite, experiment)}

    def holds(record: Record, sweep: str | None) -> bool:
        """Whether the record has its run in a sweep, or in any."""
        sha = names.hash_record(record)
        good = [run for run in known.get(record.cell_id, []) if run.complete and run.sha == sha and run.ours]
        return any(run.parent in parents and sweep in (None, run.sweep_id) for run in good)

    logged: set[str] = set()
    sweeps = {i: cells for i, (of, cells) in outputs.remembered_sweeps(store.output).items() if of == suite}
    covered = {cell for cells in sweeps.values() for cell in cells}
    rest = [i for i, record in own.items() if i not in covered and not holds(record, None)]
    for sweep, cells in [*sweeps.items(), *([(sweep_id(rest), rest)] if rest else [])]:
        there = [own[cell] for cell in cells if cell in own]
        missing = [record.cell_id for record in there if not holds(record, sweep)]
        states = [run.info.status for run in parents.values() if run.data.tags.get("sweep_id") == sweep]
        if missing or (there and not states) or (close and "RUNNING" in states):
            opened = start_sweep(store, suite, cells)
            for record in there:
                log_cell(opened, record)
            finish_sweep(opened, there, _reports(store), None if len(there) == len(cells) else "KILLED")
            logged.update(missing)
    if close:
        _close_left_open(store, suite, experiment, own)
    with _explain_failures(f"describe experiment {suite!r}"):
        if logged:
            known = found_runs.find_cell_runs(store, suite, experiment)
        if logged or close:
            parents = {run.info.run_id: run for run in found_runs.find_parents(store, suite, experiment)}
        _show(store, suite, experiment, own, known, parents)
    return len(logged)


def _show(
    store: Store,
    suite: str,
    experiment: str,
    own: dict[str, Record],
    known: dict[str, list[CellRun]],
    parents: dict[str, Run],
) -> None:
    """Brings in line what an experiment's pages say of its sweeps."""
    children = _children(own, known)
    sweeps = {}
    for run_id, run in parents.items():
        records, own_sweep = children.get(run_id, []), run.data.tags.get("sweep_id", "")
        if records and own_sweep:
            pages.show_sweep(store, run_id, own_sweep, records, run.data.tags)
            sweeps[own_sweep] = (run_id, records)
    pages.show_experiment(store, suite, experiment, sweeps)


def _children(own: dict[str, Record], known: dict[str, list[CellRun]]) -> dict[str, list[Record]]:
    """By parent run, the records that have a run there."""
    children: dict[str, list[Record]] = {}
    for cell, runs in known.items():
        for parent in {run.parent for run in runs if run.complete}:
            if cell in own:
                children.setdefault(parent, []).append(own[cell])
    return children


def list_sweeps(store: Store) -> list[pages.Link]:
    """The sweeps of a store's output folder, with links to their pages, the latest first.

    Raises:
        TrackingError: MLflow failed.
    """
    own: dict[str, dict[str, Record]] = {}
    for _, record in records_door.read_all(store.output):
        if isinstance(record, Record):
            own.setdefault(record.suite, {})[record.cell_id] = record
    found: list[tuple[int, pages.Link]] = []
    with _explain_failures("list the sweeps"):
        for suite, records in own.items():
            experiment = found_runs.get_experiment(store, suite)
            children = _children(records, found_runs.find_cell_runs(store, suite, experiment))
            for run in found_runs.find_parents(store, suite, experiment):
                if cells := children.get(run.info.run_id):
                    link = pages.sweep_link(store, experiment, run.data.tags.get("sweep_id", ""), cells)
                    found.append((run.info.end_time or run.info.start_time or 0, link))
    return [link for _, link in sorted(found, key=lambda each: each[0], reverse=True)]


def _close_left_open(store: Store, suite: str, experiment: str, own: dict[str, Record]) -> None:
    """Closes the parent runs that a killed process, or a server that went away, has left running."""
    with _explain_failures(f"read experiment {suite!r}"):
        found = found_runs.find_parents(store, suite, experiment)
        left = [run for run in found if run.info.status == "RUNNING"]
        known = found_runs.find_cell_runs(store, suite, experiment) if left else {}
    for run in left:
        run_id = run.info.run_id
        children = [own[i] for i, runs in known.items() if i in own and any(each.parent == run_id for each in runs)]
        sweep = Sweep(store, suite, experiment, run_id, run.data.tags.get("sweep_id", ""), known, {})
        finish_sweep(sweep, children, _reports(store), None if children else "KILLED")


def _reports(store: Store) -> list[Path]:
    return [store.output / "report.html", store.output / "report.md"]


def _create_cell_run(sweep: Sweep, record: Record, sha: str, parent: str, sweep_id: str) -> str:
    from mlflow.entities import Metric, Param

    client = sweep.store.client
    start, length = _milliseconds(record.started_at), round(1000 * (record.seconds or 0))
    tags = {**names.run_tags(record), "kind": "cell", "sweep_id": sweep_id, "record_sha": sha}
    tags |= {PARENT: parent, "mlflow.runName": names.run_name(record)}
    run_id = found_runs.create_run(sweep.store, sweep.suite, sweep.experiment_id, tags, start)
    # Complete only when it is closed: after an interruption the next attempt replaces it.
    own = CellRun(run_id, sha, parent, sweep_id, complete=False)
    sweep.cells.setdefault(record.cell_id, []).append(own)

    numbers = names.run_metrics(record)
    last = max((step for _, _, step in numbers), default=0) or 1
    # A point of a curve gets its share of the run's time, a final number its end.
    points = [Metric(key, v, start + (length * step // last if step else length), step) for key, v, step in numbers]
    values = [Param(key, value) for key, value in names.run_params(record).items()]
    while points or values:
        # MLflow takes 1,000 items at a time, of them 100 parameters.
        client.log_batch(run_id, points[:900], values[:100])
        points, values = points[900:], values[100:]
    client.log_text(run_id, json.dumps(vars(record), indent=1) + "\n", "record.json")
    if record.error and record.error.get("traceback"):
        client.log_text(run_id, record.error["traceback"], "traceback.txt")
    if (adapter := recorded_adapter(record, sweep.store.output)) is not None:
        client.log_artifact(run_id, str(adapter), "adapter")
    mlflow_model.log_inputs(sweep.store, run_id, record)
    mlflow_model.log_model(sweep.store, sweep.experiment_id, run_id, record)
    client.set_terminated(run_id, "FAILED" if record.status == "failed" else "FINISHED", start + length)
    own.complete = True
    return run_id


def _milliseconds(moment: str) -> int:
    """Unix time of an ISO moment, of now without one."""
    with contextlib.suppress(ValueError, OverflowError, OSError):
        return max(0, round(1000 * datetime.datetime.fromisoformat(moment).timestamp()))
    return round(1000 * time.time())


@contextlib.contextmanager
def _explain_failures(what: str) -> Iterator[None]:
    try:
        # MLflow prints the traceback of an error that is raised here as one sentence.
        with silence_mlflow(logging.CRITICAL):
            yield
    except Exception as error:
        raise TrackingError(f"MLflow could not {what} ({type(error).__name__}: {first_line(error)}).") from error
