"""A memory budget for an adapted model: the plan that meets it, set in its branches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from s2a.lean.fused import Branch
from s2a.lean.plan import Plan, make_plan


def set_plan(branches: tuple[Branch, ...], plan: Plan) -> None:
    """Lets every branch keep what a plan says."""
    for branch in branches:
        branch.keep = plan.keeps[branch.block.name, branch.role]


def plan_saved(
    model: nn.Module, branches: tuple[Branch, ...], saved: Callable[[int], int], images: int, budget: int | None
) -> Plan:
    """The plan under which weights and saved tensors of a step stay in a budget.

    Args:
        model: The whole adapted model.
        branches: Its fused branches.
        saved: Batch size to the bytes that autograd holds, as the model is.
        images: Batch size of the plan.
        budget: Bytes; ``None``: what the branches keep now.

    Raises:
        S2AError: A budget that cannot be met.
    """
    sites = [branch.site for branch in branches]
    now: dict[Any, Any] = {(b.block.name, b.role): b.keep for b in branches}

    def rest(batch: int) -> int:
        """Bytes of a batch that no branch keeps."""
        return saved(batch) - sum(site.nbytes(now[site.name, site.role], batch) for site in sites)

    # What is kept is a constant and so much for every image; of a single image some views are whole storages.
    two, four = rest(2), rest(4)
    others = two + (four - two) * (images - 2) // 2
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return make_plan(sites, images, weights + others, budget, lambda site: now[site.name, site.role])
