"""Measures what a plan is made for, and applies a plan to the fused branches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from torch import nn

from s2a.lean.fused import FusedBranch
from s2a.lean.plan import Plan
from s2a.lean.spec import BranchSpec
from s2a.memory.measured import SavedBytes
from s2a.ops.rows import kept_bytes
from s2a.paging import host_bytes


def set_plan(branches: tuple[FusedBranch, ...], plan: Plan) -> None:
    """Applies a plan: every branch keeps what it says."""
    for branch in branches:
        branch.saved_bits = plan.saved_bits[branch.block.name, branch.role]


TRIED = 12
"""Bits of blocks' inputs in the trial that says which blocks can be computed again."""


def measure_specs(
    model: nn.Module, branches: tuple[FusedBranch, ...], saved: Callable[[int], SavedBytes], images: int
) -> tuple[list[BranchSpec], int]:
    """Measures the branches' sizes, and the bytes that no choice changes: what no branch keeps.

    Saved bytes are a + b B for batch size B. Two batches give a and b, for each branch (whose b gives its rows) and for
    everything else, which is then extended to the step's batch.

    Args:
        model: The whole adapted model.
        branches: Its fused branches.
        saved: Batch size to the bytes that autograd holds, module by module, as the model is.
        images: Batch size of the step.

    Returns:
        Sizes of the branches, in forward order, and the bytes of all that no branch keeps.
    """
    before = [branch.saved_bits for branch in branches]
    try:
        # Branch by branch. Not one image: there some saved views are whole storages.
        _keep_blocks(branches, 0)
        two, four = saved(2), saved(4)
        names = {module: name for name, module in model.named_modules()}
        paths = [names[branch.body] for branch in branches]
        each = [(four.get(path, 0) - two.get(path, 0)) // 2 for path in paths]
        specs = [_with_measured_rows(branch, nbytes) for branch, nbytes in zip(branches, each, strict=True)]
        kept = [[spec.nbytes(b.saved_bits, batch) for spec, b in zip(specs, branches, strict=True)] for batch in (2, 4)]
        rest = sum(two.values()) - sum(kept[0]), sum(four.values()) - sum(kept[1])
        others = rest[0] + (rest[1] - rest[0]) * (images - 2) // 2
        # Blocks that can be computed again, as a whole.
        _keep_blocks(branches, TRIED)
        again = saved(2), saved(4)
        for i, branch in enumerate(branches):
            block = names[branch.block_module]
            pair = [j for j, other in enumerate(branches) if other.block_module is branch.block_module]
            if branch.role != "attn" or len(pair) < 2 or branch.spec.fixed:
                continue
            codes = [kept_bytes(batch * specs[i].tokens, specs[i].channels, TRIED) for batch in (2, 4)]
            if not codes[0] or [found.get(block) for found in again] != codes:
                continue
            # What is kept in the block beside its branches, and is not when it is computed again.
            gone = [
                (normal.within[block] - sum(kept[k][j] for j in pair)) - (found.within[block] - codes[k])
                for k, (normal, found) in enumerate(zip((two, four), again, strict=True))
            ]
            slope = (gone[1] - gone[0]) // 2
            specs[i] = dataclasses.replace(specs[i], block_saves=(gone[0] - 2 * slope, slope))
    finally:
        for branch, bits in zip(branches, before, strict=True):
            branch.saved_bits = bits
    return specs, others


def resident_weights(model: nn.Module) -> int:
    """Bytes of the parameters that lie on the device."""
    return sum(p.numel() * p.element_size() for p in model.parameters()) - host_bytes(model)


def _keep_blocks(branches: tuple[FusedBranch, ...], bits: int) -> None:
    for branch in branches:
        branch.saved_bits = dataclasses.replace(branch.saved_bits, block=bits)


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
