"""Where the files of runs lie: under the output folder whose records they show, wherever that folder is now.

MLflow writes absolute addresses into its database, and one for all runs of an experiment. Here each run has its own,
below ``<output>/mlartifacts``, and gets a new one when the folder was moved or copied. A server has its own storage:
there nothing is done.
"""

from __future__ import annotations

import urllib.parse
from pathlib import Path
from typing import TYPE_CHECKING

from s2a_bench.tracking.store import Store

if TYPE_CHECKING:
    from mlflow.entities import Run

_FOLDER = "mlartifacts"


def experiment_place(store: Store, suite: str) -> str | None:
    """Address of the files of a suite; ``None`` leaves it to the server."""
    return f"{store.artifacts}/{urllib.parse.quote(suite, safe='')}" if store.artifacts else None


def put_in_place(store: Store, suite: str, run: Run) -> str:
    """Gives a run the address under the store's output folder, and returns the address that it has.

    A run whose files lie elsewhere for another reason than a move keeps them.
    """
    now = run.info.artifact_uri or ""
    root = experiment_place(store, suite)
    if root is None:
        return now
    wanted, ending = f"{root}/{run.info.run_id}/artifacts", f"/{run.info.run_id}/artifacts"
    if now == wanted or not now.endswith(ending) or f"/{_FOLDER}/" not in now:
        return now
    _change(store, "runs", "artifact_uri", wanted, "run_uuid", run.info.run_id)
    return wanted


def put_experiment_in_place(store: Store, suite: str, experiment_id: str, now: str) -> None:
    """The same for an experiment of the default database, whose address only new runs of others would get."""
    wanted = experiment_place(store, suite)
    if store.own and wanted is not None and now != wanted and f"/{_FOLDER}/" in now:
        _change(store, "experiments", "artifact_location", wanted, "experiment_id", int(experiment_id))


def has_record(address: str) -> bool:
    """Whether the files of a cell's run are there; of other than local files nothing is known."""
    parts = urllib.parse.urlsplit(address)
    return parts.scheme != "file" or (Path(urllib.parse.unquote(parts.path)) / "record.json").is_file()


def _change(store: Store, table: str, column: str, value: str, key: str, row: str | int) -> None:
    """One value of MLflow's tables; its client has no call for it."""
    import sqlalchemy
    from mlflow.tracking._tracking_service import utils

    statement = sqlalchemy.text(f"UPDATE {table} SET {column} = :value WHERE {key} = :row")
    with store.client._tracking_client.store.engine.begin() as connection:
        connection.execute(statement, {"value": value, "row": row})
    utils._artifact_repos_cache.pop(row, None)
