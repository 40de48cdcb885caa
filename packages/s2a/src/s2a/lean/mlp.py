"""Layer norm and MLP as one autograd function that keeps codes of the norm and of the activation.

Forward, for the rows x of a batch:

    n = (x - mean) rstd,   h = n w + b,   u = h W1^T + b1,   a = act(u),   y = a W2^T + b2

Kept of each chunk of images: n as codes with minimum and step of each row or group, rstd, and, with
``SavedBits.inner`` bits, the codes of act'(u) (``s2a.ops.levels``), with 32 bits u itself. With ``inner=0`` the
backward pass recomputes u from n'. Backward:

    da = g W2,   du = da * act'(u),   dh = du W1,   dx = rstd (dn - mean(dn) - n mean(dn * n)) with dn = dh w
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2a.lean.linear import Layer, fetch_weights, image_chunks, two_layers
from s2a.lean.spec import BranchOptions, add_to, cast_like, to_rows, write_rows
from s2a.ops import custom_ops as ops
from s2a.ops.loops import alike, repeated
from s2a.ops.offload import load, save
from s2a.ops.reference import BACKWARDS, FORWARDS
from s2a.ops.rows import CODED


class _Mlp(torch.autograd.Function):
    """fc2(act(fc1(norm(x)))), chunk by chunk.

    ``tensors``: the norm's weight and bias, then W, b, A, U of both linear layers.
    """

    @staticmethod
    def forward(ctx: Any, options: BranchOptions, x: Tensor, *tensors: Tensor | None) -> Tensor:
        out, *kept = _forward(options, x, fetch_weights(options, tensors, x.device, False))
        ctx.options, ctx.input_like = options, (x.shape, x.dtype)
        save(ctx, tensors, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = load(ctx)
        tensors = fetch_weights(ctx.options, saved[:10], grad.device, True)
        return None, *_backward(ctx.options, grad, tensors, saved[10:], ctx.input_like, ctx.needs_input_grad[1:])


def _parts(shape: Sequence[int], first: Layer) -> Sequence[slice]:
    """Chunks of a batch of that shape; the widest matrix is the first layer's output."""
    out, columns = first.weight.shape
    return alike(list(image_chunks(shape[0], math.prod(shape[1:]) // columns * out)))


@repeated
def _forward(options: BranchOptions, x: Tensor, tensors: tuple[Tensor | None, ...]) -> list[Tensor]:
    """The output, and what is kept of every chunk."""
    norm_weight, norm_bias = tensors[:2]
    first, second = two_layers(options, tensors, (False,) * 10)
    columns = len(second.weight)
    size = (len(x), columns, *x.shape[2:]) if options.channels_first else (*x.shape[:-1], columns)
    out = torch.empty(size, dtype=options.dtype, device=x.device)
    kept: list[Tensor] = []
    for part in _parts(x.shape, first):
        # The norm: h, and the codes of n.
        rows = to_rows(x, part, options.channels_first)
        h, *codes = ops.norm_pack(rows, norm_weight, norm_bias, options.eps, options.saved_bits.norm)
        kept += codes
        u = first.recompute(h.to(options.dtype), options.forward_dtype)
        del rows, h
        # The activation, in place; the codes of its derivative are made from u on the way.
        if options.saved_bits.inner > CODED:
            kept.append(u)
            u = FORWARDS[options.activation][1](u)
        elif options.saved_bits.inner:
            kept.append(ops.act_pack(u, options.activation, options.saved_bits.inner, options.levels))
        else:
            u = FORWARDS[options.activation][1](u)
        write_rows(out, part, second.recompute(u, options.forward_dtype), options.channels_first)
        del u
    return [out, *kept]


@repeated
def _backward(
    options: BranchOptions,
    grad: Tensor,
    tensors: tuple[Tensor | None, ...],
    kept: tuple[Tensor, ...],
    input_like: tuple[Sequence[int], torch.dtype],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of x and ``tensors``; ``wanted``: of which of these."""
    needs = wanted[1:]
    norm_weight, norm_bias = tensors[:2]
    first, second = two_layers(options, tensors, needs)
    out = torch.empty(input_like[0], dtype=input_like[1], device=grad.device)
    weight_sum = bias_sum = None
    each = 4 if options.saved_bits.inner else 3  # Tensors that the forward pass kept of every chunk.
    for i, part in enumerate(_parts(input_like[0], first)):
        codes, numbers, rstd, *inner = kept[i * each : (i + 1) * each]
        g = to_rows(grad, part, options.channels_first)
        # 1. h from its codes, where u is recomputed from it or W1's gradient is made of it.
        h = x = None
        if not inner or first.reads_input:
            columns = first.weight.shape[1]
            h = ops.norm_rebuild(
                codes, numbers, norm_weight, norm_bias, columns, options.saved_bits.norm, options.dtype
            )
        # 2. da = g W2, then du = da * act'(u), written over da: by code, or exactly from u.
        da = second.input_grad(g)
        if inner and options.saved_bits.inner <= CODED:
            sums = ops.act_backward(da, inner[0], options.activation, options.saved_bits.inner, options.levels)
        else:
            u = inner[0] if inner else first.recompute(h, options.recompute_dtype)  # type: ignore[arg-type]
            da = BACKWARDS[options.activation](da, u)
            x = FORWARDS[options.activation][1](u) if second.reads_input else None
            del u
            sums = None
        # 3. Gradients of W2, b2 (from a) and W1, b1 (from h), where they are asked for.
        second.add_gradients(g, x)
        del g, x
        first.add_gradients(da, h, sums)
        # 4. dh = du W1, and through the norm to x.
        dh = first.input_grad(da)
        del da, h
        moved = dh.new_empty(dh.shape, dtype=input_like[1])
        own = ops.norm_backward(dh, codes, numbers, rstd, norm_weight, options.saved_bits.norm, needs[0], moved)
        weight_sum, bias_sum = add_to(weight_sum, own[0], needs[0]), add_to(bias_sum, own[1], needs[1])
        write_rows(out, part, moved, options.channels_first)
        del dh, moved
    norm = (cast_like(norm_weight, weight_sum), cast_like(norm_bias, bias_sum))
    return out if wanted[0] else None, *norm, *first.gradients(), *second.gradients()


def mlp(options: BranchOptions, x: Tensor, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """The MLP of a block on its norm's input.

    Args:
        options: What is kept, and how.
        x: ``(B, ..., C)``, or ``(B, C, H, W)``.
        tensors: Weight and bias of the norm; W, b, A and U of both linear layers (A and U of a low-rank update).

    Returns:
        Of the shape of ``x``, with the second layer's columns, in ``options.dtype``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _Mlp.apply(options, x, *tensors)  # type: ignore[no-any-return]
