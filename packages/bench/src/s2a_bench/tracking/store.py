"""Opens an MLflow store. All its errors are found here, within seconds, before any cell runs."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import logging
import os
import re
import socket
import tempfile
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from s2a_bench.errors import InputError
from s2a_bench.files import move_into_place

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 3
"""Timeout for each answer of a server while the store is opened."""

# Switches that MLflow has only as environment variables; a user's own values stay.
_SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # A dead server must cost seconds, not the minutes of MLflow's defaults.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
}
_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_USAGE = "give sqlite:///PATH/mlflow.db or http://HOST:PORT, or leave it out to use mlflow.db in the output folder"


class NotInstalled(InputError):
    """There is no MLflow here."""


@dataclasses.dataclass(frozen=True)
class Store:
    """An open tracking store.

    Attributes:
        uri: Absolute; ``mlflow ui --backend-store-uri`` takes it.
        artifacts: Where new experiments put their files; ``None`` leaves it to the server.
        client: MLflow's client of that store.
        output: The output folder whose records it shows.
    """

    uri: str
    artifacts: str | None
    client: MlflowClient
    output: Path


def check_uri(uri: str | None, output: Path) -> str:
    """The store's absolute URI, checked as far as that goes without MLflow (milliseconds).

    Raises:
        InputError: A scheme that MLflow does not have, a file that is no database, a server that does not answer.
    """
    output = output.absolute()
    if uri is None:
        return _check_sqlite(sqlite_uri(output / "mlflow.db"), make_folder=True)
    scheme = urllib.parse.urlsplit(uri).scheme.partition("+")[0].lower()
    if scheme == "sqlite":
        return _check_sqlite(uri)
    if scheme in ("", "file"):
        raise InputError(
            f"The tracking URI {_hide_password(uri)!r} is a folder, which MLflow no longer writes to; {_USAGE}."
        )
    if scheme not in _PORTS and scheme != "databricks":
        raise InputError(f"The tracking URI {_hide_password(uri)!r} has the unknown scheme {scheme!r}; {_USAGE}.")
    # Behind a proxy only the client knows the way; it is tried in ``open_store``.
    if scheme in _PORTS and scheme not in urllib.request.getproxies():
        _check_server(uri, _PORTS[scheme])
    return uri


def check_installed() -> None:
    """Checks that MLflow is there.

    Raises:
        NotInstalled: It is not.
    """
    if find_spec("mlflow") is None:
        raise NotInstalled("MLflow is not installed; install it to track results: pip install 's2a-bench[mlflow]'")


def open_store(uri: str | None, output: Path) -> Store:
    """Opens (and creates, if need be) a tracking store.

    Args:
        uri: ``sqlite:///PATH``, ``http(s)://HOST:PORT`` or another database URI of MLflow; ``None`` takes
            ``<output>/mlflow.db``.
        output: The output folder; databases keep their artifacts under ``<output>/mlartifacts``.

    Raises:
        NotInstalled: There is no MLflow here.
        InputError: It cannot be used.
    """
    uri = check_uri(uri, output)
    check_installed()
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    remote = not uri.startswith(("sqlite", "postgresql", "mysql", "mssql"))
    artifacts = None if remote else (output.absolute() / "mlartifacts").as_uri()
    try:
        with silence_mlflow(), _use_short_timeouts():
            from mlflow import MlflowClient

            if uri.startswith("sqlite"):
                _create_database(_sqlite_path(uri), artifacts or "")
            client = MlflowClient(uri)
            client.search_experiments(max_results=1)
    except Exception as error:
        raise InputError(
            f"The tracking store {_hide_password(uri)!r} cannot be used ({first_line(error)}); {_USAGE}."
        ) from error
    return Store(uri, artifacts, client, output.absolute())


def first_line(error: BaseException) -> str:
    """An error's first line, short enough for a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]


