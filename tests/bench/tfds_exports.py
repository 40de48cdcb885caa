"""Rows, made-up exports and what a reader gives of them, for tests of exports of tensorflow_datasets."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tfds import READERS
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.tfds import MAKERS
from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation, Rule

READER = READERS[0]
CLASSES = {
    "cifar": 100,
    "cifar10": 10,
    "cifar100": 100,
    "caltech101": 102,
    "dtd": 47,
    "oxford_flowers102": 102,
    "oxford_iiit_pet": 37,
    "svhn": 10,
    "sun397": 397,
    "patch_camelyon": 2,
    "eurosat": 10,
    "resisc45": 45,
    "diabetic_retinopathy": 5,
    "clevr_count": 8,
    "clevr_dist": 6,
    "dmlab": 6,
    "kitti": 4,
    "dsprites_loc": 16,
    "dsprites_ori": 16,
    "smallnorb_azi": 18,
    "smallnorb_ele": 9,
}


def row(name: str, rule: Rule | None = None) -> Dataset:
    preparation = Preparation("tfds", rule or OfficialRule(), ())
    empty = Counts(None, None, None, None)
    return Dataset(name, "vtab", "natural", CLASSES[name], empty, "", "", "", preparation=preparation)


def made(name: str, place: Path, each: int = 2, seed: int = 5) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    plan = {part: (n,) * CLASSES[name] for part, n in (("train", each), ("val", 1), ("test", 1))}
    MAKERS["tfds"](row(name), place, plan, seed)
    return place


def opened(dataset: Dataset | str, place: Path, then: Callable[[Source], Any]) -> Any:
    dataset = row(dataset) if isinstance(dataset, str) else dataset
    with Tree(place) as tree:
        assert READER.recognises(tree, dataset)
        return then(READER.open(tree, dataset))


def whole(source: Source) -> tuple[Any, dict[str, bytes]]:
    names = [item.name for item in source.images]
    assert len(set(names)) == len(names)
    files = list(source.read(frozenset(names)))
    assert sorted(name for name, _ in files) == sorted(names)
    return (source.images, source.classes, source.ordered), dict(files)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image)


def info(place: Path) -> Path:
    return next(place.rglob("dataset_info.json"))


def described(place: Path, **changes: Any) -> None:
    found = json.loads(info(place).read_text())
    for key, value in changes.items():
        if value is None:
            del found[key]
        else:
            found[key] = value
    info(place).write_text(json.dumps(found))
