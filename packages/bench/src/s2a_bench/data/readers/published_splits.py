"""Published split files: CoOp's ``split_zhou_*.json`` and VPT's ``train.json``, ``val.json``, ``test.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from s2a_bench.data.folder import sha256
from s2a_bench.data.labels import find_label_conflict
from s2a_bench.data.limits import read_file
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset
from s2a_bench.data.text import decode_text
from s2a_bench.errors import InputError

_PARTS = ("train", "val", "test")


class PublishedSplit(NamedTuple):
    """A published split of a source.

    Attributes:
        lists: Names of the source's images per ``"train"``, ``"val"`` and ``"test"``.
        labels: Label per name.
        classes: Names in label order.
        split_id: A hash of its content that does not depend on formatting.
        note: What a reader of results must know, or ``""``.
    """

    lists: dict[str, tuple[str, ...]]
    labels: dict[str, int]
    classes: tuple[str, ...]
    split_id: str
    note: str


def find_split(tree: Tree) -> Path | None:
    """Finds a split file among the files of the source; ``None``: there is none.

    Raises:
        InputError: Several CoOp files: which one is meant must be said.
    """
    found = [
        name for name in tree.names if name.rsplit("/", 1)[-1].startswith("split_zhou_") and name.endswith(".json")
    ]
    if len(found) > 1:
        raise InputError(f"{tree.place} holds {len(found)} split files ({', '.join(found)}); name one with --split.")
    if found:
        return tree.path_on_disk(found[0])
    folder = tree.place if tree.place.is_dir() else tree.place.parent
    return folder if all((folder / f"{part}.json").is_file() for part in _PARTS) else None


def read_split(place: Path, kind: str, dataset: Dataset, source: Source) -> PublishedSplit:
    """Reads a published split and matches its paths with the images of a source.

    CoOp's labels count from 0. VPT's may be any whole numbers: its loader numbers the sorted ids of a file from 0 on
    (https://github.com/KMnP/vpt, ``src/data/datasets/json_dataset.py``), and so they are here, over the three files
    together, so that a class that is absent from one of them does not shift the others. Either way the labels must map
    one to one to the classes of the source.

    Args:
        place: CoOp's JSON file, or the folder of VPT's three.
        kind: ``"coop"`` or ``"vpt"``: which the dataset takes.
        dataset: Tells the number of classes.
        source: Its images are matched by the longest unambiguous ending of their names.

    Raises:
        InputError: Not such a file, a path that names no image or several, an image listed twice, a label out of
            range, another number of classes, or labels that contradict the source's.
    """
    entries, note = (_read_coop(place), "") if kind == "coop" else _number_from_zero(_read_vpt(place), place)
    find = _make_finder(source, place)
    lists: dict[str, tuple[str, ...]] = {}
    labels: dict[str, int] = {}
    classes: dict[int, str] = {}
    for part in _PARTS:
        names = []
        for path, label, title in entries[part]:
            if isinstance(label, bool) or not isinstance(label, int) or not 0 <= label < dataset.classes:
                raise InputError(
                    f"{place}: {path} has label {label!r}; {dataset.name} has {dataset.classes} classes, from 0 on."
                )
            name = find(path)
            if name in labels:
                raise InputError(f"{place} lists {path} twice; each image belongs into one list.")
            labels[name] = label
            if classes.setdefault(label, title) != title:
                raise InputError(f"{place} calls class {label} {classes[label]!r} and {title!r}; it is damaged.")
            names.append(name)
        lists[part] = tuple(names)
    if len(classes) != dataset.classes:
        raise InputError(f"{place} has {len(classes)} classes but {dataset.name} has {dataset.classes}.")
    own = {item.name: item.label for item in source.images}
    given = {name: source.classes[own[name]] for name in labels}
    if conflict := find_label_conflict((name, repr(given[name]), label) for name, label in labels.items()):
        raise InputError(
            f"{place} contradicts the labels of its images: {conflict} in the source; get the split file, or the "
            "download, again."
        )
    content = json.dumps({part: sorted((p, label) for p, label, _ in entries[part]) for part in _PARTS})
    by_label = {label: given[name] for name, label in labels.items()}
    _check_titles(place, {by_label[label]: title for label, title in classes.items() if title})
    titles = tuple(classes[i] or by_label[i] for i in range(dataset.classes))
    return PublishedSplit(lists, labels, titles, f"{kind}-{sha256(content.encode())[:8]}", note)


def _check_titles(place: Path, titles: dict[str, str]) -> None:
    """Refuses names of classes that the source gives to others of its classes.

    Args:
        place: The split, for errors.
        titles: The split's name per name in the source; CoOp's are often other words for the same.
    """

    def plain(name: str) -> str:
        return "".join(letter for letter in name.lower() if letter.isalnum())

    known = {plain(own): own for own in titles}
    for own, title in titles.items():
        other = known.get(plain(title), own)
        if other != own:
            raise InputError(
                f"{place} calls the images of class {own!r} {title!r}, but the source has another class {other!r}; get "
                "the split file, or the download, again."
            )


def _read_json(path: Path) -> Any:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key comes twice")
        return found

    try:
        return json.loads(decode_text(read_file(path), str(path)), object_pairs_hook=unique)
    except InputError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"Split file {path} cannot be read ({error}); get it again.") from error


_Entries = Mapping[str, list[tuple[str, Any, str]]]


def _read_coop(place: Path) -> _Entries:
    """``{"train": [[path, label, class name], ...], "val": ..., "test": ...}``."""
    if not place.is_file():
        raise InputError(f"{place} is not a file; give CoOp's split_zhou_*.json.")
    values = _read_json(place)
    found: dict[str, list[tuple[str, Any, str]]] = {}
    for part in _PARTS:
        rows = values.get(part) if isinstance(values, dict) else None
        if not isinstance(rows, list) or not rows:
            raise InputError(f"{place} has no list {part!r} of images; it is not one of CoOp's split files.")
        for row in rows:
            if not isinstance(row, list) or len(row) != 3 or not isinstance(row[0], str) or not isinstance(row[2], str):
                raise InputError(f"{place}: {str(row)[:80]} is not of the form [path, label, class name].")
        found[part] = [(path, label, title) for path, label, title in rows]
    return found


def _read_vpt(place: Path) -> _Entries:
    """Three files of ``{path: label}``."""
    if not place.is_dir():
        raise InputError(f"{place} is not a folder; give the one that holds VPT's train.json, val.json and test.json.")
    found: dict[str, list[tuple[str, Any, str]]] = {}
    for part in _PARTS:
        values = _read_json(place / f"{part}.json")
        if not isinstance(values, dict) or not values:
            raise InputError(
                f"{place / part}.json is not of the form {{path: label}}; it is not one of VPT's split files."
            )
        found[part] = [(path, label, "") for path, label in values.items()]
    return found


def _number_from_zero(entries: _Entries, place: Path) -> tuple[_Entries, str]:
    """The entries with the sorted ids of all parts numbered from 0 on, and a note if that changes them.

    Raises:
        InputError: An id that is no whole number.
    """
    for part, rows in entries.items():
        for path, label, _ in rows:
            if isinstance(label, bool) or not isinstance(label, int):
                raise InputError(
                    f"{place / part}.json: {path} has label {label!r}, which is no whole number; get the file again."
                )
    ids = sorted({label for rows in entries.values() for _, label, _ in rows})
    numbers = {label: number for number, label in enumerate(ids)}
    numbered = {part: [(path, numbers[label], title) for path, label, title in rows] for part, rows in entries.items()}
    if ids == list(range(len(ids))):
        return numbered, ""
    return numbered, (
        f"The class ids of these files, {len(ids)} numbers from {ids[0]} to {ids[-1]}, were numbered from 0 on in "
        "their order, as VPT's loader does."
    )


def _make_finder(source: Source, place: Path) -> Any:
    """Makes a function from a path of the split to the image it names: the one that shares the longest ending with it.

    Endings are compared part by part, so that paths with other leading folders match.
    """
    ends: dict[str, list[str]] = {}
    for item in source.images:
        parts = item.name.split("/")
        for i in range(len(parts)):
            ends.setdefault("/".join(parts[i:]), []).append(item.name)

    def find(path: str) -> str:
        parts = path.replace("\\", "/").split("/")  # Some copies were written on Windows.
        for i in range(len(parts)):
            found = ends.get("/".join(parts[i:]), [])
            if len(found) == 1:
                return found[0]
            if found:
                raise InputError(f"{place}: {path} names {len(found)} images of the source; its paths are too short.")
        raise InputError(f"{place}: the source has no image {path}; the split is of another download.")

    return find
