"""Puts lean activations on a model, in place and undoable."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping

import torch
from torch import nn

from s2a.activations.quantize import quantize_activations
from s2a.backbones import Backbone, Block, Edits, family_of
from s2a.lean import fused, layerwise, pool  # noqa: F401  (pools register their lean forwards)
from s2a.lean.class_token import Switch
from s2a.lean.registry import lean_forward_of
from s2a.lean.spec import Keep
from s2a.lean.stream import stepwise, write_over
from s2a.registry import Method

ROLES = {"attn": ("attn_norm", "attn"), "mlp": ("mlp_norm", "mlp")}
"""A block's branches -> the roles of norm and body in ``Block.parts``."""

DEFAULTS = {"attn": Keep(norm=10, inner=0), "mlp": Keep(norm=4, inner=4)}
"""Without a plan: q, k, v from 10-bit codes again, the activation's derivative in 4 bits (the
planner lets it be computed again where that is cheap, ``planning.knapsack.with_cheap_repeats``)."""

QKV_BITS = 8
"""Of q, k and v where attention is in no fused branch."""


def branches_of(backbone: Backbone) -> list[tuple[Block, str, nn.Module, nn.Module]]:
    """Block, branch, norm and body of every branch that has both, in forward order."""
    plain = family_of(backbone.model).plain
    found = []
    for block in backbone.blocks:
        if type(backbone.module(block.name)) not in plain:
            continue
        for branch, (norm, body) in ROLES.items():
            if norm in block.parts and body in block.parts:
                found.append((block, branch, backbone.module(block.parts[norm]), backbone.module(block.parts[body])))
    return found


def make_lean(
    backbone: Backbone,
    method: Method,
    edits: Edits,
    *,
    bits: int = 4,
    levels: str = "derivative",
    in_place: bool = False,
    again: torch.dtype | None = None,
) -> tuple[fused.Branch, ...]:
    """Makes everything that a backbone and a method's own modules keep for the backward pass small.

    Branches of known blocks run as one step that keeps the codes of their norm and activation (``fused``); other
    layers keep codes each (``layerwise``). The forward pass is the stock one up to the order of sums.

    Args:
        backbone: With the method's hooks in place.
        method: The method's modules.
        edits: Log that takes it back.
        bits: Of activations' codes.
        levels: Kind of the activations' levels.
        in_place: Residual sums and prompts are written over the stream (``stream``).
        again: Number format of products that the backward pass computes again; ``None``: as in the forward pass.

    Returns:
        The fused branches, in forward order; what they keep (``DEFAULTS``) may still be changed.

    Raises:
        S2AError: ``in_place`` under what reads the stream.
    """
    for part in (backbone.model, method):
        quantize_activations(part, bits, levels, softmax=False, edits=edits)
        for module in part.modules():
            _layerwise(module, edits)
    blocks: dict[str, list[fused.Branch]] = {}
    for block, role, norm, body in branches_of(backbone):
        module = backbone.module(block.name)
        if "forward" in module.__dict__:
            continue
        windows = block.window if role == "attn" else None
        # No bound method: unpickled, one would be looked up by its name, and found to be the fused forward.
        stock = body.__dict__.get("forward") or functools.partial(type(body).forward, body)
        keep = DEFAULTS[role] if role == "attn" else dataclasses.replace(DEFAULTS[role], inner=bits)
        branch = fused.Branch(block, role, norm, body, keep, levels, stock, module, windows, again=again)
        if branch.obstacle() is not None and role == "mlp":
            branch.keep = Keep(norm=10, inner=0)  # Where the last layer needs its input, it is made again.
        if branch.obstacle() is None:
            blocks.setdefault(block.name, []).append(branch)
    for name, branches in blocks.items():
        for branch in branches:
            for module, forward in ((branch.norm, fused.norm_forward), (branch.body, fused.body_forward)):
                edits.override(module, "s2a_branch", branch)
                edits.override(module, "forward", forward)
        edits.override(backbone.module(name), "s2a_branches", tuple(branches))
        edits.override(backbone.module(name), "forward", fused.block_forward)
    _narrow_last(backbone, blocks, edits)
    stepwise(backbone, edits)
    if in_place:
        write_over(backbone, blocks, method, edits)
    return tuple(branch for branches in blocks.values() for branch in branches)


def _narrow_last(backbone: Backbone, blocks: Mapping[str, list[fused.Branch]], edits: Edits) -> None:
    """Lets the last block of a ViT compute the class token's row alone, where the head reads nothing else."""
    last = backbone.blocks[-1].name
    if backbone.reads_class_token and len(blocks.get(last, ())) == 2 and backbone.blocks[-1].heads:
        switch = Switch(backbone.model)
        edits.override(backbone.model, "s2a_switch", switch)
        edits.override(backbone.module(last), "s2a_switch", switch)
        edits.override(backbone.module(last), "forward", fused.last_block_forward)


def _layerwise(module: nn.Module, edits: Edits) -> None:
    """Gives a module its registered lean forward, or lets its ``scaled_dot_product_attention`` keep codes."""
    entry = lean_forward_of(module)
    if entry is not None:
        edits.override(module, "s2a_lean_bits", entry.bits_for(module))
        edits.override(module, "forward", entry.forward)
    elif "fused_attn" in module.__dict__:
        edits.override(module, "s2a_qkv_bits", QKV_BITS)
        edits.override(module, "fused_attn", True)
        edits.override(module, "forward", layerwise.attention_forward)
