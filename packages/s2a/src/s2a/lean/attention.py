"""A norm and the attention behind it as one step: q, k, v and the map are computed again in the backward pass.

Or q, k, v are kept as codes. Their attention is computed again from them either way, map and sums of exponentials
together: numbers of the exact map beside approximate q and k would be wrong by factors.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2a.lean.linear import spans, two_layers
from s2a.lean.spec import Shape, like, put_rows, rows_of, total
from s2a.ops import custom_ops as ops
from s2a.ops.reference import CPU_PIECE


class _Attention(torch.autograd.Function):
    """proj(attention(qkv(norm(x)))); tensors: the norm's weight and bias, then W, b, A, U of both layers."""

    @staticmethod
    def forward(
        ctx: Any, shape: Shape, x: Tensor, bias: Tensor | None, mask: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        norm_weight, norm_bias = tensors[:2]
        first, second = two_layers(shape, tensors, (False,) * 10)
        items, tokens, _ = x.shape
        out = torch.empty(items, tokens, len(second.weight), dtype=shape.dtype, device=x.device)
        kept: list[Tensor] = []
        multiple = 1 if mask is None else len(mask)
        parts = list(spans(items, tokens * len(first.weight), multiple))
        added = _added(shape, bias, mask)
        for part in parts:
            h, *codes = ops.norm_pack(rows_of(x, part, False), norm_weight, norm_bias, shape.eps, shape.keep.norm)
            kept += codes
            qkv = first(h.to(shape.dtype))
            del h
            if shape.keep.inner:
                kept += ops.rows_pack(qkv.view(-1, qkv.shape[1] // 3), shape.keep.inner)
            mixed = attend(qkv, tokens, shape.heads, added, shape.scale)
            del qkv
            put_rows(out, part, second(mixed), False)
            del mixed
        ctx.shape, ctx.parts, ctx.like = shape, parts, (x.shape, x.dtype)
        ctx.save_for_backward(*tensors, bias, mask, *kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        shape: Shape = ctx.shape
        saved = ctx.saved_tensors  # Once: under gradient checkpointing every look unpacks anew.
        tensors, (bias, mask), kept = saved[:10], saved[10:12], list(saved[12:])
        needs = ctx.needs_input_grad[4:]
        norm_weight, norm_bias = tensors[:2]
        first, second = two_layers(shape, tensors, needs)
        tokens, columns = ctx.like[0][1:]
        out = torch.empty(ctx.like[0], dtype=ctx.like[1], device=grad.device)
        weight_sum = bias_sum = added_sum = None
        each = 5 if shape.keep.inner else 3
        added = _added(shape, bias, mask)
        for i, part in enumerate(ctx.parts):
            codes, numbers, rstd, *inner = kept[i * each : (i + 1) * each]
            g = rows_of(grad, part, False)
            h = None
            if not inner or first.reads_input:
                h = ops.norm_rebuild(codes, numbers, norm_weight, norm_bias, columns, shape.keep.norm, shape.dtype)
            if inner:
                width = len(first.weight)
                qkv = ops.rows_unpack(*inner, width // 3, shape.keep.inner, shape.dtype).view(-1, width)
            else:
                qkv = first.once_more(h, shape.again)  # type: ignore[arg-type]
            if not first.reads_input:
                h = None
            dmixed = second.input_grad(g)
            want = ctx.needs_input_grad[2]
            mixed, dqkv, dadded = attend_backward(
                qkv, dmixed, tokens, shape.heads, added, shape.scale, want, second.reads_input
            )
            del qkv, dmixed
            if dadded is not None and bias is not None:
                added_sum = total(added_sum, dadded.sum_to_size(bias.shape), True)
            second.gather(g, mixed)
            del g, mixed
            first.gather(dqkv, h)
            del h
            dh = first.input_grad(dqkv)
            del dqkv
            own = ops.norm_backward(
                dh, codes, numbers, rstd, norm_weight, shape.keep.norm, needs[0], out[part].view(-1, columns)
            )
            weight_sum, bias_sum = total(weight_sum, own[0], needs[0]), total(bias_sum, own[1], needs[1])
            del dh
        norm = (like(norm_weight, weight_sum), like(norm_bias, bias_sum))
        moved = out if ctx.needs_input_grad[1] else None
        return None, moved, like(bias, added_sum), None, *norm, *first.grads(), *second.grads()


def _added(shape: Shape, bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """What is added to the scores of windows, ``(1 or windows, heads, N, N)``."""
    if mask is None:
        return None if bias is None else bias.to(shape.dtype)
    return (mask.unsqueeze(1) if bias is None else bias + mask.unsqueeze(1)).to(shape.dtype)


def split(qkv: Tensor, tokens: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a fused projection ``(items * N, 3 H d)`` to q, k, v ``(items, H, N, d)``, views."""
    q, k, v = qkv.view(-1, tokens, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _small(tokens: int, width: int) -> bool:
    """Whether a map is no larger than the projection, as a window's is: then products of whole batches are fastest."""
    return tokens <= 3 * width


def _map(q: Tensor, k: Tensor, added: Tensor | None) -> Tensor:
    """softmax(q k^T + added), where ``added`` is that of one image's windows."""
    scores = q @ k.transpose(-2, -1)
    if added is not None:
        scores.view(-1, *added.shape).add_(added)
    return scores.softmax(-1)


def _apart(rows: Tensor, tokens: int, heads: int, of: int = 3) -> Tensor:
    """Rows of ``of`` projections to ``(of, items, H, N, d)``, in one copy: products of batches would make their own."""
    width = rows.shape[1] // (of * heads)
    parts = rows.view(-1, tokens, of, heads, width).permute(2, 0, 3, 1, 4)
    return parts.clone(memory_format=torch.contiguous_format)  # Never the rows themselves.


def attend(qkv: Tensor, tokens: int, heads: int, added: Tensor | None, scale: float) -> Tensor:
    """Attention's output as rows, ``(items * N, H d)``, from those of q, k, v."""
    if _small(tokens, qkv.shape[1] // (3 * heads)):
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        for rows in _rows_of_pieces(qkv, tokens, added):
            q, k, v = _apart(qkv[rows], tokens, heads).unbind(0)
            _put(out[rows], _map(q.mul_(scale), k, added) @ v)
        return out
    q, k, v = split(qkv, tokens, heads)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=_of_all(added, len(q)), scale=scale)
    return mixed.transpose(1, 2).reshape(-1, mixed.shape[1] * mixed.shape[3])


def _rows_of_pieces(qkv: Tensor, tokens: int, added: Tensor | None) -> Iterator[slice]:
    """A chunk's windows, whole images' where they have masks: in pieces for a CPU's cache, at once elsewhere."""
    if qkv.device.type != "cpu" or torch.compiler.is_compiling():  # A compiler would unroll the loop.
        yield slice(0, len(qkv))
        return
    least = tokens * (1 if added is None else len(added))
    step = max(1, CPU_PIECE // (least * qkv.shape[1])) * least
    for start in range(0, len(qkv), step):
        yield slice(start, min(start + step, len(qkv)))


def _put(rows: Tensor, values: Tensor) -> None:
    """Writes ``(items, H, N, d)`` into rows ``(items * N, H d)``."""
    items, heads, tokens, width = values.shape
    rows.view(items, tokens, heads, width).copy_(values.transpose(1, 2))


def _of_all(added: Tensor | None, items: int) -> Tensor | None:
    return added if added is None or len(added) == 1 else added.repeat(items // len(added), 1, 1, 1)


def attend_backward(
    qkv: Tensor,
    grad: Tensor,
    tokens: int,
    heads: int,
    added: Tensor | None,
    scale: float,
    want_added: bool,
    want_mixed: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """Attention once more, and its backward pass, by autograd on leaves of their own.

    Args:
        qkv: ``(items * N, 3 H d)``, which may be written over.
        grad: Of the output's rows, ``(items * N, H d)``.
        tokens: N.
        heads: H.
        added: To the scores.
        scale: Of the scores.
        want_added: Whether ``added`` has a gradient.
        want_mixed: Whether the output's rows are asked for.

    Returns:
        The output's rows or ``None``, the gradient of ``qkv``, and that of ``added``.
    """
    if torch.compiler.is_compiling() or _small(tokens, qkv.shape[1] // (3 * heads)):
        # A graph within a backward pass is none that compilers can trace.
        return _attend_backward_written_out(qkv, grad, tokens, heads, added, scale, want_added, want_mixed)
    with torch.enable_grad():
        leaf = qkv.detach().requires_grad_()
        added = _of_all(added, len(qkv) // tokens)
        if added is not None:
            added = added.detach().requires_grad_(want_added)
        mixed = attend(leaf, tokens, heads, added, scale)
        wanted = [leaf, added] if want_added and added is not None else [leaf]
        found = torch.autograd.grad(mixed, wanted, grad)
    return mixed.detach() if want_mixed else None, found[0], found[1] if len(found) > 1 else None


def _attend_backward_written_out(
    qkv: Tensor,
    grad: Tensor,
    tokens: int,
    heads: int,
    added: Tensor | None,
    scale: float,
    want_added: bool,
    want_mixed: bool,
) -> tuple[Tensor | None, Tensor, Tensor | None]:
    """The same without autograd: five products of batches."""
    mixed = torch.empty_like(grad) if want_mixed else None
    dadded = None
    for rows in _rows_of_pieces(qkv, tokens, added):
        q, k, v = _apart(qkv[rows], tokens, heads).unbind(0)
        q.mul_(scale)
        attention = _map(q, k, added)
        if mixed is not None:
            _put(mixed[rows], attention @ v)
        (dout,) = _apart(grad[rows], tokens, heads, 1)
        dq, dk, dv = split(qkv[rows], tokens, heads)  # The rows themselves are not needed any more.
        dv.copy_(attention.transpose(-2, -1) @ dout)
        dscores = torch.ops.aten._softmax_backward_data(dout @ v.transpose(-2, -1), attention, -1, attention.dtype)
        dq.copy_((dscores @ k).mul_(scale))
        dk.copy_(dscores.transpose(-2, -1) @ q)
        if want_added and added is not None:
            dadded = total(dadded, dscores.view(-1, *added.shape).sum(0), True)
    return mixed, qkv, dadded


def attention(
    shape: Shape, x: Tensor, bias: Tensor | None, mask: Tensor | None, tensors: tuple[Tensor | None, ...]
) -> Tensor:
    """Attention of a block on its norm's input.

    Args:
        shape: What is kept, and how.
        x: ``(items, N, C)``: images, or windows, those of one image one after the other.
        bias: Added to all scores, broadcastable to ``(items, heads, N, N)``.
        mask: ``(windows, N, N)``, added to the scores of an image's windows.
        tensors: Weight and bias of the norm; W, b, A and U of both linear layers.

    Returns:
        ``(items, N, C)`` in ``shape.dtype``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _Attention.apply(shape, x, bias, mask, *tensors)  # type: ignore[no-any-return]
