"""Reader of datasets from the Hugging Face hub: Parquet files with the images in a column."""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from s2a_bench.data.images import IMAGE_SUFFIXES, LOSSY_SUFFIXES, looks_reencoded
from s2a_bench.data.readers._arrays import MAX_IMAGES
from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

_PARTS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
_SHARD = re.compile(r"(?P<split>\w+?)-(?P<number>\d{5})-of-(?P<total>\d{5})(-[0-9a-f]+)?\.parquet")
_WHOLE = re.compile(r"(?P<split>[A-Za-z]\w*)\.parquet")
_NUMBERED = re.compile(r"(?P<number>\d{4})\.parquet")  # the hub's own conversion: <config>/<split>/0000.parquet
_IMAGE_COLUMNS = ("image", "img")
_LABEL_COLUMNS = ("label", "fine_label", "labels")
_NAME = re.compile(r"(train|val|test)/([0-9]{6,})\.[a-z]+")
_BATCH = 64  # images in memory at a time
_PROBED = 32
_STARTS = ((b"\x89PNG", ".png"), (b"\xff\xd8", ".jpg"), (b"BM", ".bmp"), (b"RIFF", ".webp"))


@dataclasses.dataclass(frozen=True)
class _ParquetFile:
    path: str
    place: str  # the folder of the data set's configuration
    split: str
    number: int
    total: int | None


def _find_parquet_files(tree: Tree) -> list[_ParquetFile]:
    """Parquet files whose name, or whose folder's, is a split's."""
    found = []
    for path in tree.names:
        file = PurePosixPath(path)
        if match := _SHARD.fullmatch(file.name):
            one = _ParquetFile(path, str(file.parent), match["split"], int(match["number"]), int(match["total"]))
        elif match := _NUMBERED.fullmatch(file.name):
            one = _ParquetFile(path, str(file.parent.parent), file.parent.name, int(match["number"]), None)
        elif match := _WHOLE.fullmatch(file.name):
            one = _ParquetFile(path, str(file.parent), match["split"], 0, 1)
        else:
            continue
        found.append(one)
    return found


def recognises(tree: Tree, dataset: Dataset) -> bool:
    """Whether there is a Parquet file of a split."""
    return any(file.split in _PARTS for file in _find_parquet_files(tree))


