"""The memory planner: what each branch keeps, so that a budget is met with the least extra work and gradient error.

A choice for one branch has bytes, products that the backward pass repeats, and an error. Bytes and products follow
from shapes; errors are measured on trained weights: one minus the cosine between lean and exact gradients of a DINOv2
ViT-S/14 when all branches of a role choose alike (``benchmarks/plan_errors.py``, docs/lean.md). Errors of branches add
up, and an error in block l reaches the gradients of blocks 1 to l, so that the share of block l of L is

    w_l = 2 l / (L (L + 1)),    error of a plan = FLOOR + sum over branches of w_l * error of its choice

The least sum

    cost = time of repeated products / time of a step's products + ERROR_WEIGHT * w_l * error of the choice

under the budget is a multiple-choice knapsack problem (``_knapsack``).
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

from s2a.errors import S2AError
from s2a.lean.plan import Plan
from s2a.lean.spec import BranchSpec, SavedBits

NORM_ERRORS = {2: 1.3e-2, 3: 2.3e-3, 4: 2.7e-4, 8: 2e-6, 10: 0.0, 12: 0.0}
"""Bits of a normalised input that only the norm's own gradient is made of -> error."""
SOURCE_ERRORS = {8: 3.4e-4, 10: 2e-5, 12: 1.5e-6}
"""Bits of a normalised input from which q, k and v are recomputed -> error."""
QKV_ERRORS = {8: 5.5e-4, 10: 3e-5, 12: 2e-6}
"""Bits of q, k, v -> error."""
ACT_ERRORS = {2: 5.8e-2, 3: 2.2e-2, 4: 3.3e-3, 8: 1e-5, 32: 0.0}
"""Bits of an activation's code, or 32 for its input as it is -> error."""
HIDDEN_ERRORS = {8: 9e-5, 10: 5.5e-6, 12: 5e-7}
"""Bits of a normalised input from which an activation's input is recomputed -> error."""
BLOCK_ERRORS = {8: 4.1e-4, 10: 2e-5, 12: 1e-6}
"""Bits of a block's input from which the whole block is computed again -> error."""
NARROW_ERRORS = {"attn": 1.5e-4, "mlp": 5e-6, "block": 3e-4}
"""What is computed again, if it is multiplied in bfloat16 -> error beside that of the codes."""
NARROW_WORK = 0.5
"""Time of a product in bfloat16, of one in float32."""
FLOOR = 1e-5
"""What is left when every branch keeps 12 bits: the last norm's 8 bits and other layers."""


class BudgetTooSmall(S2AError):
    """No plan meets the budget."""


ERROR_WEIGHT = 100.0
"""Cost of an error of 1, in steps' work: an error of 0.0001 is avoided at up to 1 % more work."""


def error_of(spec: BranchSpec, bits: SavedBits) -> float:
    """Estimated one minus cosine of the gradients, if all branches of the role chose so."""
    if bits.block:  # Counted once, with the attention.
        return BLOCK_ERRORS[bits.block] + _narrow(spec, "block") if spec.role == "attn" else 0.0
    if spec.role == "attn":
        again = 0.0 if bits.inner else SOURCE_ERRORS[bits.norm] + _narrow(spec, "attn")
        return NORM_ERRORS[bits.norm] + (QKV_ERRORS[bits.inner] if bits.inner else again)
    if not bits.inner:
        return HIDDEN_ERRORS[bits.norm] + _narrow(spec, "mlp")
    return NORM_ERRORS[bits.norm] + (0.0 if spec.bits else ACT_ERRORS[bits.inner])


def _narrow(spec: BranchSpec, what: str) -> float:
    return NARROW_ERRORS[what] if spec.narrow else 0.0


def depth_weights(specs: Sequence[BranchSpec]) -> list[float]:
    """Each branch's share w_l of the error of all branches of its role, by the place of its block."""
    blocks = {name: place for place, name in enumerate(dict.fromkeys(spec.name for spec in specs), 1)}
    return [2 * blocks[spec.name] / (len(blocks) * (len(blocks) + 1)) for spec in specs]


def plan_error(specs: Sequence[BranchSpec], keeps: Sequence[SavedBits]) -> float:
    """Estimated one minus cosine of the gradients under a plan.

    Args:
        specs: Of the branches, in forward order.
        keeps: What each keeps.
    """
    pairs = zip(depth_weights(specs), specs, keeps, strict=True)
    return FLOOR + sum(weight * error_of(spec, bits) for weight, spec, bits in pairs)


