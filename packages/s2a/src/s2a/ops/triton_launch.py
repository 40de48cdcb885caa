"""Launches the Triton kernels on matrices they can take; the others run ``reference`` where they are.

Kernels take float32, float16 and bfloat16, codes of up to 12 bits, and rows that fit one program's registers. Products
and sums are not fused into one rounding (``enable_fp_fusion``), so that codes are the reference's.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from s2a.ops import reference
from s2a.ops import triton_kernels as kernels
from s2a.ops.levels import CELLS_PER_UNIT
from s2a.ops.rows import CODED, group_size, planes

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
"""What the kernels read and write."""

LARGEST_TILE = 1 << 14
"""Elements of a row, its groups filled up to powers of two, that one program packs."""
LARGEST_NORM = 4096
"""Columns of a normalisation's backward pass, a few arrays of which lie in registers at once."""

EXACT = {"enable_fp_fusion": False}
"""Options of every launch. Named on all of them: Triton's default has changed between versions."""

ROWS_TILE, WIDTH_TILE = 8, 128
"""Rows and bytes of an element-wise kernel's tile."""
STEPS = 8
"""Tiles whose column sums one program of ``act_backward`` adds up."""

_PROGRAMS_PER_PROCESSOR = 2


def power_of_two(n: int) -> int:
    """The least that is not below ``n``."""
    return 1 << max(n - 1, 0).bit_length()


def plane_sizes(columns: int, bits: int) -> dict[str, int]:
    """A kernel's arguments that say where codes lie."""
    (low, low_width), (high, high_width) = (*planes(columns, bits), (0, 0))[:2]
    return {"LOW_BITS": low, "LOW_WIDTH": low_width, "HIGH_BITS": high, "HIGH_WIDTH": high_width}


