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

import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO

from s2a_bench.data.readers.crc32c import crc32c
from s2a_bench.errors import InputError

Value = list[bytes] | list[float] | list[int]
"""The list of values of one feature; the message says which of the three types it has."""

_LENGTH = struct.Struct("<Q")
_CRC = struct.Struct("<I")

# --- Records ---------------------------------------------------------------------------------------------------------


def _mask_crc(data: bytes) -> int:
    """Masked CRC-32C of ``data``: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


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
