"""Loads the images and labels of one cell, in the backbone's size and normalisation.

``evaluate="test"`` trains on train and val together and scores ``test``; ``"val"`` trains on train and scores val, and
neither the test list nor any test image is opened; ``"select"`` trains on train, with val to choose the epoch, and
scores test (val where the test list is empty). In VTAB-1k images are resized directly to the backbone's size (no
crop, no augmentation); elsewhere training takes random crops and mirrors (see ``Suite.view``), unless
``DataConfig.augment`` asks for other views. All are normalised with the backbone's own mean and standard deviation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from s2a_bench.config import DataConfig
from s2a_bench.data import augment
from s2a_bench.data.augment import NO_AUGMENTATION, Augmentation
from s2a_bench.data.decoded import DecodedForm, ImageList, Pixels, decode_on_demand, open_pixels, short_side
from s2a_bench.data.folder import (
    DataIdentity,
    ListedImage,
    Manifest,
    find_dataset_folder,
    identify_folder,
    read_list,
    read_manifest,
)
from s2a_bench.data.images import INTERPOLATIONS, resize_arrays
from s2a_bench.data.mini import scenes
from s2a_bench.data.mini import tasks as mini_tasks
from s2a_bench.data.other_sets import explain_other_set
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.types import Dataset
from s2a_bench.data.views import cut_views
from s2a_bench.errors import InputError, unknown

_EVALUATE = ("test", "val", "select")


class Images:
    """Labelled images that are normalised batch by batch.

    Attributes:
        labels: ``(N,)`` int64.
    """

    def __init__(self, labels: Tensor, pixels: Pixels, mean: Sequence[float], std: Sequence[float]) -> None:
        """Combines labels with a source of pixels.

        Args:
            labels: ``(N,)`` int64.
            pixels: From ``(B,)`` indices to ``(B, 3, size, size)`` uint8, see ``decoded.Pixels``.
            mean: Per channel, for pixels in [0, 1].
            std: Per channel.
        """
        self.labels = labels
        self._pixels = pixels
        self._mean, self._std = (torch.tensor(v, dtype=torch.float32).view(1, 3, 1, 1) for v in (mean, std))

    def __len__(self) -> int:
        """Number of images."""
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised float32 images ``(B, 3, size, size)`` at ``(B,)`` int64 indices.

        Args:
            indices: Which images.
            generator: For training: draws random views where there are any (``data/augment.py``). ``None``: the
                deterministic view used for scoring.

        Raises:
            InputError: An image is missing, damaged, or was changed after it was prepared.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(self._pixels(indices.cpu().numpy(), generator)))
        return pixels.float().div_(255).sub_(self._mean).div_(self._std)


@dataclasses.dataclass(frozen=True)
class TaskData:
    """Training and scored images of one cell.

    Attributes:
        dataset: Its row in the table.
        classes: Size of the head.
        data_id: Hash of the lists and images.
        split_id: Names the rule or files that chose the lists.
        train: Training images.
        scored: Images that the trained model is scored on.
        val: With ``evaluate="select"`` the images that choose the epoch; ``scored`` is this very object where the test
            list is empty.
        lossy: Whether images were re-encoded with loss after their makers published them.
        synthetic: Whether this package made the images.
        data_config: ``size``, ``mean``, ``std``, ``interpolation``, ``resize``; ``augment`` where there is any or it is
            not the suite's own, see ``augment.describe``.
        notes: Sentences for the record; they come as images are read, e.g. that a damaged cache was made again.
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
    notes: list[str] = dataclasses.field(default_factory=list)
    val: Images | None = None


@dataclasses.dataclass(frozen=True)
class OpenDataset:
    """A dataset that exists and whose lists are valid; no image has been decoded.

    Attributes:
        dataset: Its row in the table.
        identity: Hashes of its content and lists.
        folder: Its folder; ``None`` for embedded tasks.
        manifest: Manifest of the folder, if it has one.
        lists: The lists that are used, by name; empty for embedded tasks.
    """

    dataset: Dataset
    identity: DataIdentity
    folder: Path | None = None
    manifest: Manifest | None = None
    lists: Mapping[str, list[ListedImage]] = dataclasses.field(default_factory=dict)

    @property
    def data_id(self) -> str:
        """Hash of the lists and images."""
        return self.identity.data_id

    @property
    def split_id(self) -> str:
        """Names the rule or files that chose the lists."""
        return self.identity.split_id


def open_dataset(config: DataConfig) -> OpenDataset:
    """Opens a dataset and checks that its lists are valid, without decoding an image.

    Embedded tasks are rendered for it, once per process; a folder without manifest is hashed, once until it changes.

    Raises:
        InputError: Unknown names, bad numbers, missing data, or data that is not what was prepared.
    """
    dataset = _check_config(config)
    if dataset.embedded:
        data_id = scenes.scenes_data_id if dataset.name in scenes.TASKS else mini_tasks.task_data_id
        ids = DataIdentity(data_id(dataset.name), mini_tasks.SPLIT_ID, lossy=False)
        return OpenDataset(dataset, ids)
    folder, manifest, lists, ids = _open_folder(config, dataset)
    return OpenDataset(dataset, ids, folder, manifest, lists)


