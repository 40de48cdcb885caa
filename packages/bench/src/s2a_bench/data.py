"""Images and labels of one cell, as the backbone wants them.

``evaluate="test"`` trains on ``train800val200`` and scores ``test``; ``"val"`` trains on ``train800`` and scores
``val200``, and neither the test list nor any test image is opened. Images are resized directly to the backbone's size
(no crop, no augmentation) and normalised with the backbone's own mean and standard deviation.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from torch import Tensor

from s2a_bench import datasets, mini_tasks
from s2a_bench.config import DataConfig
from s2a_bench.datasets import Dataset
from s2a_bench.errors import InputError, unknown
from s2a_bench.images import INTERPOLATIONS, decode, read_bytes, resize_arrays, to_array
from s2a_bench.layout import (
    CACHE,
    Entry,
    Identity,
    Manifest,
    identity,
    locate,
    locked,
    read_list,
    read_manifest,
    replacing,
    sha256,
)

CACHE_LIMIT = 8_000_000_000
"""Largest decoded test set, in bytes, that is kept on disk; beyond it every scoring decodes again."""

_SPLITS = {"test": ("train800val200", "test"), "val": ("train800", "val200")}

Pixels = Callable[[np.ndarray], np.ndarray]


class Images:
    """Labelled images that are normalised batch by batch.

    Attributes:
        labels: ``(N,)`` int64.
    """

    def __init__(self, labels: Tensor, pixels: Pixels, mean: Sequence[float], std: Sequence[float]) -> None:
        """Wraps a source of pixels.

        Args:
            labels: ``(N,)`` int64.
            pixels: From ``(B,)`` indices to ``(B, 3, size, size)`` uint8.
            mean: Per channel, for pixels in [0, 1].
            std: Per channel.
        """
        self.labels = labels
        self._pixels = pixels
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batch(self, indices: Tensor) -> Tensor:
        """Normalised float32 images ``(B, 3, size, size)`` at ``(B,)`` int64 indices.

        Raises:
            InputError: An image that is decoded now is missing, damaged, or not the one that was prepared.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels(indices.cpu().numpy())))
        return (pixels.float() / 255 - self._mean) / self._std


@dataclasses.dataclass(frozen=True)
class TaskData:
    """What a cell trains on and is scored on.

    Attributes:
        dataset: Its row in the table.
        classes: Size of the head.
        data_id: Stands for the dataset's content.
        split_id: Stands for who chose its lists.
        train: Training images, decoded in memory.
        scored: Images that are scored once, decoded as they are read.
        lossy: Whether images were re-encoded with loss after their makers published them.
        synthetic: Whether this package rendered them.
        data_config: ``size``, ``mean``, ``std``, ``interpolation``, ``resize``.
    """

    dataset: Dataset
    classes: int
    data_id: str
    split_id: str
    train: Images
    scored: Images
    lossy: bool
    synthetic: bool
    data_config: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Row:
    """One dataset as ``data list`` shows it.

    Attributes:
        name: Dataset.
        suite: Its suite.
        group: Its group.
        classes: Number of classes.
        counts: Images per list by the table.
        present: Whether it can be loaded from the given root.
        prepared: Whether its folder has a manifest.
        data_id: Of a prepared folder.
        split_id: Of a prepared folder or embedded task.
        where: Its folder, or how to get it.
    """

    name: str
    suite: str
    group: str
    classes: int
    counts: datasets.Counts
    present: bool
    prepared: bool
    data_id: str | None
    split_id: str | None
    where: str


