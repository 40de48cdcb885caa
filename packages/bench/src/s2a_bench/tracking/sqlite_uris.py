"""URIs of SQLite databases for paths with any characters."""

from __future__ import annotations

import functools
import re
import urllib.parse
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


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


def sqlite_path(uri: str) -> Path:
    """The file that SQLAlchemy opens for the URI of an SQLite database."""
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
