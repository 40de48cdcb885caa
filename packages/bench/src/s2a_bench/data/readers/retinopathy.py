"""Reader of Kaggle's diabetic retinopathy photographs, which are preprocessed as VTAB-1k does."""

from __future__ import annotations

import csv
import io
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath

import numpy as np

from s2a_bench.data.images import decode_rgb
from s2a_bench.data.readers.pixels import encode_png
from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

TRAIN_LABELS, TEST_LABELS = "trainLabels.csv", "retinopathy_solution.csv"
PROCESSED_MARKER = "PROCESSED"
"""A file of this name marks images that are preprocessed already."""
CLASSES = ("no DR", "mild", "moderate", "severe", "proliferative DR")
_USAGE = {"Public": "val", "Private": "test"}

RADIUS = 300
_NOTE = (
    "Photographs were scaled to a fundus of radius 300, freed of their local average colour and cut to a circle, as "
    "tensorflow_datasets' btgraham-300 does with OpenCV, but by this package's own code and stored as PNG: pixels are "
    "close to those, not equal."
)
_NOTE_MARKED = (
    f"A file {PROCESSED_MARKER} says that the images were in VTAB-1k's form (btgraham-300) when they were given."
)

# --- Images ----------------------------------------------------------------------------------------------------------


def apply_btgraham(image: np.ndarray, radius: int = RADIUS) -> np.ndarray:
    """A photograph of a fundus as Ben Graham's winning solution of the competition prepares it.

    The steps and numbers are those of tensorflow_datasets' configuration ``btgraham-300``, which calls OpenCV. This is
    the same arithmetic with NumPy and SciPy: interpolation and blur round differently in places, by one grey level,
    which step 2 makes four.

    1. Scale (bilinear, without smoothing) so that the fundus has the radius. Its diameter is the number of pixels
       in the middle row that are brighter than a tenth of the row's mean.
    2. ``clip(4 * image - 4 * blur(image) + 128, 0, 255)`` with a Gaussian blur of sigma ``radius / 30``.
    3. Grey outside a circle of 0.9 radius around the middle, and cut to that circle's square.

    Args:
        image: ``(H, W, 3)`` uint8.
        radius: In pixels.

    Returns:
        ``(h, w, 3)`` uint8 with sides up to 1.8 radius, shorter where the photograph ends before.
    """
    from scipy.ndimage import gaussian_filter

    # 1. The scale, from half the number of bright pixels in the middle row.
    height, width = image.shape[:2]
    row = image[height // 2].sum(axis=1, dtype=np.int64)
    found = np.count_nonzero(row > row.mean() / 10) / 2
    scale = radius / (found if found >= 1 else height / 2)
    tall, wide = max(1, round(height * scale)), max(1, round(width * scale))
    middle_y, middle_x = tall // 2, wide // 2
    keep = int(0.9 * radius)
    margin = round(radius / 30 * 3)  # support of the blur: three sigma
    # Scale only the circle and the margin of the blur: a photograph with a tiny fundus would become huge.
    top, bottom = max(middle_y - keep - margin, 0), min(middle_y + keep + margin, tall)
    left, right = max(middle_x - keep - margin, 0), min(middle_x + keep + margin, wide)
    rows = _interpolate(image, 0, *_find_neighbours(top, bottom, scale, height))
    scaled = np.rint(_interpolate(rows, 1, *_find_neighbours(left, right, scale, width)))
    # 2. Contrast to the local average.
    sigma = radius / 30
    blurred = np.rint(gaussian_filter(scaled, (sigma, sigma, 0), mode="mirror", radius=(margin, margin, 0)))
    contrast = np.clip(4 * scaled - 4 * blurred + 128, 0, 255).astype(np.uint8)
    # 3. Grey outside the circle, cut to its square.
    y, x = np.ogrid[top:bottom, left:right]
    contrast[(y - middle_y) ** 2 + (x - middle_x) ** 2 > keep**2] = 128
    return contrast[
        max(middle_y - keep, 0) - top : min(middle_y + keep, tall) - top,
        max(middle_x - keep, 0) - left : min(middle_x + keep, wide) - left,
    ]


def _find_neighbours(start: int, stop: int, scale: float, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Bilinear interpolation along one axis: index before, index after and weight of the latter per scaled pixel.

    Pixel ``i`` of the scaled axis lies at ``(i + 0.5) / scale - 0.5`` of the original one.
    """
    place = (np.arange(start, stop) + 0.5) / scale - 0.5
    before = np.floor(place).astype(np.int64)
    return before.clip(0, size - 1), (before + 1).clip(0, size - 1), (place - before).astype(np.float32)


def _interpolate(pixels: np.ndarray, axis: int, before: np.ndarray, after: np.ndarray, share: np.ndarray) -> np.ndarray:
    """``(1 - share) * before + share * after`` along an axis."""
    share = share[:, None, None] if axis == 0 else share[None, :, None]
    return pixels.take(before, axis) * (1 - share) + pixels.take(after, axis) * share


def _process_file(data: bytes, name: str) -> bytes:
    return encode_png(apply_btgraham(np.asarray(decode_rgb(data, name))))


# --- Source ----------------------------------------------------------------------------------------------------------


def recognises(tree: Tree, dataset: Dataset) -> bool:
    """Whether one of the competition's two tables of labels is there."""
    return tree.has(TRAIN_LABELS) or tree.has(TEST_LABELS)


def open_retinopathy(tree: Tree, dataset: Dataset) -> Source:
    """https://www.kaggle.com/c/diabetic-retinopathy-detection: ``train/*.jpeg``, ``test/*.jpeg`` and two tables.

    ``trainLabels.csv`` has the columns image and level; ``retinopathy_solution.csv`` has Usage as well, which is
    Public for the part "val" and Private for "test", as in tensorflow_datasets.

    Photographs go through ``apply_btgraham`` and become PNG files. Where another tool has done so already, an
    empty file ``PROCESSED`` beside the tables says it: then they may be PNG or JPEG and are taken as they are.

    Raises:
        InputError: A missing or damaged file, or tables and images that do not belong together.
    """
    if dataset.classes != len(CLASSES):
        raise InputError(
            f"Diabetic retinopathy has {len(CLASSES)} classes but {dataset.name} has {dataset.classes}; correct its "
            "entry in the table of datasets."
        )
    marked = tree.has(PROCESSED_MARKER)
    items: list[SourceImage] = []
    files: dict[str, str] = {}  # path in the tree -> item's name
    for folder, table in (("train", TRAIN_LABELS), ("test", TEST_LABELS)):
        images = _find_images(tree, folder, marked)
        what = f"{table} in {tree.place}"
        for line, (name, level, usage) in _read_table(tree, table, folder == "test"):
            if level not in ("0", "1", "2", "3", "4"):
                raise InputError(f"Line {line} of {what} has the level {level!r}, not 0 to 4; download it again.")
            if folder == "test" and usage not in _USAGE:
                raise InputError(
                    f"Line {line} of {what} has the usage {usage!r}, not Public or Private; download it again."
                )
            path = images.pop(name, None)
            if path is None:
                raise InputError(
                    f"Image {name!r} in line {line} of {what} is not in the folder {folder}/, or is in the table "
                    "twice; extract all of the download again."
                )
            suffix = PurePosixPath(path).suffix if marked else ".png"
            files[path] = f"{folder}/{name}{suffix}"
            items.append(SourceImage(files[path], int(level), _USAGE[usage] if folder == "test" else "train", name))
        if images:
            raise InputError(f"{what} has no line for {len(images)} images, such as {min(images)}; download it again.")

    paths = {name: path for path, name in files.items()}

    def read(names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        found = ((files[path], data) for path, data in tree.read_many(paths[name] for name in names))
        yield from found if marked else _process_all(found)

    return Source(tuple(items), CLASSES, read, note=_NOTE_MARKED if marked else _NOTE)


def _process_all(found: Iterator[tuple[str, bytes]]) -> Iterator[tuple[str, bytes]]:
    """Applies ``apply_btgraham`` to images in threads, a few at a time: there are 43,000 of 10 megapixels."""
    workers = min(8, os.cpu_count() or 1)
    with ThreadPoolExecutor(workers) as threads:
        while some := list(itertools.islice(found, 2 * workers)):
            names = [name for name, _ in some]
            yield from zip(names, threads.map(_process_file, (data for _, data in some), names), strict=True)


def _find_images(tree: Tree, folder: str, marked: bool) -> dict[str, str]:
    """Image's name without suffix -> its path, of the files in a folder of that name."""
    suffixes = (".jpeg", ".png") if marked else (".jpeg",)
    found: dict[str, str] = {}
    for path in tree.files_under(folder):
        file = PurePosixPath(path)
        if file.parent.name != folder:
            continue
        suffix = file.suffix.lower()
        if suffix == ".png" and not marked:
            raise InputError(
                f"{path} in {tree.place} is a PNG file, but the competition's images are .jpeg; give those, or put an "
                f"empty file {PROCESSED_MARKER} beside {TRAIN_LABELS} if they are in VTAB-1k's form already."
            )
        if suffix in suffixes:
            if file.stem in found:
                raise InputError(f"{tree.place} holds image {file.stem} twice: {found[file.stem]} and {path}.")
            found[file.stem] = path
    if not found:
        raise InputError(
            f"{tree.place} has no images {folder}/*{' or *'.join(suffixes)}; extract {folder}.zip of the competition."
        )
    return found


def _read_table(tree: Tree, table: str, usage: bool) -> Iterator[tuple[int, tuple[str, str, str]]]:
    """Line number, and image, level and usage (``""`` where the table has none)."""
    text = tree.read_text(tree.find(table))
    columns: Sequence[str] = ("image", "level", "Usage") if usage else ("image", "level")
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        if any(column not in (reader.fieldnames or ()) for column in columns):
            raise InputError(f"{table} in {tree.place} has no columns {', '.join(columns)}; download it again.")
        for row in reader:
            if any(row[column] is None for column in columns):
                raise InputError(f"Line {reader.line_num} of {table} in {tree.place} is cut off; download it again.")
            yield reader.line_num, (row["image"], row["level"].strip(), (row["Usage"].strip() if usage else ""))
    except csv.Error as error:
        raise InputError(f"{table} in {tree.place} is not a table ({error}); download it again.") from error


READERS = (Reader("retinopathy", recognises, open_retinopathy),)
