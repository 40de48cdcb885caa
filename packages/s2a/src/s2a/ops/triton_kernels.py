# type: ignore  # Triton's language has Python's grammar, but rules and types of its own.
"""Triton kernels of the lean operators. Only ``launch`` imports this module, and only where Triton is there.

The layout of codes is that of ``rows``, the arithmetic that of ``reference``, in float32 whatever is read and written.
Rows are counted in 64 bits: a matrix may have more than 2^31 elements. A row's codes lie in one or two planes of bytes,
LOW first (``rows.planes``); where there is one, HIGH_BITS is 0. Names of sizes known at compile time are in capitals.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def _nearest(value, top):
    """``value`` clamped to [0, top] and rounded, ties to even, as an integer; NaN to 0. ``top`` is below 2^22."""
    value = tl.where(value > 0.0, value, 0.0)
    value = tl.where(value < top, value, top)
    # Numbers around 1.5 * 2^23 have steps of one: the sum rounds as all sums do.
    return ((value + 12582912.0) - 12582912.0).to(tl.int32)


@triton.jit
def _plane(row, column, mask, BITS: tl.constexpr, WIDTH: tl.constexpr):
    """Codes of one plane: column c lies in byte c % WIDTH, at bits BITS * (c // WIDTH) and up."""
    byte = tl.load(row + column % WIDTH, mask, other=0).to(tl.int32)
    return (byte >> (BITS * (column // WIDTH))) & ((1 << BITS) - 1)


@triton.jit
def _levels(
    row, column, mask,
    LOW_BITS: tl.constexpr, LOW_WIDTH: tl.constexpr, HIGH_BITS: tl.constexpr, HIGH_WIDTH: tl.constexpr,
):  # fmt: skip
    """Codes of the given columns; ``row`` points at the row's first byte."""
    level = _plane(row, column, mask, LOW_BITS, LOW_WIDTH)
    if HIGH_BITS > 0:
        level |= _plane(row + LOW_WIDTH, column, mask, HIGH_BITS, HIGH_WIDTH) << LOW_BITS
    return level


@triton.jit
def _store_plane(
    codes, row, column, mask,
    SHIFT: tl.constexpr, BITS: tl.constexpr, WIDTH: tl.constexpr, WIDTH_TILE: tl.constexpr,
    COLUMNS: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Packs bits SHIFT and up of a row's codes ``(groups, GROUP_TILE)`` and stores the bytes at ``row``."""
    if BITS == 8:
        tl.store(row + column, (codes >> SHIFT).to(tl.uint8), mask)
    else:
        flat = tl.reshape(codes, [SIZE])
        byte = tl.arange(0, WIDTH_TILE)
        packed = tl.zeros([WIDTH_TILE], tl.int32)
        for part in tl.static_range(8 // BITS):
            wanted = byte + part * WIDTH
            place = (wanted // GROUP) * GROUP_TILE + wanted % GROUP
            valid = (byte < WIDTH) & (wanted < COLUMNS)
            # Byte j of a part holds column j + part * WIDTH (``rows``), which lies in its group's tile.
            code = tl.gather(flat, tl.where(valid, place, 0), 0)
            packed |= tl.where(valid, (code >> SHIFT) & ((1 << BITS) - 1), 0) << (BITS * part)
        tl.store(row + byte, packed.to(tl.uint8), byte < WIDTH)


@triton.jit
def pack_rows_kernel(
    x, stride, weight, bias, eps, out, rstd, codes, numbers,
    NORM: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr, GROUPS_TILE: tl.constexpr, GROUP: tl.constexpr, GROUP_TILE: tl.constexpr,
    LOW_BITS: tl.constexpr, LOW_WIDTH: tl.constexpr, LOW_TILE: tl.constexpr,
    HIGH_BITS: tl.constexpr, HIGH_WIDTH: tl.constexpr, HIGH_TILE: tl.constexpr,
):  # fmt: skip
    """Codes and numbers of one row, with NORM after normalising it, whose output is written too. Read once."""
    row = tl.program_id(0).to(tl.int64)
    group = tl.arange(0, GROUPS_TILE)[:, None]
    place = tl.arange(0, GROUP_TILE)[None, :]
    column = group * GROUP + place
    mask = (group < GROUPS) & (place < GROUP)
    value = tl.load(x + row * stride + column, mask, other=0.0).to(tl.float32)
    # 1. n = (x - mean) rstd and the output n w + b.
    if NORM:
        mean = tl.sum(tl.sum(value, 1), 0) / COLUMNS
        value = tl.where(mask, value - mean, 0.0)
        variance = tl.sum(tl.sum(value * value, 1), 0) / COLUMNS
        scale = tl.math.div_rn(1.0, tl.math.sqrt_rn(variance + eps))
        tl.store(rstd + row, scale)
        value = value * scale
        normed = value
        if HAS_WEIGHT:
            normed = normed * tl.load(weight + column, mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            normed = normed + tl.load(bias + column, mask, other=0.0).to(tl.float32)
        tl.store(out + row * COLUMNS + column, normed.to(out.dtype.element_ty), mask)
    # 2. Minimum and step of every group. NaN makes them NaN; minimum and maximum pass over it on some devices.
    number = value == value
    broken = tl.max(tl.where(mask & (value != value), 1, 0), 1)
    low = tl.min(tl.where(mask & number, value, float("inf")), 1)
    high = tl.max(tl.where(mask & number, value, float("-inf")), 1)
    low = tl.where(broken > 0, float("nan"), low)
    top: tl.constexpr = (1 << (LOW_BITS + HIGH_BITS)) - 1
    kept_low = low.to(numbers.dtype.element_ty)
    low = kept_low.to(tl.float32)
    kept_step = tl.math.div_rn(high - low, tl.full([GROUPS_TILE], top, tl.float32)).to(numbers.dtype.element_ty)
    unit = kept_step.to(tl.float32)
    own = numbers + (row * GROUPS + tl.arange(0, GROUPS_TILE)) * 2
    valid = tl.arange(0, GROUPS_TILE) < GROUPS
    tl.store(own, kept_low, valid)
    tl.store(own + 1, kept_step, valid)
    # 3. Codes, which refer to the numbers as they are kept, packed plane by plane.
    usable = unit > 0.0
    one = tl.full([GROUPS_TILE], 1.0, tl.float32)
    inverse = tl.where(usable, tl.math.div_rn(one, tl.where(usable, unit, 1.0)), 0.0)
    level = _nearest((value - low[:, None]) * inverse[:, None], top)
    first = codes + row * (LOW_WIDTH + HIGH_WIDTH)
    size: tl.constexpr = GROUPS_TILE * GROUP_TILE
    _store_plane(
        level, first, column, mask, 0, LOW_BITS, LOW_WIDTH, LOW_TILE, COLUMNS, GROUP, GROUP_TILE, size
    )  # fmt: skip
    if HIGH_BITS > 0:
        _store_plane(
            level, first + LOW_WIDTH, column, mask,
            LOW_BITS, HIGH_BITS, HIGH_WIDTH, HIGH_TILE, COLUMNS, GROUP, GROUP_TILE, size,
        )  # fmt: skip


@triton.jit
def unpack_rows_kernel(
    codes, numbers, weight, bias, out, rows,
    HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr, COLUMNS: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
    LOW_BITS: tl.constexpr, LOW_WIDTH: tl.constexpr, HIGH_BITS: tl.constexpr, HIGH_WIDTH: tl.constexpr,
    ROWS_TILE: tl.constexpr, WIDTH_TILE: tl.constexpr,
):  # fmt: skip
    """Values of codes, times weight plus bias where there are. Every byte of a tile gives a column to each part."""
    row = (tl.program_id(0).to(tl.int64) * ROWS_TILE + tl.arange(0, ROWS_TILE))[:, None]
    byte = tl.program_id(1) * WIDTH_TILE + tl.arange(0, WIDTH_TILE)[None, :]
    first = codes + row * (LOW_WIDTH + HIGH_WIDTH)
    inside = (row < rows) & (byte < LOW_WIDTH)
    for part in tl.static_range(8 // LOW_BITS):
        column = byte + part * LOW_WIDTH
        mask = inside & (column < COLUMNS)
        level = _levels(first, column, mask, LOW_BITS, LOW_WIDTH, HIGH_BITS, HIGH_WIDTH)
        own = numbers + (row * GROUPS + column // GROUP) * 2
        low = tl.load(own, mask, other=0.0).to(tl.float32)
        value = low + level.to(tl.float32) * tl.load(own + 1, mask, other=0.0).to(tl.float32)
        if HAS_WEIGHT:
            value = value * tl.load(weight + column, mask, other=0.0).to(tl.float32)
        if HAS_BIAS:
            value = value + tl.load(bias + column, mask, other=0.0).to(tl.float32)
        tl.store(out + row * COLUMNS + column, value.to(out.dtype.element_ty), mask)


@triton.jit
def norm_backward_kernel(
    grad, stride, codes, numbers, rstd, weight, out, weight_sums, bias_sums, rows, each,
    HAS_WEIGHT: tl.constexpr, WANT_WEIGHT: tl.constexpr, COLUMNS: tl.constexpr, COLUMNS_TILE: tl.constexpr,
    GROUPS: tl.constexpr, GROUP: tl.constexpr,
    LOW_BITS: tl.constexpr, LOW_WIDTH: tl.constexpr, HIGH_BITS: tl.constexpr, HIGH_WIDTH: tl.constexpr,
):  # fmt: skip
    """Gradients of ``each`` rows' inputs, and this program's sums for weight and bias: a second reduction adds them."""
    program = tl.program_id(0)
    column = tl.arange(0, COLUMNS_TILE)
    mask = column < COLUMNS
    weight_sum = tl.zeros([COLUMNS_TILE], tl.float32)
    bias_sum = tl.zeros([COLUMNS_TILE], tl.float32)
    scale = tl.full([COLUMNS_TILE], 1.0, tl.float32)
    if HAS_WEIGHT:
        scale = tl.load(weight + column, mask, other=0.0).to(tl.float32)
    start = program.to(tl.int64) * each
    for row in range(start, tl.minimum(start + each, rows)):
        g = tl.load(grad + row * stride + column, mask, other=0.0).to(tl.float32)
        level = _levels(
            codes + row * (LOW_WIDTH + HIGH_WIDTH), column, mask, LOW_BITS, LOW_WIDTH, HIGH_BITS, HIGH_WIDTH
        )
        own = numbers + (row * GROUPS + column // GROUP) * 2
        low = tl.load(own, mask, other=0.0).to(tl.float32)
        normed = low + level.to(tl.float32) * tl.load(own + 1, mask, other=0.0).to(tl.float32)
        # db += g, dw += g n; dx = rstd (g w - mean(g w) - n mean(g w n)).
        bias_sum += g
        if WANT_WEIGHT:
            weight_sum += g * normed
        g = g * scale
        along = tl.sum(g, 0) / COLUMNS
        across = tl.sum(g * normed, 0) / COLUMNS
        moved = (g - along - normed * across) * tl.load(rstd + row).to(tl.float32)
        tl.store(out + row * COLUMNS + column, moved.to(out.dtype.element_ty), mask)
    tl.store(bias_sums + program * COLUMNS + column, bias_sum, mask)
    if WANT_WEIGHT:
        tl.store(weight_sums + program * COLUMNS + column, weight_sum, mask)


@triton.jit
def _sigmoid(x):
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def _forward(x, ACTIVATION: tl.constexpr):
    """The activations of ``reference.FORWARDS``; NaN stays NaN."""
    if ACTIVATION == "gelu":
        x = x * 0.5 * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        # (1 + tanh z) / 2 is the sigmoid of 2 z.
        x = x * _sigmoid(1.5957691216057308 * (x + 0.044715 * x * x * x))
    elif ACTIVATION == "quick_gelu":
        x = x * _sigmoid(1.702 * x)
    elif ACTIVATION == "silu":
        x = x / (1.0 + tl.exp(-x))
    elif ACTIVATION == "hardswish":
        x = x * tl.minimum(tl.maximum(x + 3.0, 0.0), 6.0) / 6.0
    else:
        tl.static_assert(ACTIVATION == "relu" or ACTIVATION == "relu6")
        x = tl.where(x <= 0.0, 0.0, x)
        if ACTIVATION == "relu6":
            x = tl.where(x >= 6.0, 6.0, x)
    return x


@triton.jit
def _encode(x, table, borders, low, high, scale, top, KIND: tl.constexpr, BORDERS: tl.constexpr):
    """Codes of ``x``: KIND "grid" rounds to a uniform one, "borders" counts those below, "table" looks a cell up."""
    if KIND == "grid":
        x = tl.where(x < low, low, x)
        x = tl.where(x > high, high, x)
        return _nearest((x - low) * scale, top)
    elif KIND == "borders":
        cell = (x > tl.load(borders)).to(tl.int32)
        for i in tl.static_range(1, BORDERS):
            cell += (x > tl.load(borders + i)).to(tl.int32)
        return tl.load(table + cell).to(tl.int32)
    else:
        tl.static_assert(KIND == "table")
        return tl.load(table + _nearest(tl.ceil(x * scale) - low, top)).to(tl.int32)


@triton.jit
def act_pack_kernel(
    u, codes, table, borders, low, high, scale, top, rows,
    ACTIVATION: tl.constexpr, KIND: tl.constexpr, BORDERS: tl.constexpr, COLUMNS: tl.constexpr,
    BITS: tl.constexpr, WIDTH: tl.constexpr, ROWS_TILE: tl.constexpr, WIDTH_TILE: tl.constexpr,
):  # fmt: skip
    """An activation in place, and the codes of its derivative. A tile is of bytes, and needs nothing of its neighbours.

    Three bits: WIDTH is that of the plane of one bit, and half of that of the plane of two.
    """
    row = (tl.program_id(0).to(tl.int64) * ROWS_TILE + tl.arange(0, ROWS_TILE))[:, None]
    byte = tl.program_id(1) * WIDTH_TILE + tl.arange(0, WIDTH_TILE)[None, :]
    inside = (row < rows) & (byte < WIDTH)
    packed = tl.zeros([ROWS_TILE, WIDTH_TILE], tl.int32)
    even = tl.zeros([ROWS_TILE, WIDTH_TILE], tl.int32)
    odd = tl.zeros([ROWS_TILE, WIDTH_TILE], tl.int32)
    PARTS: tl.constexpr = 8 if BITS == 3 else 8 // BITS
    for part in tl.static_range(PARTS):
        column = byte + part * WIDTH
        mask = inside & (column < COLUMNS)
        x = tl.load(u + row * COLUMNS + column, mask, other=0.0).to(tl.float32)
        code = tl.where(mask, _encode(x, table, borders, low, high, scale, top, KIND, BORDERS), 0)
        tl.store(u + row * COLUMNS + column, _forward(x, ACTIVATION).to(u.dtype.element_ty), mask)
        if BITS == 3:
            packed |= (code >> 2) << part
            if part % 2 == 0:
                even |= (code & 3) << part
            else:
                odd |= (code & 3) << (part - 1)
        else:
            packed |= code << (BITS * part)
    if BITS == 3:
        first = codes + row * (3 * WIDTH) + byte
        tl.store(first, even.to(tl.uint8), inside)
        tl.store(first + WIDTH, odd.to(tl.uint8), inside)
        tl.store(first + 2 * WIDTH, packed.to(tl.uint8), inside)
    else:
        tl.store(codes + row * WIDTH + byte, packed.to(tl.uint8), inside)


@triton.jit
def act_backward_kernel(
    grad, codes, values, sums, rows,
    COLUMNS: tl.constexpr, STEPS: tl.constexpr,
    LOW_BITS: tl.constexpr, LOW_WIDTH: tl.constexpr, HIGH_BITS: tl.constexpr, HIGH_WIDTH: tl.constexpr,
    ROWS_TILE: tl.constexpr, WIDTH_TILE: tl.constexpr,
):  # fmt: skip
    """``grad`` times the derivative of every code, in place, and the columns' sums over STEPS tiles of rows."""
    start = tl.program_id(0).to(tl.int64) * (STEPS * ROWS_TILE)
    byte = tl.program_id(1) * WIDTH_TILE + tl.arange(0, WIDTH_TILE)[None, :]
    for part in tl.static_range(8 // LOW_BITS):
        column = byte + part * LOW_WIDTH
        wanted = (byte < LOW_WIDTH) & (column < COLUMNS)
        total = tl.zeros([ROWS_TILE, WIDTH_TILE], tl.float32)
        for step in range(0, STEPS):
            row = (start + step * ROWS_TILE + tl.arange(0, ROWS_TILE))[:, None]
            mask = wanted & (row < rows)
            first = codes + row * (LOW_WIDTH + HIGH_WIDTH)
            level = _levels(first, column, mask, LOW_BITS, LOW_WIDTH, HIGH_BITS, HIGH_WIDTH)
            place = grad + row * COLUMNS + column
            moved = tl.load(place, mask, other=0.0).to(tl.float32) * tl.load(values + level).to(tl.float32)
            moved = tl.where(mask, moved, 0.0).to(grad.dtype.element_ty)
            tl.store(place, moved, mask)
            total += moved.to(tl.float32)
        own = sums + tl.program_id(0).to(tl.int64) * COLUMNS + column
        tl.store(own, tl.sum(total, 0)[None, :], wanted)
