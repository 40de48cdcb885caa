"""The diabetic retinopathy competition: every packing, its parts, its processing, and broken in many ways."""

from __future__ import annotations

import dataclasses
import io
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from s2a_bench.data.readers.retinopathy import READERS, apply_btgraham
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.retinopathy import MAKERS
from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation
from s2a_bench.errors import InputError

READER = READERS[0]
RECIPE = Preparation("retinopathy", OfficialRule(), ("train.zip", "test.zip"))
ROW = Dataset("tiny", "whole", "whole", 5, Counts(None, None, None, None), "", "", "", preparation=RECIPE)
PLAN = {"train": (2, 1, 1, 1, 1), "val": (1,) * 5, "test": (1, 1, 1, 2, 1)}
MANY = {"train": (30,) * 5, "val": (8,) * 5, "test": (9,) * 5}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("retinopathy")
    MAKERS["retinopathy"](ROW, place, PLAN, 5)
    return place


def extracted(made: Path, to: Path) -> Path:
    to.mkdir(parents=True)
    for path in made.iterdir():
        if path.suffix == ".zip":
            with zipfile.ZipFile(path) as archive:
                archive.extractall(to)
        else:
            shutil.copy(path, to)
    return to


def opened(place: Path, then: Callable[[Source], Any], dataset: Dataset = ROW) -> Any:
    with Tree(place, RECIPE.archives) as tree:
        assert READER.recognises(tree, dataset)
        return then(READER.open(tree, dataset))


def whole(source: Source) -> tuple[Any, dict[str, bytes]]:
    names = [item.name for item in source.images]
    assert len(set(names)) == len(names)
    files = list(source.read(frozenset(names)))
    assert sorted(name for name, _ in files) == sorted(names)
    return (source.images, source.classes, source.note), dict(files)


def items(source: Source) -> Any:
    return source.images


def some(source: Source) -> Any:
    """All that is known of all images, and two of them: processing takes its time."""
    names = frozenset(item.name for item in source.images[3:10:6])
    files = dict(source.read(names))
    assert files.keys() == names
    return source.images, source.classes, source.note, files


def test_every_packing_gives_the_same_images(made: Path, tmp_path: Path):
    plain = extracted(made, tmp_path / "plain")
    shutil.copytree(plain, tmp_path / "deep" / "some")
    expected = opened(made, some)
    packings = [plain, tmp_path / "deep", Path(shutil.make_archive(str(tmp_path / "all"), "gztar", plain))]
    for place in packings:
        assert opened(place, some) == expected, place


@pytest.mark.parametrize(("plan", "marked"), [(PLAN, False), (MANY, True)])
def test_parts_and_labels_are_those_of_the_tables(plan: Any, marked: bool, tmp_path: Path):
    MAKERS["retinopathy"](ROW, tmp_path, plan, 5)
    expected = {}
    for line in (tmp_path / "trainLabels.csv").read_text().split()[1:]:
        name, level = line.split(",")
        expected["train", name] = (int(level), "train")
    for line in (tmp_path / "retinopathy_solution.csv").read_text().split()[1:]:
        name, level, usage = line.split(",")
        expected["test", name] = (int(level), {"Public": "val", "Private": "test"}[usage])
    (found, _, note), files = opened(tmp_path, whole)
    assert {(item.name.split("/")[0], item.key): (item.label, item.part) for item in found} == expected
    suffix = "jpeg" if marked else "png"
    assert [item.name for item in found] == [f"{folder}/{name}.{suffix}" for folder, name in expected]
    assert Counter((item.part, item.label) for item in found) == {
        (part, label): n for part, counts in plan.items() for label, n in enumerate(counts)
    }
    assert len(set(files.values())) == len(files)
    assert ("PROCESSED" in note) == marked
    assert (tmp_path / "PROCESSED").exists() == marked


