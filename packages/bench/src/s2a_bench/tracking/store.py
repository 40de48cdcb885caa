"""Opens an MLflow store: whether its address is right is known within milliseconds, whether it works within seconds."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import re
import socket
import urllib.parse
import urllib.request
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from s2a_bench.errors import InputError
from s2a_bench.tracking import database, outputs
from s2a_bench.tracking.sqlite_uris import sqlite_path, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

PROBE_SECONDS = 3
"""Timeout for each answer of a server while the store is opened."""

# Switches that MLflow has only as environment variables; a user's own values stay.
_SWITCHES = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
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
        own: Whether it is the output folder's default database: all of its runs are of these records.
        output_id: Of the output folder, see ``outputs.output_id``: the tag of its runs in a shared store.
        aside: New name of a default database that could not be used; this one is empty.
    """

    uri: str
    artifacts: str | None
    client: MlflowClient
    output: Path
    own: bool
    output_id: str
    aside: Path | None = None


def check_uri(uri: str | None, output: Path) -> str:
    """The store's absolute URI, checked as far as that goes without MLflow (milliseconds).

    Raises:
        InputError: A scheme that MLflow does not have, a file that cannot be written, a server that does not answer.
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
    output = output.absolute()
    own = _is_default(uri, output)
    given, uri = uri, check_uri(None if own else uri, output)
    check_installed()
    for name, value in _SWITCHES.items():
        os.environ.setdefault(name, value)
    remote = not uri.startswith(("sqlite", "postgresql", "mysql", "mssql"))
    artifacts = None if remote else (output / "mlartifacts").as_uri()
    aside = None
    try:
        with silence_mlflow(), _use_short_timeouts():
            if own:
                client, aside = database.open_default(sqlite_path(uri), artifacts or "", lambda: _connect(uri))
            else:
                if uri.startswith("sqlite"):
                    _check_header(sqlite_path(uri), uri)
                    database.create(sqlite_path(uri), artifacts or "")
                client = _connect(uri)
    except InputError:
        raise
    except Exception as error:
        advice = f"; {_USAGE}" if given is not None and not own else ""
        raise InputError(
            f"The tracking store {_hide_password(uri)!r} cannot be used ({first_line(error)}){advice}."
        ) from error
    return Store(uri, artifacts, client, output, own, outputs.output_id(output), aside)


def _is_default(uri: str | None, output: Path) -> bool:
    """Whether an address is that of the output folder's own database."""
    if uri is None:
        return True
    if not uri.startswith("sqlite:///") or "?" in uri:
        return False
    return sqlite_path(uri).absolute().resolve() == (output / "mlflow.db").resolve()


def _connect(uri: str) -> MlflowClient:
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    client.search_experiments(max_results=1)
    return client


def first_line(error: BaseException) -> str:
    """An error's first line, short enough for a sentence."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[0].rstrip(".")[:300]


def _hide_password(uri: str) -> str:
    """Without the password that a database's URI may carry."""
    return re.sub(r"(://[^/@:]*):[^/@]*@", r"\1:***@", uri)


def _check_sqlite(uri: str, make_folder: bool = False) -> str:
    _, slashes, tail = uri.partition(":///")
    path = sqlite_path(uri)
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
        if make_folder:
            pass  # the default database is made anew if need be
        elif path.exists():
            path.open("r+b").close()
        elif not os.access(path.parent, os.W_OK):
            raise InputError(
                f"The tracking URI {_hide_password(uri)!r} lies in a folder that is not writable; {_USAGE}."
            )
    except OSError as error:
        raise InputError(f"The tracking URI {_hide_password(uri)!r} cannot be used ({error}); {_USAGE}.") from error
    return uri


def _check_header(path: Path, uri: str) -> None:
    """Refuses a file that is no database: MLflow's sentence would not say so."""
    if path.exists():
        with path.open("rb") as file:
            if file.read(16) not in (b"", b"SQLite format 3\0"):
                raise InputError(f"The tracking URI {_hide_password(uri)!r} is not an SQLite database; {_USAGE}.")


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
