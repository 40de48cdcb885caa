"""Scaled dot-product attention that keeps its softmax output in a few bits (paper equations 7 to 9).

    S = scale q k^T + bias,   y = softmax(S),   O = y v
    y_q = round((y - min) / s),   s = (max - min) / (2^bits - 1)     (equation 8, for each row)
    y' = y_q s + min                                                 (equation 9)
    dv = y'^T dO,   dy = dO v^T,   dS = y' * (dy - sum(dy * y'))     (equation 7)

The quantised map also serves the product with V in the backward pass, so no full-precision map outlives the forward.
Every row has numbers of its own: with one scale for the whole tensor, a single peaked row flattens all diffuse ones to
zero.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from s2a.ops.keeping import keeps_for_backward
from s2a.ops.loops import alike
from s2a.ops.pack import chunk_of, pack, packed_bytes, unpack


def _rows_per_chunk(rows: int, width: int, device: torch.device) -> int:
    """Rows of one chunk: their codes fill whole bytes together."""
    return max(8, chunk_of(rows * width, device) // max(width, 1) // 8 * 8)


NUMBERS = {"paper": 2, "derivative": 1}
"""Levels -> float16 numbers that are stored with each row's codes."""


def _even_codes(y: Tensor, top: int) -> tuple[Tensor, ...]:
    """Codes (float) of equation 8, and every row's minimum and step in float16, to which the codes refer."""
    low = y.amin(dim=1, keepdim=True).half()
    scale = ((y.amax(dim=1, keepdim=True) - low.float()) / top).half()
    unit = scale.float()
    codes = (y - low.float()).mul_(torch.where(unit > 0, 1 / unit, 0.0))
    return codes.round_().clamp_(0, top), low, scale


def _even_values(codes: Tensor, top: int, numbers: Tensor) -> Tensor:
    """Equation 9."""
    return torch.addcmul(numbers[:, :1], codes, numbers[:, 1:])


def _peak_codes(y: Tensor, top: int) -> tuple[Tensor, ...]:
    """Codes (float) whose last one marks a row's largest value, and the sum of all others in float16.

    The largest value is 1 less that sum: stored itself, it would round near 1, where the sum is what counts.
    """
    place = y.argmax(dim=1, keepdim=True)
    # Masked scores leave subnormal numbers, on which a CPU is many times slower; 1e-30 is as good as 0.
    others = y.scatter(1, place, 0.0).clamp_min_(1e-30)
    # Codes are proportional to the square root: fine steps for small values.
    most, total = others.amax(dim=1, keepdim=True), others.sum(dim=1, keepdim=True)
    codes = others.mul_((top - 1) ** 2 / most).sqrt_()
    # No float(top): a compiler with dynamic shapes takes bits for a symbol and has no conversion of it.
    return codes.round_().scatter_(1, place, top), total.half()


def _peak_values(codes: Tensor, top: int, total: Tensor) -> Tensor:
    """Squares of the codes, scaled to the kept sum; at the row's largest value 1 less that sum.

    With c the codes, P the place of code ``top`` and T the kept sum: y'_j = c_j^2 T / sum of c^2 outside P for j != P,
    y'_P = 1 - T.
    """
    # Arithmetic on codes: comparisons and masks take several times as long on a CPU.
    is_peak = (codes - (top - 1)).clamp_min_(0)
    squares = codes.sub_(is_peak, alpha=top).square_() if top > 1 else codes.neg_().add_(1)
    sums = squares.sum(dim=1, keepdim=True)
    squares.mul_(total / sums.clamp_min(1.0))  # A sum is 0 or at least 1.
    return squares.addcmul_(is_peak, 1 - total)


