"""Labels that are stated twice, by a list and by the images' own classes, must agree."""

from __future__ import annotations

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.data.folder import read_manifest
from s2a_bench.data.labels import find_folder_conflict, find_label_conflict
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.data.readers import published_splits as split_files
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.synthetic import plans
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.table.types import Counts, OfficialRule
from s2a_bench.errors import InputError


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), max_size=12))
def test_one_to_one_is_what_it_says(pairs):
    """Against the definition: as many pairs as classes, and as labels."""
    images = [(f"{i}", own, label) for i, (own, label) in enumerate(pairs)]
    one_to_one = len(set(pairs)) == len({own for own, _ in pairs}) == len({label for _, label in pairs})
    assert (find_label_conflict(images) is None) is one_to_one


@pytest.mark.parametrize(
    ("images", "conflict"),
    [
        ({"a/1": 0, "a/2": 0, "b/1": 1, "c/1": 2}, False),
        ({"a/1": 2, "a/2": 2, "b/1": 0, "c/1": 1}, False),  # another order of the classes
        ({"train/a/1": 0, "test/a/2": 0, "train/b/1": 1, "train/c/1": 2}, False),
        ({"train/a/1": 0, "test/a/2": 1, "train/b/1": 1, "train/c/1": 2}, True),
        ({"a/1": 0, "b/1": 1, "c/1": 2, "c/2": 1}, True),
        ({"a/1": 0, "b/1": 1, "c/1": 1}, True),
        ({"x/a/1": 0, "x/b/1": 1, "x/c/1": 2, "x/c/2": 1}, True),
        ({"train/1": 0, "train/2": 1, "train/3": 2}, False),  # no class folders
        ({"0/1": 0, "0/2": 1, "1/1": 1, "2/1": 2}, False),  # pieces of a large set
        ({"a/1": 0, "a/2": 1, "b/1": 2}, False),  # fewer folders than classes: they are none
        ({"1": 0, "2": 1, "a/1": 2, "b/1": 0}, False),
    ],
)
def test_class_folders(images, conflict):
    assert (find_folder_conflict(images.items(), 3) is not None) is conflict


# --- Split files -----------------------------------------------------------------------------------------------------

NAMES = [f"{name}/{i}.jpg" for name in ("ant", "bee", "cat") for i in range(6)]
SOURCE = Source(
    tuple(SourceImage(n, ("ant", "bee", "cat").index(n[:3])) for n in NAMES),
    ("ant", "bee", "cat"),
    lambda names: iter(()),
)
VPT_ROW = dataclasses.replace(DATASETS["fgvc_cub"], classes=3)
COOP_ROW = dataclasses.replace(DATASETS["fgvc_dtd"], classes=3)
PARTS = {"train": (0, 1, 2), "val": (3,), "test": (4, 5)}


def rows(part: str, ids: dict[str, int]) -> dict[str, int]:
    return {name: ids[name[:3]] for name in NAMES if int(name[4]) in PARTS[part]}


def write_vpt(folder: Path, **ids: dict[str, int]) -> Path:
    for part in PARTS:
        (folder / f"{part}.json").write_text(json.dumps(rows(part, ids.get(part, ids["train"]))))
    return folder


def write_coop(folder: Path, titles: dict[str, str], **ids: dict[str, int]) -> Path:
    path = folder / "split_zhou_X.json"
    values = {
        part: [[name, label, titles[name[:3]]] for name, label in rows(part, ids.get(part, ids["train"])).items()]
        for part in PARTS
    }
    path.write_text(json.dumps(values))
    return path


