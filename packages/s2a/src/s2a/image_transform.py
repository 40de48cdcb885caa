"""From a PIL image to the tensor that a model takes: upright, RGB, resized, cropped, normalised."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

from s2a.errors import S2AError

_FILTERS = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")
_LARGEST_SIDE = 100_000


@dataclasses.dataclass(frozen=True)
class ImageTransform:
    """What an adapter expects of its images; called with a PIL image, it gives the model's input.

    The image is turned upright (EXIF) and converted to RGB; alpha is dropped. ``"crop"``: its short side becomes
    ``round(size * 8 / 7)`` pixels with the aspect ratio kept, and the central ``size`` x ``size`` pixels are cut out.
    ``"squash"``: it is resized to ``size`` as a whole. The result is ``(pixels / 255 - mean) / std``.

    Attributes:
        size: Side in pixels; for ``"squash"`` also ``(height, width)``.
        mean: Per channel, for pixels in [0, 1].
        std: Per channel, above 0.
        interpolation: ``nearest``, ``bilinear``, ``bicubic`` or ``lanczos``.
        resize: ``crop`` or ``squash``.

    Raises:
        S2AError: Other values.
    """

    size: int | tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str = "bicubic"
    resize: str = "crop"

    def __post_init__(self) -> None:
        sides = self.size if isinstance(self.size, Sequence) else (self.size, self.size)
        if (
            isinstance(self.size, str)
            or len(sides) != 2
            or any(type(s) is not int or not 1 <= s <= _LARGEST_SIDE for s in sides)
        ):
            raise S2AError(f"image size {self.size!r} must be a side in pixels, or height and width.")
        object.__setattr__(self, "size", sides[0] if sides[0] == sides[1] else tuple(sides))
        for name in ("mean", "std"):
            values = getattr(self, name)
            if not isinstance(values, Sequence) or len(values) != 3 or not all(_is_finite(v) for v in values):
                raise S2AError(f"image {name} {values!r} must be three numbers, one per channel.")
            object.__setattr__(self, name, tuple(float(v) for v in values))
        if min(self.std) <= 0:
            raise S2AError(f"image std {self.std!r} must be above 0.")
        if not isinstance(self.interpolation, str) or self.interpolation not in _FILTERS:
            raise S2AError(f"image interpolation {self.interpolation!r} must be one of {', '.join(_FILTERS)}.")
        if self.resize not in ("crop", "squash"):
            raise S2AError(f"image resize {self.resize!r} must be 'crop' or 'squash'.")
        if self.resize == "crop" and not isinstance(self.size, int):
            raise S2AError(f"image size {self.size!r} is no square, which 'crop' needs; use resize='squash'.")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of the result."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    def __call__(self, image: Image.Image) -> Tensor:
        """``(3, height, width)`` float32 of one image.

        Raises:
            S2AError: No PIL image, or one with more than 8 bits a channel.
        """
        pixels = torch.from_numpy(self.pixels(image))
        mean, std = (torch.tensor(v, dtype=torch.float32).view(3, 1, 1) for v in (self.mean, self.std))
        return pixels.float().div_(255).sub_(mean).div_(std)

    def pixels(self, image: Image.Image) -> np.ndarray:
        """``(3, height, width)`` uint8 of one image, before normalisation.

        Raises:
            S2AError: As for a call.
        """
        if not isinstance(image, Image.Image):
            raise S2AError(f"transform takes a PIL image (PIL.Image.open(path)), not {type(image).__name__}.")
        if image.mode in _DEEP_MODES:
            raise S2AError(f"the image has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits first.")
        upright = ImageOps.exif_transpose(image).convert("RGB")
        height, width = self.sides
        top = left = 0
        if self.resize == "squash":
            shape = (width, height)
        else:
            shape = _with_short_side(upright.size, round(height * 8 / 7))
            top, left = round((shape[1] - height) / 2), round((shape[0] - width) / 2)
        if shape != upright.size:
            upright = upright.resize(shape, _FILTERS[self.interpolation])
        array = np.asarray(upright).transpose(2, 0, 1)
        return np.ascontiguousarray(array[:, top : top + height, left : left + width])


def _with_short_side(size: tuple[int, int], short: int) -> tuple[int, int]:
    """Width and height with the short side at ``short`` pixels, as torchvision's ``Resize`` rounds the long one."""
    width, height = size
    return (short, int(short * height / width)) if width <= height else (int(short * width / height), short)


def make_transform(values: Any) -> ImageTransform:
    """The transform whose fields are the items of a mapping.

    Raises:
        S2AError: No mapping, other keys, or values that ``ImageTransform`` refuses.
    """
    known = [field.name for field in dataclasses.fields(ImageTransform)]
    if not isinstance(values, Mapping):
        raise S2AError(f"image is a mapping of {', '.join(known)}, not {type(values).__name__}.")
    if wrong := sorted(str(key) for key in values if key not in known):
        raise S2AError(f"image has the keys {wrong}; it is a mapping of {', '.join(known)}.")
    if lost := [key for key in known[:3] if key not in values]:
        raise S2AError(f"image lacks {', '.join(lost)}.")
    return ImageTransform(**values)


def default_transform(model: nn.Module, sides: tuple[int, int]) -> ImageTransform:
    """The transform with a timm model's own mean, standard deviation and interpolation.

    Raises:
        S2AError: They are not those of images of three channels.
    """
    own = resolve_model_data_config(model)
    resize = "crop" if sides[0] == sides[1] else "squash"
    return ImageTransform(sides, own["mean"], own["std"], str(own["interpolation"]), resize)


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
