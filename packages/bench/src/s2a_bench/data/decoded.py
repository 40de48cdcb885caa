"""Decoded images of a list: from a cache on disk, from memory, or decoded when they are read.

Two forms, both uint8: *square* ``(3, size, size)``, resized directly; and *short*, whose short side is ``8/7 * size``
with the aspect ratio kept, from which crops are cut (as VPT does for FGVC: 256 and 224,
https://github.com/KMnP/vpt).

The cache is one file per list, size, interpolation and Pillow version, whose checksums ``pixel_file`` describes::

    <dataset>/.cache/<list>-<data_id>-<form><size>-<interpolation>-pillow<version>.u8

A damaged one is made again from the images: a small file is checked when it is opened, the blocks of a larger one when
they are first read.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

import numpy as np
import PIL
import torch

from s2a_bench.data.augment import Augmentation
from s2a_bench.data.folder import CACHE, ListedImage, Manifest, image_root, sha256
from s2a_bench.data.images import INTERPOLATIONS, MAX_PIXELS, decode_rgb, read_image_bytes, resize_image
from s2a_bench.data.pixel_file import PixelFile, open_pixel_file, write_pixel_file
from s2a_bench.data.views import cut_views
from s2a_bench.errors import InputError
from s2a_bench.files import locked, replacing

CACHE_LIMIT = 64_000_000_000
"""Largest decoded list, in bytes, that is kept on disk."""

MEMORY_LIMIT = 1_000_000_000
"""Largest decoded list, in bytes, that a process keeps for itself where there is no cache."""

WHOLE_CHECK_LIMIT = 64_000_000
"""Largest decoded list, in bytes, whose cache is checked as a whole when it is opened (well below 0.1 s)."""

DecodedForm = Literal["square", "short"]


class Pixels(Protocol):
    """Reads images of a list by index."""

    def __call__(self, indices: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        """``(B, 3, size, size)`` uint8 at ``(B,)`` indices; with a generator, random views where the form is short."""
        ...


@dataclasses.dataclass(frozen=True)
class ImageList:
    """Images of a list on disk and the form they are decoded to.

    Attributes:
        folder: The dataset's folder.
        manifest: Of the folder, if it has one.
        entries: The images.
        size: Side in pixels of what the model sees.
        interpolation: Key of ``images.INTERPOLATIONS``.
        form: Square or short, see the module.
        augmentation: Random views that are cut out of the short form for training.
        fill: Colour of what these move in from outside.
    """

    folder: Path
    manifest: Manifest | None
    entries: Sequence[ListedImage]
    size: int
    interpolation: str
    form: DecodedForm
    augmentation: Augmentation = dataclasses.field(default_factory=Augmentation)
    fill: tuple[int, int, int] = (128, 128, 128)

    def cut_views(self, images: Sequence[np.ndarray], generator: torch.Generator | None) -> np.ndarray:
        """``(B, 3, size, size)`` uint8 views of decoded images of the short form, see ``views.cut_views``."""
        return cut_views(images, self.size, generator, self.augmentation, self.interpolation, self.fill)

    def decode_one(self, index: int) -> np.ndarray:
        """One image, decoded now: ``(3, h, w)`` uint8.

        Raises:
            InputError: It is missing, damaged, or not the one that was prepared.
        """
        path = self.entries[index].path
        file = image_root(self.folder, self.manifest) / path
        data = read_image_bytes(file)
        if self.manifest is not None and sha256(data) != self.manifest.files[path].sha256:
            raise InputError(f"Image {file} was changed after it was prepared; prepare the dataset again.")
        image = decode_rgb(data, str(file), self.manifest is not None and self.manifest.upright)
        if self.form == "square":
            return resize_image(image, self.size, self.interpolation)
        width, height = image.size
        short = short_side(self.size)
        shape = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
        if shape[0] * shape[1] > MAX_PIXELS:
            raise InputError(f"Image {file} is far too long and narrow ({width} x {height} pixels); crop it first.")
        if shape != image.size:
            image = image.resize(shape, INTERPOLATIONS[self.interpolation])
        return np.asarray(image).transpose(2, 0, 1)

    def decode_many(self, indices: Sequence[int]) -> Iterator[np.ndarray]:
        """Decodes images in the given order, in threads: Pillow releases the global interpreter lock."""
        if len(indices) < 2:
            yield from map(self.decode_one, indices)
        else:
            yield from _decoding_threads().map(self.decode_one, indices)


def short_side(size: int) -> int:
    """Pixels of the short side from which crops of ``size`` are cut: 256 for 224."""
    return round(size * 8 / 7)


def _ignore_note(text: str) -> None:
    pass


def open_pixels(
    listed: ImageList, name: str | None, read_once: bool = False, note: Callable[[str], None] = _ignore_note
) -> Pixels:
    """Opens a list's images: from the cache, else decoded into memory, else decoded on demand.

    Args:
        listed: The images.
        name: Names list and data id in the cache's file name; ``None``: use no cache.
        read_once: Each image is read once: without a cache, nothing is kept in memory.
        note: Told, in a sentence, when a damaged cache was made again; also later, when its images are read.

    Raises:
        InputError: An image is missing, damaged, or was changed after it was prepared.
    """
    if name is not None and (cached := _open_or_write_cache(listed, name, note)) is not None:
        return _pixels_from_cache(listed, name, cached, note)
    if not read_once and len(listed.entries) * _estimate_image_bytes(listed) <= MEMORY_LIMIT:
        images = list(listed.decode_many(range(len(listed.entries))))
        if listed.form == "square":
            stacked = np.stack(images) if images else np.empty((0, 3, listed.size, listed.size), np.uint8)
            return lambda indices, generator: stacked[indices]
        return lambda indices, generator: listed.cut_views([images[i] for i in indices], generator)
    return decode_on_demand(listed)


def decode_on_demand(listed: ImageList) -> Pixels:
    """Decodes images each time they are requested."""

    def pixels(indices: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        images = list(listed.decode_many(indices.tolist()))
        if listed.form == "short":
            return listed.cut_views(images, generator)
        return np.stack(images) if images else np.empty((0, 3, listed.size, listed.size), np.uint8)

    return pixels


def _estimate_image_bytes(listed: ImageList) -> int:
    """Approximate bytes of one decoded image; photographs of the short form count as 4:3."""
    side = listed.size if listed.form == "square" else short_side(listed.size)
    return 3 * side * side if listed.form == "square" else 4 * side * side


@functools.cache
def _decoding_threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(min(8, os.cpu_count() or 1), thread_name_prefix="decode")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_decoding_threads.cache_clear)  # a fork has no threads


# --- The cache -------------------------------------------------------------------------------------------------------


def _pixels_from_cache(listed: ImageList, name: str, cached: PixelFile, note: Callable[[str], None]) -> Pixels:
    on_demand = decode_on_demand(listed)
    current: PixelFile | None = cached

    def pixels(indices: np.ndarray, generator: torch.Generator | None) -> np.ndarray:
        nonlocal current
        file = current  # Another thread may replace it meanwhile.
        if file is not None and not file.holds(indices):
            file = _open_or_write_cache(listed, name, note, check=True)
            if file is not None and not file.holds(indices):  # a disk that does not keep what is written
                file = None
            current = file
        if file is None:
            return on_demand(indices, generator)
        data, shapes = file.pixels, file.shapes
        if listed.form == "square":
            return data.reshape(len(shapes), 3, listed.size, listed.size)[indices]
        images = []
        for offset, height, width in shapes[indices].tolist():
            images.append(data[offset : offset + 3 * height * width].reshape(3, height, width))
        return listed.cut_views(images, generator)

    return pixels


def _open_or_write_cache(
    listed: ImageList, name: str, note: Callable[[str], None], check: bool = False
) -> PixelFile | None:
    """Opens the decoded list under ``.cache`` and writes it first if need be; ``None``: too large, or not writable.

    A process that finds another one writing waits for it and uses its file.

    Args:
        listed: The images.
        name: See ``open_pixels``.
        note: See ``open_pixels``.
        check: Whether a file of any size is checked as a whole.
    """
    stem = f"{name}-{listed.form}{listed.size}-{listed.interpolation}-pillow{PIL.__version__}"
    path = listed.folder / CACHE / f"{stem}.u8"
    try:
        found = _open_cache(path, listed, check)
        if found is None and listed.entries:
            path.parent.mkdir(exist_ok=True)
            with locked(path.parent, wait=True):
                # Another process may have written it while this one waited for the lock.
                found = _open_cache(path, listed, check)
                if found is None:
                    # Left behind by a process that was killed while it wrote.
                    for stale in path.parent.glob(f".{path.name}.*.tmp"):
                        stale.unlink()
                    # At most half of the free disk.
                    expected = len(listed.entries) * _estimate_image_bytes(listed)
                    if expected > min(CACHE_LIMIT, shutil.disk_usage(path.parent).free // 2):
                        return None
                    damaged = path.exists()
                    with replacing(path) as file:
                        _write_cache(file, path.name, listed)
                    if damaged:
                        note(
                            f"The decoded images in {path} were damaged, or of an earlier version without checksums; "
                            "they were made again from the image files."
                        )
                    found = _open_cache(path, listed, check)
    except OSError:
        return None
    return found


def _open_cache(path: Path, listed: ImageList, check: bool) -> PixelFile | None:
    """Opens a cache file, which is checked as a whole if that is quick or asked for; ``None``: absent or damaged."""
    found = open_pixel_file(path, len(listed.entries))
    if found is not None and (check or found.pixels.nbytes <= WHOLE_CHECK_LIMIT) and not found.is_whole():
        return None
    return found


def _write_cache(file: BinaryIO, name: str, listed: ImageList) -> None:
    """Decodes a list into a cache file, 64 images at a time."""
    n = len(listed.entries)
    parts = (listed.decode_many(range(start, min(start + 64, n))) for start in range(0, n, 64))
    write_pixel_file(file, name, n, itertools.chain.from_iterable(parts))
