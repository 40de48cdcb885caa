"""Codes of 1 to 8 bits, packed into bytes.

A flat tensor is packed in chunks, so that temporaries stay small whatever its size. Layout of a chunk of n codes of b
bits, with p = 8 / b codes per byte and w = ceil(n / p) bytes:

    byte j = code[j] | code[j + w] << b | code[j + 2w] << 2b | ...        j = 0 ... w - 1

(with 4 bits: codes 0 ... w - 1 in the low halves of the bytes, codes w ... 2w - 1 in the high halves). Neighbouring
codes lie in neighbouring bytes, so both sides of every copy are contiguous. 3-bit codes are two such planes one after
the other, their low two bits and their high bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from s2a.ops.loops import alike

BITS = (1, 2, 3, 4, 8)
"""Code widths with a packing."""

CPU_CHUNK = 1 << 17
"""Elements per chunk on a CPU: temporaries stay in its cache."""
ACCELERATOR_CHUNK = 1 << 23
"""Elements per chunk elsewhere: large enough to fill the device, small beside an activation."""


def chunk_of(numel: int, device: torch.device) -> int:
    """Elements per chunk of a tensor of ``numel`` elements: a multiple of 8. A compiler takes all at once and fuses."""
    if torch.compiler.is_compiling():
        return max(8, -(-numel // 8) * 8)
    return CPU_CHUNK if device.type == "cpu" else ACCELERATOR_CHUNK


def packed_bytes(n: int, bits: int) -> int:
    """Bytes that ``n`` codes of ``bits`` bits take in one chunk."""
    if bits == 3:
        return packed_bytes(n, 2) + packed_bytes(n, 1)
    return -(-n * bits // 8)


def chunks(n: int, chunk: int, bits: int) -> Iterator[tuple[slice, slice]]:
    """(elements, bytes) of every chunk of a flat tensor of ``n`` elements; for loops whose turns keep nothing."""
    size = packed_bytes(chunk, bits)
    for start in alike(range(0, n, chunk), keeps=False):
        stop, place = min(start + chunk, n), start // chunk * size
        yield slice(start, stop), slice(place, place + packed_bytes(stop - start, bits))


def to_codes(x: Tensor, top: int) -> Tensor:
    """Whole numbers of 0 to ``top``, at most 255, as uint8. By way of signed types: conversions to uint8 are slow."""
    return x.to(torch.int8).view(torch.uint8) if top < 128 else x.to(torch.int16).to(torch.uint8)


def pack(codes: Tensor, bits: int) -> Tensor:
    """One chunk of codes to bytes.

    Args:
        codes: ``(n,)`` uint8, every value below ``2 ** bits``.
        bits: One of ``BITS``.

    Returns:
        ``(packed_bytes(n, bits),)`` uint8.
    """
    if bits == 8:
        return codes
    if bits == 3:
        return torch.cat([pack(codes & 3, 2), pack(codes >> 2, 1)])
    parts, n = 8 // bits, codes.numel()
    width = -(-n // parts)
    if n == parts * width:  # Every byte is full: row i of the (parts, width) view goes to bits i * b and up.
        rows = codes.view(parts, width)
        out = rows[0].clone()
        for i in range(1, parts):
            out |= rows[i] << (bits * i)
        return out
    # The last parts are short, or missing: their bits stay 0.
    out = codes[:width].clone()
    for i in range(1, parts):
        row = codes[i * width : (i + 1) * width]
        out[: row.numel()] |= row << (bits * i)
    return out


def unpack(data: Tensor, n: int, bits: int) -> Tensor:
    """The ``n`` codes of one chunk, ``(n,)`` uint8: the inverse of ``pack``."""
    if bits == 8:
        return data[:n]
    if bits == 3:
        low = packed_bytes(n, 2)
        return unpack(data[:low], n, 2) | (unpack(data[low:], n, 1) << 2)
    mask = (1 << bits) - 1
    return torch.cat([(data >> (bits * i)) & mask for i in range(8 // bits)])[:n]
