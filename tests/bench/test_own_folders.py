"""Own images in folders and archives: what is taken, and what is refused with which way out."""

from __future__ import annotations

import json
import os
import tarfile
import zipfile

import numpy as np
import pytest
from bench.own_sources import encode, lists_of, picture, png, prepare, refusal, write_images
from PIL import Image
from s2a_bench.data.folder import read_manifest
from s2a_bench.data.own.prepare import OwnOptions, prepare_own
from s2a_bench.data.table.lookup import get_dataset
from s2a_bench.data.verify import verify_dataset
from s2a_bench.errors import InputError

PLENTY = {"cat": 10, "dog": 20}


def only(sentences: list[str]) -> str:
    assert len(sentences) == 1, sentences
    return sentences[0]


def test_class_folders(tmp_path):
    names = write_images(tmp_path / "src", PLENTY)
    (tmp_path / "src/cat/deep/er").mkdir(parents=True)
    (tmp_path / "src/cat/deep/er/x.png").write_bytes(png(1000))
    (tmp_path / "src/notes.txt").write_text("hello")
    (tmp_path / "src/.git").mkdir()
    (tmp_path / "src/.git/y.png").write_bytes(png(1001))
    lists, notes = prepare(tmp_path / "src", tmp_path / "root")
    assert {**lists["train"], **lists["val"], **lists["test"]} == {
        name: int(name.startswith("dog")) for name in [*names, "cat/deep/er/x.png"]
    }
    assert lists["trainval"] == lists["train"] | lists["val"]
    assert [sorted(lists[part].values()) for part in ("val", "test")] == [[0, 1, 1]] * 2
    assert any("notes.txt" in note for note in notes) and any(".git" in note for note in notes)
    assert [p for p in verify_dataset("mine", tmp_path / "root") if not p.note] == []
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.own is not None
    assert manifest.classes == ("cat", "dog") and manifest.split_id == "own-seed0-v1"
    assert manifest.own["format"] == "class folders" and manifest.own["drawn"] == ["val", "test"]
    for path, info in manifest.files.items():
        assert (tmp_path / "root/mine" / path).read_bytes() == (tmp_path / "src" / info.source).read_bytes()
    row = get_dataset("own", "mine", tmp_path / "root")
    assert row.classes == 2 and row.counts == tuple(len(lists[p]) for p in ("train", "val", "trainval", "test"))


@pytest.mark.parametrize("names", [("train", "valid", "test"), ("Training", "dev", "testing")])
def test_given_parts(tmp_path, names):
    for i, part in enumerate(names):
        write_images(tmp_path / "src" / part, {"cat": 3, "dog": 2}, start=100 * i)
    lists, _ = prepare(tmp_path / "src", tmp_path / "root")
    for part, folder in zip(("train", "val", "test"), names, strict=True):
        assert {name.split("/")[0] for name in lists[part]} == {folder} and len(lists[part]) == 5
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.split_id == "own-given-v1" and manifest.own is not None
    assert manifest.own["format"] == "split folders" and manifest.own["drawn"] == []


def test_a_part_that_is_missing_is_drawn_from_train(tmp_path):
    write_images(tmp_path / "src/train", {"cat": 10, "dog": 20})
    write_images(tmp_path / "src/test", {"cat": 2, "dog": 2}, start=500)
    lists, _ = prepare(tmp_path / "src", tmp_path / "root", val=0.2)
    assert sorted(lists["val"].values()) == [0] * 2 + [1] * 4
    assert all(name.startswith("train/") for name in lists["val"]) and len(lists["test"]) == 4
    lists, _ = prepare(tmp_path / "src", tmp_path / "none", val=0)
    assert lists["val"] == {} and len(lists["train"]) == 30 and lists["trainval"] == lists["train"]


