"""Reader of the directories that tensorflow_datasets exports, without tensorflow_datasets."""

from __future__ import annotations

import dataclasses
import itertools
import json
import re
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath
from typing import Any

from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tfds_features import TFDS_EXPORTS, TfdsExport
from s2a_bench.data.readers.tfrecord import Value, iterate_records, parse_example, read_records
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset, PoolRule
from s2a_bench.errors import InputError

_INFO = "dataset_info.json"
_KINDS = ("tfrecord", "array_record")
_NAME = re.compile(r"(train|val|test)/([0-9]{6,})\.[a-z]+")
_BATCH = 64  # records of an array_record file in memory at a time
_SUFFIXES = ((b"\x89PNG", ".png"), (b"BM", ".bmp"), (b"RIFF", ".webp"))
"""First bytes of image formats; all others get .jpg, as Oxford-IIIT Pet names its few GIF files."""


@dataclasses.dataclass
class _Shard:
    """A file of records and the byte offset of each, or its number in an ``array_record`` file."""

    file: str  # path in the tree
    what: str
    kind: str
    places: array[int] = dataclasses.field(default_factory=lambda: array("Q"))


def recognises(tree: Tree, dataset: Dataset) -> bool:
    """Whether a folder has a ``dataset_info.json`` beside files of the dataset's builder."""
    form = TFDS_EXPORTS.get(dataset.name)
    return form is not None and bool(_find_export_folders(tree, form))


def _find_export_folders(tree: Tree, form: TfdsExport) -> list[str]:
    """Folders of exports by that builder, as ``""`` or ``"path/"``."""
    records_of = re.compile(rf"(.*/)?{re.escape(form.builder)}-[a-z]+\.[a-z_]+-\d+-of-\d+")
    known = {found[1] or "" for found in map(records_of.fullmatch, tree.names) if found}
    return [
        name[: -len(_INFO)] for name in tree.names if PurePosixPath(name).name == _INFO and name[: -len(_INFO)] in known
    ]