def quantize_rows(y: Tensor, bits: int, levels: str = "paper") -> tuple[Tensor, Tensor]:
    """Codes of a softmax's rows, and the numbers that go with each row.

    ``"paper"``: equation 8, row by row. ``"derivative"``: the last code marks the row's largest value; the others lie
    at squares of a uniform grid, scaled so that they have the sum they had, and the largest is 1 less that sum. A
    softmax's derivative is made of products y_i (1_ij - y_j): small values want fine steps, a row's values must add
    up, and a peaked row hangs on 1 - y, the others' sum.

    Args:
        y: ``(..., n)`` in [0, 1], with rows that sum to 1.
        bits: Width of a code.
        levels: ``"paper"`` or ``"derivative"``.

    Returns:
        Packed codes (uint8), and ``(rows, NUMBERS[levels])`` float16: minimum and step (``"paper"``; the codes refer to
        the *rounded* ones), or the sum of all but the largest value (``"derivative"``).
    """
    rows, width = math.prod(y.shape[:-1]), y.shape[-1]
    flat = y.reshape(rows, width)
    encode = _even_codes if levels == "paper" else _peak_codes
    numbers = torch.empty(rows, NUMBERS[levels], dtype=torch.float16, device=y.device)
    step = _rows_per_chunk(rows, width, y.device)
    size = packed_bytes(step * width, bits)
    whole, rest = divmod(rows, step)
    data = torch.empty(whole * size + packed_bytes(rest * width, bits), dtype=torch.uint8, device=y.device)
    for i, start in alike(list(enumerate(range(0, rows if width else 0, step)))):
        part = slice(start, start + step)
        codes, *own = encode(flat[part].float(), (1 << bits) - 1)
        for column, number in enumerate(own):
            numbers[part, column : column + 1] = number
        packed = pack(codes.nan_to_num_(0.0).to(torch.uint8).reshape(-1), bits)
        data[i * size : i * size + packed.numel()] = packed
    return data, numbers


def dequantize_rows(
    data: Tensor, numbers: Tensor, shape: torch.Size, bits: int, dtype: torch.dtype, levels: str = "paper"
) -> Tensor:
    """The map that ``quantize_rows`` kept (equation 9 for ``"paper"``), in ``shape`` and ``dtype``."""
    rows, width = numbers.shape[0], shape[-1]
    decode = _even_values if levels == "paper" else _peak_values
    out = torch.empty(rows, width, dtype=dtype, device=data.device)
    step = _rows_per_chunk(rows, width, data.device)
    size = packed_bytes(step * width, bits)
    work = torch.promote_types(dtype, torch.float32)  # Sums of squares are too large for float16.
    for i, start in alike(list(enumerate(range(0, rows if width else 0, step)))):
        part = out[start : start + step]
        codes = unpack(data[i * size : i * size + packed_bytes(part.numel(), bits)], part.numel(), bits)
        part.copy_(decode(codes.view(part.shape).to(work), (1 << bits) - 1, numbers[start : start + step].to(work)))
    return out.view(shape)


class _QuantizedSoftmax(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int, dim: int, levels: str) -> Tensor:
        y = x.softmax(dim)
        rows = y.movedim(dim, -1)
        ctx.bits, ctx.dim, ctx.shape, ctx.levels = bits, dim, rows.shape, levels
        ctx.save_for_backward(*quantize_rows(rows, bits, levels))
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        data, numbers = ctx.saved_tensors
        # y' (equation 9), then equation 7.
        y = dequantize_rows(data, numbers, ctx.shape, ctx.bits, grad.dtype, ctx.levels)
        return _softmax_backward(grad, y.movedim(-1, ctx.dim), ctx.dim), None, None, None


def _softmax_backward(grad: Tensor, y: Tensor, dim: int = -1) -> Tensor:
    """Equation 7: y * (grad - sum(grad * y)), in one pass of the operator that autograd uses."""
    return torch.ops.aten._softmax_backward_data(grad, y, dim, y.dtype)  # type: ignore[no-any-return]


