"""Miniature DTD, Flowers102, Pets, CUB and Stanford Dogs, in the files people download."""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from s2a_bench.data.synthetic.folders import iterate_images, make_jpeg, open_archive
from s2a_bench.data.table.types import Dataset

Plan = Mapping[str, tuple[int, ...]]


def _mat_bytes(**variables: object) -> bytes:
    """A MATLAB file; scipy writes the time into its header, which is blanked."""
    import scipy.io

    out = io.BytesIO()
    scipy.io.savemat(out, variables, format="5")
    return b"MATLAB 5.0 MAT-file".ljust(116) + out.getvalue()[116:]


def make_dtd(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``dtd-r1.0.1.tar.gz`` with fold 1."""
    with open_archive(place / "dtd-r1.0.1.tar.gz") as add:
        lists: dict[str, list[str]] = {part: [] for part in ("train", "val", "test")}
        for part, label, _, index in iterate_images(plan, "train", "val", "test"):
            name = f"texture{label:02d}/texture{label:02d}_{index:05d}.jpg"
            add(f"dtd/images/{name}", make_jpeg(dataset, label, index, seed))
            lists[part].append(name)
        for part, names in lists.items():
            add(f"dtd/labels/{part}1.txt", "".join(f"{name}\n" for name in names).encode())


def make_flowers102(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``102flowers.tgz``, ``imagelabels.mat`` and ``setid.mat``."""
    labels: list[int] = []
    ids: dict[str, list[int]] = {part: [] for part in ("train", "val", "test")}
    with open_archive(place / "102flowers.tgz") as add:
        for part, label, _, index in iterate_images(plan, "train", "val", "test"):
            labels.append(label + 1)
            ids[part].append(len(labels))
            add(f"jpg/image_{len(labels):05d}.jpg", make_jpeg(dataset, label, index, seed))
    (place / "imagelabels.mat").write_bytes(_mat_bytes(labels=np.array([labels], np.uint8)))
    trnid, valid, tstid = (np.array([ids[part]], np.uint16) for part in ("train", "val", "test"))
    (place / "setid.mat").write_bytes(_mat_bytes(trnid=trnid, valid=valid, tstid=tstid))


def make_pets(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``images.tar.gz`` and ``annotations.tar.gz``."""
    lists: dict[str, list[str]] = {"train": [], "test": []}
    with open_archive(place / "images.tar.gz") as add:
        for part, label, _, index in iterate_images(plan, "train", "test"):
            name = f"Made_up_{chr(65 + label // 26)}{chr(65 + label % 26)}_{index}"
            add(f"images/{name}.jpg", make_jpeg(dataset, label, index, seed))
            lists[part].append(f"{name} {label + 1} {label % 2 + 1} {label // 2 + 1}\n")
    with open_archive(place / "annotations.tar.gz") as add:
        add("annotations/trainval.txt", "".join(lists["train"]).encode())
        add("annotations/test.txt", "".join(lists["test"]).encode())


def make_cub(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``CUB_200_2011.tgz``."""
    titles = [f"{label + 1:03d}.Made_up_bird_{label + 1}" for label in range(dataset.classes)]
    images, labels, split = [], [], []
    with open_archive(place / "CUB_200_2011.tgz") as add:
        for part, label, _, index in iterate_images(plan, "train", "test"):
            key = len(images) + 1
            name = f"{titles[label]}/Made_up_bird_{index:05d}.jpg"
            add(f"CUB_200_2011/images/{name}", make_jpeg(dataset, label, index, seed))
            images.append(f"{key} {name}\n")
            labels.append(f"{key} {label + 1}\n")
            split.append(f"{key} {int(part == 'train')}\n")
        classes = [f"{label + 1} {title}\n" for label, title in enumerate(titles)]
        tables = {"images": images, "image_class_labels": labels, "train_test_split": split, "classes": classes}
        for name, lines in tables.items():
            add(f"CUB_200_2011/{name}.txt", "".join(lines).encode())


def make_dogs(dataset: Dataset, place: Path, plan: Plan, seed: int) -> None:
    """``images.tar`` and ``lists.tar``."""
    files: dict[str, list[str]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    with open_archive(place / "images.tar") as add:
        for part, label, _, index in iterate_images(plan, "train", "test"):
            name = f"n{2000000 + label:08d}-made_up_dog_{label + 1}/n{2000000 + label:08d}_{index}.jpg"
            add(f"Images/{name}", make_jpeg(dataset, label, index, seed))
            files[part].append(name)
            labels[part].append(label + 1)
    with open_archive(place / "lists.tar") as add:
        for part in ("train", "test"):
            cells = np.empty((len(files[part]), 1), object)
            cells[:, 0] = files[part]
            numbers = np.array(labels[part], np.float64)[:, None]
            add(f"{part}_list.mat", _mat_bytes(file_list=cells, labels=numbers))


MAKERS = {"dtd": make_dtd, "flowers102": make_flowers102, "pets": make_pets, "cub": make_cub, "dogs": make_dogs}
