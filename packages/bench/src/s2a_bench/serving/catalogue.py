"""Which tasks there are and where their adapters lie, now. Torch-free."""

from __future__ import annotations

import asyncio
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

Stamp = tuple[tuple[int, int, int, int], ...]
"""Inode, times of change in ns (content, entry) and bytes of an adapter's files: another stamp, another adapter."""

_MOMENT = 0.05


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
        self._hub = {name for name, adapter in adapters if is_hub_id(adapter)}
        self._folder = folder

    def find(self, name: str) -> Place | None:
        """The place of a task; ``None``: there is no such task."""
        adapter = self._named.get(name)
        if adapter is not None:
            return Place(name, adapter, None) if name in self._hub else _place(name, adapter)
        if self._folder is None or not is_name(name):
            return None
        adapter = _in_folder(self._folder / name)
        return None if adapter is None else _place(name, adapter)

    def names(self) -> list[str]:
        """Of all tasks, sorted."""
        return sorted({*filter(self.find, self._named), *self._names_in_folder()})

    def _names_in_folder(self) -> Iterator[str]:
        if self._folder is None:
            return
        try:
            with os.scandir(self._folder) as entries:
                names = [entry.name for entry in entries]
        except (OSError, ValueError):  # ValueError: a name that no folder can have
            return
        for name in names:
            if is_name(name) and self.find(name) is not None:
                yield name

    def problems(self) -> list[str]:
        """What in the folder looks like an adapter and is no task, a sentence each."""
        found = []
        for path in sorted(self._folder.iterdir()) if self._folder is not None and self._folder.is_dir() else []:
            if path.name.startswith(".") or (adapter := _in_folder(path)) is None:
                continue
            if not is_name(path.name):
                found.append(f"{path}: the name cannot stand in an address; rename it (letters, digits and _ . -).")
            elif _place(path.name, adapter) is None:
                found.append(f"{adapter} has no {STATE}: its weights are missing; take another copy.")
        return found


async def find_soon(catalogue: Catalogue, name: str) -> Place | None:
    """``find`` on a thread, and once more after a moment: while an adapter is replaced, it is not there."""
    place = await asyncio.to_thread(catalogue.find, name)
    if place is None and is_name(name):
        await asyncio.sleep(_MOMENT)
        place = await asyncio.to_thread(catalogue.find, name)
    return place


def is_name(text: str) -> bool:
    """Whether a text can name a task: at most 100 letters, digits and ``_.-``, with a letter or digit in front."""
    return _NAME.fullmatch(text) is not None


def stamp_of(adapter: str) -> Stamp:
    """The stamp of an adapter folder.

    Raises:
        OSError: One of its files is not there.
    """
    found = [Path(adapter, name).stat() for name in (CONFIG, STATE)]
    return tuple((each.st_ino, each.st_mtime_ns, each.st_ctime_ns, each.st_size) for each in found)


def is_hub_id(adapter: str) -> bool:
    """Whether a checked adapter is a hub id: folders are absolute paths by then, or are there."""
    return not Path(adapter).is_absolute() and not path_exists(Path(adapter))


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
            name = adapter.partition("@")[0].rpartition("/")[2]
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
    if place.stamp is None:
        return {}
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).splitlines()[0]
        raise InputError(f"{path} cannot be read ({reason}); take another copy of the adapter.") from error
    if not isinstance(found, dict) or not isinstance(found.get("backbone"), dict):
        raise InputError(f"{path} is no adapter's config; take another copy of the adapter.")
    return found


def _place(name: str, adapter: str) -> Place | None:
    try:
        return Place(name, adapter, stamp_of(adapter))
    except OSError:
        return None


def _in_folder(path: Path) -> str | None:
    for folder in (path, path / _UNNAMED):
        if path_exists(folder / CONFIG):
            return str(folder)
    return None
