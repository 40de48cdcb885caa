"""Means, spreads and comparability, against numpy, scipy and brute force."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from bench.factories import make_grid, make_record
from hypothesis import assume, given
from hypothesis import strategies as st
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.statistics import NotComparable, Stat

percent = st.floats(0, 100, allow_nan=False).map(lambda v: round(v, 3))


@given(st.lists(percent, min_size=2, max_size=8))
def test_over_seeds_is_mean_and_sample_std(values):
    found = stats.mean_over_seeds(values)
    assert found.mean == pytest.approx(np.mean(values))
    assert found.std == pytest.approx(np.std(values, ddof=1), abs=1e-9)
    assert found.n == len(values)


def test_one_seed_has_no_spread():
    assert stats.mean_over_seeds([71.5]) == Stat(71.5, None, 1)


@given(st.lists(st.lists(percent, min_size=2, max_size=5), min_size=1, max_size=6))
def test_propagate_is_root_of_summed_variances(tasks):
    found = stats.average_means(map(stats.mean_over_seeds, tasks))
    assert found.mean == pytest.approx(np.mean([np.mean(task) for task in tasks]))
    variances = [np.var(task, ddof=1) for task in tasks]
    assert found.std == pytest.approx(np.sqrt(np.sum(variances)) / len(tasks), abs=1e-9)
    assert found.n == min(map(len, tasks))


def test_an_unknown_spread_stays_unknown():
    assert stats.average_means([stats.mean_over_seeds([1.0, 2.0]), stats.mean_over_seeds([3.0])]).std is None


@pytest.mark.filterwarnings("ignore:Precision loss occurred")  # of scipy, where all seeds of one side agree
@given(st.lists(percent, min_size=2, max_size=6), st.lists(percent, min_size=2, max_size=6))
def test_clearly_above_is_welchs_test(a, b):
    assume(np.var(a) + np.var(b) > 1e-6)
    p = tuple(scipy.stats.ttest_ind(a, b, equal_var=False))[1]
    assume(abs(p - stats.NOISE_LEVEL) > 1e-6)
    expected = bool(p < stats.NOISE_LEVEL and np.mean(a) > np.mean(b))
    assert stats.is_clearly_above(stats.mean_over_seeds(a), stats.mean_over_seeds(b)) == expected


@pytest.mark.parametrize(("a", "b"), [([99.0], [1.0, 1.1]), ([99.0, 99.0], [1.0, 1.0]), ([5.0, 6.0], [5.0, 6.0])])
def test_unknown_or_absent_noise_is_never_beaten(a, b):
    assert not stats.is_clearly_above(stats.mean_over_seeds(a), stats.mean_over_seeds(b))


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), max_size=12))
def test_pareto_is_what_nothing_beats(points):
    def beaten(p):
        return any(q[0] <= p[0] and q[1] >= p[1] and q != p for q in points)

    assert sorted(stats.pareto_front(points)) == [i for i, p in enumerate(points) if not beaten(p)]
    costs = [points[i][0] for i in stats.pareto_front(points)]
    assert costs == sorted(costs)


def test_both_averages_of_a_grid():
    records = make_grid(["lora"])
    found = stats.average_tasks(records)
    tasks = {r.dataset: [x.accuracy or 0.0 for x in records if x.dataset == r.dataset] for r in records}
    means = {name: np.mean(values) for name, values in tasks.items()}
    structured = np.mean([means["sprite_location"], means["sprite_count"]])
    assert found.groups["structured"].mean == pytest.approx(structured)
    assert found.mean_of_tasks.mean == pytest.approx(np.mean(list(means.values())))
    assert found.mean_of_groups.mean == pytest.approx(np.mean([structured, means["digits"], means["texture"]]))
    spreads = [np.var(values, ddof=1) for values in tasks.values()]
    assert found.mean_of_tasks.std == pytest.approx(np.sqrt(sum(spreads)) / 4)


@pytest.mark.parametrize(
    "change",
    [
        {"data_id": "other"},
        {"split_id": "other"},
        {"checkpoint_id": "other"},
        {"random_weights": True},
        {"evaluated_on": "val"},
        {"epochs": 4},
        {"protocol": 999},
        {"train_images": 32},
        {"data_config": {"size": 224}},
        {"limit_train": 32},
        {"group": "structured"},
        {"method_config": {"lrp_rank": 2}},
        {"train_config": {"lr": 1.0}},
        {"backbone": "mini_swin"},
        {"suite": "vtab"},
        {"status": "failed", "accuracy": None},
        {"seed": 0},
    ],
    ids=str,
)
def test_records_that_differ_in_more_than_the_seed_are_refused(change):
    records = [make_record(seed=0), make_record(seed=1)]
    assert stats.average_tasks(records).mean_of_tasks.n == 2
    with pytest.raises(NotComparable):
        stats.average_tasks([records[0], dataclasses.replace(records[1], **change)])


def test_a_fresh_record_and_one_from_a_file_are_the_same_setting():
    config = {"size": 32, "mean": [0.5, 0.5, 0.5]}
    fresh = make_record(seed=1, data_config=config | {"mean": (0.5, 0.5, 0.5)})
    assert stats.average_tasks([make_record(seed=0, data_config=config), fresh]).mean_of_tasks.n == 2


def test_a_refusal_names_both_records_and_the_field():
    a, b = make_record(seed=0), make_record(seed=1, data_id="other")
    with pytest.raises(NotComparable, match="data_id") as caught:
        stats.average_tasks([a, b])
    assert a.cell_id in str(caught.value)
    assert b.cell_id in str(caught.value)


def test_nothing_to_average_is_refused():
    with pytest.raises(NotComparable):
        stats.average_tasks([])


def test_the_tables_of_the_docs_use_the_reports_spread():
    """The spread behind a mean of tasks follows from those of the tasks, as printed: within what rounding can do."""
    checked = 0
    for line in (Path(__file__).resolve().parents[2] / "docs" / "results.md").read_text().splitlines():
        spreads = [float(value) for value in re.findall(r"± ([\d.]+) \|", line)] if line.startswith("|") else []
        if len(spreads) < 4:
            continue
        *tasks, whole = spreads
        low, high = (
            math.sqrt(sum(max(0.0, spread + step) ** 2 for spread in tasks)) / len(tasks) for step in (-0.05, 0.05)
        )
        assert low - 0.051 <= whole <= high + 0.051, line
        checked += 1
    assert checked > 40