def open_hub(tree: Tree, dataset: Dataset) -> Source:
    """A dataset of the hub, as its repository, its cache or ``huggingface-cli download`` lays it out.

    Files are ``train-00000-of-00002[-hash].parquet``, ``train/0000.parquet`` or ``train.parquet``, in one folder
    at any depth. The image column is a struct with ``bytes``, called image or img or the only one; the
    label column is ``<target>``, ``<target>_label``, label, fine_label or labels (``preparation.target``). Row 17 of
    the split "train" is ``train/000017.png``, or .jpg, depending on the image's own path or its content.

    Raises:
        InputError: pyarrow is missing, several datasets, a missing or damaged file, no such columns, or labels that
            do not fit.
    """
    splits, unused = group_by_split(tree)
    tables: dict[str, list[_ParquetTable]] = {}
    for split, files in splits.items():
        tables.setdefault(_PARTS[split], []).extend(_ParquetTable(tree, dataset, file.path) for file in files)
    every = [table for found in tables.values() for table in found]
    names = every[0].names
    for table in every:
        if table.names != names:
            raise InputError(f"{table.what} names other classes than {every[0].what}; download the dataset again.")
    order, classes = _match_classes(dataset, names, every[0].what)
    items = {part: _list_images(dataset, part, found, order) for part, found in tables.items()}
    if names is None and (highest := max(i.label for found in items.values() for i in found)) + 1 != dataset.classes:
        raise InputError(
            f"{tree.place} has labels up to {highest} but {dataset.name} has {dataset.classes} classes; give a copy of "
            f"{dataset.name}."
        )
    starts = {part: list(itertools.accumulate((t.rows for t in found), initial=0)) for part, found in tables.items()}

    def read(wanted: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        rows: dict[str, list[int]] = {part: [] for part in tables}
        for name in wanted:
            found = _NAME.fullmatch(name)
            part, position = (found[1], int(found[2])) if found else ("", 0)
            if position >= len(items.get(part, ())) or items[part][position].name != name:
                raise InputError(f"{tree.place} holds no image {name}.")
            rows[part].append(position)
        for part, positions in rows.items():
            positions.sort()
            for table, start, end in zip(tables[part], starts[part], starts[part][1:], strict=False):
                first, last = (bisect.bisect_left(positions, at) for at in (start, end))
                for row, data in table.images([position - start for position in positions[first:last]]):
                    yield items[part][start + row].name, data

    everything = tuple(itertools.chain.from_iterable(items.values()))
    lossy, note = _check_reencoding(dataset, every[0], everything)
    skipped = f"Split {' and '.join(unused)} of the source is not used." if unused else ""
    return Source(everything, classes, read, lossy=lossy, note=f"{note} {skipped}".strip())


def group_by_split(tree: Tree) -> tuple[dict[str, list[_ParquetFile]], list[str]]:
    """Split -> its files in order, and the names of splits that are no part of ours."""
    files = _find_parquet_files(tree)
    used = [file for file in files if file.split in _PARTS]
    places = sorted({file.place for file in used})
    if len(places) > 1:
        raise InputError(
            f"{tree.place} holds Parquet files of {len(places)} datasets, configurations or revisions "
            f"({', '.join(places[:5])}); give the folder of one."
        )
    splits: dict[str, list[_ParquetFile]] = {}
    for file in used:
        splits.setdefault(file.split, []).append(file)
    for split, found in splits.items():
        found.sort(key=lambda file: file.number)
        totals = {file.total for file in found}
        total = totals.pop() if len(totals) == 1 else -1
        if [file.number for file in found] != list(range(len(found) if total is None else total)):
            raise InputError(
                f"The Parquet files of split {split!r} in {tree.place} are not complete, or not of one revision "
                f"({', '.join(PurePosixPath(file.path).name for file in found[:5])}); download all of them again."
            )
    if len({_PARTS[split] for split in splits}) < len(splits):
        raise InputError(
            f"{tree.place} has the validation part under several names ({', '.join(splits)}); give one of them."
        )
    unused = sorted({f.split for f in files if f.split not in _PARTS and f.place in places})
    return splits, unused


# --- Tables ----------------------------------------------------------------------------------------------------------


class _ParquetTable:
    """One Parquet file: its labels, and its images by row.

    Attributes:
        what: Its name in error messages.
        rows: Number of images.
        names: Names of the classes by label, if the file has them.
        labels: One for each row.
    """

    def __init__(self, tree: Tree, dataset: Dataset, path: str) -> None:
        """Reads the labels."""
        self.what = f"{path} in {tree.place}"
        self._local = tree.path_on_disk(path)
        with self._open() as file:
            schema = file.schema_arrow
            self._image, self._binary = find_image_column(schema, self.what)
            label = _label_column(schema, dataset, self.what)
            self.names = read_class_names(schema, label, self.what)
            self.rows = int(file.metadata.num_rows)
            if not self.rows:
                raise InputError(f"{self.what} is empty; download it again.")
            if self.rows > MAX_IMAGES:
                raise InputError(f"{self.what} claims {self.rows:,} rows; it is damaged, so download it again.")
            self.labels: list[int] = _check_integers(
                file.read(columns=[label]).column(0), f"Column {label!r} of {self.what}"
            )
            if len(self.labels) != self.rows:
                raise InputError(
                    f"{self.what} states {self.rows} rows but has {len(self.labels)} labels; download it again."
                )
            self._paths = not self._binary and any(
                field.name == "path" and str(field.type) in ("string", "large_string")
                for field in schema.field(self._image).type
            )

    @contextmanager
    def _open(self) -> Iterator[pq.ParquetFile]:
        """Opens the file; errors while it is open become one sentence."""
        try:
            import pyarrow as pa
            import pyarrow.parquet as pq
        except ImportError as error:
            raise InputError(
                f"{self.what} is a Parquet file, for which a library is missing: pip install 's2a-bench[data]'."
            ) from error
        try:
            with pq.ParquetFile(self._local) as file:
                yield file
        except InputError:
            raise
        except (pa.ArrowException, OSError, ValueError, MemoryError) as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
            raise InputError(f"{self.what} cannot be read ({reason}); download it again.") from error

    def suffixes(self) -> list[str]:
        """Each image's suffix, by the path beside it or else by its content."""
        suffixes = [""] * self.rows
        if self._paths:
            with self._open() as file:
                column = file.read(columns=[f"{self._image}.path"]).column(0).combine_chunks()
                suffixes = [known_suffix(path) for path in column.field("path").to_pylist()]
            if len(suffixes) != self.rows:
                raise InputError(
                    f"{self.what} states {self.rows} rows but has {len(suffixes)} paths; download it again."
                )
        if not all(suffixes):
            # Only the content shows the format, so all images are read.
            found = [suffix_from_content(data) for _, data in self.images(list(range(self.rows)))]
            suffixes = [known or seen for known, seen in zip(suffixes, found, strict=True)]
        return suffixes

    def images(self, rows: list[int]) -> Iterator[tuple[int, bytes]]:
        """Yields ``(row, image file)`` of the given rows, sorted; row groups without any of them are skipped."""
        column = self._image if self._binary else f"{self._image}.bytes"
        left = iter(rows)
        row = next(left, None)
        start = 0
        with self._open() as file:
            for group in range(file.num_row_groups):
                count = file.metadata.row_group(group).num_rows
                if row is None:
                    return
                if row >= start + count:
                    start += count
                    continue
                for batch in file.iter_batches(_BATCH, row_groups=[group], columns=[column]):
                    values = batch.column(0) if self._binary else batch.column(0).field("bytes")
                    while row is not None and row < start + len(values):
                        data = values[row - start].as_py()
                        if not data:
                            raise InputError(
                                f"Row {row} of {self.what} has no image (only a path to one, perhaps); give a copy of "
                                "the dataset that holds its images."
                            )
                        yield row, data
                        row = next(left, None)
                    start += len(values)
        if row is not None:
            raise InputError(f"{self.what} ends before row {row}; download it again.")


def find_image_column(schema: pa.Schema, what: str) -> tuple[str, bool]:
    """The image column's name, and whether it holds bytes themselves and no struct."""
    import pyarrow as pa

    def binary(kind: pa.DataType) -> bool:
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    structs = [
        field.name
        for field in schema
        if pa.types.is_struct(field.type) and any(f.name == "bytes" and binary(f.type) for f in field.type)
    ]
    plain = [field.name for field in schema if field.name in _IMAGE_COLUMNS and binary(field.type)]
    named = [name for name in _IMAGE_COLUMNS if name in (*structs, *plain)]
    found = named or (structs if len(structs) == 1 else [])
    if not found:
        raise InputError(
            f"{what} has no column of images, image or img with bytes (it has {', '.join(schema.names)}); give an "
            "image dataset of the hub."
        )
    return found[0], found[0] not in structs


def _label_column(schema: pa.Schema, dataset: Dataset, what: str) -> str:
    target = dataset.preparation.target if dataset.preparation else ""
    known = (target, f"{target}_label", *_LABEL_COLUMNS) if target else _LABEL_COLUMNS
    for name in known:
        if name in schema.names:
            return name
    raise InputError(
        f"{what} has no column of labels, one of {', '.join(known)} (it has {', '.join(schema.names)}); give a copy "
        f"of {dataset.name} with labels."
    )


def _check_integers(column: Any, what: str) -> list[int]:
    import pyarrow as pa

    if not pa.types.is_integer(column.type):
        raise InputError(f"{what} holds {column.type} and not whole numbers; give a copy with numbers as labels.")
    if column.null_count:
        raise InputError(f"{what} has {column.null_count} rows without a label; give a copy with labels.")
    return column.to_pylist()


def read_class_names(schema: pa.Schema, label: str, what: str) -> tuple[str, ...] | None:
    """Class names from the metadata that the library ``datasets`` writes for a ``ClassLabel``."""
    text = (schema.metadata or {}).get(b"huggingface")
    if text is None:
        return None
    try:
        feature = json.loads(text)["info"]["features"][label]
        names = feature.get("names")
        if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
            raise ValueError("its names of classes are no list of text")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"The note of the library datasets in {what} is damaged ({error!r}); download it again."
        ) from error
    return tuple(names) if names else None