@pytest.mark.parametrize("kind", ["zip", "tar.gz"])
def test_archives_give_the_lists_of_their_folder(tmp_path, kind):
    write_images(tmp_path / "outer/inner", PLENTY)
    expected, _ = prepare(tmp_path / "outer/inner", tmp_path / "a")
    file = tmp_path / f"pets.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(file, "w") as archive:
            for path in sorted((tmp_path / "outer").rglob("*.png")):
                archive.write(path, path.relative_to(tmp_path))
            archive.writestr("__MACOSX/outer/._x.png", b"x")
    else:
        with tarfile.open(file, "w:gz") as archive:
            archive.add(tmp_path / "outer", "outer")
    lists, notes = prepare(file, tmp_path / "b", in_place=True)  # cannot be
    assert any("are copied" in note for note in notes)
    assert lists == expected


def test_in_place_copies_nothing(tmp_path):
    names = write_images(tmp_path / "src", PLENTY)
    folder = prepare_own("mine", tmp_path / "src", tmp_path / "root", OwnOptions(in_place=True))
    assert sorted(each.name for each in folder.iterdir()) == sorted(
        ["train.txt", "val.txt", "trainval.txt", "test.txt", "manifest.json"]
    )
    lines = [line for part in ("trainval", "test") for line in (folder / f"{part}.txt").read_text().splitlines()]
    assert sorted(line.rpartition(" ")[0] for line in lines) == sorted(names)
    assert verify_dataset("mine", tmp_path / "root") == []
    (tmp_path / "src" / names[0]).write_bytes(png(7777))
    assert any("changed" in str(problem) for problem in verify_dataset("mine", tmp_path / "root"))


ODD = ["a b", "🐈 emoji", "Cat", "cat", " leading", "comma, name", "ünïcode", "q'uote\"", "-dash", "100%", "label 3"]


@pytest.mark.parametrize("in_place", [False, True])
def test_odd_class_names(tmp_path, in_place):
    write_images(tmp_path / "src", dict.fromkeys(ODD, 4))
    lists, notes = prepare(tmp_path / "src", tmp_path / "root", in_place=in_place)
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.classes == tuple(sorted(ODD))
    for part in lists.values():
        assert all(sorted(ODD)[label] == name.split("/")[0] for name, label in part.items())
    assert [p for p in verify_dataset("mine", tmp_path / "root") if not p.note] == []
    assert any("'Cat'" in note and "'cat'" in note and "differ only in case" in note for note in notes)


@pytest.mark.parametrize("name", [" ", "\u3000", "a\x1b[31m", "bell\a"])
def test_class_names_that_nobody_could_read(tmp_path, name):
    """Refused here: an adapter folder would refuse them, after hours of training."""
    write_images(tmp_path / "src", {"cat": 4, name: 4})
    sentence = only(refusal(tmp_path / "src", tmp_path / "root"))
    assert repr(name) in sentence and "rename it" in sentence


def test_classes_called_like_parts(tmp_path):
    """A train is also a vehicle."""
    write_images(tmp_path / "src", {"train": 5, "bus": 5, "test": 5})
    lists, _ = prepare(tmp_path / "src", tmp_path / "root")
    assert set(lists["train"].values()) == {0, 1, 2}


def test_numbers_are_ordered_by_value(tmp_path):
    write_images(tmp_path / "src", dict.fromkeys(["10", "2", "1"], 4))
    prepare(tmp_path / "src", tmp_path / "root")
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.classes == ("1", "2", "10")


def test_links_are_followed(tmp_path):
    write_images(tmp_path / "elsewhere", {"cat": 6})
    write_images(tmp_path / "src", {"dog": 6}, start=50)
    (tmp_path / "src/cat").symlink_to(tmp_path / "elsewhere/cat")
    lists, _ = prepare(tmp_path / "src", tmp_path / "root", in_place=True)
    assert len(lists["trainval"]) + len(lists["test"]) == 12


# --- What is refused -------------------------------------------------------------------------------------------------


def test_empty_class_folder(tmp_path):
    write_images(tmp_path / "src", {**PLENTY, "fox": 0})
    told = only(refusal(tmp_path / "src", tmp_path / "root"))
    assert "fox" in told and "no image" in told and "delete" in told


