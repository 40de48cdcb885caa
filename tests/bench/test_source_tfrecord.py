"""TFRecord files and ``tf.train.Example``: against published and TensorFlow's own bytes, and broken in many ways."""

from __future__ import annotations

import contextlib
import struct
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.data.readers import crc32c as crc32c_module
from s2a_bench.data.readers.crc32c import crc32c
from s2a_bench.data.readers.tfrecord import (
    encode_example,
    iterate_records,
    parse_example,
    read_records,
    write_record,
)
from s2a_bench.errors import InputError


def bitwise_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def test_checksums_of_the_standard():
    # RFC 3720, appendix B.4.
    assert crc32c(b"") == 0
    assert crc32c(bytes(32)) == 0x8A9136AA
    assert crc32c(b"\xff" * 32) == 0x62A8AB43
    assert crc32c(bytes(range(32))) == 0x46DD794E
    assert crc32c(b"123456789") == 0xE3069283


@pytest.mark.parametrize("size", [1, 63, 64, 4095, 4096, 4097, 4160, 9000, 70001])
def test_checksums_of_any_length(size: int, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(crc32c_module, "_installed_crc32c", lambda: None)
    data = np.random.default_rng(size).integers(0, 256, size, np.uint8).tobytes()
    assert crc32c(data) == bitwise_crc32c(data)


def test_installed_checksums_are_used(monkeypatch: pytest.MonkeyPatch):
    module = types.ModuleType("google_crc32c")
    module.value = lambda data: 7  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "google_crc32c", module)
    crc32c_module._installed_crc32c.cache_clear()
    try:
        assert crc32c(b"anything") == 7
    finally:
        crc32c_module._installed_crc32c.cache_clear()


LISTS = (
    st.lists(st.binary(max_size=40), max_size=5)
    | st.lists(st.integers(-(2**63), 2**63 - 1), max_size=5)
    | st.lists(st.floats(width=32, allow_nan=False), max_size=5)
)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(max_size=8), LISTS, max_size=5))
def test_examples_come_back(features: dict[str, Any]):
    assert parse_example(encode_example(features)) == features
    assert parse_example(encode_example(features), ()) == {}


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60))
def test_any_bytes_are_an_example_or_a_value_error(data: bytes):
    with contextlib.suppress(ValueError):
        parse_example(data)


def test_examples_written_by_hand():
    """Unpacked numbers, unknown fields, and a map's value before its key."""

    def counted(number: int, content: bytes) -> bytes:
        return bytes([number << 3 | 2, len(content)]) + content

    ints = counted(3, b"\x08\x05\x08" + b"\xff" * 9 + b"\x01")  # 5 and -1
    floats = counted(2, b"\x0d" + struct.pack("<f", 1.5) + b"\x0d" + struct.pack("<f", -2))
    strange = b"\x78\x01" + b"\x79" + bytes(8) + b"\x7d" + bytes(4) + counted(15, b"?")
    entries = counted(1, counted(2, ints) + counted(1, b"i")) + counted(
        1, counted(1, b"f") + counted(2, strange + floats)
    )
    message = strange + counted(1, entries + counted(1, counted(1, b"none")))
    assert parse_example(message) == {"i": [5, -1], "f": [1.5, -2.0], "none": []}


@pytest.mark.parametrize(
    "data", [b"\x0a", b"\x0a\x05\x00", b"\x0b", b"\x80" * 11, b"\x0a\x04\x0a\x02\x0a\x05", b"\x0d\x00", b"\x0f"]
)
def test_broken_examples(data: bytes):
    with pytest.raises(ValueError, match=r"over the end|wire type|ten bytes"):
        parse_example(data)


def test_floats_of_a_broken_size():
    data = encode_example({"f": [1.0]})
    assert data.count(b"\x0a\x04" + struct.pack("<f", 1)) == 1
    # Three bytes of float and an unknown field where there were four.
    with pytest.raises(ValueError, match="broken size"):
        parse_example(data.replace(b"\x0a\x04" + struct.pack("<f", 1), b"\x0a\x02\x00\x00\x78\x00"))


# Written by TensorFlow 2.21: serialised, and ``TFRecordWriter.write(b"hello")``.
EXAMPLE = bytes.fromhex(
    "0a400a0c0a016212070a050a01780a000a070a0165120212000a110a0166120c120a0a080000c03f000000c0"
    "0a140a0169120f1a0d0a0b05ffffffffffffffffff01"
)
RECORD = bytes.fromhex("0500000000000000eab2043e68656c6c6fbb1f1c19")


def test_tensorflows_own_bytes(tmp_path: Path):
    features: dict[str, Any] = {"i": [5, -1], "f": [1.5, -2.0], "b": [b"x", b""], "e": []}
    assert parse_example(EXAMPLE) == features
    assert encode_example(features, floats=("e",)) == EXAMPLE
    with (tmp_path / "file").open("wb") as out:
        write_record(out, b"hello")
    assert (tmp_path / "file").read_bytes() == RECORD


@pytest.fixture
def file(tmp_path: Path) -> Path:
    with (tmp_path / "file").open("wb") as out:
        for data in (b"one", b"", b"x" * 5000):
            write_record(out, data)
    return tmp_path / "file"


def test_records_come_back(file: Path):
    assert list(iterate_records(file, "it")) == [(0, b"one"), (19, b""), (35, b"x" * 5000)]
    assert list(read_records(file, [35, 0], [2, 0], "it")) == [b"x" * 5000, b"one"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda data: data[:-1], "ends within record 2 of it"),
        (lambda data: data[:40], "ends within record 2 of it"),
        (lambda data: data[:20], "ends within record 1 of it"),
        (lambda data: b"\x04" + data[1:], "length of record 0 of it fails its checksum"),
        (lambda data: data[:9] + b"?" + data[10:], "length of record 0 of it fails its checksum"),
        (lambda data: b"PK\x03\x04" * 100, "length of record 0 of it fails its checksum"),
    ],
)
def test_broken_records(change: Callable[[bytes], bytes], words: str, file: Path):
    file.write_bytes(change(file.read_bytes()))
    with pytest.raises(InputError, match=words):
        list(iterate_records(file, "it"))
    with pytest.raises(InputError, match=words):
        list(read_records(file, [0, 19, 35], [0, 1, 2], "it"))


def test_broken_data_are_found_when_they_are_read(file: Path):
    for position, record in ((13, 0), (3000, 2), (len(file.read_bytes()) - 1, 2)):
        data = bytearray(file.read_bytes())
        data[position] ^= 1
        (file.parent / "broken").write_bytes(data)
        with pytest.raises(InputError, match=f"data of record {record} of it fail their checksum"):
            list(read_records(file.parent / "broken", [0, 19, 35], [0, 1, 2], "it"))
    with pytest.raises(InputError, match="cannot be read"):
        list(iterate_records(file.parent / "missing", "it"))
    with pytest.raises(InputError, match="cannot be read"):
        list(read_records(file.parent / "missing", [0], [0], "it"))
