"""How many images a made-up source has, so that the real rules give the real lists; and making it."""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from pathlib import Path

from s2a_bench.data.synthetic import pictures
from s2a_bench.data.table.types import Dataset, FractionRule, OfficialRule, PoolRule, SliceRule
from s2a_bench.errors import InputError

Plan = Mapping[str, tuple[int, ...]]
"""Part of the source (``""``: it has none) -> images per class."""

Maker = Callable[[Dataset, Path, Plan, int], None]

_MODULES = ("arrays", "clevr", "folders", "listed", "retinopathy", "tfds")
_PARTLESS = ("class_folders", "dsprites")


def load_makers() -> dict[str, Maker]:
    """What makes a source, by the name of the reader that reads it."""
    found: dict[str, Maker] = {}
    for name in _MODULES:
        found |= importlib.import_module(f"s2a_bench.data.synthetic.{name}").MAKERS
    return found


def make_source(
    dataset: Dataset,
    place: Path,
    seed: int = 0,
    full: bool = False,
    progress: Callable[[str, int, int], None] | None = None,
) -> None:
    """Writes a dataset's source, in its makers' form and with made-up images, into an empty folder.

    Args:
        dataset: With a preparation.
        place: Where; it exists.
        seed: The same seed gives the same bytes.
        full: As many test images (and, outside VTAB-1k, training images) as the real one has.
        progress: Called with the step, the number of pictures drawn, and 0 (an image may take several pictures).

    Raises:
        InputError: A dataset that has no source.
    """
    if dataset.preparation is None:
        raise InputError(f"Dataset {dataset.name!r} is embedded in the package; it has no source to make up.")
    sizes = plan_counts(dataset, full)
    what = f"making up a source of {sum(map(sum, sizes.values())):,} images: pictures drawn"
    with pictures.count_pictures(lambda count: progress(what, count, 0) if progress else None):
        load_makers()[dataset.preparation.reader](dataset, place, sizes, seed)


def plan_counts(dataset: Dataset, full: bool = False) -> dict[str, tuple[int, ...]]:
    """Images per part and class from which the dataset's rule gives its lists.

    Args:
        dataset: With a preparation.
        full: With the table's counts; otherwise VTAB-1k keeps its 800 and 200 images and all else is as small as the
            rule allows, every class being there.
    """
    assert dataset.preparation is not None
    classes, wanted = dataset.classes, dataset.counts
    small = max(2 * classes, 64)
    match dataset.preparation.rule:
        case SliceRule() as rule:
            test = wanted.test if full and wanted.test else small
            sizes = _plan_slices(rule, test)
        case PoolRule() as rule:
            total = classes * rule.per_class + (wanted.test or 0) if full else classes * (rule.per_class + 2)
            sizes = {"": total}
        case FractionRule() as rule:
            whole = (wanted.both or 0) + (wanted.test or 0)
            each = _fit_class_sizes(classes, whole, {rule.train: wanted.train or 0, rule.val: wanted.val or 0})
            return _divide_into_parts(dataset, each if full else (10,) * classes)
        case OfficialRule() as rule:
            return _plan_official(dataset, rule, full)
    if dataset.preparation.reader in _PARTLESS:
        sizes = {"": sum(sizes.values())}
    return {part: _distribute_evenly(classes, n) for part, n in sizes.items()}


def _distribute_evenly(classes: int, n: int) -> tuple[int, ...]:
    return tuple(n // classes + (i < n % classes) for i in range(classes))


def _plan_slices(rule: SliceRule, test: int) -> dict[str, int]:
    if rule.test_part == rule.train_part:
        images = max(
            rule.train / rule.val_from, rule.val / (rule.test_from - rule.val_from), test / (1 - rule.test_from)
        )
        return {"train": math.ceil(images - 1e-6)}
    if rule.val_part == rule.test_part:
        return {"train": rule.train, "test": max(2 * rule.val, round(test / (1 - rule.test_from)))}
    if rule.val_part == rule.train_part:
        images = max(rule.train / rule.val_from, rule.val / (1 - rule.val_from))
        return {"train": math.ceil(images - 1e-6), "test": test}
    return {"train": rule.train, "val": rule.val, "test": test}


def _plan_official(dataset: Dataset, rule: OfficialRule, full: bool) -> dict[str, tuple[int, ...]]:
    assert dataset.preparation is not None
    classes, wanted = dataset.classes, dataset.counts
    own_val = dataset.preparation.reader == "flowers102"
    if full:
        if own_val:
            sizes = {"train": wanted.train or 0, "val": wanted.val or 0, "test": wanted.test or 0}
            return {part: _distribute_evenly(classes, n) for part, n in sizes.items()}
        targets = {rule.val: wanted.val} if wanted.val else {}
        return {
            "train": _fit_class_sizes(classes, wanted.both or 0, targets),
            "test": _distribute_evenly(classes, wanted.test or 0),
        }
    if own_val:
        return dict.fromkeys(("train", "val", "test"), (2,) * classes)
    enough = math.ceil(1 / rule.val)  # one image of the first class is held out, if of no other
    train = (enough,) * classes if classes * enough <= 5000 else (enough,) + (2,) * (classes - 1)
    return {"train": train, "test": (2,) * classes}


def _divide_into_parts(dataset: Dataset, each: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """Images per class as the source's own parts have them, where a rule looks at no parts: DTD's thirds, Pets."""
    assert dataset.preparation is not None
    if dataset.preparation.reader == "dtd":
        first = tuple(n // 3 for n in each)
        return {"train": first, "val": first, "test": tuple(n - 2 * (n // 3) for n in each)}
    return {"": each}


def _fit_class_sizes(classes: int, total: int, targets: Mapping[float, int]) -> tuple[int, ...]:
    """Class sizes that add up to ``total`` and whose rounded fractions add up to the targets."""
    sizes = list(_distribute_evenly(classes, total))

    def miss() -> int:
        return sum(abs(sum(round(n * share) for n in sizes) - want) for share, want in targets.items())

    step, best = 1, miss()
    while best and step < 12:
        for i in range(classes):
            for j in range(classes):
                if i == j or sizes[j] <= step + 9:
                    continue
                sizes[i] += step
                sizes[j] -= step
                if miss() < best:
                    best, step = miss(), 0
                    break
                sizes[i] -= step
                sizes[j] += step
            if step == 0:
                break
        step += 1
    if best:
        raise AssertionError(f"no class sizes for {total} images in {classes} classes give {dict(targets)}")
    return tuple(sizes)
