"""Paired differences: by enumeration of every draw, by scipy, and never a difference inside the noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import scipy.stats
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.reports import paired_differences
from s2a_bench.reports.paired_differences import bootstrap_difference, compare_rows, pair_differences

POINTS = st.floats(-20, 20).map(lambda v: round(v, 2))
TASKS = st.dictionaries(
    st.text(min_size=1, max_size=3), st.lists(POINTS, min_size=1, max_size=4), min_size=1, max_size=4
)


def test_the_interval_is_that_of_every_possible_draw():
    """Two tasks of two seeds: all draws of tasks, and of seeds within each drawn task, counted out."""
    by_task = {"a": [1.0, 4.0], "b": [-2.0, 9.0]}
    seeds = [[np.mean(draw) for draw in itertools.product(values, repeat=2)] for values in by_task.values()]
    means = [np.mean(draw) for tasks in itertools.product(seeds, repeat=2) for draw in itertools.product(*tasks)]
    low, high = np.quantile(means, [0.025, 0.975])
    found = bootstrap_difference(by_task)
    assert found is not None and found.low is not None and found.high is not None
    assert found.mean == pytest.approx(3.0)
    # Neighbouring values of the 64 means are the grain of the exact quantile.
    assert found.low == pytest.approx(low, abs=0.8)
    assert found.high == pytest.approx(high, abs=0.8)


def test_one_task_is_scipys_percentile_bootstrap():
    values = [0.4, 1.9, -0.3, 2.2, 1.1, 0.7, 3.0, 1.4]
    oracle = scipy.stats.bootstrap(
        (values,), np.mean, method="percentile", n_resamples=20000, rng=np.random.default_rng(7)
    ).confidence_interval
    found = bootstrap_difference({"a": values})
    assert found is not None
    assert (found.low, found.high) == (pytest.approx(oracle.low, abs=0.1), pytest.approx(oracle.high, abs=0.1))


@given(TASKS)
def test_the_other_way_round_is_the_negative(by_task):
    found = bootstrap_difference(by_task)
    turned = bootstrap_difference({name: [-v for v in values] for name, values in by_task.items()})
    assert found is not None and turned is not None
    assert turned.mean == pytest.approx((-found).mean)
    if found.low is None:
        assert turned.low is turned.high is None
    else:
        assert (turned.low, turned.high) == (pytest.approx((-found).low), pytest.approx((-found).high))
    assert found.significant == turned.significant


@given(TASKS)
def test_the_interval_lies_within_the_tasks_and_is_the_same_every_time(by_task):
    found = bootstrap_difference(by_task)
    assert found == bootstrap_difference(by_task)
    assert found is not None
    everything = [v for values in by_task.values() for v in values]
    assert found.pairs == len(everything)
    if found.low is not None and found.high is not None:
        assert min(everything) - 1e-9 <= found.low <= found.high <= max(everything) + 1e-9


@pytest.mark.parametrize(
    ("by_task", "real"),
    [
        ({"a": [1.0, 1.2, 0.9], "b": [2.0, 2.1, 1.8]}, True),
        ({"a": [-1.0, -1.2, -0.9], "b": [-2.0, -2.1, -1.8]}, True),
        ({"a": [1.0, 1.2], "b": [2.0, 2.1]}, False),  # four pairs: too few, however clear they look
        ({"a": [1.0] * 6}, False),  # without any spread the noise is unknown
        ({"a": [3.0, -2.0, 1.0], "b": [-1.0, 2.0, -2.5]}, False),
        ({"a": [5.0]}, False),
    ],
)
def test_only_a_difference_outside_the_noise_is_real(by_task, real):
    found = bootstrap_difference(by_task)
    assert found is not None and found.significant is real


def test_pairs_share_dataset_seed_and_images():
    a = [make_record(method="full", seed=s, accuracy=80.0 + s) for s in (0, 1, 2)]
    b = [
        make_record(method="bias", seed=0, accuracy=79.0),
        make_record(method="bias", seed=1, accuracy=70.0, split_id="another"),
        make_record(method="bias", seed=2, status="failed"),
        make_record(method="bias", seed=3, accuracy=10.0),
        make_record(method="bias", seed=0, dataset="texture", accuracy=10.0),
    ]
    assert pair_differences(a, b) == {"digits": [1.0]}
    found = compare_rows(a, b)
    assert found is not None and (found.mean, found.low, found.pairs) == (1.0, None, 1)
    assert compare_rows(a, b[3:]) is None
    # Which of two recipes of one seed should be taken is not known.
    assert pair_differences(a, [*b, make_record(method="bias", seed=0, accuracy=60.0, train_config={"lr": 1.0})]) == {}


def test_six_pairs_of_one_sign_are_the_fewest_that_a_sign_test_calls():
    assert 2 * 0.5**paired_differences.MIN_PAIRS < 0.05 <= 2 * 0.5 ** (paired_differences.MIN_PAIRS - 1)
