"""Readers of image folders against archives written here by hand, against torchvision, and against broken ones."""

from __future__ import annotations

import dataclasses
import io
import shutil
import tarfile
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torchvision.datasets as oracle
from PIL import Image
from s2a_bench.dataset_types import Counts, Dataset, Official, Recipe
from s2a_bench.errors import InputError
from s2a_bench.sources.folders import READERS
from s2a_bench.sources.items import Source
from s2a_bench.sources.tree import Tree
from s2a_bench.synthetic.folders import MAKERS

BY_NAME = {reader.name: reader for reader in READERS}
ROW = Dataset("tiny", "vtab", "natural", 3, Counts(None, None, None, None), "made up", "none", "here")
CALTECH = ("caltech-101.zip", "101_ObjectCategories.tar.gz")
NAMES = ("background_google", "cup", "faces")


def row(reader: str, classes: int = 3, encoding="jpeg", **recipe) -> Dataset:
    archives = recipe.pop("archives", ())
    made = Recipe(reader, Official(), archives, **recipe)
    return dataclasses.replace(ROW, classes=classes, encoding=encoding, recipe=made)


CALTECH_ROW = row("class_folders", archives=CALTECH, folder="101_ObjectCategories", class_names=NAMES)
EUROSAT_ROW = row("class_folders", 10, archives=("EuroSAT.zip", "EuroSAT_RGB.zip", "2750.zip"), folder="2750")
RESISC_ROW = row("class_folders", 45, archives=("NWPU-RESISC45.zip", "NWPU-RESISC45.tar.gz"), folder="NWPU-RESISC45")
PLAIN_ROW = row("image_folder", encoding="lossless", archives=("tiny_images.tar.gz",))
IMAGENET_ROW = row("image_folder", target="imagenet")
UCF_ROW = row("ucf101", archives=("UCF-101-midframes.zip",))
SUN_ROW = row("sun397", archives=("SUN397.tar.gz",))
DOMAIN_ROW = row("domainnet", archives=("clipart.zip",), target="clipart")

PLANS = {
    "caltech": (CALTECH_ROW, {"": (3, 5, 4)}),
    "caltech with skipped folders": (
        row("class_folders", 2, archives=CALTECH, folder="101_ObjectCategories", class_names=NAMES[1:],
            skip=("BACKGROUND_Google",)),
        {"": (3, 4)},
    ),
    "eurosat": (EUROSAT_ROW, {"": (2, 3) * 5}),
    "resisc45": (RESISC_ROW, {"": (2,) * 45}),
    "class folders unpacked": (row("class_folders", folder="pictures"), {"": (2, 3, 2)}),
    "class folders at the top": (row("class_folders"), {"": (2, 3, 2)}),
    "plain": (PLAIN_ROW, {"train": (4, 3, 5), "test": (2, 1, 2)}),
    "plain with val": (PLAIN_ROW, {"train": (2, 3, 2), "val": (1, 1, 2), "test": (2, 1, 2)}),
    "imagenet": (IMAGENET_ROW, {"train": (3, 4, 2), "test": (2, 1, 1)}),
    "ucf101": (UCF_ROW, {"train": (20, 3, 2), "test": (8, 2, 1)}),
    "sun397": (SUN_ROW, {"train": (3, 4, 2), "val": (1, 1, 1), "test": (2, 1, 2)}),
    "domainnet": (DOMAIN_ROW, {"train": (3, 4, 2), "test": (2, 1, 2)}),
}  # fmt: skip


def image(number: int) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(number).integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(out, "JPEG")
    return out.getvalue()


IMAGES = [image(i) for i in range(12)]


def write(place: Path, names, **texts: str) -> dict[str, bytes]:
    """Images under the given names, in a folder; content per name."""
    files = {name: IMAGES[i % len(IMAGES)] for i, name in enumerate(names)}
    for name, data in (files | {name: text.encode() for name, text in texts.items()}).items():
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_bytes(data)
    return files