def pack_sizes(columns: int, bits: int) -> dict[str, int]:
    """A packing kernel's compile-time sizes."""
    size, where = group_size(columns, bits), plane_sizes(columns, bits)
    return {
        "COLUMNS": columns,
        "GROUPS": columns // size,
        "GROUPS_TILE": power_of_two(columns // size),
        "GROUP": size,
        "GROUP_TILE": power_of_two(size),
        **where,
        "LOW_TILE": power_of_two(where["LOW_WIDTH"]),
        "HIGH_TILE": power_of_two(where["HIGH_WIDTH"]),
    }


def unpack_sizes(columns: int, bits: int) -> dict[str, int]:
    """An unpacking kernel's compile-time sizes."""
    size = group_size(columns, bits)
    return {"COLUMNS": columns, "GROUPS": columns // size, "GROUP": size, **plane_sizes(columns, bits)}


def tile_sizes(width: int) -> dict[str, int]:
    """An element-wise kernel's tile over rows of ``width`` bytes."""
    own = min(power_of_two(width), WIDTH_TILE)
    return {"ROWS_TILE": ROWS_TILE * WIDTH_TILE // own, "WIDTH_TILE": own}


def warps(elements: int) -> int:
    """Warps of a program that works on a row of so many elements."""
    return min(max(power_of_two(elements) // 256, 1), 16)


def _launch(kernel: Any, grid: tuple[int, ...], where: Tensor, *arguments: Any, **options: Any) -> None:
    with torch.cuda.device_of(where):  # Triton launches on the current device.
        kernel[grid](*arguments, **options, **EXACT)


def _takes(bits: int, *tensors: Tensor | None) -> bool:
    present = [tensor for tensor in tensors if tensor is not None]
    return bits <= CODED and present[0].numel() > 0 and all(tensor.dtype in DTYPES for tensor in present)


def _tile(columns: int, bits: int) -> int:
    size = group_size(columns, bits)
    return power_of_two(columns // size) * power_of_two(size)


def _by_rows(x: Tensor) -> Tensor:
    """A matrix whose rows lie as they are, anywhere."""
    return x if x.stride(1) == 1 else x.contiguous()


def _affine(weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    return None if weight is None else weight.contiguous(), None if bias is None else bias.contiguous()


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 2


def _pack(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, bits: int, norm: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    x, (weight, bias) = _by_rows(x), _affine(weight, bias)
    codes, numbers = reference.empty_codes(x, bits)
    out = x.new_empty(x.shape if norm else 0)
    rstd = x.new_empty((len(x) if norm else 0, 1), dtype=torch.float32)
    _launch(
        kernels.pack_rows_kernel, (len(x),), x,
        x, x.stride(0), weight, bias, eps, out, rstd, codes, numbers,
        NORM=norm, HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        **pack_sizes(x.shape[1], bits), num_warps=warps(_tile(x.shape[1], bits)),
    )  # fmt: skip
    return out, codes, numbers, rstd


def rows_pack(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """See ``ops.rows_pack``."""
    if not _takes(bits, x) or _tile(x.shape[1], bits) > LARGEST_TILE:
        return reference.rows_pack(x, bits)
    return _pack(x, None, None, 0.0, bits, norm=False)[1:3]


def norm_pack(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """See ``ops.norm_pack``."""
    if not _takes(bits, x, weight, bias) or _tile(x.shape[1], bits) > LARGEST_TILE:
        return reference.norm_pack(x, weight, bias, eps, bits)
    return _pack(x, weight, bias, eps, bits, norm=True)


def rows_unpack(codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype) -> Tensor:
    """See ``ops.rows_unpack``."""
    return norm_rebuild(codes, numbers, None, None, columns, bits, dtype)


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
    if dtype not in DTYPES or not _takes(bits, numbers, weight, bias):
        return reference.norm_rebuild(codes, numbers, weight, bias, columns, bits, dtype)
    codes, numbers, (weight, bias) = codes.contiguous(), numbers.contiguous(), _affine(weight, bias)
    out = torch.empty(len(codes), columns, dtype=dtype, device=codes.device)
    sizes = unpack_sizes(columns, bits)
    tile = tile_sizes(sizes["LOW_WIDTH"])
    grid = (-(-len(out) // tile["ROWS_TILE"]), -(-sizes["LOW_WIDTH"] // tile["WIDTH_TILE"]))
    _launch(
        kernels.unpack_rows_kernel, grid, out,
        codes, numbers, weight, bias, out, len(out), HAS_WEIGHT=weight is not None, HAS_BIAS=bias is not None,
        **sizes, **tile, num_warps=4,
    )  # fmt: skip
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
    rows, columns = grad.shape
    if not _takes(bits, grad, rstd, weight, out) or columns > LARGEST_NORM:
        return reference.norm_backward(grad, codes, numbers, rstd, weight, bits, want_weight, out)
    grad, (weight, _) = _by_rows(grad), _affine(weight, None)
    codes, numbers, rstd = codes.contiguous(), numbers.contiguous(), rstd.contiguous()
    moved = out if out.is_contiguous() else torch.empty_like(out, memory_format=torch.contiguous_format)
    each = -(-rows // min(rows, _PROGRAMS_PER_PROCESSOR * _processors(grad.device)))
    programs = -(-rows // each)
    sums = torch.empty((1 + want_weight, programs, columns), dtype=torch.float32, device=grad.device)
    _launch(
        kernels.norm_backward_kernel, (programs,), grad,
        grad, grad.stride(0), codes, numbers, rstd, weight, moved, sums[-1], sums[0], rows, each,
        HAS_WEIGHT=weight is not None, WANT_WEIGHT=want_weight, COLUMNS_TILE=power_of_two(columns),
        **unpack_sizes(columns, bits), num_warps=warps(columns),
    )  # fmt: skip
    if moved is not out:
        out.copy_(moved)
    return sums[1].sum(0) if want_weight else sums.new_empty(0), sums[0].sum(0)


@functools.cache
def _encoding(
    activation: str, bits: int, levels: str, device: torch.device
) -> tuple[str, int, Tensor | None, Tensor | None, tuple[float, float, float, float]]:
    """How a kernel finds codes: kind, number of borders, table, borders, and (low, high, scale, top)."""
    code = reference.code_of(activation, bits, levels)
    if code.uniform is not None:
        (low, high), top = code.uniform, (1 << code.bits) - 1
        return "grid", 0, None, None, (low, high, top / (high - low), top)
    if len(code.borders) <= 3:
        labels = code.labels or tuple(range(len(code.borders) + 1))
        table = torch.tensor(labels, dtype=torch.uint8, device=device)
        return "borders", len(code.borders), table, torch.tensor(code.borders, device=device), (0.0, 0.0, 0.0, 0.0)
    cells, first = code.cells()
    table = torch.tensor(cells, dtype=torch.uint8, device=device)
    return "table", 0, table, None, (first, 0.0, CELLS_PER_UNIT, len(cells) - 1)


@functools.cache
def _derivatives(activation: str, bits: int, levels: str, device: torch.device, dtype: torch.dtype) -> Tensor:
    return reference.code_of(activation, bits, levels).table(dtype, device)


def act_pack(u: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    """See ``ops.act_pack``."""
    code, columns = reference.code_of(activation, bits, levels), u.shape[1]
    own = planes(columns, code.bits)
    # A tile of three-bit codes writes two bytes of the plane of two for each byte of the plane of one.
    if not _takes(code.bits, u) or (code.bits == 3 and own[0][1] != 2 * own[1][1]):
        return reference.act_pack(u, activation, bits, levels)
    kind, borders, table, edges, numbers = _encoding(activation, bits, levels, u.device)
    work = u.contiguous()
    codes = u.new_empty((len(u), sum(width for _, width in own)), dtype=torch.uint8)
    width = own[-1][1]
    tile = tile_sizes(width)
    grid = (-(-len(u) // tile["ROWS_TILE"]), -(-width // tile["WIDTH_TILE"]))
    _launch(
        kernels.act_pack_kernel, grid, u,
        work, codes, table, edges, *map(float, numbers), len(u), ACTIVATION=activation, KIND=kind, BORDERS=borders,
        COLUMNS=columns, BITS=code.bits, WIDTH=width, **tile, num_warps=4,
    )  # fmt: skip
    if work is not u:
        u.copy_(work)
    return codes


def act_backward(grad: Tensor, codes: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    """See ``ops.act_backward``."""
    code, (rows, columns) = reference.code_of(activation, bits, levels), grad.shape
    if not _takes(code.bits, grad):
        return reference.act_backward(grad, codes, activation, bits, levels)
    work, codes = grad.contiguous(), codes.contiguous()
    where = plane_sizes(columns, code.bits)
    tile = tile_sizes(where["LOW_WIDTH"])
    programs = -(-rows // (STEPS * tile["ROWS_TILE"]))
    sums = torch.empty((programs, columns), dtype=torch.float32, device=grad.device)
    _launch(
        kernels.act_backward_kernel, (programs, -(-where["LOW_WIDTH"] // tile["WIDTH_TILE"])), grad,
        work, codes, _derivatives(activation, bits, levels, grad.device, grad.dtype), sums, rows,
        COLUMNS=columns, STEPS=STEPS, **where, **tile, num_warps=4,
    )  # fmt: skip
    if work is not grad:
        grad.copy_(work)
    return sums.sum(0)
