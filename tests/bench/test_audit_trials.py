"""What choosing the trial by the test set would have given: every config as a final cell, apart from the results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from bench.factories import make_record
from s2a_bench.audit import trials as audit_trials
from s2a_bench.cells import record, run
from s2a_bench.cells.record import Record
from s2a_bench.cli.main import main
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.search import choice as search
from s2a_bench.tracking import store as track_store

SWEEP = ["sweep", "--serial", "--random-weights", "--datasets", "digits", "--methods", "bias", "--limit-train", "32"]
SWEEP += ["--limit-test", "40", "--epochs", "2", "--batch-size", "8", "--seeds", "3", "4", "--search", "3"]


@pytest.fixture
def searched(tmp_path, monkeypatch) -> list[Record]:
    """The records of a small search with its final cells, under ``results``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    assert main(SWEEP) == 0
    return [found for _, found in record.read_all(Path("results")) if isinstance(found, Record)]


def test_every_config_is_scored_as_its_own_final_cell_and_the_best_is_told(searched, capsys, monkeypatch):
    """Against the final cells made by hand from what the search tried."""
    before = {path: path.read_bytes() for path in Path("results/records").iterdir()}
    capsys.readouterr()
    assert main(["audit", "--peek"]) == 0
    out = capsys.readouterr().out
    assert "An audit, not a result" in out and "1, 2 configs to train" in out, "the chosen one has its record"

    request = grid.Request(
        datasets=("digits",), methods=("bias",), seeds=(3,), random_weights=True, limit_train=32, limit_test=40,
        epochs=2, batch_size=8,
    )  # fmt: skip
    (asked,) = search.searches(grid.expand(request), search.Mode(3))
    own = [run.run(search.with_point(asked.finals[0], point)) for point in asked.points]
    (chosen,) = (found for found in searched if not found.trial and found.seed == 3)
    files = [json.loads(path.read_text()) for path in Path("results/audit").glob("trial-*.json")]
    expected = {found.cell_id: found.accuracy for found in own if found.cell_id != chosen.cell_id}
    assert {each["cell_id"]: each["accuracy"] for each in files} == expected
    assert {each["kind"] for each in files} == {"trial"}
    accuracies = [found.accuracy or 0.0 for found in own]
    table = out[out.index("What choosing the trial") :]
    assert f"{chosen.accuracy:.1f}" in table and f"{max(accuracies):.1f}" in table
    assert f"+{max(accuracies) - (chosen.accuracy or 0):.2f}" in table

    assert {path: path.read_bytes() for path in Path("results/records").iterdir()} == before
    assert main(["report"]) == 0
    monkeypatch.setattr(run, "run", lambda *_, **__: pytest.fail("what is there is not made again"))
    assert main(["audit", "--peek"]) == 0
    next(Path("results/audit").glob("trial-*.json")).write_text("{")
    with pytest.raises(pytest.fail.Exception):
        main(["audit", "--peek"])


def test_without_the_trials_nothing_more_is_trained_and_a_missing_one_is_said_first(searched, capsys):
    trial = next(found for found in searched if found.trial)
    record.record_path(Path("results"), trial.cell_id).unlink()
    capsys.readouterr()
    assert main(["audit", "--peek"]) == 2
    err = capsys.readouterr().err
    assert trial.cell_id in err and "--skip-trials" in err and not Path("results/audit").exists()
    assert main(["audit", "--peek", "--skip-trials"]) == 0
    assert not list(Path("results/audit").glob("trial-*")) and "What choosing" not in capsys.readouterr().out


def _final(seed: int, ids: list[str], accuracy: float = 50.0, **changes) -> Record:
    return make_record(seed=seed, accuracy=accuracy, search={"mode": "grid", "trials": 2, "trial_ids": ids}, **changes)


def test_one_seed_stands_for_a_search():
    one, two = _final(1, ["a", "b"]), _final(0, ["a", "b"])
    other = _final(0, ["a", "b"], dataset="texture")
    assert audit_trials.select_searched([one, two, other, make_record()]) == [two, other]


def test_the_table_is_a_mean_over_datasets():
    rows = [
        audit_trials.SearchAudit(_final(0, ["a"], 50.0), (50.0, 54.0)),
        audit_trials.SearchAudit(_final(0, ["b"], 30.0, dataset="texture"), (30.0, 20.0)),
    ]
    (line,) = audit_trials.summarise_searches(rows)
    assert (line.last, line.best, line.inflation, line.largest) == (40.0, 42.0, 2.0, 4.0)
    assert (line.datasets, line.cells) == (2, 2)


def test_a_config_whose_loss_is_infinite_has_no_score_and_any_other_failure_is_one(monkeypatch):
    cell = grid.expand(grid.Request(datasets=("digits",), methods=("bias",)))[0]
    one = audit_trials.TriedConfig("a" * 16, "b" * 16, cell)
    failed = make_record(status="failed", accuracy=None, error={"type": "Diverged", "message": "NaN"})
    monkeypatch.setattr(run, "run", lambda cell, **_: failed)
    assert audit_trials.score_config(one).accuracy is None
    lost = dataclasses.replace(failed, error={"type": "OutOfMemory", "message": "too large"})
    monkeypatch.setattr(run, "run", lambda cell, **_: lost)
    with pytest.raises(RuntimeError, match="OutOfMemory: too large"):
        audit_trials.score_config(one)
