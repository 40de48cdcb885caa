"""Codes of matrices, row by row: a row's codes, and with them the numbers that turn them back into values.

A matrix ``(R, C)`` has a row for each token and a column for each channel. Each group of a row's columns (8 bits and
more: the whole row) has numbers of its own, a minimum m and a step s (paper equations 8 and 9, group by group):

    code = round((x - m) / s),   s = (max - m) / (2^bits - 1),   x' = code s + m

with codes cut to [0, 2^bits - 1]. m and s are rounded to the precision in which they are kept (float16 for groups,
float32 for rows) before codes are made, so that |x' - x| <= s / 2 but for values that this rounding leaves outside.

Storage: codes ``(R, row_bytes(C, bits))`` uint8 and numbers ``(R, groups, 2)``. Every row is packed on its own, so
that a kernel can read and write it alone: with p = 8 / bits codes per byte and w = ceil(C / p) bytes,

    byte j = code[j] | code[j + w] << bits | code[j + 2w] << 2 bits | ...        j = 0 ... w - 1

Other widths are several such planes one after the other, the low bits first: 3 bits are 2 and 1, 10 are 2 and 8, 12 are
4 and 8. 16 and 32 bits are the elements themselves, without numbers.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from s2a.ops.pack import to_codes

WIDTHS = (2, 3, 4, 8, 10, 12, 16, 32)
"""Bits per element in which a matrix can be kept: codes up to 12, halves at 16, and 32 for the elements as they are."""

CODED = 12
"""The widest codes."""

_PLANES = {3: (2, 1), 10: (2, 8), 12: (4, 8)}

_LARGEST_GROUP = 128


def planes(columns: int, bits: int) -> tuple[tuple[int, int], ...]:
    """Bits and bytes of a row's planes, the low bits first, for ``bits`` of 1 or ``WIDTHS`` up to 12."""
    return tuple((own, -(-columns // (8 // own))) for own in _PLANES.get(bits, (bits,)))


def row_bytes(columns: int, bits: int) -> int:
    """Bytes of one row's codes, for ``bits`` of 1 or ``WIDTHS`` up to 12."""
    return sum(width for _, width in planes(columns, bits))


def group_size(columns: int, bits: int) -> int:
    """Columns that share a minimum and a step: the whole row in 8 bits or more, fewer in less (outliers cost more).

    The largest divisor of ``columns`` between 32 and 128, or all of them.
    """
    if bits >= 8:
        return columns
    return next((g for g in range(min(columns, _LARGEST_GROUP), 31, -1) if columns % g == 0), columns)


def code_dtype(bits: int, dtype: torch.dtype) -> torch.dtype:
    """Type of the tensor that holds the codes of a matrix of ``dtype``."""
    return torch.uint8 if bits <= CODED else torch.float16 if bits == 16 else dtype


def code_columns(columns: int, bits: int) -> int:
    """Width of that tensor."""
    return row_bytes(columns, bits) if bits <= CODED else columns


def number_shape(rows: int, columns: int, bits: int) -> tuple[int, int, int]:
    """Shape of the numbers that go with the codes: minimum and step of every group of every row."""
    return (rows, columns // group_size(columns, bits), 2) if bits <= CODED else (0, 0, 2)


def number_dtype(bits: int) -> torch.dtype:
    """Type of the numbers: a whole row's in float32, a group's in float16."""
    return torch.float32 if bits >= 8 else torch.float16


def kept_bytes(rows: int, columns: int, bits: int, element: int = 4) -> int:
    """Bytes that a matrix takes in ``bits`` bits, its numbers included.

    Args:
        rows: Tokens.
        columns: Channels.
        bits: One of ``WIDTHS``.
        element: Bytes of an element at 32 bits: as wide as the matrix is.
    """
    if bits > CODED:
        return rows * columns * (2 if bits == 16 else element)
    groups = columns // group_size(columns, bits)
    return rows * (row_bytes(columns, bits) + 2 * groups * (4 if bits >= 8 else 2))


def pack_rows(codes: Tensor, bits: int) -> Tensor:
    """``(R, C)`` integers, every value below ``2 ** bits``, to ``(R, row_bytes(C, bits))`` uint8."""
    if bits == 8:
        return codes.to(torch.uint8)
    if bits in _PLANES:
        low, high = _PLANES[bits]
        return torch.cat([pack_rows(codes.to(torch.uint8) & ((1 << low) - 1), low), pack_rows(codes >> low, high)], 1)
    parts, (rows, columns) = 8 // bits, codes.shape
    width = -(-columns // parts)
    if columns < parts * width:
        codes = F.pad(codes, (0, parts * width - columns))
    # Part i of the row (columns i * w and up) goes to bits i * b and up of the row's bytes.
    split = codes.view(rows, parts, width)
    out = split[:, 1] << bits
    out |= split[:, 0]
    for i in range(2, parts):
        out |= split[:, i] << (bits * i)
    return out


def unpack_rows(data: Tensor, columns: int, bits: int, dtype: torch.dtype = torch.uint8) -> Tensor:
    """The inverse of ``pack_rows``: ``(R, C)`` of ``dtype``, which must have room for the codes."""
    if bits == 8:
        return data.to(dtype)
    if bits in _PLANES:
        low, high = _PLANES[bits]
        cut = row_bytes(columns, low)
        codes = unpack_rows(data[:, :cut], columns, low, dtype)
        return codes.add_(unpack_rows(data[:, cut:], columns, high, dtype), alpha=1 << low)
    mask, parts, width = (1 << bits) - 1, 8 // bits, data.shape[1]
    # Every part is converted as it is put in its place: one pass less than to put them together first.
    out = data.new_empty((len(data), parts * width), dtype=dtype)
    for i in range(parts):
        part = (data >> (bits * i)) if i else data
        out[:, i * width : (i + 1) * width] = part & mask if i < parts - 1 else part
    return out[:, :columns]


def quantize_rows(
    x: Tensor, bits: int, mean: Tensor | None = None, scale: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Codes of a matrix and their numbers.

    Every group of a row has levels evenly spaced between its least and its largest value. NaN gets a valid code, and
    makes its group's numbers NaN, as it should be.

    Args:
        x: ``(R, C)``.
        bits: One of ``WIDTHS``.
        mean: ``(R, 1)``, with ``scale``: the matrix is ``(x - mean) * scale``, which codes need not make first.
        scale: ``(R, 1)``, positive.

    Returns:
        Codes ``(R, code_columns(C, bits))``, and numbers ``number_shape(R, C, bits)``: minimum and step.
    """
    rows, columns = x.shape
    if bits > CODED:
        values = x if mean is None or scale is None else (x - mean).mul_(scale)
        return values.to(code_dtype(bits, x.dtype)), x.new_empty((0, 0, 2), dtype=torch.float32)
    # 1. Least and largest value of every group; of the normalised matrix by way of x, which need not be normalised.
    groups = x.to(torch.promote_types(x.dtype, torch.float32)).view(rows, -1, group_size(columns, bits))
    low, high = groups.amin(2, True), groups.amax(2, True)  # Ten times as fast on a CPU as aminmax.
    if mean is not None and scale is not None:
        mean, scale = mean.unsqueeze(2), scale.unsqueeze(2)
        low, high = (low - mean) * scale, (high - mean) * scale  # Both steps are monotonous: the same bits.
    # 2. Minimum and step in the precision in which they are kept: the codes refer to these.
    top = (1 << bits) - 1
    low = low.to(number_dtype(bits))
    shift = low.to(groups.dtype)
    step = ((high - shift) / top).to(number_dtype(bits))
    unit = step.to(groups.dtype)
    factor = torch.where(unit > 0, 1 / unit, 0.0)
    if mean is not None and scale is not None:
        shift, factor = shift / scale + mean, factor * scale
    # 3. Codes: round((x - m) / s), for the normalised matrix with mean and scale folded into m and s.
    codes = (groups - shift).mul_(factor).round_().clamp_(0, top).view(rows, columns)
    # What NaN becomes is cut to a code.
    whole = codes.to(torch.int16) if bits > 8 else to_codes(codes, top)
    return pack_rows(whole.bitwise_and_(top), bits), torch.cat([low, step], 2)


def dequantize_rows(codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype) -> Tensor:
    """The values of codes, x' = code s + m, ``(R, C)`` of ``dtype``."""
    if bits > CODED:
        return codes.to(dtype)
    work = torch.promote_types(dtype, torch.float32)
    levels = unpack_rows(codes, columns, bits, work).reshape(len(codes), -1, group_size(columns, bits))
    numbers = numbers.to(work)
    # Two passes with a number for each group take a third of addcmul's time on a CPU.
    return levels.mul_(numbers[:, :, 1:]).add_(numbers[:, :, :1]).view(-1, columns).to(dtype)
