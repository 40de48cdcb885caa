"""Files of decoded images with checksums, mapped into memory by every process that reads them.

All integers are little-endian; ``n`` is the number of images and ``P`` the number of bytes of all pixels together::

    pixels     of image 0, 1, ..., n-1 one after the other: 3 * h_i * w_i bytes, (3, h_i, w_i) in row-major order
    shapes     (n, 3) int64: byte offset, height and width of each image
    checksums  (ceil(P / 2**20),) uint32: CRC-32 of each block of 1 MiB of the pixels
    sizes      (2,) int64: n, P
    digest     32 bytes: SHA-256 of the file's own name, shapes, checksums and sizes

What describes the pixels stands at the end, since heights and widths are known only when all images are decoded. The
digest is checked when a file is opened, so that a file under another's name, or cut short, is not one of this format.
A block is compared with its checksum when the first of its images is read: no pixel is given out unchecked, and a large
file need not be read as a whole to use a part of it.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO

import numpy as np

BLOCK = 1 << 20
"""Bytes of pixels under one checksum."""

_DIGEST = 32
_TRAILER = 16 + _DIGEST  # sizes and digest


class PixelFile:
    """An open file of decoded images.

    Attributes:
        pixels: ``(P,)`` uint8, mapped.
        shapes: ``(n, 3)`` int64: byte offset, height, width.
    """

    def __init__(self, pixels: np.ndarray, shapes: np.ndarray, checksums: np.ndarray) -> None:
        """Combines the parts of a file whose digest is right."""
        self.pixels = pixels
        self.shapes = shapes
        self._checksums = checksums
        self._unchecked = np.ones(len(checksums), bool)

    def holds(self, indices: np.ndarray) -> bool:
        """Whether the images at ``(B,)`` indices are those that were written; each block is read for it once.

        Raises:
            IndexError: There is no such image.
        """
        starts = self.shapes[indices, 0]
        ends = starts + 3 * self.shapes[indices, 1] * self.shapes[indices, 2]
        if not self._unchecked.any():
            return True
        ranges = zip((starts // BLOCK).tolist(), ((ends - 1) // BLOCK).tolist(), strict=True)
        return all(self._check_block(block) for first, last in ranges for block in range(first, last + 1))

    def is_whole(self) -> bool:
        """Whether all images are those that were written."""
        return all(self._check_block(block) for block in range(len(self._checksums)))

    def _check_block(self, block: int) -> bool:
        if self._unchecked[block]:
            data = self.pixels[block * BLOCK : (block + 1) * BLOCK]
            if zlib.crc32(np.ascontiguousarray(data).data) != self._checksums[block]:
                return False
            self._unchecked[block] = False
        return True


def open_pixel_file(path: Path, count: int | None = None) -> PixelFile | None:
    """Maps a file into memory; ``None``: it is absent, damaged where it describes its pixels, or of another name.

    Args:
        path: The file.
        count: How many images it must hold; ``None``: any number.

    Raises:
        OSError: It is there but cannot be read.
    """
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        file_bytes = os.fstat(file.fileno()).st_size
        if file_bytes < _TRAILER:
            return None
        n, pixel_bytes = np.frombuffer(_read_at(file, file_bytes - _TRAILER, 16), "<i8").tolist()
        blocks = -(-pixel_bytes // BLOCK)
        if n < 1 or pixel_bytes < 1 or count not in (None, n):
            return None
        if file_bytes != pixel_bytes + 24 * n + 4 * blocks + _TRAILER:
            return None
        described = _read_at(file, pixel_bytes, 24 * n + 4 * blocks + 16)
        if _read_at(file, file_bytes - _DIGEST, _DIGEST) != _digest(path.name, described):
            return None
        shapes = np.frombuffer(described, "<i8", 3 * n).reshape(n, 3)
        checksums = np.frombuffer(described, "<u4", blocks, offset=24 * n)
        return PixelFile(np.memmap(file, np.uint8, "r", shape=(pixel_bytes,)), shapes, checksums)


def write_pixel_file(file: BinaryIO, name: str, count: int, images: Iterable[np.ndarray]) -> None:
    """Writes images, one after the other.

    Args:
        file: Empty; not mapped, so that a full disk raises ``OSError`` and does not kill the process.
        name: Of the finished file.
        count: How many images there are, at least one.
        images: ``(3, h, w)`` uint8 each.
    """
    shapes = np.empty((count, 3), "<i8")
    checksums: list[int] = []
    offset = 0
    for i, image in enumerate(images):
        shapes[i] = offset, image.shape[1], image.shape[2]
        data = np.ascontiguousarray(image).reshape(-1).data
        file.write(data)
        # The image continues the block that the one before it began, and may begin others.
        while len(data):
            if offset % BLOCK == 0:
                checksums.append(0)
            part = data[: BLOCK - offset % BLOCK]
            checksums[-1] = zlib.crc32(part, checksums[-1])
            offset, data = offset + len(part), data[len(part) :]
    described = shapes.tobytes() + np.array(checksums, "<u4").tobytes() + np.array([count, offset], "<i8").tobytes()
    file.write(described)
    file.write(_digest(name, described))


def is_earlier_version(path: Path) -> bool:
    """Whether a file has the form without checksums that was written before: pixels, shapes, and ``n`` at the end."""
    file_bytes = path.stat().st_size
    with path.open("rb") as file:
        n = int.from_bytes(_read_at(file, max(0, file_bytes - 8), 8), "little")
        if n < 1 or file_bytes < 24 * n + 8:
            return False
        shapes = np.frombuffer(_read_at(file, file_bytes - 8 - 24 * n, 24 * n), "<i8").reshape(n, 3)
    return bool(3 * shapes[:, 1] @ shapes[:, 2] == file_bytes - 8 - 24 * n and shapes[0, 0] == 0)


def _read_at(file: BinaryIO, offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


def _digest(name: str, described: bytes) -> bytes:
    return hashlib.sha256(name.encode("utf-8", "surrogateescape") + b"\0" + described).digest()