def test_photographs_are_processed_and_marked_images_are_not(made: Path, tmp_path: Path):
    place = extracted(made, tmp_path / "plain")
    *_, files = opened(place, some)
    name, data = min(files.items())
    with Image.open(io.BytesIO(data)) as image, Image.open(place / name.replace(".png", ".jpeg")) as photograph:
        assert image.format == "PNG"
        assert np.array_equal(np.asarray(image), apply_btgraham(np.asarray(photograph.convert("RGB"))))
    (place / "PROCESSED").touch()
    originals = opened(place, whole)[1]
    assert originals == {
        path.relative_to(place).as_posix(): path.read_bytes() for path in place.rglob("*") if path.suffix == ".jpeg"
    }
    assert len(originals) == sum(map(sum, PLAN.values()))


def test_marked_images_may_be_png(made: Path, tmp_path: Path):
    place = extracted(made, tmp_path / "plain")
    expected = {(item.key, item.label, item.part) for item in opened(place, items)}
    for path in list(place.rglob("*.jpeg")):
        with Image.open(path) as image:
            image.save(path.with_suffix(".png"))
        path.unlink()
    with pytest.raises(InputError, match=r"is a PNG file, .* put an empty file PROCESSED beside trainLabels"):
        opened(place, items)
    (place / "PROCESSED").touch()
    found = opened(place, items)
    assert {(item.key, item.label, item.part) for item in found} == expected
    assert all(item.name.endswith(".png") for item in found)


def test_the_same_seed_gives_the_same_files(made: Path, tmp_path: Path):
    for seed in (5, 6):
        (place := tmp_path / str(seed)).mkdir()
        MAKERS["retinopathy"](ROW, place, PLAN, seed)
        same = all((made / path.name).read_bytes() == path.read_bytes() for path in place.iterdir())
        assert same == (seed == 5)


# --- Processing ------------------------------------------------------------------------------------------------------


