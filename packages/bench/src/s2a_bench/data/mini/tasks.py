"""The embedded tasks of suite ``mini``: 32 x 32 RGB, 800 train, 200 val, and a test set.

``digits`` is real handwriting; the others are rendered by ``render.py`` from fixed seeds, so that every cell sees the
same images. Each split has its own random generator.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2a_bench.data.mini.render import (
    PATTERNS,
    POINTERS,
    REACH,
    SHAPES,
    SIZE,
    Layer,
    Scene,
    Sprites,
    add_noise,
    add_opacity,
    draw_backgrounds,
    draw_distant_colours,
    draw_integers,
    draw_permutation,
    draw_uniform,
    render_textures,
)
from s2a_bench.errors import unknown

SPLITS = {"train800": 800, "val200": 200, "test": 2000}
"""Images of a rendered task."""

LabelledArrays = tuple[np.ndarray, np.ndarray]
"""``(N, 3, 32, 32)`` uint8 images and ``(N,)`` int64 labels, both read-only."""

Render = Callable[[np.random.Generator, np.ndarray], np.ndarray]

SEED = 20101
SPLIT_ID = f"embedded-seed{SEED}"
"""Identity of the lists of every embedded task."""


def _draw_positions_in_bins(rng: np.random.Generator, labels: np.ndarray, bins: int) -> np.ndarray:
    """Positions in [0, 1): each in the middle 60 % of its label's bin, so that noise does not decide the label."""
    return (labels + draw_uniform(rng, 0.2, 0.8, len(labels))) / bins


def orientation_scene(rng: np.random.Generator, labels: np.ndarray) -> Sprites:
    """A pointer per image whose direction falls into one of 16 bins of a full turn."""
    n = len(labels)
    angle = 2 * np.pi * _draw_positions_in_bins(rng, labels, 16)
    radius = draw_uniform(rng, 8, 12, n)
    x, y = (radius + (SIZE - 2 * radius) * rng.random(n) for _ in range(2))
    return Sprites(np.arange(n), x, y, radius, angle, draw_integers(rng, len(POINTERS), n), rng.random(n))


def _draw_orientation(rng: np.random.Generator, labels: np.ndarray) -> Scene:
    scene, base = draw_backgrounds(rng, len(labels), clutter=2)
    pointers = orientation_scene(rng, labels)
    return _with_layers(scene, Layer(pointers, add_opacity(draw_distant_colours(rng, base)), POINTERS))


def _with_layers(scene: Scene, *layers: Layer) -> Scene:
    return dataclasses.replace(scene, layers=(*scene.layers, *layers))


def location_scene(rng: np.random.Generator, labels: np.ndarray) -> Sprites:
    """A shape per image whose centre's x falls into one of 16 bins between pixels 4 and 28."""
    n = len(labels)
    x = 4 + 24 * _draw_positions_in_bins(rng, labels, 16)
    y, radius = draw_uniform(rng, 4, 28, n), draw_uniform(rng, 2.5, 4.5, n)
    return Sprites(
        np.arange(n),
        x,
        y,
        radius,
        draw_uniform(rng, 0, 2 * np.pi, n),
        draw_integers(rng, len(SHAPES), n),
        rng.random(n),
    )


def _draw_location(rng: np.random.Generator, labels: np.ndarray) -> Scene:
    scene, base = draw_backgrounds(rng, len(labels), clutter=5)
    shapes = location_scene(rng, labels)
    return _with_layers(scene, Layer(shapes, add_opacity(draw_distant_colours(rng, base)), SHAPES))


def count_scene(rng: np.random.Generator, labels: np.ndarray, gap: float = 1.25) -> list[Sprites]:
    """``labels + 1`` shapes per image that keep ``gap`` pixels between their circumscribed circles.

    Returns:
        Eight ``Sprites``; the k-th holds the k-th shape of the images that have so many.
    """
    n, slots, tries = len(labels), 8, 160
    scale = draw_uniform(rng, 2.3, 3.0, n)
    x, y, radius = (np.zeros((n, slots)) for _ in range(3))
    rows = np.arange(n)
    scene = []
    for k in range(slots):
        # Draw many places for the k-th shape and measure the free radius around each.
        wanted = scale * draw_uniform(rng, 0.8, 1.1, n)
        reach = wanted * REACH
        free = SIZE - 2 * reach[:, None]
        tx, ty = (reach[:, None] + free * rng.random((n, tries)) for _ in range(2))
        distance = np.sqrt((tx[:, :, None] - x[:, None, :k]) ** 2 + (ty[:, :, None] - y[:, None, :k]) ** 2)
        space = (distance - radius[:, None, :k] * REACH - gap).min(axis=2, initial=np.inf)
        # Take the first place where the shape fits, or the one with most space.
        fits = space >= reach[:, None]
        best = np.where(fits.any(axis=1), fits.argmax(axis=1), space.argmax(axis=1))
        x[:, k], y[:, k] = tx[rows, best], ty[rows, best]
        radius[:, k] = np.minimum(wanted, space[rows, best] / REACH)  # a smaller shape where there is less space
        sprites = Sprites(
            rows,
            x[:, k],
            y[:, k],
            radius[:, k],
            draw_uniform(rng, 0, 2 * np.pi, n),
            draw_integers(rng, len(SHAPES), n),
            rng.random(n),
        )
        scene.append(sprites.select(labels >= k))
    return scene


