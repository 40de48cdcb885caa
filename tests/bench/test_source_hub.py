"""Datasets of the Hugging Face hub: layouts, columns, classes, and broken in many ways."""

from __future__ import annotations

import dataclasses
import json
import shutil
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s2a_bench.data.readers import hub
from s2a_bench.data.readers.hub import READERS
from s2a_bench.data.readers.source import Source
from s2a_bench.data.readers.tree import Tree
from s2a_bench.data.synthetic.hub import MAKERS
from s2a_bench.data.synthetic.pictures import draw_picture, encode_jpeg, encode_png
from s2a_bench.data.table.types import Counts, Dataset, OfficialRule, Preparation
from s2a_bench.errors import InputError

pytest.importorskip("pyarrow")
import pyarrow as pa
import pyarrow.parquet as pq

READER = READERS[0]
NONE = Counts(None, None, None, None)
TINY = Dataset(
    "tiny", "whole", "whole", 3, NONE, "", "", "", preparation=Preparation("listed", OfficialRule(), ("tiny.zip",))
)
CIFAR = dataclasses.replace(
    TINY,
    name="cifar100",
    classes=100,
    encoding="lossless",
    preparation=Preparation("cifar", OfficialRule(), (), target="fine"),
)


def opened(place: Path, then: Callable[[Source], Any], dataset: Dataset = TINY) -> Any:
    assert dataset.preparation is not None
    with Tree(place, dataset.preparation.archives) as tree:
        assert READER.recognises(tree, dataset)
        return then(READER.open(tree, dataset))


def whole(source: Source) -> tuple[Any, dict[str, bytes]]:
    names = [item.name for item in source.images]
    assert len(set(names)) == len(names)
    files = list(source.read(frozenset(names)))
    assert sorted(name for name, _ in files) == sorted(names)
    return (source.images, source.classes, source.lossy, source.note), dict(files)


# --- Made up ---------------------------------------------------------------------------------------------------------

PLANS: dict[str, tuple[Dataset, dict[str, tuple[int, ...]]]] = {
    "tiny": (TINY, {"train": (60, 41, 50), "val": (2, 3, 2), "test": (3, 4, 5)}),
    "cifar100": (CIFAR, {"train": (2,) * 100, "test": (1,) * 100}),
}


@pytest.mark.parametrize("name", PLANS)
def test_labels_images_and_order_are_those_of_the_rows(name: str, tmp_path: Path):
    dataset, plan = PLANS[name]
    MAKERS["hub"](dataset, tmp_path, plan, 5)
    (items, classes, lossy, _), files = opened(tmp_path, whole, dataset)
    image, label = ("image", "label") if name == "tiny" else ("img", "fine_label")
    suffix = "jpg" if name == "tiny" else "png"
    position = 0
    for part, split in (("test", "test"), ("train", "train"), ("val", "validation")):
        rows = [
            row
            for path in sorted(tmp_path.rglob(f"{split}-*.parquet"))
            for row in pq.ParquetFile(path).read().to_pylist()
        ]
        found = {item.name: item.label for item in items if item.part == part}
        assert list(found.items()) == [(f"{part}/{i:06d}.{suffix}", row[label]) for i, row in enumerate(rows)]
        assert [files[key] for key in found] == [row[image]["bytes"] for row in rows]
        assert Counter(found.values()) == {i: n for i, n in enumerate(plan.get(part, ())) if n}
        position += len(rows)
    assert position == len(items) == len(set(files.values()))
    assert classes == tuple(f"class {i}" for i in range(dataset.classes))
    assert not lossy


def test_the_same_seed_gives_the_same_files(tmp_path: Path):
    content = []
    for i, seed in enumerate((5, 5, 6)):
        (place := tmp_path / str(i)).mkdir()
        MAKERS["hub"](TINY, place, PLANS["tiny"][1], seed)
        content.append({path.name: path.read_bytes() for path in place.rglob("*.parquet")})
    assert content[0] == content[1] != content[2]


