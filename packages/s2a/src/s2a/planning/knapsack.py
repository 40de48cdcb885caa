"""The memory planner: what each branch keeps, so that a budget is met with the least extra work and gradient error.

A choice for one branch has bytes, products that the backward pass repeats, and an error. Bytes and products follow
from shapes; errors are measured: one minus the cosine between lean and exact gradients of ViT-B/16 with sharpened
attention when all branches choose alike (docs/lean.md), spread evenly over them. The least sum

    cost = repeated products / a step's products + ERROR_WEIGHT * error / number of branches

under the budget is a multiple-choice knapsack problem (``_knapsack``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from s2a.errors import S2AError
from s2a.lean.plan import Plan
from s2a.lean.spec import BranchSpec, SavedBits

NORM_ERRORS = {2: 7e-4, 3: 2e-4, 4: 5e-5, 8: 1e-6, 10: 0.0, 12: 0.0}
"""Bits of a normalised input that only the norm's own gradient is made of -> error."""
SOURCE_ERRORS = {8: 4e-3, 10: 2.5e-4, 12: 2e-5}
"""Bits of a normalised input from which q, k and v are recomputed -> error."""
QKV_ERRORS = {8: 3e-3, 10: 2e-4, 12: 2e-5}
"""Bits of q, k, v -> error."""
ACT_ERRORS = {2: 8e-3, 3: 2e-3, 4: 6e-4, 8: 1e-5}
"""Bits of an activation's code -> error."""
HIDDEN_ERRORS = {8: 3e-4, 10: 2e-5, 12: 0.0}
"""Bits of a normalised input from which an activation's input is recomputed -> error."""

ERROR_WEIGHT = 100.0
"""Cost of an error of 1, in steps' work: an error of 0.0001 is avoided at up to 1 % more work."""


def error_of(spec: BranchSpec, bits: SavedBits) -> float:
    """Estimated one minus cosine of the gradients, if all branches chose so."""
    if spec.role == "attn":
        return NORM_ERRORS[bits.norm] + (QKV_ERRORS[bits.inner] if bits.inner else SOURCE_ERRORS[bits.norm])
    if not bits.inner:
        return HIDDEN_ERRORS[bits.norm]
    return NORM_ERRORS[bits.norm] + (0.0 if spec.bits else ACT_ERRORS[bits.inner])


def choices_of(spec: BranchSpec) -> list[SavedBits]:
    """Everything that a branch can keep: no coarse codes of the norm where a weight's gradient is made of them."""
    recomputed = [SavedBits(norm, 0) for norm in (8, 10, 12)]
    if spec.role == "attn":
        if spec.fixed:
            return recomputed
        norms = (8, 10) if spec.reads_first else (2, 3, 4)
        return recomputed + [SavedBits(norm, inner) for norm in norms for inner in QKV_ERRORS]
    if spec.reads_last:
        return recomputed
    norms = (4, 8) if spec.reads_first else (2, 3, 4, 8)
    return recomputed + [
        SavedBits(norm, inner) for norm in norms for inner in ((spec.bits,) if spec.bits else ACT_ERRORS)
    ]


