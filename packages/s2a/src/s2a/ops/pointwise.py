"""Element-wise activations that keep a few-bit code of their derivative instead of their input.

The forward pass y = f(x) is the stock function, bit for bit. A code maps x to one of ``2 ** bits`` cells of the input
axis, and each cell to one value of the derivative; the backward pass is a table look-up and a product,

    dx = dy * values[code(x)]

The paper's cells are a uniform grid over [-2, 2] with values from equation 12 (``uniform_code``); fitted cells are
those of ``levels``. Storage: packed codes (``pack``), nothing else.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from s2a.errors import S2AError
from s2a.ops.keeping import keeps_for_backward
from s2a.ops.levels import CELLS_PER_UNIT, DERIVATIVES, fitted_levels
from s2a.ops.loops import repeated
from s2a.ops.offload import load, save
from s2a.ops.pack import BITS, chunk_of, chunks, pack, packed_bytes, to_codes, unpack


@dataclasses.dataclass(frozen=True)
class Code:
    """Cells of the input axis and the derivative's value in each.

    Attributes:
        bits: Width of a code.
        borders: ``2 ** bits - 1`` ascending cell borders; a border belongs to the cell on its left, on a uniform grid
            to the even code.
        values: ``2 ** bits`` values of the derivative.
        uniform: ``(low, high)`` of a uniform grid with levels at both ends: arithmetic instead of a border search.
        labels: Code of every cell, where several cells share one; ``None``: the cell's index.
    """

    bits: int
    borders: tuple[float, ...]
    values: tuple[float, ...]
    uniform: tuple[float, float] | None = None
    labels: tuple[int, ...] | None = None

    def encoder(self, device: torch.device) -> Callable[[Tensor], Tensor]:
        """The map from inputs to codes, its tables made once: ``(n,)`` to ``(n,)`` uint8. NaN gets a valid code."""
        if self.uniform is not None:
            low, high = self.uniform
            return functools.partial(_round_to_grid, low=low, high=high, top=(1 << self.bits) - 1)
        if len(self.borders) <= 3:
            labels = None if self.labels is None else torch.tensor(self.labels, dtype=torch.uint8, device=device)
            return functools.partial(_count_borders, borders=self.borders, labels=labels)
        if torch.compiler.is_compiling():  # A compiler fuses the search; eager kernels of it are slow.
            borders = torch.tensor(self.borders, dtype=torch.float32, device=device)
            return lambda x: torch.bucketize(x.float(), borders, out_int32=True).to(torch.uint8)
        table, first = self.cells()
        return functools.partial(_look_up, table=torch.tensor(table, dtype=torch.uint8, device=device), first=first)

    @property
    def fitted(self) -> bool:
        """Whether codes come from a table of fine cells."""
        return self.uniform is None and len(self.borders) > 3

    def cells(self) -> tuple[tuple[int, ...], int]:
        """Codes of fitted cells as a table over the fine grid, and the index of its first cell.

        Cell k of the grid is ((k - 1) / 128, k / 128] (``CELLS_PER_UNIT``); inputs beyond the table's ends have their
        codes.
        """
        return _cells(self.borders)

    def encode(self, x: Tensor) -> Tensor:
        """Codes of ``x``, uint8, same shape."""
        return self.encoder(x.device)(x.reshape(-1)).view(x.shape)

    def table(self, dtype: torch.dtype, device: torch.device) -> Tensor:
        """The derivative by code, ``(2 ** bits,)``."""
        return torch.tensor(self.values, dtype=dtype, device=device)

    def decode(self, codes: Tensor, dtype: torch.dtype) -> Tensor:
        """The derivative of every code, same shape."""
        table = self.table(dtype, codes.device)
        return table.index_select(0, codes.reshape(-1).to(torch.int32)).view(codes.shape)


def _round_to_grid(x: Tensor, low: float, high: float, top: int) -> Tensor:
    """Equation 8 after clipping: round((x - low) * top / (high - low)); NaN gets code 0."""
    steps = (x.float().clamp(low, high) - low) * (top / (high - low))
    return to_codes(steps.round_().nan_to_num_(0.0), top)


def _count_borders(x: Tensor, borders: tuple[float, ...], labels: Tensor | None) -> Tensor:
    """Cell of x = number of borders below it; for the few borders of 1 and 2 bits the fastest way."""
    x = x.float()
    found = torch.empty_like(x)  # Comparisons that write floats are four times as fast on a CPU as those of booleans.
    count = torch.gt(x, borders[0], out=found)
    if len(borders) > 1:
        count = count.clone()
        for border in borders[1:]:
            count += torch.gt(x, border, out=found)
    cells = to_codes(count, len(borders))
    return cells if labels is None else labels.index_select(0, cells.to(torch.int32))


@functools.cache
def _cells(borders: tuple[float, ...]) -> tuple[tuple[int, ...], int]:
    """Code of every fine grid cell from just below the first border to just above the last, and the first's index."""
    marks = [round(border * CELLS_PER_UNIT) for border in borders]
    first, last = marks[0], marks[-1] + 1
    return tuple(bisect.bisect_left(marks, cell) for cell in range(first, last + 1)), first


