"""Cuts what the model sees out of decoded images: the centre for scoring, random views for training.

Everything random comes from one torch generator, so that a checkpoint that holds its state resumes bit for bit. timm's
transforms draw from the global generators of ``random`` and numpy: for each image both are seeded with a number drawn
from the torch generator, and put back after the batch.
"""

from __future__ import annotations

import contextlib
import functools
import random
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from s2a_bench.data.augment import SCALE, Augmentation

_global_generators = threading.Lock()


def cut_views(
    images: Sequence[np.ndarray],
    size: int,
    generator: torch.Generator | None,
    augmentation: Augmentation,
    interpolation: str = "bicubic",
    fill: tuple[int, int, int] = (128, 128, 128),
) -> np.ndarray:
    """Cuts ``(B, 3, size, size)`` uint8 views out of ``(3, h, w)`` uint8 images, whose sides are ``size`` or more.

    Args:
        images: The images.
        size: Side in pixels.
        generator: Draws random views; ``None``: the centres.
        augmentation: Which random views; ``none``: the centres, and nothing is drawn.
        interpolation: Key of ``images.INTERPOLATIONS``, for views that are resized.
        fill: Colour of what RandAugment moves in from outside.
    """
    if generator is None or augmentation.name == "none":
        return _stack((_cut_centre(image, size) for image in images), len(images), size)
    if augmentation.name == "crop":
        return _cut_crops(images, size, generator, augmentation.mirror)
    transform = _make_transform(size, augmentation, interpolation, fill)
    seeds = torch.randint(2**32, (len(images),), generator=generator).tolist()
    with _own_global_generators():
        return _stack((_transform_one(*each, transform) for each in zip(images, seeds, strict=True)), len(images), size)


def _stack(views: Iterator[np.ndarray], count: int, size: int) -> np.ndarray:
    out = np.empty((count, 3, size, size), np.uint8)
    for place, view in zip(out, views, strict=True):
        place[:] = view
    return out


def _cut_centre(image: np.ndarray, size: int) -> np.ndarray:
    top, left = (round((side - size) / 2) for side in image.shape[1:])
    return image[:, top : top + size, left : left + size]


def _cut_crops(images: Sequence[np.ndarray], size: int, generator: torch.Generator, mirror: bool) -> np.ndarray:
    """Random crops, mirrored with probability 1/2 where that is allowed.

    For three uniform numbers ``u`` in [0, 1) per image: ``top = floor(u_0 * (h - size + 1))``, ``left`` likewise with
    ``u_1`` and ``w``, mirrored if ``u_2 < 0.5``. All three are drawn for every image, so that the size of one image
    does not change the crops of the others.
    """
    out = np.empty((len(images), 3, size, size), np.uint8)
    draws = torch.rand(len(images), 3, generator=generator).tolist()
    for place, image, (*corner, side) in zip(out, images, draws, strict=True):
        free = (image.shape[1] - size, image.shape[2] - size)
        top, left = (min(int(draw * (free_i + 1)), free_i) for draw, free_i in zip(corner, free, strict=True))
        crop = image[:, top : top + size, left : left + size]
        place[:] = crop[:, :, ::-1] if mirror and side < 0.5 else crop
    return out


def _transform_one(image: np.ndarray, seed: int, transform: Callable[[Image.Image], Image.Image]) -> np.ndarray:
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    return np.asarray(transform(Image.fromarray(np.ascontiguousarray(image.transpose(1, 2, 0))))).transpose(2, 0, 1)


@functools.lru_cache(maxsize=8)
def _make_transform(
    size: int, augmentation: Augmentation, interpolation: str, fill: tuple[int, int, int]
) -> Callable[[Image.Image], Image.Image]:
    """Timm's random resized crop, a mirror, timm's RandAugment, as ``timm.data.create_transform`` chains them."""
    from timm.data.auto_augment import rand_augment_transform
    from timm.data.transforms import RandomResizedCropAndInterpolation, str_to_pil_interp

    crop: Any = RandomResizedCropAndInterpolation(size, scale=SCALE, interpolation=interpolation)
    policy: Callable[[Image.Image], Image.Image] | None = None
    if augmentation.policy is not None:
        options = {
            "translate_const": int(size * 0.45),
            "img_mean": fill,
            # Pillow rotates and shears with no filter finer than bicubic.
            "interpolation": str_to_pil_interp("bicubic" if interpolation == "lanczos" else interpolation),
        }
        policy = rand_augment_transform(augmentation.policy, options)

    def transform(image: Image.Image) -> Image.Image:
        image = crop(image)
        # Drawn where nothing is mirrored too, so that the switch changes nothing else.
        if random.random() < 0.5 and augmentation.mirror:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        return image if policy is None else policy(image)

    return transform


@contextlib.contextmanager
def _own_global_generators() -> Iterator[None]:
    """Puts the global generators of ``random``, numpy and torch (CPU) back after the block."""
    with _global_generators:
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])  # noqa: NPY002
            torch.set_rng_state(states[2])
