"""Own images as Hugging Face's tools write them. The library ``datasets`` is the oracle of the full ring."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench.own_sources import encode, picture, png, prepare, refusal, write_images, write_table
from s2a_bench.data.folder import read_manifest
from s2a_bench.data.own.prepare import OwnOptions, prepare_own
from s2a_bench.errors import InputError

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def rows_of(numbers: range, names: tuple[str, ...] | None = ("dog", "cat"), **more) -> pa.Table:
    """Rows with the note that ``datasets`` leaves of its features."""
    labels = pa.array([i % 2 for i in numbers], pa.int64())
    images = pa.array([{"bytes": png(i), "path": f"{i}.png" if i % 3 else None} for i in numbers], IMAGE)
    table = pa.table({"image": images, "label": labels, **more})
    features = {"image": {"_type": "Image"}, "label": {"names": list(names or ()), "_type": "ClassLabel"}}
    note = json.dumps({"info": {"features": features}})
    return table.replace_schema_metadata({"huggingface": note}) if names else table


def write_saved(folder: Path, shards: list[pa.Table]) -> None:
    folder.mkdir(parents=True)
    files = []
    for i, table in enumerate(shards):
        files.append({"filename": f"data-{i:05d}-of-{len(shards):05d}.arrow"})
        with pa.ipc.new_stream(folder / files[-1]["filename"], table.schema) as out:
            out.write_table(table, max_chunksize=3)
    (folder / "state.json").write_text(json.dumps({"_data_files": files, "_split": None}))


def check_content(root: Path, start: int = 0) -> None:
    """Every image has the bytes and the class of its row."""
    manifest = read_manifest(root / "mine")
    assert manifest is not None and manifest.own is not None and manifest.own["format"] == "hub"
    for path, info in manifest.files.items():
        number = start + int(Path(info.source).stem)
        assert (root / "mine" / path).read_bytes() == png(number)
        assert info.label is not None and manifest.classes[info.label] == ("dog", "cat")[number % 2]
        assert path.endswith(".png")


def only(sentences: list[str]) -> str:
    assert len(sentences) == 1, sentences
    return sentences[0]


def test_saved_with_one_split(tmp_path):
    write_saved(tmp_path / "src", [rows_of(range(13)), rows_of(range(13, 20))])
    lists, notes = prepare(tmp_path / "src", tmp_path / "root", val=0.2, test=0.2)
    assert [len(lists[part]) for part in ("train", "val", "test")] == [12, 4, 4]
    check_content(tmp_path / "root")
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.classes == ("dog", "cat")  # in the order of the ClassLabel
    assert any("'image'" in note and "'label'" in note for note in notes)
    prepare(tmp_path / "src", tmp_path / "root", val=0.2, test=0.2)  # nothing to do


def test_saved_with_several_splits(tmp_path):
    write_saved(tmp_path / "src/train", [rows_of(range(20))])
    write_saved(tmp_path / "src/validation", [rows_of(range(20, 24))])
    write_saved(tmp_path / "src/extra", [rows_of(range(24, 28))])
    (tmp_path / "src/dataset_dict.json").write_text(json.dumps({"splits": ["train", "validation", "extra"]}))
    lists, notes = prepare(tmp_path / "src", tmp_path / "root")
    assert sorted(lists["val"]) == [f"validation/{i:06d}.png" for i in range(4)]
    assert len(lists["test"]) == 2 and all(name.startswith("train/") for name in lists["test"])
    assert any("Split extra is not used" in note for note in notes)


def test_parquet_files_of_a_repository(tmp_path):
    (tmp_path / "src/data").mkdir(parents=True)
    (tmp_path / "src/README.md").write_text("# pets")
    for i in range(2):
        pq.write_table(rows_of(range(i * 10, i * 10 + 10)), tmp_path / f"src/data/train-{i:05d}-of-00002.parquet")
    lists, _ = prepare(tmp_path / "src", tmp_path / "root")
    assert set(lists["trainval"] | lists["test"]) == {f"train/{i:06d}.png" for i in range(20)}
    check_content(tmp_path / "root")
    (tmp_path / "src/data/train-00001-of-00002.parquet").unlink()
    assert "not complete" in only(refusal(tmp_path / "src", tmp_path / "other"))


def test_one_parquet_file_with_text_labels_and_groups(tmp_path):
    table = rows_of(range(20), None, breed=pa.array(["a", "b"] * 10), owner=pa.array([i // 4 for i in range(20)]))
    pq.write_table(table, tmp_path / "pets.parquet")
    options = {"label_column": "breed", "group_column": "owner", "val": 0.2, "test": 0.2}
    lists, _ = prepare(tmp_path / "pets.parquet", tmp_path / "root", **options)
    home = {int(Path(name).stem): part for part in ("train", "val", "test") for name in lists[part]}
    assert all(len({home[i] for i in range(start, start + 4)}) == 1 for start in range(0, 20, 4))


def test_faults_of_rows(tmp_path):
    pq.write_table(rows_of(range(20)).set_column(1, "label", pa.array([-1] * 20)), tmp_path / "a.parquet")
    lists = pa.array([[0], [1]] * 10)
    pq.write_table(rows_of(range(20), None).set_column(1, "label", lists), tmp_path / "b.parquet")
    images = [{"bytes": None, "path": "gone.png"}, *({"bytes": png(i), "path": None} for i in range(19))]
    pq.write_table(rows_of(range(20)).set_column(0, "image", pa.array(images, IMAGE)), tmp_path / "c.parquet")
    named = rows_of(range(20)).schema.metadata
    pq.write_table(pq.read_table(tmp_path / "a.parquet").replace_schema_metadata(named), tmp_path / "a.parquet")
    pq.write_table(pq.read_table(tmp_path / "c.parquet").replace_schema_metadata(named), tmp_path / "c.parquet")
    assert "-1 stands for" in only(refusal(tmp_path / "a.parquet", tmp_path / "root"))
    assert "several labels" in only(refusal(tmp_path / "b.parquet", tmp_path / "root"))
    told = refusal(tmp_path / "c.parquet", tmp_path / "root")
    assert len(told) == 2 and "row/000000.png" in told[0]
    found, _ = prepare(tmp_path / "c.parquet", tmp_path / "root", skip_unreadable=True)
    assert len(found["trainval"]) + len(found["test"]) == 19


def test_damaged_saved_datasets(tmp_path):
    write_saved(tmp_path / "a", [rows_of(range(20))])
    arrow = tmp_path / "a/data-00000-of-00001.arrow"
    whole = arrow.read_bytes()
    arrow.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="cannot be read"):
        prepare_own("mine", tmp_path / "a", tmp_path / "root")
    arrow.unlink()
    assert "lacks data-00000" in only(refusal(tmp_path / "a", tmp_path / "root"))
    (tmp_path / "a/state.json").write_text("{")
    assert "state.json cannot be read" in only(refusal(tmp_path / "a", tmp_path / "root"))
    (tmp_path / "a/dataset_dict.json").write_text(json.dumps({"splits": ["one", "two"]}))
    assert "one, two" in only(refusal(tmp_path / "a", tmp_path / "root"))


def test_unused_classes_are_left_out(tmp_path):
    write_saved(tmp_path / "src", [rows_of(range(20), ("dog", "cat", "fox"))])
    _, notes = prepare(tmp_path / "src", tmp_path / "root")
    assert any("fox" in note for note in notes)
    check_content(tmp_path / "root")


# --- imagefolder -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_imagefolder_with_metadata(tmp_path, kind):
    names = write_images(tmp_path / "src", {"one": 10, "two": 10})
    labels = ["cat" if i % 3 else "dog" for i in range(20)]
    table = tmp_path / f"src/metadata.{kind}"
    if kind == "csv":
        write_table(table, "file_name,label", [f"{n},{label}" for n, label in zip(names, labels, strict=True)])
    elif kind == "jsonl":
        lines = [json.dumps({"file_name": n, "label": label}) for n, label in zip(names, labels, strict=True)]
        write_table(table, lines[0], lines[1:])
    else:
        pq.write_table(pa.table({"file_name": names, "label": labels}), table)
    (tmp_path / "src/one/more.png").write_bytes(png(400))
    lists, notes = prepare(tmp_path / "src", tmp_path / "root", in_place=True)
    found = lists["trainval"] | lists["test"]
    assert {n: ("cat", "dog")[label] for n, label in found.items()} == dict(zip(names, labels, strict=True))
    assert any("one/more.png" in note and "no row" in note for note in notes)


def test_metadata_in_each_part(tmp_path):
    for part, start in (("train", 0), ("test", 100)):
        write_images(tmp_path / "src" / part, {"files": 8}, start=start)
        rows = [f"files/{i:03d}.png,{'cat' if i % 2 else 'dog'}" for i in range(8)]
        write_table(tmp_path / "src" / part / "metadata.csv", "file_name,label", rows)
    lists, _ = prepare(tmp_path / "src", tmp_path / "root", val=0.25)
    assert len(lists["val"]) == 2 and all(name.startswith("train/") for name in lists["train"] | lists["val"])
    assert set(lists["test"]) == {f"test/files/{i:03d}.png" for i in range(8)}


def test_metadata_without_labels_leaves_the_class_folders(tmp_path):
    names = write_images(tmp_path / "src", {"cat": 6, "dog": 6})
    write_table(tmp_path / "src/metadata.csv", "file_name,text", [f"{n},a picture" for n in names])
    lists, _ = prepare(tmp_path / "src", tmp_path / "root")
    assert set(lists["train"].values()) == {0, 1}


def test_metadata_of_missing_files(tmp_path):
    write_images(tmp_path / "src", {"cat": 6})
    write_table(tmp_path / "src/metadata.csv", "file_name,label", ["cat/000.png,a", "../x.png,b"])
    told = only(refusal(tmp_path / "src", tmp_path / "root"))
    assert "1 of 2" in told and "../x.png" in told


# --- Against the library ---------------------------------------------------------------------------------------------

needs_datasets = pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="datasets is not installed")


@needs_datasets
@pytest.mark.full
@pytest.mark.filterwarnings("ignore")
def test_what_datasets_writes(tmp_path):
    """``save_to_disk`` with one and several splits and shards, and ``to_parquet``: the rows that it gives back."""
    import datasets

    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["dog", "cat"]), "who": datasets.Value("string")}
    )
    files = []
    for i in range(20):
        files.append(str(tmp_path / f"{i}.jpg"))
        Path(files[-1]).write_bytes(encode(picture(i), "JPEG"))
    rows = {"image": files, "label": [i % 2 for i in range(20)], "who": [str(i // 2) for i in range(20)]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    whole.save_to_disk(tmp_path / "one", num_shards=3)
    parts = whole.train_test_split(test_size=0.3, seed=0)
    parts.save_to_disk(tmp_path / "parts")
    (tmp_path / "hub").mkdir()
    whole.to_parquet(tmp_path / "hub/train-00000-of-00001.parquet")
    for form in ("one", "parts", "hub"):
        folder = prepare_own("mine", tmp_path / form, tmp_path / f"root-{form}", OwnOptions(group_column="who"))
        manifest = read_manifest(folder)
        assert manifest is not None and manifest.classes == ("dog", "cat")
        given: Any = dict(parts) if form == "parts" else {"": whole}
        assert len(manifest.files) == 20
        for path, info in manifest.files.items():
            split, _, number = info.source.rpartition("/")
            row = given[split if form == "parts" else ""][int(Path(number).stem)]
            assert row["label"] == info.label
            assert (folder / path).read_bytes() == Path(files[int(row["who"]) * 2 + row["label"]]).read_bytes()
