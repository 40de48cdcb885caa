"""Readers of image folders against archives written here by hand, against torchvision, and against broken ones."""

from __future__ import annotations

import dataclasses
import io
import shutil
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from bench.folder_sources import (
    BY_NAME,
    CALTECH,
    CALTECH_ROW,
    EUROSAT_ROW,
    IMAGENET_ROW,
    IMAGES,
    NAMES,
    PLAIN_ROW,
    PLANS,
    RESISC_ROW,
    extract,
    files_of,
    load,
    refused,
    row,
    tree_of,
    write,
)
from PIL import Image
from s2a_bench.data.synthetic.folders import MAKERS
from s2a_bench.errors import InputError

# --- Made-up sources: every packing, every plan ----------------------------------------------------------------------


@pytest.mark.parametrize("case", PLANS)
def test_made_up_sources_are_read_alike_from_every_packing(case, tmp_path):
    dataset, plan = PLANS[case]
    assert dataset.preparation is not None
    for name in ("packed", "again", "other"):
        (tmp_path / name).mkdir()
        MAKERS[dataset.preparation.reader](dataset, tmp_path / name, plan, int(name == "other"))
    shutil.copytree(tmp_path / "packed", tmp_path / "extracted")
    extract(tmp_path / "extracted")
    assert files_of(tmp_path / "packed") == files_of(tmp_path / "again") != files_of(tmp_path / "other")
    assert all((tmp_path / "packed" / name).is_file() for name in dataset.preparation.archives[:1])

    source, contents = load(tmp_path / "packed", dataset)
    places = [tmp_path / "extracted"]
    packs = [p for p in (tmp_path / "packed").iterdir() if p.suffix in (".zip", ".gz")]
    if packs and dataset.preparation.reader not in ("sun397", "domainnet"):  # these have lists next to the archive
        places += packs
    places += [p for p in (tmp_path / "extracted").rglob("*") if p.is_dir() and p.name == dataset.preparation.folder]
    for place in places:
        other, others = load(place, dataset)
        assert (other.images, other.classes, others) == (source.images, source.classes, contents)
        if place.is_dir():
            assert other.base is not None
            assert all((other.base / name).read_bytes() == data for name, data in contents.items())
    assert packs == [] or source.base is None

    found = Counter((item.part, item.label) for item in source.images)
    assert found == {(part, label): n for part, sizes in plan.items() for label, n in enumerate(sizes)}
    assert len(set(contents.values())) == len(contents) and len(source.classes) == dataset.classes
    for data in contents.values():
        with Image.open(io.BytesIO(data)) as opened:
            assert opened.format == "JPEG" and opened.mode == "RGB"
    assert source.lossy == (dataset.encoding == "lossless")


def test_only_the_wanted_are_read_and_only_the_known(tmp_path):
    (tmp_path / "a").mkdir()
    MAKERS["class_folders"](CALTECH_ROW, tmp_path / "a", {"": (3, 3, 3)}, 0)
    with tree_of(tmp_path / "a", CALTECH_ROW) as tree:
        source = BY_NAME["class_folders"].open(tree, CALTECH_ROW)
        assert [name for name, _ in source.read(frozenset(["cup/image_0002.jpg"]))] == ["cup/image_0002.jpg"]
        with pytest.raises(InputError, match=r"no image cup/other\.jpg"):
            list(source.read(frozenset(["cup/other.jpg"])))


def test_many_images_and_many_classes(tmp_path):
    for name, dataset, plan in (
        ("e", EUROSAT_ROW, {"": (40,) * 10}),
        ("i", dataclasses.replace(IMAGENET_ROW, classes=300), {"train": (1,) * 300, "test": (1,) * 300}),
    ):
        assert dataset.preparation is not None
        (tmp_path / name).mkdir()
        MAKERS[dataset.preparation.reader](dataset, tmp_path / name, plan, 0)
        assert len(load(tmp_path / name, dataset)[0].images) == sum(map(sum, plan.values()))


# --- Class folders ---------------------------------------------------------------------------------------------------


