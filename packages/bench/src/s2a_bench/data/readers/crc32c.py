"""CRC-32C, the checksum of TFRecord files, vectorised with NumPy where no library for it is installed."""

from __future__ import annotations

import functools
import importlib
from collections.abc import Callable

import numpy as np

_POLYNOMIAL = 0x82F63B78  # Castagnoli's, bits reversed
_BLOCK = 64
_BLOCKWISE_FROM = 4096  # bytes; from about here on NumPy is faster than the plain loop


def _make_table() -> list[int]:
    """The register after one byte, for each of its 256 values: 8 steps of division by the polynomial."""
    table = list(range(256))
    for _ in range(8):
        table = [crc >> 1 ^ (_POLYNOMIAL if crc & 1 else 0) for crc in table]
    return table


_TABLE = _make_table()


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli, RFC 3720 appendix B.4) of ``data``.

    Computed by ``google_crc32c`` or ``crc32c`` where one is installed, else here. The register starts as all ones and
    is inverted at the end.
    """
    quick = _installed_crc32c()
    if quick is not None:
        return quick(data)
    if len(data) < _BLOCKWISE_FROM:
        return _crc_bytewise(data, 0xFFFFFFFF) ^ 0xFFFFFFFF
    # The bytes before the first whole block, then the blocks.
    head = len(data) % _BLOCK
    first = _crc_bytewise(data[:head], 0xFFFFFFFF)
    return _crc_blockwise(np.frombuffer(data, np.uint8, offset=head).reshape(-1, _BLOCK), first) ^ 0xFFFFFFFF


def _crc_bytewise(data: bytes, crc: int) -> int:
    """The register after ``data``, byte by byte: ``r = table[(r ^ byte) & 0xff] ^ (r >> 8)``."""
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc


def _crc_blockwise(blocks: np.ndarray, crc: int) -> int:
    """The register after ``(N, _BLOCK)`` bytes, vectorised over blocks.

    The register is linear over GF(2) in its start ``r`` and in the data. With ``Z_n(r)`` the register after ``n`` zero
    bytes and ``R(d)`` the one after data ``d`` from start 0::

        crc(r, d)    = Z_len(d)(r) ^ R(d)
        R(d1 + d2)   = Z_len(d2)(R(d1)) ^ R(d2)

    So all blocks are computed from 0 at once, and neighbours are then joined in pairs, level by level. The start
    ``crc`` enters through the first block.
    """
    table = np.array(_TABLE, np.uint32)
    register = np.zeros(len(blocks), np.uint32)
    register[0] = crc
    # One byte of every block per step.
    for column in blocks.T:
        register = table[(register ^ column) & 0xFF] ^ register >> 8
    # Join neighbours; at each level a register stands for _BLOCK * 2**level bytes.
    level = 0
    while len(register) > 1:
        if len(register) % 2:  # zero bytes before the data leave a register of 0 as it is
            register = np.concatenate([np.zeros(1, np.uint32), register])
        register = _append_zero_bytes(register[::2], level) ^ register[1::2]
        level += 1
    return int(register[0])


def _append_zero_bytes(register: np.ndarray, level: int) -> np.ndarray:
    """Registers after ``_BLOCK * 2**level`` more zero bytes: by linearity the xor over their four bytes."""
    tables = _zero_byte_tables(level)
    return (
        tables[0][register & 0xFF]
        ^ tables[1][register >> 8 & 0xFF]
        ^ tables[2][register >> 16 & 0xFF]
        ^ tables[3][register >> 24]
    )


@functools.cache
def _zero_byte_tables(level: int) -> np.ndarray:
    """``(4, 256)`` uint32: the register after ``_BLOCK * 2**level`` zero bytes, for each value of each of its bytes.

    Twice as many zero bytes are the same step twice, so that level ``k`` follows from level ``k - 1``.
    """
    register = np.arange(256, dtype=np.uint32) << np.array([[0], [8], [16], [24]], np.uint32)
    if level:
        return _append_zero_bytes(_append_zero_bytes(register, level - 1), level - 1)
    table = np.array(_TABLE, np.uint32)
    for _ in range(_BLOCK):
        register = table[register & 0xFF] ^ register >> 8
    return register


@functools.cache
def _installed_crc32c() -> Callable[[bytes], int] | None:
    for module, name in (("google_crc32c", "value"), ("crc32c", "crc32c")):
        try:
            return getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError):
            continue
    return None