def choices_of(spec: BranchSpec) -> list[SavedBits]:
    """Everything that a branch can keep: no coarse codes of the norm where a weight's gradient is made of them."""
    recomputed = [SavedBits(norm, 0) for norm in (8, 10, 12)]
    if spec.role == "attn":
        if spec.fixed:
            return recomputed
        norms = (8, 10) if spec.reads_first else (2, 3, 4)
        return recomputed + [SavedBits(norm, inner) for norm in norms for inner in QKV_ERRORS]
    if spec.reads_last:
        return [*recomputed, *(SavedBits(norm, 32) for norm in (8, 10))]
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
    whole = _whole_work(specs)
    blocks = _blocks_of(specs)
    weights = depth_weights(specs)
    options = [_options([specs[i] for i in block], weights[block[0]], images, whole) for block in blocks]
    smallest = others + sum(min(option.nbytes for option in group) for group in options)
    if budget is None:
        chosen = [
            _Option(tuple(now[i] for i in block), sum(specs[i].nbytes(now[i], images) for i in block), 0.0)
            for block in blocks
        ]
    elif budget < smallest:
        raise BudgetTooSmall(
            f"A saved_budget_mb of {budget / 1e6:,.1f} MB cannot be met with {images} images: weights take part of "
            f"it, and the smallest that can be planned is {-(-smallest // 10**5) / 10:,.1f} MB; give that or more, or "
            "fewer images (budget_batch)."
        )
    else:
        chosen = _knapsack(options, budget - others)
    saved_bits = [bits for option in chosen for bits in option.saved_bits]
    return Plan(
        {(spec.name, spec.role): bits for spec, bits in zip(specs, saved_bits, strict=True)},
        images,
        budget,
        others + sum(option.nbytes for option in chosen),
        smallest,
        sum(spec.recomputed_work(bits) for spec, bits in zip(specs, saved_bits, strict=True)) / whole,
        plan_error(specs, saved_bits),
        cost=cost_of(specs, saved_bits),
    )


def _blocks_of(specs: Sequence[BranchSpec]) -> list[list[int]]:
    """Numbers of the branches of each block, in forward order."""
    return [list(group) for _, group in itertools.groupby(range(len(specs)), key=lambda i: specs[i].name)]


@dataclasses.dataclass(frozen=True)
class _Option:
    """One thing that the branches of a block can keep, with its bytes and its cost."""

    saved_bits: tuple[SavedBits, ...]
    nbytes: int
    cost: float


def _cost(spec: BranchSpec, bits: SavedBits, weight: float, whole: float) -> float:
    """Cost of one branch's choice, as in the equation above."""
    again = spec.recomputed_work(bits) * (NARROW_WORK if spec.narrow else 1) / whole
    return again + ERROR_WEIGHT * weight * error_of(spec, bits)


def cost_of(specs: Sequence[BranchSpec], keeps: Sequence[SavedBits]) -> float:
    """Cost of a plan: repeated products, as a share of a step's, and gradient error.

    Args:
        specs: Of the branches, in forward order.
        keeps: What each keeps.
    """
    weighted = zip(specs, keeps, depth_weights(specs), strict=True)
    whole = _whole_work(specs)
    return sum(_cost(spec, bits, weight, whole) for spec, bits, weight in weighted)


def _whole_work(specs: Sequence[BranchSpec]) -> float:
    """A step's products: forward, and as many for the gradients of inputs."""
    return sum(2 * spec.work for spec in specs) or 1.0


def _options(block: Sequence[BranchSpec], weight: float, images: int, whole: float) -> list[_Option]:
    """A block's Pareto-optimal choices: none of the others has fewer bytes and less cost. The smallest first.

    What its branches keep each, in all combinations; or the block's input, where it has an attention and an MLP that
    both run on all tokens (``BranchSpec.block_saves``).
    """
    every = list(itertools.product(*map(choices_of, block)))
    if any(spec.block_saves is not None for spec in block):
        every += [(SavedBits(10, 0, bits),) * 2 for bits in BLOCK_ERRORS]  # 10: where a run cannot be done again.
    found = []
    for choice in every:
        pairs = list(zip(block, choice, strict=True))
        cost = sum(_cost(spec, bits, weight, whole) for spec, bits in pairs)
        found.append(_Option(choice, sum(spec.nbytes(bits, images) for spec, bits in pairs), cost))
    found.sort(key=lambda option: (option.nbytes, option.cost))
    front: list[_Option] = []
    for option in found:
        if not front or option.cost < front[-1].cost:
            front.append(option)
    return front


def _knapsack(options: Sequence[Sequence[_Option]], room: int) -> list[_Option]:
    """One option per block with the least total cost in ``room`` bytes, up to what a single change could still gain.

    The multiple-choice knapsack (Kellerer, Pferschy and Pisinger, Knapsack Problems, 2004, chapter 11)

        minimise  sum_i cost_i(x_i)  subject to  sum_i bytes_i(x_i) <= room,   x_i one of block i's options

    is solved by Lagrangian relaxation. With a price p >= 0 of a byte, the sum of cost + p bytes is least when every
    block takes its own cheapest option, so the solution for a given price needs no search. Its bytes fall as the price
    rises; bisection finds the least price at which they fit. What is left of the room is filled greedily.

    Args:
        options: Of each block, those of ``_options``.
        room: Bytes that all blocks may keep together; enough for the smallest option of each.
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