def load_data(
    config: DataConfig,
    *,
    size: int,
    mean: Sequence[float],
    std: Sequence[float],
    interpolation: str = "bicubic",
    opened: OpenDataset | None = None,
) -> TaskData:
    """Loads the images and labels of one cell.

    Args:
        config: Which images.
        size: Side in pixels.
        mean: Of the backbone, three numbers for pixels in [0, 1].
        std: Of the backbone.
        interpolation: Key of ``images.INTERPOLATIONS``; images of the right size are not touched.
        opened: What ``open_dataset`` returned for ``config``; ``None``: it is opened here.

    Raises:
        InputError: Unknown names, bad numbers, missing data, or data that is not what was prepared.
    """
    mean, std = _check_view(size, mean, std, interpolation)
    opened = opened or open_dataset(config)
    dataset, ids = opened.dataset, opened.identity
    crop = datasets.SUITES[dataset.suite].view == "crop"
    view: dict[str, Any] = {"size": size, "mean": mean, "std": std, "interpolation": interpolation, "resize": "direct"}
    if crop:
        view["resize"] = f"short side {short_side(size)}, centre crop"
    view |= augment.describe(config)
    augmentation = augment.resolve(config)
    trained_on, *looked_at = _names_of_used_lists(config, dataset)
    notes: list[str] = []
    if opened.folder is None:
        train = _embedded(dataset.name, trained_on, config.limit_train, view)
        if augmentation.name == "none":
            train = _keep_in_memory(train, view)
        else:
            larger = _embedded(dataset.name, trained_on, config.limit_train, {**view, "size": short_side(size)})
            train = _augmented(train, larger, view, augmentation)
        others = [_embedded(dataset.name, name, config.limit_test, view) for name in looked_at]
    else:
        folder, manifest, lists = opened.folder, opened.manifest, opened.lists
        # What is scored once, at the end, is not kept in memory.
        plans = [(trained_on, config.limit_train, False)]
        plans += [(name, config.limit_test, name == looked_at[-1]) for name in looked_at]
        train, *others = (
            _images_from_files(
                folder,
                manifest,
                lists[name],
                limit,
                f"{name}-{ids.data_id}",
                view,
                augmentation if name == trained_on else NO_AUGMENTATION,
                read_once,
                notes,
            )
            for name, limit, read_once in plans
        )
    val = others[0] if config.evaluate == "select" else None
    scored = others[-1] if len(others[-1]) else others[0]
    return TaskData(
        dataset=dataset,
        classes=dataset.classes,
        data_id=ids.data_id,
        split_id=ids.split_id,
        train=train,
        scored=scored,
        lossy=ids.lossy,
        synthetic=dataset.synthetic or ids.synthetic,
        data_config=view,
        notes=notes,
        val=val,
    )


def check_data(config: DataConfig) -> tuple[str, str]:
    """The ``data_id`` and ``split_id`` of a dataset, which is checked as ``open_dataset`` does."""
    opened = open_dataset(config)
    return opened.data_id, opened.split_id


def _check_config(config: DataConfig) -> Dataset:
    dataset = datasets.get_dataset(config.suite, config.dataset, config.root)
    if config.evaluate not in _EVALUATE:
        raise unknown("value of data.evaluate", str(config.evaluate), _EVALUATE)
    for name in ("limit_train", "limit_test"):
        limit = getattr(config, name)
        if limit is not None and limit < 1:
            raise InputError(f"data.{name}={limit} is too small; give at least 1, or leave it out to use every image.")
    augment.resolve(config)
    datasets.check_images(dataset, config.evaluate)
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


def _names_of_used_lists(config: DataConfig, dataset: Dataset) -> tuple[str, ...]:
    """The list to train on and the list to score; for ``"select"`` the list that chooses the epoch between them."""
    lists = dataset.lists
    if config.evaluate == "select":
        return lists.train, lists.val, lists.test
    return (lists.both, lists.test) if config.evaluate == "test" else (lists.train, lists.val)


def _spaced_indices(n: int, limit: int | None) -> np.ndarray:
    """``k = min(n, limit)`` evenly spaced indices: ``floor(i * n / k)`` for ``i`` from 0 to ``k - 1``."""
    k = n if limit is None else min(n, limit)
    return np.arange(k) * n // max(k, 1)


