"""Made-up sources of every dataset, in their original formats: prepared, verified, loaded, and run as suites."""

from __future__ import annotations

import dataclasses
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from s2a_bench.cli import main as cli
from s2a_bench.cli import steps
from s2a_bench.config import DataConfig
from s2a_bench.data.folder import read_manifest
from s2a_bench.data.listing import list_datasets
from s2a_bench.data.loading import check_data, load_data
from s2a_bench.data.prepare import prepare_dataset
from s2a_bench.data.synthetic import plans
from s2a_bench.data.table.lookup import DATASETS, SUITES
from s2a_bench.data.table.types import Preparation, SliceRule
from s2a_bench.data.verify import verify_dataset
from s2a_bench.errors import InputError

pytest.importorskip("h5py")  # PatchCamelyon's format

EACH = {name: row.preparation.reader for name, row in DATASETS.items() if row.preparation is not None}
"""Dataset -> its reader."""

ONE_PER_READER = {reader: name for name, reader in reversed(EACH.items())}.values()
HALF: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}


def made(name: str, base: Path, seed: int = 0) -> Path:
    place = base / f"source-{name}"
    place.mkdir(parents=True)
    plans.make_source(DATASETS[name], place, seed)
    return place


@pytest.fixture(scope="session")
def prepared_once(shared_folder) -> Callable[[str], tuple[Path, Path]]:
    """Source and data root of a made-up dataset, not to be changed; made by the first process of this run that asks."""

    def get(name: str) -> tuple[Path, Path]:
        source, root = shared_folder / f"source-{name}", shared_folder / "data"
        with FileLock(shared_folder / f"{name}.lock"):
            if not (root / name).is_dir():
                shutil.rmtree(source, ignore_errors=True)  # of a test that failed there
                prepare_dataset(name, made(name, shared_folder), root, synthetic="miniature")
        return source, root

    return get


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name in ONE_PER_READER else pytest.mark.full) for name in EACH]
)
def test_every_dataset_from_its_made_up_source(name, tmp_path, prepared_once):
    row, (source, root) = DATASETS[name], prepared_once(name)
    folder = root / name
    assert [str(problem) for problem in verify_dataset(name, root) if not problem.note] == []
    manifest = read_manifest(folder)
    assert manifest is not None and manifest.synthetic and "SYNTHETIC" in manifest.note
    assert len(manifest.classes) == row.classes and set(manifest.counts) == set(row.lists)
    if row.suite == "vtab":
        assert [manifest.counts[name] for name in row.lists[:3]] == [800, 200, 1000]
        assert manifest.split_id == {
            "caltech101": "s2a-seed0-v1",
            "dmlab": "vtab-1k",
            "kitti": "vtab-1k",
        }.get(name, "vtab-1k-rebuilt-v1")
    assert not manifest.lossy or row.encoding == "lossless"
    config = DataConfig(row.suite, name, str(root), limit_train=64, limit_test=16)
    task = load_data(config, size=32, **HALF)
    assert task.synthetic and task.classes == row.classes
    assert (task.data_id, task.split_id) == (manifest.data_id, manifest.split_id)
    for part, n in ((task.train, 64), (task.scored, 16)):
        assert part.batch(torch.arange(len(part)), torch.Generator()).shape == (n, 3, 32, 32)
        assert 0 <= part.labels.min() and part.labels.max() < row.classes
    crop = SUITES[row.suite].view == "crop"
    assert ("augment" in task.data_config) is crop
    # Another preparation of the same bytes is the same dataset.
    again = read_manifest(prepare_dataset(name, source, tmp_path / "other", synthetic="miniature"))
    assert again is not None and again == dataclasses.replace(manifest, home=again.home)
    # A miniature is not the real thing: without the word its counts are refused, and nothing is left.
    if row.suite != "imagenet" or row.counts.test:
        with pytest.raises(InputError, match="some images are missing or added"):
            prepare_dataset(name, source, tmp_path / "third")
        assert list((tmp_path / "third").iterdir()) == []


@pytest.mark.parametrize("name", EACH)
def test_full_plans_give_the_tables_counts(name):
    """By the rules alone: no image is made. Sets too large for a made-up copy have no full plan to check."""
    row = DATASETS[name]
    assert row.preparation is not None
    plan = plans.plan_counts(row, full=True)
    totals = {part: sum(sizes) for part, sizes in plan.items()}
    assert all(len(sizes) == row.classes for sizes in plan.values())
    rule = row.preparation.rule
    if isinstance(rule, SliceRule):
        total = totals.get(rule.test_part, totals.get(""))
        assert total is not None and total - round(rule.test_from * total) == row.counts.test
    else:
        both = row.counts.both or 0
        assert sum(totals.values()) in (both + (row.counts.test or 0), 3060 + 6084)


SMALL = pytest.mark.parametrize("name", ["fgvc_eurosat", "cifar10", "fgvc_dtd", "svhn"])


@SMALL
def test_other_images_are_another_id(name, tmp_path, prepared_once):
    first = read_manifest(prepared_once(name)[1] / name)
    again = read_manifest(prepare_dataset(name, made(name, tmp_path, seed=3), tmp_path / "root", synthetic="miniature"))
    assert first is not None and again is not None and again.data_id != first.data_id