@pytest.mark.parametrize(
    ("ids", "labels"),
    [
        ({"ant": 0, "bee": 1, "cat": 2}, (0, 1, 2)),
        ({"ant": 1, "bee": 2, "cat": 3}, (0, 1, 2)),
        ({"ant": 3, "bee": 17, "cat": 400}, (0, 1, 2)),
        ({"ant": 30, "bee": 2, "cat": 9}, (2, 0, 1)),
    ],
)
def test_vpts_ids_are_numbered_as_its_loader_does(tmp_path, ids, labels):
    """Its loader: ``{id: i for i, id in enumerate(sorted(set(ids)))}``."""
    lists, found, classes, split_id, note = split_files.read_split(
        write_vpt(tmp_path, train=ids), "vpt", VPT_ROW, SOURCE
    )
    right = dict(zip([*ids], labels, strict=True))
    assert {name: found[name] for name in NAMES} == {name: right[name[:3]] for name in NAMES}
    assert [classes[label] for label in labels] == ["ant", "bee", "cat"]
    assert {part: len(names) for part, names in lists.items()} == {"train": 9, "val": 3, "test": 6}
    numbered = sorted(ids.values()) != [0, 1, 2]
    assert (note != "") == numbered == (f"from {min(ids.values())} to {max(ids.values())}" in note)
    # The lists are the same however the classes are numbered.
    plain = {name: found[f"{name}/0.jpg"] for name in ids}
    assert split_id == split_files.read_split(write_vpt(tmp_path, train=plain), "vpt", VPT_ROW, SOURCE).split_id


def test_a_class_that_one_of_vpts_files_lacks_does_not_shift_the_others(tmp_path):
    write_vpt(tmp_path, train={"ant": 1, "bee": 2, "cat": 3})
    values = json.loads((tmp_path / "val.json").read_text())
    (tmp_path / "val.json").write_text(json.dumps({name: label for name, label in values.items() if label != 1}))
    labels = split_files.read_split(tmp_path, "vpt", VPT_ROW, SOURCE).labels
    assert (labels["bee/3.jpg"], labels["cat/3.jpg"]) == (1, 2)


STRAIGHT = {"ant": 0, "bee": 1, "cat": 2}
TITLES = {"ant": "Ants", "bee": "Bees", "cat": "Cats"}


@pytest.mark.parametrize("kind", ["vpt", "coop"])
@pytest.mark.parametrize("part", ["train", "val", "test"])
def test_a_list_with_permuted_labels_is_refused_and_two_images_are_named(tmp_path, kind, part):
    permuted = {"ant": 1, "bee": 2, "cat": 0}
    ids = {**dict.fromkeys(PARTS, STRAIGHT), part: permuted}
    if kind == "vpt":
        place, row = write_vpt(tmp_path, **ids), VPT_ROW
    else:
        place, row = write_coop(tmp_path, dict.fromkeys(TITLES, ""), **ids), COOP_ROW
    with pytest.raises(InputError, match=r"(ant|bee|cat)/\d\.jpg and (ant|bee|cat)/\d\.jpg"):
        split_files.read_split(place, kind, row, SOURCE)


@given(st.permutations([0, 1, 2]), st.integers(0, 17), st.integers(0, 2))
def test_one_wrong_label_is_refused_another_numbering_is_not(order, position, other):
    ids = dict(zip([*STRAIGHT], order, strict=True))
    name = NAMES[position]
    labels = {n: ids[n[:3]] for n in NAMES}
    right = labels[name] == other
    conflict = find_label_conflict((n, n[:3], other if n == name else label) for n, label in labels.items())
    assert (conflict is None) is right


def test_coops_titles_are_its_own_but_not_those_of_other_classes(tmp_path):
    place = write_coop(tmp_path, TITLES, train={"ant": 2, "bee": 0, "cat": 1})
    _, labels, classes, *_ = split_files.read_split(place, "coop", COOP_ROW, SOURCE)
    assert classes == ("Bees", "Cats", "Ants") and labels["ant/0.jpg"] == 2
    swapped = write_coop(tmp_path, {"ant": "Bee", "bee": "Ant", "cat": "Cat"}, train=STRAIGHT)
    with pytest.raises(InputError, match="calls the images of class 'ant' 'Bee'"):
        split_files.read_split(swapped, "coop", COOP_ROW, SOURCE)


# --- Whole downloads -------------------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch):
    """CUB with three classes and as many images as the made-up source has."""
    row = DATASETS["fgvc_cub"]
    assert row.preparation is not None
    row = dataclasses.replace(
        row,
        classes=3,
        counts=Counts(None, None, None, None),
        preparation=dataclasses.replace(row.preparation, rule=OfficialRule(0.1)),
    )
    monkeypatch.setitem(DATASETS, "fgvc_cub", row)
    return row


