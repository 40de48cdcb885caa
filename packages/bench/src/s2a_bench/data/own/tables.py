"""Own images that a table lists: a CSV, TSV or Parquet file with a column of paths and one of class names."""

from __future__ import annotations

import csv
import dataclasses
import io
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.data.images import read_image_bytes
from s2a_bench.data.limits import read_file
from s2a_bench.data.own.columns import (
    Cells,
    Chosen,
    check_filled,
    check_labels,
    check_one_row,
    choose_columns,
    read_parts,
)
from s2a_bench.data.own.options import OwnOptions
from s2a_bench.data.own.read import OwnImage, OwnSource, count_images, name_some, order_classes
from s2a_bench.data.readers.walk import path_exists
from s2a_bench.data.text import decode_text
from s2a_bench.errors import InputError, Mistakes

PARQUET_SUFFIXES = (".parquet", ".pq")
_DELIMITERS = ",;\t|"


@dataclasses.dataclass(frozen=True)
class Rows:
    """A table as text.

    Attributes:
        what: Its name in sentences.
        columns: Values by name of the column.
    """

    what: str
    columns: Mapping[str, Cells]

    @property
    def names(self) -> list[str]:
        """Names of the columns."""
        return list(self.columns)

    def __len__(self) -> int:
        """Number of rows."""
        return len(next(iter(self.columns.values()), ()))


def read_table(place: Path, options: OwnOptions) -> OwnSource:
    """Reads a table on disk; paths are relative to its folder, or absolute.

    Raises:
        InputError: It cannot be read, lacks columns or values, or lists images that are not there; several mistakes
            together.
    """
    rows = read_parquet(place) if place.suffix.lower() in PARQUET_SUFFIXES else read_csv(_read(place), place.name)
    chosen = choose_columns(rows.names, options, rows.what)
    listed = list_rows(rows, chosen)
    files = [_find_file(place.parent, image.name) for image in listed]
    missing = [image.name for image, file in zip(listed, files, strict=True) if file is None]
    if missing:
        raise InputError(
            f"{len(missing)} of {len(listed)} images that {rows.what} lists are not there ({name_some(missing)}); "
            "paths "
            f"count from the table's folder, {place.parent.resolve()}{_hint(place.parent, missing)}."
        )
    here = os.path.abspath(place.parent)  # noqa: PTH100 - resolve() would follow links, and names would be others
    base = here
    found = [str(file) for file in files]
    outside = [name for name in found if not name.startswith(here.rstrip("/") + "/")]
    if outside:
        base = os.path.commonpath([here, *found])
    named = [
        dataclasses.replace(image, name=os.path.relpath(file, base)) for file, image in zip(found, listed, strict=True)
    ]
    check_one_row(named, rows.what)
    images = tuple({image.name: image for image in named}.values())
    notes = [chosen.describe(rows.what)]
    if outside:
        notes.append(f"{count_images(len(outside))} lie outside {here} ({name_some(outside)}).")
    if len(images) < len(listed):
        notes.append(f"{len(listed) - len(images)} rows of {rows.what} repeat another one.")
    return OwnSource(
        place=place,
        form="table",
        images=images,
        classes=order_classes(image.label for image in images),
        read=_reader(Path(base)),
        base=Path(base),
        notes=tuple(notes),
    )


def list_rows(rows: Rows, chosen: Chosen, names: Sequence[str] | None = None) -> list[OwnImage]:
    """The images that a table lists, in its order.

    Args:
        rows: The table.
        chosen: Its columns.
        names: Of the images, where the table has no column of paths.

    Raises:
        InputError: Empty cells, several labels in one cell, or parts that are none; several mistakes together.
    """
    mistakes = Mistakes()
    if not len(rows):
        raise InputError(f"{rows.what} has no rows; give a table with one row for each image.")
    labels = rows.columns[chosen.label]
    with mistakes.collecting():
        check_filled(labels, chosen.label, rows.what, "give each image a class, or delete the rows without")
    with mistakes.collecting():
        check_labels(labels, chosen.label, rows.what)
    paths: Cells = names if names is not None else rows.columns[chosen.path or ""]
    if names is None:
        with mistakes.collecting():
            check_filled(
                paths, chosen.path or "", rows.what, "write the path of the image into each, or delete the rows"
            )
    parts: Sequence[str | None] = [None] * len(rows)
    if chosen.split is not None:
        with mistakes.collecting():
            parts = read_parts(rows.columns[chosen.split], chosen.split, rows.what)
    groups: Cells = [None] * len(rows)
    if chosen.group is not None:
        groups = rows.columns[chosen.group]
        with mistakes.collecting():
            check_filled(
                groups, chosen.group, rows.what, "give each image a group, one of its own if it belongs to none"
            )
    mistakes.raise_all()
    return [
        OwnImage(str(path), str(label), part, group)
        for path, label, part, group in zip(paths, labels, parts, groups, strict=True)
    ]