def tree_of(place: Path, dataset: Dataset) -> Tree:
    assert dataset.recipe is not None
    return Tree(place, (*dataset.recipe.archives, place.name))


def load(place: Path, dataset: Dataset) -> tuple[Source, dict[str, bytes]]:
    assert dataset.recipe is not None
    reader = BY_NAME[dataset.recipe.reader]
    with tree_of(place, dataset) as tree:
        assert reader.recognises(tree, dataset)
        source = reader.open(tree, dataset)
        read = list(source.read(frozenset(item.name for item in source.items)))
    assert len(dict(read)) == len(read) == len(source.items) == len({item.name for item in source.items})
    return source, dict(read)


def refused(place: Path, dataset: Dataset, words: str) -> None:
    assert dataset.recipe is not None
    with pytest.raises(InputError, match=words) as caught, tree_of(place, dataset) as tree:
        BY_NAME[dataset.recipe.reader].open(tree, dataset)
    assert "\n" not in str(caught.value)


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def extract(folder: Path) -> None:
    """Every archive in a folder, and those within, in place of itself."""
    while packs := [p for p in folder.rglob("*") if p.suffix in (".zip", ".gz") and not p.name.startswith("._")]:
        for pack in packs:
            if pack.suffix == ".zip":
                with zipfile.ZipFile(pack) as archive:
                    archive.extractall(pack.parent)
            else:
                with tarfile.open(pack) as archive:
                    archive.extractall(pack.parent, filter="data")
            pack.unlink()


# --- Made-up sources: every packing, every plan ----------------------------------------------------------------------


@pytest.mark.parametrize("case", PLANS)
def test_made_up_sources_are_read_alike_from_every_packing(case, tmp_path):
    dataset, plan = PLANS[case]
    assert dataset.recipe is not None
    for name in ("packed", "again", "other"):
        (tmp_path / name).mkdir()
        MAKERS[dataset.recipe.reader](dataset, tmp_path / name, plan, int(name == "other"))
    shutil.copytree(tmp_path / "packed", tmp_path / "extracted")
    extract(tmp_path / "extracted")
    assert files_of(tmp_path / "packed") == files_of(tmp_path / "again") != files_of(tmp_path / "other")
    assert all((tmp_path / "packed" / name).is_file() for name in dataset.recipe.archives[:1])

    source, contents = load(tmp_path / "packed", dataset)
    places = [tmp_path / "extracted"]
    packs = [p for p in (tmp_path / "packed").iterdir() if p.suffix in (".zip", ".gz")]
    if packs and dataset.recipe.reader not in ("sun397", "domainnet"):  # these have lists next to the archive
        places += packs
    places += [p for p in (tmp_path / "extracted").rglob("*") if p.is_dir() and p.name == dataset.recipe.folder]
    for place in places:
        other, others = load(place, dataset)
        assert (other.items, other.classes, others) == (source.items, source.classes, contents)
        if place.is_dir():
            assert other.base is not None
            assert all((other.base / name).read_bytes() == data for name, data in contents.items())
    assert packs == [] or source.base is None

    found = Counter((item.part, item.label) for item in source.items)
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
        assert dataset.recipe is not None
        (tmp_path / name).mkdir()
        MAKERS[dataset.recipe.reader](dataset, tmp_path / name, plan, 0)
        assert len(load(tmp_path / name, dataset)[0].items) == sum(map(sum, plan.values()))


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
    assert {item.name: item.label for item in source.items} == expected
    assert contents == {name.removeprefix(f"{home}/"): data for name, data in files.items()}
    assert source.classes == NAMES and source.base == tmp_path / home
    assert {item.key for item in source.items} == set(expected)
    assert [item.name for item in source.items] == sorted(expected)