def test_every_packing_gives_the_same_images(tmp_path: Path):
    plain = tmp_path / "plain"
    plain.mkdir()
    MAKERS["hub"](TINY, plain, PLANS["tiny"][1], 5)
    expected = opened(plain, whole)
    shutil.copytree(plain, tmp_path / "deep" / "some" / "folder")
    shutil.copytree(plain / "data", tmp_path / "configured" / "data" / "default")
    # The library's cache: files are links to blobs.
    cache = tmp_path / "datasets--someone--tiny"
    (cache / "refs").mkdir(parents=True)
    (cache / "refs" / "main").write_text("a1b2")
    (cache / "blobs").mkdir()
    (cache / "snapshots" / "a1b2" / "data").mkdir(parents=True)
    for i, path in enumerate((plain / "data").iterdir()):
        shutil.copy(path, cache / "blobs" / f"{i:064x}")
        (cache / "snapshots" / "a1b2" / "data" / path.name).symlink_to(Path("../../../blobs") / f"{i:064x}")
    packings = [plain / "data", tmp_path / "deep", tmp_path / "configured", cache, cache / "snapshots" / "a1b2"]
    packings.append(Path(shutil.make_archive(str(tmp_path / "tiny"), "zip", plain)))
    packings.append(Path(shutil.make_archive(str(tmp_path / "packed"), "gztar", plain)))
    for place in packings:
        assert opened(place, whole) == expected, place


# --- By hand ---------------------------------------------------------------------------------------------------------

LABELS = (2, 0, 1, 1)


def images(count: int, encode: Callable[[np.ndarray], bytes] = encode_png, paths: bool = False) -> list[dict[str, Any]]:
    suffix = "png" if encode is encode_png else "jpg"
    return [
        {"bytes": encode(draw_picture(0, i, 3)), "path": f"folder/{i}.{suffix.upper()}" if paths else None}
        for i in range(count)
    ]


def table(labels: Any = LABELS, names: tuple[str, ...] | None = None, label: str = "label", **columns: Any) -> pa.Table:
    columns = {"image": images(len(labels))} | {label: pa.array(labels)} | columns
    made = pa.table({name: column for name, column in columns.items() if column is not None})
    if names is None:
        return made
    features = {"image": {"_type": "Image"}, label: {"names": list(names), "_type": "ClassLabel"}}
    return made.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def written(place: Path, *tables: pa.Table, name: str = "train-{:05d}-of-{:05d}.parquet", group: int = 2) -> Path:
    place.mkdir(parents=True, exist_ok=True)
    for i, one in enumerate(tables):
        path = place / name.format(i, len(tables))
        path.parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(one, path, row_group_size=group)
    return place


@pytest.mark.parametrize(
    "name", ["train-{:05d}-of-{:05d}.parquet", "default/train/{:04d}.parquet", "train-{:05d}-of-{:05d}-0a1b2c.parquet"]
)
def test_names_of_files(name: str, tmp_path: Path):
    (items, *_), files = opened(written(tmp_path, table(), table((1, 2)), name=name), whole)
    assert [(item.name, item.label, item.part) for item in items] == [
        (f"train/{i:06d}.png", label, "train") for i, label in enumerate((*LABELS, 1, 2))
    ]
    assert [files[item.name] for item in items[4:]] == [row["bytes"] for row in images(2)]


def test_plain_names_and_splits_that_are_not_used(tmp_path: Path):
    for split in ("train", "valid", "test", "extra"):
        written(tmp_path, table(), name=f"{split}.parquet")
    (items, _, _, note), _ = opened(tmp_path, whole)
    assert Counter(item.part for item in items) == {"train": 4, "val": 4, "test": 4}
    assert "Split extra of the source is not used." in note


def test_columns_of_images_and_labels(tmp_path: Path):
    struct = pa.array(images(4, paths=True))
    plain = pa.array([row["bytes"] for row in images(4)])
    number = pa.array([0] * 4)
    tables = {
        "img": table(image=None, img=struct),
        "picture": table(image=None, picture=struct),
        "image and mask": table(mask=struct),
        "bytes": table(image=plain),
        "fine_label": table(label="fine_label", coarse_label=number),
        "labels": table(label="labels", id=number),
        "target": table(label="kind").append_column("label", number),
        "target_label": table(label="kind_label", label_=number),
    }
    for name, one in tables.items():
        target = "kind" if name.startswith("target") else ""
        preparation = Preparation("listed", OfficialRule(), (), target=target)
        (items, *_), files = opened(
            written(tmp_path / name, one), whole, dataclasses.replace(TINY, preparation=preparation)
        )
        assert [item.label for item in items] == list(LABELS), name
        assert [files[item.name] for item in items] == [row["bytes"] for row in images(4)], name


