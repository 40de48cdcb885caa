"""TFRecord files of ``tf.train.Example`` messages, read and written without TensorFlow.

A file is a sequence of records (https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details)::

    length       uint64, little-endian
    length_crc   uint32, masked CRC-32C of the 8 bytes of length
    data         length bytes
    data_crc     uint32, masked CRC-32C of data

with ``mask(c) = ((c >> 15) | (c << 17)) + 0xa282ead8`` modulo 2**32. The data is one ``tf.train.Example`` message
(https://github.com/tensorflow/tensorflow/blob/master/tensorflow/core/example/feature.proto)::

    Example   { 1: Features }
    Features  { 1: repeated map entry { 1: name, 2: Feature } }
    Feature   one of { 1: BytesList, 2: FloatList, 3: Int64List }, each with its values as field 1

in the wire format of https://protobuf.dev/programming-guides/encoding: a field is a varint tag
``field_number << 3 | wire_type`` and its value. A varint holds 7 bits per byte, the lowest first, and bit 7 is set on
all bytes but the last. Wire types: 0 varint, 1 eight bytes, 2 a varint length and that many bytes, 5 four bytes.
"""

from __future__ import annotations

import functools
import importlib
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

import numpy as np

from s2a_bench.errors import InputError

Value = list[bytes] | list[float] | list[int]
"""The list of values of one feature; the message says which of the three types it has."""

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")

# --- Checksums -------------------------------------------------------------------------------------------------------

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


def _mask_crc(data: bytes) -> int:
    """Masked CRC-32C of ``data``: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


# --- Records ---------------------------------------------------------------------------------------------------------


def iterate_records(path: Path, what: str) -> Iterator[tuple[int, bytes]]:
    """Yields ``(byte offset, data)`` of each record. Checksums of lengths are checked, those of data are not.

    Args:
        path: The file.
        what: Its name in error messages.

    Raises:
        InputError: A broken or cut record, or the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb", buffering=1 << 20) as file:
            number = position = 0
            while position < size:
                data = _read_framed(file, size - position, f"record {number} of {what}")
                file.seek(_CRC.size, 1)
                yield position, data
                position += _LENGTH.size + _CRC.size + len(data) + _CRC.size
                number += 1
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror or error}); check the file.") from error


def read_records(path: Path, positions: Sequence[int], numbers: Sequence[int], what: str) -> Iterator[bytes]:
    """The data of some records, with every checksum checked.

    Args:
        path: The file.
        positions: Byte offsets from ``iterate_records``.
        numbers: Number of each record in the file, for error messages.
        what: Name of the file in error messages.

    Raises:
        InputError: A broken or cut record, or the file cannot be read.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            for position, number in zip(positions, numbers, strict=True):
                file.seek(position)
                data = _read_framed(file, size - position, f"record {number} of {what}")
                if file.read(_CRC.size) != _CRC.pack(_mask_crc(data)):
                    raise InputError(f"The data of record {number} of {what} fail their checksum; export it again.")
                yield data
    except OSError as error:
        raise InputError(f"{what} cannot be read ({error.strerror or error}); check the file.") from error


def _read_framed(file: IO[bytes], left: int, what: str) -> bytes:
    """Reads length and data of the record at the file's position, of which ``left`` bytes remain in the file."""
    head = file.read(_LENGTH.size + _CRC.size)
    if len(head) < _LENGTH.size + _CRC.size:
        raise InputError(f"The file ends within {what}; copy or export it again.")
    length = _LENGTH.unpack_from(head)[0]
    if _CRC.unpack_from(head, _LENGTH.size)[0] != _mask_crc(head[: _LENGTH.size]):
        raise InputError(f"The length of {what} fails its checksum; the file is damaged or no TFRecord file.")
    if length > left - _LENGTH.size - 2 * _CRC.size:
        raise InputError(f"The file ends within {what}; copy or export it again.")
    return file.read(length)


def write_record(out: IO[bytes], data: bytes) -> None:
    """Appends one record."""
    length = _LENGTH.pack(len(data))
    out.write(length + _CRC.pack(_mask_crc(length)) + data + _CRC.pack(_mask_crc(data)))


# --- Examples --------------------------------------------------------------------------------------------------------

_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5
_BYTES, _FLOATS, _INTS = 1, 2, 3


