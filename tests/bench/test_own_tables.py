"""Own images that a table lists: columns, paths, parts, groups, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from bench.own_folders import write_own
from bench.own_sources import encode, lists_of, picture, png, prepare, refusal, write_images, write_table
from s2a_bench.data.folder import read_manifest
from s2a_bench.data.own.prepare import OwnOptions, prepare_own
from s2a_bench.data.table.own import own_dataset
from s2a_bench.data.verify import verify_dataset
from s2a_bench.errors import InputError

LABELS = {"cat": 8, "dog": 12}


@pytest.fixture
def files(tmp_path) -> list[tuple[str, str]]:
    """Path and class of images that lie in folders which are not their classes."""
    found = []
    for i in range(20):
        path = tmp_path / f"src/site{i % 2}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i))
        found.append((f"site{i % 2}/{i:02d}.png", "cat" if i < 8 else "dog"))
    return found


def only(sentences: list[str]) -> str:
    assert len(sentences) == 1, sentences
    return sentences[0]


def check_labels(lists, files) -> None:
    classes = ["cat", "dog"]
    assert {n: classes[label] for part in lists.values() for n, label in part.items()} == dict(files)


@pytest.mark.parametrize(
    ("name", "header", "join"),
    [
        ("a.csv", "file_name,label", ","),
        ("a.csv", "Image Path;Class", ";"),
        ("a.tsv", "filename\ttarget", "\t"),
        ("a.csv", "\ufefflabel_id,path,category", ","),
    ],
)
def test_text_tables(tmp_path, files, name, header, join):
    lines = [join.join([*(["7"] if "label_id" in header else []), path, label]) for path, label in files]
    table = write_table(tmp_path / "src" / name, header, lines)
    lists, notes = prepare(table, tmp_path / "root")
    check_labels(lists, files)
    assert [len(lists[part]) for part in ("val", "test")] == [2, 2]
    assert any("path" in note and "label" in note for note in notes)  # which columns were taken
    assert [p for p in verify_dataset("mine", tmp_path / "root") if not p.note] == []


def test_parquet_and_csv_give_the_same(tmp_path, files):
    paths, labels = zip(*files, strict=True)
    numbers = [float(label == "dog") for label in labels]  # as pandas writes whole numbers beside a gap
    pq.write_table(pa.table({"path": paths, "label": numbers}), tmp_path / "src/a.parquet")
    lists, _ = prepare(tmp_path / "src/a.parquet", tmp_path / "root")
    table = write_table(
        tmp_path / "src/b.csv", "path,label", [f"{p},{int(n)}" for p, n in zip(paths, numbers, strict=True)]
    )
    assert prepare(table, tmp_path / "other")[0] == lists
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.classes == ("0", "1")


def test_named_columns(tmp_path, files):
    rows = [f"x,{label},{path},y" for path, label in files]
    table = write_table(tmp_path / "src/a.csv", "path,breed,where,label", rows)
    lists, _ = prepare(table, tmp_path / "root", path_column="where", label_column="breed")
    check_labels(lists, files)
    told = refusal(table, tmp_path / "other", path_column="nowhere", label_column="nothing")
    assert len(told) == 2 and "nowhere" in told[0] and "breed" in told[0] and "nothing" in told[1]


def test_split_column(tmp_path, files):
    parts = ["Train"] * 5 + ["valid", "testing", "dev"] + ["training"] * 8 + ["test"] * 4
    rows = [f"{path},{label},{part}" for (path, label), part in zip(files, parts, strict=True)]
    lists, _ = prepare(write_table(tmp_path / "src/a.csv", "path,label,split", rows), tmp_path / "root")
    assert [len(lists[part]) for part in ("train", "val", "trainval", "test")] == [13, 2, 15, 5]
    rows[3] = rows[3].replace("Train", "fold 2")
    told = only(refusal(write_table(tmp_path / "src/b.csv", "path,label,split", rows), tmp_path / "other"))
    assert "'split'" in told and "fold 2" in told
    lists, _ = prepare(write_table(tmp_path / "src/c.csv", "path,label,fold", rows), tmp_path / "other")
    assert len(lists["val"]) == 2  # not a column of parts by its name: drawn


def test_groups_stay_together(tmp_path, files):
    rows = [f"{path},{label},p{i // 2}" for i, (path, label) in enumerate(files)]
    table = write_table(tmp_path / "src/a.csv", "path,label,patient", rows)
    lists, _ = prepare(table, tmp_path / "root", group_column="patient", val=0.25, test=0.25)
    home = {name: part for part in ("train", "val", "test") for name in lists[part]}
    for i in range(0, 20, 2):
        assert home[files[i][0]] == home[files[i + 1][0]]
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.own is not None and manifest.own["grouped_by"] == "patient"
    assert "patient" in manifest.note
    # Other groups are another dataset, though the images are the same.
    write_table(table, "path,label,patient", [f"{path},{label},p{i}" for i, (path, label) in enumerate(files)])
    with pytest.raises(InputError, match="other images"):
        prepare_own("mine", table, tmp_path / "root", OwnOptions(group_column="patient", val=0.25, test=0.25))


def test_groups_too_large(tmp_path, files):
    rows = [f"{path},{label},{'big' if i < 7 else i}" for i, (path, label) in enumerate(files)]
    table = write_table(tmp_path / "src/a.csv", "path,label,patient", rows)
    told = only(refusal(table, tmp_path / "root", group_column="patient"))
    assert "'cat'" in told and "8 images" in told and "2 groups" in told and "largest of 7" in told
    assert "'patient'" in told


def test_given_parts_that_tear_groups_are_told(tmp_path, files):
    rows = [f"{path},{label},{'test' if i % 2 else 'train'},p{i // 2}" for i, (path, label) in enumerate(files)]
    table = write_table(tmp_path / "src/a.csv", "path,label,split,patient", rows)
    _, notes = prepare(table, tmp_path / "root", group_column="patient", val=0)
    assert any("10 values of column 'patient'" in note for note in notes)


def test_paths_outside_and_absolute(tmp_path, files):
    rows = [
        f"{tmp_path / 'src' / path if i % 2 else Path('..') / 'src' / path},{label}"
        for i, (path, label) in enumerate(files)
    ]
    table = write_table(tmp_path / "tables/a.csv", "path,label", rows)
    for in_place in (False, True):
        lists, notes = prepare(table, tmp_path / f"root{in_place}", in_place=in_place)
        assert {n.removeprefix("src/") for n in lists["trainval"] | lists["test"]} == {path for path, _ in files}
        assert any("20 images lie outside" in note for note in notes)
        assert [p for p in verify_dataset("mine", tmp_path / f"root{in_place}") if not p.note] == []


def test_same_content_under_odd_names(tmp_path):
    """Files without a suffix, and with several dots, are images by their content."""
    rows = []
    (tmp_path / "src").mkdir()
    for i in range(10):
        name = f"scan.{i}" if i % 2 else f"IMG {i}"
        (tmp_path / "src" / name).write_bytes(encode(picture(i), "JPEG"))
        rows.append(f"{name},{'a/b' if i < 5 else '.c'}")
    prepare(write_table(tmp_path / "src/t.csv", "path,label", rows), tmp_path / "root")
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.classes == (".c", "a/b")
    assert [p for p in verify_dataset("mine", tmp_path / "root") if not p.note] == []


# --- What is refused -------------------------------------------------------------------------------------------------


def test_missing_paths(tmp_path, files):
    rows = [f"{path if i < 15 else f'gone{i}.png'},{label}" for i, (path, label) in enumerate(files)]
    told = only(refusal(write_table(tmp_path / "src/a.csv", "path,label", rows), tmp_path / "root"))
    assert "5 of 20" in told and "gone15.png, gone16.png, gone17.png and 2 more" in told
    rows = [f"{path.removesuffix('.png')},{label}" for path, label in files]
    told = only(refusal(write_table(tmp_path / "src/b.csv", "path,label", rows), tmp_path / "root"))
    assert "20 of 20" in told and "with .png at the end" in told


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        (["cat|dog", "cat", "dog", "fox"], "several labels in one cell (cat|dog)"),
        (["cat; dog", "cat", "dog;fox", "fox"], "several labels"),
        (["[1, 2]", "[1]", "[2]", "[3]"], "several labels"),
    ],
)
def test_several_labels(tmp_path, files, cells, words):
    rows = [f'{path},"{cells[i % 4]}"' for i, (path, _) in enumerate(files)]
    told = only(refusal(write_table(tmp_path / "src/a.csv", "path,label", rows), tmp_path / "root"))
    assert words in told and "one class per image" in told


def test_names_with_commas_are_one_label(tmp_path, files):
    names = ["maillot, tank suit", "maillot", "sunglasses, dark glasses, shades", "a|b"]
    rows = [f'{path},"{names[i % 4]}"' for i, (path, _) in enumerate(files)]
    prepare(write_table(tmp_path / "src/a.csv", "path,label", rows), tmp_path / "root")
    manifest = read_manifest(tmp_path / "root/mine")
    assert manifest is not None and manifest.classes == tuple(sorted(names))


def test_one_path_in_several_rows(tmp_path, files):
    rows = [f"{path},{label},train" for path, label in files]
    header = "path,label,split"
    again = [f"./{files[0][0]},dog,train", f"{files[1][0]},cat,test", rows[2]]
    told = refusal(write_table(tmp_path / "src/a.csv", header, rows + again), tmp_path / "root")
    assert len(told) == 2 and "1 image with several labels" in told[0] and files[0][0] in told[0]
    assert "several parts" in told[1] and files[1][0] in told[1]
    _, notes = prepare(write_table(tmp_path / "src/b.csv", header, [*rows, rows[2]]), tmp_path / "root")
    assert any("1 rows of b.csv repeat" in note for note in notes)


def test_measurements(tmp_path):
    names = write_images(tmp_path / "src", {"x": 60})
    rows = [f"{name},{i * 1.37:.3f}" for i, name in enumerate(names)]
    told = only(refusal(write_table(tmp_path / "src/a.csv", "path,label", rows), tmp_path / "root"))
    assert "measurements" in told and "--label-column" in told
    rows = [f"{name},{i % 5 / 2}" for i, name in enumerate(names)]
    prepare(write_table(tmp_path / "src/b.csv", "path,label", rows), tmp_path / "root")  # five classes


def test_empty_cells(tmp_path, files):
    rows = [
        f"{path if i != 3 else ''},{label if i not in (1, 9) else ' '},{i if i else ''}"
        for i, (path, label) in enumerate(files)
    ]
    table = write_table(tmp_path / "src/a.csv", "path,label,patient", rows)
    told = refusal(table, tmp_path / "root", group_column="patient")
    assert len(told) == 3
    assert "'label'" in told[0] and "2 of 20" in told[0] and "row 2, 10" in told[0]
    assert "'path'" in told[1] and "row 4" in told[1] and "'patient'" in told[2] and "row 1" in told[2]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is empty"),
        ("path,label\n", "no rows"),
        ("a,b\n1,2\n", "--path-column"),
        ("cat/1.jpg,cat\ncat/2.jpg,cat\n", "names of the columns"),
        ("path,label,label\na,b,c\n", "twice"),
        ("path,label\na.png,x,y\n", "Row 1"),
        ('path,label\n"a.png,x\n', "cannot be read"),
        ("path\0,label\n", "not text"),
    ],
)
def test_broken_tables(tmp_path, text, words):
    (tmp_path / "a.csv").write_text(text)
    assert any(words in sentence for sentence in refusal(tmp_path / "a.csv", tmp_path / "root"))


def test_broken_parquet(tmp_path):
    (tmp_path / "a.parquet").write_bytes(b"PAR1 nothing")
    assert "cannot be read" in only(refusal(tmp_path / "a.parquet", tmp_path / "root"))


def test_columns_without_a_table(tmp_path):
    write_images(tmp_path / "src", LABELS)
    told = only(refusal(tmp_path / "src", tmp_path / "root", group_column="patient"))
    assert "--group-column 'patient'" in told and "CSV" in told


def test_folder_with_a_table_beside_its_images(tmp_path):
    write_images(tmp_path / "src", {"images": 20})
    write_table(tmp_path / "src/labels.csv", "path,label", [])
    assert str(tmp_path / "src/labels.csv") in only(refusal(tmp_path / "src", tmp_path / "root"))


def test_names_are_the_same_wherever_it_lies(tmp_path, files):
    """The draw depends on names below the table: a moved copy gives the same lists."""
    rows = [f"{path},{label}" for path, label in files]
    write_table(tmp_path / "src/a.csv", "path,label", rows)
    lists, _ = prepare(tmp_path / "src/a.csv", tmp_path / "root")
    (tmp_path / "src").rename(tmp_path / "moved")
    assert prepare(tmp_path / "moved/a.csv", tmp_path / "other")[0] == lists == lists_of(tmp_path / "root/mine")


@pytest.mark.parametrize("label", ["half \ud83d", "a\x00b"])
def test_class_names_of_json_that_are_no_text(tmp_path, label):
    folder = tmp_path / "src"
    folder.mkdir()
    rows = []
    for i in range(8):
        (folder / f"{i}.png").write_bytes(png(i))
        rows.append(json.dumps({"file_name": f"{i}.png", "label": [label, "dog"][i % 2]}) + "\n")
    (folder / "metadata.jsonl").write_text("".join(rows))
    assert repr(label) in only(refusal(folder, tmp_path / "root"))


def test_a_folder_that_was_prepared_with_such_names_is_refused_too(tmp_path):
    write_own(tmp_path, "leaves", {"train": 2, "val": 2, "test": 2}, classes=("a", "\x1b[2J"))
    with pytest.raises(InputError, match=r"x1b\[2J.*rename it"):
        own_dataset("leaves", tmp_path)


def test_labels_in_lists_of_one_and_text_as_bytes(tmp_path, files):
    """As columns of Parquet hold them."""
    paths, labels = zip(*files, strict=True)
    table = pa.table({"path": [path.encode() for path in paths], "label": [[label] for label in labels]})
    pq.write_table(table, tmp_path / "src/a.parquet")
    check_labels(prepare(tmp_path / "src/a.parquet", tmp_path / "root")[0], files)


def test_a_path_that_no_file_can_have_is_missing(tmp_path, files):
    table = write_table(tmp_path / "src/a.csv", "path,label", [*map(",".join, files), "x/" + "y" * 5000 + ",cat"])
    assert "1 of 21 images" in only(refusal(table, tmp_path / "root"))
