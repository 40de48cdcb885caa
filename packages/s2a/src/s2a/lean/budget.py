"""A memory budget for an adapted model: the plan that meets it, set in its branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import nn

from s2a.lean.fused import Branch
from s2a.lean.plan import Plan, Site, make_plan


def set_plan(branches: tuple[Branch, ...], plan: Plan) -> None:
    """Lets every branch keep what a plan says."""
    for branch in branches:
        branch.keep = plan.keeps[branch.block.name, branch.role]


def plan_saved(
    model: nn.Module,
    branches: tuple[Branch, ...],
    saved: Callable[[int], dict[str, int]],
    images: int,
    budget: int | None,
) -> Plan:
    """The plan under which weights and saved tensors of a step stay in a budget.

    Args:
        model: The whole adapted model.
        branches: Its fused branches.
        saved: Batch size to the bytes that autograd holds, module by module, as the model is.
        images: Batch size of the plan.
        budget: Bytes; ``None``: what the branches keep now.

    Raises:
        S2AError: A budget that cannot be met.
    """
    now: dict[Any, Any] = {(b.block.name, b.role): b.keep for b in branches}
    # What is kept is a constant and so much for every image; of a single image some views are whole storages.
    two, four = saved(2), saved(4)
    names = {module: name for name, module in model.named_modules()}
    sites = [
        _as_run(branch, (four.get(names[branch.body], 0) - two.get(names[branch.body], 0)) // 2) for branch in branches
    ]
    kept = [sum(site.nbytes(now[site.name, site.role], batch) for site in sites) for batch in (2, 4)]
    rest = sum(two.values()) - kept[0], sum(four.values()) - kept[1]
    others = rest[0] + (rest[1] - rest[0]) * (images - 2) // 2
    weights = sum(p.numel() * p.element_size() for p in model.parameters())
    return make_plan(sites, images, weights + others, budget, lambda site: now[site.name, site.role])


def _as_run(branch: Branch, nbytes: int) -> Site:
    """A branch's site with the rows that it really has, by the bytes that it keeps of an image.

    Methods put tokens and rings of positions in, and a branch that nothing trains in front of keeps nothing.
    """
    site = branch.site
    one = dataclasses.replace(site, tokens=1, inner_tokens=1)
    rows, rest = divmod(nbytes, one.nbytes(branch.keep, 1))
    if rest:
        return site
    tokens = rows if site.role == "attn" else max(rows, site.tokens)
    return dataclasses.replace(site, tokens=tokens, inner_tokens=rows)
