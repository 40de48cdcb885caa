"""The memory planner by itself: budgets are kept, and a larger one never costs more."""

from __future__ import annotations

import itertools
import re
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import s2a
import tiny
import torch
from s2a.lean import SavedBits
from s2a.lean.spec import BranchSpec
from s2a.planning import Plan
from s2a.planning.knapsack import ERROR_WEIGHT, FLOOR, choices_of, error_of, make_plan

WEIGHTS = 10_000
"""Bytes that no site keeps, in the planner's own tests."""


@st.composite
def sites(draw: Any, most: int = 6) -> list[BranchSpec]:
    """Branches of all kinds and sizes."""
    found = []
    for i in range(draw(st.integers(1, most))):
        role = draw(st.sampled_from(["attn", "mlp"]))
        channels = draw(st.sampled_from([32, 48, 64, 384]))
        inner = channels * (3 if role == "attn" else 4)
        tokens = draw(st.integers(1, 200))
        flags = {name: draw(st.booleans()) for name in ("reads_first", "reads_last", "fixed")}
        bits = draw(st.sampled_from([0, 1])) if role == "mlp" else 0
        found.append(
            BranchSpec(f"blocks.{i}", role, tokens, channels, inner, draw(st.integers(1, tokens)), bits, **flags)
        )
    return found


def start(site: BranchSpec) -> SavedBits:
    """Any choice without a budget."""
    return choices_of(site)[0]


def planned(chosen: list[BranchSpec], images: int, others: int, budget: int | None) -> Plan:
    """A plan, from any start."""
    return make_plan(chosen, [start(site) for site in chosen], images, others, budget)


def weights(chosen: list[BranchSpec]) -> list[float]:
    """Shares of the branches in the error of all: l of the blocks 1 to L weighs 2 l / (L (L + 1))."""
    names = list(dict.fromkeys(site.name for site in chosen))
    return [(names.index(site.name) + 1) / sum(range(len(names) + 1)) for site in chosen]


def cost(chosen: list[BranchSpec], plan: Plan) -> float:
    """What the planner minimises, from its definition: extra products over all products, and the weighted error."""
    whole = sum(2 * site.work for site in chosen)
    keeps = [plan.saved_bits[site.name, site.role] for site in chosen]
    again = sum(site.recomputed_work(keep) for site, keep in zip(chosen, keeps, strict=True)) / whole
    errors = [error_of(s, k) * w for s, k, w in zip(chosen, keeps, weights(chosen), strict=True)]
    assert plan.error == pytest.approx(FLOOR + sum(errors))
    return again + ERROR_WEIGHT * sum(errors)


def nbytes(chosen: list[BranchSpec], plan: Plan, images: int) -> int:
    """Bytes of a plan."""
    return WEIGHTS + sum(site.nbytes(plan.saved_bits[site.name, site.role], images) for site in chosen)


@hypothesis.given(sites(), st.integers(1, 64), st.floats(0, 1))
def test_a_plan_stays_in_its_budget(chosen: list[BranchSpec], images: int, share: float) -> None:
    smallest = planned(chosen, images, WEIGHTS, None).smallest
    largest = WEIGHTS + sum(max(s.nbytes(k, images) for k in choices_of(s)) for s in chosen)
    budget = int(smallest + share * (largest - smallest))
    plan = planned(chosen, images, WEIGHTS, budget)
    assert plan.predicted == nbytes(chosen, plan, images) <= budget
    assert all(plan.saved_bits[s.name, s.role] in choices_of(s) for s in chosen)
    assert plan.smallest == smallest
    assert f"{images} images" in str(plan)
    assert sum(int(n) for n in re.findall(r"^ +(\d+) x", str(plan), re.MULTILINE)) == len(chosen)


@hypothesis.given(sites(), st.integers(1, 64), st.floats(0, 1), st.floats(0, 1))
def test_a_larger_budget_costs_no_more_than_a_change(
    chosen: list[BranchSpec], images: int, one: float, other: float
) -> None:
    """The greedy rest may place one change differently; never more than that."""
    smallest = planned(chosen, images, WEIGHTS, None).smallest
    largest = WEIGHTS + sum(max(s.nbytes(k, images) for k in choices_of(s)) for s in chosen)
    low, high = (int(smallest + share * (largest - smallest)) for share in sorted((one, other)))
    less, more = (planned(chosen, images, WEIGHTS, budget) for budget in (low, high))
    assert cost(chosen, more) <= cost(chosen, less) + largest_gain(chosen, images)


def front(site: BranchSpec, images: int) -> list[SavedBits]:
    """Choices that no other beats in both bytes and cost, the smallest first."""
    return [
        keep
        for keep in choices_of(site)
        if not any(
            site.nbytes(o, images) <= site.nbytes(keep, images)
            and (site.recomputed_work(o), error_of(site, o)) != (site.recomputed_work(keep), error_of(site, keep))
            and site.recomputed_work(o) <= site.recomputed_work(keep)
            and error_of(site, o) <= error_of(site, keep)
            for o in choices_of(site)
        )
    ]


def largest_gain(chosen: list[BranchSpec], images: int) -> float:
    """The most that a change of one site can be worth."""
    whole = sum(2 * site.work for site in chosen)

    def of(site: BranchSpec, keep: SavedBits, weight: float) -> float:
        return site.recomputed_work(keep) / whole + ERROR_WEIGHT * error_of(site, keep) * weight

    pairs = zip(chosen, weights(chosen), strict=True)
    spans = [[of(site, keep, weight) for keep in front(site, images)] for site, weight in pairs]
    return max(max(span) - min(span) for span in spans)


