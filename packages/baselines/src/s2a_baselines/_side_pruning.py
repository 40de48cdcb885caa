"""Fills a side block with the largest weights of a backbone's block: structural pruning by the size of rows.

The matrices of a block are pruned in forward order. With W ``(out, in)`` the next matrix and J the input channels that
the matrix before kept, row i has the score s_i = sum over j in J of abs(W_ij). The rows with the largest scores are
kept, in their order, and are the J of the matrix after. Norms, depthwise convolutions and layer scales take the
channels kept last. The two sides of a residual sum may keep different channels: the source does not align them either
(Sung et al., LST, https://github.com/ylsung/Ladder-Side-Tuning).
"""

from __future__ import annotations

from typing import Any

import torch
from s2a.backbones import Backbone, Block
from s2a.errors import UnsupportedModel
from torch import Tensor, nn

from s2a_baselines._side_blocks import ConvBlock, ConvNeXtBlock, TransformerBlock


def depthwise(backbone: Backbone, block: Block) -> nn.Conv2d | None:
    """The depthwise convolution of a block, if it has one."""
    for module in backbone.module(block.name).modules():
        if isinstance(module, nn.Conv2d) and module.groups == module.out_channels == block.channels:
            return module
    return None


def largest(score: Tensor, count: int) -> Tensor:
    """Indices of the ``count`` largest values on the last axis, ascending."""
    return score.topk(count).indices.sort(-1).values


@torch.no_grad()
def prune(
    side: TransformerBlock | ConvNeXtBlock | ConvBlock, backbone: Backbone, block: Block, columns: Tensor | None
) -> Tensor:
    """Fills a side block with the largest weights of ``block``.

    Args:
        side: The side block.
        backbone: Where ``block`` is.
        block: The block that is pruned.
        columns: Channels kept by the block before, ``(c,)``; ``None``: the largest columns of the first matrix.

    Returns:
        The channels that the block's last matrix keeps, ``(c,)``.

    Raises:
        UnsupportedModel: The block lacks a matrix, or its MLP is gated.
    """
    # Dispatch by the side block's type: it was chosen by the layers that ``block`` has.
    if isinstance(side, TransformerBlock):
        return _prune_transformer(side, backbone, block, columns)
    if isinstance(side, ConvNeXtBlock):
        return _prune_convnext(side, backbone, block, columns)
    raise _unsupported(backbone, block)


def _unsupported(backbone: Backbone, block: Block) -> UnsupportedModel:
    return UnsupportedModel(
        f"init='pruned': block {block.name} of this {backbone.family} lacks the matrices of a plain transformer or "
        "ConvNeXt block (qkv, proj, fc1, fc2); use init='random'."
    )


def _layers(backbone: Backbone, block: Block, *roles: str) -> list[Any]:
    if not set(roles) <= block.linears.keys():
        raise _unsupported(backbone, block)
    layers: list[Any] = [backbone.module(block.linears[role]) for role in roles]
    # A gated MLP has twice as many outputs in fc1 as inputs in fc2, and no plain pruning of one by the other.
    if layers[-2].weight.shape[0] != layers[-1].weight.shape[1]:
        raise _unsupported(backbone, block)
    return layers


def _linear(new: nn.Linear, old: Any, columns: Tensor) -> Tensor:
    """Fills the layer ``new`` ``(out, in)`` from ``old``.

    Args:
        new: Layer of the side block.
        old: Layer of the backbone; a 1 x 1 convolution counts as linear.
        columns: Input channels kept, ``(in,)``.

    Returns:
        The rows of ``old`` that were kept, ascending, ``(out,)``.
    """
    weight = old.weight.flatten(1)[:, columns]
    rows = largest(weight.float().abs().sum(1), new.out_features)
    new.weight.copy_(weight[rows])
    if old.bias is not None:
        new.bias.copy_(old.bias[rows])
    return rows


def _vectors(new: Any, old: Any, rows: Tensor) -> None:
    """Fills a norm or depthwise convolution with the channels ``rows`` of ``old``."""
    for name, parameter in new.named_parameters(recurse=False):
        value = getattr(old, name, None)
        if value is not None:
            parameter.copy_(value[rows])


def _prune_transformer(side: TransformerBlock, backbone: Backbone, block: Block, columns: Tensor | None) -> Tensor:
    """Prunes qkv, proj, fc1 and fc2 in that order; the norms take the channels in front of them.

    Storage: qkv is one matrix ``(3 * heads * d, C)``, q, k and v one after the other, and in each of them the heads one
    after the other; the side block's has the same order with d / r rows per head and c columns.
    """
    qkv, proj, fc1, fc2 = _layers(backbone, block, "qkv", "proj", "fc1", "fc2")
    width, heads = side.fc1.in_features, block.heads
    weight = qkv.weight.unflatten(0, (3, heads, -1))  # (3, heads, d, C)
    if columns is None:
        # The first pruned block of a stage: the input channels with the largest columns.
        columns = largest(qkv.weight.float().abs().sum(0), width)
    # The norm in front of attention reads the block's input channels.
    norm1 = next((m for m in backbone.module(block.name).children() if isinstance(m, nn.LayerNorm)), None)
    _vectors(side.norm1, norm1, columns)
    # The scores q k^T multiply channel i of q by channel i of k, so that q, k and v keep the same rows. Their score is
    # s_i = sum over j of abs(q_ij k_ij v_ij), and every head keeps its own d / r largest.
    weight = weight[..., columns]
    rows = largest(weight.float().abs().prod(0).sum(-1), width // heads)
    within = rows[None, :, :, None].expand(3, -1, -1, width)  # The rows of each head, for q, k and v alike.
    side.attn.qkv.weight.copy_(weight.gather(2, within).flatten(0, 2))
    if qkv.bias is not None:
        bias = qkv.bias.unflatten(0, (3, heads, -1))
        side.attn.qkv.bias.copy_(bias.gather(2, within[..., 0]).flatten())
    # Heads are as many as before, so that a table of relative positions fits as it is.
    table = getattr(backbone.module(block.parts["attn"]), "relative_position_bias_table", None)
    if side.window and table is not None:
        side.attn.relative_position_bias_table.copy_(table)
    # proj reads the heads one after the other: row i of head h is its column h * d + i.
    starts = torch.arange(heads, device=rows.device)[:, None] * (block.channels // heads)
    columns = _linear(side.attn.proj, proj, (starts + rows).flatten())
    # The MLP, with its norm on the channels that proj kept.
    _vectors(side.norm2, backbone.module(block.parts["mlp_norm"]), columns)
    return _linear(side.fc2, fc2, _linear(side.fc1, fc1, columns))


def _prune_convnext(side: ConvNeXtBlock, backbone: Backbone, block: Block, columns: Tensor | None) -> Tensor:
    """Prunes fc1 and fc2 in that order; depthwise convolution and norm take the channels in front of fc1."""
    fc1, fc2 = _layers(backbone, block, "fc1", "fc2")
    if columns is None:
        # The first pruned block of a stage: the input channels with the largest columns of fc1.
        columns = largest(fc1.weight.flatten(1).float().abs().sum(0), side.fc1.in_features)
    _vectors(side.conv_dw, depthwise(backbone, block), columns)
    _vectors(side.norm, backbone.module(block.parts["mlp_norm"]), columns)
    columns = _linear(side.fc2, fc2, _linear(side.fc1, fc1, columns))
    # Layer scale multiplies the output of fc2, so it takes the rows that fc2 kept.
    gamma = getattr(backbone.module(block.name), "gamma", None)
    if gamma is not None:
        side.gamma.copy_(gamma[columns])
    return columns
