"""The table of datasets. To add a dataset, add one row to its suite (and a reader if its format is new).

The rows of ``vtab`` and ``fgvc`` are in ``vtab.py`` and ``fgvc.py``, all others here. The class count always comes from
the table: some classes of a test list are absent from 1,000 training images.
"""

from __future__ import annotations

from s2a_bench.data.table.fgvc import FGVC
from s2a_bench.data.table.shared import (
    CIFAR10_DIGEST,
    CIFAR100_DIGEST,
    NATURAL,
    SPECIALIZED,
    STRUCTURED,
    cifar10_sample,
    cifar_dataset,
    domainnet_dataset,
    mini_task,
    scene_task,
)
from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation
from s2a_bench.data.table.vtab import VTAB

_MINI = (
    mini_task("digits", NATURAL, 10, 797, synthetic=False),
    mini_task("textures", SPECIALIZED, 8, 2000),
    mini_task("orientation", STRUCTURED, 16, 2000),
    mini_task("location", STRUCTURED, 16, 2000),
    mini_task("count", STRUCTURED, 8, 2000),
)

_REAL = (
    cifar10_sample(),
    scene_task("count", 8),
    scene_task("location", 16),
    scene_task("orientation", 16),
)

_WHOLE = (
    cifar_dataset("cifar10", 10, CIFAR10_DIGEST),
    cifar_dataset("cifar100", 100, CIFAR100_DIGEST),
    domainnet_dataset("clipart", 33525, 14604),
    domainnet_dataset("infograph", 36023, 15582),
    domainnet_dataset("painting", 50416, 21850),
    domainnet_dataset("quickdraw", 120750, 51750),
    domainnet_dataset("real", 120906, 52041),
    domainnet_dataset("sketch", 48212, 20916),
    Dataset(
        "imagenet1k",
        "imagenet",
        "whole",
        1000,
        Counts(None, None, 1281167, 50000),
        "Russakovsky et al. 2015",
        "non-commercial research",
        "https://image-net.org (train/<wnid>/*.JPEG and val/<wnid>/*.JPEG)",
        ("imagenet", "ilsvrc2012"),
        preparation=Preparation("image_folder", OfficialRule(0.01), (), target="imagenet", in_place=True),
    ),
)

TABLE: tuple[Dataset, ...] = (*_MINI, *VTAB, *FGVC, *_REAL, *_WHOLE)
