"""Readers of folders whose lists decide (UCF101, SUN397, DomainNet), against lists written by hand and broken ones."""

from __future__ import annotations

import dataclasses
import shutil
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from bench.folder_sources import DOMAIN_ROW, SUN_ROW, UCF_ROW, load, refused, write

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
    assert {item.name: (item.label, item.part) for item in source.images} == {
        f"{video}.jpg": (labels[video.split("/")[0]], part) for video, part in VIDEOS.items()
    }
    assert source.base == tmp_path / UCF


def test_lists_of_ucf101_decide(tmp_path):
    plain, _ = load(ucf(tmp_path / "a"), UCF_ROW)
    source, _ = load(ucf(tmp_path / "b", UCF_LISTS), UCF_ROW)  # the other way round than the groups say
    assert source.classes == plain.classes
    swapped = {"train": "test", "test": "train"}
    assert source.images == tuple(dataclasses.replace(item, part=swapped[item.part]) for item in plain.images)
    other = UCF_LISTS | {
        "classInd.txt": "1 JumpRope\n2 JumpingJack\n3 HandstandPushups\n",
        "trainlist01.txt": UCF_LISTS["trainlist01.txt"].replace("avi 3", "avi 1"),
    }
    source, _ = load(ucf(tmp_path / "c", other), UCF_ROW)
    assert source.classes == ("Jump_Rope", "Jumping_Jack", "Handstand_Pushups")
    assert {i.label for i in source.images if i.name.startswith("Handstand")} == {2}


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
    import torchvision.datasets as oracle  # imports torch

    source, _ = load(sun(tmp_path, classes=SCENES), SUN_ROW)
    theirs = oracle.SUN397(str(tmp_path))
    assert list(source.classes) == theirs.classes == ["abbey", "church/indoor", "church/outdoor"]
    expected = {
        path.relative_to(tmp_path / "SUN397").as_posix(): label
        for path, label in zip(theirs._image_files, theirs._labels, strict=True)
    }
    assert {item.name: item.label for item in source.images} == expected
    assert source.base == tmp_path / "SUN397"


def test_lists_of_sun397_decide_and_give_keys(tmp_path):
    bad = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg"  # in no list, as in the real ones
    source, _ = load(sun(tmp_path / "a", SUN_LISTS, [*SUN_NAMES, bad]), SUN_ROW)
    parts = {"sun397_tfds_tr.txt": "train", "sun397_tfds_va.txt": "val", "sun397_tfds_te.txt": "test"}
    assert {i.name: i.part for i in source.images} == {n: parts[k] for k, names in SUN_LISTS.items() for n in names}
    assert all(item.key == f"/{item.name}" for item in source.images) and source.note == ""
    assert source.classes[0] == "abbey"  # sorted, whatever the order of ClassName.txt


def test_parts_of_sun397_are_drawn_without_lists(tmp_path):
    names = [f"{SCENES[i % 3]}/sun_{i:015d}.jpg" for i in range(200)]
    bad, poor = "c/church/outdoor/sun_bhenjvsvrtumjuri.jpg", "t/track/outdoor/sun_aophkoiosslinihb.jpg"
    dataset = dataclasses.replace(SUN_ROW, classes=4)
    place = sun(tmp_path, None, [*names, bad, poor], (*SCENES, "t/track/outdoor"))
    source, _ = load(place, dataset)
    parts = {item.name: item.part for item in source.images}
    assert parts.keys() == {*names, poor} and parts[poor] == "train"
    n = len(parts)
    train, val = n * 76128 // 108753, n * 10875 // 108753
    assert Counter(parts.values()) == {"train": train, "val": val, "test": n - train - val}
    assert {item.key for item in source.images} == {None} and "drawn" in source.note and source.lists is None
    again, _ = load(place / "SUN397", dataset)
    assert again.images == source.images
    assert dataset.preparation is not None
    other = dataclasses.replace(dataset, preparation=dataclasses.replace(dataset.preparation, seed=1))
    assert load(place, other)[0].images != source.images


def test_sun397_without_its_list_of_classes(tmp_path):
    expected, _ = load(sun(tmp_path), SUN_ROW)
    (tmp_path / "SUN397" / "ClassName.txt").unlink()
    assert load(tmp_path, SUN_ROW)[0].images == expected.images


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"names": []}, "holds no images in SUN397"),
        ({"names": SUN_NAMES[4:]}, "class 'a/abbey'.*missing"),
        ({"classes": SCENES[1:]}, "folder 'a/abbey' that is not a class"),
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
    assert [(item.name, str(item.label), item.part) for item in source.images] == expected
    assert source.classes == ("ant", "bat", "zoo")  # the last is in one list only, as painting's t-shirt
    assert source.base == place and source.note == ""
    write(place, ["clipart/ant/clipart_0_99.jpg"])
    source, _ = load(place, DOMAIN_ROW)
    assert len(source.images) == len(expected) and source.note.startswith("1 images of clipart are in no list")
    (tmp_path / "b").mkdir()
    with zipfile.ZipFile(tmp_path / "b" / "clipart.zip", "w") as archive:
        for name, data in contents.items():
            archive.writestr(name, data)
    for name in ("clipart_train.txt", "clipart_test.txt"):
        shutil.copy(place / name, tmp_path / "b")
    zipped, others = load(tmp_path / "b", DOMAIN_ROW)
    assert (zipped.images, others) == (source.images, contents)


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
