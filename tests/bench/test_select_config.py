"""Cells that choose their epoch on the validation images: their identity, and values that are refused."""

from __future__ import annotations

import dataclasses

import pytest
from bench.select_cells import RECIPE, cell
from s2a_bench.cells import run
from s2a_bench.config import TrainConfig
from s2a_bench.errors import InputError


def test_each_protocol_is_another_cell():
    ids = {run.identify(cell(evaluate)) for evaluate in ("test", "val", "select")}
    ids |= {run.identify(cell(recipe=dataclasses.replace(RECIPE, patience=1)))}
    ids |= {run.identify(cell(recipe=dataclasses.replace(RECIPE, balance=True)))}
    assert len(ids) == 5


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"patience": -1}, "train.patience=-1 .* whole number"),
        ({"patience": 1.5}, "train.patience=1.5 .* whole number"),
        ({"patience": True}, "train.patience=True .* whole number"),
        ({"balance": "yes"}, "train.balance='yes' is no switch"),
        ({"balance": 1}, "train.balance=1 is no switch"),
    ],
)
def test_bad_values_of_the_recipe(values, words):
    with pytest.raises(InputError, match=words):
        TrainConfig(**values)


@pytest.mark.parametrize("evaluate", ["test", "val"])
def test_patience_needs_looks_at_val(evaluate):
    with pytest.raises(InputError, match=f"train.patience=2 has no effect with evaluate={evaluate}"):
        cell(evaluate, recipe=dataclasses.replace(RECIPE, patience=2))
    with pytest.raises(InputError, match="only val may be looked at"):
        dataclasses.replace(cell(), looks=(1,))
