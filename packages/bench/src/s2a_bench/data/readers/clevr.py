"""Reader of CLEVR: rendered scenes of 3 to 10 objects, labelled by their number or by the distance of the nearest."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from s2a_bench.data.readers.source import Reader, Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.table.types import Dataset
from s2a_bench.errors import InputError, unknown

PARTS = {"train": "train", "val": "test"}
"""CLEVR's part -> ours: VTAB scores CLEVR's validation part, since its test part has no scenes."""

DISTANCES = (0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0)
MIN_OBJECTS, MAX_OBJECTS = 3, 10
TARGETS = {
    "count": tuple(f"{n} objects" for n in range(MIN_OBJECTS, MAX_OBJECTS + 1)),
    "distance": tuple(f"from {low:g} to {high:g}" for low, high in itertools.pairwise(DISTANCES)),
}
"""Target -> names of its classes."""


def interval_index(thresholds: Sequence[float], value: float) -> int:
    """The largest ``i`` with ``thresholds[i] < value``, in single precision as VTAB compares; -1: there is none."""
    return int(np.searchsorted(np.array(thresholds, np.float32), np.float32(value), side="left")) - 1


def scene_label(target: str, nearest: float, objects: int) -> int:
    """VTAB's label of a scene (task_adaptation/data/clevr.py).

    Args:
        target: Key of ``TARGETS``.
        nearest: Least distance to the camera, the third of an object's ``pixel_coords``.
        objects: Their number.

    Raises:
        ValueError: No class has this scene.
    """
    label = objects - MIN_OBJECTS if target == "count" else interval_index(DISTANCES, nearest)
    if not 0 <= label < len(TARGETS[target]):
        raise ValueError(
            f"has {objects} objects, not {MIN_OBJECTS} to {MAX_OBJECTS}"
            if target == "count"
            else f"has its nearest object at {nearest:g}, not within {DISTANCES[0]:g} and {DISTANCES[-1]:g}"
        )
    return label


def _scenes_file(part: str) -> str:
    return f"scenes/CLEVR_{part}_scenes.json"


def recognises(tree: Tree, dataset: Dataset) -> bool:
    """Whether one of CLEVR's files of scenes is there."""
    return any(tree.has(_scenes_file(part)) for part in PARTS)


def open_clevr(tree: Tree, dataset: Dataset) -> Source:
    """CLEVR (https://cs.stanford.edu/people/jcjohns/clevr): ``images/{train,val}`` and ``scenes``.

    ``preparation.target`` is ``"count"``, the number of objects from 3 on (8 classes), or ``"distance"``, the interval
    between the thresholds 0, 8, 8.5, 9, 9.5, 10 and 100 in which the nearest object lies (6 classes).

    Raises:
        InputError: No such target, a missing or damaged file, or scenes and images that do not belong together.
    """
    target = dataset.preparation.target if dataset.preparation else ""
    if target not in TARGETS:
        raise unknown("target", target, TARGETS)
    classes = TARGETS[target]
    if len(classes) != dataset.classes:
        raise InputError(
            f"CLEVR has {len(classes)} classes of {target} but {dataset.name} has {dataset.classes}; correct its entry "
            "in the table of datasets."
        )
    items: list[SourceImage] = []
    files: dict[str, str] = {}  # item's name -> path in the tree
    for part, ours in PARTS.items():
        path = tree.find(_scenes_file(part))
        folder = f"{path[: -len(_scenes_file(part))]}images/{part}/"
        left = {name for name in tree.names if name.startswith(folder) and name.endswith(".png")}
        what = f"{path} in {tree.place}"
        for number, scene in enumerate(_read_scenes(tree, path)):
            file, label = _label_scene(scene, target, f"Scene {number} of {what}")
            if folder + file not in left:
                known = f"{part}/{file}" in files
                state = "is that of another scene as well" if known else f"is not among the images in {folder}"
                raise InputError(f"Image {file} of scene {number} of {what} {state}; extract CLEVR_v1.0.zip again.")
            left.remove(folder + file)
            files[f"{part}/{file}"] = folder + file
            items.append(SourceImage(f"{part}/{file}", label, ours, file))
        if left:
            raise InputError(f"{what} has no scene for {len(left)} images, such as {min(left)}; extract it again.")

    names = {path: name for name, path in files.items()}

    def read(wanted: frozenset[str]) -> Iterator[tuple[str, bytes]]:
        for path, data in tree.read_many(files[name] for name in wanted):
            yield names[path], data

    return Source(tuple(items), classes, read, salts={"test": "validation"})


def _keep_needed(found: dict[str, Any]) -> Any:
    """Hook of the JSON parser that keeps only what is needed of each object: all of them would take gigabytes."""
    if "pixel_coords" in found:
        return found["pixel_coords"]
    if "image_filename" in found:
        return found["image_filename"], found.get("objects")
    return found if "scenes" in found else None


def _read_scenes(tree: Tree, path: str) -> list[Any]:
    data = tree.read(path)
    try:
        found = json.loads(data, object_hook=_keep_needed)
    except (ValueError, RecursionError) as error:
        reason = str(error).rstrip(".")
        raise InputError(f"{path} in {tree.place} is not JSON ({reason}); extract it again.") from error
    scenes = found.get("scenes") if isinstance(found, dict) else None
    if not isinstance(scenes, list) or not scenes:
        raise InputError(f"{path} in {tree.place} has no list of scenes; extract it again.")
    return scenes


def _label_scene(scene: Any, target: str, what: str) -> tuple[str, int]:
    """The image's name and the label of a scene, as ``_keep_needed`` left it."""
    file, objects = scene if isinstance(scene, tuple) else (None, None)
    if not isinstance(file, str) or not isinstance(objects, list):
        raise InputError(f"{what} has no image_filename or no list of objects; extract it again.")
    distances = []
    for place in objects:
        if not (isinstance(place, list) and len(place) == 3 and isinstance(place[2], int | float)):
            raise InputError(f"{what} has an object without three numbers as pixel_coords; extract it again.")
        distances.append(place[2])
    try:
        return file, scene_label(target, min(distances, default=float("nan")), len(distances))
    except OverflowError as error:
        raise InputError(f"{what} has a distance that is no number of single precision; extract it again.") from error
    except ValueError as error:
        raise InputError(f"{what} {error}; extract it again.") from error


READERS = (Reader("clevr", recognises, open_clevr),)
