"""Whether a folder or its lists are another dataset's of the table than the one they are taken for.

Lists of paths and labels name no classes: those of one dataset can be read as another's that has as many images and no
fewer classes. What tells them apart are the folder's name, its manifest, and which labels occur how often.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s2a_bench.data.folder import MANIFEST, Manifest
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Dataset

_VALUES = {"dsprites_loc": (32, 16), "dsprites_ori": (40, 16)}
"""Values of the factor, each as frequent as the others, and the classes they are divided into (``arrays_big``)."""

_ENOUGH = 10_000
"""Images of a list whose shares of the classes are compared: made-up and shortened lists are smaller."""

_ARCHIVE = re.compile(r"(\.(zip|tar|tgz|tbz2|txz|gz|bz2|xz))+$")


def find_namesake(dataset: Dataset, name: str) -> Dataset | None:
    """The other dataset that a folder's or archive's name stands for; ``None``: none, or this one's name is in it.

    Of several names in one the longest counts: ``vtab_cifar100`` is named after cifar100, not after cifar.

    Args:
        dataset: What the folder is taken for.
        name: Without the folders above it, e.g. ``"dsprites_loc"``, ``"dSprites-loc.zip"``, ``"vtab_dsprites_loc"``.
    """
    words = _words(_ARCHIVE.sub("", name.lower()))
    named: dict[str, Dataset | None] = {}
    for other in datasets.DATASETS.values():
        if not other.embedded and other.name != dataset.name:
            named[_words(other.name)] = other
            # Other names may be everyday words ("real", "sun"): they must be the whole name, and of the same suite.
            named |= {
                _words(alias): other
                for alias in other.aliases
                if other.suite == dataset.suite and _words(alias) == words
            }
    named |= {_words(own): None for own in (dataset.name, *dataset.aliases)}
    return named.get(max((each for each in named if each in words), key=len, default=""))


def _words(name: str) -> str:
    """``" dsprites loc "`` for ``dSprites-loc``: names are compared word by word."""
    return f" {re.sub('[^a-z0-9]+', ' ', name.lower()).strip()} "


def find_by_counts(dataset: Dataset, counts: Mapping[str, int]) -> Dataset | None:
    """The other dataset of the suite whose lists have just as many images, all of them; ``None``: there is none."""
    for other in datasets.DATASETS.values():
        known = {name: other.count(name) for name in other.lists}
        if other.suite == dataset.suite and other.name != dataset.name and known == counts:
            return other
    return None


def find_fitting(dataset: Dataset, labels: Mapping[str, Sequence[int]]) -> Dataset | None:
    """The other dataset of the suite whose lists these are; ``None``: they may be this one's.

    Another dataset with the same counts of images fits if exactly its classes occur while some of this one's do not,
    or if the classes are distributed as its own are, where that is known.

    Args:
        dataset: What the lists are taken for.
        labels: Labels of some of its lists, the test list among them: the others are as long in every VTAB-1k dataset.
    """
    if dataset.lists.test not in labels:
        return None
    used = {label for each in labels.values() for label in each}
    for other in datasets.DATASETS.values():
        if other.embedded or other.name == dataset.name or other.suite != dataset.suite:
            continue
        if any(len(each) != other.count(name) for name, each in labels.items()):
            continue
        if len(used) < dataset.classes and used == set(range(other.classes)):
            return other
        if _is_distributed_as(other, dataset, labels[dataset.lists.test]):
            return other
    return None


def _is_distributed_as(other: Dataset, dataset: Dataset, labels: Sequence[int]) -> bool:
    """Whether the shares of the labels are clearly nearer to the other dataset's than to this one's."""
    if other.name not in _VALUES or dataset.name not in _VALUES or len(labels) < _ENOUGH:
        return False
    distance = {}
    for name in (other.name, dataset.name):
        values, classes = _VALUES[name]
        expected = np.bincount(np.arange(values) * classes // values, minlength=classes) / values
        distance[name] = np.abs(np.bincount(labels, minlength=classes) / len(labels) - expected).sum()
    return bool(2 * distance[other.name] < distance[dataset.name])


def explain_other_set(
    dataset: Dataset, folder: Path, manifest: Manifest | None, labels: Mapping[str, Sequence[int]]
) -> str | None:
    """Why a folder under the data root is not this dataset's, as a sentence without its full stop; ``None``: it may be.

    Args:
        dataset: The dataset whose name the folder bears.
        folder: The folder.
        manifest: Of the folder, if it has one.
        labels: As ``find_fitting``.
    """
    if manifest is not None and manifest.dataset != dataset.name:
        return (
            f"its {MANIFEST} describes {manifest.dataset!r}, not {dataset.name!r}; give the folder its own name back "
            f"and prepare {dataset.name}"
        )
    if manifest is not None and manifest.synthetic:
        return None  # Made-up lists are as long, and as even, as somebody wanted them.
    target = folder.resolve().name
    if manifest is None and target != folder.name and (other := find_namesake(dataset, target)):
        return f"it is a link to a folder {target!r}, which is named after {other.name}; prepare {dataset.name}"
    if other := find_fitting(dataset, labels):
        return (
            f"its lists are those of {other.name}, by their counts of images and how often each label occurs; prepare "
            f"{dataset.name}"
        )
    return None
