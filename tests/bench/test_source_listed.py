"""DTD, Flowers102, Pets, CUB and Dogs, against torchvision's readers and by hand; CoOp's and VPT's split files."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import scipy.io
from PIL import Image
from s2a_bench.data.readers import published_splits as split_files
from s2a_bench.data.readers.listed import READERS
from s2a_bench.data.readers.source import Source, SourceImage
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.listed import MAKERS
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.errors import InputError

OPEN = {reader.name: reader for reader in READERS}
ROWS = {
    "dtd": dataclasses.replace(DATASETS["dtd"], classes=3),
    "flowers102": dataclasses.replace(DATASETS["oxford_flowers102"], classes=3),
    "pets": dataclasses.replace(DATASETS["oxford_iiit_pet"], classes=3),
    "cub": dataclasses.replace(DATASETS["fgvc_cub"], classes=3),
    "dogs": dataclasses.replace(DATASETS["fgvc_dogs"], classes=3),
}
PLAN = {"train": (3, 2, 4), "val": (1, 2, 1), "test": (2, 3, 2)}


def plan(name: str) -> dict[str, tuple[int, ...]]:
    return PLAN if name in ("dtd", "flowers102") else {part: PLAN[part] for part in ("train", "test")}


def archives(name: str) -> tuple[str, ...]:
    preparation = ROWS[name].preparation
    assert preparation is not None
    return preparation.archives


def make(name: str, place: Path, seed: int = 0) -> Path:
    place.mkdir(parents=True)
    MAKERS[name](ROWS[name], place, plan(name), seed)
    return place


def extract(place: Path) -> Path:
    for path in list(place.iterdir()):
        if ".t" in path.name:
            with tarfile.open(path) as archive:
                archive.extractall(place, filter="data")
            path.unlink()
    return place


def opened(name: str, place: Path) -> tuple[Source, dict[str, bytes]]:
    with Tree(place, archives(name)) as tree:
        assert OPEN[name].recognises(tree, ROWS[name])
        source = OPEN[name].open(tree, ROWS[name])
        return source, dict(source.read(frozenset(item.name for item in source.images)))


@pytest.mark.parametrize("name", sorted(ROWS))
def test_packings_and_plan(name, tmp_path):
    packed, images = opened(name, make(name, tmp_path / "a"))
    loose, same = opened(name, extract(make(name, tmp_path / "b")))
    assert (packed.images, packed.classes, images) == (loose.images, loose.classes, same)
    for part, sizes in plan(name).items():
        labels = [item.label for item in packed.images if item.part == part]
        assert tuple(labels.count(label) for label in range(3)) == sizes
    assert images.keys() == {item.name for item in packed.images} and len(set(images.values())) == len(images)
    made = {path.name: path.read_bytes() for path in make(name, tmp_path / "c").iterdir()}
    assert made == {path.name: path.read_bytes() for path in (tmp_path / "a").iterdir()}


def same_as_torchvision(source: Source, images: dict[str, bytes], part: str, theirs) -> None:
    def pixels(image: Image.Image) -> bytes:
        return image.convert("RGB").tobytes()

    mine = {
        pixels(Image.open(io.BytesIO(images[item.name]))): item.label for item in source.images if item.part == part
    }
    assert mine == {pixels(image): label for image, label in theirs}


def test_dtd_is_torchvisions(tmp_path):
    from torchvision.datasets import DTD

    source, images = opened("dtd", make("dtd", tmp_path / "a"))
    extract(make("dtd", tmp_path / "tv" / "dtd"))
    for part in ("train", "val", "test"):
        same_as_torchvision(source, images, part, DTD(str(tmp_path / "tv"), split=part))


def test_pets_are_torchvisions(tmp_path):
    from torchvision.datasets import OxfordIIITPet

    source, images = opened("pets", make("pets", tmp_path / "a"))
    extract(make("pets", tmp_path / "tv" / "oxford-iiit-pet"))
    for part, split in (("train", "trainval"), ("test", "test")):
        same_as_torchvision(source, images, part, OxfordIIITPet(str(tmp_path / "tv"), split=split))


def test_flowers_are_torchvisions(tmp_path, monkeypatch):
    from torchvision.datasets import Flowers102

    source, images = opened("flowers102", make("flowers102", tmp_path / "a"))
    extract(make("flowers102", tmp_path / "tv" / "flowers-102"))
    monkeypatch.setattr(Flowers102, "_check_integrity", lambda self: True)
    for part in ("train", "val", "test"):
        same_as_torchvision(source, images, part, Flowers102(str(tmp_path / "tv"), split=part))


def test_cub_by_hand(tmp_path):
    root = tmp_path / "CUB_200_2011"
    lines = {
        "classes": "1 001.A\n2 002.B\n3 003.C\n",
        "images": "1 001.A/x.jpg\n2 003.C/y.jpg\n3 002.B/z.jpg\n",
        "image_class_labels": "1 1\n2 3\n3 2\n",
        "train_test_split": "1 1\n2 0\n3 1\n",
    }
    for name, text in lines.items():
        (root / "images").mkdir(parents=True, exist_ok=True)
        (root / f"{name}.txt").write_text(text)
    for name in ("001.A/x.jpg", "003.C/y.jpg", "002.B/z.jpg"):
        (root / "images" / name).parent.mkdir()
        (root / "images" / name).write_bytes(name.encode())
    source, images = opened("cub", tmp_path)
    assert source.images == (
        SourceImage("001.A/x.jpg", 0, "train"),
        SourceImage("003.C/y.jpg", 2, "test"),
        SourceImage("002.B/z.jpg", 1, "train"),
    )
    assert source.classes == ("001.A", "002.B", "003.C") and images["003.C/y.jpg"] == b"003.C/y.jpg"


def test_dogs_by_hand(tmp_path):
    files = {"train": ["n1-Aa/a.jpg", "n2-Bb/b.jpg"], "test": ["n3-Cc/c.jpg"]}
    labels = {"train": [[1.0], [2.0]], "test": [[3.0]]}
    for part, names in files.items():
        cells = np.empty((len(names), 1), object)
        cells[:, 0] = names
        scipy.io.savemat(tmp_path / f"{part}_list.mat", {"file_list": cells, "labels": np.array(labels[part])})
        for name in names:
            (tmp_path / "Images" / name).parent.mkdir(parents=True)
            (tmp_path / "Images" / name).write_bytes(name.encode())
    source, _ = opened("dogs", tmp_path)
    assert source.images == (
        SourceImage("n1-Aa/a.jpg", 0, "train"),
        SourceImage("n2-Bb/b.jpg", 1, "train"),
        SourceImage("n3-Cc/c.jpg", 2, "test"),
    )
    assert source.classes == ("Aa", "Bb", "Cc")


def edit(file: str, old: str, new: str):
    def change(place: Path) -> None:
        (path,) = place.rglob(file)
        path.write_text(path.read_text().replace(old, new, 1))

    return change


def drop(pattern: str):
    return lambda place: sorted(place.rglob(pattern))[0].unlink()


def write(pattern: str, content: bytes):
    return lambda place: sorted(place.rglob(pattern))[0].write_bytes(content)


def mat(file: str, **variables):
    def change(place: Path) -> None:
        (path,) = place.rglob(file)
        scipy.io.savemat(path, {**{k: v for k, v in scipy.io.loadmat(path).items() if k[0] != "_"}, **variables})

    return change


@pytest.mark.parametrize(
    ("name", "change", "part"),
    [
        ("dtd", drop("val1.txt"), "holds no labels/val1.txt"),
        ("dtd", drop("texture*_00000.jpg"), "lists texture00/texture00_00000.jpg but does not hold it"),
        ("dtd", write("test1.txt", b""), "test1.txt"),
        ("dtd", write("test1.txt", b"\xff\xfe"), "is not text"),
        ("dtd", edit("test1.txt", "texture00", "other"), "lists other/texture00_00013.jpg but does not hold"),
        ("dtd", edit("val1.txt", "texture00/texture00_00009", "texture00/texture00_00000"), "twice"),
        ("flowers102", drop("imagelabels.mat"), "holds no imagelabels.mat"),
        ("flowers102", write("setid.mat", b"MATLAB 5.0 MAT-file"), "setid.mat"),
        ("flowers102", mat("imagelabels.mat", labels=np.array([[9] * 20])), "has 9 to 9; expected 1 to 3"),
        ("flowers102", mat("setid.mat", trnid=np.array([[1.5]])), "something else than whole numbers"),
        ("flowers102", mat("setid.mat", trnid=np.array([[99]])), "expected 1 to 20"),
        ("flowers102", mat("setid.mat", valid=np.array([[1]])), "twice"),
        ("flowers102", drop("image_00003.jpg"), "lists image_00003.jpg but does not hold it"),
        ("pets", edit("trainval.txt", " 1 1 1", " one 1 1"), "is not a whole number from 1 to 3"),
        ("pets", edit("trainval.txt", " 1 1 1", " 1"), "is not of the form"),
        ("pets", edit("test.txt", "Made_up_AA_9 1", "Made_up_AA_9 2"), "class 2 is"),
        ("pets", drop("test.txt"), "holds no annotations/test.txt"),
        ("pets", drop("Made_up_AB*.jpg"), "does not hold it"),
        ("cub", edit("image_class_labels.txt", "1 1", "1 4"), "from 1 to 3"),
        ("cub", edit("train_test_split.txt", "1 1", "1 2"), "from 0 to 1"),
        ("cub", edit("train_test_split.txt", "1 1\n", ""), "disagree"),
        ("cub", edit("classes.txt", "3 ", "4 "), "without a gap"),
        ("cub", edit("images.txt", "2 ", "1 "), "comes twice"),
        ("cub", drop("classes.txt"), "holds no classes.txt"),
        ("dogs", mat("train_list.mat", labels=np.array([[1.0]])), "9 files and 1 labels"),
        ("dogs", mat("test_list.mat", labels=np.full((7, 1), 2.0)), "class 2 is"),
        ("dogs", drop("*_0.jpg"), "does not hold it"),
        ("dogs", drop("test_list.mat"), "holds no test_list.mat"),
    ],
)
def test_broken_sources(name, change, part, tmp_path):
    place = extract(make(name, tmp_path / "x"))
    change(place)
    with pytest.raises(InputError) as error:
        opened(name, place)
    assert part in str(error.value) and "\n" not in str(error.value)


# --- Split files -----------------------------------------------------------------------------------------------------

NAMES = ("a/1.jpg", "a/2.jpg", "b/1.jpg", "b/2.jpg", "c/1.jpg", "c/2.jpg")
SOURCE = Source(
    tuple(SourceImage(name, "abc".index(name[0])) for name in NAMES), ("a", "b", "c"), lambda names: iter(())
)
ROW = dataclasses.replace(DATASETS["fgvc_dtd"], classes=3)
COOP = {
    "train": [["a/1.jpg", 0, "ant"], ["b/1.jpg", 1, "bee"]],
    "val": [["c/2.jpg", 2, "cat"]],
    "test": [["a/2.jpg", 0, "ant"], ["c/1.jpg", 2, "cat"]],
}


def coop(folder: Path, values, indent: int | None = None) -> Path:
    path = folder / "split_zhou_X.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values, indent=indent))
    return path


def vpt(folder: Path, **changes) -> Path:
    for part in ("train", "val", "test"):
        values = {f"images/{name}": label for name, label, _ in COOP[part]}
        text = changes.get(part, values)
        (folder / f"{part}.json").write_text(text if isinstance(text, str) else json.dumps(text))
    return folder


def test_coop_and_vpt_give_the_same_lists(tmp_path):
    lists, labels, classes, split_id, _ = split_files.read_split(coop(tmp_path, COOP), "coop", ROW, SOURCE)
    assert lists == {"train": ("a/1.jpg", "b/1.jpg"), "val": ("c/2.jpg",), "test": ("a/2.jpg", "c/1.jpg")}
    assert labels["c/1.jpg"] == 2 and classes == ("ant", "bee", "cat") and split_id.startswith("coop-")
    mine = split_files.read_split(vpt(tmp_path), "vpt", ROW, SOURCE)
    assert mine[:2] == (lists, labels) and mine.classes == ("a", "b", "c") and mine.split_id.startswith("vpt-")
    assert split_files.read_split(coop(tmp_path, COOP, 4), "coop", ROW, SOURCE).split_id == split_id
    other = {**COOP, "val": COOP["test"], "test": COOP["val"]}
    assert split_files.read_split(coop(tmp_path, other), "coop", ROW, SOURCE).split_id != split_id


def test_a_split_beside_the_images_is_found(tmp_path):
    (tmp_path / "a").mkdir()
    with Tree(tmp_path) as tree:
        assert split_files.find_split(tree) is None
    vpt(tmp_path)
    with Tree(tmp_path) as tree:
        assert split_files.find_split(tree) == tmp_path
    coop(tmp_path, COOP)
    with Tree(tmp_path) as tree:
        assert split_files.find_split(tree) == tmp_path / "split_zhou_X.json"
    shutil.copy(tmp_path / "split_zhou_X.json", tmp_path / "split_zhou_Y.json")
    with Tree(tmp_path) as tree, pytest.raises(InputError, match="2 split files"):
        split_files.find_split(tree)


@pytest.mark.parametrize(
    ("values", "part"),
    [
        ("{", "cannot be read"),
        ("[]", "no list 'train'"),
        ({**COOP, "val": []}, "no list 'val'"),
        ({"train": COOP["train"], "val": COOP["val"]}, "no list 'test'"),
        ({**COOP, "val": [["c/2.jpg", 2]]}, "not of the form [path, label, class name]"),
        ({**COOP, "val": ["c/2.jpg"]}, "not of the form [path, label, class name]"),
        ({**COOP, "val": [["c/9.jpg", 2, "cat"]]}, "no image c/9.jpg"),
        ({**COOP, "val": [["1.jpg", 2, "cat"]]}, "names 3 images"),
        ({**COOP, "val": [["a/1.jpg", 0, "ant"]]}, "lists a/1.jpg twice"),
        ({**COOP, "val": [["c/2.jpg", 3, "cat"]]}, "has label 3"),
        ({**COOP, "val": [["c/2.jpg", "2", "cat"]]}, "has label '2'"),
        ({**COOP, "val": [["c/2.jpg", True, "cat"]]}, "has label True"),
        ({**COOP, "val": [["c/2.jpg", float("nan"), "cat"]]}, "has label nan"),
        ({**COOP, "val": [["c/2.jpg", 2, "dog"]]}, "calls class 2"),
        ({**COOP, "train": COOP["train"][:1]}, "2 classes but fgvc_dtd has 3"),
        (json.dumps(COOP)[:-1] + ', "val": []}', "a key comes twice"),
    ],
)
def test_broken_coop_files(values, part, tmp_path):
    with pytest.raises(InputError) as error:
        split_files.read_split(coop(tmp_path, values), "coop", ROW, SOURCE)
    assert part in str(error.value)


def test_broken_vpt_folders(tmp_path):
    for text, part in (("[1]", "not of the form {path: label}"), ("{}", "not of the form"), ("x", "cannot be read")):
        with pytest.raises(InputError, match=part):
            split_files.read_split(vpt(tmp_path, val=text), "vpt", ROW, SOURCE)
    (tmp_path / "val.json").unlink()
    with pytest.raises(InputError, match="cannot be read"):
        split_files.read_split(tmp_path, "vpt", ROW, SOURCE)
    with pytest.raises(InputError, match="is not a folder"):
        split_files.read_split(tmp_path / "train.json", "vpt", ROW, SOURCE)
    with pytest.raises(InputError, match="is not a file"):
        split_files.read_split(tmp_path, "coop", ROW, SOURCE)
