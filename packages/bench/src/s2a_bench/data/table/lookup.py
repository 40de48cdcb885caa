"""Looks up suites and datasets by name: those of the table (``rows.py``), and own ones under a data root."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from s2a_bench.data.table.own import OWN, how_to_prepare, own_dataset, own_datasets
from s2a_bench.data.table.rows import TABLE
from s2a_bench.data.table.types import Counts, Dataset, Suite
from s2a_bench.errors import InputError, unknown

__all__ = [
    "DATASETS",
    "OWN",
    "SUITES",
    "Counts",
    "Dataset",
    "Suite",
    "check_images",
    "default_datasets",
    "find_dataset",
    "get_dataset",
    "get_suite",
    "own_datasets",
]

DATASETS: dict[str, Dataset] = {entry.name: entry for entry in TABLE}
"""Every dataset of the table by name."""


def _make_suite(
    name: str,
    description: str,
    defaults: tuple[str, ...] = (),
    view: Literal["direct", "crop"] = "direct",
    seeds: tuple[int, ...] = (0,),
    shared: tuple[str, ...] = (),
) -> Suite:
    members = (*shared, *(entry.name for entry in TABLE if entry.suite == name))
    return Suite(name, description, members, defaults or members, view, seeds)


SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        _make_suite(
            "mini",
            "Five embedded tasks of 32 x 32 pixels in the VTAB-1k protocol; offline.",
            ("digits", "textures", "location"),  # One of each group: a first look in minutes.
        ),
        _make_suite("vtab", "VTAB-1k: 19 tasks of 1,000 training images in three groups.", seeds=(0, 1, 2)),
        _make_suite(
            "fgvc",
            "The paper's eight fine-grained sets.",
            tuple(e.name for e in TABLE if e.suite == "fgvc" and e.name != "fgvc_caltech101_all"),
            view="crop",
            seeds=(0, 1, 2),
        ),
        _make_suite(
            "real",
            "Five tasks of 1,000 training images in VTAB-1k's protocol, for really trained weights on small machines.",
            seeds=(0, 1),
            shared=("caltech101",),
        ),
        _make_suite("cifar", "CIFAR-10 and CIFAR-100, whole.", view="crop"),
        _make_suite("domainnet", "DomainNet's six domains, one by one.", view="crop"),
        _make_suite("imagenet", "ImageNet-1k as an image folder.", view="crop"),
        _make_suite(OWN, "Your own images, prepared under the data folder.", view="crop"),
    )
}
"""Every suite by name."""


def get_suite(name: str) -> Suite:
    """The suite of that name.

    Raises:
        InputError: There is none.
    """
    if name not in SUITES:
        raise unknown("suite", name, SUITES)
    return SUITES[name]


def default_datasets(suite: str, root: Path | str | None = None) -> tuple[str, ...]:
    """The datasets that a sweep over a suite runs when none is named: of suite ``own`` all that are under the root.

    Raises:
        InputError: No such suite; suite ``own`` and nothing is prepared there.
    """
    found = get_suite(suite)
    if suite != OWN:
        return found.defaults
    names = tuple(own_datasets(root))
    if not names:
        where = f"{root} has none" if root is not None else "no data folder was given (--data-dir)"
        raise InputError(
            f"Suite 'own' takes datasets made of your own images, and {where}; run `{how_to_prepare(root=root)}`."
        )
    return names


def get_dataset(suite: str, name: str, root: Path | str | None = None) -> Dataset:
    """The dataset of that name or alias in a suite.

    Args:
        suite: Key of ``SUITES``.
        name: Of the dataset.
        root: The data root, where datasets of suite ``own`` are; of no use to the others.

    Raises:
        InputError: No such suite, or no such dataset in it.
    """
    if suite == OWN:
        return own_dataset(name, root)
    members = [DATASETS[member] for member in get_suite(suite).datasets]
    for entry in members:
        if name == entry.name or name in entry.aliases:
            return entry
    if name in DATASETS:
        home = DATASETS[name].suite
        raise InputError(f"Dataset {name!r} is not in suite {suite!r} but in {home!r}; use --suite {home}.")
    if name in own_datasets(root):
        raise InputError(f"Dataset {name!r} is not in suite {suite!r} but one of your own; use --suite own.")
    raise unknown(f"dataset of suite {suite!r}", name, [alias for d in members for alias in (d.name, *d.aliases)])


def find_dataset(name: str, root: Path | str | None = None) -> Dataset:
    """The dataset of that name or alias in any suite; ``SUITE/NAME`` names the suite as well.

    Args:
        name: Of the dataset.
        root: The data root, where datasets of suite ``own`` are looked for too.

    Raises:
        InputError: There is none.
    """
    suite, slash, inner = name.partition("/")
    if slash and suite in SUITES:
        return get_dataset(suite, inner, root)
    if name in DATASETS:
        return DATASETS[name]
    for entry in DATASETS.values():
        if name in entry.aliases:
            return entry
    own = own_datasets(root)
    if name in own:
        return own_dataset(name, root)
    raise unknown("dataset", name, [*DATASETS, *own])


def check_images(dataset: Dataset, evaluate: str, *, searches: bool = False) -> None:
    """Checks that no list that a cell needs is known to be empty: own images may lack a validation or a test part.

    Args:
        dataset: Its row.
        evaluate: See ``DataConfig``.
        searches: Whether a search on val comes before.

    Raises:
        InputError: One is.
    """
    train, val, both, test = dataset.lists
    again = f"prepare {dataset.name} again with"
    if searches or evaluate != "test":
        if dataset.count(val) == 0:
            what = "a search chooses on them" if searches else f"--evaluate {evaluate} scores them"
            raise InputError(f"Dataset {dataset.name!r} has no validation images and {what}; {again} --val 0.1.")
        if dataset.count(train) == 0:
            raise InputError(f"Dataset {dataset.name!r} has no images to train on; {again} images in {train}.txt.")
    if evaluate == "test":
        if dataset.count(test) == 0:
            other = "score the validation images with --evaluate val, or " if dataset.count(val) else ""
            raise InputError(f"Dataset {dataset.name!r} has no test images; {other}{again} --test 0.1.")
        if dataset.count(both) == 0:
            raise InputError(f"Dataset {dataset.name!r} has no images to train on; {again} images in {train}.txt.")