def known_suffix(path: str | None) -> str:
    """The suffix of a path in lower case if it is an image's, else ``""``."""
    suffix = PurePosixPath(path or "").suffix.lower()
    return suffix if suffix in IMAGE_SUFFIXES else ""


def suffix_from_content(data: bytes) -> str:
    """The suffix of an image file by its first bytes; ``".jpg"`` if they tell nothing."""
    return next((suffix for start, suffix in _STARTS if data.startswith(start)), ".jpg")


# --- Labels ----------------------------------------------------------------------------------------------------------


def _normalise_name(name: str) -> str:
    return re.sub(r"[^0-9a-z]+", "_", name.casefold())


def _match_classes(dataset: Dataset, names: tuple[str, ...] | None, what: str) -> tuple[list[int], tuple[str, ...]]:
    """Our label for each of the source's, and the classes' names in our order."""
    known = dataset.preparation.class_names if dataset.preparation else ()
    if names is None:
        # Labels without names can only be ours if nobody has given ours an order of their own.
        if known:
            raise InputError(
                f"{what} does not name its classes, so that their order is not known; give the original download of "
                f"{dataset.name}."
            )
        return list(range(dataset.classes)), tuple(f"class {i}" for i in range(dataset.classes))
    if len(names) != dataset.classes:
        raise InputError(
            f"{what} has {len(names)} classes but {dataset.name} has {dataset.classes}; give a copy of {dataset.name}."
        )
    if not known:
        return list(range(len(names))), names
    places = {_normalise_name(name): i for i, name in enumerate(known)}
    strange = [name for name in names if _normalise_name(name) not in places]
    if strange or len(set(map(_normalise_name, names))) < len(names):
        raise InputError(
            f"{what} has classes that {dataset.name} has not, or one twice: {', '.join(strange[:5] or names[:5])}; "
            f"give a copy of {dataset.name} with its own classes."
        )
    return [places[_normalise_name(name)] for name in names], known


