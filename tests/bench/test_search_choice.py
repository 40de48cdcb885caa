"""What a search tries and how it chooses: equal budgets, and a choice that anyone can make again."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

import numpy as np
import pytest
import s2a
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import recipes, run
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.search import choice as search
from s2a_bench.sweeps.search import spaces as search_spaces

METHODS = sorted(s2a.list_methods())


@pytest.mark.parametrize("method", [*METHODS, "one_from_another_package"])
def test_every_grid_has_as_many_points_and_holds_the_default_recipe(method):
    points = search_spaces.grid(search_spaces.get(method, "mini_swin"))
    assert len(points) == search_spaces.GRID == 12
    assert len({json.dumps(point) for point in points}) == 12
    default = recipes.train_config("vtab", method, "mini_swin")
    at_default = [p for p in points if (p["train.lr"], p["train.weight_decay"]) == (default.lr, default.weight_decay)]
    rest = [{k: v for k, v in point.items() if k.startswith("method.")} for point in at_default]
    if method in METHODS:
        config = s2a.method_config(method)
        assert any(all(getattr(config, k[7:]) == v for k, v in each.items()) for each in rest)


def test_the_learning_rates_reach_where_each_kind_of_method_needs_them():
    """Full diverges or collapses at the rates of small modules: its grid goes below 1e-4, the others' to 1e-1."""
    for method in METHODS:
        rates = [point["train.lr"] for point in search_spaces.grid(search_spaces.get(method, "mini_swin"))]
        assert (min(rates) < 1e-4) if method == "full" else (max(rates) >= 1e-1)


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_distinct_stay_inside_and_a_longer_search_only_adds_some(method):
    space = search_spaces.get(method, "mini_swin")
    points = search_spaces.draws(space, 200)
    assert len({json.dumps(point) for point in points}) == 200
    assert search_spaces.draws(space, 7) == points[:7]
    for axis in space:
        values = [point[axis.key] for point in points]
        if axis.logarithmic:
            assert axis.values[0] <= min(values) and max(values) <= axis.values[-1]
            # Log-uniform: the median of 200 draws lies near the geometric middle of the range.
            middle = math.sqrt(axis.values[0] * axis.values[-1])
            assert abs(math.log10(float(np.median(values)) / middle)) < 0.1 * math.log10(
                axis.values[-1] / axis.values[0]
            )
            assert all(float(f"{value:.3g}") == value for value in values), "a value can be typed"
        else:
            assert set(values) == set(axis.values)


def test_a_draw_is_at_the_same_place_of_every_methods_range():
    def places(method: str) -> list[float]:
        axis = next(axis for axis in search_spaces.get(method, "mini_swin") if axis.key == "train.lr")
        low, high = axis.values[0], axis.values[-1]
        drawn = [point["train.lr"] for point in search_spaces.draws(search_spaces.get(method, "mini_swin"), 30)]
        return [math.log(lr / low) / math.log(high / low) for lr in drawn]

    for method in METHODS:
        assert places(method) == pytest.approx(places("full"), abs=0.02)


@pytest.mark.parametrize("method", ["full", "linear", "lora", "adaptformer", "s2a"])
def test_the_points_are_cells_of_their_own_that_every_model_takes(method):
    (found,) = search.searches(_cells(method), search.Mode())
    assert len({run.identify(trial) for trial in found.trials}) == 12


def _cells(*methods: str, **changes: Any) -> list[CellConfig]:
    return grid.expand(grid.Request(datasets=("digits",), methods=methods, **changes))


def test_trials_differ_from_the_final_cells_in_what_is_searched_and_nothing_else():
    cells = _cells("lora", seeds=(0, 1, 2), limit_train=50, epochs=7)
    (found,) = search.searches(cells, search.Mode())
    assert found.finals == tuple(cells)
    for trial, point in zip(found.trials, found.points, strict=True):
        assert (trial.data.evaluate, trial.seed, trial.trial) == ("val", search.SEED, True)
        assert (trial.train.lr, trial.train.weight_decay) == (point["train.lr"], point["train.weight_decay"])
        assert trial.method.options.get("alpha") == point["method.alpha"]
        back = dataclasses.replace(
            trial,
            data=dataclasses.replace(trial.data, evaluate="test"),
            method=cells[0].method,
            train=dataclasses.replace(trial.train, lr=cells[0].train.lr, weight_decay=cells[0].train.weight_decay),
            seed=0,
            trial=False,
        )
        assert back == cells[0]


def test_one_search_for_each_method_dataset_and_backbone():
    request = grid.Request(datasets=("digits", "count"), methods=("s2a", "s2a:bits=8", "bias"), seeds=(0, 1))
    found = search.searches(grid.expand(request), search.Mode(3))
    assert len(found) == 6
    assert all(len(each.finals) == 2 and len(each.trials) == 3 for each in found)


# The choice


RATES = st.sampled_from([1e-4, 1e-3, 1e-2])


@given(
    st.lists(st.tuples(st.none() | st.sampled_from([10.0, 20.0, 30.0]), RATES, RATES), min_size=1, max_size=8),
    st.randoms(),
)
def test_the_choice_is_the_best_then_the_gentlest_then_the_first(trials, shuffler):
    """Against a tournament: every trial is compared with the leader, in words, one rule after the other."""
    leader: int | None = None
    for i, (accuracy, lr, decay) in enumerate(trials):
        if accuracy is None:
            continue
        if leader is None:
            leader = i
            continue
        best, best_lr, best_decay = trials[leader]
        if accuracy > best or (accuracy == best and (lr < best_lr or (lr == best_lr and decay < best_decay))):
            leader = i

    ids = [f"{i:016}" for i in range(len(trials))]
    points = tuple({"train.weight_decay": decay, "train.lr": lr} for _, lr, decay in trials)
    asked = search.Search((CellConfig(),), points, (CellConfig(),) * len(trials), search.Mode())
    found = [_trial_record(cell_id, accuracy) for cell_id, (accuracy, _, _) in zip(ids, trials, strict=True)]
    shuffler.shuffle(found)
    choice = search.choose(asked, ids, {each.cell_id: each for each in found})
    assert (choice.best if choice else None) == leader


def _trial_record(cell_id: str, accuracy: float | None) -> Record:
    if accuracy is None:
        return make_record(cell_id=cell_id, status="failed", trial=True)  # Diverged
    return make_record(cell_id=cell_id, accuracy=accuracy, trial=True, evaluated_on="val")


@pytest.mark.parametrize("error", [None, {"type": "WorkerDied", "message": "killed"}])
def test_there_is_no_choice_before_every_trial_has_ended(error):
    points = tuple({"train.weight_decay": 0.0, "train.lr": lr} for lr in (1e-3, 1e-2))
    asked = search.Search((CellConfig(),), points, (CellConfig(),) * 2, search.Mode())
    found: dict[str, Record | None] = {"a": _trial_record("a", 99.0), "b": None}
    if error:
        found["b"] = make_record(cell_id="b", status="failed", error=error)
    assert search.choose(asked, ["a", "b"], found) is None
    found["b"] = _trial_record("b", 50.0)
    choice = search.choose(asked, ["a", "b"], found)
    assert choice is not None and choice.best == 0
