"""Readers of dSprites and smallNORB, whose arrays are too large to load and are read row by row."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np

from s2a_bench.data.readers._arrays import MAX_IMAGES, check_integers, make_array_source, split_into_blocks
from s2a_bench.data.readers.source import Reader, Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError, unknown

# --- dSprites --------------------------------------------------------------------------------------------------------

DSPRITES_FILE = "dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz"
_COLUMNS = {"orientation": (3, 40), "x_position": (4, 32)}
"""Target -> its column of ``latents_classes`` and how many values it takes."""
_BINS = 16
_ROWS = 1024  # 4 MB at a time


def recognises_dsprites(tree: Tree, dataset: Dataset) -> bool:
    """Whether dSprites' file is there."""
    return tree.has(DSPRITES_FILE)


def open_dsprites(tree: Tree, dataset: Dataset) -> Source:
    """DSprites (https://github.com/google-deepmind/dsprites-dataset): one ``.npz`` of all 737,280 images.

    ``imgs`` is ``(N, 64, 64)`` uint8 of 0 and 1, which become 0 and 255; ``latents_classes`` is ``(N, 6)``: colour,
    shape, scale, orientation, x and y. ``preparation.target`` is ``"x_position"`` or ``"orientation"``; as in VTAB
    (task_adaptation/data/dsprites.py) value ``v`` of 32 or 40 has class ``floor(16 * v / values)``.

    Images (3 GB) are decompressed as a stream, up to the last one wanted.

    Raises:
        InputError: No such target, a damaged file, or labels that do not fit.
    """
    target = dataset.preparation.target if dataset.preparation else ""
    if target not in _COLUMNS:
        raise unknown("target", target, _COLUMNS)
    column, values = _COLUMNS[target]
    name = tree.find(DSPRITES_FILE)
    what = f"{name} in {tree.place}"
    with _open_npy(tree, name, "imgs") as (_, shape, kind):
        count = shape[0] if shape else 0
        if shape[1:] != (64, 64) or kind != np.uint8:
            raise InputError(f"{what} holds imgs as {kind} {shape}, not uint8 (N, 64, 64); download it again.")
    with _open_npy(tree, name, "latents_classes") as (stream, shape, kind):
        if len(shape) != 2 or shape[1] != 6 or kind.kind not in "iu":
            raise InputError(
                f"{what} holds latents_classes as {kind} {shape}, not whole numbers (N, 6); download it again."
            )
        size = shape[0] * shape[1] * kind.itemsize
        found = stream.read(size + 1)
        if len(found) != size:
            raise InputError(f"latents_classes of {what} are cut off or too long; download it again.")
        latents = np.frombuffer(found, kind).reshape(shape)
    labels = check_integers(latents[:, column], count, 0, values - 1, f"Values of {target} of {what}")
    # floor(label / (values / bins)) in whole numbers.
    labels = labels * _BINS // values

    def rows(part: str, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        with _open_npy(tree, name, "imgs") as (stream, _, _):
            done = 0
            for block in split_into_blocks(wanted, _ROWS):
                # A compressed stream cannot be skipped: decompress and drop what lies before the block.
                while done < block[0]:
                    done += len(_read_images(stream, min(_ROWS, int(block[0]) - done), what))
                first, images = done, _read_images(stream, int(block[-1]) + 1 - done, what)
                done += len(images)
                for position in block.tolist():
                    yield position, images[position - first] * np.uint8(255)

    classes = [f"{target} {i}" for i in range(_BINS)]
    return make_array_source(dataset, f"{tree.place} (dSprites)", classes, {"": labels}, rows)


def _read_images(stream: IO[bytes], count: int, what: str) -> np.ndarray:
    data = stream.read(count * 64 * 64)
    if len(data) != count * 64 * 64:
        raise InputError(f"imgs of {what} are cut off; download it again.")
    images = np.frombuffer(data, np.uint8).reshape(count, 64, 64)
    if images.max() > 1:
        raise InputError(f"imgs of {what} hold {images.max()}, but pixels must be 0 or 1; download it again.")
    return images


@contextmanager
def _open_npy(tree: Tree, name: str, key: str) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
    """Opens an array of an ``.npz``: a stream of its values in row-major order, its shape and its type.

    An ``.npz`` is a zip of ``<name>.npy`` members: a magic string, a version, a header with shape, type and order, and
    the values (https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html).
    """
    try:
        with zipfile.ZipFile(tree.path_on_disk(name)) as archive, archive.open(f"{key}.npy") as stream:
            version = np.lib.format.read_magic(stream)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, kind = header(stream)
            if fortran or kind.hasobject:
                raise ValueError(f"{key} is of type {kind}, {'column' if fortran else 'row'} by row")
            if any(n < 0 for n in shape) or (shape and shape[0] > MAX_IMAGES):
                raise ValueError(f"{key} claims the shape {shape}")
            yield stream, shape, kind
    except InputError:
        raise
    except KeyError as error:
        raise InputError(f"{name} in {tree.place} has no array {key!r}; download it again.") from error
    except Exception as error:  # NumPy's parser of headers may raise any exception on a damaged file.
        reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{name} in {tree.place} cannot be read ({reason}); download it again.") from error


# --- smallNORB -------------------------------------------------------------------------------------------------------

NORB_FILES = {
    "train": "smallnorb-5x46789x9x18x6x2x96x96-training-{}.mat",
    "test": "smallnorb-5x01235x9x18x6x2x96x96-testing-{}.mat",
}
NORB_BYTES, NORB_INTS = 0x1E3D4C55, 0x1E3D4C54
_NORB_TYPES = {NORB_BYTES: np.dtype("u1"), NORB_INTS: np.dtype("<i4")}
_NORB_TARGETS = {
    "azimuth": tuple(f"azimuth {degrees}" for degrees in range(0, 360, 20)),
    "elevation": tuple(f"elevation {degrees}" for degrees in range(30, 75, 5)),
}


def recognises_smallnorb(tree: Tree, dataset: Dataset) -> bool:
    """Whether one of smallNORB's files is there."""
    return any(tree.has(file.format(half)) for file in NORB_FILES.values() for half in ("dat", "cat", "info"))


def open_smallnorb(tree: Tree, dataset: Dataset) -> Source:
    """SmallNORB (https://cs.nyu.edu/~ylclab/data/norb-v1.0-small): the left camera's images.

    ``-dat`` is ``(N, 2, 96, 96)`` uint8 and ``-info`` is ``(N, 4)`` int32: instance, elevation 0 to 8, azimuth 0, 2,
    to 34, lighting. ``preparation.target`` is ``"azimuth"`` (halved: 18 classes) or ``"elevation"`` (9). The ``-cat``
    files, the toys' categories, are not needed. Packed files (``.mat.gz``) are unpacked to the system's temporary
    folder first, 0.9 GB for both parts.

    Raises:
        InputError: No such target, missing or damaged files, or labels that do not fit.
    """
    target = dataset.preparation.target if dataset.preparation else ""
    if target not in _NORB_TARGETS:
        raise unknown("target", target, _NORB_TARGETS)
    labels: dict[str, np.ndarray] = {}
    for part, file in NORB_FILES.items():
        images, info = (_open_matrix(tree, tree.find(file.format(half))) for half in ("dat", "info"))
        name = tree.find(file.format("info"))
        what = f"{name} in {tree.place}"
        if images.ndim != 4 or images.shape[1:] != (2, 96, 96) or images.dtype != np.uint8:
            raise InputError(
                f"{tree.find(file.format('dat'))} in {tree.place} holds {images.dtype} {images.shape}, not uint8 "
                "(N, 2, 96, 96); download it again."
            )
        if info.ndim != 2 or info.shape[1] != 4 or info.dtype.kind != "i":
            raise InputError(f"{what} holds {info.dtype} {info.shape}, not int32 (N, 4); download it again.")
        if target == "elevation":
            labels[part] = check_integers(info[:, 1], len(images), 0, 8, f"Elevations of {what}")
        else:
            found = check_integers(info[:, 2], len(images), 0, 34, f"Azimuths of {what}")
            if odd := found[found % 2 == 1].tolist():
                raise InputError(f"Azimuths of {what} must be even, but one is {odd[0]}; download it again.")
            labels[part] = found // 2

    def rows(part: str, wanted: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        images = _open_matrix(tree, tree.find(NORB_FILES[part].format("dat")))
        for position in wanted.tolist():
            yield position, images[position, 0]

    return make_array_source(dataset, f"{tree.place} (smallNORB)", _NORB_TARGETS[target], labels, rows)


def _open_matrix(tree: Tree, name: str) -> np.ndarray:
    """Maps a file of smallNORB's "binary matrix" format into memory.

    Layout (https://cs.nyu.edu/~ylclab/data/norb-v1.0-small, section "File format"), all little-endian::

        magic    int32: 0x1E3D4C55 for uint8 values, 0x1E3D4C54 for int32
        ndim     int32
        shape    max(3, ndim) times int32, padded with 1
        values   in row-major order
    """
    path, what = tree.path_on_disk(name), f"{name} in {tree.place}"
    try:
        with path.open("rb") as file:
            head = np.frombuffer(file.read(8 + 4 * 8), np.dtype("<i4"))  # up to eight dimensions
        size = path.stat().st_size
    except (OSError, ValueError) as error:
        raise InputError(f"{what} is not a binary matrix ({error}); download it again.") from error
    if len(head) < 5 or int(head[0]) not in _NORB_TYPES or not 1 <= head[1] <= 8 or len(head) < 2 + head[1]:
        raise InputError(f"{what} does not begin like a binary matrix of bytes or int32; download it again.")
    dims = int(head[1])
    shape = tuple(int(n) for n in head[2 : 2 + dims])
    kind = _NORB_TYPES[int(head[0])]
    start = 8 + 4 * max(3, dims)
    expected = start + kind.itemsize * int(np.prod(shape, dtype=object))
    if min(shape) < 1 or size != expected:
        raise InputError(
            f"{what} has {size} bytes, but {expected} are expected for its shape {shape}; download it again."
        )
    return np.memmap(path, kind, "r", start, shape)


READERS = (
    Reader("dsprites", recognises_dsprites, open_dsprites),
    Reader("smallnorb", recognises_smallnorb, open_smallnorb),
)
