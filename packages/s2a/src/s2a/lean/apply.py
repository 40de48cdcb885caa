"""Puts lean activations on a model, in place and undoable."""

from __future__ import annotations

import functools
from collections.abc import Mapping

from torch import nn

from s2a.activations.quantize import quantize_activations
from s2a.backbones import Backbone, Block, Edits, family_of, run_block
from s2a.backbones.number_format import multiplies_bf16
from s2a.lean import fused, gated_mlp, layerwise, pooling  # noqa: F401  (some register lean forwards)
from s2a.lean.registry import lean_forward_of
from s2a.lean.residual_stream import call_stepwise, write_in_place
from s2a.lean.spec import SavedBits
from s2a.registry import Method

ROLES = {"attn": ("attn_norm", "attn"), "mlp": ("mlp_norm", "mlp")}
"""A block's branches -> the roles of norm and body in ``Block.parts``."""

DEFAULTS = {"attn": SavedBits(norm=10, inner=0), "mlp": SavedBits(norm=8, inner=0)}
"""Role -> what a fused branch keeps without a plan: q, k, v recomputed from 10-bit codes, the activation's input from
8-bit ones. Codes of the activation's derivative take more bytes, and on trained weights no 4 bits of it are close
enough: with the best 16 values for each layer the prompts' gradients still were 9 % off (docs/lean.md)."""
EXACT_CODE = SavedBits(norm=4, inner=1)
"""The same of an MLP whose activation's derivative is exact in 1 bit (ReLU): as many bytes, and nothing again."""

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
    recompute: str = "same",
) -> tuple[fused.FusedBranch, ...]:
    """Makes everything that a backbone and a method's own modules keep for the backward pass small.

    Branches of known blocks run as one step that keeps the codes of their norm and activation (``fused``); other
    layers keep codes each, as the registry of lean forwards says (``registry``, ``layerwise``). The forward pass is the
    stock one up to the order of sums.

    Args:
        backbone: With the method's hooks in place.
        method: The method's modules.
        edits: Log that takes it back.
        bits: Of activations' codes.
        levels: Kind of the activations' levels.
        in_place: Residual sums and prompts are written over the stream (``stream``).
        recompute: Number format of the forward pass's products that the backward pass recomputes, as in
            ``LeanOptions``.

    Returns:
        The fused branches, in forward order; what they keep (``DEFAULTS``) may still be changed.

    Raises:
        S2AError: ``in_place`` under what reads the stream.
    """
    multiplies_bf16(next(backbone.model.parameters()).device)  # Found out here, and not while a compiler looks.
    # 1. Every module on its own: activations keep codes of their derivative, registered classes their lean forward.
    for part in (backbone.model, method):
        quantize_activations(part, bits, levels, softmax=False, edits=edits)
        for module in part.modules():
            _layerwise(module, edits)
    # 2. Norm and attention (or MLP) of known blocks as one autograd function, where nothing is in the way.
    blocks: dict[str, list[fused.FusedBranch]] = {}
    for block, role, norm, body in branches_of(backbone):
        module = backbone.module(block.name)
        own = module.__dict__.get("forward")
        if own is not None and getattr(own, "func", None) is not run_block:
            continue
        windows = block.window if role == "attn" else None
        # No bound method: unpickled, one would be looked up by its name, and found to be the fused forward.
        stock = body.__dict__.get("forward") or functools.partial(type(body).forward, body)
        branch = fused.FusedBranch(
            block, role, norm, body, DEFAULTS[role], levels, stock, module, windows, recompute=recompute
        )
        if branch.why_not_fusable() is not None and role == "mlp":
            # A trained last layer needs the activation's output, which codes of the derivative cannot give back.
            branch.saved_bits = SavedBits(norm=10, inner=0)
        elif role == "mlp" and branch.spec.bits == 1:
            branch.saved_bits = EXACT_CODE
        if branch.why_not_fusable() is None:
            blocks.setdefault(block.name, []).append(branch)
    for name, branches in blocks.items():
        for branch in branches:
            for module, forward in ((branch.norm, fused.norm_forward), (branch.body, fused.body_forward)):
                edits.override(module, "s2a_branch", branch)
                edits.override(module, "forward", forward)
        edits.override(backbone.module(name), "s2a_branches", tuple(branches))
        edits.override(backbone.module(name), "forward", fused.block_forward)
    # 3. Beyond single branches: the class token's row alone, maps that Python's frames hold, sums written in place.
    _narrow_last_block(backbone, blocks, edits)
    call_stepwise(backbone, edits)
    if in_place:
        write_in_place(backbone, blocks, method, edits)
    return tuple(branch for branches in blocks.values() for branch in branches)


def _narrow_last_block(backbone: Backbone, blocks: Mapping[str, list[fused.FusedBranch]], edits: Edits) -> None:
    """Lets the last block of a ViT compute the class token's row alone, where the head reads nothing else."""
    last = backbone.blocks[-1].name
    if backbone.reads_class_token and len(blocks.get(last, ())) == 2 and backbone.blocks[-1].heads:
        edits.override(backbone.module(last), "s2a_backbone", (backbone.model,))
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
