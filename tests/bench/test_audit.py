"""Peeking is measured on the cells as they were, and never becomes a result; the same cell gives the same numbers."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from bench.factories import make_record
from s2a_bench.audit import epochs as audit
from s2a_bench.audit.selection import select_records
from s2a_bench.cells import record, run
from s2a_bench.cells.record import Record
from s2a_bench.cli.main import main
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.tracking import store as track_store

RECIPE = TrainConfig(epochs=3, warmup_epochs=1, batch_size=16, lr=1e-2)


def _cell(method: str = "bias", **changes: Any) -> CellConfig:
    cell = CellConfig(
        data=DataConfig(dataset="digits", limit_train=48, limit_test=60),
        backbone=BackboneConfig(random_weights=True),
        method=MethodConfig(method),
        train=RECIPE,
        threads=1,
    )
    return dataclasses.replace(cell, **changes)


def _peek(cell_id: str, test: tuple[float, ...], **changes: Any) -> audit.EpochAudit:
    values: dict[str, Any] = {"suite": "mini", "dataset": "digits", "backbone": "mini_vit", "method": "s2a", "seed": 0}
    values |= {"record_accuracy": test[-1], "loss": (1.0,) * len(test)} | changes
    return audit.EpochAudit(cell_id=cell_id, test=test, **values)


# Determinism


@pytest.mark.long
@pytest.mark.parametrize(
    "method",
    [
        MethodConfig("s2a"),
        pytest.param(MethodConfig("adaptformer", {"dropout": 0.5}), marks=pytest.mark.full),
    ],
    ids=str,
)
def test_the_same_cell_in_two_processes_gives_the_same_numbers_bit_for_bit(tmp_path, method):
    """Random order, dropout, random weights and 4-bit codes included; drop path too."""
    cell = dataclasses.replace(_cell(), method=method, train=dataclasses.replace(RECIPE, drop_path=0.2), seed=5)
    (tmp_path / "cell.json").write_text(json.dumps(dataclasses.asdict(cell)))
    outputs = [tmp_path / "once", tmp_path / "again"]
    for output in outputs:
        command = [sys.executable, "-m", "s2a_bench.cells.run", str(tmp_path / "cell.json"), str(output)]
        done = subprocess.run(command, check=False, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
    once, again = (record.read(next((output / "records").glob("*.json"))) for output in outputs)
    other = run.run(dataclasses.replace(cell, seed=6))
    assert once.cell_id == again.cell_id and once.status == "done"
    assert once.accuracy == again.accuracy
    assert [point["loss"] for point in once.curve] == [point["loss"] for point in again.curve]
    assert [point["loss"] for point in once.curve] != [point["loss"] for point in other.curve], "and a seed is a seed"


# Peeking


@pytest.mark.parametrize("method", ["bias", "adaptformer", "linear"])
def test_looking_changes_nothing_about_the_training(method):
    """Loss curve and last accuracy are those of the record, though the model was scored in between (with dropout)."""
    cell = _cell(method)
    found = run.run(cell)
    assert found.feature_cache is (method == "linear")  # then the audit trains on features as well
    looked = audit.score_every_epoch(audit.recreate_cell(found, None, None, "cpu"), found)
    assert list(looked.loss) == [point["loss"] for point in found.curve]
    assert looked.test[-1] == found.accuracy == looked.record_accuracy


def test_every_epochs_score_is_that_of_a_run_that_was_stopped_there(monkeypatch):
    """Against an independent way to the same numbers: train again, only so far, and score once."""
    cell = _cell("linear")
    found = run.run(cell)
    looked = audit.score_every_epoch(audit.recreate_cell(found, None, None, "cpu"), found)
    whole = run.train
    for epochs in (1, 2):

        def some(*arguments: Any, last: int = epochs, **keywords: Any) -> Any:
            for metrics in whole(*arguments, **keywords):
                yield metrics
                if metrics["epoch"] == last:
                    return

        monkeypatch.setattr(run, "train", some)
        assert run.run(cell).accuracy == looked.test[epochs - 1]


def test_inflation_is_best_minus_last():
    assert _peek("a", (10.0, 40.0, 40.0, 30.0)).inflation == 10.0
    assert _peek("a", (10.0, 40.0, 40.0, 30.0)).best_epoch == 2
    assert _peek("a", (10.0, 20.0)).inflation == 0.0


def test_the_table_is_a_mean_over_seeds_then_over_datasets():
    """Two datasets with 2 and 1 seeds: (1 + 3) / 2 = 2 and 6, together 4; not the mean of three cells, 10 / 3."""
    found = [
        _peek("a", (31.0, 30.0), dataset="digits", seed=0),
        _peek("b", (33.0, 30.0), dataset="digits", seed=1),
        _peek("c", (56.0, 50.0), dataset="count"),
        _peek("d", (20.0, 20.0), method="full"),
    ]
    first, second = audit.summarise_audits(found)
    assert (first.method, first.inflation, first.largest, first.datasets, first.cells) == ("s2a", 4.0, 6.0, 2, 3)
    assert (first.last, first.best) == (40.0, 44.0)
    assert (second.method, second.inflation) == ("full", 0.0)


# The command


@pytest.fixture
def swept(tmp_path, monkeypatch) -> list[Record]:
    """The records of a small sweep in ``results``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    for method in ("bias", "linear"):
        record.write(run.run(_cell(method)), Path("results"))
    return [found for _, found in record.read_all(Path("results")) if isinstance(found, Record)]


