"""Two statements of the same labels are compared: those of a list, and the classes that the images come in."""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from pathlib import PurePosixPath

from s2a_bench.data.table.types import PLAIN_LISTS, VTAB_LISTS

_NO_CLASSES = {"train", "val", "validation", "test", "images", "jpg", *VTAB_LISTS, *PLAIN_LISTS}
"""Folders that say which part an image is of, or that it is one."""


def find_label_conflict(images: Iterable[tuple[str, Hashable, int]]) -> str | None:
    """The first two images that keep classes and labels from mapping one to one, in a sentence without its full stop.

    Args:
        images: Name, class by the one statement, label by the other.

    Returns:
        ``None``: every class has one label, and no other class has it.
    """
    by_class: dict[Hashable, tuple[str, int]] = {}
    by_label: dict[int, tuple[str, Hashable]] = {}
    for name, own, label in images:
        first, known = by_class.setdefault(own, (name, label))
        if known != label:
            return f"{first} and {name} are of one class ({own}) but have the labels {known} and {label}"
        first, other = by_label.setdefault(label, (name, own))
        if other != own:
            return f"{first} and {name} have the same label, {label}, but are of the classes {other} and {own}"
    return None


def find_folder_conflict(images: Iterable[tuple[str, int]], classes: int) -> str | None:
    """As ``find_label_conflict``, where images lie in a folder for each class; otherwise nothing can be said.

    Folders count as classes if there are as many of them; folders named after a part (``train/``) or numbered, as the
    pieces of a large set are, do not.

    Args:
        images: Path and label.
        classes: Number of classes.
    """
    known = [(path, _class_folder(path), label) for path, label in images]
    folders = {folder for _, folder, _ in known}
    if len(folders) != classes or "" in folders or all(folder.isdigit() for folder in folders):
        return None
    return find_label_conflict(known)


def _class_folder(path: str) -> str:
    return "/".join(part for part in PurePosixPath(path).parts[:-1] if part.lower() not in _NO_CLASSES)
