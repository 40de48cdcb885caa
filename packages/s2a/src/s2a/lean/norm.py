"""Layer and batch norms that keep codes of their normalised input, where they are not part of a fused branch.

Both are y = n w + b with n = (x - mean) rstd, over a token's channels or over a channel's positions in the batch. With
m the mean over the same elements, and g the gradient of y:

    dw = sum of g n,   db = sum of g,   dx = rstd (g w - m(g w) - n m(g w n))

so n (in codes), rstd and the weight are all that the backward pass needs.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers.norm import LayerNorm, LayerNorm2d
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s2a.lean.linear import image_chunks
from s2a.lean.registry import register_lean_forward
from s2a.lean.spec import add_to, cast_like, to_rows, write_rows
from s2a.ops import custom_ops as ops
from s2a.ops.keeping import keeps_for_backward
from s2a.ops.loops import alike
from s2a.ops.offload import load, save

LAYER_NORMS: dict[type[nn.Module], bool] = {
    nn.LayerNorm: False,
    LayerNorm: False,
    LayerNorm2d: True,
}
"""Norm -> whether it takes maps ``(B, C, H, W)``."""


class _LayerNorm(torch.autograd.Function):
    """Storage of a chunk of images: codes of n, minimum and step of each row or group, rstd of each row."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        eps: float,
        bits: int,
        first: bool,
        dtype: torch.dtype,
    ) -> Tensor:
        # Maps come out channels last, as from the stock layer: dropout draws in the order of memory.
        layout = torch.channels_last if first else torch.contiguous_format
        out = torch.empty_like(x, dtype=dtype, memory_format=layout)
        parts = alike(list(image_chunks(len(x), x[:1].numel())))
        kept: list[Tensor] = []
        for part in parts:
            h, *codes = ops.norm_pack(to_rows(x, part, first).to(dtype), weight, bias, eps, bits)
            kept += codes
            write_rows(out, part, h, first)
        ctx.parts, ctx.bits, ctx.first, ctx.input_like = parts, bits, first, (x.shape, x.dtype)
        save(ctx, (weight, bias), kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, bias, *kept = load(ctx)
        out = torch.empty(ctx.input_like[0], dtype=ctx.input_like[1], device=grad.device)
        weight_sum = bias_sum = None
        for i, part in enumerate(ctx.parts):
            # One chunk's dx, and its share of dw and db.
            rows = to_rows(grad, part, ctx.first)
            moved = rows.new_empty(rows.shape, dtype=ctx.input_like[1])
            own = ops.norm_backward(rows, *kept[3 * i : 3 * i + 3], weight, ctx.bits, ctx.needs_input_grad[1], moved)
            weight_sum = add_to(weight_sum, own[0], ctx.needs_input_grad[1])
            bias_sum = add_to(bias_sum, own[1], ctx.needs_input_grad[2])
            write_rows(out, part, moved, ctx.first)
        moved = out if ctx.needs_input_grad[0] else None
        return moved, cast_like(weight, weight_sum), cast_like(bias, bias_sum), None, None, None, None


def layer_norm(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    bits: int,
    channels_first: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Layer normalisation over the channels that keeps its normalised input in ``bits`` bits.

    Args:
        x: ``(B, ..., C)``, or maps ``(B, C, H, W)``.
        weight: ``(C,)``.
        bias: ``(C,)``.
        eps: Added to the variance.
        bits: One of ``rows.WIDTHS``.
        channels_first: Maps.
        dtype: In which it is computed, chunk by chunk, and returned; ``None``: that of ``x``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _LayerNorm.apply(  # type: ignore[no-any-return]
            x, weight, bias, eps, bits, channels_first, x.dtype if dtype is None else dtype
        )


@register_lean_forward(*LAYER_NORMS)
def lean_norm_forward(self: Any, x: Tensor) -> Tensor:
    """A layer norm that keeps codes, where a gradient is asked for."""
    wanted = x.requires_grad or any(p.requires_grad for p in self.parameters())
    if not keeps_for_backward() or not wanted or type(self) not in LAYER_NORMS:
        # A norm that was parametrised after ``attach`` has a class of its own.
        return type(self).forward(self, x)
    # In float32 under autocast, as autocast has it for norms.
    dtype = torch.float32 if torch.is_autocast_enabled(x.device.type) else x.dtype
    return layer_norm(x, self.weight, self.bias, self.eps, self.s2a_lean_bits, LAYER_NORMS[type(self)], dtype)


class _BatchNorm(torch.autograd.Function):
    """Storage of a chunk: codes of n with one row for each image and channel; rstd of each channel."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: nn.BatchNorm2d, bits: int, *affine: Tensor | None) -> Tensor:
        weight, bias = affine
        # Statistics move as they do in the stock layer.
        out = nn.BatchNorm2d.forward(norm, x)
        kept: list[Tensor] = []
        work = torch.promote_types(x.dtype, torch.float32)
        variance, mean = torch.var_mean(x.to(work), (0, 2, 3), correction=0)
        rstd = (variance + norm.eps).rsqrt()
        parts = alike(list(image_chunks(len(x), x[:1].numel())))
        for part in parts:
            normed = (x[part].to(work) - mean.view(1, -1, 1, 1)) * rstd.view(1, -1, 1, 1)
            kept += ops.rows_pack(normed.flatten(2).flatten(0, 1), bits)
        ctx.parts, ctx.bits, ctx.input_like = parts, bits, (x.shape, x.dtype)
        save(ctx, (weight, bias), (rstd, *kept))
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        weight, bias, rstd, *kept = load(ctx)
        shape, dtype = ctx.input_like

        def normed(i: int, part: slice) -> Tensor:
            codes, numbers = kept[2 * i : 2 * i + 2]
            values = ops.rows_unpack(codes, numbers, shape[2] * shape[3], ctx.bits, rstd.dtype)
            return values.view(-1, *shape[1:])

        # First pass over the chunks: db and dw of each channel, whose means dx needs.
        dbias = torch.zeros_like(rstd)
        dweight = torch.zeros_like(dbias)
        for i, part in enumerate(ctx.parts):
            dbias += grad[part].to(rstd.dtype).sum((0, 2, 3))
            dweight += (grad[part].to(rstd.dtype) * normed(i, part)).sum((0, 2, 3))
        moved = None
        if ctx.needs_input_grad[0]:
            count = shape[0] * shape[2] * shape[3]
            # Second pass: dx = w rstd (g - db / count - n dw / count); a channel's w is a factor of all its terms.
            scale = rstd if weight is None else rstd * weight.to(rstd.dtype)
            moved = torch.empty(shape, dtype=dtype, device=grad.device)
            for i, part in enumerate(ctx.parts):
                pulled = normed(i, part).mul_((dweight / count).view(1, -1, 1, 1))
                pulled += (dbias / count).view(1, -1, 1, 1)
                moved[part] = (grad[part].to(rstd.dtype) - pulled) * scale.view(1, -1, 1, 1)
        found = (cast_like(weight, dweight), cast_like(bias, dbias))
        wanted = tuple(g if need else None for g, need in zip(found, ctx.needs_input_grad[3:], strict=True))
        return moved, None, None, *wanted


def batch_norm(norm: nn.BatchNorm2d, x: Tensor, bits: int) -> Tensor:
    """A batch norm in training mode that keeps its normalised input in ``bits`` bits."""
    with torch.autocast(x.device.type, enabled=False):
        return _BatchNorm.apply(x, norm, bits, norm.weight, norm.bias)  # type: ignore[no-any-return]
