"""Decodes, checks and resizes image files. No other module decodes images."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from s2a_bench.data.limits import read_file
from s2a_bench.errors import InputError

_JPEG_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi", ".pjpeg", ".pjp")
IMAGE_SUFFIXES = (*_JPEG_SUFFIXES, ".png", ".ppm", ".pgm", ".pnm", ".bmp", ".webp")
LOSSY_SUFFIXES = (*_JPEG_SUFFIXES, ".webp")
UNREAD_SUFFIXES = (".tif", ".tiff", ".gif", ".apng", ".avif", ".heic", ".heif", ".jp2", ".j2k", ".jxl", ".tga", ".psd")
"""Image formats that are not read here. They are refused, since skipping them would silently lose images."""
_FORMATS = ("JPEG", "PNG", "PPM", "BMP", "WEBP", "GIF", "TIFF")
"""What is decoded, whatever a file is called: some sets hold GIF files that are called .jpg. Pillow's other formats
stay shut: EPS would start Ghostscript, and nobody needs their parsers."""
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

MAX_PIXELS = 89_478_485
"""Largest number of pixels accepted: Pillow's own limit against decompression bombs."""


def is_image(name: str) -> bool:
    """Whether a path names an image; hidden files and macOS's ``__MACOSX`` copies are not."""
    parts = name.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in parts)
    return not hidden and name.lower().endswith(IMAGE_SUFFIXES)


def read_image_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        InputError: It is missing, cannot be read or is far too large.
    """
    try:
        return read_file(path)
    except OSError as error:
        raise InputError(f"Image {path} cannot be read ({error.strerror or error}).") from error
    except ValueError as error:  # A zero byte in its name.
        raise InputError(f"Image {str(path)!r} cannot be read ({error}).") from error


def decode_rgb(data: bytes, name: str, upright: bool = False) -> Image.Image:
    """A fully decoded RGB image; greyscale, CMYK and palette images are converted, an alpha channel is dropped.

    Args:
        data: The image file's content.
        name: Its name in error messages.
        upright: Whether a rotation that it asks for (EXIF) is applied.

    Raises:
        InputError: As ``describe_conversions``.
    """
    with _open_decoded(data, name) as image:
        if upright:
            # An EXIF entry that cannot be read asks for no rotation.
            with contextlib.suppress(Exception):
                image = ImageOps.exif_transpose(image)
        return image.convert("RGB")


_CONVERSIONS = {
    "L": "is grey",
    "LA": "is grey with an alpha channel, which is dropped",
    "1": "is black and white",
    "P": "has a palette",
    "PA": "has a palette with alpha, which is dropped",
    "CMYK": "is CMYK",
    "YCbCr": "is YCbCr",
    "RGBA": "has an alpha channel, which is dropped",
}
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")


def describe_conversions(data: bytes, name: str, upright: bool = False) -> list[str]:
    """Lists what changes when an image is converted to 8-bit RGB: its mode, further frames, a rotation.

    Args:
        data: The image file's content.
        name: Its name in error messages.
        upright: As ``decode_rgb``.

    Raises:
        InputError: Empty, damaged, not an image, or one whose conversion to 8-bit RGB is not defined.
    """
    found = []
    with _open_decoded(data, name) as image:
        if image.mode != "RGB":
            found.append(f"{_CONVERSIONS.get(image.mode, f'is of mode {image.mode}')} and is converted to RGB")
        if getattr(image, "n_frames", 1) > 1:
            found.append(f"has {getattr(image, 'n_frames', 1)} frames, of which the first is used")
        if image.getexif().get(0x0112, 1) != 1:
            found.append(f"asks for a rotation (EXIF), which is {'applied' if upright else 'not applied'}")
    return found


@contextlib.contextmanager
def _open_decoded(data: bytes, name: str) -> Iterator[Image.Image]:
    """Opens and fully decodes an image, in its own mode."""
    if not data:
        raise InputError(f"Image {name} is empty (0 bytes); get the file again.")
    try:
        with open_image(data) as image:
            if image.width * image.height > (Image.MAX_IMAGE_PIXELS or MAX_PIXELS):
                raise Image.DecompressionBombError(f"{image.width} x {image.height} pixels")
            if image.mode in _DEEP_MODES:
                raise InputError(
                    f"Image {name} has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first."
                )
            image.load()
            yield image
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"Image {name} is huge ({reason}); make it smaller first.") from error
    except InputError:
        raise
    except Exception as error:  # A decoder may raise anything on a damaged file.
        reason = (str(error) or type(error).__name__).splitlines()[0]
        if isinstance(error, UnidentifiedImageError):
            reason = "its first bytes are those of no image format that is read"  # Pillow names the buffer's address
        raise InputError(f"Image {name} cannot be decoded ({reason}); it is damaged or not an image.") from error


def open_image(data: bytes) -> Image.Image:
    """Opens an image without decoding it; only formats in which datasets come are tried.

    Raises:
        Exception: It is no such image; Pillow raises errors of many types.
    """
    return Image.open(io.BytesIO(data), formats=_FORMATS)


def looks_reencoded(samples: Sequence[bytes]) -> bool:
    """Whether all JPEGs have the quantisation tables of Pillow's default quality, i.e. were probably re-encoded.

    The common scripts that write VTAB-1k folders use that default; originals come from many cameras and tools, whose
    tables differ.

    Args:
        samples: A few dozen image files.
    """
    out = io.BytesIO()
    Image.new("RGB", (16, 16)).save(out, "JPEG")
    with open_image(out.getvalue()) as image:
        usual = getattr(image, "quantization", None)
    tables = []
    for data in samples:
        try:
            with open_image(data) as image:
                tables.append(getattr(image, "quantization", None))
        except Exception:  # Whoever decodes it will say what is wrong with it.
            continue
    # A grey JPEG has the first table only.
    return bool(tables) and all(t and usual and all(usual.get(k) == v for k, v in t.items()) for t in tables)


def resize_image(image: Image.Image, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """``(3, size, size)`` uint8, resized directly (no crop, the aspect ratio is not kept) where the size differs.

    Args:
        image: RGB.
        size: Side in pixels.
        interpolation: Key of ``INTERPOLATIONS``.
    """
    if image.size != (size, size):
        image = image.resize((size, size), INTERPOLATIONS[interpolation])
    return np.asarray(image).transpose(2, 0, 1)


def resize_arrays(arrays: np.ndarray, size: int, interpolation: str = "bicubic") -> np.ndarray:
    """``(N, 3, H, W)`` uint8 images at another size; the same array where nothing changes."""
    if arrays.shape[2:] == (size, size):
        return arrays
    out = np.empty((len(arrays), 3, size, size), dtype=np.uint8)
    for i, array in enumerate(arrays):
        out[i] = resize_image(Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))), size, interpolation)
    return out