def parse_example(data: bytes, wanted: Collection[str] | None = None) -> dict[str, Value]:
    """The features of a ``tf.train.Example``.

    Args:
        data: A record.
        wanted: Names of features to parse; others are skipped. ``None``: all.

    Raises:
        ValueError: It is not such a message.
    """
    found: dict[str, Value] = {}
    # Example.features, then each entry of its map: name and Feature.
    for features in _submessages(data, 0, len(data), 1):
        for entry in _submessages(data, *features, 1):
            name, value = "", None
            for number, kind, start, end in _iterate_fields(data, *entry):
                if number == 1 and kind == _LENGTH_DELIMITED:
                    name = data[start:end].decode()
                elif number == 2 and kind == _LENGTH_DELIMITED:
                    value = (start, end)
            if wanted is None or name in wanted:
                found[name] = _parse_feature(data, *value) if value else []
    return found


def _iterate_fields(data: bytes, start: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Yields ``(field number, wire type, start, end)`` of each field; for a varint its value as both start and end."""
    while start < end:
        tag, start = _read_varint(data, start, end)
        kind = tag & 7
        if kind == _VARINT:
            value, start = _read_varint(data, start, end)
            yield tag >> 3, kind, value, value
            continue
        if kind == _LENGTH_DELIMITED:
            size, start = _read_varint(data, start, end)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        if size > end - start:
            raise ValueError("a field runs over the end")
        yield tag >> 3, kind, start, start + size
        start += size


def _read_varint(data: bytes, start: int, end: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if start >= end:
            raise ValueError("a number runs over the end")
        byte = data[start]
        start += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, start
    raise ValueError("a number of more than ten bytes")


def _submessages(data: bytes, start: int, end: int, wanted: int) -> Iterator[tuple[int, int]]:
    for number, kind, first, last in _iterate_fields(data, start, end):
        if number == wanted and kind == _LENGTH_DELIMITED:
            yield first, last


def _parse_feature(data: bytes, start: int, end: int) -> Value:
    """The values of a ``Feature``, whichever of the three lists it holds."""
    found: Value = []
    for number, kind, first, last in _iterate_fields(data, start, end):
        if kind != _LENGTH_DELIMITED or number not in (_BYTES, _FLOATS, _INTS):
            continue
        if number == _BYTES:
            found = [data[a:b] for a, b in _submessages(data, first, last, 1)]
        elif number == _FLOATS:
            found = _parse_floats(data, first, last)
        else:
            found = _parse_ints(data, first, last)
    return found


def _parse_floats(data: bytes, start: int, end: int) -> list[float]:
    found: list[float] = []
    for number, kind, first, last in _iterate_fields(data, start, end):
        if number == 1 and kind in (_FIXED32, _LENGTH_DELIMITED):  # one by one, or packed
            if (last - first) % 4:
                raise ValueError("floats of a broken size")
            found += struct.unpack_from(f"<{(last - first) // 4}f", data, first)
    return found


def _parse_ints(data: bytes, start: int, end: int) -> list[int]:
    found: list[int] = []
    for number, kind, first, last in _iterate_fields(data, start, end):
        if number == 1 and kind == _VARINT:
            found.append(_to_signed(first))
        elif number == 1 and kind == _LENGTH_DELIMITED:
            while first < last:
                value, first = _read_varint(data, first, last)
                found.append(_to_signed(value))
    return found


def _to_signed(value: int) -> int:
    """An int64 from its 64-bit two's complement, as varints store it."""
    return value - (1 << 64) if value >> 63 else value


def encode_example(features: Mapping[str, Value], floats: Collection[str] = ()) -> bytes:
    """Encodes a ``tf.train.Example`` with sorted names and packed numbers.

    Args:
        features: Lists of bytes, of floats or of whole numbers, each of one type.
        floats: Names of the features that are floats though they are empty.
    """
    entries = []
    for name, values in sorted(features.items()):
        if name in floats or any(isinstance(v, float) for v in values):
            number, content = _FLOATS, _encode_field(1, struct.pack(f"<{len(values)}f", *values)) if values else b""
        elif any(isinstance(v, bytes) for v in values):
            number, content = _BYTES, b"".join(_encode_field(1, v) for v in values if isinstance(v, bytes))
        else:
            packed = b"".join(_encode_varint(v & 0xFFFFFFFFFFFFFFFF) for v in values if isinstance(v, int))
            number, content = _INTS, _encode_field(1, packed) if values else b""
        entries.append(
            _encode_field(1, _encode_field(1, name.encode()) + _encode_field(2, _encode_field(number, content)))
        )
    return _encode_field(1, b"".join(entries))


def _encode_field(number: int, content: bytes) -> bytes:
    """A length-delimited field: tag, length, content."""
    return _encode_varint(number << 3 | _LENGTH_DELIMITED) + _encode_varint(len(content)) + content


def _encode_varint(value: int) -> bytes:
    """7 bits per byte, the lowest first; bit 7 is set on all bytes but the last."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
