"""CLEVR: every packing, against torchvision and VTAB's own formulas, and broken in many ways."""

from __future__ import annotations

import io
import json
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from s2a_bench.data.readers.clevr import READERS
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.clevr import MAKERS
from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation
from s2a_bench.errors import InputError

READER = READERS[0]
PLAN = {"train": (6,) * 8, "test": (3,) * 8}


def row(target: str) -> Dataset:
    classes = {"count": 8, "distance": 6}.get(target, 8)
    preparation = Preparation("clevr", OfficialRule(), ("CLEVR_v1.0.zip",), target=target)
    return Dataset(
        "tiny", "whole", "whole", classes, Counts(None, None, None, None), "", "", "", preparation=preparation
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("clevr")
    MAKERS["clevr"](row("count"), place, PLAN, 5)
    return place


def extracted(made: Path, to: Path) -> Path:
    with zipfile.ZipFile(made / "CLEVR_v1.0.zip") as archive:
        archive.extractall(to)
    return to


def opened(place: Path, target: str, then: Callable[[Source], Any]) -> Any:
    dataset = row(target)
    assert dataset.preparation is not None
    with Tree(place, dataset.preparation.archives) as tree:
        assert READER.recognises(tree, dataset)
        return then(READER.open(tree, dataset))


def whole(source: Source) -> tuple[Any, dict[str, bytes]]:
    names = [item.name for item in source.images]
    assert len(set(names)) == len(names)
    files = list(source.read(frozenset(names)))
    assert sorted(name for name, _ in files) == sorted(names)
    return (source.images, source.classes, source.salts), dict(files)


@pytest.mark.parametrize("target", ["count", "distance"])
def test_every_packing_gives_the_same_images(target: str, made: Path, tmp_path: Path):
    plain = extracted(made, tmp_path / "plain")
    shutil.copytree(plain, tmp_path / "deep" / "some")
    expected = opened(made, target, whole)
    for place in (made / "CLEVR_v1.0.zip", plain, plain / "CLEVR_v1.0", tmp_path / "deep"):
        assert opened(place, target, whole) == expected, place


def test_counts_are_torchvisions(made: Path, tmp_path: Path):
    from torchvision.datasets import CLEVRClassification  # imports torch

    extracted(made, tmp_path / "clevr")
    source = opened(tmp_path, "count", lambda s: s)
    labels = {item.name: item.label for item in source.images}
    for part, ours in (("train", "train"), ("val", "test")):
        theirs = CLEVRClassification(str(tmp_path), split=part)
        found = {
            f"{part}/{Path(str(file)).name}": n for file, n in zip(theirs._image_files, theirs._labels, strict=True)
        }
        assert len(found) == len(theirs) == sum(PLAN[ours])
        assert {item.name: item.part for item in source.images if item.name in found} == dict.fromkeys(found, ours)
        assert {name: labels.pop(name) for name in found} == {name: int(n or 0) - 3 for name, n in found.items()}
    assert not labels


def test_distances_are_vtabs(made: Path, tmp_path: Path):
    place = extracted(made, tmp_path) / "CLEVR_v1.0"
    source = opened(place, "distance", lambda s: s)
    expected = {}
    for part in ("train", "val"):
        for scene in json.loads((place / "scenes" / f"CLEVR_{part}_scenes.json").read_text())["scenes"]:
            nearest = np.min(np.array([o["pixel_coords"] for o in scene["objects"]], np.float32)[:, 2])
            thresholds = np.array([0.0, 8.0, 8.5, 9.0, 9.5, 10.0, 100.0])
            expected[f"{part}/{scene['image_filename']}"] = int(np.max(np.where((thresholds - nearest) < 0)))
    assert {item.name: item.label for item in source.images} == expected


def test_every_class_occurs_and_no_image_twice(made: Path):
    for target, classes in (("count", 8), ("distance", 6)):
        (items, names, _), files = opened(made, target, whole)
        for part, total in (("train", 48), ("test", 24)):
            counts = Counter(item.label for item in items if item.part == part)
            assert counts == dict.fromkeys(range(classes), total // classes)
        assert len(names) == classes
        assert len(set(files.values())) == len(files)


def test_keys_are_those_of_tensorflow_datasets(made: Path):
    source = opened(made, "count", lambda s: s)
    assert {item.key for item in source.images if item.part == "test"} == {f"CLEVR_val_{i:06d}.png" for i in range(24)}
    assert source.salts == {"test": "validation"}


def test_the_same_seed_gives_the_same_archive(made: Path, tmp_path: Path):
    for seed in (5, 6):
        (place := tmp_path / str(seed)).mkdir()
        MAKERS["clevr"](row("count"), place, PLAN, seed)
        same = (place / "CLEVR_v1.0.zip").read_bytes() == (made / "CLEVR_v1.0.zip").read_bytes()
        assert same == (seed == 5)


# --- By hand ---------------------------------------------------------------------------------------------------------


def scene(index: int, distances: list[Any], part: str = "train") -> dict[str, Any]:
    objects = [{"shape": "cube", "pixel_coords": [10, 20, z], "3d_coords": [0, 0, 0]} for z in distances]
    return {"image_index": index, "image_filename": f"CLEVR_{part}_{index:06d}.png", "objects": objects}


def written(place: Path, **scenes: Any) -> Path:
    """``train`` and ``val`` by hand: a list of scenes, or the whole content of the file."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8)).save(out, "PNG")
    for part, content in ({"val": [scene(0, [9, 9, 9], "val")]} | scenes).items():
        (place / "scenes").mkdir(parents=True, exist_ok=True)
        images = place / "images" / part
        images.mkdir(parents=True)
        text = json.dumps({"info": {}, "scenes": content}) if isinstance(content, list) else content
        (place / "scenes" / f"CLEVR_{part}_scenes.json").write_text(text)
        for i in range(len(content) if isinstance(content, list) else 1):
            (images / f"CLEVR_{part}_{i:06d}.png").write_bytes(out.getvalue())
    return place


def test_labels_at_the_thresholds(tmp_path: Path):
    nearest = [7.0, 8.0, 8.001, 8.5, 8.75, 9.0, 9.4, 9.5, 9.9, 10.0, 10.1, 100.0, 0.001]
    expected = [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 0]
    counts = [3, 4, 5, 6, 7, 8, 9, 10, 3, 3, 3, 3, 3]
    place = written(
        tmp_path, train=[scene(i, [*[120] * (n - 1), z]) for i, (z, n) in enumerate(zip(nearest, counts, strict=True))]
    )
    for target, labels in (("distance", [*expected, 2]), ("count", [n - 3 for n in (*counts, 3)])):
        assert opened(place, target, lambda s: [item.label for item in s.images]) == labels


def test_scenes_are_joined_by_name_and_not_by_position(tmp_path: Path):
    place = written(tmp_path, train=[scene(2, [9] * 3), scene(0, [9] * 4), scene(1, [9] * 5)])
    found = opened(place, "count", lambda s: [(i.name[-5], i.label) for i in s.images if i.part == "train"])
    assert found == [("2", 0), ("0", 1), ("1", 2)]


GOOD = scene(0, [9, 9, 9])
BROKEN: dict[str, tuple[str, Any, str]] = {
    "two objects": ("count", [scene(0, [9, 9])], "Scene 0 of .* has 2 objects, not 3 to 10"),
    "eleven objects": ("count", [GOOD, scene(1, [9] * 11)], "Scene 1 of .* has 11 objects"),
    "no objects": ("distance", [scene(0, [])], "Scene 0 of .* nearest object at nan"),
    "behind the camera": ("distance", [scene(0, [0, 9, 9])], "Scene 0 of .* at 0, not within 0 and 100"),
    "too far": ("distance", [scene(0, [101, 102, 103])], "Scene 0 of .* at 101"),
    "farther than numbers go": ("distance", [scene(0, [10**400] * 3)], "no number of single precision"),
    "text as a distance": ("distance", [scene(0, ["near", 9, 9])], "Scene 0 of .* pixel_coords"),
    "two coordinates": ("count", [GOOD | {"objects": [{"pixel_coords": [1, 2]}] * 3}], "three numbers"),
    "no coordinates": ("count", [GOOD | {"objects": [{"shape": "cube"}] * 3}], "three numbers"),
    "no objects at all": ("count", [{"image_filename": "CLEVR_train_000000.png"}], "no list of objects"),
    "no name": ("count", [{"objects": []}], "Scene 0 of .* has no image_filename"),
    "name that is no text": ("count", [GOOD | {"image_filename": 7}], "no image_filename"),
    "unknown image": ("count", [scene(7, [9] * 3)], "CLEVR_train_000007.png of scene 0 .* not among the images"),
    "image twice": ("count", [GOOD, GOOD], "CLEVR_train_000000.png of scene 1 .* another scene"),
    "no scenes": ("count", [], "has no list of scenes"),
    "a list": ("count", "[1, 2]", "has no list of scenes"),
    "cut off": ("count", '{"scenes": [{"image_filename": "CLEVR', "is not JSON"),
    "deep": ("count", "[" * 100_000, "is not JSON"),
    "not text": ("count", "\x00\x01", "is not JSON"),
    "unknown target": ("colour", [GOOD], "Unknown target 'colour'"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_scenes(name: str, tmp_path: Path):
    target, scenes, words = BROKEN[name]
    with pytest.raises(InputError, match=words):
        opened(written(tmp_path, train=scenes), target, whole)


def test_broken_folders(tmp_path: Path):
    place = written(tmp_path / "a", train=[GOOD])
    (place / "images/train/CLEVR_train_000009.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"no scene for 1 images, such as images/train/CLEVR_train_000009\.png"):
        opened(place, "count", whole)
    place = written(tmp_path / "b", train=[GOOD])
    (place / "scenes/CLEVR_val_scenes.json").unlink()
    with pytest.raises(InputError, match=r"holds no scenes/CLEVR_val_scenes\.json"):
        opened(place, "count", whole)
    shutil.rmtree(place / "scenes")
    with Tree(place) as tree:
        assert not READER.recognises(tree, row("count"))


def test_a_cut_archive(made: Path, tmp_path: Path):
    data = (made / "CLEVR_v1.0.zip").read_bytes()
    (tmp_path / "CLEVR_v1.0.zip").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match="not a readable archive"):
        opened(tmp_path, "count", whole)
