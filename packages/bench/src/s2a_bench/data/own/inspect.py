"""Looks at every own image once: whether it can be used, what its content hashes to, and what it looks like."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from s2a_bench.data.folder import sha256
from s2a_bench.data.images import decode_rgb, open_image
from s2a_bench.data.own.duplicates import compute_hash
from s2a_bench.data.own.read import OwnSource
from s2a_bench.data.verify import Progress, map_bounded
from s2a_bench.errors import InputError

_MAY_MOVE = ("GIF", "WEBP", "PNG", "TIFF")
"""Formats whose further frames are an animation or pages; those of a phone's JPEG are previews and depth."""


@dataclasses.dataclass(frozen=True, slots=True)
class Look:
    """What is known of one image.

    Attributes:
        name: Of the image.
        sha256: Of its file; ``""``: it could not be read.
        bytes: Of its file.
        hash: Of what it shows, see ``duplicates.compute_hash``.
        fault: Why it cannot be used, in a sentence; ``""``: it can.
    """

    name: str
    sha256: str
    bytes: int
    hash: bytes | None = None
    fault: str = ""


def look_at_images(source: OwnSource, hashes: bool, progress: Progress) -> dict[str, Look]:
    """Reads and decodes every image, in threads.

    Args:
        source: The images.
        hashes: Whether what they show is hashed.
        progress: Called after each.

    Returns:
        By name.
    """
    found: dict[str, Look] = {}
    names = [image.name for image in source.images]
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as threads:
        read = source.read(names)
        for look in map_bounded(threads, lambda item: look_at_image(*item, hashes), _drop_repeated(read)):
            found[look.name] = look
            progress("looking at the images", len(found), len(names))
    if missing := [name for name in names if name not in found]:
        raise InputError(
            f"{source.place} does not give {missing[0]} ({len(missing)} images are missing); get it again."
        )
    return found


def _drop_repeated(read: Iterable[tuple[str, bytes | InputError]]) -> Iterator[tuple[str, bytes | InputError]]:
    seen: set[str] = set()
    for name, data in read:
        if name not in seen:
            seen.add(name)
            yield name, data


def look_at_image(name: str, data: bytes | InputError, hashes: bool = True) -> Look:
    """Decodes one image.

    Args:
        name: Of the image.
        data: Its file, or why that cannot be read.
        hashes: Whether what it shows is hashed.
    """
    if isinstance(data, InputError):
        return Look(name, "", 0, fault=str(data))
    digest = sha256(data)
    try:
        _check_single(name, data)
        image = decode_rgb(data, name, upright=True)
        value = compute_hash(image) if hashes else None
    except InputError as error:
        return Look(name, digest, len(data), fault=str(error))
    return Look(name, digest, len(data), value)


def _check_single(name: str, data: bytes) -> None:
    """Refuses animations."""
    try:
        with open_image(data) as image:
            frames = getattr(image, "n_frames", 1) if image.format in _MAY_MOVE else 1
    except Exception:  # Decoding says what is wrong with it.
        return
    if frames > 1:
        raise InputError(f"Image {name} is animated or has several pages ({frames} frames); save one frame as PNG.")
