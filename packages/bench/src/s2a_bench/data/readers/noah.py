"""VTAB-1k folders as NOAH's script and its many copies write them: four lists and the images they name."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import Any

from s2a_bench.data.folder import MANIFEST, ListedImage, compute_content_id, parse_list, sha256
from s2a_bench.data.images import LOSSY_SUFFIXES, looks_reencoded
from s2a_bench.data.other_sets import find_fitting, find_namesake
from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import VTAB_LISTS, Dataset
from s2a_bench.errors import InputError

_PROBED = 32
_MARKER_LIST = f"{VTAB_LISTS.both}.txt"


def _find_lists_folder(tree: Tree, dataset: Dataset) -> str | None:
    """The folder in the tree (``""`` or ``"path/"``) whose lists are this dataset's; ``None``: there is none."""
    names = (dataset.name, *dataset.aliases)
    folders = [name[: -len(_MARKER_LIST)] for name in tree.names if PurePosixPath(name).name == _MARKER_LIST]
    for folder in folders:
        if PurePosixPath(folder).name in names:
            return folder
    if "" in folders and (tree.place.name in names or len(folders) == 1):
        return ""
    return None


def recognises(tree: Tree, dataset: Dataset) -> bool:
    """Whether the tree holds the four lists, at its top or in a folder of the dataset's name."""
    return dataset.suite == "vtab" and _find_lists_folder(tree, dataset) is not None


def open_noah(tree: Tree, dataset: Dataset) -> Source:
    """The folder's own lists and images.

    JPEGs of a dataset that is published without loss are lossy; where JPEG is the published form, a probe of the
    images decides (``images.looks_reencoded``).

    Raises:
        InputError: A list is missing, malformed, or names an image that is not there; or the folder is another
            dataset's, by its manifest, its name, or its lists.
    """
    home = _find_lists_folder(tree, dataset)
    assert home is not None
    _check_name(tree, dataset, home)
    present = set(tree.names)
    lists: dict[str, tuple[str, ...]] = {}
    hashes: dict[str, str] = {}
    items: dict[str, SourceImage] = {}
    for name in dataset.lists:
        file = f"{name}.txt"
        text = tree.read_text(home + file)
        hashes[file] = sha256(tree.read(home + file))
        paths: list[str] = []
        for entry in parse_list(text, dataset.classes):
            if not isinstance(entry, ListedImage):
                raise InputError(f"{tree.place}, {home}{file}:{entry[0]}: {entry[1]}.")
            if home + entry.path not in present:
                raise InputError(f"{tree.place}, {home}{file}:{entry.line}: there is no image {entry.path}.")
            known = items.setdefault(entry.path, SourceImage(entry.path, entry.label, name))
            if known.label != entry.label:
                raise InputError(
                    f"{tree.place}, {home}{file}:{entry.line}: {entry.path} has label {entry.label} here "
                    f"and {known.label} in {known.part}.txt."
                )
            paths.append(entry.path)
        lists[name] = tuple(paths)
    labels = {name: [items[path].label for path in paths] for name, paths in lists.items()}
    if other := find_fitting(dataset, labels):
        raise InputError(
            f"{tree.place}: the lists in {home or '.'} are those of {other.name}, by their counts of images and how "
            f"often each label occurs, and not those of {dataset.name}; prepare {other.name} from it."
        )

    def read(names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        for name, data in tree.read_many(home + n for n in names):
            yield name[len(home) :], data

    lossy, note = _check_reencoding(dataset, sorted(items), read)
    return Source(
        images=tuple(items.values()),
        classes=tuple(f"class {i}" for i in range(dataset.classes)),  # such folders do not name them
        read=read,
        lists=lists,
        split_id="lists-" + compute_content_id(hashes, {}),
        base=None if tree.folder is None else tree.folder / home,
        lossy=lossy,
        note=note,
    )


def _check_name(tree: Tree, dataset: Dataset, home: str) -> None:
    """Refuses a folder that by its manifest, or else by its name, is another dataset's.

    Raises:
        InputError: It is.
    """
    values = _read_manifest_beside(tree, home)
    if values.get("synthetic") is True:
        raise InputError(
            f"{tree.place}: {home}{MANIFEST} says that its images were made up; pass the folder above it to "
            f"--data-dir, or give a source of {dataset.name}."
        )
    if values and values["dataset"] != dataset.name:
        raise InputError(
            f"{tree.place}: {home}{MANIFEST} says that these are the images of {values['dataset']}, not of "
            f"{dataset.name}; prepare {values['dataset']} from it, or give a source of {dataset.name}."
        )
    if values or (home and tree.folder is None):
        return  # Inside an archive the folder was chosen by its name.
    place = tree.place if tree.folder is None else tree.folder / home
    for name in {place.name, place.resolve().name} - {""}:  # of a link, both
        if other := find_namesake(dataset, name):
            raise InputError(
                f"{place} is named after {other.name}, another dataset, and its lists name no classes that could "
                f"show otherwise; prepare {other.name} from it, or, if its images are those of {dataset.name}, call it "
                f"{dataset.name}."
            )


def list_other_sets(tree: Tree, dataset: Dataset) -> list[str]:
    """Names of other datasets whose standard folders are in the tree, by their manifests or the folders' names."""
    found: set[str] = set()
    for path in tree.names:
        home, file = path[: -len(PurePosixPath(path).name)], PurePosixPath(path).name
        if file == MANIFEST and (values := _read_manifest_beside(tree, home)):
            found.add(values["dataset"])
        elif file == _MARKER_LIST and (other := find_namesake(dataset, PurePosixPath(home).name or tree.place.name)):
            found.add(other.name)
    return sorted(found - {dataset.name})


def _read_manifest_beside(tree: Tree, home: str) -> dict[str, Any]:
    """Values of a manifest of this package beside the lists, the dataset's name among them; empty: there is none."""
    if home + MANIFEST not in tree.names:
        return {}
    try:
        values = json.loads(tree.read_text(home + MANIFEST))
    except (ValueError, RecursionError):  # InputError is a ValueError: a file that is no text
        return {}
    ours = isinstance(values, dict) and "data_id" in values and isinstance(values.get("dataset"), str)
    return values if ours else {}


def _check_reencoding(
    dataset: Dataset, names: list[str], read: Callable[[frozenset[str]], Iterator[tuple[str, bytes]]]
) -> tuple[bool, str]:
    """Whether images were re-encoded with loss, and the sentence that says so."""
    jpegs = [name for name in names if name.lower().endswith(LOSSY_SUFFIXES)]
    if not jpegs:
        return False, "A VTAB-1k folder made by another tool; its images are stored without loss."
    if dataset.encoding == "lossless":
        return (
            True,
            f"A VTAB-1k folder made by another tool; {dataset.name} is published without loss and is JPEG here.",
        )
    step = max(1, len(jpegs) // _PROBED)
    probed = [data for _, data in read(frozenset(jpegs[::step][:_PROBED]))]
    if looks_reencoded(probed):
        return True, (
            f"A VTAB-1k folder made by another tool; all of {len(probed)} images looked at have the JPEG tables of "
            "Pillow's default quality, so they were most likely re-encoded."
        )
    return False, "A VTAB-1k folder made by another tool; its JPEGs look like the published files."


READERS = (Reader("noah", recognises, open_noah),)