def _list_images(dataset: Dataset, part: str, tables: list[_ParquetTable], order: list[int]) -> list[SourceImage]:
    items: list[SourceImage] = []
    for table in tables:
        for row, (label, suffix) in enumerate(zip(table.labels, table.suffixes(), strict=True)):
            if not 0 <= label < len(order):
                raise InputError(
                    f"Row {row} of {table.what} has label {label}, not 0 to {len(order) - 1}; give a copy of "
                    f"{dataset.name} with labels."
                )
            items.append(SourceImage(f"{part}/{len(items):06d}{suffix}", order[label], part))
    return items


def _check_reencoding(dataset: Dataset, table: _ParquetTable, items: tuple[SourceImage, ...]) -> tuple[bool, str]:
    """Whether images were encoded again with loss, and the sentence that says so."""
    jpegs = sum(item.name.endswith(LOSSY_SUFFIXES) for item in items)
    if jpegs and dataset.encoding == "lossless":
        return True, f"A copy from the Hugging Face hub; {dataset.name} is published without loss and is JPEG here."
    if jpegs and looks_reencoded([data for _, data in table.images(list(range(min(_PROBED, table.rows))))]):
        return True, (
            "A copy from the Hugging Face hub; images looked at have the JPEG tables of Pillow's default quality, so "
            "they were most likely re-encoded."
        )
    return False, "A copy from the Hugging Face hub."


READERS = (Reader("hub", recognises, open_hub),)
