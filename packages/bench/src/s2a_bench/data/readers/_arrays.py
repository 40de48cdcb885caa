"""Shared by readers of arrays: names from positions, checks of labels, images by name."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from s2a_bench.data.readers.pixels import encode_png
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError

ReadRows = Callable[[str, np.ndarray], Iterator[tuple[int, np.ndarray]]]
"""From a part and sorted positions in it to ``(position, image)``, images being ``(H, W)`` or ``(H, W, 3)`` uint8."""

MAX_IMAGES = 10_000_000
"""Images that an array may claim to hold, more than any data set has; the claim of a damaged file would fill memory."""

_NAME = re.compile(r"(?:(train|val|test)/)?([0-9]{6,})\.png")
_AGAIN = "download it again"


def make_array_source(
    dataset: Dataset,
    what: str,
    classes: Sequence[str],
    labels: Mapping[str, np.ndarray],
    rows: ReadRows,
    key: Callable[[str, int], str | int] = lambda part, position: position,
) -> Source:
    """Makes a source of images that have a position in their part instead of a name.

    Args:
        dataset: The dataset it is opened for.
        what: Name of the source in error messages.
        classes: Names in label order.
        labels: Part -> ``(N,)`` integers from 0, checked.
        rows: Reads the images.
        key: tensorflow_datasets' key from part and position; its builders of these sets take the position alone, but
            for PatchCamelyon.

    Raises:
        InputError: Another number of classes than the dataset has.
    """
    if len(classes) != dataset.classes:
        raise InputError(
            f"{what} has {len(classes)} classes but {dataset.name} has {dataset.classes}; give the source of "
            f"{dataset.name}."
        )
    items = tuple(
        SourceImage(_image_name(part, i), label, part, key(part, i))
        for part, column in labels.items()
        for i, label in enumerate(column.tolist())
    )

    def read(names: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        wanted: dict[str, list[int]] = {part: [] for part in labels}
        for name in names:
            part, position = _parse_image_name(name)
            if position >= len(labels.get(part, ())):
                raise InputError(f"{what} holds no image {name}; its parts are {_describe_parts(labels)}.")
            wanted[part].append(position)
        for part, positions in wanted.items():
            if positions:
                for position, image in rows(part, np.array(sorted(positions))):
                    yield _image_name(part, position), encode_png(image)

    return Source(items, tuple(classes), read)


def _image_name(part: str, position: int) -> str:
    return f"{part}/{position:06d}.png" if part else f"{position:06d}.png"


def _parse_image_name(name: str) -> tuple[str, int]:
    found = _NAME.fullmatch(name)
    part, position = (found[1] or "", int(found[2])) if found else ("", 0)
    if _image_name(part, position) != name:
        raise InputError(f"No image of the source is called {name!r}; names are like 'train/000017.png'.")
    return part, position


def _describe_parts(labels: Mapping[str, np.ndarray]) -> str:
    return ", ".join(f"{part or 'the whole'} ({len(column)} images)" for part, column in labels.items())


def check_integers(values: object, count: int | None, low: int, high: int, what: str) -> np.ndarray:
    """Checks labels and returns them as ``(N,)`` int64, without axes of length 1.

    Args:
        values: An array or a list.
        count: How many are expected: the number of images; ``None``: any number but none.
        low: Smallest allowed.
        high: Largest allowed.
        what: Their name in error messages.

    Raises:
        InputError: Not whole numbers, another count, or one out of range.
    """
    try:
        array = np.asarray(values)
    except ValueError as error:  # lists of different lengths
        raise InputError(f"{what} are not one number for each image; {_AGAIN}.") from error
    if array.size == 0:
        raise InputError(f"{what} are empty; {_AGAIN}.")
    if array.size != max(array.shape, default=0):
        raise InputError(f"{what} have shape {array.shape}, not one number for each image; {_AGAIN}.")
    if array.dtype.kind not in "iuf" or (array.dtype.kind == "f" and not np.array_equal(array, np.floor(array))):
        raise InputError(f"{what} are not whole numbers (type {array.dtype}); {_AGAIN}.")
    array = array.reshape(-1)
    if count is not None and len(array) != count:
        raise InputError(f"{what} are {len(array)} but there are {count} images; the files do not belong together.")
    wrong = np.flatnonzero((array < low) | (array > high))
    if len(wrong):
        raise InputError(
            f"{what} must lie in {low}..{high}, but that of image {wrong[0]} is {array[wrong[0]]:g}; {_AGAIN}."
        )
    return array.astype(np.int64)


def split_into_blocks(positions: np.ndarray, size: int) -> Iterator[np.ndarray]:
    """Splits sorted positions into groups that lie in the same block of ``size`` rows."""
    yield from np.split(positions, np.flatnonzero(np.diff(positions // size)) + 1)