def test_empty_class_folder_of_a_part(tmp_path):
    write_images(tmp_path / "src/train", {"cat": 5, "dog": 5, "fox": 0})
    write_images(tmp_path / "src/test", {"cat": 5, "dog": 0}, start=100)
    told = only(refusal(tmp_path / "src", tmp_path / "root"))
    assert "train/fox" in told and "test/dog" not in told
    (tmp_path / "src/train/fox").rmdir()
    prepare(tmp_path / "src", tmp_path / "root")  # a class that only the test part lacks is a note of verify
    assert any("dog" in str(p) for p in verify_dataset("mine", tmp_path / "root") if p.note)


def test_one_class(tmp_path):
    write_images(tmp_path / "src", {"cat": 10})
    assert "one class only, cat" in only(refusal(tmp_path / "src", tmp_path / "root"))


def test_three_images_per_class(tmp_path):
    write_images(tmp_path / "src", {"cat": 3, "dog": 3})
    told = only(refusal(tmp_path / "src", tmp_path / "root"))
    assert "fewer than 4 images" in told and "cat has 3" in told and "--val 0 or --test 0" in told
    lists, _ = prepare(tmp_path / "src", tmp_path / "root", test=0)
    assert len(lists["train"]) == 4 and sorted(lists["val"].values()) == [0, 1] and lists["test"] == {}


def test_class_in_test_that_train_lacks(tmp_path):
    write_images(tmp_path / "src/train", {"cat": 5, "dog": 5})
    write_images(tmp_path / "src/val", {"cat": 5, "wolf": 1}, start=50)
    write_images(tmp_path / "src/test", {"cat": 5, "fox": 5}, start=100)
    told = refusal(tmp_path / "src", tmp_path / "root")
    assert len(told) == 2 and "val" in told[0] and "wolf" in told[0] and "test" in told[1] and "fox" in told[1]


def test_bad_images_are_named_or_left_out(tmp_path):
    write_images(tmp_path / "src", {"cat": 10, "dog": 10})
    cat = tmp_path / "src/cat"
    (cat / "empty.png").write_bytes(b"")
    (cat / "cut.jpg").write_bytes(encode(picture(900, 64), "JPEG")[:900])
    (cat / "text.jpg").write_bytes(b"<html>404</html>")
    frames = [picture(i, 16) for i in range(3)]
    (cat / "moves.webp").write_bytes(encode(frames[0], "WEBP", save_all=True, append_images=frames[1:]))
    (cat / "moves.gif").write_bytes(encode(frames[0], "GIF", save_all=True, append_images=frames[1:]))
    deep = np.random.default_rng(0).integers(0, 60000, (16, 16)).astype(np.uint16)
    (cat / "deep.png").write_bytes(encode(Image.fromarray(deep), "PNG"))
    (cat / "phone.heic").write_bytes(b"ftypheic")
    (cat / "scan.tif").write_bytes(encode(picture(5), "TIFF"))
    if os.getuid() != 0:
        (cat / "secret.png").touch(mode=0)
    told = refusal(tmp_path / "src", tmp_path / "root")
    bad = {path.name for path in cat.iterdir()} - {f"{i:03d}.png" for i in range(10)}
    for name in bad:
        assert sum(f"cat/{name}" in sentence or str(cat / name) in sentence for sentence in told) == 1, name
    assert "--skip-unreadable" in told[-1]
    assert any("animated" in s and "moves.webp" in s for s in told)
    assert any("convert" in s and "phone.heic" in s for s in told)
    assert any("8 bits" in s and "deep.png" in s for s in told)
    lists, notes = prepare(tmp_path / "src", tmp_path / "root", skip_unreadable=True)
    assert len(lists["trainval"]) + len(lists["test"]) == 20
    own = json.loads((tmp_path / "root/mine/manifest.json").read_text())["own"]
    assert {each["image"] for each in own["skipped"]} == {f"cat/{name}" for name in bad}
    assert any("left out" in note for note in notes)
    prepare(tmp_path / "src", tmp_path / "root", skip_unreadable=True)  # the same again: nothing to do
    (cat / "text.jpg").write_bytes(png(901))  # repaired: it is another source now
    with pytest.raises(InputError, match="other images"):
        prepare_own("mine", tmp_path / "src", tmp_path / "root", OwnOptions(skip_unreadable=True))


