"""A folder of another dataset is refused by its name, its manifest or its lists; classes without an image are named."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bench.small_folders import SIZES, picture
from rich.console import Console
from s2a_bench.cli import main as cli
from s2a_bench.cli.data import prepare_datasets
from s2a_bench.config import DataConfig
from s2a_bench.data import folder as layout
from s2a_bench.data.listing import list_datasets
from s2a_bench.data.other_sets import find_fitting, find_namesake
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.data.table.lookup import DATASETS, SUITES
from s2a_bench.data.table.types import VTAB_LISTS, Counts
from s2a_bench.data.verify import verify_dataset
from s2a_bench.errors import InputError

ON_DISK = {name: row for name, row in DATASETS.items() if not row.embedded}
PAIRS = [("dsprites_ori", "dsprites_loc"), ("smallnorb_azi", "smallnorb_ele"), ("clevr_count", "clevr_dist")]
"""Datasets with as many images; the second has no more classes."""


@pytest.fixture(autouse=True)
def small(monkeypatch):
    for number, pair in enumerate(PAIRS):
        for name in pair:
            sizes = (*SIZES[:3], 40 + number)
            monkeypatch.setitem(DATASETS, name, dataclasses.replace(DATASETS[name], counts=Counts(*sizes)))


def write_lists(folder: Path, dataset: str, classes: int | None = None) -> Path:
    """A VTAB-1k folder as another tool writes it; the labels go round, so that the test list has all of them."""
    row = DATASETS[dataset]
    for name in VTAB_LISTS:
        (folder / "images" / name).mkdir(parents=True)
        lines = []
        for i in range(row.count(name) or 0):
            seed = i + {"train800": 0, "val200": SIZES[0], "train800val200": 0, "test": 50}[name]
            picture(seed, 4, 4).save(folder / f"images/{name}/{i:06d}.png")
            lines.append(f"images/{name}/{i:06d}.png {seed % (classes or row.classes)}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


def refused(name: str, source: Path, root: Path, *parts: str) -> None:
    with pytest.raises(InputError) as error:
        prepare_dataset(name, source, root)
    for part in parts:
        assert part in str(error.value)
    assert "\n" not in str(error.value) and not list(root.iterdir())


# --- Names -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ON_DISK)
def test_a_name_stands_for_its_own_dataset_and_for_no_other(name):
    row = ON_DISK[name]
    for own in (name, *row.aliases):
        for form in (own, own.upper(), own.replace("_", "-"), f"{own}.zip", f"{own}.tar.gz", f"vtab_{own}"):
            assert find_namesake(row, form) is None
    for other in ON_DISK.values():
        if other.name not in (name, *row.aliases):
            for form in (other.name, f"{other.name}.zip", f"my-{other.name.replace('_', '-')}"):
                found = find_namesake(row, form)
                assert found is not None and other.name in (found.name, *found.aliases)
    for neutral in ("vtab-1k", "data", "download (3)", "really", "x.zip", ".", ""):
        assert find_namesake(row, neutral) is None


@pytest.mark.parametrize(("wanted", "given"), [*PAIRS, *(pair[::-1] for pair in PAIRS[:1])])
def test_a_folder_or_archive_named_after_another_dataset_is_refused(tmp_path, wanted, given):
    theirs = write_lists(tmp_path / "vt" / given, given)
    root = tmp_path / "root"
    refused(wanted, theirs, root, f"named after {given}", f"prepare {given} from it")
    with zipfile.ZipFile(tmp_path / f"{given}.zip", "w") as archive:
        for path in sorted(theirs.rglob("*")):
            archive.write(path, path.relative_to(theirs))
    refused(wanted, tmp_path / f"{given}.zip", root, f"named after {given}")
    (tmp_path / "link").symlink_to(theirs)
    refused(wanted, tmp_path / "link", root, f"named after {given}")
    (tmp_path / wanted).symlink_to(theirs)
    refused(wanted, tmp_path / wanted, root, f"named after {given}")
    (tmp_path / "links").mkdir()
    (tmp_path / "links" / wanted).symlink_to(theirs)
    refused(wanted, tmp_path / "links", root, f"named after {given}")
    refused(wanted, tmp_path / "vt", root, f"no known format of {wanted}", f"it holds {given}")
    assert prepare_dataset(given, theirs, root) == root / given


# --- Manifests -------------------------------------------------------------------------------------------------------


def test_a_prepared_folder_of_another_dataset_is_refused_whatever_its_name(tmp_path):
    theirs = write_lists(tmp_path / "vt" / "dsprites_loc", "dsprites_loc")
    layout_folder = prepare_dataset("dsprites_loc", theirs, theirs.parent)  # adds a manifest
    assert layout_folder == theirs
    moved = theirs.rename(tmp_path / "some folder")
    refused("dsprites_ori", moved, tmp_path / "root", "manifest.json says", "dsprites_loc", "a source of dsprites_ori")
    named = moved.rename(tmp_path / "dsprites_ori")
    refused("dsprites_ori", named, tmp_path / "root", "manifest.json says")
    assert prepare_dataset("dsprites_loc", named, tmp_path / "root").name == "dsprites_loc"


def test_made_up_images_are_not_prepared_as_real_ones(tmp_path):
    theirs = write_lists(tmp_path / "vt" / "dsprites_loc", "dsprites_loc")
    prepare_dataset("dsprites_loc", theirs, theirs.parent)
    values = json.loads((theirs / layout.MANIFEST).read_text())
    (theirs / layout.MANIFEST).write_text(json.dumps({**values, "synthetic": True}))
    refused("dsprites_loc", theirs, tmp_path / "root", "were made up", "--data-dir")


@pytest.fixture
def copied(tmp_path) -> Path:
    """A data root in which the folder of one dataset lies under another's name."""
    root = tmp_path / "root"
    prepare_dataset("dsprites_loc", write_lists(tmp_path / "dsprites_loc", "dsprites_loc"), root)
    shutil.copytree(root / "dsprites_loc", root / "dsprites_ori")
    return root