def read_csv(data: bytes, what: str) -> Rows:
    """A table as text with the names of its columns in the first line; separated by comma, semicolon, tab or bar.

    Raises:
        InputError: It is no such table.
    """
    text = decode_text(data, what).strip("\n")
    first = text.partition("\n")[0]
    delimiter = max(_DELIMITERS, key=first.count)
    try:
        head, *lines = [line for line in csv.reader(io.StringIO(text), delimiter=delimiter, strict=True) if line] or [
            []
        ]
    except csv.Error as error:
        raise InputError(f"{what} cannot be read as a table ({error}); save it as CSV again.") from error
    names = [name.strip() for name in head]
    if not text or len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        state = f"names the column {name_some(twice)} twice" if text else "is empty"
        raise InputError(f"{what} {state}; give a table whose first line names its columns, such as path,label.")
    for number, line in enumerate(lines, 1):
        if len(line) != len(names):
            raise InputError(
                f"Row {number} of {what} has {len(line)} cell{'s' * (len(line) != 1)} but there are {len(names)} "
                f"columns ({name_some(names, 12)}); correct it (a cell with {delimiter!r} in it needs quotes)."
            )
    cells = [[cell.strip() or None for cell in column] for column in zip(*lines, strict=True)] or [[] for _ in names]
    return Rows(what, dict(zip(names, cells, strict=True)))


def read_parquet(place: Path) -> Rows:
    """A Parquet file, as text.

    Raises:
        InputError: pyarrow is missing, or it cannot be read.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise InputError(
            f"{place} is a Parquet file, for which a library is missing: pip install 's2a-bench[data]'."
        ) from error
    try:
        table = pq.ParquetFile(place).read()
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{place} cannot be read as Parquet ({reason}); write it again.") from error
    return Rows(place.name, {name: as_cells(table.column(name)) for name in table.column_names})


def as_cells(column: Any) -> list[str | None]:
    """The values of a column of pyarrow, as text; ``None``: the cell is empty."""
    return [as_cell(value) for value in column.to_pylist()]


def as_cell(value: object) -> str | None:
    """A value as text, the same whether it came from CSV or Parquet; ``None``: it is empty."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, bytes):
        try:
            value = value.decode()  # text that was written as bytes; an image's are none
        except UnicodeDecodeError:
            return None
    if isinstance(value, list | tuple) and len(value) == 1:
        return as_cell(value[0])  # one label, in the form of several
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # what pandas makes of whole numbers where one is missing
    return str(value).strip() or None


def _read(place: Path) -> bytes:
    try:
        return read_file(place)
    except OSError as error:
        raise InputError(f"{place} cannot be read ({error.strerror or error}); check the file.") from error


def _find_file(folder: Path, path: str) -> Path | None:
    """The file that a path in a table means; ``None``: there is none."""
    for each in (path, path.replace("\\", "/")):  # tables made on Windows
        file = folder / each
        if path_exists(file) and file.is_file():
            return file.resolve() if ".." in file.parts else Path(os.path.abspath(file))  # noqa: PTH100 - links stay
    return None


def _hint(folder: Path, missing: Sequence[str]) -> str:
    for suffix in (".jpg", ".jpeg", ".png"):
        if all(path_exists(folder / (name + suffix)) for name in missing[:10]):
            return f", where they are with {suffix} at the end: add it in the table"
    names = {Path(name).name for name in missing[:1]}
    for each in sorted(folder.iterdir()) if folder.is_dir() else ():
        if each.is_dir() and any(path_exists(each / name) for name in names):
            return f", and {min(names)} is in {each.name}/: write that in front of it"
    return "; correct the paths, or move the table"


def _reader(base: Path) -> Any:
    def read(names: Collection[str]) -> Iterator[tuple[str, bytes | InputError]]:
        for name in names:
            try:
                yield name, read_image_bytes(base / name)
            except InputError as error:
                yield name, error

    return read
