"""Own images as the library ``datasets`` and the Hugging Face hub hold them: rows with the image file in a column.

``save_to_disk`` writes Arrow files (``data-00000-of-00001.arrow``, listed in ``state.json``; with several splits a
folder for each, listed in ``dataset_dict.json``); repositories of the hub hold Parquet files named after their split.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_bench.data.images import read_image_bytes
from s2a_bench.data.own.columns import Chosen, choose_columns
from s2a_bench.data.own.options import OwnOptions
from s2a_bench.data.own.read import PART_NAMES, OwnImage, OwnSource, ReadImages, name_some, order_classes
from s2a_bench.data.own.tables import Rows, as_cells, list_rows
from s2a_bench.data.readers.hub import (
    find_image_column,
    group_by_split,
    known_suffix,
    read_class_names,
    suffix_from_content,
)
from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa

_BATCH = 64  # images in memory at a time
_STATE, _SPLITS = "state.json", "dataset_dict.json"


@dataclasses.dataclass(frozen=True)
class _Shard:
    """One file of rows; ``split`` is the name of the source's split, ``""`` where it has none."""

    path: Path
    what: str
    split: str

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Opens the file: its schema, and a function from names of columns to batches of rows."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise InputError(
                f"{self.what} is an Arrow or Parquet file, for which a library is missing: pip install "
                "'s2a-bench[data]'."
            ) from error
        try:
            if self.path.suffix == ".arrow":
                with pa.memory_map(str(self.path)) as memory, pa.ipc.open_stream(memory) as stream:

                    def batches(columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
                        for batch in stream:
                            yield from (batch.slice(i, _BATCH).select(columns) for i in range(0, len(batch), _BATCH))

                    yield stream.schema, batches
            else:
                with pq.ParquetFile(self.path) as file:
                    yield file.schema_arrow, lambda columns: file.iter_batches(_BATCH, columns=list(columns))
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise InputError(f"{self.what} cannot be read ({reason}); get it again.") from error


def holds_saved(folder: Path) -> bool:
    """Whether a folder is one that ``save_to_disk`` wrote."""
    return folder.is_dir() and ((folder / _SPLITS).is_file() or (folder / _STATE).is_file())


def holds_images(file: Path) -> bool:
    """Whether a Parquet file has the images themselves in a column.

    Raises:
        InputError: It cannot be read.
    """
    with _Shard(file, file.name, "").open() as (schema, _):
        try:
            find_image_column(schema, file.name)
        except InputError:
            return False
        return True


def read_saved(folder: Path, options: OwnOptions) -> OwnSource:
    """Reads what ``save_to_disk`` wrote.

    Raises:
        InputError: Damaged files, no image column, or labels that cannot be used.
    """
    if not (folder / _SPLITS).is_file():
        return _read_rows(folder, _list_arrow(folder, ""), options, [])
    splits = _read_json(folder / _SPLITS).get("splits")
    if not isinstance(splits, list) or not splits or not all(isinstance(split, str) for split in splits):
        raise InputError(f"{folder / _SPLITS} names no splits; save the dataset again.")
    used = [split for split in splits if split.lower() in PART_NAMES] or (splits if len(splits) == 1 else [])
    if not used:
        raise InputError(
            f"{folder} has the splits {name_some(splits)}, none of which is called train, validation or test; save one "
            "of them alone."
        )
    unused = [split for split in splits if split not in used]
    shards = [shard for split in used for shard in _list_arrow(folder / split, split)]
    return _read_rows(folder, shards, options, [f"Split {split} is not used." for split in unused])


def read_hub_files(tree: Tree, options: OwnOptions) -> OwnSource | None:
    """Reads Parquet files named after their split; ``None``: there are none.

    Raises:
        InputError: Missing or damaged files, no image column, or labels that cannot be used.
    """
    splits, unused = group_by_split(tree)
    if not splits:
        return None
    shards = [
        _Shard(tree.path_on_disk(file.path), file.path, split) for split, files in splits.items() for file in files
    ]
    return _read_rows(tree.place, shards, options, [f"Split {split} is not used." for split in unused])


def read_image_rows(file: Path, options: OwnOptions) -> OwnSource:
    """Reads one Parquet file that holds the images themselves.

    Raises:
        InputError: It cannot be read, or its labels cannot be used.
    """
    return _read_rows(file, [_Shard(file, file.name, "")], options, [])


def _list_arrow(folder: Path, split: str) -> list[_Shard]:
    state = _read_json(folder / _STATE)
    try:
        names = [each["filename"] for each in state["_data_files"]]
        paths = [folder / Path(name).name for name in names]
    except (TypeError, KeyError) as error:
        raise InputError(f"{folder / _STATE} names no data files; save the dataset again.") from error
    if state.get("_indices_data_files") or state.get("_indices_files"):
        raise InputError(
            f"{folder} was saved with indices by an old version of the library datasets; load and save it again."
        )
    if missing := [path.name for path in paths if not path.is_file()]:
        raise InputError(f"{folder} lacks {name_some(missing)}; save the dataset again.")
    return [_Shard(path, str(path.relative_to(folder.parent)), split) for path in paths]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path} cannot be read ({error}); save the dataset again.") from error
    return found if isinstance(found, dict) else {}


@dataclasses.dataclass(frozen=True)
class _Read:
    """What was read of one shard but the images themselves."""

    shard: _Shard
    images: list[OwnImage]
    column: str  # of the images
    binary: bool  # whether it holds bytes and no struct
    classes: tuple[str, ...] | None
    chosen: Chosen