@pytest.mark.parametrize("dataset", [EUROSAT_ROW, RESISC_ROW], ids=["eurosat", "resisc45"])
def test_sorted_class_folders_are_torchvisions(dataset, tmp_path):
    (tmp_path / "eurosat").mkdir()
    MAKERS["class_folders"](dataset, tmp_path / "eurosat", {"": (2,) * dataset.classes}, 0)
    extract(tmp_path / "eurosat")
    source, _ = load(tmp_path / "eurosat", dataset)
    folder = tmp_path / "eurosat" / dataset.recipe.folder
    theirs = oracle.EuroSAT(str(tmp_path)) if dataset is EUROSAT_ROW else oracle.ImageFolder(str(folder))
    assert list(source.classes) == theirs.classes
    assert {str(folder / item.name): item.label for item in source.items} == dict(theirs.samples)
    # tensorflow_datasets' keys: <class>_<file>, where the file already begins with the class.
    assert all(item.key == item.name.replace("/", "_") for item in source.items)
    assert {item.name for item in source.items} >= (
        {"Forest/Forest_2.jpg"} if dataset is EUROSAT_ROW else {"airport/airport_001.jpg"}
    )


def test_caltech_is_torchvisions(tmp_path):
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
    found = Counter(item.name.split("/")[0] for item in source.items)
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
            assert (source.items, contents) == (expected[0].items, expected[1])


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
        assert {item.name: item.label for item in source.items} == labels
        assert source.base is not None and source.base == home / "a"
    write(tmp_path, ["other/b/1.jpg"])
    assert len(load(tmp_path, none)[0].items) == 3  # the one place with three class folders
    write(tmp_path, ["more/b/1.jpg", "more/c/1.jpg", "more/d/1.jpg"])
    refused(tmp_path, none, "several places.*3 class folders")


def test_the_folder_may_be_the_working_directory_or_a_link(tmp_path, monkeypatch):
    write(tmp_path / "2750", [f"class_{i}/{i}.jpg" for i in range(10)])
    (tmp_path / "link").symlink_to(tmp_path / "2750")
    monkeypatch.chdir(tmp_path / "2750")
    for place in (Path(), tmp_path / "link"):
        assert len(load(place, EUROSAT_ROW)[0].items) == 10


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
        ((*GOOD, f"{HOME}/dog/1.jpg"), "folder 'dog' that is no class of 101_ObjectCategories; it is another set"),
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
    MAKERS["image_folder"](dataset, tmp_path, {"train": (3, 2, 4), "test": (1, 2, 2)}, 0)
    extract(tmp_path)
    source, _ = load(tmp_path, dataset)
    folders = {"train": "train", "test": "val" if dataset is IMAGENET_ROW else "test"}
    for part, folder in folders.items():
        theirs = oracle.ImageFolder(str(tmp_path / folder))
        assert list(source.classes) == theirs.classes
        ours = {str(tmp_path / item.name): item.label for item in source.items if item.part == part}
        assert ours == dict(theirs.samples)
    assert {item.part for item in source.items} == {"train", "test"}
    assert source.base == tmp_path


