"""The operators of lean activations in plain torch: the CPU's implementation, and the oracle of all others.

A matrix has one row for each token. Work goes in pieces of rows that stay in a CPU's cache; no temporary is larger.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from s2a.activations.pointwise import Code, activation_code
from s2a.lean.rows import (
    CODED,
    code_columns,
    code_dtype,
    dequantize_rows,
    number_dtype,
    number_shape,
    pack_rows,
    quantize_rows,
    row_bytes,
    unpack_rows,
)

PIECE = 1 << 17
"""Elements of a piece."""

FORWARDS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "gelu": ("gelu", F.gelu),
    "gelu_tanh": ("gelu", lambda x: F.gelu(x, approximate="tanh")),
    "quick_gelu": ("quick_gelu", lambda x: x * (1.702 * x).sigmoid()),
    "silu": ("silu", F.silu),
    "hardswish": ("hardswish", F.hardswish),
    "relu": ("relu", F.relu),
    "relu6": ("relu6", F.relu6),
}
"""Activation -> the name of its derivative's code, and its forward."""


def code_of(activation: str, bits: int, levels: str) -> Code:
    """The derivative's code of an activation (see ``activation_code``); ReLU's takes 1 bit whatever is asked for."""
    return activation_code(FORWARDS[activation][0], bits, levels)


def _pieces(rows: int, columns: int) -> Iterator[slice]:
    step = max(1, PIECE // max(columns, 1))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def empty_codes(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Room for a matrix's codes and numbers."""
    rows, columns = x.shape
    codes = x.new_empty((rows, code_columns(columns, bits)), dtype=code_dtype(bits, x.dtype))
    return codes, x.new_empty(number_shape(rows, columns, bits), dtype=number_dtype(bits))


def rows_pack(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """See ``ops.rows_pack``."""
    codes, numbers = empty_codes(x, bits)
    for piece in _pieces(*x.shape):
        codes[piece], own = quantize_rows(x[piece], bits)
        if bits <= CODED:
            numbers[piece] = own
    return codes, numbers


def rows_unpack(codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype) -> Tensor:
    """See ``ops.rows_unpack``."""
    out = torch.empty(len(codes), columns, dtype=dtype, device=codes.device)
    for piece in _pieces(len(codes), columns):
        out[piece] = dequantize_rows(codes[piece], numbers[piece], columns, bits, dtype)
    return out


def norm_pack(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``ops.norm_pack``."""
    codes, numbers = empty_codes(x, bits)
    if x.dtype == torch.float32 and weight is not None and weight.dtype != x.dtype:  # Frozen, in half precision.
        weight, bias = weight.float(), None if bias is None else bias.float()
    out, mean, rstd = torch.native_layer_norm(x, x.shape[1:], weight, bias, eps)
    rstd = rstd.view(-1, 1)
    for piece in _pieces(*x.shape):
        normed = (x[piece] - mean.view(-1, 1)[piece]).mul_(rstd[piece])
        codes[piece], own = quantize_rows(normed, bits)
        if bits <= CODED:
            numbers[piece] = own
    return out, codes, numbers, rstd


def norm_rebuild(
    codes: Tensor,
    numbers: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    columns: int,
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    """See ``ops.norm_rebuild``."""
    out = torch.empty(len(codes), columns, dtype=dtype, device=codes.device)
    work = torch.promote_types(dtype, torch.float32)
    for piece in _pieces(len(codes), columns):
        value = dequantize_rows(codes[piece], numbers[piece], columns, bits, work)
        if weight is None:
            out[piece].copy_(value)
        elif bias is None:
            out[piece].copy_(value * weight)  # Not in place: at 32 bits the values are the codes themselves.
        else:
            out[piece].copy_(torch.addcmul(bias, value, weight))
    return out


def norm_backward(
    grad: Tensor,
    codes: Tensor,
    numbers: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bits: int,
    want_weight: bool,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """See ``ops.norm_backward``."""
    columns = grad.shape[1]
    work = torch.promote_types(grad.dtype, torch.float32)
    sums = torch.zeros(2, columns, dtype=work, device=grad.device)
    nought, one = rstd.new_zeros(len(grad), 1).to(work), rstd.new_ones(len(grad), 1).to(work)
    if weight is None:
        weight = grad.new_ones(columns)
    weight = weight.to(work)
    for piece in _pieces(*grad.shape):
        normed = dequantize_rows(codes[piece], numbers[piece], columns, bits, work)
        moved, own_weight, own_bias = torch.ops.aten.native_layer_norm_backward(
            grad[piece].to(work),
            normed,
            [columns],
            nought[piece],
            one[piece],
            weight,
            weight,
            [True, want_weight, True],
        )
        if want_weight:
            sums[0] += own_weight
        sums[1] += own_bias
        out[piece].copy_(moved.mul_(rstd[piece]))
    return (sums[0] if want_weight else sums.new_empty(0)), sums[1].clone()


def act_pack(u: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    """See ``ops.act_pack``."""
    code, forward = code_of(activation, bits, levels), FORWARDS[activation][1]
    encode = code.encoder(u.device)
    codes = u.new_empty((len(u), row_bytes(u.shape[1], code.bits)), dtype=torch.uint8)
    for piece in _pieces(*u.shape):
        part = u[piece]
        codes[piece] = pack_rows(encode(part.reshape(-1)).view(part.shape), code.bits)
        part.copy_(forward(part))
    return codes


def _look_up(values: tuple[float, ...], bits: int, shift: int) -> tuple[float, ...]:
    return tuple(values[(byte >> shift) & ((1 << bits) - 1)] for byte in range(256))


def act_backward(grad: Tensor, codes: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    """See ``ops.act_backward``."""
    code, columns = code_of(activation, bits, levels), grad.shape[1]
    work = torch.promote_types(grad.dtype, torch.float32)
    sums = torch.zeros(columns, dtype=work, device=grad.device)
    if code.bits == 3:
        table = code.table(grad.dtype, grad.device)
        tables = []
    else:  # One look-up of a byte for each of its codes: nothing is unpacked.
        parts = 8 // code.bits
        tables = [
            torch.tensor(_look_up(code.values, code.bits, code.bits * i), dtype=grad.dtype, device=grad.device)
            for i in range(parts)
        ]
        table = tables[0]
    width = codes.shape[1]
    for piece in _pieces(*grad.shape):
        part = grad[piece]
        if code.bits == 3:
            part *= table.index_select(0, unpack_rows(codes[piece], columns, 3).reshape(-1).int()).view(part.shape)
        else:
            index = codes[piece].reshape(-1).int()
            for i, values in enumerate(tables):
                columns_of = part[:, i * width : (i + 1) * width]
                columns_of *= values.index_select(0, index).view(len(part), width)[:, : columns_of.shape[1]]
        sums += part.sum(0, dtype=work)
    return sums
