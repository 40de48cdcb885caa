"""What tables say of searched cells: one row per method, and no trials."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from bench.factories import make_record
from s2a_bench.cells.record import Record
from s2a_bench.reports import sections as report_tables
from s2a_bench.reports import statistics as stats


def _searched(mode: str = "grid", trials: int = 12, **changes: Any) -> Record:
    chosen = {"method.scale": changes["method_config"]["scale"], "train.lr": changes["train_config"]["lr"]}
    return make_record(method="adaptformer", search={"mode": mode, "trials": trials, "chosen": chosen}, **changes)


def _row(dataset: str, scale: float, lr: float) -> dict[str, Any]:
    config = {"width": 64, "scale": scale}
    return {"dataset": dataset, "method_config": config, "train_config": {"epochs": 3, "batch_size": 32, "lr": lr}}


def test_what_a_search_chose_for_each_dataset_is_one_row_with_averages():
    found = [_searched(**_row("digits", 0.1, 0.01), seed=seed, accuracy=80.0 + seed) for seed in (0, 1)]
    found += [_searched(**_row("texture", 1.0, 0.1), seed=seed, accuracy=60.0 + seed) for seed in (0, 1)]
    (section,) = report_tables.make_sections(found)
    (row,) = section.rows
    assert row.label == "adaptformer"
    assert row.averages is not None and row.averages.mean_of_tasks.mean == 70.5


def test_searched_and_unsearched_and_searches_of_other_sizes_are_rows_of_their_own():
    plain = {"method": "adaptformer"} | _row("digits", 0.1, 0.01)
    found = [
        make_record(**plain),
        _searched(**_row("digits", 1.0, 0.1)),
        _searched("random", 5, **_row("digits", 0.2, 0.03)),
    ]
    (section,) = report_tables.make_sections(found)
    assert {row.label for row in section.rows} == {
        "adaptformer",
        "adaptformer, searched (grid of 12)",
        "adaptformer, searched (random 5)",
    }
    other = make_record(**({"method": "adaptformer"} | _row("texture", 0.1, 0.01)))
    with pytest.raises(stats.NotComparable, match="search"):
        stats.average_tasks(
            [_searched(**_row("digits", 0.1, 0.01)), dataclasses.replace(other, method_config={"width": 64})]
        )


def test_seeds_of_one_task_with_different_choices_are_not_averaged():
    found = [_searched(**_row("digits", 0.1, 0.01), seed=0), _searched(**_row("digits", 1.0, 0.01), seed=1)]
    with pytest.raises(stats.NotComparable, match="method_config"):
        stats.average_seeds(found)


def test_trials_are_in_no_table():
    trial = make_record(trial=True, evaluated_on="val", method="bias")
    (section,) = report_tables.make_sections([make_record(), trial, make_record(trial=True, status="failed", seed=9)])
    assert [each.method for _, each in section.records] == ["s2a"]