def _look_up(x: Tensor, table: Tensor, first: int) -> Tensor:
    """Code of x by the fine cell that it lies in: borders are multiples of a fine cell's width."""
    return table.index_select(0, cell_numbers(x, first, len(table)).to(torch.int32))


def cell_numbers(x: Tensor, first: int, count: int) -> Tensor:
    """Places of the cells of ``x`` in a table of ``count`` cells that begins at cell ``first``: whole floats."""
    # Cell k of the fine grid is ((k - 1) / 128, k / 128]: scaling by a power of two and rounding up are exact.
    return (x.float() * CELLS_PER_UNIT).ceil_().sub_(first).clamp_(0, count - 1).nan_to_num_(0.0)


def gelu_derivative_sine(x: float) -> float:
    """The paper's fit of GELU's derivative: sigmoid(1.702 x) + 0.22 sin(1.5 x) (equation 12)."""
    return 1 / (1 + math.exp(-1.702 * x)) + 0.22 * math.sin(1.5 * x)


def silu_derivative_sine(x: float) -> float:
    """Equation 12 carried over to SiLU = x sigmoid(x): the same function stretched by 1.702."""
    return gelu_derivative_sine(x / 1.702)


def uniform_code(derivative: Callable[[float], float], low: float, high: float, bits: int) -> Code:
    """The paper's code: the input clipped to [low, high] and rounded to a uniform grid (equations 8, 9 and 12)."""
    top = (1 << bits) - 1
    step = (high - low) / top
    borders = tuple(low + (i + 0.5) * step for i in range(top))
    return Code(bits, borders, tuple(derivative(low + i * step) for i in range(top + 1)), (low, high))


_SINES = {
    "gelu": (gelu_derivative_sine, 2.0),
    "quick_gelu": (gelu_derivative_sine, 2.0),
    "silu": (silu_derivative_sine, 2.0 * 1.702),
}

LEVEL_KINDS = ("paper", "derivative")
"""``"paper"``: equation 12 on a uniform grid. ``"derivative"``: cells fitted to the derivative (``levels.py``)."""


@functools.cache
def activation_code(function: str, bits: int = 4, levels: str = "paper", slope: float = 0.01) -> Code:
    """The code of an activation.

    Args:
        function: ``"gelu"`` (either form), ``"quick_gelu"``, ``"silu"``, ``"hardswish"``, ``"relu"``, ``"relu6"`` or
            ``"leaky_relu"``. The last three have two-valued derivatives: 1 bit whatever is asked for, and exact.
        bits: 1, 2, 3, 4 or 8.
        levels: One of ``LEVEL_KINDS``. The paper has no formula for Hardswish; its cells are always fitted.
        slope: Of LeakyReLU's negative side.

    Raises:
        S2AError: Unknown function, levels or bits.
    """
    if function == "relu":
        return Code(1, (0.0,), (0.0, 1.0))
    if function == "leaky_relu":
        return Code(1, (0.0,), (slope, 1.0))
    if function == "relu6":
        below_six = 6.0 - 2.0**-21  # The next float32 down: at exactly 6 the derivative is 0.
        return Code(1, (0.0, below_six), (0.0, 1.0), labels=(0, 1, 0))
    if bits not in BITS:
        raise S2AError(f"bits={bits} must be one of {', '.join(map(str, BITS))}.")
    if levels not in LEVEL_KINDS:
        raise S2AError(f"levels={levels!r} is unknown; choose one of {', '.join(map(repr, LEVEL_KINDS))}.")
    if function not in DERIVATIVES:
        raise S2AError(
            f"No code for the activation {function!r}; known: relu, relu6, leaky_relu, {', '.join(DERIVATIVES)}."
        )
    if levels == "paper" and function in _SINES:
        derivative, edge = _SINES[function]
        return uniform_code(derivative, -edge, edge, bits)
    borders, values = fitted_levels(function, bits)
    return Code(bits, borders, values)


