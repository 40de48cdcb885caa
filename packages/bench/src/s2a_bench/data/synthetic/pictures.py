"""Small made-up pictures: a class's pattern with an index written into it, so that no two of a set are the same."""

from __future__ import annotations

import contextlib
import contextvars
import functools
import io
from collections.abc import Callable, Iterator

import numpy as np
from PIL import Image

_drawn: contextvars.ContextVar[Callable[[], None] | None] = contextvars.ContextVar("drawn", default=None)


@contextlib.contextmanager
def count_pictures(callback: Callable[[int], None]) -> Iterator[None]:
    """Tells how many pictures have been drawn inside the block, after every one."""
    count = 0

    def one() -> None:
        nonlocal count
        count += 1
        callback(count)

    mark = _drawn.set(one)
    try:
        yield
    finally:
        _drawn.reset(mark)


def report_picture() -> None:
    """A picture has been drawn; for makers that do not draw with ``picture``."""
    if (one := _drawn.get()) is not None:
        one()


@functools.lru_cache(maxsize=2048)
def _class_pattern(label: int, classes: int, width: int, height: int) -> np.ndarray:
    """``(height, width, 3)`` float32 in [40, 215]: stripes whose direction, frequency and colour say the class."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    angle = np.pi * (label * 0.6180339887 % 1.0)
    cycles = 1.5 + 3.0 * (label / max(1, classes))
    wave = np.cos(2 * np.pi * cycles * (x * np.cos(angle) / width + y * np.sin(angle) / height))
    tint = np.array([label * 0.754877 % 1.0, label * 0.569840 % 1.0, label * 0.430160 % 1.0], np.float32)
    return (128 + 60 * wave[..., None] * (0.4 + 0.6 * tint) + 27 * (tint - 0.5)).astype(np.float32)


def draw_picture(label: int, index: int, classes: int, size: tuple[int, int] = (16, 16), seed: int = 0) -> np.ndarray:
    """One picture.

    Args:
        label: From 0.
        index: Unique within the dataset.
        classes: Number of classes.
        size: Width and height in pixels; at least 8 each.
        seed: Of the dataset.

    Returns:
        ``(height, width, 3)`` uint8.
    """
    width, height = size
    base = _class_pattern(label, classes, width, height)
    rng = np.random.Generator(np.random.PCG64([seed, index]))
    noise = rng.integers(-20, 21, (height, width, 1), dtype=np.int16)
    out = (base + noise).clip(0, 255).astype(np.uint8)
    # Four 4 x 4 blocks, which a JPEG keeps, spell the index in base 16: pictures of one class never agree.
    for i in range(4):
        out[4 * (i // 2) : 4 * (i // 2) + 4, 4 * (i % 2) : 4 * (i % 2) + 4] = (index >> (4 * i) & 15) * 17
    report_picture()
    return out


def draw_grey_picture(
    label: int, index: int, classes: int, size: tuple[int, int] = (16, 16), seed: int = 0
) -> np.ndarray:
    """The same as ``(height, width)`` uint8."""
    return draw_picture(label, index, classes, size, seed)[..., 0]


def encode_jpeg(array: np.ndarray, quality: int = 90) -> bytes:
    """A JPEG file of ``(H, W, 3)`` or ``(H, W)`` uint8."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, "JPEG", quality=quality)
    return out.getvalue()


def encode_png(array: np.ndarray) -> bytes:
    """A PNG file of ``(H, W, 3)`` or ``(H, W)`` uint8."""
    out = io.BytesIO()
    Image.fromarray(array).save(out, "PNG", compress_level=1)
    return out.getvalue()
