"""Plans what the lean branches of an adapted model keep: under a budget, the least costly choice."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch

from s2a.adapted import Adapted
from s2a.backbones import input_channels
from s2a.errors import S2AError
from s2a.lean.options import parse_size
from s2a.lean.plan import Plan
from s2a.memory import saved_bytes, simulated_peak
from s2a.planning.knapsack import make_plan
from s2a.planning.survey import measure_specs, set_plan

MAX_TRIES = 5
"""Plans simulated for a peak budget, at most."""
TOLERANCE = 0.01
"""The search for a peak ends this share of the budget below it."""


def plan_memory(
    adapted: Adapted, budget_mb: float | None = None, *, budget: str | None = None, batch_size: int = 32
) -> Plan:
    """Chooses what lean activations keep, block by block, so that a budget is met at the least cost; in place.

    The cost is repeated work and gradient error (``planning.knapsack``). Call it under the autocast and with the
    weights (``s2a.cast_frozen``) that the model will train with. Takes two forward passes of few images, and for a peak
    some simulated steps.

    Args:
        adapted: A model attached with ``activations="lean"``.
        budget_mb: Most that weights and saved tensors may take, in MB of 1e6 bytes.
        budget: Instead, most that a whole training step with AdamW may take at its peak (``s2a.simulated_peak``),
            ``"8GiB"`` for example. With neither, nothing is changed: the plan says what is kept now.
        batch_size: Images per step.

    Returns:
        The plan; ``print`` shows it.

    Raises:
        S2AError: A model without lean branches, or a budget that cannot be met; the message has the smallest that can.
    """
    branches = adapted._branches
    if not branches:
        raise S2AError(
            f"This model under {adapted.name!r} has no lean branches to plan; attach it with activations='lean' to a "
            "backbone that trains."
        )
    reference = next(adapted.head.parameters())
    shape = (input_channels(adapted.backbone), *adapted.image_size)

    def saved(batch: int) -> dict[str, int]:
        return saved_bytes(adapted, torch.zeros(batch, *shape, device=reference.device, dtype=reference.dtype))

    # Measured in training mode; modes, and buffers that a forward pass changes, are put back in any case.
    modes = {module: module.training for module in adapted.modules()}
    buffers = {name: value.clone() for name, value in adapted.named_buffers()}
    before = [branch.saved_bits for branch in branches]
    try:
        adapted.train()
        specs, others = measure_specs(adapted, branches, saved, batch_size)

        def plan(most: int | None) -> Plan:
            found = make_plan(specs, before, batch_size, others, most)
            set_plan(branches, found)
            return found

        if budget is None:
            found = plan(None if budget_mb is None else int(budget_mb * 1e6))
        else:
            found = _plan_for_peak(
                plan, lambda: simulated_peak(adapted, batch_size).total, parse_size(budget), batch_size
            )
    except S2AError:
        for branch, keep in zip(branches, before, strict=True):
            branch.saved_bits = keep
        raise
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, value in adapted.named_buffers():
            value.copy_(buffers[name])  # Batch norms count what they see.
    adapted._plan = found
    return found


def _plan_for_peak(plan: Callable[[int | None], Plan], peak: Callable[[], int], budget: int, batch_size: int) -> Plan:
    """The plan whose simulated peak comes closest to a budget from below.

    Saved bytes and peak move together, but not byte for byte, so this is a fixed-point iteration: a plan is made for
    ``aim`` saved bytes, its step simulated, and ``aim`` corrected by how far the peak was from the budget.
    """
    # Start from what is kept now.
    found = plan(None)
    least = found.smallest
    aim, best, top = found.predicted, None, 0
    for _ in range(MAX_TRIES):
        found = plan(max(aim, least))
        top = peak()
        if top <= budget and (best is None or found.predicted > best.predicted):
            best = dataclasses.replace(found, peak=top)
        if 0 <= budget - top < TOLERANCE * budget or (top > budget and found.predicted <= least * 1.001):
            break
        aim = found.predicted + budget - top
    if best is None:
        raise S2AError(
            f"A peak of {budget / 1e6:,.1f} MB cannot be met with {batch_size} images: a step of the smallest plan "
            f"takes {top / 1e6:,.1f} MB; give that or more, or fewer images."
        )
    plan(best.predicted)  # Apply it once more: the last one tried may have been another.
    return best