class _Coded(torch.autograd.Function):
    """A stock activation whose backward pass is grad * derivative[code]."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, function: Callable[[Tensor], Tensor], code: Code) -> Tensor:
        # All elements in the order of memory, so that codes and gradients need no copies of channels-last maps.
        ctx.layout = _layout(x)
        flat = _flat(x.detach(), ctx.layout)
        ctx.chunk, ctx.code = chunk_of(flat.numel(), x.device), code
        whole, rest = divmod(flat.numel(), ctx.chunk)
        size = whole * packed_bytes(ctx.chunk, code.bits) + packed_bytes(rest, code.bits)
        data = torch.empty(size, dtype=torch.uint8, device=x.device)
        encode = code.encoder(x.device)
        # Chunk by chunk: no temporary of the tensor's size.
        for elements, place in chunks(flat.numel(), ctx.chunk, code.bits):
            data[place] = pack(encode(flat[elements]), code.bits)
        save(ctx, (), (data,))
        return function(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # type: ignore[override]
        (data,) = load(ctx)
        return _coded_backward(ctx.code, grad, data, ctx.layout, ctx.chunk), None, None


@repeated
def _coded_backward(code: Code, grad: Tensor, data: Tensor, layout: torch.memory_format, chunk: int) -> Tensor:
    """Gradient of the input: dx = dy * values[code], chunk by chunk into the result."""
    out = torch.empty_like(grad, memory_format=layout)
    flat, given = _flat(out, layout), _flat(grad, layout)
    table = code.table(grad.dtype, grad.device)
    for elements, place in chunks(flat.numel(), chunk, code.bits):
        codes = unpack(data[place], elements.stop - elements.start, code.bits)
        torch.mul(given[elements], table.index_select(0, codes.to(torch.int32)), out=flat[elements])
    return out


def _layout(x: Tensor) -> torch.memory_format:
    """Channels-last maps stay so, without a copy; anything else is taken as contiguous."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _flat(x: Tensor, layout: torch.memory_format) -> Tensor:
    """All elements in the order of ``layout``, ``(n,)``; a view where ``x`` has that layout."""
    x = x.contiguous(memory_format=layout)
    return (x.permute(0, 2, 3, 1) if layout == torch.channels_last else x).view(-1)


def coded(x: Tensor, function: Callable[[Tensor], Tensor], code: Code) -> Tensor:
    """``function(x)``, keeping ``code`` of ``x`` for the backward pass; nothing where no gradient is asked for."""
    if not (keeps_for_backward() and x.requires_grad):
        return function(x)
    return _Coded.apply(x, function, code)  # type: ignore[no-any-return]


def gelu(x: Tensor, approximate: str = "none", bits: int = 4, levels: str = "paper") -> Tensor:
    """GELU keeping ``bits`` bits per element (paper section 3.2, equation 12)."""
    return coded(x, functools.partial(F.gelu, approximate=approximate), activation_code("gelu", bits, levels))


def silu(x: Tensor, bits: int = 4, levels: str = "paper") -> Tensor:
    """SiLU (Swish) keeping ``bits`` bits per element."""
    return coded(x, F.silu, activation_code("silu", bits, levels))


def relu(x: Tensor) -> Tensor:
    """ReLU keeping a 1-bit mask."""
    return coded(x, F.relu, activation_code("relu", 1, "paper"))