def make_plan(
    specs: Sequence[BranchSpec], now: Sequence[SavedBits], images: int, others: int, budget: int | None
) -> Plan:
    """Chooses what every branch keeps.

    Args:
        specs: Of the branches, in forward order.
        now: What each keeps now.
        images: Batch size.
        others: Bytes of weights and of all that no branch keeps.
        budget: Most bytes of it all; ``None`` leaves everything as it is.

    Returns:
        The plan, with its bytes, extra work and estimated error.

    Raises:
        S2AError: A budget that no choice meets; the message has the smallest that can be met.
    """
    # A step's products: forward, and as many for the gradients of inputs.
    whole = sum(2 * spec.work for spec in specs) or 1.0
    options = [_options(spec, len(specs), images, whole) for spec in specs]
    smallest = others + sum(min(option.nbytes for option in group) for group in options)
    if budget is None:
        chosen = [_Option(bits, spec.nbytes(bits, images), 0.0) for spec, bits in zip(specs, now, strict=True)]
    elif budget < smallest:
        raise S2AError(
            f"A saved_budget_mb of {budget / 1e6:,.1f} MB cannot be met with {images} images: weights take part of "
            f"it, and the smallest that can be planned is {-(-smallest // 10**5) / 10:,.1f} MB; give that or more, or "
            "fewer images (budget_batch)."
        )
    else:
        chosen = _knapsack(options, budget - others)
    saved_bits = [option.saved_bits for option in chosen]
    return Plan(
        {(spec.name, spec.role): bits for spec, bits in zip(specs, saved_bits, strict=True)},
        images,
        budget,
        others + sum(option.nbytes for option in chosen),
        smallest,
        sum(spec.recomputed_work(bits) for spec, bits in zip(specs, saved_bits, strict=True)) / whole,
        sum(error_of(spec, bits) for spec, bits in zip(specs, saved_bits, strict=True)) / max(1, len(specs) // 2),
    )


MIN_SAVING = 5.0
"""Without a budget: percent of kept bytes that one percent more products must save."""


def recompute_where_cheap(specs: Sequence[BranchSpec], now: Sequence[SavedBits]) -> list[SavedBits]:
    """Without a budget: recomputes an activation where that is cheap for the bytes that it saves.

    For N tokens of C channels bytes are proportional to N C and products to N C^2, so this pays where C is small: in
    the first stage of hierarchical models, and nowhere in a ViT.

    Args:
        specs: All branches.
        now: What each keeps now.
    """
    total = sum(spec.nbytes(bits, 1) for spec, bits in zip(specs, now, strict=True))
    whole = sum(2 * spec.work for spec in specs)
    recomputed = SavedBits(8, 0)
    found = []
    for spec, bits in zip(specs, now, strict=True):
        less = spec.nbytes(bits, 1) - spec.nbytes(recomputed, 1)
        coded = spec.role == "mlp" and bits.inner > 0
        found.append(
            recomputed if coded and less * whole > MIN_SAVING * spec.recomputed_work(recomputed) * total else bits
        )
    return found


@dataclasses.dataclass(frozen=True)
class _Option:
    """One thing that a branch can keep, with its bytes and its cost."""

    saved_bits: SavedBits
    nbytes: int
    cost: float


def _options(spec: BranchSpec, count: int, images: int, whole: float) -> list[_Option]:
    """A branch's Pareto-optimal choices: none of the others has fewer bytes and less cost. The smallest first."""
    found = []
    for bits in choices_of(spec):
        cost = spec.recomputed_work(bits) / whole + ERROR_WEIGHT * error_of(spec, bits) / count
        found.append(_Option(bits, spec.nbytes(bits, images), cost))
    found.sort(key=lambda option: (option.nbytes, option.cost))
    front: list[_Option] = []
    for option in found:
        if not front or option.cost < front[-1].cost:
            front.append(option)
    return front


def _knapsack(options: Sequence[Sequence[_Option]], room: int) -> list[_Option]:
    """One option per branch with the least total cost in ``room`` bytes, up to what a single change could still gain.

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11)

        minimise  sum_i cost_i(x_i)  subject to  sum_i bytes_i(x_i) <= room,   x_i one of branch i's options

    is solved by Lagrangian relaxation. With a price p >= 0 of a byte, the sum of cost + p bytes is least when every
    branch takes its own cheapest option, so the solution for a given price needs no search. Its bytes fall as the price
    rises; bisection finds the least price at which they fit. What is left of the room is filled greedily.

    Args:
        options: Of each branch, those of ``_options``.
        room: Bytes that all branches may keep together; enough for the smallest option of each.
    """

    def cheapest_at(price: float) -> list[_Option]:
        return [min(group, key=lambda o: o.cost + price * o.nbytes) for group in options]

    def size(chosen: Sequence[_Option]) -> int:
        return sum(option.nbytes for option in chosen)

    # 1. A price that is high enough for the plan to fit.
    low, high = 0.0, 1e-12
    while size(cheapest_at(high)) > room:
        high *= 4
    # 2. Bisection: the solution at ``high`` always fits, the one at ``low`` does not.
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size(cheapest_at(middle)) > room else (low, middle)
    chosen = cheapest_at(high)
    left = room - size(chosen)
    # 3. Greedy: of the single changes that fit in what is left, the one with the most cost saved per byte; repeat.
    while True:
        best, gain = None, 0.0
        for i, group in enumerate(options):
            for option in group:
                more, less = option.nbytes - chosen[i].nbytes, chosen[i].cost - option.cost
                if more <= left and less > 0 and (best is None or less / max(more, 1) > gain):
                    best, gain = (i, option), less / max(more, 1)
        if best is None:
            return chosen
        i, option = best
        left -= option.nbytes - chosen[i].nbytes
        chosen[i] = option