class _QuantizedAttention(torch.autograd.Function):
    """Saves q, k, v (views of one projection where they are) and the codes of the attention map."""

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, bits: int, levels: str
    ) -> Tensor:
        scores = (q * scale) @ k.transpose(-2, -1)
        if bias is not None:
            scores = scores + bias
        y = scores.softmax(-1)
        ctx.bits, ctx.scale, ctx.shape, ctx.levels = bits, scale, y.shape, levels
        ctx.bias = None if bias is None else (bias.shape, bias.dtype)
        ctx.save_for_backward(q, k, v, *quantize_rows(y, bits, levels))
        return y @ v

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        q, k, v, data, numbers = ctx.saved_tensors
        # y' serves both products: dv = y'^T dO, and dS through the softmax.
        y = dequantize_rows(data, numbers, ctx.shape, ctx.bits, grad.dtype, ctx.levels)
        grad_v = y.transpose(-2, -1) @ grad
        scores = _softmax_backward(grad @ v.transpose(-2, -1), y)
        # S = scale q k^T + bias: dq = scale dS k, dk = dS^T (scale q), and the bias summed to its shape.
        grad_q = (scores @ k) * ctx.scale
        grad_k = scores.transpose(-2, -1) @ (q * ctx.scale)
        grad_bias = None
        if ctx.bias is not None and ctx.needs_input_grad[3]:
            grad_bias = scores.sum_to_size(ctx.bias[0]).to(ctx.bias[1])
        return grad_q, grad_k, grad_v, grad_bias, None, None, None


def quantized_softmax(x: Tensor, bits: int = 4, dim: int = -1, levels: str = "paper") -> Tensor:
    """Softmax over axis ``dim`` that keeps its output in ``bits`` bits."""
    if not (keeps_for_backward() and x.requires_grad) or x.dim() == 0:
        return x.softmax(dim)
    return _QuantizedSoftmax.apply(x, bits, dim, levels)  # type: ignore[no-any-return]


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
    *,
    bits: int = 4,
    levels: str = "paper",
) -> Tensor:
    """``torch.nn.functional.scaled_dot_product_attention`` with a quantised map.

    Args:
        q: ``(..., N, d)``.
        k: ``(..., S, d)``.
        v: ``(..., S, e)``.
        attn_mask: Boolean (True takes part) or additive, broadcastable to ``(..., N, S)``.
        dropout_p: Dropout on the map. Above 0 the map that the product with V saw must be kept, at full precision.
        is_causal: Lower-triangular mask.
        scale: Of the scores; ``None``: ``d ** -0.5``.
        enable_gqa: Repeats the heads of k and v to those of q.
        bits: Width of the map's codes.
        levels: As in ``quantize_rows``.
    """
    if enable_gqa:
        repeats = q.shape[-3] // k.shape[-3]
        k, v = k.repeat_interleave(repeats, -3), v.repeat_interleave(repeats, -3)
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    bias = attn_mask
    if is_causal:
        full = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool, device=q.device).tril()
        bias = torch.zeros_like(full, dtype=q.dtype).masked_fill_(~full, float("-inf"))
    elif attn_mask is not None and attn_mask.dtype == torch.bool:
        bias = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(~attn_mask, float("-inf"))
    needs_grad = keeps_for_backward() and any(t is not None and t.requires_grad for t in (q, k, v, bias))
    if dropout_p > 0 or not needs_grad:
        scores = (q * factor) @ k.transpose(-2, -1)
        scores = scores if bias is None else scores + bias
        return F.dropout(quantized_softmax(scores, bits, levels=levels), dropout_p) @ v
    if torch.is_autocast_enabled(q.device.type):
        # The products would cast them, but the backward pass sees what is kept.
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = q.to(dtype), k.to(dtype), v.to(dtype)
    return _QuantizedAttention.apply(q, k, v, bias, factor, bits, levels)  # type: ignore[no-any-return]


class QuantizedAttentionMode(TorchFunctionMode):
    """Inside it, ``scaled_dot_product_attention`` is ``attention`` in ``bits`` bits: one rule for every module."""

    def __init__(self, bits: int, levels: str = "paper") -> None:
        super().__init__()
        self.bits = bits
        self.levels = levels

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Swaps the one function, passes the rest on."""
        if func is F.scaled_dot_product_attention:
            return attention(*args, **(kwargs or {}), bits=self.bits, levels=self.levels)
        return func(*args, **(kwargs or {}))
