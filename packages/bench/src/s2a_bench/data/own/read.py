"""Own images as they lie there: which there are, of which class and part, and how their content is read."""

from __future__ import annotations

import dataclasses
import unicodedata
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path

from s2a_bench.data.readers.tree import Tree
from s2a_bench.errors import InputError

PART_NAMES = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
"""Names of the three parts as people write them, in lower case."""

SHOWN = 3
"""Examples that a sentence names."""


@dataclasses.dataclass(frozen=True, slots=True)
class OwnImage:
    """One image.

    Attributes:
        name: Unique in the source, with ``/`` between its parts: its path, or where it has none its row.
        label: Name of its class.
        part: ``"train"``, ``"val"`` or ``"test"``; ``None``: the source does not say.
        group: Value of the group column; ``None``: there is none.
    """

    name: str
    label: str
    part: str | None = None
    group: str | None = None


ReadImages = Callable[[Collection[str]], Iterator[tuple[str, bytes | InputError]]]
"""From names of images to ``(name, content)``, each once, in any order; an error where one cannot be read."""


@dataclasses.dataclass(frozen=True)
class OwnSource:
    """What lies there.

    Attributes:
        place: The path that was given.
        form: ``"class folders"``, ``"split folders"``, ``"table"`` or ``"hub"``.
        images: All images, sorted as the source has them.
        classes: Class names in label order.
        read: Reads their content.
        base: The folder under which every image's name is a file; ``None``: they are in an archive or a table.
        unread: Images of formats that are not read here, by name with their class.
        notes: What the user should know, in sentences.
    """

    place: Path
    form: str
    images: tuple[OwnImage, ...]
    classes: tuple[str, ...]
    read: ReadImages
    base: Path | None = None
    unread: Mapping[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def given(self) -> frozenset[str]:
        """The parts that the source itself has."""
        return frozenset(image.part for image in self.images if image.part is not None)


def order_classes(labels: Iterable[str]) -> tuple[str, ...]:
    """Class names in label order: sorted as text, or by value where all are whole numbers."""
    names = set(labels)
    if all(name.isascii() and name.isdigit() for name in names):
        return tuple(sorted(names, key=lambda name: (int(name), name)))
    return tuple(sorted(names))


def find_lookalikes(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Names that differ only in upper and lower case, in space around them or in how their letters are encoded."""
    found: dict[str, list[str]] = {}
    for name in names:
        found.setdefault(unicodedata.normalize("NFKC", name).casefold().strip(), []).append(name)
    return [tuple(several) for several in found.values() if len(several) > 1]


def make_tree_reader(tree: Tree, prefix: str = "") -> ReadImages:
    """Reads images by their path in a tree, without the prefix that all of them have there."""

    def read(names: Collection[str]) -> Iterator[tuple[str, bytes | InputError]]:
        if tree.folder is None:  # in an archive, whose order matters; one that is broken is so as a whole
            for path, data in tree.read_many(prefix + name for name in names):
                yield path.removeprefix(prefix), data
            return
        for name in names:
            try:
                yield name, tree.read(name)
            except InputError as error:
                yield name, error

    return read


def name_some(names: Collection[str], shown: int = SHOWN) -> str:
    """``a, b, c and 4 more``."""
    first = [repr(name) if _is_odd(name) else name for name in list(names)[:shown]]
    return ", ".join(first) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def _is_odd(name: str) -> bool:
    return not name or not name.isprintable() or name != name.strip()


def count_images(number: int) -> str:
    """``1 image``, ``7 images``."""
    return f"{number:,} image{'s' * (number != 1)}"