def test_labels_follow_class_names_whatever_the_folders_case(tmp_path):
    home = "101_ObjectCategories"
    files = write(
        tmp_path,
        [f"{home}/{name}" for name in ("Faces/a.jpg", "Faces/b.PNG", "cup/x.jpg", "BACKGROUND_Google/z.jpeg")],
        **{f"{home}/cup/Thumbs.db": "x", f"{home}/cup/._x.jpg": "x", f"{home}/BACKGROUND_Google/tmp": ""},
    )
    write(tmp_path, [f"{home}/preview.jpg", "elsewhere/cup/x.jpg"])  # in no class folder
    source, contents = load(tmp_path, CALTECH_ROW)
    expected = {"BACKGROUND_Google/z.jpeg": 0, "cup/x.jpg": 1, "Faces/a.jpg": 2, "Faces/b.PNG": 2}
    assert {item.name: item.label for item in source.images} == expected
    assert contents == {name.removeprefix(f"{home}/"): data for name, data in files.items()}
    assert source.classes == NAMES and source.base == tmp_path / home
    assert {item.key for item in source.images} == set(expected)
    assert [item.name for item in source.images] == sorted(expected)


@pytest.mark.parametrize("dataset", [EUROSAT_ROW, RESISC_ROW], ids=["eurosat", "resisc45"])
def test_sorted_class_folders_are_torchvisions(dataset, tmp_path):
    import torchvision.datasets as oracle  # imports torch

    (tmp_path / "eurosat").mkdir()
    MAKERS["class_folders"](dataset, tmp_path / "eurosat", {"": (2,) * dataset.classes}, 0)
    extract(tmp_path / "eurosat")
    source, _ = load(tmp_path / "eurosat", dataset)
    folder = tmp_path / "eurosat" / dataset.preparation.folder
    theirs = oracle.EuroSAT(str(tmp_path)) if dataset is EUROSAT_ROW else oracle.ImageFolder(str(folder))
    assert list(source.classes) == theirs.classes
    assert {str(folder / item.name): item.label for item in source.images} == dict(theirs.samples)
    # tensorflow_datasets' keys: <class>_<file>, where the file already begins with the class.
    assert all(item.key == item.name.replace("/", "_") for item in source.images)
    assert {item.name for item in source.images} >= (
        {"Forest/Forest_2.jpg"} if dataset is EUROSAT_ROW else {"airport/airport_001.jpg"}
    )


def test_caltech_is_torchvisions(tmp_path):
    import torchvision.datasets as oracle  # imports torch

    names = ("Background_google", "cup", "Faces")
    dataset = row("class_folders", archives=CALTECH, folder="101_ObjectCategories", class_names=names)
    (tmp_path / "caltech101").mkdir()
    MAKERS["class_folders"](dataset, tmp_path / "caltech101", {"": (2, 3, 4)}, 0)
    extract(tmp_path / "caltech101")
    home = tmp_path / "caltech101"
    (home / "caltech-101" / "101_ObjectCategories").rename(home / "101_ObjectCategories")
    (home / "Annotations").mkdir()
    theirs = oracle.Caltech101(str(tmp_path))
    source, _ = load(home, dataset)
    expected = Counter(theirs.categories[label] for label in theirs.y)
    found = Counter(item.name.split("/")[0] for item in source.images)
    assert found - Counter(BACKGROUND_Google=2) == expected


def test_repacked_archives_under_other_names(tmp_path):
    """Zenodo's ``EuroSAT_RGB.zip`` holds ``EuroSAT_RGB/<class>/``, others' copies hold ``EuroSAT/<class>/``."""
    (tmp_path / "a").mkdir()
    MAKERS["class_folders"](EUROSAT_ROW, tmp_path / "a", {"": (1,) * 10}, 0)
    expected = load(tmp_path / "a", EUROSAT_ROW)
    extract(tmp_path / "a")
    for name in ("EuroSAT_RGB", "EuroSAT"):
        shutil.copytree(tmp_path / "a" / "2750", tmp_path / "b" / name / name)
        for place in (tmp_path / "b" / name, tmp_path / "b" / name / name):
            source, contents = load(place, EUROSAT_ROW)
            assert (source.images, contents) == (expected[0].images, expected[1])


