"""Own datasets are looked up under the data root; those of the table need none."""

from __future__ import annotations

import dataclasses
import json

import pytest
from bench.own_folders import write_own
from s2a_bench.data.folder import read_manifest
from s2a_bench.data.table import lookup
from s2a_bench.errors import InputError


def _refused(call, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        call()
    assert all(part in str(error.value) for part in parts), error.value


def test_a_row_is_made_from_the_manifest(tmp_path):
    write_own(tmp_path)
    row = lookup.get_dataset("own", "leaves", tmp_path)
    assert (row.name, row.suite, row.group) == ("leaves", "own", "own")
    assert (row.classes, row.class_names) == (2, ("dark", "light"))
    assert tuple(row.lists) == ("train", "val", "trainval", "test") and tuple(row.counts) == (12, 6, 18, 6)
    assert row.encoding == "lossless" and not row.embedded
    assert lookup.find_dataset("leaves", tmp_path) == lookup.find_dataset("own/leaves", tmp_path) == row


def test_a_changed_manifest_is_read_again(tmp_path):
    folder = write_own(tmp_path)
    assert lookup.get_dataset("own", "leaves", tmp_path).classes == 2
    values = json.loads((folder / "manifest.json").read_text()) | {"classes": ["a", "b", "c"]}
    (folder / "manifest.json").write_text(json.dumps(values))
    assert lookup.get_dataset("own", "leaves", tmp_path).class_names == ("a", "b", "c")


def test_all_own_datasets_of_a_root(tmp_path):
    write_own(tmp_path, "zebras")
    write_own(tmp_path, "apples")
    write_own(tmp_path, "caltech101")  # a folder of the table
    (tmp_path / "notes").mkdir()
    (tmp_path / ".cache").mkdir()
    assert lookup.own_datasets(tmp_path) == ["apples", "zebras"]
    assert lookup.default_datasets("own", tmp_path) == ("apples", "zebras")
    assert lookup.default_datasets("vtab") == lookup.SUITES["vtab"].defaults
    assert lookup.own_datasets(None) == lookup.own_datasets(tmp_path / "absent") == []


def test_what_is_missing_is_said_with_the_command(tmp_path):
    write_own(tmp_path)
    command = "s2a-bench data prepare"
    _refused(lambda: lookup.default_datasets("own"), "--data-dir", f"{command} NAME --from DIR")
    _refused(lambda: lookup.default_datasets("own", tmp_path / "leaves"), "has none", command)
    _refused(lambda: lookup.get_dataset("own", "leaves"), "no data folder", command)
    _refused(lambda: lookup.get_dataset("own", "trees", tmp_path), "has leaves", f"{command} trees")
    _refused(lambda: lookup.get_dataset("own", "../leaves", tmp_path), "no name of an own dataset")
    _refused(lambda: lookup.get_dataset("own", "cifar100", tmp_path), "--suite")
    _refused(lambda: lookup.get_dataset("vtab", "leaves", tmp_path), "--suite own")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"own": None}, "own"),
        ({"own": 3}, "cannot be used"),
        ({"classes": ["a"]}, "1 classes"),
        ({"counts": {}}, "train"),
    ],
)
def test_a_manifest_that_is_not_an_own_one_is_refused(tmp_path, change, said):
    folder = write_own(tmp_path)
    values = json.loads((folder / "manifest.json").read_text()) | change
    (folder / "manifest.json").write_text(json.dumps(values))
    _refused(lambda: lookup.get_dataset("own", "leaves", tmp_path), said, "prepare")


def test_manifests_without_the_field_are_read_as_before(tmp_path):
    folder = write_own(tmp_path)
    values = json.loads((folder / "manifest.json").read_text())
    del values["own"]
    (folder / "manifest.json").write_text(json.dumps(values))
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.own is None
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, own={"format": "table"}).to_json())
    again = read_manifest(folder)
    assert again is not None and again.own == {"format": "table"}
