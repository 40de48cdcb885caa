"""Kinds of arguments of the Python API, and their checks: types, paths, ``KEY=VALUE`` texts."""

from __future__ import annotations

import dataclasses
import json
import os
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from s2a_bench.errors import InputError
from s2a_bench.sweeps.settings import coerce

Names = str | Sequence[str]
"""One name, or several."""

Settings = Mapping[str, Any] | Names
"""``{"train.lr": 0.01}``, or ``"train.lr=0.01"`` texts as on the command line."""

Axes = Mapping[str, Sequence[Any]] | Names
"""``{"method.lrp_rank": [5, 10]}``, or ``"method.lrp_rank=5,10"`` texts as on the command line."""

FilePath = str | os.PathLike[str]


def typed(value: Any, hint: Any, name: str) -> Any:
    """``value``, checked to be of the type ``hint``.

    Raises:
        InputError: It is of another one.
    """
    if hint is float and isinstance(value, float):  # infinity too
        return value
    return coerce(value, hint, name)


def fields_of(cls: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of ``given`` that are fields of a dataclass, with their types checked."""
    hints = typing.get_type_hints(cls)
    return {f.name: typed(given[f.name], hints[f.name], f.name) for f in dataclasses.fields(cls) if f.name in given}


def path_list(given: FilePath | Sequence[FilePath], name: str = "images") -> list[FilePath]:
    """One path, or several, as a list.

    Raises:
        InputError: It is neither.
    """
    paths = [given] if isinstance(given, str | os.PathLike) else given
    if not isinstance(paths, Sequence) or isinstance(paths, bytes):
        raise InputError(f"{name}={given!r} has the wrong type; it must be a path, or a list of paths.")
    return [path_text(path, name) for path in paths]


def path_or_none(path: FilePath | None, name: str) -> Path | None:
    """``absolute`` as a ``Path``; ``None`` stays."""
    return None if path is None else Path(absolute(path, name))


def absolute(path: FilePath, name: str) -> str:
    """The absolute path.

    Raises:
        InputError: It is no path.
    """
    return str(Path(path_text(path, name)).absolute())  # workers run in another folder


def path_text(path: FilePath, name: str) -> str:
    """A path as text.

    Raises:
        InputError: It is no path.
    """
    if isinstance(path, str | os.PathLike) and isinstance(text := os.fspath(path), str):
        return text
    raise InputError(f"{name}={path!r} has the wrong type; it must be a path.")


def setting_texts(given: Settings | Axes, name: Literal["set", "sweep"]) -> tuple[str, ...]:
    """``KEY=VALUE`` texts of a mapping, or the texts themselves."""
    if isinstance(given, str):
        return (given,)
    if not isinstance(given, Mapping):
        return typed(given, tuple[str, ...], name)
    texts = []
    for key, value in given.items():
        values = value if name == "sweep" else [value]
        if isinstance(values, str) or not isinstance(values, Sequence):
            raise InputError(f"{name}={{{key!r}: {value!r}}}: give a list of the values that {key} takes.")
        try:
            texts.append(f"{key}={','.join(json.dumps(each, allow_nan=False) for each in values)}")
        except (TypeError, ValueError):
            raise InputError(
                f"{name}={{{key!r}: {value!r}}}: give a number, a text, true, false, None, or a list of those."
            ) from None
    return tuple(texts)