def _draw_count(rng: np.random.Generator, labels: np.ndarray) -> Scene:
    scene, base = draw_backgrounds(rng, len(labels), clutter=0)
    shapes = count_scene(rng, labels)
    colours = (add_opacity(draw_distant_colours(rng, base[sprites.image])) for sprites in shapes)
    return _with_layers(scene, *(Layer(*each, SHAPES) for each in zip(shapes, colours, strict=True)))


def _read_handwritten_digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits: ``(1797, 8, 8)`` float64, whole numbers 0..16, and ``(1797,)`` int64.

    Read from its file where that is in its place: importing scikit-learn takes seconds in every process.
    """
    found = importlib.util.find_spec("sklearn")
    for place in (found.submodule_search_locations or ()) if found else ():
        path = Path(place) / "datasets/data/digits.csv.gz"
        if path.is_file():
            values = np.loadtxt(path, delimiter=",")
            return values[:, :-1].reshape(-1, 8, 8), values[:, -1].astype(np.int64)
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    return data.images.astype(np.float64), data.target.astype(np.int64)


def _make_digits() -> dict[str, LabelledArrays]:
    small, labels = _read_handwritten_digits()
    # Enlarge 8 x 8 to 32 x 32 with Keys' cubic kernel (a = -1/2; IEEE Trans. ASSP 29(6), 1981):
    #   w(t) = 1.5 |t|^3 - 2.5 |t|^2 + 1 for |t| <= 1, -0.5 |t|^3 + 2.5 |t|^2 - 4 |t| + 2 for |t| < 2.
    # At phases of n/8 every weight is a dyadic fraction, so the sums are exact in any order.
    position = (np.arange(SIZE) + 0.5) / 4 - 0.5
    first = np.floor(position).astype(np.int64) - 1
    t = np.abs(position[:, None] - (first[:, None] + np.arange(4)))
    weight = np.where(t <= 1, 1.5 * t**3 - 2.5 * t**2 + 1, -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2)
    taps = (first[:, None] + np.arange(4)).clip(0, 7)
    # Rows first, then columns.
    rows = (small[:, taps] * weight[:, :, None]).sum(axis=2)
    full = (rows[:, :, taps] * weight).sum(axis=3)
    grey = np.rint(full.clip(0, 16) * (255 / 16)).astype(np.uint8)
    images = np.repeat(grey[:, None], 3, axis=1)
    parts = zip(
        SPLITS,
        np.split(draw_permutation(make_generator(TASKS.index("digits"), 0), len(images)), [800, 1000]),
        strict=True,
    )
    return {name: (images[part], labels[part]) for name, part in parts}


def _render_textures(rng: np.random.Generator, labels: np.ndarray) -> np.ndarray:
    return add_noise(rng, render_textures(rng, labels))


Draw = Callable[[np.random.Generator, np.ndarray], Scene]

SCENES: dict[str, tuple[int, Draw]] = {
    "orientation": (16, _draw_orientation),
    "location": (16, _draw_location),
    "count": (8, _draw_count),
}
"""Classes of every task of scenes, and what draws them."""


def _render_scenes(draw: Draw) -> Render:
    return lambda rng, labels: add_noise(rng, draw(rng, labels).paint())


RENDERED: dict[str, tuple[int, Render]] = {
    "textures": (len(PATTERNS), _render_textures),
    **{name: (classes, _render_scenes(draw)) for name, (classes, draw) in SCENES.items()},
}
"""Classes and renderer of every rendered task."""

TASKS = ("digits", *RENDERED)


def make_generator(*seeds: int) -> np.random.Generator:
    """A source of random numbers of its own for every tuple of seeds."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([SEED, *seeds])))


def draw_labels(rng: np.random.Generator, n: int, classes: int) -> np.ndarray:
    """``(n,)`` int64 labels in random order, all classes as often as each other, give or take one."""
    return (np.arange(n) % classes)[draw_permutation(rng, n)]


@functools.lru_cache(maxsize=len(TASKS))
def load_task(task: str) -> Mapping[str, LabelledArrays]:
    """Images and labels of ``train800``, ``val200``, ``train800val200`` and ``test``, rendered once per process.

    Args:
        task: One of ``TASKS``.

    Raises:
        InputError: No such task.
    """
    if task not in TASKS:
        raise unknown("embedded task", task, TASKS)
    splits: dict[str, LabelledArrays] = {}
    if task == "digits":
        splits = _make_digits()
    else:
        classes, render = RENDERED[task]
        for i, (name, n) in enumerate(SPLITS.items()):
            rng = make_generator(TASKS.index(task), i)
            labels = draw_labels(rng, n, classes)
            splits[name] = (render(rng, labels), labels)
    train, val = splits["train800"], splits["val200"]
    splits["train800val200"] = (np.concatenate([train[0], val[0]]), np.concatenate([train[1], val[1]]))
    for pair in splits.values():
        for array in pair:
            array.flags.writeable = False
    return splits


@functools.lru_cache(maxsize=len(TASKS))
def task_data_id(task: str) -> str:
    """16 hex digits of the hash over all images and labels of a task."""
    digest = hashlib.sha256(task.encode())
    for name, (images, labels) in sorted(load_task(task).items()):
        digest.update(f"{name} {images.shape}".encode())
        digest.update(np.ascontiguousarray(images).tobytes())
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
