"""The learning-rate test: the steepest fall of known curves, and what it leaves as it was."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import lr_finder
from s2a_bench.cells.lr_finder import SPAN, find_rate, suggest
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError

OWN = 1e-3


def curve(loss, steps=60, own=OWN):
    """Points of a loss given over ``ln(rate / own)``."""
    places = np.linspace(-math.log(SPAN), math.log(SPAN), steps)
    return [(own * math.exp(place), float(loss(place))) for place in places]


def falling_then_rising(middle, noise=0.0, seed=0):
    """A logistic fall around ``middle``, steepest there, and a rise two e-folds later."""
    random = np.random.default_rng(seed)

    def loss(place):
        fall = 2 / (1 + math.exp(-3 * (place - middle)))
        return 4 - fall + math.exp(3 * (place - middle - 2)) + noise * random.normal()

    return loss


@given(st.floats(-1.5, 1.0))
def test_the_steepest_fall_of_a_known_curve(middle):
    found = suggest(curve(falling_then_rising(middle)), OWN)
    assert abs(math.log(found.rate / OWN) - middle) < 0.25, "two steps of 0.115"
    assert "falls fastest near" in found.reason


@pytest.mark.parametrize("seed", range(10))
def test_batches_that_differ_do_not_mislead(seed):
    found = suggest(curve(falling_then_rising(0.3, noise=0.2, seed=seed)), OWN)
    assert OWN * math.exp(0.3) / 3 < found.rate < OWN * math.exp(0.3) * 3


@given(st.floats(1e-4, 1e4))
def test_the_unit_of_the_rate_does_not_matter(factor):
    points = curve(falling_then_rising(0.2))
    plain, scaled = suggest(points, OWN), suggest([(rate * factor, loss) for rate, loss in points], OWN * factor)
    assert scaled.rate == pytest.approx(plain.rate * factor, rel=0.06), "two digits"


@pytest.mark.parametrize("seed", range(20))
def test_a_loss_that_does_not_fall_keeps_the_recipe(seed):
    random = np.random.default_rng(seed)
    noise = suggest(curve(lambda place: 4.6 + 0.2 * random.normal()), OWN)
    assert noise.rate == OWN and "did not fall" in noise.reason and "recipe's own rate, 0.001, is kept" in noise.reason
    rise = suggest(curve(lambda place: 4.6 + math.exp(place)), OWN)
    assert rise.rate == OWN and "did not fall" in rise.reason


def test_a_loss_that_blows_up_at_once_keeps_the_recipe():
    for points in ([], curve(falling_then_rising(0))[:5]):
        found = suggest(points, OWN)
        assert found.rate == OWN and found.points == points and "blew up" in found.reason


def cell(images=24, **recipe) -> CellConfig:
    return CellConfig(
        DataConfig(dataset="digits", limit_train=images, limit_test=10, evaluate="select"),
        BackboneConfig(),
        MethodConfig("lora", {"dropout": 0.2}),
        TrainConfig(**{"epochs": 3, "warmup_epochs": 1, "batch_size": 6, "lr": 1e-2, "drop_path": 0.1, **recipe}),
        threads=1,
    )


def test_the_same_seed_gives_the_same_answer_and_nothing_is_left_changed():
    torch.manual_seed(7)
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    seen = []
    first = find_rate(cell(), steps=16, progress=lambda done, of: seen.append((done, of)))
    assert torch.equal(torch.get_rng_state(), before) and torch.get_num_threads() == threads
    torch.manual_seed(8)
    second = find_rate(cell(), steps=16)
    assert first == second and seen == [(step, 16) for step in range(1, len(seen) + 1)]
    assert first.points[0][0] == pytest.approx(1e-2 / SPAN)
    other = find_rate(dataclasses.replace(cell(), seed=1), steps=16)
    assert other.points != first.points


def test_two_images_are_enough():
    found = find_rate(cell(images=2), steps=14)
    assert found.rate > 0 and 12 <= len(found.points) <= 14


def test_a_loss_that_is_not_finite_ends_the_test(monkeypatch):
    losses = iter([2.0, 1.9, math.nan, 1.0])
    monkeypatch.setattr(lr_finder, "training_step", lambda *_: next(losses))
    found = find_rate(cell(), steps=20)
    assert [loss for _, loss in found.points] == [2.0, 1.9] and found.rate == 1e-2
    losses = iter([2.0] * 3 + [9.0] + [1.0] * 20)
    assert len(find_rate(cell(), steps=20).points) == 4, "four times the lowest"


@pytest.mark.parametrize("steps", [0, 11, 20.0, True, "60"])
def test_too_few_steps_are_refused(steps):
    with pytest.raises(InputError, match="must be a whole number from 12"):
        find_rate(cell(), steps=steps)
