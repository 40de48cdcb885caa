"""What a store holds of an output folder: the experiments, and the runs that carry the folder's id."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from s2a_bench.tracking import places
from s2a_bench.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

PARENT = "mlflow.parentRunId"
"""MLflow's tag by which its pages show runs under another."""

_OWNER, _PAGE = "output_id", 1000


@dataclasses.dataclass
class CellRun:
    """The run of a cell in the store.

    Attributes:
        run_id: Of its run.
        sha: Hash of the record that it shows.
        parent: Run of the sweep it belongs to.
        sweep_id: Of that sweep.
        complete: Whether its logging was completed, and its files are there.
        ours: Whether it is certainly this output folder's; a run from before ids may be another's.
    """

    run_id: str
    sha: str
    parent: str
    sweep_id: str
    complete: bool
    ours: bool = True


def get_experiment(store: Store, suite: str) -> str:
    """Id of the suite's experiment, which is created, or restored if it was deleted."""
    from mlflow.exceptions import MlflowException

    client = store.client
    found = client.get_experiment_by_name(suite)
    if found is None:
        location = places.experiment_place(store, suite)
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
    places.put_experiment_in_place(store, suite, found.experiment_id, found.artifact_location)
    return found.experiment_id


def owner_tags(store: Store) -> dict[str, str]:
    """Tags by which an output folder knows its runs in a store that it shares; the path is for people."""
    path = str(store.output).encode("utf-8", "backslashreplace").decode()
    return {_OWNER: store.output_id, "output": path[:4000]}


def _is_ours(store: Store, run: Run) -> bool | None:
    """``None``: not known, for a run in a shared store that was made before folders had ids."""
    owner = run.data.tags.get(_OWNER)
    if store.own or owner == store.output_id:
        return True
    return None if owner is None else False


def _search(store: Store, experiment: str, kind: str) -> Iterator[Run]:
    token: str | None = None
    while True:
        page = store.client.search_runs(
            [experiment],
            f"tags.kind = '{kind}'",
            max_results=_PAGE,
            order_by=["attributes.start_time ASC"],
            page_token=token,
        )
        yield from page
        token = page.token
        if not token:
            return


def find_parents(store: Store, suite: str, experiment: str) -> list[Run]:
    """The parent runs of this output folder, the oldest first."""
    found = [run for run in _search(store, experiment, "sweep") if _is_ours(store, run)]
    for run in found:
        places.put_in_place(store, suite, run)
    return found


def find_cell_runs(store: Store, suite: str, experiment: str) -> dict[str, list[CellRun]]:
    """The runs of cells that are this output folder's, or may be, by cell id."""
    cells: dict[str, list[CellRun]] = {}
    for run in _search(store, experiment, "cell"):
        ours, tags = _is_ours(store, run), run.data.tags
        if ours is False:
            continue
        whole = run.info.status in ("FINISHED", "FAILED")
        if ours and store.artifacts is not None:
            whole = whole and places.has_record(places.put_in_place(store, suite, run))
        found = CellRun(
            run.info.run_id,
            tags.get("record_sha", ""),
            tags.get(PARENT, ""),
            tags.get("sweep_id", ""),
            whole,
            bool(ours),
        )
        cells.setdefault(tags.get("cell_id", ""), []).append(found)
    return cells


def create_run(store: Store, suite: str, experiment: str, tags: dict[str, str], start: int | None) -> str:
    """A new run, whose files lie under the output folder wherever those of its experiment do."""
    run = store.client.create_run(experiment, start_time=start, tags={**tags, **owner_tags(store)})
    places.put_in_place(store, suite, run)
    return run.info.run_id
