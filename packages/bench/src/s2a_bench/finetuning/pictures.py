"""Pictures for the page: small JPEGs as ``data:`` addresses, so that the page is one file."""

from __future__ import annotations

import base64
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageOps

THUMBNAIL = 176
"""Longest side of a thumbnail in pixels: sharp at 88 CSS pixels on a dense screen."""


@dataclasses.dataclass(frozen=True)
class Mistake:
    """An image that the model names wrongly.

    Attributes:
        path: Of the image, relative to the dataset's folder of images.
        label: Its class.
        predicted: The class that the model names.
        probability: With which it does, in [0, 1].
        picture: ``data:`` address of a thumbnail; ``""`` where the image could not be opened.
    """

    path: str
    label: str
    predicted: str
    probability: float
    picture: str = ""


def find_mistakes(
    labels: Sequence[int], predicted: Sequence[int], probabilities: Sequence[float], count: int
) -> list[int]:
    """Indices of the images that are named wrongly with the highest probability, the highest first.

    Args:
        labels: Class of each image.
        predicted: Class that the model names.
        probabilities: Of ``predicted``.
        count: At most so many.
    """
    wrong = [i for i, (label, other) in enumerate(zip(labels, predicted, strict=True)) if label != other]
    return sorted(wrong, key=lambda i: (-probabilities[i], i))[:count]


def thumbnail(file: Path, side: int = THUMBNAIL) -> str:
    """An image as the ``data:`` address of a small JPEG: upright by its EXIF rotation, on white where transparent.

    Returns:
        ``""`` where the file cannot be read as an image.
    """
    try:
        with Image.open(file) as opened:
            opened.draft("RGB", (side * 2, side * 2))  # a JPEG is decoded small
            image = ImageOps.exif_transpose(opened)
            if image.mode not in ("RGB", "L"):
                clear = image.convert("RGBA")
                image = Image.new("RGB", clear.size, "white")
                image.paste(clear, mask=clear.getchannel("A"))
            image = image.convert("RGB")
            image.thumbnail((side, side))
            held = io.BytesIO()
            image.save(held, "JPEG", quality=82)
    except Exception:  # whatever Pillow says of a damaged file: the page is made without it
        return ""
    return "data:image/jpeg;base64," + base64.b64encode(held.getvalue()).decode()
