"""The default database, ``<output>/mlflow.db``: a view of the records, made anew where it cannot be used.

Only this database is ever replaced, never one that a user named.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from s2a_bench.cells.record import set_aside
from s2a_bench.files import locked, move_into_place
from s2a_bench.tracking.sqlite_uris import sqlite_path, sqlite_uri

_OTHER_CAUSES = ("locked", "busy", "readonly", "read-only", "disk is full", "disk i/o", "no space", "permission denied")
"""Words of errors that have another cause than the database's content: a new one would not help."""

_BESIDE = ("-wal", "-shm", "-journal")
"""Files of SQLite's that belong to a database."""


def open_default(path: Path, artifacts: str, connect: Callable[[], Any]) -> tuple[Any, Path | None]:
    """Opens the default database; one that is damaged or of another version of MLflow is set aside and made anew.

    Args:
        path: Of the database.
        artifacts: Where new experiments put their files.
        connect: Opens it with MLflow.

    Returns:
        What ``connect`` returns, and the new name of a database that was set aside.

    Raises:
        Exception: As ``connect``, where a new database would not help.
    """
    create(path, artifacts)
    missing: list[str] = []
    try:
        _check(path)
        if missing := _find_missing_columns(path):
            raise sqlite3.DatabaseError(f"without {missing[0]}")
        return connect(), None
    except Exception as error:
        if any(words in str(error).lower() for words in _OTHER_CAUSES):
            raise
        with _new_database(path, artifacts) as new:  # first: if MLflow cannot make one, the old one is not the cause
            if missing and missing == _find_missing_columns(new):
                return connect(), None  # no database of this version of MLflow has them
            aside = set_aside(path)
            for ending in _BESIDE:
                with contextlib.suppress(OSError):
                    Path(f"{path}{ending}").rename(f"{aside}{ending}")
            move_into_place(new, path)
        _forget_connections(path)
        return connect(), aside


def _check(path: Path) -> None:
    """Reads the whole structure of a database: MLflow would open a truncated one and fail half-way."""
    if not path.is_file():
        raise sqlite3.DatabaseError("not a file")
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        (answer,) = connection.execute("PRAGMA quick_check(1)").fetchone()
    if answer != "ok":
        raise sqlite3.DatabaseError(answer)


def _find_missing_columns(path: Path) -> list[str]:
    """Columns that MLflow uses and a database lacks: one whose migration was interrupted opens, and fails later."""
    try:
        from mlflow.store.db.base_sql_model import Base
        from mlflow.store.tracking.dbmodels import models  # noqa: F401 fills ``Base``
    except ImportError:  # another version keeps its tables elsewhere
        return []
    missing = []
    with contextlib.closing(sqlite3.connect(path, timeout=30)) as connection:
        for table in Base.metadata.tables.values():
            # Not table_info, which leaves computed columns out.
            found = {row[1] for row in connection.execute(f'PRAGMA table_xinfo("{table.name}")')}
            missing += [f"{table.name}.{column.name}" for column in table.columns if column.name not in found]
    return missing


def create(path: Path, artifacts: str) -> None:
    """Creates an MLflow database, completely or not at all, unless there is one.

    MLflow migrates a new database through all its versions with a flush to disk at each step, and refuses one whose
    migration was interrupted. So it is created in a temporary folder beside its place, without flushes, and moved there
    when it is complete.
    """
    _clear_abandoned(path)
    if path.exists() and (not path.is_file() or path.stat().st_size):
        return
    with _new_database(path, artifacts) as new:
        if path.exists() and path.stat().st_size:
            return  # Another process was faster; its database may hold runs already.
        move_into_place(new, path)
    _forget_connections(path)


@contextlib.contextmanager
def _new_database(path: Path, artifacts: str) -> Iterator[Path]:
    """A complete new database in a temporary folder, which goes with the block."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        with _marked_in_use(folder):
            new = folder / "new.db"
            event.listen(Engine, "connect", _do_not_flush)
            try:
                SqlAlchemyStore(sqlite_uri(new), artifacts).engine.dispose()
            finally:
                event.remove(Engine, "connect", _do_not_flush)
            yield new
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def without_flushes(client: Any, path: Path) -> Iterator[None]:
    """Writes of MLflow's client are flushed to disk once, at the end, instead of ten times per run.

    For the default database alone, while it is filled from records: what a crash of the machine leaves of it is made
    anew from them.

    Args:
        client: MLflow's, of that database.
        path: Of the database.
    """
    from sqlalchemy import event

    engine = client._tracking_client.store.engine
    event.listen(engine, "connect", _do_not_flush)
    engine.dispose()  # open connections flush still
    try:
        yield
    finally:
        event.remove(engine, "connect", _do_not_flush)
        engine.dispose()
        with contextlib.suppress(OSError), path.open("rb+") as file:
            os.fsync(file.fileno())


def _do_not_flush(connection: Any, _: Any) -> None:
    connection.execute("PRAGMA synchronous=OFF")


@contextlib.contextmanager
def _marked_in_use(folder: Path) -> Iterator[None]:
    """A lock by which others see that the folder is in use; a file system without locks has none."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            stack.enter_context(locked(folder, wait=True))
        yield


def _clear_abandoned(path: Path) -> None:
    """Removes the temporary folders of processes that were killed; those of living ones are locked."""
    for folder in path.parent.iterdir():
        if folder.name.startswith(f".{path.name}.") and folder.is_dir() and not folder.is_symlink():
            with contextlib.suppress(OSError), locked(folder, wait=False) as free:
                if free:
                    shutil.rmtree(folder, ignore_errors=True)


def _forget_connections(path: Path) -> None:
    """Closes what MLflow has open of an earlier file of that name: it keeps connections for the whole process."""
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    for uri, engine in list(getattr(SqlAlchemyStore, "_engine_map", {}).items()):
        if uri.startswith("sqlite") and sqlite_path(uri).absolute() == path.absolute():
            engine.dispose()
