"""Types of an opened download: its images with their labels, and a function that reads their content."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from s2a_bench.data.readers.tree import Tree
    from s2a_bench.data.table.types import Dataset


@dataclasses.dataclass(frozen=True, slots=True)
class SourceImage:
    """One image of a source, without its content.

    Attributes:
        name: Unique in the source, the same however the source is packed, with an image's suffix:
            ``"beaver/image_0001.jpg"``, ``"train/000017.png"``.
        label: From 0.
        part: The source's own part: ``"train"``, ``"val"`` or ``"test"``; ``""`` where it has none.
        key: tensorflow_datasets' key of the example, which decides its position in stored order; ``None``: unknown.
    """

    name: str
    label: int
    part: str = ""
    key: str | int | bytes | None = None


@dataclasses.dataclass(frozen=True)
class Source:
    """An opened download.

    Attributes:
        images: Every image, in the source's own order.
        classes: Names in label order.
        read: From names of images to ``(name, content of the image file)``, each once, in any order. The content is the
            source's own where it holds image files, and PNG where it holds arrays.
        ordered: Whether the images of each part are in tensorflow_datasets' stored order already.
        salts: tensorflow_datasets' name of a part, where it is not "train", "validation" or "test".
        lists: Lists that come with the source, by file name without suffix, as names of images; they replace any rule.
        split_id: Identity of those lists.
        base: The folder under which every image's name is a file, where the source may be used in place.
        lossy: Whether images were re-encoded with loss after their makers published them.
        note: What users of results must know.
    """

    images: tuple[SourceImage, ...]
    classes: tuple[str, ...]
    read: Callable[[frozenset[str]], Iterator[tuple[str, bytes]]]
    ordered: bool = False
    salts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    lists: Mapping[str, tuple[str, ...]] | None = None
    split_id: str = ""
    base: Path | None = None
    lossy: bool = False
    note: str = ""


@dataclasses.dataclass(frozen=True)
class Reader:
    """Reads one format of downloads.

    Attributes:
        name: Key in ``registry.load_readers()``.
        recognises: Whether a tree of files has this format, judged by names alone.
        open: Opens the images of one dataset of the table.
    """

    name: str
    recognises: Callable[[Tree, Dataset], bool]
    open: Callable[[Tree, Dataset], Source]