def test_a_copied_folder_is_not_loaded_verified_or_listed_as_another(copied):
    from s2a_bench.data.loading import check_data

    check_data(DataConfig("vtab", "dsprites_loc", str(copied)))
    for evaluate in ("test", "val"):
        with pytest.raises(InputError, match=r"dsprites_ori is not dsprites_ori: its manifest.json describes"):
            check_data(DataConfig("vtab", "dsprites_ori", str(copied), evaluate=evaluate))
    problems = [p for p in verify_dataset("dsprites_ori", copied) if not p.note]
    assert [(p.file, "describes 'dsprites_loc'" in p.what) for p in problems] == [("manifest.json", True)]
    rows = {row.name: row for row in list_datasets(copied)}
    assert rows["dsprites_loc"].present and not rows["dsprites_ori"].present
    assert "describes 'dsprites_loc'" in rows["dsprites_ori"].note


def test_a_sweep_on_a_copied_folder_ends_before_anything_runs(copied, tmp_path, capsys):
    options = f"--data-dir {copied} --output {tmp_path / 'out'} --methods linear --backbones mini_vit --serial"
    code = cli.main(["sweep", "--suite", "vtab", "--datasets", "dsprites_ori", *options.split()])
    captured = capsys.readouterr()
    assert code == 2 and "dsprites_ori is not dsprites_ori" in " ".join((captured.out + captured.err).split())


def test_folders_of_other_suites_under_a_shared_name(tmp_path):
    """``cifar100`` is a set of the suite cifar and another name of VTAB-1k's cifar; both have a test list."""
    folder = tmp_path / "cifar100"
    folder.mkdir()
    for name in ("train", "val", "trainval", "test"):
        (folder / f"{name}.txt").write_text("images/a.png 1\n")
    assert layout.find_dataset_folder(DATASETS["cifar100"], tmp_path) == folder
    with pytest.raises(InputError, match="was not found"):
        layout.find_dataset_folder(DATASETS["cifar"], tmp_path)
    (folder / "train800.txt").write_text("images/a.png 1\n")
    assert layout.find_dataset_folder(DATASETS["cifar"], tmp_path) == folder


# --- Lists -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("wanted", "given"), PAIRS[1:])
def test_lists_that_are_anothers_are_refused_whatever_the_folder_is_called(tmp_path, wanted, given):
    theirs = write_lists(tmp_path / "vtab-1k", given)
    refused(wanted, theirs, tmp_path / "root", f"are those of {given}")
    from s2a_bench.data.loading import check_data

    named = theirs.rename(tmp_path / wanted)
    refused(wanted, named, tmp_path / "root", f"are those of {given}")
    with pytest.raises(InputError, match=f"its lists are those of {given}"):
        check_data(DataConfig("vtab", wanted, str(tmp_path)))
    assert [p.what for p in verify_dataset(wanted, tmp_path) if not p.note and f"those of {given}" in p.what]


def test_its_own_lists_with_classes_missing_are_taken_with_a_note(tmp_path):
    """17 of 18 classes: no other dataset has 17."""
    theirs = write_lists(tmp_path / "vtab-1k", "smallnorb_azi", classes=17)
    told: list[str] = []
    folder = prepare_dataset("smallnorb_azi", theirs, tmp_path / "root", lambda what, *_: told.append(what))
    text = "1 of 18 classes have no image in any list: 17"
    assert [what for what in told if what.startswith("note: ") and text in what]
    manifest = layout.read_manifest(folder)
    assert manifest is not None and text in manifest.note
    notes = [problem for problem in verify_dataset("smallnorb_azi", tmp_path / "root") if text in problem.what]
    assert [problem.note for problem in notes] == [True]
    out = io.StringIO()
    shutil.rmtree(folder)
    code = prepare_datasets(
        [DATASETS["smallnorb_azi"]], theirs, tmp_path / "root", None, Console(file=out, width=300, force_terminal=False)
    )
    assert code == 0 and out.getvalue().count(f"note: test.txt: {text}") == 1 and "is ready" in out.getvalue()


