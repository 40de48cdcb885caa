"""The operators of lean activations in plain torch: the CPU's implementation, and the oracle of all others.

A matrix has one row for each token. Work goes in pieces of rows that stay in a CPU's cache, or fill another device; no
temporary is larger.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from s2a.ops.pack import ACCELERATOR_CHUNK
from s2a.ops.pointwise import Code, activation_code, cell_numbers
from s2a.ops.rows import (
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

CPU_PIECE = 1 << 19
"""Elements of a piece on a CPU: few enough for its cache, many enough that starting an operation costs little."""

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


IN_PLACE: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_,
    "gelu_tanh": lambda x: torch.ops.aten.gelu_(x, approximate="tanh"),
    "quick_gelu": lambda x: x.mul_((1.702 * x).sigmoid_()),
    "silu": lambda x: F.silu(x, inplace=True),
    "hardswish": lambda x: F.hardswish(x, inplace=True),
    "relu": torch.relu_,
    "relu6": lambda x: F.relu6(x, inplace=True),
}
"""The same bits in the argument's place: one pass less over what does not stay in a cache."""


def _quick_gelu_backward(grad: Tensor, u: Tensor) -> Tensor:
    gate = (1.702 * u).sigmoid()
    return grad * (gate + 1.702 * u * gate * (1 - gate))


BACKWARDS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "gelu": torch.ops.aten.gelu_backward,
    "gelu_tanh": functools.partial(torch.ops.aten.gelu_backward, approximate="tanh"),
    "quick_gelu": _quick_gelu_backward,
    "silu": torch.ops.aten.silu_backward,
    "hardswish": torch.ops.aten.hardswish_backward,
    "relu": lambda grad, u: torch.ops.aten.threshold_backward(grad, u, 0),
    "relu6": lambda grad, u: torch.ops.aten.hardtanh_backward(grad, u, 0.0, 6.0),
}
"""Activation -> the gradient of its input u, for that of its output: autograd's own operators."""


def code_of(activation: str, bits: int, levels: str) -> Code:
    """The derivative's code of an activation (see ``activation_code``); ReLU's takes 1 bit whatever is asked for."""
    return activation_code(FORWARDS[activation][0], bits, levels)


def code_bits(activation: str, bits: int) -> int:
    """Width of that code."""
    return 1 if activation in ("relu", "relu6") else bits


def _pieces(x: Tensor, columns: int) -> Iterator[slice]:
    rows, size = len(x), CPU_PIECE if x.device.type == "cpu" else ACCELERATOR_CHUNK
    step = max(1, size // columns)
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
    for piece in _pieces(x, x.shape[1]):
        codes[piece], own = quantize_rows(x[piece], bits)
        if bits <= CODED:
            numbers[piece] = own
    return codes, numbers


def rows_unpack(codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype) -> Tensor:
    """See ``ops.rows_unpack``."""
    out = torch.empty(len(codes), columns, dtype=dtype, device=codes.device)
    for piece in _pieces(codes, columns):
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
    work = torch.promote_types(x.dtype, torch.float32)
    mean, rstd = mean.view(-1, 1), rstd.view(-1, 1)
    rounded = rstd.dtype != work  # A CPU's statistics of halves are halves.
    if rounded:
        rstd = torch.empty(rstd.shape, dtype=work, device=x.device)
    for piece in _pieces(x, x.shape[1]):
        # Codes of n = (x - mean) rstd, with statistics in the working precision.
        part = x[piece].to(work)
        if rounded:
            variance, centre = torch.var_mean(part, 1, correction=0, keepdim=True)
            rstd[piece] = variance.add_(eps).rsqrt_()
        else:
            centre = mean[piece]
        codes[piece], own = quantize_rows(part, bits, centre, rstd[piece])
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
    for piece in _pieces(codes, columns):
        # h = n' w + b, in as few passes as the dtypes allow.
        value = dequantize_rows(codes[piece], numbers[piece], columns, bits, work)
        if weight is None:
            out[piece] = value
        elif bias is None:
            torch.mul(value, weight, out=out[piece])
        elif out.dtype == torch.result_type(value, bias):
            torch.addcmul(bias, value, weight, out=out[piece])
        else:
            out[piece] = torch.addcmul(bias, value, weight)
    return out


def _as_normalised(
    codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    """A matrix x with mean and rstd ``(R, 1)``, of which n' = (x - mean) rstd, as PyTorch's own kernel takes them.

    Where a row has one minimum m and one step s, the codes themselves: n' = code s + m, so mean = -m / s and rstd = s.
    """
    if 8 <= bits <= CODED:
        low, step = numbers.to(dtype).unbind(2)
        unit = torch.where(step > 0, step, 1)  # A constant row has only codes 0.
        return unpack_rows(codes, columns, bits, dtype), -low / unit, unit
    values = dequantize_rows(codes, numbers, columns, bits, dtype)
    return values, values.new_zeros(len(values), 1), values.new_ones(len(values), 1)


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
    if weight is None:
        weight = grad.new_ones(columns)
    weight = weight.to(work)
    for piece in _pieces(grad, columns):
        normed, mean, unit = _as_normalised(codes[piece], numbers[piece], columns, bits, work)
        moved, own_weight, own_bias = torch.ops.aten.native_layer_norm_backward(
            grad[piece].to(work), normed, [columns], mean, unit, weight, weight, [True, want_weight, True]
        )
        if want_weight:
            sums[0] += own_weight
        sums[1] += own_bias
        # The operator has multiplied by ``unit``; the true rstd is the factor of dx.
        torch.mul(moved, rstd[piece] / unit, out=out[piece])
    return (sums[0] if want_weight else sums.new_empty(0)), sums[1].clone()


def act_pack(u: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    """See ``ops.act_pack``."""
    code, forward = code_of(activation, bits, levels), IN_PLACE[activation]
    in_pairs = u.device.type == "cpu" and code.fitted and code.bits == 4 and u.shape[1] % 2 == 0
    encode = _encoder_of_pairs(code) if in_pairs else _encoder(code, u.device)
    codes = u.new_empty((len(u), row_bytes(u.shape[1], code.bits)), dtype=torch.uint8)
    for piece in _pieces(u, u.shape[1]):
        part = u[piece]
        codes[piece] = encode(part)
        forward(part)
    return codes


@functools.cache
def _pairs(code: Code) -> Tensor:
    """The byte of every pair of fine cells, the one of the low bits counting fastest."""
    table = torch.tensor(code.cells()[0], dtype=torch.uint8)
    return (table | table.unsqueeze(1) << 4).view(-1)


def _encoder(code: Code, device: torch.device) -> Callable[[Tensor], Tensor]:
    """``(R, C)`` to bytes of codes."""
    every = code.encoder(device)
    return lambda part: pack_rows(every(part.reshape(-1)).view(part.shape), code.bits)


def _encoder_of_pairs(code: Code) -> Callable[[Tensor], Tensor]:
    """``(R, C)`` to bytes of two codes: one look-up for both, which costs more than all else, and no packing."""
    (cells, first), pairs = code.cells(), _pairs(code)

    def encode(part: Tensor) -> Tensor:
        rows, columns = part.shape
        places = cell_numbers(part, first, len(cells))
        width = columns // 2
        both = torch.add(places[:, :width], places[:, width:], alpha=len(cells))  # Exact below 2^24.
        return pairs.index_select(0, both.to(torch.int32).view(-1)).view(rows, width)

    return encode


@functools.cache
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
    for piece in _pieces(grad, columns):
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
