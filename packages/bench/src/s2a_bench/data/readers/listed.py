"""Sets whose labels and parts stand in list files beside the images: DTD, Flowers102, Pets, CUB and Stanford Dogs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from s2a_bench.data.labels import find_label_conflict
from s2a_bench.data.readers._arrays import MAX_IMAGES
from s2a_bench.data.readers._folders import check_unique, make_reader, preparation_of, read_lines
from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tree import Tree, path_below
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError


def _make_source(
    tree: Tree,
    dataset: Dataset,
    items: list[SourceImage],
    classes: Iterable[str],
    paths: Mapping[str, str],
    note: str = "",
) -> Source:
    check_unique(tree.place, [item.name for item in items])
    for item in items:
        if item.name not in paths:
            raise InputError(f"{tree.place} lists {item.name} but does not hold it; give the complete download.")
    names = tuple(classes)
    if len(names) != dataset.classes:
        raise InputError(f"{tree.place} has {len(names)} classes but {dataset.name} has {dataset.classes}.")
    return Source(tuple(items), names, make_reader(tree, {item.name: paths[item.name] for item in items}), note=note)


def _check_labels(tree: Tree, what: str, items: Iterable[SourceImage], classes: Iterable[str]) -> None:
    """Refuses labels that do not map one to one to the classes that the images' own names state.

    Args:
        tree: Files.
        what: The file that holds the labels, for errors.
        items: Images with their labels.
        classes: By the names, one for each image.
    """
    stated = ((item.name, repr(own), item.label + 1) for item, own in zip(items, classes, strict=True))
    if conflict := find_label_conflict(stated):
        raise InputError(
            f"{what} in {tree.place} contradicts the names of its images: {conflict} (counted from 1); "
            "download it again."
        )


def _paths_below(tree: Tree, folder: str) -> dict[str, str]:
    """Path in the tree per path below a folder of that name."""
    found: dict[str, str] = {}
    for path in tree.files_under(folder):
        if found.setdefault(path_below(path, folder), path) != path:
            raise InputError(f"{tree.place} holds {folder}/{path_below(path, folder)} twice; give one download.")
    return found


def _load_mat(tree: Tree, file: str, *names: str) -> list[np.ndarray]:
    """Variables of a MATLAB file.

    Raises:
        InputError: Not there, damaged, or without one of them.
    """
    try:
        import scipy.io
    except ImportError as error:
        raise InputError(f"{file} needs scipy, which is not installed: pip install scipy.") from error
    path = tree.path_on_disk(tree.find(file))
    try:
        if any(math.prod(shape) > MAX_IMAGES for _, shape, _ in scipy.io.whosmat(path)):
            raise ValueError("it claims lists of a length that no data set has")
        values = scipy.io.loadmat(path, variable_names=names)
    except Exception as error:  # scipy's parser may raise any exception on a damaged file
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(f"{file} in {tree.place} is damaged ({reason}); download it again.") from error
    for name in names:
        if name not in values:
            raise InputError(f"{file} in {tree.place} has no variable {name!r}; it is another file.")
    return [values[name] for name in names]


def _check_integers(values: Any, what: str, low: int, high: int) -> list[int]:
    """Flat whole numbers from ``low`` to ``high``."""
    flat = np.asarray(values).ravel()
    if flat.dtype.kind not in "iuf" or not np.all(np.isfinite(flat.astype(float))) or (flat != np.round(flat)).any():
        raise InputError(f"{what} holds something else than whole numbers; download it again.")
    if flat.size and (flat.min() < low or flat.max() > high):
        raise InputError(f"{what} has {flat.min()} to {flat.max()}; expected {low} to {high}.")
    return [int(value) for value in flat]


def _parse_number(text: str, where: str, low: int, high: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 10 and low <= int(text) <= high):
        raise InputError(f"{where}: {text[:40]!r} is not a whole number from {low} to {high}.")
    return int(text)


# --- DTD -------------------------------------------------------------------------------------------------------------


def open_dtd(tree: Tree, dataset: Dataset) -> Source:
    """``dtd/images/<class>/<file>`` with ``dtd/labels/{train,val,test}<fold>.txt``; the target is the fold (1 to 10).

    Labels are positions in the sorted class names, keys the lines of the lists, as in tensorflow_datasets.

    Raises:
        InputError: A list is missing or names an image that is not there.
    """
    fold = preparation_of(dataset).target or "1"
    paths = _paths_below(tree, "images")
    items: list[tuple[str, str]] = []
    for part in ("train", "val", "test"):
        file = tree.find(f"labels/{part}{fold}.txt")
        items += [(line.strip(), part) for _, line in read_lines(tree, file)]
    classes = sorted({name.split("/")[0] for name, _ in items})
    labels = {name: i for i, name in enumerate(classes)}
    found = [SourceImage(name, labels[name.split("/")[0]], part, name) for name, part in items]
    return _make_source(tree, dataset, found, classes, paths)


# --- Flowers ---------------------------------------------------------------------------------------------------------


def open_flowers102(tree: Tree, dataset: Dataset) -> Source:
    """``jpg/image_00001.jpg`` with ``imagelabels.mat`` and ``setid.mat``; labels and image numbers count from 1 there.

    Raises:
        InputError: A file is missing or damaged, or an image is in two parts.
    """
    (labels,) = _load_mat(tree, "imagelabels.mat", "labels")
    parts = _load_mat(tree, "setid.mat", "trnid", "valid", "tstid")
    numbers = _check_integers(labels, "imagelabels.mat", 1, dataset.classes)
    paths = _paths_below(tree, "jpg")
    items = []
    for part, ids in zip(("train", "val", "test"), parts, strict=True):
        for i in _check_integers(ids, "setid.mat", 1, len(numbers)):
            name = f"image_{i:05d}.jpg"
            items.append(SourceImage(name, numbers[i - 1] - 1, part, name))
    classes = preparation_of(dataset).class_names or tuple(str(i + 1) for i in range(dataset.classes))
    return _make_source(tree, dataset, items, classes, paths)


# --- Pets ------------------------------------------------------------------------------------------------------------


def open_pets(tree: Tree, dataset: Dataset) -> Source:
    """``images/<Name>_<n>.jpg`` with ``annotations/{trainval,test}.txt``: "Abyssinian_100 1 1 1", classes from 1.

    Raises:
        InputError: A list is missing, a line is malformed, a class has two names, or an image is missing.
    """
    paths = _paths_below(tree, "images")
    items: list[SourceImage] = []
    names: dict[int, str] = {}
    for file, part in (("trainval", "train"), ("test", "test")):
        path = tree.find(f"annotations/{file}.txt")
        for number, line in read_lines(tree, path):
            if line.startswith("#"):
                continue
            words = line.split()
            if len(words) != 4:
                raise InputError(f"{tree.place}, {path}:{number}: {line!r} is not of the form 'Abyssinian_100 1 1 1'.")
            label = _parse_number(words[1], f"{tree.place}, {path}:{number}", 1, dataset.classes) - 1
            title = words[0].rpartition("_")[0]
            if names.setdefault(label, title) != title:
                raise InputError(f"{tree.place}, {path}:{number}: class {words[1]} is {names[label]} and {title}.")
            items.append(SourceImage(f"{words[0]}.jpg", label, part, f"{words[0]}.jpg"))
    _check_labels(tree, "annotations/", items, (item.name.rpartition("_")[0] for item in items))
    return _make_source(tree, dataset, items, [names[label] for label in sorted(names)], paths)


# --- CUB -------------------------------------------------------------------------------------------------------------


def open_cub(tree: Tree, dataset: Dataset) -> Source:
    """``CUB_200_2011``: ``images.txt``, ``image_class_labels.txt``, ``train_test_split.txt`` and ``classes.txt``.

    Raises:
        InputError: A file is missing, a line is malformed, or the files disagree about the images.
    """

    def table(name: str) -> dict[int, str]:
        path = tree.find(f"CUB_200_2011/{name}" if tree.has(f"CUB_200_2011/{name}") else name)
        found: dict[int, str] = {}
        for number, line in read_lines(tree, path):
            key, _, value = line.strip().partition(" ")
            where = f"{tree.place}, {path}:{number}"
            if found.setdefault(_parse_number(key, where, 1, 10**7), value.strip()) != value.strip() or not value:
                raise InputError(f"{where}: {line!r} is not of the form '1 something', or comes twice.")
        return found

    images, labels, split, titles = (
        table(f"{name}.txt") for name in ("images", "image_class_labels", "train_test_split", "classes")
    )
    if not images.keys() == labels.keys() == split.keys():
        raise InputError(f"{tree.place}: images.txt, image_class_labels.txt and train_test_split.txt disagree.")
    if sorted(titles) != list(range(1, len(titles) + 1)):
        raise InputError(f"{tree.place}: classes.txt does not count from 1 without a gap.")
    items = []
    for key, name in images.items():
        label = _parse_number(labels[key], f"{tree.place}, image_class_labels.txt, image {key}", 1, dataset.classes) - 1
        part = ("test", "train")[_parse_number(split[key], f"{tree.place}, train_test_split.txt, image {key}", 0, 1)]
        items.append(SourceImage(name, label, part))
    folders = [item.name.rpartition("/")[0] for item in items]
    _check_labels(tree, "image_class_labels.txt", items, folders)
    classes = [titles[key] for key in sorted(titles)]
    for item, folder in zip(items, folders, strict=True):
        if item.label < len(classes) and folder != classes[item.label] and folder in classes:
            raise InputError(
                f"{tree.place}: {item.name} has label {item.label + 1} in image_class_labels.txt, which is "
                f"{classes[item.label]} in classes.txt; download it again."
            )
    return _make_source(tree, dataset, items, classes, _paths_below(tree, "images"))


# --- Dogs ------------------------------------------------------------------------------------------------------------


def open_dogs(tree: Tree, dataset: Dataset) -> Source:
    """``Images/n02085620-Chihuahua/*.jpg`` with ``train_list.mat`` and ``test_list.mat``; labels count from 1 there.

    Raises:
        InputError: A list is missing, damaged or of two lengths, a class has two folders, or an image is missing.
    """
    items: list[SourceImage] = []
    names: dict[int, str] = {}
    for part in ("train", "test"):
        files, labels = _load_mat(tree, f"{part}_list.mat", "file_list", "labels")
        numbers = _check_integers(labels, f"{part}_list.mat", 1, dataset.classes)
        listed = [str(np.asarray(entry).ravel()[0]) for entry in np.asarray(files).ravel() if np.asarray(entry).size]
        if len(listed) != len(numbers):
            raise InputError(f"{part}_list.mat in {tree.place} has {len(listed)} files and {len(numbers)} labels.")
        for name, number in zip(listed, numbers, strict=True):
            title = name.split("/")[0].partition("-")[2] or name.split("/")[0]
            if names.setdefault(number, title) != title:
                raise InputError(f"{part}_list.mat in {tree.place}: class {number} is {names[number]} and {title}.")
            items.append(SourceImage(name, number - 1, part))
    _check_labels(tree, "train_list.mat or test_list.mat", items, (item.name.split("/")[0] for item in items))
    return _make_source(tree, dataset, items, [names[label] for label in sorted(names)], _paths_below(tree, "Images"))


READERS = (
    Reader("dtd", lambda tree, dataset: tree.has("labels/train1.txt"), open_dtd),
    Reader("flowers102", lambda tree, dataset: tree.has("setid.mat") or tree.has("imagelabels.mat"), open_flowers102),
    Reader("pets", lambda tree, dataset: tree.has("annotations/trainval.txt"), open_pets),
    Reader("cub", lambda tree, dataset: tree.has("image_class_labels.txt"), open_cub),
    Reader("dogs", lambda tree, dataset: tree.has("train_list.mat"), open_dogs),
)
