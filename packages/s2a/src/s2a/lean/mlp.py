"""A norm and the MLP behind it as one step, which keeps the codes of both and nothing else."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2a.lean.linear import spans, two_layers
from s2a.lean.spec import Shape, like, put_rows, rows_of, total
from s2a.ops import custom_ops as ops
from s2a.ops.reference import FORWARDS


class _Mlp(torch.autograd.Function):
    """fc2(act(fc1(norm(x)))), chunk by chunk; tensors: the norm's weight and bias, then W, b, A, U of both layers."""

    @staticmethod
    def forward(ctx: Any, shape: Shape, x: Tensor, *tensors: Tensor | None) -> Tensor:
        norm_weight, norm_bias = tensors[:2]
        first, second = two_layers(shape, tensors, (False,) * 10)
        columns = len(second.weight)
        size = (len(x), columns, *x.shape[2:]) if shape.channels_first else (*x.shape[:-1], columns)
        out = torch.empty(size, dtype=shape.dtype, device=x.device)
        kept: list[Tensor] = []
        parts = list(spans(len(x), math.prod(x.shape[1:]) // first.weight.shape[1] * len(first.weight)))
        for part in parts:
            rows = rows_of(x, part, shape.channels_first)
            h, *codes = ops.norm_pack(rows, norm_weight, norm_bias, shape.eps, shape.keep.norm)
            kept += codes
            u = first(h.to(shape.dtype))
            del rows, h
            if shape.keep.inner:
                kept.append(ops.act_pack(u, shape.activation, shape.keep.inner, shape.levels))
            else:
                u = FORWARDS[shape.activation][1](u)
            put_rows(out, part, second(u), shape.channels_first)
            del u
        ctx.shape, ctx.parts, ctx.like = shape, parts, (x.shape, x.dtype)
        ctx.save_for_backward(*tensors, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shape: Shape = ctx.shape
        saved = ctx.saved_tensors  # Once: under gradient checkpointing every look unpacks anew.
        tensors, kept = saved[:10], list(saved[10:])
        needs = ctx.needs_input_grad[2:]
        norm_weight, norm_bias = tensors[:2]
        first, second = two_layers(shape, tensors, needs)
        out = torch.empty(ctx.like[0], dtype=ctx.like[1], device=grad.device)
        weight_sum = bias_sum = None
        each = 4 if shape.keep.inner else 3
        for i, part in enumerate(ctx.parts):
            codes, numbers, rstd, *inner = kept[i * each : (i + 1) * each]
            g = rows_of(grad, part, shape.channels_first)
            h = x = None
            if not inner or first.reads_input:
                columns = first.weight.shape[1]
                h = ops.norm_rebuild(codes, numbers, norm_weight, norm_bias, columns, shape.keep.norm, shape.dtype)
            da = second.input_grad(g)
            if inner:
                sums = ops.act_backward(da, inner[0], shape.activation, shape.keep.inner, shape.levels)
            else:
                u = first.once_more(h, shape.again)  # type: ignore[arg-type]
                da, x = _act_grad(u, da, shape.activation, second.reads_input)
                del u
                sums = None
            second.gather(g, x)
            del g, x
            first.gather(da, h, sums)
            dh = first.input_grad(da)
            del da, h
            moved = dh.new_empty(dh.shape, dtype=ctx.like[1])
            own = ops.norm_backward(dh, codes, numbers, rstd, norm_weight, shape.keep.norm, needs[0], moved)
            weight_sum, bias_sum = total(weight_sum, own[0], needs[0]), total(bias_sum, own[1], needs[1])
            put_rows(out, part, moved, shape.channels_first)
            del dh, moved
        norm = (like(norm_weight, weight_sum), like(norm_bias, bias_sum))
        return None, out if ctx.needs_input_grad[1] else None, *norm, *first.grads(), *second.grads()


def _act_grad(u: Tensor, grad: Tensor, activation: str, want: bool) -> tuple[Tensor, Tensor | None]:
    """Gradient of an activation's input, exactly; and its output, where the layer behind it wants it."""
    with torch.enable_grad():
        leaf = u.detach().requires_grad_()
        out = FORWARDS[activation][1](leaf)
        (moved,) = torch.autograd.grad(out, leaf, grad)
    return moved, out.detach() if want else None


def mlp(shape: Shape, x: Tensor, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """The MLP of a block on its norm's input.

    Args:
        shape: What is kept, and how.
        x: ``(B, ..., C)``, or ``(B, C, H, W)``.
        tensors: Weight and bias of the norm; W, b, A and U of both linear layers (A and U of a low-rank update).

    Returns:
        Of the shape of ``x``, with the second layer's columns, in ``shape.dtype``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _Mlp.apply(shape, x, *tensors)  # type: ignore[no-any-return]
