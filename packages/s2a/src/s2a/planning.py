"""Plans what an adapted model's lean branches keep: without a budget what is there, under one the least costly choice."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from s2a.backbones import input_channels
from s2a.lean import Branch, Plan, plan_saved, set_plan
from s2a.memory import saved_bytes

if TYPE_CHECKING:
    from s2a.attach import Adapted


def plan_for(adapted: Adapted, branches: tuple[Branch, ...]) -> Plan:
    """Plans and sets what the fused branches of an adapted model keep, as its config asks.

    Raises:
        S2AError: A budget that cannot be met; the message has the smallest that can be planned.
    """
    options = adapted.config
    reference = next(adapted.backbone.parameters())
    shape = (input_channels(adapted.backbone), *adapted.image_size)

    def saved(batch: int) -> dict[str, int]:
        return saved_bytes(adapted, torch.zeros(batch, *shape, device=reference.device, dtype=reference.dtype))

    def plan(budget: int | None) -> Plan:
        found = plan_saved(adapted, branches, saved, options.budget_batch, budget)
        set_plan(branches, found)
        return found

    modes = {module: module.training for module in adapted.modules()}
    buffers = {name: value.clone() for name, value in adapted.named_buffers()}
    try:
        adapted.train()
        return plan(None if options.memory_budget_mb is None else int(options.memory_budget_mb * 1e6))
    finally:
        for module, mode in modes.items():
            module.training = mode
        for name, value in adapted.named_buffers():
            value.copy_(buffers[name])  # Batch norms count what they see.
