"""VTAB-1k folders of other tools: recognised, used where they lie, and marked lossy where they are."""

from __future__ import annotations

import dataclasses
import io
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from s2a_bench.config import DataConfig
from s2a_bench.data import folder as layout
from s2a_bench.data.listing import list_datasets
from s2a_bench.data.loading import check_data, load_data
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import VTAB_LISTS, Counts
from s2a_bench.data.verify import Problem, verify_dataset
from s2a_bench.errors import InputError

SIZES = (6, 3, 9, 7)
COUNTS = Counts(*SIZES)
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for name in ("cifar", "caltech101", "dtd"):
        monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], counts=COUNTS))


def noticed(root: Path) -> list[Problem]:
    """What ``verify`` says, but for the note that these small lists know three of the classes."""
    found = verify_dataset("cifar", root)
    assert [problem for problem in found if "97 of 100 classes have no image in any list" in problem.what]
    return [problem for problem in found if "no image in any list" not in problem.what]


def folder(place: Path, format: str = "JPEG", **save) -> Path:
    """As NOAH's script writes it: train800val200 is a copy of its own."""
    suffix = {"JPEG": ".jpg", "PNG": ".png"}[format]
    for name, n in zip(VTAB_LISTS, SIZES, strict=True):
        (place / "images" / name).mkdir(parents=True)
        lines = []
        for i in range(n):
            seed = {"train800": i, "val200": 6 + i, "train800val200": i, "test": 20 + i}[name]
            pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3), dtype=np.uint8)
            options = {key: value(seed) for key, value in save.items()}
            Image.fromarray(pixels).save(place / f"images/{name}/{i:06d}{suffix}", format, **options)
            lines.append(f"images/{name}/{i:06d}{suffix} {seed % 3}")
        (place / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return place


def test_a_folder_elsewhere_is_used_without_a_copy(tmp_path):
    theirs = folder(tmp_path / "vtab-1k" / "cifar100")
    before = {p: p.stat().st_mtime_ns for p in theirs.rglob("*")}
    made = prepare_dataset("cifar", tmp_path / "vtab-1k", tmp_path / "root")
    assert {p: p.stat().st_mtime_ns for p in theirs.rglob("*")} == before
    assert not (made / "images").exists()
    manifest = layout.read_manifest(made)
    assert manifest is not None and manifest.home == str(theirs.resolve()) and manifest.lossy
    assert manifest.split_id.startswith("lists-") and "published without loss and is JPEG here" in manifest.note
    assert noticed(tmp_path / "root") == []
    mine = load_data(DataConfig("vtab", "cifar", str(tmp_path / "root")), size=8, **HALF)
    direct = load_data(DataConfig("vtab", "cifar", str(theirs.parent)), size=8, **HALF)
    assert mine.lossy and direct.lossy
    assert mine.train.batch(mine.train.labels[:3] * 0).equal(direct.train.batch(direct.train.labels[:3] * 0))
    assert [row.lossy for row in list_datasets(tmp_path / "root") if row.name == "cifar"] == [True]
    told = []
    prepare_dataset("cifar", theirs, tmp_path / "root", lambda *args: told.append(args[0]))
    assert "already prepared" in told[-1]
    victim = theirs / "images/test/000002.jpg"
    victim.write_bytes(victim.read_bytes()[:-1] + b"\0")
    assert any(p.file == "test.txt" and p.line == 3 and not p.note for p in verify_dataset("cifar", tmp_path / "root"))


def test_a_folder_under_the_root_gets_a_manifest_and_nothing_else(tmp_path):
    theirs = folder(tmp_path / "root" / "cifar", "PNG")
    before = {p: p.stat().st_mtime_ns for p in theirs.rglob("*") if p.is_file()}
    assert prepare_dataset("cifar", theirs, tmp_path / "root") == theirs
    assert {p: p.stat().st_mtime_ns for p in theirs.rglob("*") if p.is_file() and p.name != layout.MANIFEST} == before
    manifest = layout.read_manifest(theirs)
    assert manifest is not None and not manifest.lossy and manifest.home == ""
    assert check_data(DataConfig("vtab", "cifar", str(tmp_path / "root"))) == (manifest.data_id, manifest.split_id)
    told = []
    prepare_dataset("cifar", tmp_path / "root", tmp_path / "root", lambda *args: told.append(args[0]))
    assert "already prepared" in told[-1]


def test_an_archive_is_copied(tmp_path):
    theirs = folder(tmp_path / "cifar")
    with zipfile.ZipFile(tmp_path / "vtab-1k.zip", "w") as archive:
        for path in sorted(theirs.rglob("*")):
            archive.write(path, f"vtab-1k/cifar/{path.relative_to(theirs)}")
    made = prepare_dataset("cifar", tmp_path / "vtab-1k.zip", tmp_path / "root")
    shutil.rmtree(theirs)
    manifest = layout.read_manifest(made)
    assert manifest is not None and manifest.home == "" and manifest.lossy
    assert noticed(tmp_path / "root") == []


def test_the_probe_tells_reencoded_photographs_from_originals(tmp_path):
    usual = folder(tmp_path / "a" / "dtd")  # Pillow's default quality, every one
    original = folder(tmp_path / "b" / "dtd", quality=lambda seed: 80 + seed % 15)
    for place, lossy, word in ((usual, True, "re-encoded"), (original, False, "look like the published files")):
        manifest = layout.read_manifest(prepare_dataset("dtd", place, tmp_path / f"root-{lossy}"))
        assert manifest is not None and manifest.lossy is lossy and word in manifest.note


@pytest.mark.parametrize(
    ("file", "change", "part"),
    [
        ("test.txt", lambda text: text.replace("000003", "000999"), "test.txt:4: there is no image"),
        ("test.txt", lambda text: text.replace(" 2", " two", 1), "is not of the form"),
        ("test.txt", lambda text: text.replace(" 2", " 100", 1), "label 100 is out of range"),
        ("test.txt", lambda text: text.replace("000003", "../x"), "not a plain path"),
        ("test.txt", lambda text: text.splitlines()[0], "gives 1 images for test.txt but cifar has 7"),
        ("val200.txt", None, "holds no file val200.txt"),
        ("train800.txt", lambda text: "\udcff", "is not text"),
        ("train800.txt", lambda text: text + text.splitlines()[0], "gives 7 images for train800.txt"),
        (
            "train800.txt",
            lambda text: text.replace("images/train800/000000.jpg 0", "images/train800val200/000001.jpg 0"),
            "has label 1 here and 0 in train800.txt",
        ),
    ],
)
def test_broken_folders(tmp_path, file, change, part):
    theirs = folder(tmp_path / "cifar")
    path = theirs / file
    if change is None:
        path.unlink()
    else:
        path.write_bytes(change(path.read_text()).encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError) as error:
        prepare_dataset("cifar", theirs, tmp_path / "root")
    assert part in str(error.value) and "\n" not in str(error.value)
    assert not list((tmp_path / "root").iterdir())


def test_an_image_that_changes_the_split_is_named(tmp_path):
    """An image of the test list among the training images: the same file twice is wrong, the same content a note."""
    theirs = folder(tmp_path / "cifar")
    shutil.copy(theirs / "images/test/000001.jpg", theirs / "images/train800/000001.jpg")
    shutil.copy(theirs / "images/test/000001.jpg", theirs / "images/train800val200/000001.jpg")
    prepare_dataset("cifar", theirs, tmp_path / "root")
    (found,) = noticed(tmp_path / "root")
    assert found.note and found.file == "test.txt" and found.line == 2
    lines = (theirs / "test.txt").read_text().splitlines()
    lines[0] = "images/train800/000000.jpg 0"
    (theirs / "test.txt").write_text("\n".join(lines))
    with pytest.raises(InputError, match="is the same image as"):
        prepare_dataset("cifar", theirs, tmp_path / "other")


def test_odd_images_are_named_with_their_line(tmp_path):
    theirs = folder(tmp_path / "cifar", "PNG")
    made = {}
    for i, mode in enumerate(["L", "CMYK", "P", "RGBA", "1"]):
        image = Image.fromarray(np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)).convert(mode)
        out = io.BytesIO()
        image.save(out, "TIFF" if mode == "CMYK" else "PNG")
        (theirs / f"images/test/{i:06d}.png").write_bytes(out.getvalue())
        made[i + 1] = {
            "L": "is grey",
            "CMYK": "is CMYK",
            "P": "has a palette",
            "RGBA": "alpha",
            "1": "black and white",
        }[mode]
    found = noticed(theirs.parent)
    assert {p.line: p.note for p in found} == dict.fromkeys(made, True)
    for problem in found:
        assert problem.line is not None and made[problem.line] in problem.what

    wrong = {
        1: Image.fromarray(np.arange(64, dtype=np.uint16).reshape(8, 8) * 900),
        2: Image.fromarray(np.zeros((8, 8), np.float32)),
    }
    wrong[1].save(theirs / "images/test/000000.png")
    wrong[2].save(theirs / "images/test/000001.png", "TIFF")
    (theirs / "images/test/000002.png").write_bytes(b"")
    whole = (theirs / "images/test/000005.png").read_bytes()
    (theirs / "images/test/000003.png").write_bytes(whole[:-40])
    (theirs / "images/test/000004.png").unlink()
    Image.new("1", (12_000, 9_000)).save(theirs / "images/test/000005.png")
    told = {p.line: p.what for p in verify_dataset("cifar", theirs.parent) if not p.note}
    for line, part in enumerate(
        ["8 bits", "8 bits", "0 bytes", "cannot be decoded", "cannot be read", "huge"], start=1
    ):
        assert part in told[line], (line, told)
