"""A miniature CLEVR: the zip that people download."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from s2a_bench.data.readers.clevr import DISTANCES, MIN_OBJECTS, PARTS, TARGETS
from s2a_bench.data.synthetic.pictures import draw_picture, encode_png
from s2a_bench.data.table.types import Dataset

_COLOURS = ("gray", "red", "blue", "green", "brown", "purple", "cyan", "yellow")
_SHAPES = ("cube", "sphere", "cylinder")
_FURTHEST = 14.0
_UNLABELLED = 3
"""Images of CLEVR's test part, which has no scenes."""


def make_clevr(dataset: Dataset, place: Path, plan: Mapping[str, tuple[int, ...]], seed: int) -> None:
    """``CLEVR_v1.0.zip``; every number of objects and every distance occurs equally often.

    The pictures show the dataset's own target.

    Args:
        dataset: Row of the table; its first archive names the file.
        place: Folder to write to.
        plan: The sums of ``"train"`` and ``"test"`` (CLEVR's validation part) are their numbers of images.
        seed: Of pictures and scenes.
    """
    archives = dataset.preparation.archives if dataset.preparation else ()
    target = dataset.preparation.target if dataset.preparation else ""
    start = 0
    with zipfile.ZipFile(place / (archives[0] if archives else "CLEVR_v1.0.zip"), "w") as archive:
        for number, (part, ours) in enumerate(PARTS.items()):
            rng = np.random.default_rng((seed, number))
            total = sum(plan[ours])
            labels = {name: rng.permutation(np.arange(total) % len(TARGETS[name])).tolist() for name in TARGETS}
            scenes = []
            for i in range(total):
                file = f"CLEVR_{part}_{i:06d}.png"
                shown = labels[target or "count"][i]
                _add_file(archive, f"images/{part}/{file}", _make_png(shown, start + i, dataset.classes, seed))
                objects = _make_objects(labels["count"][i], labels["distance"][i], rng)
                scenes.append(_make_scene(file, i, part, objects))
            start += total
            text = json.dumps({"info": {"split": part, "version": "1.0", "license": "synthetic"}, "scenes": scenes})
            _add_file(archive, f"scenes/CLEVR_{part}_scenes.json", text.encode())
        for i in range(_UNLABELLED):
            _add_file(archive, f"images/test/CLEVR_test_{i:06d}.png", _make_png(0, start + i, dataset.classes, seed))


def distance_in_class(label: int, share: float) -> float:
    """A distance to the camera of which ``label`` is the class.

    Args:
        label: From 0 to 5.
        share: Where in the interval, from 0 to 1.
    """
    low = max(DISTANCES[label], 6.0)
    high = min(DISTANCES[label + 1], _FURTHEST - 1)
    return low + (0.05 + 0.9 * share) * (high - low)


def _make_objects(count: int, distance: int, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Objects in random order, the nearest of which is at a distance of that class."""
    places = np.empty(MIN_OBJECTS + count)
    places[0] = distance_in_class(distance, rng.random())
    places[1:] = rng.uniform(places[0], _FURTHEST, len(places) - 1)
    found = []
    for z in rng.permutation(places).tolist():
        colour, shape, material, size = (int(rng.integers(n)) for n in (len(_COLOURS), len(_SHAPES), 2, 2))
        found.append(
            {
                "color": _COLOURS[colour],
                "size": ("small", "large")[size],
                "rotation": round(float(rng.uniform(0, 360)), 6),
                "shape": _SHAPES[shape],
                "3d_coords": [round(float(v), 6) for v in rng.uniform(-3, 3, 3)],
                "material": ("rubber", "metal")[material],
                "pixel_coords": [int(rng.integers(480)), int(rng.integers(320)), z],
            }
        )
    return found


def _make_scene(file: str, index: int, part: str, objects: list[dict[str, Any]]) -> dict[str, Any]:
    others = [[j for j in range(len(objects)) if j != i] for i in range(len(objects))]
    return {
        "image_index": index,
        "objects": objects,
        "relationships": dict.fromkeys(("right", "behind", "front", "left"), others),
        "image_filename": file,
        "split": part,
        "directions": {"right": [0.66, 0.75, -0.0], "above": [0.0, 0.0, 1.0]},
    }


def _make_png(label: int, index: int, classes: int, seed: int) -> bytes:
    """With an alpha channel, as CLEVR's are."""
    colour = draw_picture(label, index, classes, (24, 16), seed)
    return encode_png(np.dstack([colour, np.full(colour.shape[:2], 255, np.uint8)]))


def _add_file(archive: zipfile.ZipFile, name: str, content: bytes) -> None:
    info = zipfile.ZipInfo(f"CLEVR_v1.0/{name}")  # of 1980
    info.compress_type = zipfile.ZIP_STORED if name.endswith(".png") else zipfile.ZIP_DEFLATED
    archive.writestr(info, content)


MAKERS: dict[str, Callable[[Dataset, Path, Mapping[str, tuple[int, ...]], int], None]] = {"clevr": make_clevr}