def test_the_audit_lies_apart_says_what_it_is_and_changes_no_record(swept, capsys):
    before = {path: path.read_bytes() for path in Path("results/records").iterdir()}
    assert main(["audit", "--peek"]) == 0
    out = capsys.readouterr().out
    assert "2 of 2 records were met again to the last image." in out
    assert "What the best epoch on test would have added" in out
    assert {path: path.read_bytes() for path in Path("results/records").iterdir()} == before
    files = {path.stem: json.loads(path.read_text()) for path in Path("results/audit").iterdir()}
    assert files.keys() == {found.cell_id for found in swept}
    assert all(each["kind"] == "peek" and "not a result" in each["warning"] for each in files.values())
    assert main(["report"]) == 0, "and the report does not see them"
    assert "2 cells done" in Path("results/report.md").read_text()


def test_an_audit_that_is_there_is_not_made_again_and_a_broken_one_is(swept, capsys, monkeypatch):
    assert main(["audit", "--peek", "--methods", "bias"]) == 0
    assert "1 records, 1 to train again" in capsys.readouterr().out
    (place,) = Path("results/audit").iterdir()
    whole = place.read_text()
    place.write_text(whole[:100])
    assert main(["audit", "--peek"]) == 0
    assert "2 records, 2 to train again" in capsys.readouterr().out
    assert place.read_text() == whole, "the same cell, the same audit"
    assert main(["audit", "--peek"]) == 0
    assert "2 records, 0 to train again" in capsys.readouterr().out


def test_a_record_that_is_not_met_again_is_named(swept, capsys):
    edited = dataclasses.replace(swept[0], accuracy=99.9)
    record.write(edited, Path("results"))
    assert main(["audit", "--peek"]) == 1
    out = capsys.readouterr().out
    assert "1 of 2 records were met again" in out
    assert f"{edited.cell_id}: the record says 99.90 %" in out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["--peek"]),
        (["--peek", "--output", "elsewhere"], ["no finished record", "s2a-bench sweep"]),
        (["--peek", "--methods", "full"], ["method full", "bias, linear"]),
        (["--peek", "--seeds", "0", "7"], ["seed 7", "choose from: 0"]),
        (["--peek", "--datasets", "count"], ["dataset count", "digits"]),
        (["--peek", "--device", "tpu9"], ["tpu9"]),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_sentence_before_anything_runs(swept, capsys, arguments, words):
    assert main(["audit", *arguments]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    for word in words:
        assert word in err
    assert not Path("results/audit").exists()


def test_a_record_of_other_data_or_weights_is_refused_before_anything_runs(swept, capsys):
    for changes in ({}, {"train_config": dataclasses.asdict(RECIPE)}):  # of the first not even the recipe is whole
        stranger = make_record(dataset="digits", method="bias", **changes)
        place = record.write(stranger, Path("results"))
        assert main(["audit", "--peek"]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1 and stranger.cell_id in err and "cannot be trained again" in err
        place.unlink()
    assert not Path("results/audit").exists()


def test_trials_failed_cells_and_val_records_are_not_audited():
    good = make_record(seed=3)
    others = [
        make_record(seed=4, status="failed"),
        make_record(seed=5, evaluated_on="val"),
        make_record(seed=6, trial=True),
        make_record(seed=7, evaluated_on="select", best_epoch=2, val_accuracy=81.0),
    ]
    assert select_records([good, *others]) == [good]
    with pytest.raises(InputError, match="the epoch of 1 finished record was chosen on validation images"):
        select_records(others)