def test_imagenet_as_its_makers_pack_it(tmp_path):
    """Deeper in folders, with a test set that has no labels."""
    home = "ILSVRC/Data/CLS-LOC"
    names = [f"{home}/{part}/n0{i}/{i}.JPEG" for part in ("train", "val") for i in range(3)]
    write(tmp_path, [*names, f"{home}/test/ILSVRC2012_test_1.JPEG"])
    source, _ = load(tmp_path, IMAGENET_ROW)
    assert [(item.name, item.label, item.part) for item in source.items] == [
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
        ((*PARTS, "test/c3/0.jpg"), "'c3' of test/ is no class of train/"),
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


# --- UCF101 ----------------------------------------------------------------------------------------------------------

UCF = "UCF-101-midframes"
VIDEOS = {
    f"Jump_Rope/v_JumpRope_g{8:02d}_c01": "train",
    f"Jump_Rope/v_JumpRope_g{7:02d}_c04": "test",
    f"Jumping_Jack/v_JumpingJack_g{25:02d}_c01": "train",
    f"Jumping_Jack/v_JumpingJack_g{1:02d}_c02": "test",
    f"Handstand_Pushups/v_HandStandPushups_g{12:02d}_c01": "train",  # the capital S is UCF101's own
}
UCF_LISTS = {
    "classInd.txt": "1 HandstandPushups\r\n2 JumpingJack\r\n3 JumpRope\r\n",
    "trainlist01.txt": "JumpRope/v_JumpRope_g07_c04.avi 3\nJumpingJack/v_JumpingJack_g01_c02.avi 2\n",
    "testlist01.txt": "JumpRope/v_JumpRope_g08_c01.avi\nJumpingJack/v_JumpingJack_g25_c01.avi\n"
    "HandstandPushups/v_HandStandPushups_g12_c01.avi\n",
}


def ucf(place: Path, lists: dict[str, str] | None = None, more: tuple[str, ...] = (), less: int = 0) -> Path:
    names = [f"{UCF}/{video}.jpg" for video in VIDEOS][less:]
    write(place, [*names, *(f"{UCF}/{name}" for name in more)], **{f"lists/{k}": v for k, v in (lists or {}).items()})
    return place


def test_ucf101_labels_are_its_own_numbers_and_parts_its_first_split(tmp_path):
    labels = {"Handstand_Pushups": 0, "Jumping_Jack": 1, "Jump_Rope": 2}  # classInd.txt: 37, 47, 48
    source, _ = load(ucf(tmp_path), UCF_ROW)
    assert source.classes == tuple(labels)
    assert {item.name: (item.label, item.part) for item in source.items} == {
        f"{video}.jpg": (labels[video.split("/")[0]], part) for video, part in VIDEOS.items()
    }
    assert source.base == tmp_path / UCF


def test_lists_of_ucf101_decide(tmp_path):
    plain, _ = load(ucf(tmp_path / "a"), UCF_ROW)
    source, _ = load(ucf(tmp_path / "b", UCF_LISTS), UCF_ROW)  # the other way round than the groups say
    assert source.classes == plain.classes
    swapped = {"train": "test", "test": "train"}
    assert source.items == tuple(dataclasses.replace(item, part=swapped[item.part]) for item in plain.items)
    other = UCF_LISTS | {
        "classInd.txt": "1 JumpRope\n2 JumpingJack\n3 HandstandPushups\n",
        "trainlist01.txt": UCF_LISTS["trainlist01.txt"].replace("avi 3", "avi 1"),
    }
    source, _ = load(ucf(tmp_path / "c", other), UCF_ROW)
    assert source.classes == ("Jump_Rope", "Jumping_Jack", "Handstand_Pushups")
    assert {i.label for i in source.items if i.name.startswith("Handstand")} == {2}


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("Archery/v_Archery_g01_c01.jpg",), "4 class folders"),
        (("Jump_Rope/v_JumpingJack_g01_c09.jpg",), "is not called v_JumpRope_gXX_cYY"),
        (("Jump_Rope/frame.jpg",), "is not called"),
        (("Jump_Rope/v_JumpRope_g26_c01.jpg",), "is not called"),
        (("Jump_Rope/v_JumpRope_g08_c01.JPG",), "twice"),
        (("Jump_Rope/more/v_JumpRope_g09_c01.jpg",), "lies deeper"),
    ],
)
def test_broken_ucf101(more, words, tmp_path):
    refused(ucf(tmp_path, more=more), UCF_ROW, words)