def load(
    config: DataConfig, *, size: int, mean: Sequence[float], std: Sequence[float], interpolation: str = "bicubic"
) -> TaskData:
    """Opens a dataset for one cell.

    Args:
        config: Which images.
        size: Side in pixels.
        mean: Of the backbone, three numbers for pixels in [0, 1].
        std: Of the backbone.
        interpolation: Key of ``images.INTERPOLATIONS``; images of the right size are not touched.

    Raises:
        InputError: Unknown names, bad numbers, missing data, or data that is not what was prepared.
    """
    dataset = _dataset(config)
    mean, std = _check_view(size, mean, std, interpolation)
    view = {"size": size, "mean": mean, "std": std, "interpolation": interpolation, "resize": "direct"}
    limits = (config.limit_train, config.limit_test)
    train_list, scored_list = _SPLITS[config.evaluate]
    if dataset.embedded:
        ids = Identity(mini_tasks.data_id(dataset.name), _mini_split_id(dataset), lossy=False)
        train, scored = (
            _from_arrays(*mini_tasks.arrays(dataset.name)[name], limit, view)
            for name, limit in zip((train_list, scored_list), limits, strict=True)
        )
        train = _in_memory(train, view)
    else:
        folder, manifest, lists, ids = _open(config, dataset)
        kept = [_spaced(lists[name], limit) for name, limit in zip((train_list, scored_list), limits, strict=True)]
        train = _in_memory(_from_files(folder, manifest, kept[0], view), view)
        scored = _from_files(folder, manifest, kept[1], view)
        if scored_list == "val200":
            scored = _in_memory(scored, view)
        elif len(kept[1]) == len(lists[scored_list]):
            scored = _cached(scored, folder, f"{scored_list}-{ids.data_id}", view)
    return TaskData(
        dataset=dataset,
        classes=dataset.classes,
        data_id=ids.data_id,
        split_id=ids.split_id,
        train=train,
        scored=scored,
        lossy=ids.lossy,
        synthetic=dataset.synthetic,
        data_config=view,
    )


def check(config: DataConfig) -> tuple[str, str]:
    """Whether a dataset is there and well-formed, without decoding an image.

    Returns:
        Its ``data_id`` and ``split_id``. Embedded tasks are rendered for it, once per process; a folder without
        manifest is hashed, once until it changes.

    Raises:
        InputError: As ``load``.
    """
    dataset = _dataset(config)
    if dataset.embedded:
        return mini_tasks.data_id(dataset.name), _mini_split_id(dataset)
    ids = _open(config, dataset)[3]
    return ids.data_id, ids.split_id


def list_datasets(root: Path | None) -> list[Row]:
    """Every dataset of the table, and what of it lies under ``root``.

    A folder counts as present with its lists and a readable manifest, if any; ``verify`` is the full check.
    """
    rows = []
    for dataset in datasets.DATASETS.values():
        present, manifest, where = dataset.embedded, None, dataset.where
        if not dataset.embedded and root is not None:
            try:
                folder = locate(dataset, root)
                manifest = read_manifest(folder)
                present = all((folder / f"{name}.txt").is_file() for name in datasets.Counts._fields)
                where = str(folder)
            except InputError:
                present = False
        rows.append(
            Row(
                name=dataset.name,
                suite=dataset.suite,
                group=dataset.group,
                classes=dataset.classes,
                counts=dataset.counts,
                present=present,
                prepared=manifest is not None,
                data_id=manifest.data_id if manifest else None,
                split_id=_mini_split_id(dataset) if dataset.embedded else manifest.split_id if manifest else None,
                where=where,
            )
        )
    return rows


def _dataset(config: DataConfig) -> Dataset:
    dataset = datasets.get(config.suite, config.dataset)
    if config.evaluate not in _SPLITS:
        raise unknown("value of data.evaluate", str(config.evaluate), _SPLITS)
    for name in ("limit_train", "limit_test"):
        limit = getattr(config, name)
        if limit is not None and limit < 1:
            raise InputError(f"data.{name}={limit} is too small; give at least 1, or leave it out to use every image.")
    return dataset


