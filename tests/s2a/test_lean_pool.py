"""Pooling that keeps no map: the stock layers' outputs and gradients, from a fraction of their bytes."""

from __future__ import annotations

import functools
from typing import Any

import hypothesis
import hypothesis.strategies as st
import pytest
import s2a
import timm
import torch
from s2a.lean import linear as layers
from s2a.lean.pooling import average_pool_forward, max_pool_forward
from torch import Tensor, nn


def lean(pool: nn.Module) -> nn.Module:
    """A copy with the lean forward, as ``make_lean`` puts it on."""
    copy: Any = type(pool)(
        **{key: value for key, value in vars(pool).items() if not key.startswith("_") and key != "training"}
    )
    forward = max_pool_forward if isinstance(pool, nn.MaxPool2d) else average_pool_forward
    copy.forward = functools.partial(forward, copy)
    return copy


def assert_same(pool: nn.Module, x: Tensor) -> None:
    """Outputs and gradients bit for bit, or to a rounding where windows overlap."""
    x = x.requires_grad_()
    found, expected = lean(pool)(x), pool(x)
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    direction = torch.randn_like(expected)
    (ours,), (theirs,) = (torch.autograd.grad(out, x, direction) for out in (found, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@hypothesis.settings(deadline=None, max_examples=80)
@hypothesis.given(st.data())
def test_it_is_the_stock_pool(data: Any) -> None:
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    padding = tuple(data.draw(st.integers(0, side // 2)) for side in kernel)
    ceil = data.draw(st.booleans())
    height, width = (data.draw(st.integers(10, 14)) for _ in range(2))
    torch.manual_seed(data.draw(st.integers(0, 99)))
    x = torch.randn(3, 2, height, width, dtype=torch.float64)
    if data.draw(st.booleans()):
        x = x.round()  # Several of a window are largest: the same one must get the gradient.
    dilation = data.draw(st.tuples(st.integers(1, 2), st.integers(1, 2)))
    assert_same(nn.MaxPool2d(kernel, stride, padding, dilation, ceil_mode=ceil), x)
    inside = data.draw(st.booleans())
    assert_same(nn.AvgPool2d(kernel, stride, padding, ceil, inside), x)


def test_kernels_given_as_one_number_channels_last_and_nan() -> None:
    x = torch.randn(2, 4, 9, 9)
    x[0, 1, 3, 3] = float("nan")
    for given in (x, x.to(memory_format=torch.channels_last)):
        for pool in (nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2), nn.AvgPool2d(2)):
            given = given.detach().requires_grad_()
            found, expected = lean(pool)(given), pool(given)
            torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
            assert found.stride() == expected.stride()
            for out in (found, expected):
                given.grad = None
                out.sum().backward()
                assert given.grad is not None and given.grad.isfinite().all()


@pytest.mark.parametrize(("kernel", "bits"), [(2, 2), (3, 4), (4, 4), (5, 8), (16, 8)])
def test_only_places_are_kept(kernel: int, bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "CHUNK", 2 * 3 * 32 * 32)  # Two images at a time.
    x = torch.randn(5, 3, 32, 32, requires_grad=True)
    pool = nn.MaxPool2d(kernel, kernel)
    outputs = (32 // kernel) ** 2
    kept = s2a.saved_bytes(lean(pool), x, torch.sum)
    assert kept.total == 5 * 3 * -(-outputs * bits // 8)
    assert s2a.saved_bytes(lean(nn.AvgPool2d(kernel)), x, torch.sum).total == 0
    stock = s2a.saved_bytes(pool, x, torch.sum)
    assert stock.total == x.numel() * 4 + 5 * 3 * outputs * 8


def test_what_it_does_not_take_is_stock() -> None:
    x = torch.randn(2, 3, 40, 40)
    pool = nn.MaxPool2d(20)  # 400 places.
    assert_same(pool, x.double())
    out, index = lean(nn.MaxPool2d(2, return_indices=True))(x.requires_grad_())
    assert out.shape == index.shape
    assert lean(nn.MaxPool2d(2))(x[0]).shape == (3, 20, 20)
    with torch.no_grad():
        assert not lean(nn.MaxPool2d(2))(x).requires_grad
    assert not lean(nn.AvgPool2d(2))(x.detach()).requires_grad


def test_a_resnets_pools_keep_next_to_nothing() -> None:
    """Stem and shortcuts of a ResNet-D: four bits for each output of the one max-pool, nothing for averages."""
    model = timm.create_model("resnet26d")
    adapted = s2a.attach(model, s2a.method_config("bias", activations="lean"), 5).eval()
    kept = s2a.saved_bytes(adapted, torch.randn(2, 3, 64, 64))
    pools = {name: size for name, size in kept.items() if "pool" in name or name.endswith("downsample.0")}
    assert pools == {"backbone.maxpool": 2 * 64 * 16 * 16 // 2}