def slow_btgraham(image: np.ndarray, radius: int) -> np.ndarray:
    """The published steps one by one over the whole photograph, pixel by pixel where that says more."""
    height, width = image.shape[:2]
    row = image[height // 2].astype(int).sum(axis=1)
    scale = radius / max((row > row.mean() / 10).sum() / 2, 1)
    tall, wide = round(height * scale), round(width * scale)
    scaled = np.empty((tall, wide, 3))
    for y in range(tall):
        for x in range(wide):
            v = min(max((y + 0.5) / scale - 0.5, 0), height - 1)
            u = min(max((x + 0.5) / scale - 0.5, 0), width - 1)
            top, left = int(v), int(u)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] * (1 - u % 1) + image[top, right] * (u % 1)
            lower = image[below, left] * (1 - u % 1) + image[below, right] * (u % 1)
            scaled[y, x] = np.rint(upper * (1 - v % 1) + lower * (v % 1))
    sigma = radius / 30
    far = round(3 * sigma)
    weights = np.exp(-(np.arange(-far, far + 1) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    blurred = scaled
    for axis in (0, 1):
        padded = np.pad(blurred, [(far, far) if a == axis else (0, 0) for a in range(3)], mode="reflect")
        blurred = sum(
            w * np.take(padded, np.arange(i, i + scaled.shape[axis]), axis) for i, w in enumerate(weights.tolist())
        )
    out = np.clip(4 * scaled - 4 * np.rint(blurred) + 128, 0, 255)
    keep = int(0.9 * radius)
    for y in range(tall):
        for x in range(wide):
            if (y - tall // 2) ** 2 + (x - wide // 2) ** 2 > keep**2:
                out[y, x] = 128
    y, x = max(tall // 2 - keep, 0), max(wide // 2 - keep, 0)
    return out[y : min(tall // 2 + keep, tall), x : min(wide // 2 + keep, wide)].astype(np.uint8)


@pytest.mark.parametrize(("height", "width", "fundus"), [(90, 130, 40), (40, 60, 25), (61, 61, 40), (31, 97, 30)])
def test_processing_follows_the_published_steps(height: int, width: int, fundus: int):
    rng = np.random.default_rng(height)
    y, x = np.mgrid[:height, :width]
    inside = (y - height / 2) ** 2 + (x - width / 2) ** 2 < fundus**2
    image = (rng.integers(60, 200, (height, width, 3)) * inside[..., None]).astype(np.uint8)
    ours, slow = apply_btgraham(image, 30), slow_btgraham(image, 30)
    assert ours.shape == slow.shape
    difference = np.abs(ours.astype(int) - slow)
    # Ties of single and double precision round to either side, which counts four times.
    assert difference.max() <= 4
    assert (difference > 0).mean() < 0.01


def test_processing_of_strange_photographs():
    black = apply_btgraham(np.zeros((50, 40, 3), np.uint8))
    assert black.shape == (540, 480, 3)
    assert (black == 128).all()
    # One bright pixel is a fundus of radius 1/2: the whole would be 600 times as large.
    image = np.zeros((400, 400, 3), np.uint8)
    image[200, 200:203] = 255
    assert apply_btgraham(image).shape == (540, 540, 3)
    assert apply_btgraham(np.full((1, 1, 3), 9, np.uint8)).shape[2] == 3


# --- Broken ----------------------------------------------------------------------------------------------------------

TRAIN = "trainLabels.csv"
TEST = "retinopathy_solution.csv"


def replaced(file: str, old: str, new: str) -> Callable[[Path], None]:
    def change(place: Path) -> None:
        text = (place / file).read_text()
        assert old in text
        (place / file).write_text(text.replace(old, new, 1))

    return change


def _append(path: Path, line: str) -> None:
    path.write_text(path.read_text() + line)


def removed(file: str) -> Callable[[Path], None]:
    return lambda place: (place / file).unlink()


BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no labels": (removed(TRAIN), "holds no trainLabels.csv"),
    "no solution": (removed(TEST), "holds no retinopathy_solution.csv"),
    "no image": (
        removed("train/10_left.jpeg"),
        "Image '10_left' in line .* of .* not in the folder train/",
    ),
    "no test images": (lambda place: shutil.rmtree(place / "test"), "has no images test/\\*.jpeg"),
    "image without a line": (
        lambda place: shutil.copy(place / "train/10_left.jpeg", place / "train/9_left.jpeg"),
        "no line for 1 images, such as 9_left",
    ),
    "line twice": (lambda place: _append(place / TRAIN, "10_left,0\n"), "is in the table twice"),
    "image twice": (
        lambda place: shutil.copytree(place / "train", place / "again/train"),
        "image 10_left twice: again/train/10_left.jpeg and train/10_left.jpeg",
    ),
    "level 5": (
        lambda place: _append(place / TRAIN, "7_left,5\n"),
        "Line 8 of .* level '5', not 0 to 4",
    ),
    "no number": (lambda place: _append(place / TRAIN, "7_left,bad\n"), "level 'bad'"),
    "usage": (replaced(TEST, "Public", "Secret"), "usage 'Secret', not Public or Private"),
    "no usage": (replaced(TEST, ",Usage", ""), "has no columns image, level, Usage"),
    "no header": (replaced(TRAIN, "image,level\n", ""), "has no columns image, level"),
    "cut line": (lambda place: _append(place / TRAIN, "7_left"), "Line 8 of trainLabels.csv .* is cut off"),
    "empty table": (lambda place: (place / TRAIN).write_text(""), "has no columns"),
    "header only": (lambda place: (place / TRAIN).write_text("image,level\n"), "no line for 6 images"),
    "not text": (lambda place: (place / TRAIN).write_bytes(b"\xff\xfe\x00"), "is not text"),
    "zeros": (lambda place: _append(place / TRAIN, '"' + "x" * 200_000), "is not a table"),
    "damaged image": (lambda place: (place / "train/10_left.jpeg").write_bytes(b"\xff\xd8\xff"), "cannot be decoded"),
    "empty image": (lambda place: (place / "train/10_left.jpeg").write_bytes(b""), "is empty"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources(name: str, made: Path, tmp_path: Path):
    place = extracted(made, tmp_path / "plain")
    change, words = BROKEN[name]
    change(place)
    with pytest.raises(InputError, match=words):
        opened(place, whole)


def test_other_numbers_of_classes_and_other_folders(made: Path, tmp_path: Path):
    with pytest.raises(InputError, match="has 5 classes but tiny has 4"):
        opened(made, whole, dataclasses.replace(ROW, classes=4))
    (tmp_path / "train").mkdir()
    with Tree(tmp_path) as tree:
        assert not READER.recognises(tree, ROW)