def open_tfds(tree: Tree, dataset: Dataset) -> Source:
    """An exported directory ``<builder>[/<config>]/<version>``, wherever it lies in the tree.

    The order of the records is the stored order, of which VTAB-1k's splits are slices: image 17 of the split "train" is
    ``train/000017.png``. Records are read twice: first all of them, for labels and byte offsets, then, with
    checksums, those whose images are requested.

    Raises:
        InputError: No table entry for the dataset, several exports or one of another configuration, a missing,
            damaged or incomplete file, or a record whose features do not give a label.
    """
    form = TFDS_EXPORTS.get(dataset.name)
    if form is None:
        raise InputError(f"No export of tensorflow_datasets is known for {dataset.name}; give the original download.")
    folder, info = _select_export(tree, form)
    kind = str(info.get("fileFormat", "tfrecord"))
    if kind not in _KINDS:
        raise InputError(
            f"{folder}{_INFO} in {tree.place} states the file format {kind!r}, which cannot be read; export "
            f"{form.builder} with --file_format=tfrecord."
        )
    classes = _class_names(tree, dataset, form, folder)
    items: dict[str, list[SourceImage]] = {}
    shards: dict[str, list[_Shard]] = {}
    lengths = _shard_lengths(tree, folder, info)
    for split, part in form.parts.items():
        if split not in lengths:
            raise InputError(
                f"{folder}{_INFO} in {tree.place} has no split {split!r} (it has {', '.join(lengths) or 'none'}); "
                f"export {form.builder} again, with all its splits."
            )
        items[part] = []
        shards[part] = []
        for number, length in enumerate(lengths[split]):
            file = f"{folder}{form.builder}-{split}.{kind}-{number:05d}-of-{len(lengths[split]):05d}"
            shard = _Shard(file, f"{file} in {tree.place}", kind)
            _list_images(tree, form, shard, length, part, len(classes), items[part])
            shards[part].append(shard)
        if not items[part]:
            raise InputError(f"Split {split!r} of {folder}{_INFO} in {tree.place} is empty; export it again.")

    def read(names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        wanted: dict[str, list[int]] = {part: [] for part in shards}
        for name in names:
            found = _NAME.fullmatch(name)
            part, position = (found[1], int(found[2])) if found else ("", 0)
            if position >= len(items.get(part, ())) or items[part][position].name != name:
                raise InputError(f"{folder or tree.place} holds no image {name}.")
            wanted[part].append(position)
        for part, positions in wanted.items():
            positions.sort()
            start = 0
            for shard in shards[part]:
                end = start + len(shard.places)
                first, last = bisect_left(positions, start), bisect_left(positions, end)
                numbers = [position - start for position in positions[first:last]]
                for number, data in zip(numbers, _read_selected(tree, shard, numbers), strict=True):
                    yield items[part][start + number].name, _usable_image(form, shard, number, data)
                start = end

    source = Source(
        tuple(itertools.chain.from_iterable(items.values())),
        classes,
        read,
        ordered=True,
        lossy=form.lossy,
        note=form.note,
    )
    return _slice_export_pool(dataset, source, items)


def _slice_export_pool(dataset: Dataset, source: Source, items: dict[str, list[SourceImage]]) -> Source:
    """Caltech101's pool was drawn by tensorflow_datasets and is its train split: the lists are slices of it."""
    rule = dataset.preparation.rule if dataset.preparation else None
    if not isinstance(rule, PoolRule):
        return source
    names = {part: tuple(item.name for item in found) for part, found in items.items()}
    if len(names["train"]) < max(rule.train[1], rule.val[1]):
        raise InputError(
            f"The export of {dataset.name} has {len(names['train'])} training images, too few for positions up to "
            f"{max(rule.train[1], rule.val[1])}; export it again."
        )
    kinds = dataset.lists
    lists = {
        kinds.train: names["train"][slice(*rule.train)],
        kinds.val: names["train"][slice(*rule.val)],
        kinds.test: names["test"],
    }
    note = f"VTAB-1k's slices of tensorflow_datasets' stored order, as exported. {source.note}".strip()
    return dataclasses.replace(source, lists=lists, split_id="vtab-1k", note=note)


# --- Descriptions ----------------------------------------------------------------------------------------------------


def _select_export(tree: Tree, form: TfdsExport) -> tuple[str, dict[str, Any]]:
    """The folder of the one export that fits, and its description."""
    fitting: list[tuple[str, dict[str, Any]]] = []
    others: list[str] = []
    for folder in _find_export_folders(tree, form):
        info = _read_json(tree, folder + _INFO)
        if info.get("name") != form.builder:
            raise InputError(
                f"{folder}{_INFO} in {tree.place} describes {info.get('name')!r}, but the files beside it are of "
                f"{form.builder!r}; copy the export again."
            )
        config = _config_of(tree, form, folder, info)
        if config == form.config or not config:
            fitting.append((folder, info))
        else:
            others.append(config)
    wanted = f"{form.builder}/{form.config}" if form.config else form.builder
    if len(fitting) > 1:
        found = ", ".join(folder or "." for folder, _ in fitting)
        raise InputError(f"{tree.place} holds {len(fitting)} exports of {wanted} ({found}); give the folder of one.")
    if not fitting:
        found = f"only the configuration {', '.join(others)}" if others else "none"
        raise InputError(f"{tree.place} should hold an export of {wanted}, but there is {found}; export {wanted}.")
    return fitting[0]


def _config_of(tree: Tree, form: TfdsExport, folder: str, info: dict[str, Any]) -> str:
    """The export's configuration; ``""``: it has none, or neither the description nor the path names it."""
    if not form.config:
        return ""
    if "configName" in info:
        return str(info["configName"])
    # Old releases do not write it down: <builder>/<config>/<version>.
    parts = [*tree.place.absolute().parts, *PurePosixPath(folder).parts]
    return parts[-2] if len(parts) > 2 and parts[-3] == form.builder else ""


def _read_json(tree: Tree, path: str) -> dict[str, Any]:
    try:
        found = json.loads(tree.read_text(path))
    except (ValueError, RecursionError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path} in {tree.place} is not JSON ({error}); copy the export again.") from error
    if not isinstance(found, dict):
        raise InputError(f"{path} in {tree.place} does not describe a dataset; copy the export again.")
    return found


def _shard_lengths(tree: Tree, folder: str, info: dict[str, Any]) -> dict[str, list[int]]:
    """Records per shard of each split."""
    try:
        return {split["name"]: [int(n) for n in split["shardLengths"]] for split in info["splits"]}
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(
            f"{folder}{_INFO} in {tree.place} does not list its splits with their shardLengths; export it again with "
            "tensorflow_datasets 3 or later."
        ) from error


def _class_names(tree: Tree, dataset: Dataset, form: TfdsExport, folder: str) -> tuple[str, ...]:
    """Names of the classes, from the export if it has them."""
    known = dataset.preparation.class_names if dataset.preparation else ()
    path = f"{folder}{form.named}.labels.txt"
    names = tuple(form.classes or known or map(str, range(dataset.classes)))
    if form.named and path in tree.names:
        names = tuple(line for line in tree.read_text(path).split("\n") if line)
        if known and [n.casefold() for n in names] != [n.casefold() for n in known]:
            raise InputError(
                f"{path} in {tree.place} has other classes, or in another order, than {dataset.name}; give an export "
                f"of {form.builder} as VTAB-1k uses it."
            )
    if len(names) != dataset.classes:
        raise InputError(
            f"The export of {form.builder} in {tree.place} has {len(names)} classes but {dataset.name} has "
            f"{dataset.classes}; give the export of {form.builder} as it was published."
        )
    return names


# --- Records ---------------------------------------------------------------------------------------------------------


def _list_images(
    tree: Tree, form: TfdsExport, shard: _Shard, length: int, part: str, classes: int, items: list[SourceImage]
) -> None:
    """Appends a shard's images to ``items`` and their offsets to the shard."""
    if shard.file not in tree.names:
        raise InputError(f"{tree.place} has no {shard.file}, which its {_INFO} lists; copy the whole export.")
    wanted = frozenset((*form.needs, "image"))
    for number, (place, data) in enumerate(_iterate_shard(tree, shard)):
        features = _parse_record(shard, number, data, wanted)
        try:
            label = form.label(features)
        except ValueError as error:
            raise InputError(f"Record {number} of {shard.what} {error}; export it again.") from error
        if not 0 <= label < classes:
            raise InputError(
                f"Record {number} of {shard.what} has label {label}, not 0 to {classes - 1}; export it again."
            )
        image = _stored_image(shard, number, features)
        suffix = next((suffix for start, suffix in _SUFFIXES if image.startswith(start)), ".jpg")
        items.append(SourceImage(f"{part}/{len(items):06d}{suffix}", label, part))
        shard.places.append(place)
    if len(shard.places) != length:
        raise InputError(
            f"{shard.what} holds {len(shard.places)} records, but {_INFO} states {length}; copy the export again."
        )


def _parse_record(shard: _Shard, number: int, data: bytes, wanted: frozenset[str]) -> dict[str, Value]:
    try:
        return parse_example(data, wanted)
    except ValueError as error:
        raise InputError(
            f"Record {number} of {shard.what} is not a tf.train.Example ({error}); export it again."
        ) from error


def _stored_image(shard: _Shard, number: int, features: dict[str, Value]) -> bytes:
    image = features.get("image")
    if not image or len(image) != 1 or not isinstance(image[0], bytes) or not image[0]:
        raise InputError(f"Record {number} of {shard.what} has no image; export it again.")
    return image[0]


def _usable_image(form: TfdsExport, shard: _Shard, number: int, data: bytes) -> bytes:
    image = _stored_image(shard, number, _parse_record(shard, number, data, frozenset(("image",))))
    if form.fix is None:
        return image
    try:
        return form.fix(image)
    except Exception as error:  # A decoder may raise anything on a damaged image.
        raise InputError(f"Record {number} of {shard.what}: its image cannot be used ({error}).") from error


def _iterate_shard(tree: Tree, shard: _Shard) -> Iterator[tuple[int, bytes]]:
    """Yields ``(offset or number, data)`` of every record of a shard."""
    if shard.kind == "tfrecord":
        yield from iterate_records(tree.path_on_disk(shard.file), shard.what)
        return
    reader = _open_array_record(tree, shard)
    for start in range(0, count := reader.num_records(), _BATCH):
        stop = min(count, start + _BATCH)
        yield from zip(range(start, stop), _read_array_records(shard, reader, range(start, stop)), strict=True)


def _read_selected(tree: Tree, shard: _Shard, numbers: Sequence[int]) -> Iterator[bytes]:
    """The data of some records of a shard, in order."""
    if not numbers:
        return
    if shard.kind == "tfrecord":
        yield from read_records(tree.path_on_disk(shard.file), [shard.places[n] for n in numbers], numbers, shard.what)
        return
    reader = _open_array_record(tree, shard)
    for start in range(0, len(numbers), _BATCH):
        yield from _read_array_records(shard, reader, numbers[start : start + _BATCH])


def _open_array_record(tree: Tree, shard: _Shard) -> Any:
    try:
        from array_record.python.array_record_module import ArrayRecordReader  # type: ignore[import-not-found]
    except ImportError as error:
        raise InputError(
            f"{shard.what} is an ArrayRecord file, for which a library is missing: pip install array_record, or "
            "export it with --file_format=tfrecord."
        ) from error
    try:
        return ArrayRecordReader(str(tree.path_on_disk(shard.file)))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"{shard.what} cannot be read ({_first_line(error)}); copy the export again.") from error


def _read_array_records(shard: _Shard, reader: Any, numbers: Sequence[int]) -> list[bytes]:
    try:
        return reader.read(list(numbers))
    except (RuntimeError, ValueError, IndexError) as error:
        raise InputError(f"{shard.what} cannot be read ({_first_line(error)}); copy the export again.") from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


READERS = (Reader("tfds", recognises, open_tfds),)