def test_suffixes_by_path_and_by_content(tmp_path: Path):
    mixed = [*images(2, encode_jpeg), *images(2, encode_png)]
    (items, *_), _ = opened(written(tmp_path / "content", table(image=mixed)), whole)
    assert [item.name[-4:] for item in items] == [".jpg", ".jpg", ".png", ".png"]
    mixed = [*images(2, encode_jpeg, paths=True), *images(2, encode_png)]
    (items, *_), _ = opened(written(tmp_path / "both", table(image=mixed)), whole)
    assert [item.name[-4:] for item in items] == [".jpg", ".jpg", ".png", ".png"]
    (items, *_), _ = opened(written(tmp_path / "path", table(image=images(4, paths=True))), whole)
    assert [item.name[-4:] for item in items] == [".png"] * 4


def test_images_are_not_read_for_the_list_where_paths_tell_their_kind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = written(tmp_path, table(image=images(4, paths=True)))
    monkeypatch.setattr(hub._ParquetTable, "images", lambda *_: pytest.fail("images were read"))
    assert len(opened(place, lambda source: source.images)) == 4


def test_only_row_groups_with_wanted_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    labels = [i % 3 for i in range(20)]
    place = written(tmp_path, table(labels, image=images(20, paths=True)), group=5)
    groups: list[int] = []
    real = pq.ParquetFile.iter_batches

    def watched(self: pq.ParquetFile, *args: Any, **kwargs: Any) -> Any:
        groups.extend(kwargs["row_groups"])
        return real(self, *args, **kwargs)

    monkeypatch.setattr(pq.ParquetFile, "iter_batches", watched)
    wanted = frozenset(f"train/{i:06d}.png" for i in (6, 9, 17))
    found = opened(place, lambda source: dict(source.read(wanted)))
    assert found == {f"train/{i:06d}.png": images(20)[i]["bytes"] for i in (6, 9, 17)}
    assert groups == [1, 3]
    with pytest.raises(InputError, match=r"holds no image train/000020\.png"):
        opened(place, lambda source: list(source.read(frozenset(["train/000020.png"]))))


def test_classes_in_the_datasets_own_order(tmp_path: Path):
    preparation = Preparation("listed", OfficialRule(), (), class_names=("Sea_Lion", "ant", "wild cat"))
    dataset = dataclasses.replace(TINY, preparation=preparation)
    place = written(tmp_path / "good", table(names=("ant", "Wild-Cat", "sea lion")))
    (items, classes, *_), _ = opened(place, whole, dataset)
    assert classes == preparation.class_names
    assert [item.label for item in items] == [0, 1, 2, 2]
    with pytest.raises(InputError, match="has classes that tiny has not, or one twice: dog"):
        opened(written(tmp_path / "other", table(names=("ant", "dog", "sea lion"))), whole, dataset)
    with pytest.raises(InputError, match="or one twice: ant, Ant, sea lion"):
        opened(written(tmp_path / "twice", table(names=("ant", "Ant", "sea lion"))), whole, dataset)
    with pytest.raises(InputError, match="does not name its classes, so that their order is not known"):
        opened(written(tmp_path / "none", table()), whole, dataset)


def test_lossy_copies_say_so(tmp_path: Path):
    lossless = dataclasses.replace(TINY, encoding="lossless")
    usual = [{"bytes": encode_jpeg(draw_picture(0, i, 3), 75), "path": None} for i in range(4)]
    for name, pictures, dataset, lossy, words in (
        ("png", images(4), lossless, False, "A copy"),
        ("png", images(4), TINY, False, "A copy"),
        ("jpeg", images(4, encode_jpeg), TINY, False, "A copy"),
        ("jpeg", images(4, encode_jpeg), lossless, True, "published without loss and is JPEG here"),
        ("usual", usual, TINY, True, "re-encoded"),
    ):
        source = opened(written(tmp_path / name, table(image=pictures)), lambda source: source, dataset)
        assert source.lossy == lossy
        assert words in source.note


# --- Broken ----------------------------------------------------------------------------------------------------------


def cut(place: Path) -> Path:
    path = next(written(place, table()).iterdir())
    path.write_bytes(path.read_bytes()[:-20])
    return place


def damaged(place: Path) -> Path:
    path = next(written(place, table()).iterdir())
    data = bytearray(path.read_bytes())
    data[4:400] = bytes(396)
    path.write_bytes(data)
    return place


def pointer(place: Path) -> Path:
    place.mkdir()
    (place / "train-00000-of-00001.parquet").write_text("version https://git-lfs.github.com/spec/v1\nsize 5\n")
    return place


