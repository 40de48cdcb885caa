"""Times of the kernels on small shapes, forward and backward, quantised next to exact.

``extra_info`` carries the bytes that the backward pass holds: those are exact and comparable everywhere, times only on
one quiet machine (compare ``min``).
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from s2a.activations.attention import attention, quantized_softmax
from s2a.ops.pack import pack, unpack
from s2a.ops.pointwise import gelu
from torch import Tensor

TOKENS = (8, 65, 96)
HEADS = (8, 3, 65, 32)


def backward_bytes(step: Callable[[], Tensor]) -> int:
    """Bytes of the distinct storages that autograd keeps."""
    kept: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        out = step()
    out.sum().backward()
    return sum(kept.values())


def time_step(benchmark, forward: Callable[[], Tensor]) -> None:
    """Times a forward and a backward pass."""
    benchmark.extra_info["saved_bytes"] = backward_bytes(forward)

    def step() -> None:
        forward().sum().backward()

    benchmark(step)


@pytest.mark.benchmark(group="pack")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_pack(benchmark, bits):
    codes = torch.randint(0, 2**bits, (1_000_000,), dtype=torch.uint8)
    benchmark.extra_info["saved_bytes"] = pack(codes, bits).numel()
    benchmark(pack, codes, bits)


@pytest.mark.benchmark(group="unpack")
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_unpack(benchmark, bits):
    codes = torch.randint(0, 2**bits, (1_000_000,), dtype=torch.uint8)
    data = pack(codes, bits)
    assert torch.equal(benchmark(unpack, data, codes.numel(), bits), codes)


@pytest.mark.benchmark(group="gelu")
@pytest.mark.parametrize("kind", ["exact", "paper", "derivative"])
def test_gelu(benchmark, kind):
    x = torch.randn(*TOKENS, requires_grad=True)
    time_step(benchmark, lambda: F.gelu(x) if kind == "exact" else gelu(x, bits=4, levels=kind))


@pytest.mark.benchmark(group="softmax")
@pytest.mark.parametrize("bits", [None, 4, 8])
def test_softmax(benchmark, bits):
    x = torch.randn(8, 3, 65, 65, requires_grad=True)
    time_step(benchmark, lambda: x.softmax(-1) if bits is None else quantized_softmax(x, bits))


@pytest.mark.benchmark(group="attention")
@pytest.mark.parametrize("kind", ["fused", "quantised"])
def test_attention(benchmark, kind):
    q, k, v = (torch.randn(*HEADS, requires_grad=True) for _ in range(3))
    time_step(benchmark, lambda: F.scaled_dot_product_attention(q, k, v) if kind == "fused" else attention(q, k, v))