def _check_view(
    size: int, mean: Sequence[float], std: Sequence[float], interpolation: str
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    if size < 1:
        raise InputError(f"Image size {size} is too small; it must be at least 1 pixel.")
    if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
        raise InputError(f"mean={mean}, std={std}: give three numbers each, with every std above 0.")
    if interpolation not in INTERPOLATIONS:
        raise unknown("interpolation", interpolation, INTERPOLATIONS)
    return tuple(float(v) for v in mean), tuple(float(v) for v in std)


def _mini_split_id(dataset: Dataset) -> str:
    return f"embedded-seed{mini_tasks.SEED}"


def _spaced(entries: list[Entry], limit: int | None) -> list[Entry]:
    return [entries[i] for i in _spaced_indices(len(entries), limit)]


def _spaced_indices(n: int, limit: int | None) -> np.ndarray:
    """``min(n, limit)`` evenly spaced indices below ``n``, the first of them 0."""
    k = n if limit is None else min(n, limit)
    return np.arange(k) * n // max(k, 1)


def _open(config: DataConfig, dataset: Dataset) -> tuple[Path, Manifest | None, dict[str, list[Entry]], Identity]:
    """The folder and the two lists that are used, checked against the table, the manifest and the disk."""
    folder = locate(dataset, config.root)
    manifest = read_manifest(folder)
    lists = {name: read_list(folder, name, dataset, manifest) for name in _SPLITS[config.evaluate]}
    train, scored = lists.values()
    if both := {entry.path for entry in train} & {entry.path for entry in scored}:
        raise InputError(f"{folder}: {min(both)} is in a training list and in a scored one; prepare the folder again.")
    return folder, manifest, lists, identity(folder, lists, manifest)


def _from_arrays(images: np.ndarray, labels: np.ndarray, limit: int | None, view: dict[str, Any]) -> Images:
    kept = _spaced_indices(len(labels), limit)

    def pixels(indices: np.ndarray) -> np.ndarray:
        return resize_arrays(images[kept[indices]], view["size"], view["interpolation"])

    return Images(torch.from_numpy(labels[kept]), pixels, view["mean"], view["std"])


def _from_files(folder: Path, manifest: Manifest | None, entries: list[Entry], view: dict[str, Any]) -> Images:
    def pixels(indices: np.ndarray) -> np.ndarray:
        out = np.empty((len(indices), 3, view["size"], view["size"]), dtype=np.uint8)
        for i, index in enumerate(indices):
            path = entries[index].path
            data = read_bytes(folder / path)
            if manifest is not None and sha256(data) != manifest.files[path].sha256:
                raise InputError(f"Image {folder / path} was changed after it was prepared; prepare the dataset again.")
            out[i] = to_array(decode(data, str(folder / path)), view["size"], view["interpolation"])
        return out

    labels = torch.tensor([entry.label for entry in entries], dtype=torch.int64)
    return Images(labels, pixels, view["mean"], view["std"])


def _in_memory(images: Images, view: dict[str, Any]) -> Images:
    """The same images, decoded once."""
    array = images._pixels(np.arange(len(images)))
    return Images(images.labels, array.__getitem__, view["mean"], view["std"])


def _cached(images: Images, folder: Path, name: str, view: dict[str, Any]) -> Images:
    """The same images from a decoded file under ``.cache``, which is made if there is room for it.

    Two processes do not decode twice: the second waits for the first. The file appears whole or not at all; where it
    cannot be made (no room, a read-only folder), the images are decoded as they are read.
    """
    shape = (len(images), 3, view["size"], view["size"])
    path = folder / CACHE / f"{name}-{view['size']}-{view['interpolation']}-pillow{PIL.__version__}.npy"
    try:
        array = _open_cache(path, shape)
        if array is None:
            path.parent.mkdir(exist_ok=True)
            with locked(path.parent, wait=True):
                array = _open_cache(path, shape)  # by another process, meanwhile
                if array is None:
                    for stale in path.parent.glob(f".{path.name}.*.tmp"):
                        stale.unlink()
                    size = int(np.prod(shape))
                    if size > min(CACHE_LIMIT, shutil.disk_usage(path.parent).free // 2):
                        return images
                    with replacing(path) as temporary:
                        _fill(temporary, images, shape)
                    array = _open_cache(path, shape)
    except OSError:
        array = None
    return images if array is None else Images(images.labels, array.__getitem__, view["mean"], view["std"])


def _open_cache(path: Path, shape: tuple[int, ...]) -> np.ndarray | None:
    try:
        array = np.load(path, mmap_mode="r")
    except (FileNotFoundError, ValueError, EOFError):  # absent, or not such a file: it is made again
        return None
    return array if array.shape == shape and array.dtype == np.uint8 else None


def _fill(path: Path, images: Images, shape: tuple[int, ...]) -> None:
    with path.open("wb") as file:  # not a memory map: a full disk must be an error, not a signal
        np.lib.format.write_array_header_1_0(file, {"descr": "|u1", "fortran_order": False, "shape": shape})
        for start in range(0, len(images), 64):
            file.write(images._pixels(np.arange(start, min(start + 64, len(images)))).tobytes())
