"""The convolution and the batch norm that keep nothing of their input."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import s2a
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a.activations.frozen import fixed_batch_norm, frozen_conv2d
from torch import Tensor, nn

convolutions = st.fixed_dictionaries(
    {
        "groups": st.sampled_from([1, 2, 4]),
        "kernel_size": st.tuples(st.integers(1, 3), st.integers(1, 3)),
        "stride": st.integers(1, 3),
        "padding": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        "dilation": st.integers(1, 2),
        "bias": st.booleans(),
    }
)


def convolution(options: dict[str, Any], dtype: torch.dtype = torch.float32) -> nn.Conv2d:
    conv = nn.Conv2d(4, 8, **options, dtype=dtype)
    conv.weight.requires_grad_(False)
    return conv


def gradients(out: Tensor, x: Tensor, conv: nn.Conv2d) -> tuple[Tensor, ...]:
    """Of the input and the bias."""
    assert conv.bias is not None
    return torch.autograd.grad(out.float().square().sum(), [x, conv.bias])


@given(options=convolutions, batch=st.integers(0, 2), height=st.integers(5, 8), width=st.integers(5, 8))
def test_it_is_the_stock_convolution(options: dict[str, Any], batch: int, height: int, width: int) -> None:
    torch.manual_seed(0)
    conv = convolution(options)
    x = torch.randn(batch, 4, height, width, requires_grad=True)
    leaves = [x] if conv.bias is None else [x, conv.bias]
    found, expected = frozen_conv2d(conv, x), conv(x)
    assert torch.equal(found, expected)
    upstream = torch.randn_like(found)
    for one, other in zip(
        torch.autograd.grad(found, leaves, upstream), torch.autograd.grad(expected, leaves, upstream), strict=True
    ):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("options", [{"kernel_size": 3, "padding": 1, "groups": 4}, {"kernel_size": 2, "stride": 2}])
def test_it_passes_gradcheck(options: dict[str, Any]) -> None:
    module = Apply(convolution(options, torch.float64), frozen=True)
    x = torch.randn(2, 4, 5, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(8, dtype=torch.float64, requires_grad=True)

    def call(x: Tensor, bias: Tensor) -> Tensor:
        return torch.func.functional_call(module, {"conv.bias": bias}, x)

    assert torch.autograd.gradcheck(call, (x, bias))


class Apply(nn.Module):
    """A frozen convolution behind a parameter that keeps nothing itself."""

    def __init__(self, conv: nn.Conv2d, frozen: bool) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.conv, self.frozen = conv, frozen

    def forward(self, x: Tensor) -> Tensor:
        return frozen_conv2d(self.conv, x + self.shift) if self.frozen else self.conv(x + self.shift)


@pytest.mark.parametrize("bias", [True, False])
def test_it_keeps_nothing_of_its_input(bias: bool) -> None:
    conv = convolution({"kernel_size": 3, "bias": bias})
    x = torch.randn(2, 4, 6, 6)
    assert s2a.saved_bytes(Apply(conv, frozen=True), x, torch.sum).total == 0
    assert s2a.saved_bytes(Apply(conv, frozen=False), x, torch.sum).total == 4 * x.numel()


def test_a_training_weight_takes_the_stock_path() -> None:
    conv = convolution({"kernel_size": 3})
    conv.weight.requires_grad_(True)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    (grad,) = torch.autograd.grad(frozen_conv2d(conv, x).sum(), conv.weight)
    (expected,) = torch.autograd.grad(conv(x).sum(), conv.weight)
    assert torch.equal(grad, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"kernel_size": 3, "padding": "same"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
        {"kernel_size": 3, "padding": 1, "padding_mode": "circular"},
    ],
)
def test_unusual_padding(options: dict[str, Any]) -> None:
    conv = convolution(options)
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    found, expected = frozen_conv2d(conv, x), conv(x)
    assert torch.equal(found, expected)
    assert torch.equal(torch.autograd.grad(found.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])


def test_an_image_without_batch_axis() -> None:
    conv = convolution({"kernel_size": 3})
    x = torch.randn(4, 6, 6, requires_grad=True)
    for one, other in zip(gradients(frozen_conv2d(conv, x), x, conv), gradients(conv(x), x, conv), strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("layout", ["channels_last", "strided"])
def test_other_layouts(layout: str) -> None:
    conv = convolution({"kernel_size": 3, "groups": 2})
    base = torch.randn(2, 4, 6, 6)
    x = (
        base.to(memory_format=torch.channels_last)
        if layout == "channels_last"
        else torch.stack([base, base], -1)[..., 0]
    )
    x.requires_grad_()
    found, expected = frozen_conv2d(conv, x), conv(x)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found.square().sum(), x)[0], torch.autograd.grad(expected.square().sum(), x)[0]
    )


def test_autocast() -> None:
    conv = convolution({"kernel_size": 3})
    x = torch.randn(2, 4, 6, 6, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        found, expected = frozen_conv2d(conv, x), conv(x)
    assert found.dtype == expected.dtype == torch.bfloat16
    assert torch.equal(found, expected)
    for one, other in zip(gradients(found, x, conv), gradients(expected, x, conv), strict=True):
        assert one.dtype == torch.float32
        torch.testing.assert_close(one, other, rtol=0.02, atol=0.02)


def test_nothing_is_kept_without_gradient() -> None:
    conv = convolution({"kernel_size": 3})
    conv.requires_grad_(False)
    assert frozen_conv2d(conv, torch.randn(1, 4, 6, 6)).grad_fn is None


# Batch norm with fixed statistics


def batch_norm(trains: bool = False) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(4).eval()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    assert norm.running_mean is not None and norm.running_var is not None
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2)
    norm.weight.requires_grad_(trains)
    return norm


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_fixed_statistics_give_the_gradients_of_batch_norm(layout: torch.memory_format) -> None:
    norm = batch_norm()
    x = torch.randn(3, 4, 5, 6).contiguous(memory_format=layout).requires_grad_()
    found, expected = fixed_batch_norm(norm, x), norm(x)
    assert torch.equal(found, expected)
    given = torch.randn_like(found)
    ours = torch.autograd.grad(found, (x, norm.bias), given)
    stock = torch.autograd.grad(expected, (x, norm.bias), given)
    for one, other in zip(ours, stock, strict=True):
        torch.testing.assert_close(one, other)


def test_fixed_statistics_in_float64_pass_gradcheck() -> None:
    norm = batch_norm().double()
    x = torch.randn(2, 4, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, b: fixed_batch_norm(norm, x), (x, norm.bias))


@pytest.mark.parametrize("case", ["training", "trained weight", "no statistics"])
def test_a_batch_norm_that_needs_its_input_is_the_stock_one(case: str) -> None:
    norm = batch_norm(trains=case == "trained weight")
    if case == "no statistics":
        norm = nn.BatchNorm2d(4, track_running_stats=False).eval()
    norm.train(case == "training")
    x = torch.randn(3, 4, 5, 6, requires_grad=True)
    other = copy.deepcopy(norm)
    found, expected = fixed_batch_norm(norm, x), other(x)
    assert torch.equal(found, expected)
    ours, stock = (torch.autograd.grad(out.square().sum(), x)[0] for out in (found, expected))
    assert torch.equal(ours, stock)
    for one, two in zip(norm.buffers(), other.buffers(), strict=True):
        assert torch.equal(one, two)


def test_a_resnet_in_evaluation_mode_keeps_no_input_of_a_batch_norm() -> None:
    adapted = s2a.attach(tiny.resnet(), s2a.method_config("s2a"), 5, image_size=64).eval()
    norms = {n: m for n, m in adapted.named_modules() if isinstance(m, nn.BatchNorm2d)}
    kept = s2a.saved_bytes(adapted, torch.randn(2, 3, 64, 64))
    assert {n: size for n, size in kept.items() if n in norms} == {n: 4 * m.num_features for n, m in norms.items()}