@hypothesis.given(sites(most=3), st.integers(1, 8), st.floats(0, 1))
def test_no_plan_is_better_by_more_than_a_change(chosen: list[BranchSpec], images: int, share: float) -> None:
    """Brute force over all choices of up to three sites."""
    smallest = planned(chosen, images, WEIGHTS, None).smallest
    largest = WEIGHTS + sum(max(s.nbytes(k, images) for k in choices_of(s)) for s in chosen)
    budget = int(smallest + share * (largest - smallest))
    plan = planned(chosen, images, WEIGHTS, budget)
    whole = sum(2 * site.work for site in chosen)
    options = [
        [
            (s.nbytes(k, images), s.recomputed_work(k) / whole + ERROR_WEIGHT * error_of(s, k) * w)
            for k in front(s, images)
        ]
        for s, w in zip(chosen, weights(chosen), strict=True)
    ]
    best = min(
        sum(c for _, c in combination)
        for combination in itertools.product(*options)
        if WEIGHTS + sum(size for size, _ in combination) <= budget
    )
    assert best - 1e-9 <= cost(chosen, plan) <= best + largest_gain(chosen, images)


@hypothesis.given(sites(), st.integers(1, 64))
def test_the_smallest_is_met_and_no_less(chosen: list[BranchSpec], images: int) -> None:
    by_hand = WEIGHTS + sum(min(s.nbytes(k, images) for k in choices_of(s)) for s in chosen)
    assert planned(chosen, images, WEIGHTS, by_hand).predicted == by_hand
    with pytest.raises(s2a.S2AError, match="cannot be met") as refused:
        planned(chosen, images, WEIGHTS, by_hand - 1)
    named = float(re.search(r"planned is ([\d,.]+) MB", str(refused.value))[1].replace(",", ""))  # type: ignore[index]
    assert planned(chosen, images, WEIGHTS, int(named * 1e6)).predicted <= named * 1e6


def test_without_a_limit_the_exactest_and_least_work_is_chosen() -> None:
    chosen = [BranchSpec("a", "attn", 50, 64, 192, 50), BranchSpec("a", "mlp", 50, 64, 256, 50)]
    plan = planned(chosen, 4, 0, 10**9)
    for site in chosen:
        own = plan.saved_bits[site.name, site.role]
        mine = site.recomputed_work(own) / 2 / sum(s.work for s in chosen) + ERROR_WEIGHT * error_of(site, own)
        for keep in choices_of(site):
            assert mine <= site.recomputed_work(keep) / 2 / sum(s.work for s in chosen) + ERROR_WEIGHT * error_of(
                site, keep
            )


# Without a budget


def attach(**options: Any) -> Any:
    config = s2a.S2AConfig(lrp_rank=4, activations="lean", **options)
    return s2a.attach(tiny.vit(), config, 3, image_size=32)


def test_a_budget_that_needs_it_pages_the_frozen_weights() -> None:
    adapted = attach()
    smallest = s2a.plan_memory(adapted, batch_size=4).smallest
    plan = s2a.plan_memory(adapted, saved_budget_mb=(smallest - 1000) / 1e6, batch_size=4)
    assert plan.paged == s2a.host_bytes(adapted) > 0 and "frozen weights paged" in str(plan)
    assert plan.predicted <= smallest - 1000


def test_a_budget_with_room_takes_paging_back() -> None:
    adapted = attach()
    state = {name: value.clone() for name, value in adapted.state_dict().items()}
    smallest = s2a.plan_memory(adapted, batch_size=4).smallest
    s2a.plan_memory(adapted, saved_budget_mb=(smallest - 1000) / 1e6, batch_size=4)
    assert s2a.host_bytes(adapted) > 0
    plan = s2a.plan_memory(adapted, saved_budget_mb=100, batch_size=4)
    assert plan.paged == 0 == s2a.host_bytes(adapted)
    assert all(torch.equal(value, state[name]) for name, value in adapted.state_dict().items())


def test_weights_that_somebody_paged_stay_paged() -> None:
    adapted = attach()
    s2a.page_frozen(adapted)
    s2a.plan_memory(adapted, saved_budget_mb=100, batch_size=4)
    assert s2a.host_bytes(adapted) > 0


def test_a_budget_below_paged_weights_leaves_the_model_as_it_was() -> None:
    adapted = attach()
    before = [branch.saved_bits for branch in adapted._branches]
    with pytest.raises(s2a.S2AError, match="smallest that can be planned is"):
        s2a.plan_memory(adapted, saved_budget_mb=0.001, batch_size=4)
    assert s2a.host_bytes(adapted) == 0
    assert [branch.saved_bits for branch in adapted._branches] == before


def test_a_refused_budget_leaves_a_paged_plan_as_it_was() -> None:
    adapted = attach()
    smallest = s2a.plan_memory(adapted, batch_size=4).smallest
    plan = s2a.plan_memory(adapted, saved_budget_mb=(smallest - 1000) / 1e6, batch_size=4)
    bits = [branch.saved_bits for branch in adapted._branches]
    with pytest.raises(s2a.S2AError, match="cannot be met"):
        s2a.plan_memory(adapted, saved_budget_mb=0.001, batch_size=4)
    assert s2a.host_bytes(adapted) == plan.paged > 0 and adapted.plan == plan
    assert [branch.saved_bits for branch in adapted._branches] == bits
    assert s2a.plan_memory(adapted, batch_size=4).paged == plan.paged  # Asked for without a budget.
