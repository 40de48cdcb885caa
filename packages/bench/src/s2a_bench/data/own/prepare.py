"""Prepares own images: reads what lies there, looks at it, divides it, and writes the standard folder."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

from s2a_bench.data.folder import FileInfo, ListedImage, parse_list, sha256
from s2a_bench.data.open_source import OpenedSource, compute_source_id
from s2a_bench.data.own.checks import check_images, check_listing, drop_faulty
from s2a_bench.data.own.inspect import Look, look_at_images
from s2a_bench.data.own.lists import Division, divide_images, find_drawn
from s2a_bench.data.own.open import open_own
from s2a_bench.data.own.options import OwnOptions, check_options
from s2a_bench.data.own.read import OwnSource
from s2a_bench.data.prepare import build_folder, check_intact, is_taken, read_existing, reserve_target
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.readers.walk import path_exists
from s2a_bench.data.splits import RULES_VERSION, Split
from s2a_bench.data.table.own import NAME_PATTERN, OWN, TAKEN_NAMES, own_dataset
from s2a_bench.data.table.types import PLAIN_LISTS, Dataset, make_counts
from s2a_bench.data.verify import Progress
from s2a_bench.errors import InputError, Mistakes

__all__ = ["OwnOptions", "check_name", "prepare_own"]

_DEFAULTS = OwnOptions()


def prepare_own(
    name: str, source: Path, root: Path, options: OwnOptions = _DEFAULTS, progress: Progress | None = None
) -> Path:
    """Makes ``<root>/<name>``, a dataset of suite ``own``, from the user's own images.

    All that is wrong with the images is found before anything is written. The folder is built beside its place,
    verified and renamed: it is there whole or not at all. Where it is there already, made from the same images with the
    same options, nothing is done.

    Args:
        name: Of the dataset: 1 to 64 of ``A-Za-z0-9._-``, a letter or digit first; no name of the table.
        source: A folder of class folders, with or without train, val and test above them; an archive of it; a table
            (CSV, TSV, Parquet) of paths and class names; a Hugging Face dataset.
        root: Data root; made if need be.
        options: How they are read and divided.
        progress: Called with each step, and with notes, which begin with ``"note: "``.

    Returns:
        The dataset's folder.

    Raises:
        InputError: What is wrong, each mistake in a sentence; or another process is preparing the same dataset there.
    """
    progress = progress or _ignore_progress
    source, root = Path(source), Path(root)
    mistakes = Mistakes()
    with mistakes.collecting():
        check_name(name)
    with mistakes.collecting():
        check_options(options)
    if not path_exists(source):
        mistakes.add(InputError(f"There is nothing at {source}; give a folder, a table or an archive of images."))
    elif _lies_in(root / name, source):
        mistakes.add(
            InputError(f"Data folder {root} lies in {source}, whose images it would then hold too; give another one.")
        )
    mistakes.raise_all()
    progress("looking into the source", 0, 0)
    with open_own(source, options) as found:
        drawn = find_drawn(found, options)
        check_listing(found, drawn, options)
        if is_taken(root / name):
            _check_prepared(name, found, root / name, options, progress)
            return root / name
        opened = _open(found, drawn, options, progress)
        with reserve_target(name, root) as target:
            if is_taken(target):
                raise InputError(f"Another process has just prepared {target}; run the command again to compare them.")
            in_place = options.in_place and _can_stay(opened)
            if options.in_place and not in_place:
                progress(
                    "note: The images are copied: they are no files in a folder, or a path of theirs cannot be listed.",
                    1,
                    1,
                )
            return build_folder(_make_row(name, opened), opened, target, progress, in_place=in_place)


def check_name(name: str) -> None:
    """Refuses a name that cannot be an own dataset's.

    Raises:
        InputError: It has other characters, or is one of the table.
    """
    if not NAME_PATTERN.fullmatch(name):
        raise InputError(
            f"{name!r} cannot name a dataset: give 1 to 64 letters, digits, '.', '_' and '-', a letter or digit first."
        )
    if name.lower() in {taken.lower() for taken in TAKEN_NAMES}:
        raise InputError(f"{name!r} is a name of the table of datasets; give your own images another one.")


def _ignore_progress(what: str, done: int, total: int) -> None:
    pass


def _lies_in(target: Path, source: Path) -> bool:
    own, place = target.resolve(), source.resolve()
    return place.is_dir() and own.is_relative_to(place)


def _open(found: OwnSource, drawn: tuple[str, ...], options: OwnOptions, progress: Progress) -> OpenedSource:
    """Looks at the images and divides them; says what is worth knowing."""
    looks = look_at_images(found, options.near_duplicates, progress)
    left, skipped = drop_faulty(found, looks, options)
    if skipped:
        check_listing(left, drawn, options)
    notes = [*left.notes, *check_images(left, looks)]
    division = divide_images(left, looks, drawn, options)
    for note in (*notes, *division.notes):
        progress(f"note: {note}", 1, 1)
    return _make_opened(left, division, looks, skipped, options)


def _make_opened(
    found: OwnSource,
    division: Division,
    looks: dict[str, Look],
    skipped: list[dict[str, str]],
    options: OwnOptions,
) -> OpenedSource:
    source = _make_source(found)
    items = {item.name: item for item in source.images}
    by_part = {part: [items[name] for name in names] for part, names in division.parts.items()}
    both = [*by_part["train"], *by_part["val"]]
    lists = dict(zip(PLAIN_LISTS, (by_part["train"], by_part["val"], both, by_part["test"]), strict=True))
    split_id = f"own-seed{options.seed}-v{RULES_VERSION}" if division.drawn else f"own-given-v{RULES_VERSION}"
    labels = {item.name: item.label for item in source.images}
    return OpenedSource(
        place=Path(os.path.abspath(found.place)),  # noqa: PTH100 - for its name, which "." has not
        reader=OWN,
        source=source,
        split=Split({name: tuple(items) for name, items in lists.items()}, split_id, division.describe(skipped)),
        synthetic="",
        seed=options.seed,
        looked_at={
            name: FileInfo(looks[name].sha256, looks[name].bytes, name, label) for name, label in labels.items()
        },
        own={
            "format": found.form,
            "fractions": {"val": options.val, "test": options.test},
            "drawn": list(division.drawn),
            "near_duplicates": division.near_duplicates,
            "grouped_by": options.group_column,
            "skipped": skipped,
            "options": dataclasses.asdict(options),
            "groups": _hash_groups(found),
        },
    )


def _make_source(found: OwnSource) -> Source:
    labels = {name: label for label, name in enumerate(found.classes)}
    images = tuple(SourceImage(image.name, labels[image.label], image.part or "") for image in found.images)

    def read(names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        for name, data in found.read(names):
            if isinstance(data, InputError):
                raise data
            yield name, data

    return Source(images, found.classes, read, base=found.base)


def _hash_groups(found: OwnSource) -> str:
    """Tells other groups apart; ``""``: the source has none."""
    pairs = sorted((image.name, image.group) for image in found.images if image.group is not None)
    return sha256(repr(pairs).encode("utf-8", "backslashreplace"))[:16] if pairs else ""


def _make_row(name: str, opened: OpenedSource) -> Dataset:
    lists = opened.split.lists
    return Dataset(
        name=name,
        suite=OWN,
        group=OWN,
        classes=len(opened.source.classes),
        counts=make_counts(*(len(lists[each]) for each in (PLAIN_LISTS.train, PLAIN_LISTS.val, PLAIN_LISTS.test))),
        source=opened.place.name,
        licence="yours",
        where="your own images",
        class_names=opened.source.classes,
    )


def _can_stay(opened: OpenedSource) -> bool:
    """Whether the images are files under one folder and each path can stand in a list."""
    return opened.source.base is not None and all(
        next(iter(parse_list(f"{item.name} 0\n", 1)), None) == ListedImage(item.name, 0, 1)
        for item in opened.source.images
    )


def _check_prepared(name: str, found: OwnSource, target: Path, options: OwnOptions, progress: Progress) -> None:
    """Refuses a folder that is there already, unless the same images with the same options give it.

    Images are hashed and not decoded: those that hash to what the manifest says were decoded when it was written.
    """
    manifest = read_existing(target)
    if manifest.own is None:
        raise InputError(f"{target} was not made of own images; give another name or another data folder.")
    again = "delete it, or give another name or another data folder"
    known = manifest.own.get("options")
    if not isinstance(known, dict):
        raise InputError(f"{target} was made by another version of this package; {again}.")
    if other := [key for key, value in dataclasses.asdict(options).items() if known.get(key) != value]:
        told = ", ".join(f"{key.replace('_', '-')} {known.get(key)} and not {getattr(options, key)}" for key in other)
        raise InputError(f"{target} was prepared with {told}; {again}.")
    hashes: dict[str, str] = {}
    for each, data in found.read([image.name for image in found.images]):
        hashes[each] = "" if isinstance(data, InputError) else sha256(data)
        progress("comparing with the source", len(hashes), len(found.images))
    skipped = {each["image"]: each["sha256"] for each in manifest.own.get("skipped", [])}
    left = [image for image in found.images if skipped.get(image.name) != hashes.get(image.name)]
    made = (manifest.source_id, manifest.classes, manifest.own.get("format"), manifest.own.get("groups"))
    if set(found.unread) - set(skipped) or made != _identify(dataclasses.replace(found, images=tuple(left)), hashes):
        raise InputError(
            f"{target} was prepared from other images ({manifest.source}) than {found.place} now holds; {again}."
        )
    check_intact(own_dataset(name, target.parent), target, progress, {info.sha256 for info in manifest.files.values()})
    progress("already prepared and intact; nothing to do", 1, 1)


def _identify(found: OwnSource, hashes: dict[str, str]) -> tuple[object, ...]:
    """What decides the prepared folder, besides the options."""
    source = _make_source(found)
    opened = OpenedSource(found.place, OWN, source, Split({}, "", ""), "")
    chosen = {item.name: hashes.get(item.name, "") for item in source.images}
    return compute_source_id(opened, chosen), found.classes, found.form, _hash_groups(found)
