"""Reads folders and archives of images into arrays; the one place that decodes."""

from __future__ import annotations

import gzip
import io
import lzma
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from s2a_bench.errors import InputError

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".webp")
LOSSY_SUFFIXES = (".jpg", ".jpeg", ".webp")
INTERPOLATIONS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}

_ARCHIVE_ERRORS = (
    tarfile.TarError,
    zipfile.BadZipFile,
    gzip.BadGzipFile,
    zlib.error,
    lzma.LZMAError,
    EOFError,
    NotImplementedError,  # a zip with an unknown compression
    RuntimeError,  # an encrypted zip
)
_IMAGE_ERRORS = (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError)


def is_image(name: str) -> bool:
    """Whether a path names an image; hidden files and macOS's ``__MACOSX`` copies are not."""
    parts = name.split("/")
    hidden = any(part.startswith((".", "__MACOSX")) and part not in (".", "..") for part in parts)
    return not hidden and name.lower().endswith(IMAGE_SUFFIXES)


def _tar_members(archive: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
    for member in archive:
        handle = archive.extractfile(member) if member.isfile() and is_image(member.name) else None
        if handle is not None:
            yield member.name, handle.read()
    # A damaged header ends the loop like the end of the archive does: only the compression's checksum tells.
    _drain(archive.fileobj)


def _drain(stream: Any) -> None:
    while stream is not None and stream.read(1 << 20):
        pass


def _zip_members(archive: zipfile.ZipFile, inner: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    names = sorted(info.filename for info in archive.infolist() if not info.is_dir())
    nested = [name for name in names if name.rsplit("/", 1)[-1] in inner and not name.startswith("__MACOSX")]
    if nested:
        with archive.open(nested[0]) as stream, tarfile.open(fileobj=stream, mode="r|*") as tar:
            yield from _tar_members(tar)
            _drain(stream)
        return
    for name in names:
        if is_image(name):
            yield name, archive.read(name)


def members(source: Path, inner: tuple[str, ...] = ()) -> Iterator[tuple[str, bytes]]:
    """Name and bytes of every image in a folder, tar archive or zip archive.

    Args:
        source: Folder or archive.
        inner: File names of tar archives; where a zip holds one, that archive's images are read instead.

    Raises:
        FileNotFoundError: No such source.
        InputError: A broken or unknown archive, or a file that cannot be read.
    """
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            name = path.relative_to(source).as_posix()
            if is_image(name) and path.is_file():
                yield name, read_bytes(path)
    elif source.is_file():
        try:
            if zipfile.is_zipfile(source):
                with zipfile.ZipFile(source) as archive:
                    yield from _zip_members(archive, inner)
            else:
                with tarfile.open(source) as archive:
                    yield from _tar_members(archive)
        except _ARCHIVE_ERRORS as error:
            reason = (str(error) or type(error).__name__).splitlines()[0].rstrip(":")
            raise InputError(f"{source} is not a readable archive ({reason}); download it again.") from error
        except OSError as error:
            raise InputError(f"{source} cannot be read ({error}); check the file and its permissions.") from error
    else:
        raise FileNotFoundError(f"{source} does not exist; expected a folder or archive of images.")


def read_bytes(path: Path) -> bytes:
    """The content of an image file.

    Raises:
        InputError: It is missing or cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"Image {path} cannot be read ({error.strerror or error}).") from error


def decode(data: bytes, name: str) -> Image.Image:
    """A fully decoded RGB image; greyscale, CMYK and palette images are converted.

    Args:
        data: The image file's content.
        name: What to call it in an error.

    Raises:
        InputError: Not an image, or a truncated one.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            return image.convert("RGB")
    except _IMAGE_ERRORS as error:
        raise InputError(f"Image {name} cannot be decoded ({error}); it is damaged or not an image.") from error


def to_array(image: Image.Image, size: int, interpolation: str = "bicubic") -> np.ndarray:
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
        out[i] = to_array(Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0))), size, interpolation)
    return out


def load_class_folders(source: Path, split: str, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Images of ``<split>/<class>/*`` from a folder or archive.

    Args:
        source: Folder or archive.
        split: ``"train"`` or ``"test"``.
        size: Side in pixels; images of another size are resized (bicubic).

    Returns:
        ``(N, 3, size, size)`` uint8 images, ``(N,)`` int64 labels in the order of the sorted class names, those names.

    Raises:
        FileNotFoundError: No such source, or no image of the split in it.
        InputError: A broken archive or image.
    """
    import torch  # takes seconds, and preparing data does without it

    found: list[tuple[str, str, bytes]] = []
    for name, data in members(source):
        parts = name.split("/")
        if len(parts) >= 3 and parts[-3] == split:
            found.append((parts[-2], parts[-1], data))
    if not found:
        raise FileNotFoundError(f"{source} holds no image under {split}/<class>/; expected that layout.")
    found.sort(key=lambda item: item[:2])
    classes = sorted({item[0] for item in found})
    index = {name: i for i, name in enumerate(classes)}
    images = torch.empty(len(found), 3, size, size, dtype=torch.uint8)
    for i, (label, name, data) in enumerate(found):
        images[i] = torch.from_numpy(to_array(decode(data, f"{split}/{label}/{name}"), size).copy())
    return images, torch.tensor([index[item[0]] for item in found]), classes
