"""Shared by readers of image folders: finding class folders, assigning labels, reading files by name."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from s2a_bench.data.images import LOSSY_SUFFIXES, UNREAD_SUFFIXES, is_image
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset, Preparation
from s2a_bench.errors import InputError


class ClassImage(NamedTuple):
    """An image in a class folder.

    Attributes:
        path: In the tree.
        prefix: What precedes the class folder in ``path``: ``""`` or ``"folder/"``.
        folder: The class folder's name.
        file: The file's own name.
    """

    path: str
    prefix: str
    folder: str
    file: str


def preparation_of(dataset: Dataset) -> Preparation:
    """The preparation of a dataset that has one."""
    assert dataset.preparation is not None
    return dataset.preparation


def missing_parents(tree: Tree, folder: str) -> tuple[str, ...]:
    """The leading parts of ``folder`` that paths in the tree lack, because the tree is that folder or lies in it."""
    if tree.folder is None:
        return ()
    own = PurePosixPath(folder).parts
    for place in (tree.folder, tree.folder.resolve()):  # "." and links have a name only when resolved
        for k in range(len(own), 0, -1):
            if place.parts[-k:] == own[:k]:
                return own[:k]
    return ()


def find_class_images(tree: Tree, folder: str) -> Iterator[ClassImage]:
    """Every image in ``<folder>/<class>/``; ``folder`` may have several parts, and lies at any depth.

    Raises:
        InputError: An image of a kind that is not read.
    """
    own = PurePosixPath(folder).parts
    lacking = missing_parents(tree, folder)
    for path in tree.names:
        parts = path.split("/")
        if len(parts) < 2 or (own and (*lacking, *parts)[-2 - len(own) : -2] != own):
            continue
        if is_image(path):
            yield ClassImage(path, path[: len(path) - len(parts[-1]) - len(parts[-2]) - 1], parts[-2], parts[-1])
        elif path.lower().endswith(UNREAD_SUFFIXES):
            raise InputError(
                f"{tree.place} holds {path}, a kind of image that is not read here; "
                "give the version with JPEG or PNG files."
            )


def check_depth(tree: Tree, prefixes: Collection[str], known: Collection[str], skip: Collection[str] = ()) -> None:
    """Refuses images that lie deeper than ``<prefix><class>/``, which would be lost otherwise.

    Args:
        tree: Files.
        prefixes: As ``Image.prefix``.
        known: Paths of the images that were taken.
        skip: Lower-case names of class folders that are left out.

    Raises:
        InputError: There is one.
    """
    starts = tuple(prefixes)
    for path in tree.names:
        if path in known or not is_image(path) or not path.startswith(starts):
            continue
        for prefix in starts:
            inner = path[len(prefix) :].split("/")
            if path.startswith(prefix) and len(inner) > 2 and inner[0].lower() not in skip:
                raise InputError(
                    f"{tree.place}: image {path} lies deeper than in {prefix}<class>/; "
                    "it is another set, or one that was rearranged."
                )


def check_unique(place: Path, names: Iterable[str]) -> None:
    """Refuses names that are the same up to case: some file systems could not hold both.

    Raises:
        InputError: Two are.
    """
    seen: set[str] = set()
    for name in names:
        lower = name.lower()
        if lower in seen:
            raise InputError(f"{place} holds {name} twice; download it again.")
        seen.add(lower)


def assign_class_labels(
    dataset: Dataset, place: Path, what: str, folders: Iterable[str], names: Sequence[str] = ()
) -> tuple[tuple[str, ...], dict[str, int]]:
    """Labels of class folders.

    Args:
        dataset: Tells how many classes there are.
        place: What was given, for errors.
        what: What the folders are classes of, for errors.
        folders: Their names.
        names: In label order, matched without regard to case; where empty, the sorted folders are it.

    Returns:
        Class names in label order, and label per folder.

    Raises:
        InputError: A folder that is no class, a class without folder, one with two, or too many or too few of them.
    """
    found: dict[str, str] = {}
    for folder in sorted(folders):
        other = found.setdefault(folder.lower(), folder)
        if other != folder:
            raise InputError(f"{place} holds class {folder!r} in two folders, {other} and {folder}; merge them.")
    classes = tuple(names) or tuple(sorted(found.values()))
    labels = {name.lower(): i for i, name in enumerate(classes)}
    for lower, folder in found.items():
        if lower not in labels:
            raise InputError(f"{place} has a folder {folder!r} that is not a class of {what}; it is another set.")
    for name in classes:
        if name.lower() not in found:
            raise InputError(
                f"{place} holds no images of class {name!r} of {what}: it is missing; give the complete download."
            )
    if len(classes) != dataset.classes:
        raise InputError(
            f"{place} has {len(classes)} class folders in {what} but {dataset.name} has {dataset.classes} classes; "
            "it is another set, or a part of it."
        )
    return classes, {folder: labels[lower] for lower, folder in found.items()}


def make_reader(tree: Tree, paths: Mapping[str, str]) -> Callable[[frozenset[str]], Iterator[tuple[str, bytes]]]:
    """Makes the function ``Source.read`` for files of the tree.

    Args:
        tree: Files.
        paths: Name of an image -> path in the tree.
    """

    def read(names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        if unknown := names - paths.keys():
            raise InputError(f"{tree.place} holds no image {min(unknown)}; its names are like {next(iter(paths), '')}.")
        back = {paths[name]: name for name in names}
        for path, data in tree.read_many(back):
            yield back[path], data

    return read


def common_folder(tree: Tree, prefixes: Collection[str]) -> Path | None:
    """The folder under which the names of all images are files; ``None``: there is no single one."""
    return tree.folder / next(iter(prefixes)) if tree.folder is not None and len(prefixes) == 1 else None


def is_lossy(dataset: Dataset, names: Iterable[str]) -> bool:
    """Whether images of a dataset that is published without loss are JPEGs."""
    return dataset.encoding == "lossless" and any(name.lower().endswith(LOSSY_SUFFIXES) for name in names)


def read_lines(tree: Tree, path: str) -> Iterator[tuple[int, str]]:
    """Yields number, from 1, and text of the non-empty lines of a file.

    Raises:
        InputError: It cannot be read, is no text or has no such line.
    """
    empty = True
    for number, line in enumerate(tree.read_text(path).split("\n"), 1):
        if line.strip():
            empty = False
            yield number, line.strip()
    if empty:
        raise InputError(f"{path} in {tree.place} is empty; download it again.")
