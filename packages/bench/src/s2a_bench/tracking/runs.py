"""Writes records to MLflow: one experiment per suite, a parent run per sweep, a child run per cell.

The records stay the source: ``rebuild`` writes the whole store again from them. MLflow is imported when a store is
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
from s2a_bench.tracking import names
from s2a_bench.tracking.store import Store, check_uri, first_line, open_store, silence_mlflow

if TYPE_CHECKING:
    from mlflow.entities import Run

__all__ = [
    "Store",
    "Sweep",
    "TrackingError",
    "check_uri",
    "finish_sweep",
    "log_cell",
    "open_store",
    "rebuild",
    "start_sweep",
    "sweep_id",
]

PARENT = "mlflow.parentRunId"
_PAGE = 1000


class TrackingError(RuntimeError):
    """MLflow could not be written to. The records are safe: ``rebuild`` makes up for it later."""


@dataclasses.dataclass
class CellRun:
    """The run of a cell in the store.

    Attributes:
        run_id: Of its run.
        sha: Hash of the record that it shows.
        parent: Run of the sweep it belongs to.
        complete: Whether its logging was completed.
    """

    run_id: str
    sha: str
    parent: str
    complete: bool


@dataclasses.dataclass
class Sweep:
    """A parent run, and what its experiment already holds.

    Attributes:
        store: Where.
        experiment_id: The suite's.
        run_id: The parent run's.
        sweep_id: Hash of the cells that the sweep plans.
        cells: Known runs by cell id, those of other sweeps too.
    """

    store: Store
    experiment_id: str
    run_id: str
    sweep_id: str
    cells: dict[str, list[CellRun]]


def sweep_id(cells: Iterable[str]) -> str:
    """12 hex digits for a set of cells: a resumed sweep plans the same cells and finds its parent again."""
    return hashlib.sha256("\n".join(sorted(set(cells))).encode()).hexdigest()[:12]


def start_sweep(store: Store, suite: str, cells: Iterable[str]) -> Sweep:
    """The parent run of a sweep over ``cells``: a new one, or the one that an earlier attempt left.

    Raises:
        TrackingError: MLflow failed.
    """
    own, client = sweep_id(cells), store.client
    with _explain_failures(f"start the run of sweep {own}"):
        experiment = _get_experiment(store, suite)
        known = _find_cell_runs(store, experiment)
        wanted = f"tags.kind = 'sweep' and tags.sweep_id = '{own}'"
        found = client.search_runs([experiment], wanted, max_results=1, order_by=["attributes.start_time ASC"])
        if found:
            run_id = found[0].info.run_id
            client.update_run(run_id, status="RUNNING")
        else:
            tags = {"kind": "sweep", "sweep_id": own, "suite": suite, "mlflow.runName": f"sweep {own}"}
            run_id = client.create_run(experiment, tags=tags).info.run_id
    return Sweep(store, experiment, run_id, own, known)


def log_cell(sweep: Sweep, record: Record) -> str:
    """Makes the experiment hold exactly one run of this record, as a child of the sweep.

    An unchanged record costs nothing; one that changed, or whose logging was cut off, replaces its run.

    Returns:
        The run's id.

    Raises:
        TrackingError: MLflow failed.
    """
    client, sha = sweep.store.client, names.hash_record(record)
    with _explain_failures(f"log cell {record.cell_id}"):
        kept: CellRun | None = None
        for run in list(sweep.cells.get(record.cell_id, [])):
            if kept or not run.complete or run.sha != sha:
                client.delete_run(run.run_id)
                sweep.cells[record.cell_id].remove(run)
            else:
                kept = run
        if kept is None:
            return _create_cell_run(sweep, record, sha)
        if kept.parent != sweep.run_id:
            # An earlier sweep made this cell and this one has it too: it moves over.
            client.set_tag(kept.run_id, PARENT, sweep.run_id)
            client.set_tag(kept.run_id, "sweep_id", sweep.sweep_id)
            kept.parent = sweep.run_id
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
    from mlflow.entities import Metric, RunTag

    client, now = sweep.store.client, _milliseconds("")
    failed = sum(record.status == "failed" for record in records)
    stopped = sum(record.status == "stopped" for record in records)
    counts = {"cells_done": len(records) - failed - stopped, "cells_failed": failed}
    counts |= {"cells_stopped": stopped} if stopped else {}
    with _explain_failures(f"close the run of sweep {sweep.sweep_id}"):
        points = [Metric(name, float(value), now, 0) for name, value in counts.items()]
        client.log_batch(sweep.run_id, points, tags=[RunTag("mlflow.note.content", names.describe_sweep(records))])
        for path in files:
            if path.is_file():
                client.log_artifact(sweep.run_id, str(path))
        client.set_terminated(sweep.run_id, status or ("FAILED" if failed else "FINISHED"))


def rebuild(output: Path, uri: str | None = None) -> int:
    """Brings a store in line with the records under ``output``; what is already right is not touched.

    Cells that no run stands for get a parent run per suite. Runs without a record stay: the store may be shared.

    Returns:
        How many cells were logged.

    Raises:
        InputError: The store cannot be used, or there are no records.
        TrackingError: MLflow failed.
    """
    found = [record for _, record in records_door.read_all(output) if isinstance(record, Record)]
    if not found:
        raise InputError(f"There are no records under {output / 'records'}; give the --output of a sweep.")
    store = open_store(uri, output)
    logged = 0
    for suite in sorted({record.suite for record in found}):
        own = [record for record in found if record.suite == suite]
        with _explain_failures(f"read experiment {suite!r}"):
            known = _find_cell_runs(store, _get_experiment(store, suite))
        stale = [record for record in own if not _is_logged(known.get(record.cell_id, []), record)]
        if stale:
            sweep = start_sweep(store, suite, [record.cell_id for record in own])
            for record in stale:
                log_cell(sweep, record)
            finish_sweep(sweep, own, [output / "report.html", output / "report.md"])
            logged += len(stale)
        _close_open_sweeps(store, suite, own)
    return logged


def _close_open_sweeps(store: Store, suite: str, own: Sequence[Record]) -> None:
    """Closes the parent runs of these records that a server which went away has left running."""
    by_id = {record.cell_id: record for record in own}
    with _explain_failures(f"read experiment {suite!r}"):
        experiment = _get_experiment(store, suite)
        running = "tags.kind = 'sweep' and attributes.status = 'RUNNING'"
        unfinished = store.client.search_runs([experiment], running, max_results=_PAGE)
        known = _find_cell_runs(store, experiment) if unfinished else {}
    for run in unfinished:
        children = [by_id[cell] for cell, runs in known.items() if cell in by_id and runs[0].parent == run.info.run_id]
        if children:
            sweep = Sweep(store, experiment, run.info.run_id, run.data.tags.get("sweep_id", ""), known)
            finish_sweep(sweep, children, [store.output / "report.html", store.output / "report.md"])


def _get_experiment(store: Store, suite: str) -> str:
    """Id of the suite's experiment, which is created, or restored if it was deleted."""
    from mlflow.exceptions import MlflowException

    client = store.client
    found = client.get_experiment_by_name(suite)
    if found is None:
        location = f"{store.artifacts}/{suite}" if store.artifacts else None
        # The kind spares the user a question of MLflow's pages.
        kind = {"mlflow.experimentKind": "custom_model_development"}
        try:
            return client.create_experiment(suite, artifact_location=location, tags=kind)
        except MlflowException:
            # Another sweep may have made it in between.
            found = client.get_experiment_by_name(suite)
            if found is None:
                raise
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _find_cell_runs(store: Store, experiment: str) -> dict[str, list[CellRun]]:
    cells: dict[str, list[CellRun]] = {}
    token: str | None = None
    while True:
        page = store.client.search_runs([experiment], "tags.kind = 'cell'", max_results=_PAGE, page_token=token)
        for run in page:
            cells.setdefault(run.data.tags["cell_id"], []).append(_cell_run(run))
        token = page.token
        if not token:
            return cells


