"""Crops, mirrors and the shared cache of variable sizes, against torchvision's transforms."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s2a_bench.data import decoded
from s2a_bench.data.augment import Augmentation
from s2a_bench.data.decoded import DecodedForm, ImageList, decode_on_demand, open_pixels, short_side
from s2a_bench.data.folder import CACHE, ListedImage
from s2a_bench.data.views import cut_views
from torchvision.transforms import v2

SIZES = [(20, 30), (41, 17), (8, 8), (33, 32), (9, 60)]


@pytest.fixture
def folder(tmp_path) -> Path:
    for i, (width, height) in enumerate(SIZES):
        pixels = np.random.default_rng(i).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    return tmp_path


def listed(folder: Path, size: int = 14, form: DecodedForm = "short") -> ImageList:
    entries = [ListedImage(f"{i}.png", 0, i + 1) for i in range(len(SIZES))]
    return ImageList(folder, None, entries, size, "bicubic", form)


def test_the_short_side_is_that_of_vpt():
    assert [short_side(size) for size in (224, 32, 14)] == [256, 37, 16]


@pytest.mark.parametrize("size", [7, 14, 28])
def test_scored_crops_are_torchvisions(folder, size):
    reference = v2.Compose([v2.Resize(short_side(size), v2.InterpolationMode.BICUBIC), v2.CenterCrop(size)])
    want = np.stack(
        [np.asarray(reference(Image.open(folder / f"{i}.png"))).transpose(2, 0, 1) for i in range(len(SIZES))]
    )
    for pixels in (decode_on_demand(listed(folder, size)), open_pixels(listed(folder, size), "list")):
        np.testing.assert_array_equal(pixels(np.arange(len(SIZES)), None), want)


def test_cache_memory_and_reading_give_the_same_crops(folder, monkeypatch):
    indices = np.array([4, 0, 0, 2, 3, 1])
    ways = [open_pixels(listed(folder), "list"), open_pixels(listed(folder), None), decode_on_demand(listed(folder))]
    monkeypatch.setattr(decoded, "_write_cache", None)
    ways.append(open_pixels(listed(folder), "list"))  # from the file: nothing is filled again
    monkeypatch.setattr(decoded, "MEMORY_LIMIT", 0)
    ways.append(open_pixels(listed(folder), None))
    crops = [way(indices, torch.Generator().manual_seed(3)) for way in ways]
    for crop in crops[1:]:
        np.testing.assert_array_equal(crop, crops[0])
    assert not np.array_equal(crops[0][1], crops[0][2])  # the same image twice, another crop


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 12), st.integers(0, 9), st.integers(0, 9), st.integers(0, 10_000))
def test_random_crops_are_windows_of_the_image(size, more_h, more_w, seed):
    image = np.random.default_rng(seed).integers(0, 256, (3, size + more_h, size + more_w), dtype=np.uint8)
    (crop,) = cut_views([image], size, torch.Generator().manual_seed(seed), Augmentation())
    windows = [image[:, y : y + size, x : x + size] for y in range(more_h + 1) for x in range(more_w + 1)]
    assert any(np.array_equal(crop, w) or np.array_equal(crop, w[:, :, ::-1]) for w in windows)


def test_every_window_and_both_sides_occur():
    image = np.arange(3 * 5 * 6, dtype=np.uint8).reshape(3, 5, 6)
    crops = cut_views([image] * 600, 4, torch.Generator().manual_seed(0), Augmentation())
    found = {crop.tobytes() for crop in crops}
    windows = [image[:, y : y + 4, x : x + 4] for y in range(2) for x in range(3)]
    assert found == {np.ascontiguousarray(v).tobytes() for w in windows for v in (w, w[:, :, ::-1])}


@pytest.mark.parametrize("damage", ["short", "empty", "other sizes", "count"])
def test_a_damaged_cache_is_made_again(folder, damage):
    want = open_pixels(listed(folder), "list")(np.arange(5), None)
    (path,) = (folder / CACHE).glob("*.u8")
    whole = path.read_bytes()
    wrong = np.frombuffer(whole[-8 * 16 :], "<i8").copy()
    wrong[4] += 1
    path.write_bytes(
        {
            "short": whole[:-3],
            "empty": b"",
            "other sizes": whole[: -8 * 16] + wrong.tobytes(),
            "count": whole + whole[-8:],
        }[damage]
    )
    np.testing.assert_array_equal(open_pixels(listed(folder), "list")(np.arange(5), None), want)
    assert path.read_bytes() == whole


def test_direct_images_are_square_and_shared(folder):
    want = np.stack(
        [np.asarray(Image.open(folder / f"{i}.png").resize((9, 9), Image.Resampling.BICUBIC)) for i in range(5)]
    ).transpose(0, 3, 1, 2)
    np.testing.assert_array_equal(open_pixels(listed(folder, 9, "square"), "list")(np.arange(5), None), want)
    generator = torch.Generator().manual_seed(1)
    before = generator.get_state()
    open_pixels(listed(folder, 9, "square"), "list")(np.arange(5), generator)
    assert torch.equal(generator.get_state(), before)  # nothing is drawn where nothing is augmented