def test_classes_without_a_training_or_test_image_are_named(tmp_path):
    folder = write_lists(tmp_path / "smallnorb_ele", "smallnorb_ele")
    lines = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("".join(line.replace(" 8", " 0") + "\n" for line in lines))
    what = [problem.what for problem in verify_dataset("smallnorb_ele", tmp_path) if problem.note]
    assert "1 of 9 classes have no image in the test list: 8" in what
    for name in ("train800", "train800val200"):
        text = (folder / f"{name}.txt").read_text()
        (folder / f"{name}.txt").write_text(text.replace(" 4\n", " 3\n"))
    what = [problem.what for problem in verify_dataset("smallnorb_ele", tmp_path) if problem.note]
    assert "1 of 9 classes have no image to train on: 4" in what


@pytest.mark.parametrize("target", ["dsprites_loc", "dsprites_ori"])
def test_dsprites_two_tasks_are_told_apart_by_how_often_a_label_occurs(monkeypatch, target):
    """As the makers' file gives them: 32 positions and 40 orientations, each as often, ``floor(16 * v / values)``."""
    for name in PAIRS[0]:
        monkeypatch.setitem(DATASETS, name, ON_DISK[name])
    values = {"dsprites_loc": 32, "dsprites_ori": 40}[target]
    drawn = np.random.default_rng(0).integers(0, values, 73_728)
    labels = {"test": np.floor(16 * drawn / values).astype(int).tolist()}
    for name in PAIRS[0]:
        found = find_fitting(DATASETS[name], labels)
        assert (found and found.name) == (None if name == target else target)


@pytest.mark.parametrize("name", SUITES["vtab"].datasets)
def test_no_dataset_is_taken_for_another_by_its_own_lists(name, monkeypatch):
    for pair in PAIRS:
        for each in pair:
            monkeypatch.setitem(DATASETS, each, ON_DISK[each])
    row = DATASETS[name]
    values = {"dsprites_ori": 40}.get(name, row.classes)
    for seed in range(3):
        draw = np.random.default_rng(seed)
        labels = {
            each: (draw.integers(0, values, row.count(each)) * row.classes // values).tolist() for each in row.lists
        }
        assert find_fitting(row, labels) is None
        assert find_fitting(row, {each: labels[each] for each in ("train800", "val200")}) is None


def test_labels_that_contradict_the_class_folders_are_named_by_verify(tmp_path):
    """Lists over class folders, and folders that were prepared before labels were compared."""
    folder = write_lists(tmp_path / "smallnorb_ele", "smallnorb_ele")
    for name in VTAB_LISTS:
        lines = []
        for line in (folder / f"{name}.txt").read_text().splitlines():
            path, label = line.split()
            moved = path.replace(f"/{name}/", f"/{name}/kind {label}/")
            (folder / moved).parent.mkdir(exist_ok=True)
            (folder / path).rename(folder / moved)
            lines.append(f"{moved} {label}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    assert [p for p in verify_dataset("smallnorb_ele", tmp_path) if not p.note] == []
    text = (folder / "test.txt").read_text()
    right = text.splitlines()
    wrong = [f"{line.rpartition(' ')[0]} {(int(line.split()[-1]) + 1) % 9}" for line in right]
    (folder / "test.txt").write_text("\n".join(wrong) + "\n")
    (problem,) = [p for p in verify_dataset("smallnorb_ele", tmp_path) if not p.note]
    assert "contradict the class folders" in problem.what and problem.what.count(".png") == 2
    with pytest.raises(InputError, match=r"contradicts itself: \S+.*\.png and .*\.png"):
        prepare_dataset("smallnorb_ele", folder, tmp_path / "root")
    (folder / "test.txt").write_text(text)
    made = prepare_dataset("smallnorb_ele", folder, tmp_path / "root")
    assert [p for p in verify_dataset("smallnorb_ele", tmp_path / "root") if not p.note] == []
    values = json.loads((made / layout.MANIFEST).read_text())
    info = next(iter(values["files"].values()))
    info["source"] = f"images/test/kind {(info['label'] + 1) % 9}/x.png"
    (made / layout.MANIFEST).write_text(json.dumps(values))
    found = [p.what for p in verify_dataset("smallnorb_ele", tmp_path / "root") if not p.note]
    assert len(found) == 1 and "contradict the class folders" in found[0] and "x.png" in found[0]
