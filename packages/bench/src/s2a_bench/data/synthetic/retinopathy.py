"""Miniature photographs of the diabetic retinopathy competition, in its two archives and two tables."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np

from s2a_bench.data.readers.retinopathy import PROCESSED_MARKER, TEST_LABELS, TRAIN_LABELS
from s2a_bench.data.synthetic.pictures import draw_picture, encode_jpeg
from s2a_bench.data.table.types import Dataset

PHOTOGRAPHS = 200
"""Images up to which they are photographs. Each becomes 540 x 540 pixels and takes a tenth of a second or so."""

_USAGE = {"val": "Public", "test": "Private"}


def make_retinopathy(dataset: Dataset, place: Path, plan: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """``train.zip``, ``test.zip``, ``trainLabels.csv`` and ``retinopathy_solution.csv``.

    With more than ``PHOTOGRAPHS`` images, they are not photographs but pictures that count as processed, and a file
    ``PROCESSED`` says so.

    Args:
        dataset: Row of the table.
        place: Folder to write to.
        plan: Images per class of ``"train"``, ``"val"`` and ``"test"``.
        seed: Of pictures and their order.
    """
    processed = sum(map(sum, plan.values())) > PHOTOGRAPHS
    if processed:
        (place / PROCESSED_MARKER).write_bytes(b"")
    start = 0
    for number, (folder, parts) in enumerate({"train": ("train",), "test": ("val", "test")}.items()):
        rows = [(label, part) for part in parts for label, count in enumerate(plan[part]) for _ in range(count)]
        order = np.random.default_rng((seed, number)).permutation(len(rows)).tolist()
        lines = ["image,level" if folder == "train" else "image,level,Usage"]
        with zipfile.ZipFile(place / f"{folder}.zip", "w") as archive:
            for index, at in enumerate(order, start):
                label, part = rows[at]
                name = f"{10 + index // 2}_{('left', 'right')[index % 2]}"
                lines.append(f"{name},{label}" if folder == "train" else f"{name},{label},{_USAGE[part]}")
                image = draw_picture(label, index, dataset.classes, (16, 16), seed)
                archive.writestr(
                    zipfile.ZipInfo(f"{folder}/{name}.jpeg"), encode_jpeg(image if processed else _draw_fundus(image))
                )
        start += len(rows)
        table = TRAIN_LABELS if folder == "train" else TEST_LABELS
        (place / table).write_bytes("\n".join([*lines, ""]).encode())


def _draw_fundus(image: np.ndarray) -> np.ndarray:
    """A bright disc on black, ``(32, 40, 3)`` uint8, with a picture in its middle."""
    y, x = np.mgrid[-15.5:16, -19.5:20]
    out = np.zeros((32, 40, 3), np.uint8)
    out[y**2 + x**2 < 15**2] = (150, 90, 50)
    out[8:24, 12:28] = image
    return out


MAKERS: dict[str, Callable[[Dataset, Path, Mapping[str, tuple[int, ...]], int], None]] = {
    "retinopathy": make_retinopathy
}
