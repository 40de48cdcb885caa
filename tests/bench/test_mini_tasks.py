"""The embedded tasks: their labels are true, their splits apart, their pixels the same everywhere."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from s2a_bench.data.mini import tasks as mini_tasks
from s2a_bench.data.mini.render import (
    PATTERNS,
    POINTERS,
    REACH,
    SHAPES,
    SIZE,
    Sprites,
    interpolate_smoothly,
    paint_sprites,
    render_textures,
)
from s2a_bench.data.table.lookup import DATASETS, SUITES
from s2a_bench.errors import InputError
from scipy import ndimage
from scipy.spatial.distance import cdist
from sklearn.datasets import load_digits

WHITE = np.ones((1, 4))


def rng(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.PCG64(seed))


def one(kind: int, x: float, y: float, radius: float, angle: float, free: float = 0.5) -> Sprites:
    return Sprites(*(np.array([v]) for v in (0, x, y, radius, angle, kind, free)))


def drawn(sprite: Sprites, shapes) -> np.ndarray:
    canvas = np.zeros((1, 3, SIZE, SIZE), dtype=np.float32)
    paint_sprites(canvas, sprite, WHITE, shapes)
    return canvas[0, 0]


def test_table_and_renderers_agree():
    assert SUITES["mini"].datasets == mini_tasks.TASKS
    for name, (classes, _) in mini_tasks.RENDERED.items():
        assert DATASETS[name].classes == classes


@pytest.mark.parametrize("task", mini_tasks.TASKS)
def test_splits_have_the_tables_counts_and_balanced_labels(task):
    row = DATASETS[task]
    for name, (images, labels) in mini_tasks.load_task(task).items():
        assert images.shape == (row.count(name), 3, 32, 32) and images.dtype == np.uint8
        assert labels.shape == (len(images),) and labels.dtype == np.int64
        count = np.bincount(labels, minlength=row.classes)
        assert len(count) == row.classes
        if row.synthetic and name != "train800val200":
            assert count.max() - count.min() <= 1
        assert count.min() > 0


@pytest.mark.parametrize("task", mini_tasks.TASKS)
def test_no_image_is_in_two_splits_or_twice_in_one(task):
    splits = mini_tasks.load_task(task)
    hashes = [image.tobytes() for name in ("train800", "val200", "test") for image in splits[name][0]]
    assert len(set(hashes)) == len(hashes)


@pytest.mark.parametrize("task", mini_tasks.TASKS)
def test_the_1000_are_train_and_val_in_order(task):
    splits = mini_tasks.load_task(task)
    for i in range(2):
        np.testing.assert_array_equal(
            splits["train800val200"][i], np.concatenate([splits["train800"][i], splits["val200"][i]])
        )


def test_arrays_are_shared_and_cannot_be_written():
    images, labels = mini_tasks.load_task("location")["test"]
    assert mini_tasks.load_task("location")["test"][0] is images
    for array in (images, labels):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 0


def test_another_process_renders_the_same():
    code = "from s2a_bench.data.mini import tasks; print(*[tasks.task_data_id(t) for t in tasks.TASKS])"
    env = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    out = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=True).stdout
    assert out.split() == [mini_tasks.task_data_id(task) for task in mini_tasks.TASKS]


def test_data_ids_differ_and_have_the_form():
    ids = {mini_tasks.task_data_id(task) for task in mini_tasks.TASKS}
    assert len(ids) == len(mini_tasks.TASKS)
    assert all(len(i) == 16 and int(i, 16) >= 0 for i in ids)


def test_unknown_task():
    with pytest.raises(InputError, match="did you mean digits"):
        mini_tasks.load_task("digit")


def test_digits_are_scikit_learns_at_four_times_the_size():
    images = np.concatenate([mini_tasks.load_task("digits")[name][0] for name in ("train800val200", "test")])
    labels = np.concatenate([mini_tasks.load_task("digits")[name][1] for name in ("train800val200", "test")])
    assert (images == images[:, :1]).all()
    data: Any = load_digits()
    inside = slice(6, 26)  # Pillow treats borders in another way
    enlarged = np.stack(
        [
            np.asarray(Image.fromarray(i.astype(np.float32)).resize((32, 32), Image.Resampling.BICUBIC))
            for i in data.images
        ]
    )
    enlarged = enlarged.clip(0, 16)[:, inside, inside].reshape(1797, -1) * 255 / 16
    distance = cdist(images[:, 0, inside, inside].reshape(1797, -1).astype(np.float32), enlarged, "chebyshev")
    nearest = distance.argmin(axis=1)
    assert distance.min(axis=1).max() <= 0.51
    assert sorted(nearest) == list(range(1797))  # every original once
    np.testing.assert_array_equal(labels, data.target[nearest])


@pytest.mark.parametrize("kind", range(len(SHAPES)))
@settings(max_examples=25, deadline=None)
@given(
    x=st.floats(-4, 36), y=st.floats(-4, 36), radius=st.floats(1.5, 9), angle=st.floats(0, 6.3), free=st.floats(0, 0.99)
)
def test_window_hides_nothing_and_shapes_keep_within_reach(kind, x, y, radius, angle, free):
    image = drawn(one(kind, x, y, radius, angle, free), SHAPES)
    rows, columns = np.mgrid[:SIZE, :SIZE] + 0.5
    far = np.hypot(columns - x, rows - y) > radius * REACH + 1
    assert image[far].max(initial=0) == 0
    centre = drawn(one(kind, 16, 16, 6, angle, free), SHAPES)
    assert centre.max() == pytest.approx(1, abs=1e-6) and 0 <= centre.min()


def test_disc_covers_its_area_to_the_pixel():
    for radius in (2.0, 3.3, 8.1):
        assert drawn(one(0, 15.7, 16.2, radius, 0), SHAPES).sum() == pytest.approx(np.pi * radius**2, rel=0.01)


@pytest.mark.parametrize("kind", range(len(POINTERS)))
def test_pointers_turn_with_their_angle_and_have_no_symmetry(kind):
    start = drawn(one(kind, 16, 16, 9, 0.3), POINTERS)
    for turns in range(1, 4):
        turned = drawn(one(kind, 16, 16, 9, 0.3 + turns * np.pi / 2), POINTERS)
        np.testing.assert_allclose(turned, np.rot90(start, -turns), atol=1e-4)  # y points down: clockwise
    for bins in range(1, 16):
        other = drawn(one(kind, 16, 16, 9, 0.3 + bins * np.pi / 8), POINTERS)
        assert np.abs(other - start).sum() > 20  # more than twenty pixels' worth


def test_orientation_labels_are_the_directions_that_are_seen():
    """The tip is the point of the shape that is farthest from its centroid."""
    labels = np.arange(320) % 16
    scene = mini_tasks.orientation_scene(rng(1), labels)
    hits = 0
    for i in range(320):
        sprite = Sprites(
            np.array([0]), *(getattr(scene, f)[[i]] for f in ("x", "y", "radius", "angle", "kind", "free"))
        )
        ys, xs = np.nonzero(drawn(sprite, POINTERS) > 0.5)
        centre = np.array([xs.mean(), ys.mean()])
        offsets = np.stack([xs, ys], axis=1) - centre
        tip = offsets[np.hypot(*offsets.T).argmax()]
        seen = np.arctan2(tip[1], tip[0]) % (2 * np.pi)
        hits += abs((seen - (labels[i] + 0.5) * np.pi / 8 + np.pi) % (2 * np.pi) - np.pi) < np.pi / 8
    assert hits / 320 > 0.8  # the wings of a wide arrowhead are as far out as its tip


def test_location_labels_are_where_the_sprite_is():
    labels = np.arange(480) % 16
    scene = mini_tasks.location_scene(rng(2), labels)
    for i in range(480):
        sprite = Sprites(
            np.array([0]), *(getattr(scene, f)[[i]] for f in ("x", "y", "radius", "angle", "kind", "free"))
        )
        image = drawn(sprite, SHAPES)
        x = (image.sum(axis=0) * (np.arange(SIZE) + 0.5)).sum() / image.sum()
        margin = sprite.radius[0] * REACH
        if margin < sprite.x[0] < SIZE - margin:  # whole in the picture: the centre of mass is the centre
            assert int((x - 4) // 1.5) == labels[i]


def test_count_labels_are_the_number_of_separate_shapes_that_are_seen():
    labels = np.arange(400) % 8
    canvas = np.zeros((400, 3, SIZE, SIZE), dtype=np.float32)
    for sprites in mini_tasks.count_scene(rng(3), labels):
        paint_sprites(canvas, sprites, np.ones((len(sprites.image), 4)), SHAPES)
    for label, image in zip(labels, canvas[:, 0], strict=True):
        seen: Any = ndimage.label(image > 0.4)
        assert seen[1] == label + 1


def test_count_keeps_shapes_apart_inside_and_visible():
    labels = np.full(500, 7)
    scene = mini_tasks.count_scene(rng(4), labels, gap=1.25)
    x, y, reach = (np.stack([getattr(s, f) for s in scene]) for f in ("x", "y", "radius"))
    assert reach.min() > 1.2
    reach = reach * REACH
    for edge in (x, y):
        assert (edge - reach).min() >= 0 and (edge + reach).max() <= SIZE
    for i in range(8):
        for j in range(i):
            assert (np.hypot(x[i] - x[j], y[i] - y[j]) - reach[i] - reach[j]).min() > 1.25 - 1e-9


@pytest.mark.parametrize("label", range(len(PATTERNS)))
def test_textures_have_contrast_and_vary(label):
    images = render_textures(rng(5), np.full(24, label))
    assert images.shape == (24, 3, 32, 32) and np.isfinite(images).all()
    assert images.std(axis=(2, 3)).max(axis=1).min() > 0.02
    assert len({image.tobytes() for image in images}) == 24


def test_smooth_interpolates_between_its_lattice():
    flat = interpolate_smoothly(np.full((2, 3, 5, 5), 0.25), 32)
    np.testing.assert_allclose(flat, 0.25)
    lattice = rng(6).random((4, 6, 6))
    field = interpolate_smoothly(lattice, 50)
    assert field.shape == (4, 50, 50)
    assert lattice.min() <= field.min() and field.max() <= lattice.max()
    np.testing.assert_allclose(interpolate_smoothly(lattice.swapaxes(1, 2), 50), field.swapaxes(1, 2))


def test_sprites_stand_out_from_their_background():
    """Every orientation image holds a region that differs from the smooth background around it."""
    images = mini_tasks.load_task("orientation")["val200"][0].astype(float)
    spread = np.abs(images - np.median(images, axis=(2, 3), keepdims=True)).max(axis=1)
    assert (np.sort(spread.reshape(len(images), -1), axis=1)[:, -20:].mean(axis=1) > 60).all()


def test_the_digits_are_scikit_learns_with_and_without_its_file(monkeypatch):
    data: Any = load_digits()
    for search in (mini_tasks.importlib.util.find_spec, lambda name: None):
        monkeypatch.setattr(mini_tasks.importlib.util, "find_spec", search)
        images, labels = mini_tasks._read_handwritten_digits()
        np.testing.assert_array_equal(images, data.images)
        np.testing.assert_array_equal(labels, data.target)
        assert (images.dtype, labels.dtype) == (np.float64, np.int64)
