"""The memory planner: what each branch keeps, so that a budget is met with the least extra work and gradient error.

A choice for one branch has bytes, products that the backward pass does again, and an error. Bytes and products follow
from shapes; errors are measured: one minus the cosine between lean and exact gradients of ViT-B/16 with sharpened
attention when all branches choose alike (docs/lean.md), spread evenly over them. The least sum under the budget is a
multiple-choice knapsack: its linear relaxation is solved exactly, and what is left of the budget filled greedily.
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
"""Bits of a normalised input that q, k and v are computed again from -> error."""
QKV_ERRORS = {8: 3e-3, 10: 2e-4, 12: 2e-5}
"""Bits of q, k, v -> error."""
ACT_ERRORS = {2: 8e-3, 3: 2e-3, 4: 6e-4, 8: 1e-5}
"""Bits of an activation's code -> error."""
HIDDEN_ERRORS = {8: 3e-4, 10: 2e-5, 12: 0.0}
"""Bits of a normalised input that an activation's input is computed again from -> error."""

ERROR_WEIGHT = 100.0
"""What an error of 1 is worth in steps' work: an error of 0.0001 is avoided at up to 1 % more work."""


def error_of(spec: BranchSpec, keep: SavedBits) -> float:
    """One minus cosine, as if all branches chose so."""
    if spec.role == "attn":
        return NORM_ERRORS[keep.norm] + (QKV_ERRORS[keep.inner] if keep.inner else SOURCE_ERRORS[keep.norm])
    if not keep.inner:
        return HIDDEN_ERRORS[keep.norm]
    return NORM_ERRORS[keep.norm] + (0.0 if spec.bits else ACT_ERRORS[keep.inner])


def choices_of(spec: BranchSpec) -> list[SavedBits]:
    """All that a branch can keep."""
    again = [SavedBits(norm, 0) for norm in (8, 10, 12)]
    if spec.role == "attn":
        if spec.fixed:
            return again
        norms = (8, 10) if spec.reads_first else (2, 3, 4)
        return again + [SavedBits(norm, inner) for norm in norms for inner in QKV_ERRORS]
    if spec.reads_last:
        return again
    norms = (4, 8) if spec.reads_first else (2, 3, 4, 8)
    return again + [SavedBits(norm, inner) for norm in norms for inner in ((spec.bits,) if spec.bits else ACT_ERRORS)]


def make_plan(
    specs: Sequence[BranchSpec], now: Sequence[SavedBits], images: int, others: int, budget: int | None
) -> Plan:
    """Chooses for every spec.

    Args:
        specs: In forward order.
        now: What each keeps now.
        images: Batch size.
        others: Bytes of weights and of all that no spec keeps.
        budget: Most bytes of it all; ``None`` leaves everything as it is.

    Raises:
        S2AError: A budget that no choice meets; the message has the smallest that can be met.
    """
    whole = sum(2 * spec.work for spec in specs) or 1.0
    options = [_options(spec, len(specs), images, whole) for spec in specs]
    smallest = others + sum(min(option.nbytes for option in group) for group in options)
    if budget is None:
        chosen = [_Option(keep, spec.nbytes(keep, images), 0.0) for spec, keep in zip(specs, now, strict=True)]
    elif budget < smallest:
        raise S2AError(
            f"A memory budget of {budget / 1e6:,.1f} MB cannot be met with {images} images: weights take part of it, "
            f"and the smallest that can be planned is {-(-smallest // 10**5) / 10:,.1f} MB; give that or more, or "
            "fewer images."
        )
    else:
        chosen = _knapsack(options, budget - others)
    keeps = [option.saved_bits for option in chosen]
    return Plan(
        {(spec.name, spec.role): keep for spec, keep in zip(specs, keeps, strict=True)},
        images,
        budget,
        others + sum(option.nbytes for option in chosen),
        smallest,
        sum(spec.recomputed_work(keep) for spec, keep in zip(specs, keeps, strict=True)) / whole,
        sum(error_of(spec, keep) for spec, keep in zip(specs, keeps, strict=True)) / max(1, len(specs) // 2),
    )


MIN_SAVING = 5.0
"""Percents of kept bytes that one percent more products must save, without a budget."""


def recompute_where_cheap(specs: Sequence[BranchSpec], keeps: Sequence[SavedBits]) -> list[SavedBits]:
    """Without a budget: an activation is computed again where that is cheap for the bytes that it saves.

    Tokens make bytes, channels make products: it is so in the first stage of pyramids, and nowhere in a ViT, whatever
    its size.

    Args:
        specs: All branches.
        keeps: What each keeps.
    """
    total = sum(spec.nbytes(keep, 1) for spec, keep in zip(specs, keeps, strict=True))
    whole = sum(2 * spec.work for spec in specs)
    again = SavedBits(8, 0)
    found = []
    for spec, keep in zip(specs, keeps, strict=True):
        less = spec.nbytes(keep, 1) - spec.nbytes(again, 1)
        coded = spec.role == "mlp" and keep.inner > 0
        found.append(again if coded and less * whole > MIN_SAVING * spec.recomputed_work(again) * total else keep)
    return found


@dataclasses.dataclass(frozen=True)
class _Option:
    saved_bits: SavedBits
    nbytes: int
    cost: float


def _options(spec: BranchSpec, count: int, images: int, whole: float) -> list[_Option]:
    """A spec's choices that no other beats in both bytes and cost, the smallest first."""
    found = []
    for keep in choices_of(spec):
        cost = spec.recomputed_work(keep) / whole + ERROR_WEIGHT * error_of(spec, keep) / count
        found.append(_Option(keep, spec.nbytes(keep, images), cost))
    found.sort(key=lambda option: (option.nbytes, option.cost))
    front: list[_Option] = []
    for option in found:
        if not front or option.cost < front[-1].cost:
            front.append(option)
    return front


def _knapsack(options: Sequence[Sequence[_Option]], room: int) -> list[_Option]:
    """The least total cost in ``room`` bytes, up to what a single change could still gain."""

    def at(price: float) -> list[_Option]:
        return [min(group, key=lambda o: o.cost + price * o.nbytes) for group in options]

    def size(chosen: Sequence[_Option]) -> int:
        return sum(option.nbytes for option in chosen)

    low, high = 0.0, 1e-12
    while size(at(high)) > room:
        high *= 4
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size(at(middle)) > room else (low, middle)
    chosen = at(high)
    left = room - size(chosen)
    while True:  # The relaxation leaves less than one change; take the best of those that fit, again and again.
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
