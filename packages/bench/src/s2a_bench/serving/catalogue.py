"""Which tasks there are and where their adapters lie, now. Torch-free."""

from __future__ import annotations

import dataclasses
import json
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.data.readers.walk import path_exists
from s2a_bench.errors import InputError
from s2a_bench.inference.checks import CONFIG, find_adapter

STATE = "adapter_model.safetensors"
"""The trained values in an adapter folder."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_UNNAMED = "adapter"
"""What ``finetune`` calls every adapter folder: the task is called like the folder above it."""

Stamp = tuple[tuple[int, int, int], ...]
"""Inode, time of change in ns and bytes of an adapter's files: another stamp, another adapter."""


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a task's adapter lies.

    Attributes:
        name: Of the task.
        adapter: Folder, or hub id.
        stamp: Of the folder's files; ``None`` for a hub id, which stays what it was when it was loaded.
    """

    name: str
    adapter: str
    stamp: Stamp | None


class Catalogue:
    """The tasks of a service: adapters that were named, and those in a folder, which is looked at anew each time.

    Args:
        adapters: Name and adapter, a folder or a hub id, of those that were named.
        folder: Each ``<folder>/<name>`` and ``<folder>/<name>/adapter`` with an adapter in it is a task; ``None``: no
            folder. A named one goes before a folder's of the same name.
    """

    def __init__(self, adapters: Sequence[tuple[str, str]], folder: Path | None) -> None:
        self._named = dict(adapters)
        self._folder = folder

    def find(self, name: str) -> Place | None:
        """The place of a task; ``None``: there is no such task."""
        adapter = self._named.get(name)
        if adapter is None:
            if self._folder is None or not is_name(name):
                return None
            adapter = _in_folder(self._folder / name)
            if adapter is None:
                return None
        try:
            return Place(name, adapter, stamp_of(adapter))
        except OSError:
            # A hub id has no files; a folder whose files are gone is not there (any more), unless it was named.
            return Place(name, adapter, None) if name in self._named else None

    def names(self) -> list[str]:
        """Of all tasks, sorted."""
        return sorted({*self._named, *self._names_in_folder()})

    def _names_in_folder(self) -> Iterator[str]:
        if self._folder is None:
            return
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries]
        except OSError:
            return
        for name in names:
            if is_name(name) and _in_folder(self._folder / name) is not None:
                yield name


def is_name(text: str) -> bool:
    """Whether a text can name a task: letters, digits and ``_.-``, at most 100 of them, the first no mark."""
    return _NAME.fullmatch(text) is not None


def stamp_of(adapter: str) -> Stamp:
    """The stamp of an adapter folder.

    Raises:
        OSError: One of its files is not there.
    """
    found = [Path(adapter, name).stat() for name in (CONFIG, STATE)]
    return tuple((each.st_ino, each.st_mtime_ns, each.st_size) for each in found)


def name_adapter(given: str) -> tuple[str, str]:
    """Task name and adapter of an argument ``[NAME=]ADAPTER``.

    The name is the folder's (of ``.../birds/adapter``, as ``finetune`` writes it, ``birds``), or the last part of a
    hub id.

    Raises:
        InputError: No adapter there, or no name that can stand in an address.
    """
    name, mark, rest = given.partition("=")
    # A folder may be called "a=b": then it is one.
    named = bool(mark) and not path_exists(Path(given))
    adapter = find_adapter(rest if named else given)
    if not named:
        path = Path(adapter)
        if path.is_dir():
            path = path.resolve()
            name = path.parent.name if path.name == _UNNAMED else path.name
        else:
            name = adapter.rpartition("/")[2].partition("@")[0]
    if not is_name(name):
        raise InputError(
            f"{given}: {name!r} cannot name a task in an address; give NAME={adapter}, a NAME of letters, digits and "
            "_ . - that begins with a letter or digit, of at most 100."
        )
    return name, adapter


def read_facts(place: Place) -> dict[str, Any]:
    """What an adapter folder says of itself, as JSON has it; ``{}`` for a hub id.

    Raises:
        InputError: It cannot be read.
    """
    path = Path(place.adapter, CONFIG)
    if place.stamp is None and not path_exists(path):
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}); take another copy of the adapter.") from error
    if not isinstance(found, dict) or not isinstance(found.get("backbone"), dict):
        raise InputError(f"{path} is no adapter's config; take another copy of the adapter.")
    return found


def _in_folder(path: Path) -> str | None:
    for folder in (path, path / _UNNAMED):
        if path_exists(folder / CONFIG):
            return str(folder)
    return None