def cub(row, place: Path) -> Path:
    """The made-up download, extracted."""
    import tarfile

    place.mkdir()
    plans.make_source(row, place)
    with tarfile.open(place / "CUB_200_2011.tgz") as archive:
        archive.extractall(place, filter="data")
    (place / "CUB_200_2011.tgz").unlink()
    return place / "CUB_200_2011"


def vpt_of_cub(place: Path, first: int = 1, shift_test: int = 0) -> None:
    """``train.json``, ``val.json``, ``test.json`` beside ``images``: labels by folder, from ``first`` on."""
    images = sorted(path.relative_to(place / "images").as_posix() for path in (place / "images").rglob("*.jpg"))
    random.Random(0).shuffle(images)
    for part, names in (("train", images[:-9]), ("val", images[-9:-6]), ("test", images[-6:])):
        shift = shift_test if part == "test" else 0
        labels = {name: (int(name[:3]) - 1 + shift) % 3 + first for name in names}
        (place / f"{part}.json").write_text(json.dumps(labels))


@pytest.mark.parametrize("first", [0, 1])
def test_cub_with_vpts_files(small, tmp_path, first):
    place = cub(small, tmp_path / "download")
    vpt_of_cub(place, first)
    manifest = read_manifest(prepare_dataset("fgvc_cub", place, tmp_path / "root"))
    assert manifest is not None and manifest.split_id.startswith("vpt-")
    assert ("numbered from 0 on" in manifest.note) is (first == 1)
    for info in manifest.files.values():
        assert info.label is not None and info.label == int(info.source[:3]) - 1
        assert manifest.classes[info.label] == info.source.split("/")[0]


def test_cub_with_a_permuted_test_file_is_refused(small, tmp_path):
    place = cub(small, tmp_path / "download")
    vpt_of_cub(place, shift_test=1)
    with pytest.raises(InputError, match=r"contradicts the labels of its images: \S+\.jpg and \S+\.jpg"):
        prepare_dataset("fgvc_cub", place, tmp_path / "root")
    assert not list((tmp_path / "root").iterdir())


def permute_labels(place: Path) -> None:
    path = place / "image_class_labels.txt"
    lines = [line.split() for line in path.read_text().splitlines()]
    half = len(lines) // 2
    path.write_text("".join(f"{key} {int(label) % 3 + 1 if int(key) > half else label}\n" for key, label in lines))


def swap_titles(place: Path) -> None:
    path = place / "classes.txt"
    titles = [line.split(" ", 1)[1] for line in path.read_text().splitlines()]
    path.write_text("".join(f"{i} {title}\n" for i, title in enumerate((titles[1], titles[0], titles[2]), 1)))


@pytest.mark.parametrize(
    ("change", "part"),
    [(permute_labels, "image_class_labels.txt in"), (swap_titles, "in classes.txt")],
    ids=["labels", "titles"],
)
def test_cubs_own_files_must_agree(small, tmp_path, change, part):
    place = cub(small, tmp_path / "download")
    change(place)
    with pytest.raises(InputError) as error:
        prepare_dataset("fgvc_cub", place, tmp_path / "root")
    assert part in str(error.value) and ".jpg" in str(error.value)


def test_pets_and_dogs_own_lists_must_agree(tmp_path):
    from bench.test_source_listed import PLAN, ROWS, extract, make, opened

    pets = extract(make("pets", tmp_path / "pets"))
    (path,) = pets.rglob("trainval.txt")
    text = path.read_text()
    assert PLAN["train"][0] == 3
    path.write_text(text.replace("Made_up_AA_0 1 ", "Made_up_AA_0 3 "))
    with pytest.raises(InputError, match="Made_up"):
        opened("pets", pets)
    dogs = extract(make("dogs", tmp_path / "dogs"))
    (path,) = dogs.rglob("test_list.mat")
    values = {k: v for k, v in scipy.io.loadmat(path).items() if k[0] != "_"}
    scipy.io.savemat(path, {**values, "labels": np.asarray(values["labels"]) % ROWS["dogs"].classes + 1})
    with pytest.raises(InputError, match="class 2 is"):
        opened("dogs", dogs)
