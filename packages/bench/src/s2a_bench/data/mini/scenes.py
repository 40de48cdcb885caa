"""Tasks of suite ``real`` that are rendered at the backbone's own resolution, from fixed seeds.

The scenes of the mini suite's structured tasks, drawn anew with seeds of their own and painted with as many pixels as
the backbone takes, instead of being enlarged from 32 x 32. What an image shows does not depend on its size; its noise
does.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping

import numpy as np

from s2a_bench.data.mini.render import SIZE, Scene, add_noise
from s2a_bench.data.mini.tasks import SCENES, SPLITS, draw_labels, make_generator
from s2a_bench.data.table.types import VTAB_LISTS
from s2a_bench.errors import InputError, unknown

PREFIX = "scene_"
TASKS = tuple(f"{PREFIX}{name}" for name in SCENES)

_CHUNK = 1 << 23
"""Elements of the float canvas that is painted at a time, at most."""


@functools.lru_cache(maxsize=len(TASKS))
def load_scenes(task: str) -> Mapping[str, tuple[Scene, np.ndarray]]:
    """Scenes and labels ``(N,)`` of ``train800``, ``val200`` and ``test``, drawn once per process.

    Args:
        task: One of ``TASKS``.

    Raises:
        InputError: No such task.
    """
    if task not in TASKS:
        raise unknown("rendered task", task, TASKS)
    classes, draw = SCENES[task.removeprefix(PREFIX)]
    found = {}
    for part, (name, n) in enumerate(SPLITS.items()):
        rng = make_generator(100 + TASKS.index(task), part)
        labels = draw_labels(rng, n, classes)
        found[name] = draw(rng, labels), labels
    return found


def labels_of(task: str, name: str) -> np.ndarray:
    """Labels ``(N,)`` int64 of a list, ``train800val200`` among them.

    Args:
        task: One of ``TASKS``.
        name: Of the list.

    Raises:
        InputError: No such task or list.
    """
    return np.concatenate([load_scenes(task)[part][1] for part in _parts(name)])


def render(task: str, name: str, indices: np.ndarray, size: int) -> np.ndarray:
    """Images of a list, ``(B, 3, size, size)`` uint8.

    Args:
        task: One of ``TASKS``.
        name: Of the list.
        indices: ``(B,)`` which of its images, in any order.
        size: Side in pixels.

    Raises:
        InputError: No such task or list, or images that it does not have.
    """
    count = len(labels_of(task, name))
    if len(indices) and not 0 <= indices.min() <= indices.max() < count:
        raise InputError(f"List {name} of {task} has {count} images, 0 to {count - 1}; one of {indices} is not there.")
    out = np.empty((len(indices), 3, size, size), np.uint8)
    start = 0
    for part in _parts(name):
        scene, labels = load_scenes(task)[part]
        inside = np.flatnonzero((start <= indices) & (indices < start + len(labels)))
        for rows in np.array_split(inside, len(inside) * 3 * size * size // _CHUNK + 1):
            images, where = np.unique(indices[rows] - start, return_inverse=True)
            out[rows] = _paint(task, part, scene, images, size)[where]
        start += len(labels)
    return out


def _paint(task: str, part: str, scene: Scene, images: np.ndarray, size: int) -> np.ndarray:
    canvas = scene.paint(images, size)
    seed = (200 + TASKS.index(task), list(SPLITS).index(part), size)
    for i, image in enumerate(images):  # Noise by image: whatever else is rendered with it, it looks the same.
        canvas[i] = add_noise(make_generator(*seed, int(image)), canvas[i])
    return canvas.astype(np.uint8)


def _parts(name: str) -> tuple[str, ...]:
    """The lists that a list is made of, one after the other."""
    if name == VTAB_LISTS.both:
        return VTAB_LISTS.train, VTAB_LISTS.val
    if name not in SPLITS:
        raise unknown("list of a rendered task", name, [*SPLITS, VTAB_LISTS.both])
    return (name,)


@functools.lru_cache(maxsize=len(TASKS))
def scenes_data_id(task: str) -> str:
    """16 hex digits of a hash: all images at 32 pixels, the first of every list at two larger sizes, and the labels.

    A cell's own size is a part of its identity by itself.
    """
    digest = hashlib.sha256(task.encode())
    for name, (_, labels) in sorted(load_scenes(task).items()):
        digest.update(f"{name} {len(labels)}".encode())
        for size, n in ((SIZE, len(labels)), (56, 32), (112, 32)):
            digest.update(render(task, name, np.arange(n), size).tobytes())
        digest.update(labels.astype("<i8").tobytes())
    return digest.hexdigest()[:16]