def test_folders_of_several_parts_and_none(tmp_path):
    names = ("a/one/1.jpg", "a/two/2.jpg", "a/three/3.jpg")
    write(tmp_path / "x" / "deep" / "pics", names)
    labels = {"one/1.jpg": 0, "three/3.jpg": 1, "two/2.jpg": 2}
    deep = row("class_folders", folder="pics/a")
    none = row("class_folders")
    home = tmp_path / "x" / "deep" / "pics"
    for dataset, place in (
        (deep, tmp_path), (deep, home), (deep, home / "a"), (none, tmp_path), (none, home), (none, home / "a"),
    ):  # fmt: skip
        source, _ = load(place, dataset)
        assert {item.name: item.label for item in source.images} == labels
        assert source.base is not None and source.base == home / "a"
    write(tmp_path, ["other/b/1.jpg"])
    assert len(load(tmp_path, none)[0].images) == 3  # the one place with three class folders
    write(tmp_path, ["more/b/1.jpg", "more/c/1.jpg", "more/d/1.jpg"])
    refused(tmp_path, none, "several places.*3 class folders")


def test_the_folder_may_be_the_working_directory_or_a_link(tmp_path, monkeypatch):
    write(tmp_path / "2750", [f"class_{i}/{i}.jpg" for i in range(10)])
    (tmp_path / "link").symlink_to(tmp_path / "2750")
    monkeypatch.chdir(tmp_path / "2750")
    for place in (Path(), tmp_path / "link"):
        assert len(load(place, EUROSAT_ROW)[0].images) == 10


def test_a_vtab_folder_of_the_same_name_is_not_taken_for_an_original(tmp_path):
    place = tmp_path / "caltech-101"
    write(place, [f"images/{part}/000000.jpg" for part in ("train800", "test")], **{"train800.txt": "x"})
    with tree_of(place, CALTECH_ROW) as tree:
        assert not BY_NAME["class_folders"].recognises(tree, CALTECH_ROW)
    with tree_of(place, PLAIN_ROW) as tree:
        assert not BY_NAME["image_folder"].recognises(tree, PLAIN_ROW)


HOME = "101_ObjectCategories"
GOOD = tuple(f"{HOME}/{name}/{i}.jpg" for name in ("BACKGROUND_Google", "cup", "Faces") for i in range(2))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "holds no images in 101_ObjectCategories/<class>/"),
        ((f"{HOME}/notes.txt",), "holds no images in"),
        ((*GOOD, f"{HOME}/dog/1.jpg"), "folder 'dog' that is not a class of 101_ObjectCategories; it is another set"),
        (GOOD[2:], "class 'background_google'.* is missing"),
        ((*GOOD, f"copy/{HOME}/cup/0.jpg"), "holds cup/0.jpg twice"),
        ((*GOOD, f"{HOME}/cup/0.JPG"), r"holds cup/0\.(jpg|JPG) twice"),
        ((*GOOD, f"{HOME}/CUP/9.jpg"), "two folders, CUP and cup"),
        ((*GOOD, f"{HOME}/CUP/0.jpg"), "twice"),
        ((*GOOD, f"{HOME}/cup/more/0.jpg"), "lies deeper than in 101_ObjectCategories/<class>/"),
        ((*GOOD, f"{HOME}/cup/1.tif"), "cup/1.tif, a kind of image that is not read"),
        ((*GOOD, f"{HOME}/cup/1.GIF"), "cup/1.GIF, a kind of image that is not read"),
    ],
)
def test_broken_class_folders(names, words, tmp_path):
    write(tmp_path, [*names, "readme.txt"])
    refused(tmp_path, CALTECH_ROW, words)


def test_the_number_of_class_folders(tmp_path):
    write(tmp_path, [f"2750/class_{i}/{i}.jpg" for i in range(9)])
    refused(tmp_path, EUROSAT_ROW, "9 class folders in 2750 but tiny has 10 classes")


def test_broken_archives(tmp_path):
    MAKERS["class_folders"](EUROSAT_ROW, tmp_path, {"": (2,) * 10}, 0)
    archive = tmp_path / "EuroSAT.zip"
    archive.write_bytes(archive.read_bytes()[:-500])
    refused(archive, EUROSAT_ROW, "not a readable archive.*download it again")
    with zipfile.ZipFile(archive, "w") as out, warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of zipfile, about what is tested
        for _ in range(2):
            out.writestr("2750/Forest/Forest_1.jpg", IMAGES[0])
    refused(archive, EUROSAT_ROW, "it holds 2750/Forest/Forest_1.jpg twice")


