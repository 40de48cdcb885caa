"""Opens the source of a dataset: finds its reader, checks what it delivers and divides its images into lists."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from s2a_bench.data import splits
from s2a_bench.data.folder import FileInfo, compute_content_id, sha256
from s2a_bench.data.labels import find_folder_conflict
from s2a_bench.data.other_sets import find_by_counts
from s2a_bench.data.readers import noah, registry
from s2a_bench.data.readers import published_splits as split_files
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset, Preparation
from s2a_bench.data.verify import Progress
from s2a_bench.errors import InputError

Synthetic = Literal["", "miniature", "full"]


@dataclasses.dataclass(frozen=True)
class OpenedSource:
    """An opened source and its division into lists.

    Attributes:
        place: The path that was given.
        reader: Name of the reader, or form of own images.
        source: Its images; of the table's datasets none has been read yet.
        split: Their division.
        synthetic: Whether, and how, this package made the source.
        seed: Of the division.
        looked_at: What is known of images that were read and decoded already, all of those in a list or none.
        own: As in the manifest.
    """

    place: Path
    reader: str
    source: Source
    split: splits.Split
    synthetic: Synthetic
    seed: int = 0
    looked_at: Mapping[str, FileInfo] = dataclasses.field(default_factory=dict)
    own: Mapping[str, Any] | None = None

    @property
    def chosen(self) -> dict[str, SourceImage]:
        """The images that are in a list, by name."""
        return {item.name: item for items in self.split.lists.values() for item in items}


def describe_accepted_sources(dataset: Dataset, preparation: Preparation) -> str:
    """The accepted sources of a dataset, as part of an error sentence."""
    forms = [*preparation.archives]
    if preparation.folder:
        forms.append(f"{preparation.folder}/")
    own = f"{' or '.join(forms)}, or the folder that holds it" if forms else "the folder that holds the download"
    also = ", a VTAB-1k folder" if dataset.suite == "vtab" else ""
    return f"{own}{also}, a tensorflow_datasets or a Hugging Face hub directory (from {dataset.where})"


@contextlib.contextmanager
def open_source(
    dataset: Dataset,
    preparation: Preparation,
    place: Path,
    split: Path | None,
    synthetic: Synthetic,
    progress: Progress,
) -> Iterator[OpenedSource]:
    """Opens a source and divides it into lists; reads no image.

    Args:
        dataset: The dataset to prepare.
        preparation: Of that dataset.
        place: The source: an archive, or a folder.
        split: A published split, if one was given.
        synthetic: Whether this package made the source; the counts of a miniature are not checked.
        progress: Called with the step.

    Raises:
        InputError: No known format, a reader's own errors, or classes or counts that are not those of the dataset.
    """
    progress("looking into the source", 0, 0)
    with Tree(place, preparation.archives) as tree:
        reader = registry.find_reader(tree, dataset)
        if reader is None:
            accepted = describe_accepted_sources(dataset, preparation)
            others = noah.list_other_sets(tree, dataset)
            held = f" (it holds {', '.join(others)})" if others else ""
            raise InputError(f"{place} contains no known format of {dataset.name}{held}; give {accepted}.")
        source = reader.open(tree, dataset)
        _check_source(dataset, place, source)
        source = _apply_published_split(dataset, preparation, tree, source, split)
        if conflict := find_folder_conflict(((item.name, item.label) for item in source.images), dataset.classes):
            raise InputError(f"{place} contradicts itself: {conflict}; download it again.")
        chosen = splits.split_source(dataset, preparation, source)
        if synthetic != "miniature":
            _check_counts(dataset, place, chosen)
        yield OpenedSource(place, reader.name, source, chosen, synthetic, preparation.seed)


def _check_source(dataset: Dataset, place: Path, source: Source) -> None:
    """Checks what every reader must deliver: class count, unique names, labels in range."""
    if len(source.classes) != dataset.classes:
        raise InputError(
            f"{place} has {len(source.classes)} classes but {dataset.name} has {dataset.classes}; it is another set."
        )
    if not source.images:
        raise InputError(f"{place} holds no images of {dataset.name}; give the complete download.")
    seen: set[str] = set()
    for item in source.images:
        if item.name in seen:
            raise InputError(f"{place} holds {item.name} twice; download it again.")
        seen.add(item.name)
        check_name(place, item.name)
        if not 0 <= item.label < dataset.classes:
            raise InputError(
                f"{place}: {item.name} has label {item.label}; there are {dataset.classes} classes, counted from 0."
            )


def check_name(place: Path, name: str) -> None:
    """Refuses names that lists, manifests and records, which are text, could not hold."""
    try:
        name.encode("utf-8")
    except UnicodeEncodeError as error:
        raw = os.fsencode(name)
        raise InputError(
            f"{place} holds an image whose name is not UTF-8, {raw!r}; rename it, for example with the tool convmv."
        ) from error
    if "\n" in name or "\r" in name:
        raise InputError(f"{place} holds an image whose name has a line break in it, {name!r}; rename it.")


def _apply_published_split(
    dataset: Dataset, preparation: Preparation, tree: Tree, source: Source, given: Path | None
) -> Source:
    """The source with the lists and labels of a published split, if one was given or lies in it."""
    kind = preparation.splits
    if given is None:
        found = split_files.find_split(tree) if kind else None
        if found is None:
            return source
        given = found
    elif not kind:
        raise InputError(f"{dataset.name} takes no split file: its lists follow from its source alone.")
    split = split_files.read_split(given, kind, dataset, source)
    labels = split.labels
    items = tuple(dataclasses.replace(item, label=labels[item.name]) for item in source.images if item.name in labels)
    renamed: dict[str, str] = dict(zip(("train", "val", "test"), dataset.lists[:2] + dataset.lists[3:], strict=True))
    return dataclasses.replace(
        source,
        images=items,
        classes=split.classes,
        lists={renamed[name]: names for name, names in split.lists.items()},
        split_id=split.split_id,
        note=" ".join(filter(None, (f"The lists of {given.name}.", split.note, source.note))),
    )


def _check_counts(dataset: Dataset, place: Path, split: splits.Split) -> None:
    for name, items in split.lists.items():
        expected = dataset.count(name)
        if expected is not None and len(items) != expected:
            counts = {each: len(found) for each, found in split.lists.items()}
            if other := find_by_counts(dataset, counts):
                advice = f"these are the counts of {other.name}, so prepare {other.name} from it."
            else:
                advice = "some images are missing or added, so download it again."
            raise InputError(
                f"{place} gives {len(items)} images for {name}.txt but {dataset.name} has {expected}; {advice}"
            )


def compute_source_id(opened: OpenedSource, hashes: dict[str, str]) -> str:
    """16 hex digits over what the source lists and the content of the chosen images, however they were packed."""
    index = sorted((item.name.lower(), item.label, item.part) for item in opened.source.images)
    return compute_content_id(
        {"index": sha256(json.dumps(index).encode())}, {name.lower(): digest for name, digest in hashes.items()}
    )


def read_chosen(opened: OpenedSource, progress: Progress, what: str) -> Iterator[tuple[SourceImage, bytes]]:
    """Yields the content of every chosen image once.

    Raises:
        InputError: The source did not deliver one of them.
    """
    chosen = opened.chosen
    left = set(chosen)
    for name, data in opened.source.read(frozenset(chosen)):
        if name in left:
            left.remove(name)
            yield chosen[name], data
            progress(what, len(chosen) - len(left), len(chosen))
    if left:
        raise InputError(
            f"{opened.place} does not give {min(left)} ({len(left)} images are missing); download it again."
        )