@pytest.mark.parametrize(
    ("lists", "words"),
    [
        ({"testlist01.txt": None}, "holds no testlist01.txt"),
        ({"classInd.txt": "1 JumpRope\n3 JumpingJack\n"}, "classInd.txt:2: expected '2 <class>'"),
        ({"classInd.txt": "1 JumpRope\n2 JumpRope\n"}, "names a class twice"),
        ({"classInd.txt": ""}, "classInd.txt in .* is empty"),
        ({"classInd.txt": "1 HandstandPushups\n2 JumpingJack\n3 JumpRope\n4 Archery\n"}, "class 'Archery'.*missing"),
        ({"trainlist01.txt": "JumpRope/v_JumpRope_g07_c04.avi 2\n"}, "trainlist01.txt:1: .*does not fit"),
        ({"trainlist01.txt": "JumpRope/v_JumpRope_g07_c04.avi x\n"}, "does not fit"),
        ({"trainlist01.txt": "Archery/v_Archery_g07_c04.avi 2\n"}, "does not fit"),
        ({"trainlist01.txt": UCF_LISTS["trainlist01.txt"] * 2}, "trainlist01.txt:3: .*listed twice"),
        ({"trainlist01.txt": "JumpRope/v_JumpRope_g08_c01.avi 3\n"}, "testlist01.txt:1: .*listed twice"),
        ({"trainlist01.txt": "JumpRope/v_JumpRope_g07_c04.avi 3\n"}, "g01_c02.jpg is in neither trainlist01"),
        (
            {"trainlist01.txt": UCF_LISTS["trainlist01.txt"] + "JumpRope/v_JumpRope_g09_c01.avi 3\n"},
            "no frame of v_jumprope_g09_c01",
        ),
    ],
)
def test_lists_that_do_not_fit_ucf101(lists, words, tmp_path):
    merged = {name: text for name, text in (UCF_LISTS | lists).items() if text is not None}
    refused(ucf(tmp_path, merged), UCF_ROW, words)


def test_a_ucf101_without_frames(tmp_path):
    write(tmp_path, [f"{UCF}/flat.txt"])
    refused(tmp_path, UCF_ROW, "holds no images in UCF-101-midframes")


# --- SUN397 ----------------------------------------------------------------------------------------------------------

SCENES = ("a/abbey", "c/church/indoor", "c/church/outdoor")
SUN_NAMES = [f"{scene}/sun_{letter * 15}.jpg" for scene in SCENES for letter in "abcd"]
SUN_LISTS = {
    "sun397_tfds_tr.txt": SUN_NAMES[0:12:2],
    "sun397_tfds_va.txt": SUN_NAMES[1:6:2],
    "sun397_tfds_te.txt": SUN_NAMES[7:12:2],
}


def sun(place: Path, lists: dict[str, list[str]] | None = None, names=SUN_NAMES, classes=SCENES[::-1]) -> Path:
    texts = {name: "".join(f"/{n}\n" for n in listed) for name, listed in (lists or {}).items()}
    listed = {"SUN397/ClassName.txt": "".join(f"/{scene}\n" for scene in classes)}
    write(place, [f"SUN397/{name}" for name in names], **(texts | listed))
    return place


def test_sun397_labels_are_torchvisions(tmp_path):
    source, _ = load(sun(tmp_path, classes=SCENES), SUN_ROW)
    theirs = oracle.SUN397(str(tmp_path))
    assert list(source.classes) == theirs.classes == ["abbey", "church/indoor", "church/outdoor"]
    expected = {
        path.relative_to(tmp_path / "SUN397").as_posix(): label
        for path, label in zip(theirs._image_files, theirs._labels, strict=True)
    }
    assert {item.name: item.label for item in source.items} == expected
    assert source.base == tmp_path / "SUN397"


def test_lists_of_sun397_decide_and_give_keys(tmp_path):
    bad = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"  # in no list, as in the real ones
    source, _ = load(sun(tmp_path / "a", SUN_LISTS, [*SUN_NAMES, bad]), SUN_ROW)
    parts = {"sun397_tfds_tr.txt": "train", "sun397_tfds_va.txt": "val", "sun397_tfds_te.txt": "test"}
    assert {i.name: i.part for i in source.items} == {n: parts[k] for k, names in SUN_LISTS.items() for n in names}
    assert all(item.key == f"/{item.name}" for item in source.items) and source.note == ""
    assert source.classes[0] == "abbey"  # sorted, whatever the order of ClassName.txt


