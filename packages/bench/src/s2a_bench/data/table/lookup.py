"""Looks up suites and datasets by name. The table itself is in ``rows.py``."""

from __future__ import annotations

from typing import Literal

from s2a_bench.data.table.rows import TABLE
from s2a_bench.data.table.types import Counts, Dataset, Suite
from s2a_bench.errors import InputError, unknown

__all__ = ["DATASETS", "SUITES", "Counts", "Dataset", "Suite", "find_dataset", "get_dataset", "get_suite"]

DATASETS: dict[str, Dataset] = {entry.name: entry for entry in TABLE}
"""Every dataset by name."""


def _make_suite(
    name: str,
    description: str,
    defaults: tuple[str, ...] = (),
    view: Literal["direct", "crop"] = "direct",
    seeds: tuple[int, ...] = (0,),
) -> Suite:
    members = tuple(entry.name for entry in TABLE if entry.suite == name)
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
        _make_suite("cifar", "CIFAR-10 and CIFAR-100, whole.", view="crop"),
        _make_suite("domainnet", "DomainNet's six domains, one by one.", view="crop"),
        _make_suite("imagenet", "ImageNet-1k as an image folder.", view="crop"),
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


def get_dataset(suite: str, name: str) -> Dataset:
    """The dataset of that name or alias in a suite.

    Raises:
        InputError: No such suite, or no such dataset in it.
    """
    members = [DATASETS[member] for member in get_suite(suite).datasets]
    for entry in members:
        if name == entry.name or name in entry.aliases:
            return entry
    if name in DATASETS:
        home = DATASETS[name].suite
        raise InputError(f"Dataset {name!r} is not in suite {suite!r} but in {home!r}; use --suite {home}.")
    raise unknown(f"dataset of suite {suite!r}", name, [alias for d in members for alias in (d.name, *d.aliases)])


def find_dataset(name: str) -> Dataset:
    """The dataset of that name or alias in any suite; ``SUITE/NAME`` names the suite as well.

    Raises:
        InputError: There is none.
    """
    suite, slash, inner = name.partition("/")
    if slash and suite in SUITES:
        return get_dataset(suite, inner)
    if name in DATASETS:
        return DATASETS[name]
    for entry in DATASETS.values():
        if name in entry.aliases:
            return entry
    raise unknown("dataset", name, DATASETS)
