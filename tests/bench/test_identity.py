"""The identity of a cell: the same as ever, made once, and refused where it is no longer true."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import pytest
from s2a_bench.assets import data_file
from s2a_bench.audit.epochs import recreate_cell
from s2a_bench.cells import backbones, identity, provenance, record, run
from s2a_bench.cells import records_file as bundle
from s2a_bench.cells.identity import IdentifiedCell, data_opened_once, identify_cell, known_facts, open_cell, with_facts
from s2a_bench.cells.outputs import Keep
from s2a_bench.cells.record import Record, failed_record
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.data import loading
from s2a_bench.errors import InputError

PUBLISHED = Path(__file__).resolve().parents[2] / "docs" / "records" / "mini.jsonl.gz"


def cell(**changes) -> CellConfig:
    values = {
        "data": DataConfig(dataset="digits", limit_train=24, limit_test=20),
        "backbone": BackboneConfig(random_weights=True),
        "method": MethodConfig("s2a"),
        "train": TrainConfig(epochs=2, warmup_epochs=0, batch_size=8, drop_path=0.2),
        "threads": 1,
    }
    return CellConfig(**values | changes)


def weighted(folder: Path) -> CellConfig:
    """A cell whose backbone comes from a file of its own."""
    path = folder / "weights.safetensors"
    shutil.copyfile(data_file("backbones/mini_vit.safetensors"), path)
    return cell(backbone=BackboneConfig("mini_vit", str(path)))


def one_of_each() -> list[Record]:
    """A published record of every method on every backbone, each of another dataset and seed where there is one."""
    found: dict[tuple[str, str], Record] = {}
    for number, each in enumerate(bundle.load(PUBLISHED)):
        pair = (each.method, each.backbone)
        if pair not in found or number % 7 == 0:
            found[pair] = each
    return list(found.values())


@pytest.mark.parametrize("published", one_of_each(), ids=lambda r: f"{r.method}-{r.backbone}-{r.dataset}")
def test_ids_of_published_records_are_made_again(published):
    found = recreate_cell(published, None, None, "cpu")  # raises unless the id of what it builds is the record's
    assert identity.identify(found) == published.cell_id
    facts = known_facts(published.cell_id)
    assert facts is not None
    assert (facts["data_id"], facts["checkpoint_id"]) == (published.data_id, published.checkpoint_id)


def curve(found: Record) -> list[tuple[float, float]]:
    return [(point["loss"], point["lr"]) for point in found.curve]


@pytest.mark.parametrize("method", ["s2a", "linear"])
def test_an_identified_cell_runs_as_its_config_does(tmp_path, method):
    asked = cell(method=MethodConfig(method))
    identified = identify_cell(asked)
    one, two = run.run(asked, keep=Keep(tmp_path / "a")), run.run(identified, keep=Keep(tmp_path / "b"))
    assert one.status == two.status == "done", (one.error, two.error)
    assert one.cell_id == two.cell_id == identified.cell_id == run.identify(asked)
    assert (curve(one), one.accuracy, one.measured_mb) == (curve(two), two.accuracy, two.measured_mb)


@pytest.mark.parametrize("method", ["s2a", "linear"])  # linear trains on features, which are known by the facts too
def test_a_run_opens_its_data_and_builds_its_backbone_once(tmp_path, monkeypatch, method):
    asked, calls = cell(method=MethodConfig(method)), []
    identified = identify_cell(asked)
    for module, name in ((loading, "open_dataset"), (backbones, "create")):
        original = getattr(module, name)
        monkeypatch.setattr(module, name, lambda *a, _o=original, _n=name, **k: (calls.append(_n), _o(*a, **k))[1])
    for what in (asked, identified):
        calls.clear()
        assert run.run(what, keep=Keep(tmp_path)).status == "done"
        assert sorted(calls) == ["create", "open_dataset"]


def test_a_dataset_is_opened_once_for_all_cells_of_a_grid(monkeypatch):
    opened, original = [], loading.open_dataset
    monkeypatch.setattr(loading, "open_dataset", lambda config: (opened.append(config.dataset), original(config))[1])
    cells = [
        cell(data=DataConfig(dataset=name, limit_train=9), seed=seed) for name in ("digits", "count") for seed in (0, 1)
    ]
    with data_opened_once():
        together = [identity.identify(each) for each in cells]
    assert opened == ["digits", "count"]
    assert together == [identity.identify(each) for each in cells], "outside of the block each is checked again"
    assert len(opened) == 6


def test_a_weight_file_that_changed_is_noticed(tmp_path):
    asked = weighted(tmp_path)
    identified = identify_cell(asked)
    assert open_cell(identified).cell == identified
    path = Path(asked.backbone.weights or "")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(InputError, match=f"not those that cell {identified.cell_id} was identified with"):
        run.run(identified)
    path.unlink()
    with pytest.raises(InputError, match="No weights file"):
        run.run(identified)


def test_a_data_folder_that_changed_is_noticed(svhn):
    folder, _ = svhn
    asked = cell(data=DataConfig("vtab", "svhn", str(folder.parent)))
    identified = identify_cell(asked)
    assert open_cell(identified).cell.cell_id == identified.cell_id
    image = folder / "images" / "test" / "000000.png"
    image.write_bytes(image.read_bytes() + b"\0")
    with pytest.raises(InputError, match=r"was identified with"):
        run.run(identified)
    shutil.rmtree(folder)
    with pytest.raises(InputError, match="was not found"):
        run.run(identified)


def test_another_version_or_another_config_is_noticed(monkeypatch):
    identified = identify_cell(cell())
    with pytest.raises(InputError, match="was identified with"):
        run.run(dataclasses.replace(identified, config=cell(seed=7)))
    monkeypatch.setattr(record, "PROTOCOL", record.PROTOCOL + 1)
    with pytest.raises(InputError, match="version of s2a-bench"):
        run.run(identified)


def test_a_backbone_that_expects_other_images_fails_the_cell():
    identified = identify_cell(cell())
    other = {**identified.facts, "format": {**identified.facts["format"], "mean": [0.1, 0.2, 0.3]}}
    pretended = IdentifiedCell(identified.config, other, record.cell_id(other))
    found = run.run(pretended)
    assert found.status == "failed" and found.error is not None
    assert found.error["type"] == "InputError" and "expects other images" in found.error["message"]


def test_facts_that_are_not_known_leave_the_config():
    asked = cell(seed=4321)
    assert with_facts(asked, "0" * 16) is asked
    identified = identify_cell(asked)
    assert with_facts(asked, identified.cell_id) == identified


KNOWN_BEFORE = {
    *("suite", "dataset", "group", "backbone", "method", "method_config", "train_config", "seed", "epochs"),
    *("evaluated_on", "data_id", "split_id", "checkpoint_id", "random_weights", "limit_train", "limit_test", "classes"),
    *("trial", "search", "git_sha", "git_dirty", "versions", "hardware", "protocol", "schema"),
}


SEARCH = {"mode": "grid", "trials": 1, "chosen": {"train.lr": 1e-3}, "trial_ids": ["0123456789abcdef"]}


def test_the_record_of_a_dead_worker_has_what_a_finished_one_has(tmp_path):
    asked = cell(method=MethodConfig("lora", {"rank": 2}), trial=True, search=SEARCH)
    done = run.run(asked)
    assert done.status == "done", done.error
    facts = known_facts(done.cell_id)
    failed = failed_record(asked, done.cell_id, ("WorkerDied", "Gone.", "..."), facts, provenance.hardware("cpu", 1))
    for name in sorted(KNOWN_BEFORE):
        assert getattr(failed, name) == getattr(done, name), name
    read_again = record.read(record.write(done, tmp_path)).data_config
    assert failed.data_config == {name: read_again[name] for name in ("size", "mean", "std", "interpolation")}
    assert record.read(record.write(failed, tmp_path)) == failed
    left = {field.name for field in dataclasses.fields(Record)} - KNOWN_BEFORE - {"cell_id", "status", "error"}
    unknown = {name for name in left if getattr(failed, name) == getattr(Record(**_required()), name)}
    assert left - unknown <= {"data_config", "started_at"}, "the rest comes with the run"


def _required() -> dict:
    fields = [f for f in dataclasses.fields(Record) if f.default is f.default_factory is dataclasses.MISSING]
    return {field.name: "" for field in fields}


def test_the_record_of_bad_input_says_what_the_config_says():
    asked = cell(data=DataConfig("vtab", "caltech101", "/nowhere", limit_train=7))
    found = failed_record(asked, "abc", ("InputError", "The folder\nis gone.", "..."))
    assert (found.dataset, found.classes, found.limit_train, found.data_id) == ("caltech101", 102, 7, "")
    assert found.versions and found.hardware == {}