def shard_missing(place: Path) -> Path:
    next(written(place, table(), table()).glob("train-00001*")).unlink()
    return place


def two_revisions(place: Path) -> Path:
    written(place, table(), table())
    return written(place, table(), name="train-{:05d}-of-{:05d}-0a.parquet")


def two_places(place: Path) -> Path:
    written(place / "one", table())
    return written(place / "two", table()).parent


def two_validations(place: Path) -> Path:
    written(place, table(), name="val-{:05d}-of-{:05d}.parquet")
    return written(place, table(), name="validation-{:05d}-of-{:05d}.parquet")


def with_note(note: bytes) -> Callable[[Path], Path]:
    return lambda place: written(place, table().replace_schema_metadata({b"huggingface": note}))


def of(*tables: pa.Table) -> Callable[[Path], Path]:
    return lambda place: written(place, *tables)


NO_BYTES = [*images(3), {"bytes": None, "path": "x.png"}]
BROKEN: dict[str, tuple[Callable[[Path], Path], str]] = {
    "cut": (cut, "train-00000-of-00001.parquet in .* cannot be read"),
    "damaged": (damaged, "cannot be read|has no image"),
    "git-lfs pointer": (pointer, "cannot be read"),
    "empty": (of(table().slice(0, 0)), "is empty"),
    "shard missing": (shard_missing, "split 'train' in .* are not complete"),
    "two revisions": (two_revisions, "not complete, or not of one revision"),
    "two datasets": (two_places, r"2 datasets, configurations or revisions \(one, two\)"),
    "two validation parts": (two_validations, "validation part under several names"),
    "no image column": (of(table(image=None)), r"has no column of images, .* \(it has label\)"),
    "image as text": (of(table(image=["x"] * 4)), "has no column of images"),
    "two unnamed images": (of(table(image=None, a=images(4), b=images(4))), "has no column of images"),
    "no label column": (of(table(label="kind")), r"has no column of labels, one of label, .* \(it has image, kind\)"),
    "label as text": (of(table(("a", "b", "c", "a"))), "Column 'label' of .* holds string and not whole numbers"),
    "fractions": (of(table((0.0, 1.0, 2.0, 0.5))), "holds double and not whole numbers"),
    "label missing": (of(table((0, 1, 2, None))), "has 1 rows without a label"),
    "label -1": (of(table((0, 1, 2, -1))), "Row 3 of .* has label -1, not 0 to 2"),
    "label 3": (of(table((0, 1, 2, 3), names=("a", "b", "c"))), "Row 3 of .* has label 3, not 0 to 2"),
    "fewer labels": (of(table((0, 1, 0, 1))), "has labels up to 1 but tiny has 3 classes"),
    "other classes": (of(table(names=("a", "b"))), "has 2 classes but tiny has 3"),
    "files disagree": (of(table(names=("a", "b", "c")), table(names=("a", "c", "b"))), "names other classes than"),
    "image missing": (of(table(image=NO_BYTES)), "Row 3 of .* has no image"),
    "image null": (of(table(image=[*images(3), None])), "Row 3 of .* has no image"),
    "image empty": (of(table(image=[{"bytes": b"", "path": None}] * 4)), "Row 0 of .* has no image"),
    "note no JSON": (with_note(b"{"), "note of the library datasets in .* is damaged"),
    "note of something else": (with_note(b'{"info": 7}'), "note of the library datasets in .* is damaged"),
    "note too deep": (with_note(b'{"info":' + b"[" * 200_000), "is damaged"),
    "note with a number for names": (with_note(b'{"info": {"features": {"label": {"names": 7}}}}'), "is damaged"),
    "note with text for names": (with_note(b'{"info": {"features": {"label": {"names": "abc"}}}}'), "is damaged"),
    "note without the label": (with_note(b'{"info": {"features": {}}}'), "is damaged"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_sources(name: str, tmp_path: Path):
    make, words = BROKEN[name]
    with pytest.raises(InputError, match=words):
        opened(make(tmp_path / "source"), whole)


def test_without_pyarrow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    place = written(tmp_path, table())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"library is missing: pip install 's2a-bench\[data\]'"):
        opened(place, whole)


def test_other_files_are_not_recognised(tmp_path: Path):
    for name in ("extra-00000-of-00001.parquet", "train.csv", "results/0000.parquet", "train-0-of-1.parquet"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"")
    with Tree(tmp_path) as tree:
        assert not READER.recognises(tree, TINY)