def _cell_run(run: Run) -> CellRun:
    tags = run.data.tags
    whole = run.info.status in ("FINISHED", "FAILED")
    return CellRun(run.info.run_id, tags.get("record_sha", ""), tags.get(PARENT, ""), whole)


def _is_logged(runs: Sequence[CellRun], record: Record) -> bool:
    return len(runs) == 1 and runs[0].complete and runs[0].sha == names.hash_record(record)


def _create_cell_run(sweep: Sweep, record: Record, sha: str) -> str:
    from mlflow.entities import Metric, Param

    client = sweep.store.client
    start, length = _milliseconds(record.started_at), round(1000 * (record.seconds or 0))
    tags = {**names.run_tags(record), "kind": "cell", "sweep_id": sweep.sweep_id, "record_sha": sha}
    tags |= {PARENT: sweep.run_id, "mlflow.runName": names.run_name(record)}
    run_id = client.create_run(sweep.experiment_id, start_time=start, tags=tags).info.run_id
    # Complete only when it is closed: after an interruption the next attempt replaces it.
    own = CellRun(run_id, sha, sweep.run_id, complete=False)
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
    client.set_terminated(run_id, "FAILED" if record.status == "failed" else "FINISHED", start + length)
    own.complete = True
    return run_id


def _milliseconds(moment: str) -> int:
    """Unix time of an ISO moment, of now without one."""
    with contextlib.suppress(ValueError):
        return round(1000 * datetime.datetime.fromisoformat(moment).timestamp())
    return round(1000 * time.time())


@contextlib.contextmanager
def _explain_failures(what: str) -> Iterator[None]:
    try:
        with silence_mlflow(
            logging.CRITICAL
        ):  # it prints the traceback of an error that is raised here as one sentence
            yield
    except Exception as error:
        raise TrackingError(f"MLflow could not {what} ({type(error).__name__}: {first_line(error)}).") from error
