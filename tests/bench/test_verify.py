"""What ``verify`` and ``list`` say of folders that were prepared and then tampered with."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from bench.small_caltech import entries, jpeg, wrong
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from s2a_bench.data import folder as layout
from s2a_bench.data.listing import list_datasets
from s2a_bench.data.table import lookup as datasets
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.data.verify import Problem, verify_dataset
from s2a_bench.errors import InputError

# --- Verify ----------------------------------------------------------------------------------------------------------


def test_a_prepared_folder_has_no_problems(tmp_path, prepared):
    assert wrong(tmp_path / "root") == []


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def edit(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


def make_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def grow(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)


def break_manifest(folder: Path, **changes) -> None:
    values = json.loads((folder / layout.MANIFEST).read_text())
    (folder / layout.MANIFEST).write_text(json.dumps({**values, **changes}))


TAMPERING = {
    "changed image": (lambda f: flip(f / "images/test/000004.jpg"), "test.txt:5", "images/test/000004.jpg"),
    "missing image": (lambda f: (f / "images/val200/000001.jpg").unlink(), "val200.txt:2", "cannot be read"),
    "image is a pipe": (lambda f: make_pipe(f / "images/test/000000.jpg"), "test.txt:1", "no regular file"),
    "huge image": (lambda f: grow(f / "images/test/000000.jpg"), "test.txt:1", "more than the"),
    "list is a pipe": (lambda f: make_pipe(f / "test.txt"), "test.txt", "no regular file"),
    "huge list": (lambda f: grow(f / "test.txt"), "test.txt", "more than the"),
    "broken image": (lambda f: (f / "images/test/000000.jpg").write_bytes(b"x"), "test.txt:1", "cannot be decoded"),
    "swapped images": (
        lambda f: shutil.copy(f / "images/test/000001.jpg", f / "images/train800/000000.jpg"),
        "test.txt:2",
        "same image as images/train800/000000.jpg",
    ),
    "missing list": (lambda f: (f / "val200.txt").unlink(), "val200.txt", "cannot be read"),
    "bad line": (lambda f: edit(f / "test.txt", "000002.jpg ", "000002.jpg;"), "test.txt:3", "is not of the form"),
    "label out of range": (lambda f: append(f, "images/test/000000.jpg 3"), "test.txt:", "label 3 is out of range"),
    "repeated line": (lambda f: append(f, "images/test/000000.jpg 1"), "test.txt:", "already listed on line 1"),
    "outside path": (lambda f: append(f, "../../x.jpg 1"), "test.txt:", "not a plain path"),
    "not text": (lambda f: (f / "test.txt").write_bytes(b"\xff\xfe"), "test.txt", "is not text"),
    "extra image": (
        lambda f: (f / "images/test/999999.jpg").write_bytes(jpeg(1)),
        "images/test/999999.jpg",
        "was not prepared",
    ),
    "broken manifest": (lambda f: (f / layout.MANIFEST).write_text("{"), "manifest.json", "cannot be used"),
    "wrong data_id": (lambda f: break_manifest(f, data_id="0" * 16), "manifest.json", "data_id"),
    "another's manifest": (lambda f: break_manifest(f, dataset="svhn"), "manifest.json", "describes 'svhn'"),
}


def append(folder: Path, line: str) -> None:
    with (folder / "test.txt").open("a") as file:
        file.write(line + "\n")


@pytest.mark.parametrize("case", TAMPERING)
def test_tampering_is_found_and_named(tmp_path, prepared, case):
    tamper, where, what = TAMPERING[case]
    tamper(prepared)
    problems = verify_dataset("caltech101", tmp_path / "root")
    assert any(str(problem).startswith(where) and what in problem.what for problem in problems), problems


def test_a_changed_label_is_found_with_and_without_manifest(tmp_path, prepared):
    path, label = entries(prepared, "train800")[3]
    edit(prepared / "train800.txt", f"{path} {label}\n", f"{path} {(label + 1) % 3}\n")
    assert any(
        "its hash differs" in p.what and p.file == "train800.txt" for p in verify_dataset("caltech101", prepared.parent)
    )
    (prepared / layout.MANIFEST).unlink()
    problems = verify_dataset("caltech101", prepared.parent)
    assert (
        Problem("train800val200.txt", 4, f"{path} with label {label} is in neither train800.txt nor val200.txt")
        in problems
    )


def test_every_problem_is_listed_not_the_first(tmp_path, prepared):
    for i in range(3):
        flip(prepared / f"images/test/{i:06d}.jpg")
    changed = [p for p in verify_dataset("caltech101", prepared.parent) if "was changed" in p.what]
    assert [(p.file, p.line) for p in changed] == [("test.txt", i + 1) for i in range(3)]


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_flipped_bit_is_found(tmp_path, prepared, data):
    files = sorted(p for p in prepared.rglob("*") if p.is_file() and p.name != layout.MANIFEST)
    path = data.draw(st.sampled_from(files))
    original = path.read_bytes()
    position = data.draw(st.integers(0, len(original) - 1))
    changed = bytearray(original)
    changed[position] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(changed)
    try:
        assert wrong(prepared.parent)
    finally:
        path.write_bytes(original)
    assert wrong(prepared.parent) == []


def test_verify_without_data(tmp_path):
    with pytest.raises(InputError, match="data prepare caltech101"):
        verify_dataset("caltech101", tmp_path)
    with pytest.raises(InputError, match="embedded"):
        verify_dataset("digits", tmp_path)


# --- Listing ---------------------------------------------------------------------------------------------------------


def test_list_says_what_is_there(tmp_path, prepared):
    rows = {row.name: row for row in list_datasets(tmp_path / "root")}
    assert list(rows) == list(datasets.DATASETS)
    manifest = layout.read_manifest(prepared)
    assert manifest is not None
    row = rows["caltech101"]
    assert row.present and row.prepared and (row.data_id, row.split_id) == (manifest.data_id, manifest.split_id)
    assert row.where == str(prepared)
    assert rows["digits"].present and not rows["svhn"].present and rows["svhn"].data_id is None
    assert [row.present for row in list_datasets(None)] == [d.embedded for d in DATASETS.values()]


def test_list_survives_a_broken_manifest(tmp_path, prepared):
    (prepared / layout.MANIFEST).write_text("{")
    assert not {row.name: row for row in list_datasets(tmp_path / "root")}["caltech101"].present