def test_parts_of_sun397_are_drawn_without_lists(tmp_path):
    names = [f"{SCENES[i % 3]}/sun_{i:015d}.jpg" for i in range(200)]
    bad, poor = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg", "t/track/outdoor/sun_aophkoiosslinihb.jpg"
    dataset = dataclasses.replace(SUN_ROW, classes=4)
    place = sun(tmp_path, None, [*names, bad, poor], (*SCENES, "t/track/outdoor"))
    source, _ = load(place, dataset)
    parts = {item.name: item.part for item in source.items}
    assert parts.keys() == {*names, poor} and parts[poor] == "train"
    n = len(parts)
    train, val = n * 76128 // 108753, n * 10875 // 108753
    assert Counter(parts.values()) == {"train": train, "val": val, "test": n - train - val}
    assert {item.key for item in source.items} == {None} and "drawn" in source.note and source.lists is None
    again, _ = load(place / "SUN397", dataset)
    assert again.items == source.items
    assert dataset.recipe is not None
    other = dataclasses.replace(dataset, recipe=dataclasses.replace(dataset.recipe, seed=1))
    assert load(place, other)[0].items != source.items


def test_sun397_without_its_list_of_classes(tmp_path):
    expected, _ = load(sun(tmp_path), SUN_ROW)
    (tmp_path / "SUN397" / "ClassName.txt").unlink()
    assert load(tmp_path, SUN_ROW)[0].items == expected.items


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": []}, "holds no images in SUN397"),
        ({"names": SUN_NAMES[4:]}, "class 'a/abbey'.*missing"),
        ({"classes": SCENES[1:]}, "folder 'a/abbey' that is no class"),
        ({"classes": (*SCENES, "b/bog")}, "class 'b/bog'.*missing"),
        ({"classes": (*SCENES, SCENES[0])}, "names a class twice"),
        ({"classes": ()}, "is empty"),
        ({"names": SUN_NAMES[:4], "classes": SCENES[:1]}, "has 1 classes in SUN397 but tiny has 3"),
        ({"names": [*SUN_NAMES, "preview.jpg"]}, "lies in no class folder"),
        ({"names": [*SUN_NAMES, "a/abbey/SUN_AAAAAAAAAAAAAAA.jpg"]}, "twice"),
        ({"names": [*SUN_NAMES, "copy/SUN397/" + SUN_NAMES[0]]}, "twice"),
        ({"lists": SUN_LISTS | {"sun397_tfds_tr.txt": SUN_NAMES[0:12:4]}}, "is in none of sun397_tfds_tr.txt"),
        ({"lists": SUN_LISTS | {"sun397_tfds_te.txt": SUN_NAMES[0:3]}}, "sun397_tfds_te.txt:1: .*listed twice"),
        ({"lists": SUN_LISTS | {"sun397_tfds_te.txt": ["a/abbey/gone.jpg"]}}, "te.txt:1: there is no image"),
        ({"lists": {k: v for k, v in SUN_LISTS.items() if "va" not in k}}, "holds no sun397_tfds_va.txt"),
        ({"lists": SUN_LISTS | {"sun397_tfds_va.txt": []}}, "sun397_tfds_va.txt in .* is empty"),
    ],
)
def test_broken_sun397(changes, words, tmp_path):
    refused(sun(tmp_path, **changes), SUN_ROW, words)


# --- DomainNet -------------------------------------------------------------------------------------------------------

TRAIN = [f"clipart/{name}/clipart_{label}_{i}.jpg {label}" for i in (1, 2) for label, name in enumerate(("ant", "bat"))]
TEST = [
    f"clipart/{name}/clipart_{label}_{i}.jpg {label}" for i in (3,) for label, name in enumerate(("ant", "bat", "zoo"))
]