def _hide_password(uri: str) -> str:
    """Without the password that a database's URI may carry."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def sqlite_uri(path: Path) -> str:
    """The URI from which SQLAlchemy, whichever version is here, opens the database at ``path``.

    ``%`` and ``?`` mean something in a URI. SQLAlchemy 2.1 decodes what stands for them; older versions take a path as
    it is and have no way to write a ``?``, for which SQLite's own file URIs do. The driver is named so that MLflow does
    not make the folder that it would read from the text of a ``sqlite:///`` URI.
    """
    text = str(path)
    if "%" not in text and "?" not in text:
        return f"sqlite:///{text}"
    if _decodes_paths():
        return f"sqlite+pysqlite:///{text.replace('%', '%25').replace('?', '%3F')}"
    if "?" not in text:
        return f"sqlite+pysqlite:///{text}"
    return f"sqlite+pysqlite:///file:{urllib.parse.quote(text)}?uri=true"


def _sqlite_path(uri: str) -> Path:
    text, _, query = uri.partition(":///")[2].partition("?")
    if text.startswith("file:") and "uri=true" in query.split("&"):
        return Path(urllib.parse.unquote(text.removeprefix("file:")))
    return Path(urllib.parse.unquote(text) if _decodes_paths() else text)


@functools.cache
def _decodes_paths() -> bool:
    """Whether SQLAlchemy decodes ``%3F`` in the path of a URI, by its version: importing it takes long."""
    try:
        numbers = version("sqlalchemy").split(".")[:2]
    except PackageNotFoundError:
        return True
    return tuple(int(re.match(r"\d*", number)[0] or 0) for number in numbers) >= (2, 1)  # type: ignore[index]


def _check_sqlite(uri: str, make_folder: bool = False) -> str:
    _, slashes, tail = uri.partition(":///")
    path = _sqlite_path(uri)
    if not slashes or path.name in ("", ":memory:"):
        raise InputError(f"The tracking URI {_hide_password(uri)!r} names no file; {_USAGE}.")
    query = tail.partition("?")[1] + tail.partition("?")[2]
    if not path.is_absolute():
        path = path.absolute()
        whole = sqlite_uri(path)
        uri = whole + (query if "?" not in whole else f"&{query[1:]}" if query else "")
    try:
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.is_dir():
            raise InputError(
                f"The tracking URI {_hide_password(uri)!r} lies in folder {path.parent}, which does not exist; make it."
            )
        if path.exists():
            with path.open("r+b") as file:
                if file.read(16) not in (b"", b"SQLite format 3\0"):
                    raise InputError(f"The tracking URI {_hide_password(uri)!r} is not an SQLite database; {_USAGE}.")
        elif not os.access(path.parent, os.W_OK):
            raise InputError(
                f"The tracking URI {_hide_password(uri)!r} lies in a folder that is not writable; {_USAGE}."
            )
    except OSError as error:
        raise InputError(f"The tracking URI {_hide_password(uri)!r} cannot be used ({error}); {_USAGE}.") from error
    return uri


def _check_server(uri: str, port: int) -> None:
    """Connects once, so that a wrong address is found within seconds."""
    try:
        parts = urllib.parse.urlsplit(uri)
        host, port = parts.hostname or "", parts.port or port
        socket.create_connection((host, port), timeout=PROBE_SECONDS).close()
    except (OSError, ValueError) as error:
        raise InputError(
            f"No tracking server answers at {_hide_password(uri)!r} ({first_line(error)}); start it, or {_USAGE}."
        ) from error


def _create_database(path: Path, artifacts: str) -> None:
    """Creates an MLflow database, completely or not at all.

    MLflow migrates a new database through all its versions with a flush to disk at each step, and refuses one whose
    migration was interrupted. So it is created in a temporary folder beside its place, without flushes, and moved there
    when it is complete.
    """
    if path.exists() and path.stat().st_size:
        return
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore
    from sqlalchemy import event
    from sqlalchemy.engine import Engine

    def unflushed(connection, _) -> None:
        connection.execute("PRAGMA synchronous=OFF")

    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        growing = Path(folder) / path.name
        event.listen(Engine, "connect", unflushed)
        try:
            SqlAlchemyStore(sqlite_uri(growing), artifacts).engine.dispose()
        finally:
            event.remove(Engine, "connect", unflushed)
        if path.exists() and path.stat().st_size:
            return  # Another process was faster; its database may hold runs already.
        move_into_place(growing, path)


@contextlib.contextmanager
def silence_mlflow(level: int = logging.WARNING) -> Iterator[None]:
    """Hides MLflow's log messages below a level, such as the progress of a migration."""
    loggers = [logging.getLogger(name) for name in ("mlflow", "mlflow.store.db.utils", "alembic")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(level)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


@contextlib.contextmanager
def _use_short_timeouts() -> Iterator[None]:
    """Sets MLflow's shortest HTTP timeouts, unless the user has set others."""
    short = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": str(PROBE_SECONDS)}
    ours = {name: value for name, value in short.items() if os.environ.get(name) == _SWITCHES[name]}
    os.environ.update(ours)
    try:
        yield
    finally:
        os.environ.update({name: _SWITCHES[name] for name in ours})
