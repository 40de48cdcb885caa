"""The transform of an adapter gives exactly the pixels on which the bench scored it."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import s2a
import torch
from PIL import Image
from s2a.image_transform import ImageTransform, make_transform
from s2a_bench.data.decoded import ImageList, decode_on_demand
from s2a_bench.data.folder import ListedImage
from s2a_bench.data.loading import Images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def noise(width: int, height: int, mode: str = "RGB") -> Image.Image:
    """A smooth image with some noise, so that every pixel's place and filter shows."""
    rng = np.random.default_rng(width * 1000 + height)
    y, x = np.mgrid[:height, :width]
    waves = np.stack([np.sin(x / 7), np.cos(y / 5), np.sin((x + y) / 11), np.cos(x / 3)], -1)
    array = np.clip(128 + 80 * waves + rng.normal(0, 20, waves.shape), 0, 255).astype(np.uint8)
    return Image.fromarray(array, "RGBA").convert(mode) if mode != "P" else Image.fromarray(array[..., 0]).convert("P")


SHAPES = [
    (300, 200),
    (200, 300),
    (64, 64),
    (37, 37),
    (36, 36),
    (500, 33),
    (33, 500),
    (3, 200),
    (1, 1),
    (2, 3),
    (32, 40),
]


def scored(path: Path, size: int, form: str, interpolation: str) -> torch.Tensor:
    """What the bench's model gets of one image file when it is scored."""
    entries = [ListedImage(path.name, 0, 1)]
    listed = ImageList(path.parent, None, entries, size, interpolation, form)  # type: ignore[arg-type]
    images = Images(torch.zeros(1, dtype=torch.long), decode_on_demand(listed), MEAN, STD)
    return images.batch(torch.tensor([0]))[0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("size", "interpolation"), [(32, "bicubic"), (50, "bilinear")])
def test_crops_are_those_of_scoring(shape: tuple[int, int], size: int, interpolation: str, tmp_path: Path) -> None:
    noise(*shape).save(path := tmp_path / "image.png")
    transform = ImageTransform(size, MEAN, STD, interpolation)
    with Image.open(path) as image:
        assert torch.equal(transform(image), scored(path, size, "short", interpolation))
        squashed = ImageTransform(size, MEAN, STD, interpolation, "squash")(image)
    assert torch.equal(squashed, scored(path, size, "square", interpolation))


@pytest.mark.parametrize(
    ("mode", "suffix"), [("L", "png"), ("RGBA", "png"), ("LA", "png"), ("1", "png"), ("P", "png"), ("CMYK", "jpg")]
)
def test_images_of_every_mode_become_rgb_as_in_scoring(mode: str, suffix: str, tmp_path: Path) -> None:
    noise(60, 45, mode).save(path := tmp_path / f"image.{suffix}")
    with Image.open(path) as image:
        assert image.mode == mode
        assert torch.equal(ImageTransform(32, MEAN, STD)(image), scored(path, 32, "short", "bicubic"))


TURNS = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: np.rot90(a),
}
"""EXIF orientation -> what makes the image upright (height, width, channels)."""


@pytest.mark.parametrize("orientation", TURNS)
def test_photos_are_turned_upright(orientation: int, tmp_path: Path) -> None:
    stored = noise(90, 60)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(path := tmp_path / "turned.png", exif=exif)
    upright = Image.fromarray(np.ascontiguousarray(TURNS[orientation](np.asarray(stored))))
    upright.save(tmp_path / "upright.png")
    with Image.open(path) as image:
        assert image.getexif()[0x0112] == orientation
        got = ImageTransform(32, MEAN, STD)(image)
    assert torch.equal(got, scored(tmp_path / "upright.png", 32, "short", "bicubic"))


def test_the_values_are_the_pixels_normalised() -> None:
    """A grey image of the mean colour is 0 everywhere; by hand for one pixel of another colour."""
    transform = ImageTransform(8, (0.2, 0.4, 0.6), (0.5, 0.25, 0.1), "nearest", "squash")
    got = transform(Image.new("RGB", (20, 10), (51, 153, 255)))
    expected = torch.tensor([0.0, (0.6 - 0.4) / 0.25, (1 - 0.6) / 0.1])
    assert torch.allclose(got, expected[:, None, None].expand(3, 8, 8), atol=1e-6)
    assert got.dtype == torch.float32


def test_a_rectangle_is_squashed() -> None:
    transform = ImageTransform((16, 24), MEAN, STD, "bicubic", "squash")
    assert transform(noise(50, 50)).shape == (3, 16, 24)
    assert transform.sides == (16, 24)
    assert ImageTransform((16, 16), MEAN, STD).size == 16


def test_what_is_no_image_is_refused(tmp_path: Path) -> None:
    transform = ImageTransform(8, MEAN, STD)
    deep = Image.fromarray(np.zeros((9, 9), np.uint16))
    for wrong, message in (("cat.jpg", "PIL image"), (torch.zeros(3, 8, 8), "PIL image"), (deep, "8 bits")):
        with pytest.raises(s2a.S2AError, match=message):
            transform(wrong)  # type: ignore[arg-type]
    stream = io.BytesIO()
    noise(9, 9).save(stream, "PNG")
    good = {"size": 8, "mean": [0.5] * 3, "std": [0.5] * 3}
    for change in ({"size": 0}, {"size": "8"}, {"size": [8, 9]}, {"size": 8.0}, {"mean": [1]}, {"std": [1, 1, 0]}):
        with pytest.raises(s2a.S2AError, match="image"):
            make_transform({**good, **change})
    assert make_transform(good) == ImageTransform(8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