def test_two_archives_with_the_same_images_give_each_once(tmp_path):
    """``caltech-101.zip`` next to the archive that was taken out of it."""
    MAKERS["class_folders"](CALTECH_ROW, tmp_path, {"": (2, 2, 2)}, 0)
    with zipfile.ZipFile(tmp_path / CALTECH[0]) as outer:
        (tmp_path / CALTECH[1]).write_bytes(outer.read(f"caltech-101/{CALTECH[1]}"))
    assert len(load(tmp_path, CALTECH_ROW)[1]) == 6


# --- Image folders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dataset", [PLAIN_ROW, IMAGENET_ROW], ids=["plain", "imagenet"])
def test_image_folders_are_torchvisions(dataset, tmp_path):
    import torchvision.datasets as oracle  # imports torch

    MAKERS["image_folder"](dataset, tmp_path, {"train": (3, 2, 4), "test": (1, 2, 2)}, 0)
    extract(tmp_path)
    source, _ = load(tmp_path, dataset)
    folders = {"train": "train", "test": "val" if dataset is IMAGENET_ROW else "test"}
    for part, folder in folders.items():
        theirs = oracle.ImageFolder(str(tmp_path / folder))
        assert list(source.classes) == theirs.classes
        ours = {str(tmp_path / item.name): item.label for item in source.images if item.part == part}
        assert ours == dict(theirs.samples)
    assert {item.part for item in source.images} == {"train", "test"}
    assert source.base == tmp_path


def test_imagenet_as_its_makers_pack_it(tmp_path):
    """Deeper in folders, with a test set that has no labels."""
    home = "ILSVRC/Data/CLS-LOC"
    names = [f"{home}/{part}/n0{i}/{i}.JPEG" for part in ("train", "val") for i in range(3)]
    write(tmp_path, [*names, f"{home}/test/ILSVRC2012_test_1.JPEG"])
    source, _ = load(tmp_path, IMAGENET_ROW)
    assert [(item.name, item.label, item.part) for item in source.images] == [
        (f"{folder}/n0{i}/{i}.JPEG", i, part)
        for folder, part in (("train", "train"), ("val", "test"))
        for i in range(3)
    ]
    assert source.base == tmp_path / home and not source.lossy


def test_lossless_images_are_not_lossy(tmp_path):
    write(tmp_path, [f"{part}/c{i}/{i}.png" for part in ("train", "test") for i in range(3)])
    assert not load(tmp_path, PLAIN_ROW)[0].lossy


PARTS = tuple(f"{part}/c{i}/{i}.jpg" for part in ("train", "val", "test") for i in range(3))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ((), "holds no images in train/<class>/"),
        (PARTS[:6], "holds no images in test/<class>/"),
        (PARTS[3:], "holds no images in train/<class>/"),
        ((*PARTS, "test/flat.jpg"), "test/flat.jpg lies in no class folder"),
        ((*PARTS, "other/train/c0/0.jpg"), "several sets"),
        ((*PARTS, "train/c3/0.jpg"), "4 class folders"),
        ((*PARTS, "test/c3/0.jpg"), "'c3' of test/ is not a class of train/"),
        (PARTS[:-1], "'c2' of test/ has no images"),
        ((*PARTS, "train/C0/7.jpg"), "two folders"),
        ((*PARTS, "train/c0/0.JPG"), "twice"),
        ((*PARTS, "train/c0/more/1.jpg"), "lies deeper"),
        ((*PARTS, "train/c0/1.gif"), "not read here"),
    ],
)
def test_broken_image_folders(names, words, tmp_path):
    write(tmp_path, [*names, "readme.txt"])
    refused(tmp_path, PLAIN_ROW, words)


def test_unsorted_validation_images_of_imagenet(tmp_path):
    write(tmp_path, [*(f"train/n0{i}/{i}.JPEG" for i in range(3)), "val/ILSVRC2012_val_00000001.JPEG"])
    refused(tmp_path, IMAGENET_ROW, "val/ILSVRC2012_val_00000001.JPEG lies in no class folder; sort")
