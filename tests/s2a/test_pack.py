"""Codes into bytes and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a.ops.pack import BITS, chunks, pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", BITS)
def test_every_byte_survives(bits: int) -> None:
    n = 256 * 8 // bits if bits != 3 else 256 * 8
    size = packed_bytes(n, bits)
    data = (torch.arange(size) % 256).to(torch.uint8)
    codes = unpack(data, n, bits)
    assert codes.shape == (n,)
    assert int(codes.max()) == 2**bits - 1
    assert torch.equal(pack(codes, bits), data)


@given(bits=st.sampled_from(BITS), n=st.integers(0, 70), seed=st.integers(0, 2**20))
def test_every_length_survives(bits: int, n: int, seed: int) -> None:
    codes = torch.randint(0, 2**bits, (n,), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))
    kept = codes.clone()
    data = pack(codes, bits)
    assert data.dtype == torch.uint8
    assert data.shape == (packed_bytes(n, bits),)
    assert torch.equal(unpack(data, n, bits), codes)
    assert torch.equal(codes, kept)  # Packing does not write into what it is given.


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_layout_is_as_documented(bits: int) -> None:
    codes = torch.randint(0, 2**bits, (37,), dtype=torch.uint8)
    parts = 8 // bits
    width = -(-37 // parts)
    data = pack(codes, bits)
    for j in range(width):
        held = [int(codes[j + i * width]) if j + i * width < 37 else 0 for i in range(parts)]
        assert int(data[j]) == sum(code << (bits * i) for i, code in enumerate(held))


@given(bits=st.sampled_from(BITS), n=st.integers(0, 10_000))
def test_bytes_are_as_few_as_can_be(bits: int, n: int) -> None:
    least = -(-n * bits // 8)
    assert least <= packed_bytes(n, bits) <= least + (bits == 3)


@given(bits=st.sampled_from(BITS), n=st.integers(0, 300), chunk=st.integers(1, 20).map(lambda i: 8 * i))
def test_chunks_tile_elements_and_bytes(bits: int, n: int, chunk: int) -> None:
    element = byte = 0
    for elements, place in chunks(n, chunk, bits):
        assert (elements.start, place.start) == (element, byte)
        element, byte = elements.stop, place.stop
        assert byte - place.start == packed_bytes(element - elements.start, bits)
    assert element == n
