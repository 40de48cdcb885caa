"""Measures what a plan is made for, and applies a plan to the fused branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from s2a.lean.fused import FusedBranch
from s2a.lean.plan import Plan
from s2a.lean.spec import BranchSpec
from s2a.paging import host_bytes


def set_plan(branches: tuple[FusedBranch, ...], plan: Plan) -> None:
    """Applies a plan: every branch keeps what it says."""
    for branch in branches:
        branch.saved_bits = plan.saved_bits[branch.block.name, branch.role]


def measure_specs(
    model: nn.Module, branches: tuple[FusedBranch, ...], saved: Callable[[int], dict[str, int]], images: int
) -> tuple[list[BranchSpec], int]:
    """Measures the branches' sizes, and the bytes that no choice changes: weights, and what no branch keeps.

    Saved bytes are a + b B for batch size B. Two batches give a and b, for each branch (whose b gives its rows) and for
    everything else, which is then extended to the step's batch.

    Args:
        model: The whole adapted model.
        branches: Its fused branches.
        saved: Batch size to the bytes that autograd holds, module by module, as the model is.
        images: Batch size of the step.

    Returns:
        Sizes of the branches, in forward order, and the bytes of weights and of all that no branch keeps.
    """
    # Not one image: there some saved views are whole storages.
    two, four = saved(2), saved(4)
    names = {module: name for name, module in model.named_modules()}
    paths = [names[branch.body] for branch in branches]
    each = [(four.get(path, 0) - two.get(path, 0)) // 2 for path in paths]
    specs = [_with_measured_rows(branch, nbytes) for branch, nbytes in zip(branches, each, strict=True)]
    pairs = list(zip(specs, branches, strict=True))
    kept = [sum(spec.nbytes(branch.saved_bits, batch) for spec, branch in pairs) for batch in (2, 4)]
    rest = sum(two.values()) - kept[0], sum(four.values()) - kept[1]
    others = rest[0] + (rest[1] - rest[0]) * (images - 2) // 2
    weights = sum(p.numel() * p.element_size() for p in model.parameters()) - host_bytes(model)
    return specs, weights + others


def _with_measured_rows(branch: FusedBranch, nbytes: int) -> BranchSpec:
    """A branch's sizes with the rows that it really has, by the bytes that it keeps of an image.

    A method may add tokens (VPT) or a ring of positions, and a branch with nothing trained in front of it keeps
    nothing.
    """
    spec = branch.spec
    one = dataclasses.replace(spec, tokens=1, inner_tokens=1)
    rows, rest = divmod(nbytes, one.nbytes(branch.saved_bits, 1))
    if rest:
        return spec
    tokens = rows if spec.role == "attn" else max(rows, spec.tokens)
    return dataclasses.replace(spec, tokens=tokens, inner_tokens=rows)