def _read_rows(place: Path, shards: Sequence[_Shard], options: OwnOptions, notes: list[str]) -> OwnSource:
    parts: dict[str, str | None] = {shard.split: PART_NAMES.get(shard.split.lower()) for shard in shards}
    counts: dict[str, int] = {}
    read: list[_Read] = []
    for shard in shards:
        start = counts.get(shard.split, 0)
        one = _read_shard(place, shard, parts[shard.split], start, options)
        if one.images:
            read.append(one)
        counts[shard.split] = start + len(one.images)
    if not read:
        raise InputError(f"{place} has no rows; give a dataset with images.")
    for one in read:
        if one.classes != read[0].classes:
            raise InputError(
                f"{one.shard.what} names other classes than {read[0].shard.what}; save the dataset again as a whole."
            )
    images = tuple(image for one in read for image in one.images)
    used = {image.label for image in images}
    classes = order_classes(used)
    if read[0].classes is not None:
        classes = tuple(name for name in read[0].classes if name in used)
        if unused := [name for name in read[0].classes if name not in used]:
            notes.append(f"{len(unused)} classes that no image has are left out ({name_some(unused)}).")
    shown = {"image": read[0].column, "label": read[0].chosen.label, "group": read[0].chosen.group}
    listed = ", ".join(f"{title} {name!r}" for title, name in shown.items() if name)
    notes.insert(0, f"Columns of {place} that are used: {listed}.")
    return OwnSource(place, "hub", images, classes, _make_reader(place, read), notes=tuple(notes))


def _read_shard(place: Path, shard: _Shard, part: str | None, start: int, options: OwnOptions) -> _Read:
    with shard.open() as (schema, batches):
        column, binary = _choose_images(schema, shard.what, options)
        others = [name for name in schema.names if name != column]
        chosen = choose_columns(others, options, shard.what, path=False)
        classes = read_class_names(schema, chosen.label, shard.what)
        if part is not None:  # a column of that name says nothing that the files do not
            chosen = dataclasses.replace(chosen, split=None)
        wanted = [name for name in (chosen.label, chosen.split, chosen.group) if name]
        cells: dict[str, list[str | None]] = {name: [] for name in wanted}
        suffixes: list[str] = []
        for batch in batches(list(dict.fromkeys([column, *wanted]))):
            for name in cells:
                cells[name] += _read_cells(batch.column(name), classes if name == chosen.label else None, name, shard)
            suffixes += [_find_suffix(value, binary) for value in batch.column(column)]
    if not suffixes:
        return _Read(shard, [], column, binary, classes, chosen)
    folder = shard.split or "row"
    names = [f"{folder}/{start + i:06d}{suffix}" for i, suffix in enumerate(suffixes)]
    images = list_rows(Rows(shard.what, cells), chosen, names)
    if part is not None:
        images = [dataclasses.replace(image, part=part) for image in images]
    return _Read(shard, images, column, binary, classes, chosen)


def _choose_images(schema: pa.Schema, what: str, options: OwnOptions) -> tuple[str, bool]:
    if options.path_column is None:
        return find_image_column(schema, what)
    if options.path_column not in schema.names:
        raise InputError(
            f"--path-column {options.path_column!r} is no column: {what} has {name_some(schema.names, 12)}; give the "
            "one "
            "with the images."
        )
    return find_image_column(schema.empty_table().select([options.path_column]).schema, what)


def _read_cells(column: Any, classes: tuple[str, ...] | None, name: str, shard: _Shard) -> list[str | None]:
    """A column as text; numbers of classes become their names.

    Raises:
        InputError: Several labels in a row, or numbers that are no class.
    """
    import pyarrow as pa

    if pa.types.is_list(column.type) or pa.types.is_large_list(column.type):
        raise InputError(
            f"Column {name!r} of {shard.what} holds lists, several labels for one image; one class per image is all "
            "that "
            "can be learned here, so give another column with --label-column, or keep images with one label."
        )
    if classes is None:
        return as_cells(column)
    values = column.to_pylist()
    if strange := sorted({value for value in values if value is not None and not 0 <= value < len(classes)}):
        raise InputError(
            f"Column {name!r} of {shard.what} holds {strange[0]}, which is the number of none of its {len(classes)} "
            "classes (-1 stands for a label that was kept secret); leave out the rows, or the split, without labels."
        )
    return [None if value is None else classes[value] for value in values]


def _find_suffix(value: Any, binary: bool) -> str:
    found = value.as_py()
    if binary:
        return suffix_from_content(found or b"")
    found = found or {}
    return known_suffix(found.get("path")) or suffix_from_content(found.get("bytes") or b"")


def _make_reader(place: Path, read: Sequence[_Read]) -> ReadImages:
    def read_images(names: Collection[str]) -> Iterator[tuple[str, bytes | InputError]]:
        wanted = set(names)
        for one in read:
            if wanted.isdisjoint(image.name for image in one.images):
                continue
            rows = iter(one.images)
            with one.shard.open() as (_, batches):
                for batch in batches([one.column]):
                    for value, image in zip(batch.column(0), rows, strict=False):
                        if image.name in wanted:
                            yield image.name, _read_value(place, value.as_py(), one.binary, image.name)

    return read_images


def _read_value(place: Path, value: Any, binary: bool, name: str) -> bytes | InputError:
    """The image file in a cell, or the one that it names."""
    data = value if binary else (value or {}).get("bytes")
    if data:
        return data
    path = None if binary else (value or {}).get("path")
    if path and "://" not in path:
        try:
            return read_image_bytes(place / path)
        except InputError as error:
            return InputError(f"Image {name} is only a path, and {str(error)[0].lower()}{str(error)[1:]}")
    return InputError(f"Image {name} has no content; leave its row out.")
