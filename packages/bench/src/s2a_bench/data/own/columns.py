"""Which columns of a table hold paths, class names, parts and groups, and whether their values can be used."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence

from s2a_bench.data.own.options import OwnOptions
from s2a_bench.data.own.read import PART_NAMES, OwnImage, count_images, name_some
from s2a_bench.errors import InputError, Mistakes

PATH_COLUMNS = (
    "path",
    "file",
    "filename",
    "image",
    "img",
    "filepath",
    "imagepath",
    "imagefile",
    "imagename",
    "imgpath",
)
LABEL_COLUMNS = ("label", "class", "target", "category", "labels", "classname", "finelabel", "y")
SPLIT_COLUMNS = ("split", "subset", "partition")
_SEPARATORS = ";|,"
_MOST_VALUES = 20
"""Different fractional numbers up to which a label may be a class such as "0.5"."""

Cells = Sequence[str | None]
"""A column's values as text; ``None``: the cell is empty."""


@dataclasses.dataclass(frozen=True)
class Chosen:
    """Names of the columns that are used; ``None``: the table has none."""

    path: str | None
    label: str
    split: str | None
    group: str | None

    def describe(self, what: str) -> str:
        """A sentence that names them."""
        used = {"path": self.path, "label": self.label, "split": self.split, "group": self.group}
        listed = ", ".join(f"{title} {name!r}" for title, name in used.items() if name is not None)
        return f"Columns of {what} that are used: {listed}."


def choose_columns(
    names: Sequence[str], options: OwnOptions, what: str, *, path: bool = True, label: bool = True
) -> Chosen:
    """The columns that the options name, or that have a usual name.

    Args:
        names: Of the table's columns.
        options: The user's choice.
        what: The table's name in sentences.
        path: Whether a column of paths is needed; a table that holds the images themselves has none.
        label: Whether a column of labels is needed; where the images lie in class folders, ``""`` stands for none.

    Raises:
        InputError: A column that is not there, or none of a usual name; several mistakes together.
    """
    mistakes = Mistakes()
    has = f"{what} has the columns {name_some(names, 12)}"

    def choose(given: str | None, usual: Sequence[str], flag: str, kind: str, needed: bool) -> str | None:
        if given is not None:
            if given not in names:
                mistakes.add(InputError(f"{flag} {given!r} is no column: {has}; give one of them."))
            return given
        plain = {re.sub(r"[^a-z0-9]", "", name.lower()): name for name in reversed(names)}
        found = next((plain[each] for each in usual if each in plain), None)
        if found is None and needed:
            mistakes.add(
                InputError(
                    f"{has}, none of which is called {', '.join(usual[:4])} or alike; say which one holds the {kind} "
                    f"with {flag}{_hint(names)}."
                )
            )
        return found

    chosen = Chosen(
        path=choose(options.path_column, PATH_COLUMNS, "--path-column", "paths of the images", True) if path else None,
        label=choose(options.label_column, LABEL_COLUMNS, "--label-column", "class names", label) or "",
        split=choose(options.split_column, SPLIT_COLUMNS, "--split-column", "parts", False),
        group=choose(options.group_column, (), "--group-column", "groups", False),
    )
    mistakes.raise_all()
    return chosen


def _hint(names: Sequence[str]) -> str:
    if any(re.search(r"\.(jpe?g|png|webp|bmp)$", name.strip().lower()) for name in names):
        return ", or put a first line with the names of the columns into it, such as path,label"
    return ""


def read_parts(cells: Cells, column: str, what: str) -> list[str]:
    """The part of each row.

    Raises:
        InputError: An empty cell, or a value that is no part.
    """
    strange = {cell for cell in cells if cell is not None and cell.casefold() not in PART_NAMES}
    if strange:
        raise InputError(
            f"Column {column!r} of {what} holds {name_some(sorted(strange))}, which name no part; write train, val or "
            "test in it, or rename the column if it means something else."
        )
    check_filled(cells, column, what, "write train, val or test into each")
    return [PART_NAMES[cell.casefold()] for cell in cells if cell is not None]


def check_filled(cells: Cells, column: str, what: str, advice: str) -> None:
    """Refuses empty cells.

    Raises:
        InputError: There are some.
    """
    empty = [number for number, cell in enumerate(cells, 1) if cell is None]
    if empty:
        rows = ", ".join(map(str, empty[:3])) + (" ..." if len(empty) > 3 else "")
        raise InputError(
            f"Column {column!r} of {what} is empty in {len(empty)} of {len(cells)} rows (row {rows}, counted from 1 "
            f"below the names of the columns); {advice}."
        )


def check_labels(cells: Cells, column: str, what: str) -> None:
    """Refuses labels that are several at once, or measurements.

    Raises:
        InputError: They are.
    """
    values = {cell for cell in cells if cell is not None}
    if several := _find_several(values):
        raise InputError(
            f"Column {column!r} of {what} holds several labels in one cell ({name_some(several)}); one class per image "
            "is all that can be learned here, so leave one label in each cell, or drop the images that have several "
            "(if it is the name of one class, write it without the separator)."
        )
    numbers = [_as_number(value) for value in values]
    fractional = sum(number is not None and not number.is_integer() for number in numbers)
    if fractional > _MOST_VALUES and None not in numbers:
        raise InputError(
            f"Column {column!r} of {what} holds {len(values)} different numbers, such as {name_some(sorted(values))}: "
            "these are measurements and no classes; make classes of them, ranges for example, or give another column "
            "with --label-column."
        )


def _find_several(values: Iterable[str]) -> list[str]:
    """Cells that hold several labels: lists, and those whose every piece occurs in another cell too."""
    values = sorted(values)
    lists = [value for value in values if value.startswith("[") and value.endswith("]") and len(_as_list(value)) != 1]
    if lists:
        return lists
    for separator in _SEPARATORS:
        pieces = {value: [piece.strip() for piece in value.split(separator)] for value in values}
        count: dict[str, int] = {}
        for found in pieces.values():
            for piece in set(found):
                count[piece] = count.get(piece, 0) + 1
        several = [
            value
            for value, found in pieces.items()
            # "maillot, tank suit" is one name, although there is a class "maillot" too.
            if len(found) > 1 and all(piece and count[piece] > 1 for piece in found)
        ]
        if several:
            return several
    return []


def _as_list(value: str) -> Sequence[object]:
    try:
        found = json.loads(value.replace("'", '"'))
    except ValueError:
        return value[1:-1].split(",")
    return found if isinstance(found, list) else [found]


def _as_number(value: str) -> float | None:
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def check_one_row(images: Sequence[OwnImage], what: str) -> None:
    """Refuses an image that is listed with several labels, parts or groups.

    Raises:
        InputError: There is one; a sentence for each kind.
    """
    mistakes = Mistakes()
    reasons = {"labels": "one class per image is all that can be learned here", "parts": "", "groups": ""}
    values = (
        ("labels", lambda image: image.label),
        ("parts", lambda image: image.part),
        ("groups", lambda image: image.group),
    )
    for kind, value in values:
        found: dict[str, set[str]] = {}
        for image in images:
            found.setdefault(image.name, set()).add(value(image))
        if several := {name: given for name, given in found.items() if len(given) > 1}:
            first = next(iter(several))
            reason = f"{reasons[kind]}, so " if reasons[kind] else ""
            mistakes.add(
                InputError(
                    f"{what} lists {count_images(len(several))} with several {kind} ({name_some(list(several))}; "
                    f"{first} as {name_some(sorted(several[first]))}); {reason}keep one row of each."
                )
            )
    mistakes.raise_all()
