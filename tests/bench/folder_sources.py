"""Rows, plans and by-hand archives for tests of readers of image folders."""

from __future__ import annotations

import dataclasses
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from s2a_bench.data.readers.folders import READERS
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation
from s2a_bench.errors import InputError

BY_NAME = {reader.name: reader for reader in READERS}
ROW = Dataset("tiny", "vtab", "natural", 3, Counts(None, None, None, None), "made up", "none", "here")
CALTECH = ("caltech-101.zip", "101_ObjectCategories.tar.gz")
NAMES = ("background_google", "cup", "faces")


def row(reader: str, classes: int = 3, encoding="jpeg", **preparation) -> Dataset:
    archives = preparation.pop("archives", ())
    made = Preparation(reader, OfficialRule(), archives, **preparation)
    return dataclasses.replace(ROW, classes=classes, encoding=encoding, preparation=made)


CALTECH_ROW = row("class_folders", archives=CALTECH, folder="101_ObjectCategories", class_names=NAMES)
EUROSAT_ROW = row("class_folders", 10, archives=("EuroSAT.zip", "EuroSAT_RGB.zip", "2750.zip"), folder="2750")
RESISC_ROW = row("class_folders", 45, archives=("NWPU-RESISC45.zip", "NWPU-RESISC45.tar.gz"), folder="NWPU-RESISC45")
PLAIN_ROW = row("image_folder", encoding="lossless", archives=("tiny_images.tar.gz",))
IMAGENET_ROW = row("image_folder", target="imagenet")
UCF_ROW = row("ucf101", archives=("UCF-101-midframes.zip",))
SUN_ROW = row("sun397", archives=("SUN397.tar.gz",))
DOMAIN_ROW = row("domainnet", archives=("clipart.zip",), target="clipart")

PLANS = {
    "caltech": (CALTECH_ROW, {"": (3, 5, 4)}),
    "caltech with skipped folders": (
        row("class_folders", 2, archives=CALTECH, folder="101_ObjectCategories", class_names=NAMES[1:],
            skip=("BACKGROUND_Google",)),
        {"": (3, 4)},
    ),
    "eurosat": (EUROSAT_ROW, {"": (2, 3) * 5}),
    "resisc45": (RESISC_ROW, {"": (2,) * 45}),
    "class folders unpacked": (row("class_folders", folder="pictures"), {"": (2, 3, 2)}),
    "class folders at the top": (row("class_folders"), {"": (2, 3, 2)}),
    "plain": (PLAIN_ROW, {"train": (4, 3, 5), "test": (2, 1, 2)}),
    "plain with val": (PLAIN_ROW, {"train": (2, 3, 2), "val": (1, 1, 2), "test": (2, 1, 2)}),
    "imagenet": (IMAGENET_ROW, {"train": (3, 4, 2), "test": (2, 1, 1)}),
    "ucf101": (UCF_ROW, {"train": (20, 3, 2), "test": (8, 2, 1)}),
    "sun397": (SUN_ROW, {"train": (3, 4, 2), "val": (1, 1, 1), "test": (2, 1, 2)}),
    "domainnet": (DOMAIN_ROW, {"train": (3, 4, 2), "test": (2, 1, 2)}),
}  # fmt: skip


def image(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


IMAGES = [image(i) for i in range(12)]


def write(place: Path, names, **texts: str) -> dict[str, bytes]:
    """Images under the given names, in a folder; content per name."""
    files = {name: IMAGES[i % len(IMAGES)] for i, name in enumerate(names)}
    for name, data in (files | {name: text.encode() for name, text in texts.items()}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return files


def tree_of(place: Path, dataset: Dataset) -> Tree:
    assert dataset.preparation is not None
    return Tree(place, (*dataset.preparation.archives, place.name))


def load(place: Path, dataset: Dataset) -> tuple[Source, dict[str, bytes]]:
    assert dataset.preparation is not None
    reader = BY_NAME[dataset.preparation.reader]
    with tree_of(place, dataset) as tree:
        assert reader.recognises(tree, dataset)
        source = reader.open(tree, dataset)
        read = list(source.read(frozenset(item.name for item in source.images)))
    assert len(dict(read)) == len(read) == len(source.images) == len({item.name for item in source.images})
    return source, dict(read)


def refused(place: Path, dataset: Dataset, words: str) -> None:
    assert dataset.preparation is not None
    with pytest.raises(InputError, match=words) as caught, tree_of(place, dataset) as tree:
        BY_NAME[dataset.preparation.reader].open(tree, dataset)
    assert "\n" not in str(caught.value)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def extract(folder: Path) -> None:
    """Every archive in a folder, and those within, in place of itself."""
    while packs := [p for p in folder.rglob("*") if p.suffix in (".zip", ".gz") and not p.name.startswith("._")]:
        for pack in packs:
            if pack.suffix == ".zip":
                with zipfile.ZipFile(pack) as archive:
                    archive.extractall(pack.parent)
            else:
                with tarfile.open(pack) as archive:
                    archive.extractall(pack.parent, filter="data")
            pack.unlink()