def domain(place: Path, train=TRAIN, test=TEST, names: list[str] | None = None, **texts: str) -> Path:
    if names is None:
        names = [line.rpartition(" ")[0] for line in (*TRAIN, *TEST)]
    lists = {f"clipart_{part}.txt": "\n".join(lines) for part, lines in (("train", train), ("test", test))}
    write(place, names, **(lists | texts))
    return place


def test_lists_of_domainnet_decide(tmp_path):
    place = domain(tmp_path / "a")
    source, contents = load(place, DOMAIN_ROW)
    expected = [(*line.rsplit(" ", 1), part) for part, lines in (("train", TRAIN), ("test", TEST)) for line in lines]
    assert [(item.name, str(item.label), item.part) for item in source.items] == expected
    assert source.classes == ("ant", "bat", "zoo")  # the last is in one list only, as painting's t-shirt
    assert source.base == place and source.note == ""
    write(place, ["clipart/ant/clipart_0_99.jpg"])
    source, _ = load(place, DOMAIN_ROW)
    assert len(source.items) == len(expected) and source.note.startswith("1 images of clipart are in no list")
    (tmp_path / "b").mkdir()
    with zipfile.ZipFile(tmp_path / "b" / "clipart.zip", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    for name in ("clipart_train.txt", "clipart_test.txt"):
        shutil.copy(place / name, tmp_path / "b")
    zipped, others = load(tmp_path / "b", DOMAIN_ROW)
    assert (zipped.items, others) == (source.items, contents)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": []}, "holds no images in clipart/<class>/"),
        ({"train": []}, "clipart_train.txt in .* is empty"),
        ({"train": [*TRAIN, "clipart/ant/clipart_0_1.jpg"]}, "clipart_train.txt:5: expected"),
        ({"train": [*TRAIN, "clipart/ant/clipart_0_3.jpg one"]}, "expected 'clipart/<class>/<image> <label>'"),
        ({"train": [*TRAIN, "clipart/ant/clipart_0_3.jpg -1"]}, "expected"),
        ({"train": [*TRAIN, "sketch/ant/clipart_0_3.jpg 0"]}, "expected"),
        ({"train": [*TRAIN, "clipart/../ant/clipart_0_3.jpg 0"]}, "expected"),
        ({"train": [*TRAIN, "clipart/ant/clipart_0_3.jpg 3"]}, "label 3; there are 3 classes"),
        ({"train": [*TRAIN, "clipart/ant/clipart_0_3.jpg 1"]}, "ant has label 1, but elsewhere bat has label 0"),
        ({"train": [*TRAIN, "clipart/ant/clipart_0_9.jpg 0"]}, "there is no image clipart/ant/clipart_0_9.jpg"),
        ({"train": [*TRAIN, TRAIN[0]]}, "clipart_train.txt:5: clipart/ant/clipart_0_1.jpg is listed twice"),
        ({"test": [*TEST, TRAIN[0]]}, "clipart_test.txt:4: .*listed twice"),
        ({"test": TEST[:2]}, "has label 2 .1 of 3 are missing"),
        ({"more/clipart_train.txt": "x"}, "holds 2 times a clipart_train.txt"),
    ],
)
def test_broken_domainnet(changes, words, tmp_path):
    refused(domain(tmp_path, **changes), DOMAIN_ROW, words)


def test_domainnet_without_a_list_or_with_two_copies(tmp_path):
    place = domain(tmp_path)
    write(place, ["copy/clipart/ant/clipart_0_1.jpg"])
    refused(place, DOMAIN_ROW, "images at 2 places")
    (place / "clipart_test.txt").write_bytes(b"\xff\xfe")
    refused(place, DOMAIN_ROW, "at 2 places")
    shutil.rmtree(place / "copy")
    refused(place, DOMAIN_ROW, "is not text")
    (place / "clipart_test.txt").unlink()
    refused(place, DOMAIN_ROW, "holds no clipart_test.txt")