def test_all_images_of_a_class_are_bad(tmp_path):
    write_images(tmp_path / "src", {"cat": 10, "dog": 0, "fox": 10})
    for i in range(5):
        (tmp_path / f"src/dog/{i}.png").write_bytes(b"")
    told = only(refusal(tmp_path / "src", tmp_path / "root", skip_unreadable=True))
    assert "dog has 0" in told


def test_wrong_level(tmp_path):
    write_images(tmp_path / "src/data/images", PLENTY)
    told = only(refusal(tmp_path / "src", tmp_path / "root"))
    assert str(tmp_path / "src/data/images") in told
    told = only(refusal(tmp_path / "src/data/images/cat", tmp_path / "root"))
    assert f"give {tmp_path / 'src/data/images'}" in told and "directly" in told


def test_images_beside_class_folders(tmp_path):
    write_images(tmp_path / "src", PLENTY)
    (tmp_path / "src/stray.png").write_bytes(png(500))
    (tmp_path / "src/fox").mkdir()
    told = refusal(tmp_path / "src", tmp_path / "root")
    assert len(told) == 2 and "stray.png" in told[0] and "fox" in told[1]


@pytest.mark.parametrize(
    ("folders", "words"),
    [
        (["val/cat", "test/cat"], "no folder train"),
        (["train/cat", "val/cat", "valid/cat"], "val part 2 times"),
        (["train/cat", "test/cat", "extra/cat"], "beside them extra"),
        (["train", "test"], "no class folders"),
    ],
)
def test_part_folders_that_do_not_fit(tmp_path, folders, words):
    write_images(tmp_path / "src", dict.fromkeys(folders, 4))
    assert any(words in sentence for sentence in refusal(tmp_path / "src", tmp_path / "root"))


def test_nothing_there(tmp_path):
    (tmp_path / "src").mkdir()
    assert "holds no images" in only(refusal(tmp_path / "src", tmp_path / "root"))
    (tmp_path / "src/a.heic").write_bytes(b"x")
    assert "convert" in only(refusal(tmp_path / "src", tmp_path / "root"))
    (tmp_path / "src/a.heic").rename(tmp_path / "src/data.zip")
    assert "archives (data.zip)" in only(refusal(tmp_path / "src", tmp_path / "root"))
    assert "nothing at" in only(refusal(tmp_path / "gone", tmp_path / "root"))


def test_one_image_in_several_classes(tmp_path):
    write_images(tmp_path / "src", {"cat": 200, "dog": 5})
    (tmp_path / "src/dog/same.png").write_bytes((tmp_path / "src/cat/007.png").read_bytes())
    lists, notes = prepare(tmp_path / "src", tmp_path / "root")
    assert any("cat/007.png = dog/same.png" in note and "1 image" in note for note in notes)
    homes = [part for part in ("train", "val", "test") for n in lists[part] if n in ("cat/007.png", "dog/same.png")]
    assert len(homes) == 2 and len(set(homes)) == 1
    for i in range(20, 40):
        (tmp_path / f"src/dog/{i}.png").write_bytes((tmp_path / f"src/cat/{i:03d}.png").read_bytes())
    assert "one class per image" in only(refusal(tmp_path / "src", tmp_path / "other"))


def test_names_that_are_not_text(tmp_path):
    write_images(tmp_path / "src", PLENTY)
    try:
        (tmp_path / "src/cat" / os.fsdecode(b"caf\xe9.png")).write_bytes(png(800))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    assert "not UTF-8" in only(refusal(tmp_path / "src", tmp_path / "root"))


def test_many_classes(tmp_path):
    write_images(tmp_path / "src", {f"class {i}": 4 for i in range(150)})
    lists, _ = prepare(tmp_path / "src", tmp_path / "root", in_place=True)
    assert [len(lists[part]) for part in ("train", "val", "test")] == [300, 150, 150]
    assert len(set(lists["val"].values())) == 150


@pytest.mark.full
def test_ten_thousand_classes(tmp_path):
    write_images(tmp_path / "src", {f"{i}": 4 for i in range(10_000)})
    prepare_own("mine", tmp_path / "src", tmp_path / "root", OwnOptions(in_place=True))
    lists = lists_of(tmp_path / "root/mine")
    assert len(set(lists["val"].values())) == len(lists["test"]) == 10_000
