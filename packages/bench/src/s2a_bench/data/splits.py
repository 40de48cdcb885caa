"""Divides the images of a source into lists, by the rule that the table of datasets gives.

A list depends on the names, labels and parts of the images alone: it is the same on every machine, with every library
version, and however the source is packed. Where a rule needs a random order, images are sorted by

    ``sha256("s2a <purpose> <seed> <folder in lower case>/<file>")``

in hexadecimal, so that adding or removing an image leaves the order of the others unchanged.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence

from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.readers.tfds_order import stored_order
from s2a_bench.data.table.types import Dataset, FractionRule, OfficialRule, PoolRule, Preparation, SliceRule
from s2a_bench.errors import InputError

RULES_VERSION = 1
"""Part of split ids. Raise it when the same source would give other lists."""

_TFDS_SPLITS = {"": "train", "train": "train", "val": "validation", "test": "test"}

_HASHED = (
    "VTAB-1k takes slices of tensorflow_datasets' stored order, which cannot be rebuilt from this source alone. The "
    "lists here use the same slices over an order fixed by hashes of the file names; they are not the images of other "
    "VTAB-1k folders."
)
_REBUILT = (
    "VTAB-1k's slices of tensorflow_datasets' stored order, which was rebuilt from the keys that its published code "
    "gives to these images; no tensorflow_datasets was run on them."
)
_STORED = "VTAB-1k's slices of tensorflow_datasets' stored order, as exported."
_HELD_OUT = "The source has no validation part: {share:g} of each class's training images, chosen by hash, are it."
_OFFICIAL = "The parts that its makers published."
_DRAWN = (
    "The source has no parts: {train:g} and {val:g} of each class's images are train and val and the rest is test, "
    "rounded as CoOp does it, in an order fixed by hashes of the file names; not CoOp's own draw."
)


@dataclasses.dataclass(frozen=True)
class Split:
    """The lists of a dataset.

    Attributes:
        lists: Images per list, in the order of the list's lines.
        split_id: Names the rule or files that chose them.
        note: What a reader of results must know about them.
    """

    lists: Mapping[str, tuple[SourceImage, ...]]
    split_id: str
    note: str


def split_source(dataset: Dataset, preparation: Preparation, source: Source) -> Split:
    """Divides a source into the dataset's four lists.

    Args:
        dataset: Gives the names of the lists.
        preparation: Gives the rule and the seed.
        source: The images to divide.

    Raises:
        InputError: Too few images for the rule.
    """
    if source.lists is not None:
        return _use_given_lists(dataset, source)
    match preparation.rule:
        case SliceRule() as rule:
            train, val, test, split_id, note = _split_by_slices(dataset, preparation, rule, source)
        case PoolRule() as rule:
            train, val, test = _split_by_pool(preparation, rule, source)
            split_id, note = _own_split_id(preparation), _HASHED
        case OfficialRule() as rule:
            train, val, test, held = _split_by_parts(dataset, preparation, rule, source)
            split_id = f"official+{_own_split_id(preparation)}" if held else "official"
            note = f"{_OFFICIAL} {_HELD_OUT.format(share=rule.val)}" if held else _OFFICIAL
        case FractionRule() as rule:
            train, val, test = _split_by_fractions(preparation, rule, source)
            split_id, note = _own_split_id(preparation), _DRAWN.format(train=rule.train, val=rule.val)
    parts = (train, val, [*train, *val], test)
    lists = {name: tuple(items) for name, items in zip(dataset.lists, parts, strict=True)}
    return Split(lists, split_id, f"{note} {source.note}".strip())


def _own_split_id(preparation: Preparation) -> str:
    """Id of lists that were drawn here: ``s2a-seed0-v1``."""
    return f"s2a-seed{preparation.seed}-v{RULES_VERSION}"


def _use_given_lists(dataset: Dataset, source: Source) -> Split:
    """Uses the lists that came with the source; a missing ``both`` is train and val together."""
    assert source.lists is not None
    items = {item.name: item for item in source.images}
    lists = {name: tuple(items[n] for n in names) for name, names in source.lists.items()}
    names = dataset.lists
    if names.both not in lists and names.train in lists and names.val in lists:
        lists[names.both] = (*lists[names.train], *lists[names.val])
    for name in names:
        if name not in lists:
            raise InputError(f"The split given for {dataset.name} has no list {name!r}; it needs {', '.join(names)}.")
    return Split({name: lists[name] for name in names}, source.split_id, source.note)


def _hash_order(preparation: Preparation, purpose: str) -> Callable[[SourceImage], str]:
    """A sort key for a random order: the hash of purpose, seed and name, see the module."""

    def draw(item: SourceImage) -> str:
        folder, slash, file = item.name.rpartition("/")
        return hashlib.sha256(f"s2a {purpose} {preparation.seed} {folder.lower()}{slash}{file}".encode()).hexdigest()

    return draw


def _split_by_slices(
    dataset: Dataset, preparation: Preparation, rule: SliceRule, source: Source
) -> tuple[Sequence[SourceImage], Sequence[SourceImage], Sequence[SourceImage], str, str]:
    """VTAB-1k's rule: slices of the stored order of tensorflow_datasets (``SliceRule``).

    With ``n_val`` images in the part that val is taken from, and ``n_test`` in that of test::

        train = train_part[0 : train]
        val   = val_part[s : s + val],  s = floor(val_from * n_val)
        test  = test_part[round(test_from * n_test) : n_test]

    The stored order is that of the source where it is an export of tensorflow_datasets, is rebuilt from the keys of
    the images where these are known (``tfds_order.stored_order``), and is replaced by a random order otherwise. The
    split id says which.

    Source: https://github.com/google-research/task_adaptation/tree/master/task_adaptation/data

    Returns:
        Train, val, test, the split id and its note.
    """
    # 1. The images of each part; a source without parts has one part, train.
    by_part: dict[str, list[SourceImage]] = {}
    for item in source.images:
        by_part.setdefault(item.part, []).append(item)
    if set(by_part) == {""}:
        by_part = {"train": by_part[""]}
    # 2. Put each part into stored order, or the nearest thing that this source allows.
    split_id, note = "vtab-1k", _STORED
    if not source.ordered:
        if all(item.key is not None for item in source.images):
            split_id, note = f"vtab-1k-rebuilt-v{RULES_VERSION}", _REBUILT
            for each, items in by_part.items():
                order = stored_order(
                    [item.key for item in items if item.key is not None], _tfds_split_name(source, each)
                )
                by_part[each] = [items[i] for i in order]
        else:
            split_id, note = _own_split_id(preparation), _HASHED
            by_part = {each: sorted(items, key=_hash_order(preparation, "order")) for each, items in by_part.items()}

    def part(name: str) -> list[SourceImage]:
        if name not in by_part:
            raise InputError(f"The source of {dataset.name} has no {name} images; give the complete download.")
        return by_part[name]

    # 3. Cut the slices. Train and val may come from one part, where they must not overlap.
    train_part, val_part, test_part = part(rule.train_part), part(rule.val_part), part(rule.test_part)
    start = int(rule.val_from * len(val_part))
    train, val = train_part[: rule.train], val_part[start : start + rule.val]
    test = test_part[round(rule.test_from * len(test_part)) :]
    overlap = rule.train_part == rule.val_part and start < rule.train
    if len(train) < rule.train or len(val) < rule.val or overlap:
        raise InputError(
            f"The source of {dataset.name} has {len(train_part)} {rule.train_part} and {len(val_part)} {rule.val_part} "
            f"images, too few for {rule.train} and {rule.val} of them; give the complete download."
        )
    return train, val, test, split_id, note


def _tfds_split_name(source: Source, part: str) -> str:
    return source.salts.get(part, _TFDS_SPLITS[part])


def _group_by_class(source: Source, items: Sequence[SourceImage]) -> list[list[SourceImage]]:
    """Images per label, in their given order."""
    found: list[list[SourceImage]] = [[] for _ in source.classes]
    for item in items:
        found[item.label].append(item)
    return found


def _split_by_pool(
    preparation: Preparation, rule: PoolRule, source: Source
) -> tuple[list[SourceImage], list[SourceImage], list[SourceImage]]:
    """VTAB-1k's rule for Caltech101 (``PoolRule``): stratified pool, slices of it, everything else is test.

    Of each class the first ``per_class`` images in random order form the pool. The pool is shuffled as a whole and
    sliced into train and val, so that single classes may be absent from them; the rest is shuffled into test.
    """
    pool: list[SourceImage] = []
    rest: list[SourceImage] = []
    for name, items in zip(source.classes, _group_by_class(source, source.images), strict=True):
        if len(items) < rule.per_class:
            state = f"has {len(items)} images" if items else "is missing"
            raise InputError(f"Class {name!r} {state} in the source; at least {rule.per_class} are needed.")
        # Which images of the class are in the pool.
        items.sort(key=_hash_order(preparation, "class"))
        pool += items[: rule.per_class]
        rest += items[rule.per_class :]
    # Mix the classes before slicing.
    pool.sort(key=_hash_order(preparation, "pool"))
    rest.sort(key=_hash_order(preparation, "test"))
    return pool[slice(*rule.train)], pool[slice(*rule.val)], rest


def _split_by_parts(
    dataset: Dataset, preparation: Preparation, rule: OfficialRule, source: Source
) -> tuple[list[SourceImage], list[SourceImage], list[SourceImage], bool]:
    """The source's own train, val and test (``OfficialRule``).

    Without a val part, a stratified one is held out: of each class with ``n`` training images the first
    ``round(val * n)`` in random order. Both lists keep the source's order.

    Returns:
        Train, val, test, and whether val was held out.
    """
    parts = {name: [item for item in source.images if item.part == name] for name in ("train", "val", "test")}
    for name in ("train", "test"):
        if not parts[name]:
            raise InputError(f"The source of {dataset.name} has no {name} images; give the complete download.")
    if parts["val"]:
        return parts["train"], parts["val"], parts["test"], False
    held: set[str] = set()
    for items in _group_by_class(source, parts["train"]):
        items.sort(key=_hash_order(preparation, "val"))
        held.update(item.name for item in items[: round(rule.val * len(items))])
    train = [item for item in parts["train"] if item.name not in held]
    val = [item for item in parts["train"] if item.name in held]
    if not val:
        raise InputError(f"The source of {dataset.name} has too few training images to hold {rule.val:g} of them out.")
    return train, val, parts["test"], True


def _split_by_fractions(
    preparation: Preparation, rule: FractionRule, source: Source
) -> tuple[list[SourceImage], list[SourceImage], list[SourceImage]]:
    """CoOp's rule for sources without parts (``FractionRule``), stratified.

    Of each class with ``n`` images, in random order, the first ``round(train * n)`` are train, the next
    ``round(val * n)`` are val and the others test.

    Source: https://github.com/KaiyangZhou/CoOp/blob/main/datasets/dtd.py (``read_and_split_data``)
    """
    train: list[SourceImage] = []
    val: list[SourceImage] = []
    test: list[SourceImage] = []
    for name, items in zip(source.classes, _group_by_class(source, source.images), strict=True):
        items.sort(key=_hash_order(preparation, "class"))
        first, second = round(len(items) * rule.train), round(len(items) * rule.val)
        if not (first and second and len(items) > first + second):
            raise InputError(f"Class {name!r} has {len(items)} images in the source, too few to be divided in three.")
        train += items[:first]
        val += items[first : first + second]
        test += items[first + second :]
    return train, val, test
