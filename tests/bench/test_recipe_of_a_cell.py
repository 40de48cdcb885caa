"""The default recipe of a cell."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells.recipes import train_config
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError


@given(st.sampled_from(sorted(datasets.SUITES)), st.integers(1, 500))
def test_a_shorter_or_longer_run_keeps_a_warm_up(suite: str, epochs: int) -> None:
    usual = train_config(suite, "bias", "mini_vit")
    asked = train_config(suite, "bias", "mini_vit", epochs=epochs)
    exact = usual.warmup_epochs * epochs / usual.epochs
    assert 0 <= asked.warmup_epochs <= epochs / 4
    if epochs >= 4:
        assert 1 <= asked.warmup_epochs < exact + 1
    # Never shorter than the proportion, unless that were more than a quarter.
    assert asked.warmup_epochs >= min(exact, epochs // 4)


@pytest.mark.parametrize(("epochs", "warmup"), [(12, 1), (24, 2), (13, 2), (6, 1), (4, 1), (3, 0), (1, 0)])
def test_warm_up_of_the_mini_suite(epochs: int, warmup: int) -> None:
    assert train_config("mini", "s2a", "mini_vit", epochs=epochs).warmup_epochs == warmup


def test_a_warm_up_that_is_given_is_taken() -> None:
    assert train_config("mini", "s2a", "mini_vit", epochs=4, warmup_epochs=0).warmup_epochs == 0


@pytest.mark.parametrize("epochs", [1.5, 2.0, True, "4", None, float("nan"), float("inf"), [4], 0, -3])
def test_what_is_no_number_of_epochs(epochs: Any) -> None:
    with pytest.raises(InputError, match="epochs"):
        train_config("mini", "s2a", "mini_vit", epochs=epochs)
