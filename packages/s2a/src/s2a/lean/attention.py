"""Layer norm and attention as one autograd function that keeps codes of the normalised input.

Forward, for the rows x of a batch (N tokens of C channels each, H heads of width d):

    n = (x - mean) rstd        normalised input, the only activation that is kept (in codes)
    h = n w + b                the norm's output
    [q k v] = h W1^T + b1      kept in codes too where ``SavedBits.inner`` is not 0
    P = softmax(scale q k^T + score bias)
    y = (P v) W2^T + b2

The backward pass rebuilds h from n' (its codes), then q, k, v and P, and applies the chain rule from y to x. P and the
sums of exponentials in it always come from the same q and k as the rest: the exact P of the forward pass beside
approximate q and k would be wrong by factors, not by rounding.

Storage of one chunk of images: n' as codes, minimum and step of each row or group (``s2a.ops.rows``), rstd in float32;
with ``inner`` also the codes of q, k, v as ``(3 R, C)`` rows. FlashAttention (https://arxiv.org/abs/2205.14135)
recomputes P in the same way, from exact q and k.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2a.lean.linear import fetch_weights, image_chunks, two_layers
from s2a.lean.spec import BranchOptions, add_to, cast_like, to_rows, write_rows
from s2a.ops import custom_ops as ops
from s2a.ops.loops import alike, repeated
from s2a.ops.offload import load, save
from s2a.ops.reference import CPU_PIECE


class _Attention(torch.autograd.Function):
    """proj(attention(qkv(norm(x)))), chunk by chunk.

    ``tensors``: the norm's weight and bias, then W, b, A, U of both linear layers. A chunk holds whole images, so that
    its widest temporary, q k v, has at most about ``linear.CHUNK`` elements.
    """

    @staticmethod
    def forward(
        ctx: Any, options: BranchOptions, x: Tensor, bias: Tensor | None, mask: Tensor | None, *tensors: Tensor | None
    ) -> Tensor:
        out, *kept = _forward(options, x, bias, mask, fetch_weights(options, tensors, x.device, False))
        ctx.options, ctx.input_like = options, (x.shape, x.dtype)
        save(ctx, (*tensors, bias, mask), kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        saved = load(ctx)
        bias, mask = saved[10:12]
        tensors = fetch_weights(ctx.options, saved[:10], grad.device, True)
        moved, added, *gradients = _backward(
            ctx.options, grad, tensors, bias, mask, saved[12:], ctx.input_like, ctx.needs_input_grad[1:]
        )
        return None, moved, added, None, *gradients


def _parts(shape: Sequence[int], mask: Tensor | None, columns: int) -> Sequence[slice]:
    """Chunks of a batch ``(items, N, C)``: whole images; ``columns`` are those of q k v."""
    return alike(list(image_chunks(shape[0], shape[1] * columns, 1 if mask is None else len(mask))))


@repeated
def _forward(
    options: BranchOptions, x: Tensor, bias: Tensor | None, mask: Tensor | None, tensors: tuple[Tensor | None, ...]
) -> list[Tensor]:
    """The output, and what is kept of every chunk."""
    norm_weight, norm_bias = tensors[:2]
    first, second = two_layers(options, tensors, (False,) * 10)
    tokens = x.shape[1]
    out = torch.empty(len(x), tokens, len(second.weight), dtype=options.dtype, device=x.device)
    kept: list[Tensor] = []
    added = _added(options, bias, mask)
    for part in _parts(x.shape, mask, len(first.weight)):
        # The norm: h, and the codes of n with which the backward pass makes h again.
        h, *codes = ops.norm_pack(to_rows(x, part, False), norm_weight, norm_bias, options.eps, options.saved_bits.norm)
        kept += codes
        # The projection, attention, the output projection; each input is let go as soon as it is used.
        qkv = first.recompute(h.to(options.dtype), options.forward_dtype)
        del h
        if options.saved_bits.inner:
            kept += ops.rows_pack(qkv.view(-1, qkv.shape[1] // 3), options.saved_bits.inner)
        mixed = attend(qkv, tokens, options.heads, added, options.scale)
        del qkv
        write_rows(out, part, second.recompute(mixed, options.forward_dtype), False)
        del mixed
    return [out, *kept]


@repeated
def _backward(
    options: BranchOptions,
    grad: Tensor,
    tensors: tuple[Tensor | None, ...],
    bias: Tensor | None,
    mask: Tensor | None,
    kept: tuple[Tensor, ...],
    input_like: tuple[Sequence[int], torch.dtype],
    wanted: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients of x, the score bias and ``tensors``; ``wanted``: of which of x, bias, mask and these."""
    needs = wanted[3:]
    norm_weight, norm_bias = tensors[:2]
    first, second = two_layers(options, tensors, needs)
    tokens, columns = input_like[0][1:]
    out = torch.empty(input_like[0], dtype=input_like[1], device=grad.device)
    weight_sum = bias_sum = added_sum = None
    each = 5 if options.saved_bits.inner else 3  # Tensors that the forward pass kept of every chunk.
    added = _added(options, bias, mask)
    for i, part in enumerate(_parts(input_like[0], mask, len(first.weight))):
        codes, numbers, rstd, *inner = kept[i * each : (i + 1) * each]
        g = to_rows(grad, part, False)
        # 1. h from its codes, where q, k, v are recomputed from it or W1's gradient is made of it.
        h = None
        if not inner or first.reads_input:
            h = ops.norm_rebuild(
                codes, numbers, norm_weight, norm_bias, columns, options.saved_bits.norm, options.dtype
            )
        # 2. q, k, v: from codes of their own, or from h.
        if inner:
            width = len(first.weight)
            qkv = ops.rows_unpack(*inner, width // 3, options.saved_bits.inner, options.dtype).view(-1, width)
        else:
            qkv = first.recompute(h, options.recompute_dtype)  # type: ignore[arg-type]
        if not first.reads_input:
            h = None
        # 3. d(P v) = g W2, and through the softmax to q, k, v and the score bias.
        dmixed = second.input_grad(g)
        want = wanted[1]
        mixed, dqkv, dadded = attend_backward(
            qkv, dmixed, tokens, options.heads, added, options.scale, want, second.reads_input
        )
        del qkv, dmixed
        if dadded is not None and bias is not None:
            added_sum = add_to(added_sum, dadded.sum_to_size(bias.shape), True)
        # 4. Gradients of W2, b2 (from P v) and of W1, b1 (from h), where they are asked for.
        second.add_gradients(g, mixed)
        del g, mixed
        first.add_gradients(dqkv, h)
        del h
        # 5. dh = d[q k v] W1, and through the norm to x.
        dh = first.input_grad(dqkv)
        del dqkv
        own = ops.norm_backward(
            dh, codes, numbers, rstd, norm_weight, options.saved_bits.norm, needs[0], out[part].view(-1, columns)
        )
        weight_sum, bias_sum = add_to(weight_sum, own[0], needs[0]), add_to(bias_sum, own[1], needs[1])
        del dh
    norm = (cast_like(norm_weight, weight_sum), cast_like(norm_bias, bias_sum))
    moved = out if wanted[0] else None
    return moved, cast_like(bias, added_sum), *norm, *first.gradients(), *second.gradients()


def _added(options: BranchOptions, bias: Tensor | None, mask: Tensor | None) -> Tensor | None:
    """What is added to the scores of windows, ``(1 or windows, heads, N, N)``."""
    if mask is None:
        return None if bias is None else bias.to(options.dtype)
    return (mask.unsqueeze(1) if bias is None else bias + mask.unsqueeze(1)).to(options.dtype)


def split(qkv: Tensor, tokens: int, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of a fused projection ``(items * N, 3 H d)`` to q, k, v ``(items, H, N, d)``, views."""
    q, k, v = qkv.view(-1, tokens, 3, heads, qkv.shape[1] // (3 * heads)).permute(2, 0, 3, 1, 4).unbind(0)
    return q, k, v


def _map_is_small(tokens: int, width: int) -> bool:
    """Whether P is no larger than q, k, v together, as a window's is: then batched products of it are fastest."""
    return tokens <= 3 * width


def _map(q: Tensor, k: Tensor, added: Tensor | None) -> Tensor:
    """P = softmax(q k^T + added) of scaled queries; ``added`` is that of one image's windows, repeated over images."""
    scores = q @ k.transpose(-2, -1)
    if added is not None:
        scores.view(-1, *added.shape).add_(added)
    return scores.softmax(-1)


def _split_contiguous(rows: Tensor, tokens: int, heads: int, of: int = 3) -> Tensor:
    """Rows of ``of`` projections to ``(of, items, H, N, d)``, contiguous: one copy here instead of one per product."""
    width = rows.shape[1] // (of * heads)
    parts = rows.view(-1, tokens, of, heads, width).permute(2, 0, 3, 1, 4)
    return parts.clone(memory_format=torch.contiguous_format)  # Never the rows themselves.


def attend(qkv: Tensor, tokens: int, heads: int, added: Tensor | None, scale: float) -> Tensor:
    """Attention's output as rows, ``(items * N, H d)``, from those of q, k, v."""
    if _map_is_small(tokens, qkv.shape[1] // (3 * heads)):
        out = qkv.new_empty(len(qkv), qkv.shape[1] // 3)
        for rows in _row_pieces(qkv, tokens, added):
            q, k, v = _split_contiguous(qkv[rows], tokens, heads).unbind(0)
            _write_heads(out[rows], _map(q.mul_(scale), k, added) @ v)
        return out
    q, k, v = split(qkv, tokens, heads)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=_repeat_windows(added, len(q)), scale=scale)
    return mixed.transpose(1, 2).reshape(-1, mixed.shape[1] * mixed.shape[3])


def _row_pieces(qkv: Tensor, tokens: int, added: Tensor | None) -> Sequence[slice]:
    """Rows of a chunk in pieces for a CPU's cache, whole images where windows have masks; all at once elsewhere."""
    if qkv.device.type != "cpu" or torch.compiler.is_compiling():  # A compiler would unroll the loop.
        return [slice(0, len(qkv))]
    least = tokens * (1 if added is None else len(added))
    step = max(1, CPU_PIECE // (least * qkv.shape[1])) * least
    return alike([slice(start, min(start + step, len(qkv))) for start in range(0, len(qkv), step)])


def _write_heads(rows: Tensor, values: Tensor) -> None:
    """Writes ``(items, H, N, d)`` into rows ``(items * N, H d)``."""
    items, heads, tokens, width = values.shape
    rows.view(items, tokens, heads, width).copy_(values.transpose(1, 2))


def _repeat_windows(added: Tensor | None, items: int) -> Tensor | None:
    """The score bias of one image's windows, repeated for every image of the chunk."""
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
    """Recomputes attention from q, k, v and differentiates it: gradients of q, k, v and of the score bias.

    Where P is large, by autograd through ``scaled_dot_product_attention``, whose fused kernels never hold it.

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
    if torch.compiler.is_compiling() or _map_is_small(tokens, qkv.shape[1] // (3 * heads)):
        # Compilers cannot trace an autograd graph inside of a backward pass.
        return _attend_backward_written_out(qkv, grad, tokens, heads, added, scale, want_added, want_mixed)
    with torch.enable_grad():
        leaf = qkv.detach().requires_grad_()
        added = _repeat_windows(added, len(qkv) // tokens)
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
    """The same without autograd, with P held.

    For O = P v, P = softmax(S), S = scale q k^T + added (paper equation 7 for the softmax):

        dv = P^T dO,   dP = dO v^T,   dS = P * (dP - rowsum(dP * P)),
        dq = scale dS k,   dk = scale dS^T q,   d added = sum of dS over images.
    """
    mixed = torch.empty_like(grad) if want_mixed else None
    dadded = None
    for rows in _row_pieces(qkv, tokens, added):
        q, k, v = _split_contiguous(qkv[rows], tokens, heads).unbind(0)
        q.mul_(scale)  # Once for all: S and dk are products of the scaled q.
        attention = _map(q, k, added)
        if mixed is not None:
            _write_heads(mixed[rows], attention @ v)
        (dout,) = _split_contiguous(grad[rows], tokens, heads, 1)
        # Gradients are written over the rows of q, k, v, which ``_split_contiguous`` has copied.
        dq, dk, dv = split(qkv[rows], tokens, heads)
        dv.copy_(attention.transpose(-2, -1) @ dout)
        dscores = torch.ops.aten._softmax_backward_data(dout @ v.transpose(-2, -1), attention, -1, attention.dtype)
        dq.copy_((dscores @ k).mul_(scale))
        dk.copy_(dscores.transpose(-2, -1) @ q)
        if want_added and added is not None:
            dadded = add_to(dadded, dscores.view(-1, *added.shape).sum(0), True)
    return mixed, qkv, dadded


def attention(
    options: BranchOptions, x: Tensor, bias: Tensor | None, mask: Tensor | None, tensors: tuple[Tensor | None, ...]
) -> Tensor:
    """Attention of a block on its norm's input.

    Args:
        options: What is kept, and how.
        x: ``(items, N, C)``: images, or windows, those of one image one after the other.
        bias: Added to all scores, broadcastable to ``(items, heads, N, N)``.
        mask: ``(windows, N, N)``, added to the scores of an image's windows.
        tensors: Weight and bias of the norm; W, b, A and U of both linear layers.

    Returns:
        ``(items, N, C)`` in ``options.dtype``.
    """
    with torch.autocast(x.device.type, enabled=False):
        return _Attention.apply(options, x, bias, mask, *tensors)  # type: ignore[no-any-return]
