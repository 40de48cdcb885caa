"""Rows, plans and by-hand files for tests of readers of arrays."""

from __future__ import annotations

import gzip
import io
import pickle
import shutil
import struct
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io
from PIL import Image
from s2a_bench.data.readers.arrays import READERS
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation

h5py = pytest.importorskip("h5py")

OPEN = {reader.name: reader for reader in READERS}
DSPRITES = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
NORB = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing-{}.mat",
}
PCAM = "camelyonpatch_level_2_split_{}_{}.h5"


def row(reader: str, classes: int, target: str = "", archives: tuple[str, ...] = ()) -> Dataset:
    preparation = Preparation(reader, OfficialRule(), archives, target=target)
    return Dataset(
        "tiny", "whole", "whole", classes, Counts(None, None, None, None), "", "", "", preparation=preparation
    )


ROWS = {
    "cifar10": row("cifar", 10, "fine", ("cifar-10-python.tar.gz",)),
    "cifar100": row("cifar", 100, "fine", ("cifar-100-python.tar.gz",)),
    "svhn": row("svhn", 10),
    "pcam": row("patch_camelyon", 2),
    "dsprites_loc": row("dsprites", 16, "x_position"),
    "dsprites_ori": row("dsprites", 16, "orientation"),
    "norb_azi": row("smallnorb", 18, "azimuth"),
    "norb_ele": row("smallnorb", 9, "elevation"),
}
PLANS = {
    "cifar10": {"train": (2, 3) * 5, "test": (1, 2) * 5},
    "cifar100": {"train": (2,) * 100, "test": (1,) * 100},
    "svhn": {"train": (3, 2) * 5, "test": (2,) * 10},
    "pcam": {"train": (4, 3), "val": (2, 3), "test": (3, 3)},
    "dsprites_loc": {"": (40,) * 16},
    "dsprites_ori": {"": (40,) * 16},
    "norb_azi": {"train": (3,) * 18, "test": (2,) * 18},
    "norb_ele": {"train": (6,) * 9, "test": (4,) * 9},
}


def opened(dataset: Dataset, place: Path, then: Callable[[Source], Any]) -> Any:
    assert dataset.preparation is not None
    with Tree(place, dataset.preparation.archives) as tree:
        reader = OPEN[dataset.preparation.reader]
        assert reader.recognises(tree, dataset)
        return then(reader.open(tree, dataset))


def whole(source: Source) -> tuple[Any, dict[str, bytes]]:
    names = [item.name for item in source.images]
    assert len(set(names)) == len(names)
    files = list(source.read(frozenset(names)))
    assert sorted(name for name, _ in files) == sorted(names)
    return (source.images, source.classes), dict(files)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        assert image.format == "PNG"
        return np.asarray(image)


def unpacked(place: Path, to: Path) -> Path:
    """What extracting the downloads gives."""
    to.mkdir()
    for path in place.iterdir():
        if path.name.endswith(".tar.gz"):
            with tarfile.open(path) as archive:
                archive.extractall(to, filter="data")
        elif path.suffix == ".gz":
            (to / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
        else:
            shutil.copy(path, to)
    return to


Content = dict[str, Any]


def fresh(kind: str) -> Content:
    """File -> what it holds, of a sound source with two or three images a part; bytes are written as they are."""
    rng = np.random.default_rng(3)
    if kind in ("cifar10", "cifar100"):
        data = rng.integers(0, 256, (2, 3072), dtype=np.uint8)
        if kind == "cifar10":
            content: Content = {f"data_batch_{i}": {"data": data + i, "labels": [i, 9 - i]} for i in range(1, 6)}
            content["test_batch"] = {"data": data, "labels": [0, 9]}
            return content | {"batches.meta": {"label_names": [f"c{i}" for i in range(10)]}}
        batch = {"data": data, "fine_labels": [99, 0], "coarse_labels": [19, 0]}
        names = {"fine_label_names": [f"f{i}" for i in range(100)], "coarse_label_names": [f"c{i}" for i in range(20)]}
        return {"train": dict(batch), "test": dict(batch), "meta": names}
    if kind == "svhn":
        images = rng.integers(0, 256, (32, 32, 3, 3), dtype=np.uint8)
        return {f"{p}_32x32.mat": {"X": images, "y": np.array([[10], [1], [9]], np.uint8)} for p in ("train", "test")}
    if kind == "pcam":
        content = {}
        for part in ("train", "valid", "test"):
            content[PCAM.format(part, "x")] = {"x": rng.integers(0, 256, (3, 96, 96, 3), dtype=np.uint8)}
            content[PCAM.format(part, "y")] = {"y": np.array([1, 0, 1], np.uint8).reshape(3, 1, 1, 1)}
        return content
    if kind == "dsprites_ori":
        latents = np.zeros((40, 6), np.int64)
        latents[:, 3] = np.arange(40)
        return {DSPRITES: {"imgs": rng.integers(0, 2, (40, 64, 64), dtype=np.uint8), "latents_classes": latents}}
    content = {}
    for pattern in NORB.values():
        content[pattern.format("dat")] = rng.integers(0, 256, (3, 2, 96, 96), dtype=np.uint8)
        content[pattern.format("info")] = np.array([[4, 0, 0, 0], [4, 8, 34, 5], [4, 3, 2, 1]], np.int32)
    return content


def matrix(array: np.ndarray) -> bytes:
    magic = 0x1E3D4C55 if array.dtype == np.uint8 else 0x1E3D4C54
    dims = [*array.shape, 1, 1][: max(3, array.ndim)]
    return struct.pack(f"<{2 + len(dims)}i", magic, array.ndim, *dims) + array.tobytes()


def write(kind: str, content: Content, folder: Path, protocol: int = 2) -> Path:
    for name, held in content.items():
        path = folder / name
        if isinstance(held, bytes):
            path.write_bytes(held)
        elif kind.startswith("cifar"):
            path.write_bytes(pickle.dumps(held, protocol))
        elif kind == "svhn":
            scipy.io.savemat(path, held, do_compression=True)
        elif kind == "pcam":
            with h5py.File(path, "w") as file:
                for key, value in held.items():
                    file.create_dataset(key, data=value, chunks=(2, *value.shape[1:]) if value.size > 3 else None)
        elif kind.startswith("dsprites"):
            np.savez_compressed(path, **held)
        else:
            path.write_bytes(matrix(held))
    return folder


KINDS = ("cifar10", "cifar100", "svhn", "pcam", "dsprites_ori", "norb_azi")