@SMALL
@settings(max_examples=3, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_one_changed_bit_of_a_listed_image_is_found(tmp_path_factory, prepared_once, name, data):
    root = tmp_path_factory.mktemp("x")
    shutil.copytree(prepared_once(name)[1] / name, root / name)
    manifest = read_manifest(root / name)
    assert manifest is not None
    path = data.draw(st.sampled_from(sorted(manifest.files)))
    image = root / name / path
    content = bytearray(image.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    image.write_bytes(content)
    assert any(path in problem.what and not problem.note for problem in verify_dataset(name, root))


def test_png_of_arrays_are_the_arrays(tmp_path):
    """CIFAR's pixels survive the whole way, against the pickled arrays themselves."""
    import pickle
    import tarfile

    source = made("cifar10", tmp_path)
    with tarfile.open(source / "cifar-10-python.tar.gz") as archive:
        batch = archive.extractfile("cifar-10-batches-py/test_batch")
        assert batch is not None
        values = pickle.load(batch, encoding="bytes")
    prepare_dataset("cifar10", source, tmp_path / "root", synthetic="miniature")
    manifest = read_manifest(tmp_path / "root/cifar10")
    assert manifest is not None
    from PIL import Image

    for path, info in manifest.files.items():
        if info.source.startswith("test/"):
            index = int(info.source[5:11])
            want = np.asarray(values[b"data"][index]).reshape(3, 32, 32).transpose(1, 2, 0)
            np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "root/cifar10" / path)), want)
            assert info.label == values[b"labels"][index]


@pytest.mark.parametrize(
    ("suite", "names"), [("vtab", ("dtd", "dsprites_loc")), ("fgvc", ("fgvc_flowers", "fgvc_ucf101"))]
)
def test_datasets_run_end_to_end_offline(suite, names, tmp_path, capsys):
    assert cli.main(["data", "prepare", *names, "--synthetic", "--data-dir", str(tmp_path / "data")]) == 0
    assert {row.name for row in list_datasets(tmp_path / "data") if row.suite == suite and row.present} == set(names)
    records = run_suite(suite, tmp_path / "data", tmp_path / "out", "--datasets", *names)
    assert {r["dataset"] for r in records} == set(names) and len(records) == len(names)
    capsys.readouterr()


@pytest.mark.full
@pytest.mark.parametrize(("suite", "tasks"), [("vtab", 19), ("fgvc", 8)])
def test_whole_suites_run_end_to_end_offline(suite, tasks, tmp_path, capsys, prepared_once):
    (root,) = {prepared_once(name)[1] for name in SUITES[suite].defaults}
    assert all(row.present and row.synthetic for row in list_datasets(root) if row.name in SUITES[suite].defaults)
    records = run_suite(suite, root, tmp_path / "out")
    assert {r["dataset"] for r in records} == set(SUITES[suite].defaults) and len(records) == tasks
    capsys.readouterr()


def run_suite(suite: str, root: Path, out: Path, *more: str) -> list[dict[str, Any]]:
    arguments = ["sweep", "--suite", suite, "--backbones", "mini_vit", "--methods", "linear", "--epochs", "1", *more]
    limits = [
        "--seeds",
        "0",
        "--limit-train",
        "32",
        "--limit-test",
        "16",
        "--serial",
        "--data-dir",
        str(root),
        "--output",
        str(out),
    ]
    assert cli.main(arguments + limits) == 0
    records = [json.loads(path.read_text()) for path in (out / "records").glob("*.json")]
    assert all(r["synthetic"] and r["status"] == "done" for r in records)
    assert "ynthetic" in (out / "report.md").read_text()
    return records


def test_ids_of_prepared_data_are_those_of_check(tmp_path):
    folder = prepare_dataset("fgvc_eurosat", made("fgvc_eurosat", tmp_path), tmp_path, synthetic="miniature")
    manifest = read_manifest(folder)
    assert manifest is not None
    assert check_data(DataConfig("fgvc", "fgvc_eurosat", str(tmp_path))) == (manifest.data_id, manifest.split_id)


def test_recipes_name_readers_and_makers_that_exist():
    from s2a_bench.data.readers import registry

    for row in DATASETS.values():
        if row.preparation is not None:
            assert isinstance(row.preparation, Preparation)
            assert row.preparation.reader in registry.load_readers() and row.preparation.reader in plans.load_makers()


@pytest.mark.parametrize("name", ["cifar", "dsprites_ori", "caltech101", "smallnorb_azi"])
def test_making_up_says_how_many_pictures_there_are_at_least_one_for_each_image(tmp_path, name):
    heard: list[tuple[str, int, int]] = []
    plans.make_source(DATASETS[name], tmp_path, progress=lambda *what: heard.append(what))
    assert [count for _, count, _ in heard] == list(range(1, len(heard) + 1))
    planned = sum(sum(sizes) for sizes in plans.plan_counts(DATASETS[name]).values())
    assert len(heard) >= planned > 0 and {what for what, _, _ in heard} == {heard[0][0]}
    assert f"{planned:,} images" in heard[0][0]


def test_a_long_step_shows_life_in_a_file_now_and_then(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(steps.time, "monotonic", lambda: clock[0])
    console = Console(file=io.StringIO(), width=100)
    with steps.show_steps(console) as say:
        for second in range(100):
            clock[0] = float(second)
            say("drawing", 1000 * second, 0)
        say("writing", 0, 5)
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines == ["drawing", "drawing 30,000", "drawing 60,000", "drawing 90,000", "writing"]