def _open_folder(
    config: DataConfig, dataset: Dataset
) -> tuple[Path, Manifest | None, dict[str, list[ListedImage]], DataIdentity]:
    """Reads the lists that are used and checks them against the table, the manifest and the files on disk."""
    folder = find_dataset_folder(dataset, config.root)
    manifest = read_manifest(folder)
    if manifest is not None and (reason := explain_other_set(dataset, folder, manifest, {})):
        raise InputError(f"{folder} is not {dataset.name}: {reason}.")  # before its lists are called changed
    lists = {name: read_list(folder, name, dataset, manifest) for name in _names_of_used_lists(config, dataset)}
    labels = {name: [entry.label for entry in entries] for name, entries in lists.items()}
    if reason := explain_other_set(dataset, folder, manifest, labels):
        raise InputError(f"{folder} is not {dataset.name}: {reason}.")
    train, *others = ({entry.path for entry in entries} for entries in lists.values())
    for scored in others:
        if both := train & scored:
            raise InputError(
                f"{folder}: {min(both)} is in a training list and in a scored one; prepare the folder again."
            )
    if len(others) > 1 and (both := others[0] & others[1]):
        raise InputError(f"{folder}: {min(both)} is in the validation list and in the test list; prepare it again.")
    return folder, manifest, lists, identify_folder(folder, lists, manifest)


def _images_from_arrays(task: str, name: str, limit: int | None, view: dict[str, Any]) -> Images:
    """A list of an embedded task, resized batch by batch."""
    images, labels = mini_tasks.load_task(task)[name]
    kept = _spaced_indices(len(labels), limit)

    def pixels(indices: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        return resize_arrays(images[kept[indices]], view["size"], view["interpolation"])

    return Images(torch.from_numpy(labels[kept]), pixels, view["mean"], view["std"])


def _images_from_scenes(task: str, name: str, limit: int | None, view: dict[str, Any]) -> Images:
    """A list of a rendered task, painted batch by batch at the size of the view."""
    labels = scenes.labels_of(task, name)
    kept = _spaced_indices(len(labels), limit)

    def pixels(indices: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        return scenes.render(task, name, kept[indices], view["size"])

    return Images(torch.from_numpy(labels[kept]), pixels, view["mean"], view["std"])


def _embedded(task: str, name: str, limit: int | None, view: dict[str, Any]) -> Images:
    """A list of an embedded task, by its images of 32 pixels or painted at the size of the view."""
    make = _images_from_scenes if task in scenes.TASKS else _images_from_arrays
    return make(task, name, limit, view)


def _augmented(images: Images, larger: Images, view: dict[str, Any], augmentation: Augmentation) -> Images:
    """Random views of images in memory, cut from larger ones; without a generator the view that is scored."""
    plain, short = _all_pixels(images), _all_pixels(larger)
    fill = _fill_colour(view)

    def pixels(indices: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        if generator is None:
            return plain[indices]
        drawn = list(short[indices])
        return cut_views(drawn, view["size"], generator, augmentation, view["interpolation"], fill)

    return Images(images.labels, pixels, view["mean"], view["std"])


def _fill_colour(view: dict[str, Any]) -> tuple[int, int, int]:
    """The backbone's mean as a colour: what RandAugment moves in from outside, as timm does."""
    red, green, blue = (min(255, max(0, round(255 * each))) for each in view["mean"])
    return red, green, blue


def _all_pixels(images: Images) -> np.ndarray:
    return images._pixels(np.arange(len(images)), None)


def _keep_in_memory(images: Images, view: dict[str, Any]) -> Images:
    """Resizes or paints all images now instead of batch by batch."""
    array = _all_pixels(images)
    return Images(images.labels, lambda indices, generator: array[indices], view["mean"], view["std"])


def _images_from_files(
    folder: Path,
    manifest: Manifest | None,
    entries: list[ListedImage],
    limit: int | None,
    name: str,
    view: dict[str, Any],
    augmentation: Augmentation,
    read_once: bool,
    notes: list[str],
) -> Images:
    """Images of a list on disk. No file is opened before the first batch is requested.

    A whole list is served from the decoded cache; a limited one is decoded without it. Random views are cut out of the
    short form, whatever form is scored.
    """
    kept = [entries[i] for i in _spaced_indices(len(entries), limit)]
    scored_form: DecodedForm = "square" if view["resize"] == "direct" else "short"
    form: DecodedForm = scored_form if augmentation.name == "none" else "short"
    fill = _fill_colour(view)
    listed = ImageList(folder, manifest, kept, view["size"], view["interpolation"], form, augmentation, fill)
    plain = None if form == scored_form else decode_on_demand(dataclasses.replace(listed, form=scored_form))
    opened: list[Pixels] = []

    def pixels(indices: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        if generator is None and plain is not None:
            return plain(indices, None)
        if not opened:
            cached = name if len(kept) == len(entries) else None
            opened.append(open_pixels(listed, cached, read_once, notes.append))
        return opened[0](indices, generator)

    labels = torch.tensor([entry.label for entry in kept], dtype=torch.int64)
    return Images(labels, pixels, view["mean"], view["std"])
