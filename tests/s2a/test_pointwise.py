"""Activations that keep a code: forward as it was, backward exactly the rounded derivative."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import s2a
import timm.layers
import torch
import torch.nn.functional as F
from hypothesis import assume, given
from hypothesis import strategies as st
from s2a.ops import pack, pointwise
from s2a.ops.levels import fitted_levels
from s2a.ops.pack import BITS, CPU_CHUNK, packed_bytes
from s2a.ops.pointwise import activation_code, coded, gelu
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

Function = Callable[[Tensor], Tensor]

SMOOTH: dict[str, Function] = {
    "gelu": F.gelu,
    "silu": F.silu,
    "quick_gelu": timm.layers.quick_gelu,
    "hardswish": F.hardswish,
}
STEPS: dict[str, Function] = {
    "relu": F.relu,
    "relu6": F.relu6,
    "leaky_relu": functools.partial(F.leaky_relu, negative_slope=0.01),
}
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


@st.composite
def tensors(draw: st.DrawFn) -> Tensor:
    """Leaves of any shape (odd, empty, no axis at all) and any float type, wider than every code's range."""
    shape = draw(st.lists(st.integers(0, 7), max_size=4))
    seed = draw(st.integers(0, 2**20))
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return x.to(draw(st.sampled_from(DTYPES))).requires_grad_()


def arrange(x: Tensor, layout: str) -> Tensor:
    """A view of ``x`` with strides of its own."""
    if layout == "transposed":
        return x.permute(tuple(reversed(range(x.dim()))))
    if layout == "sliced":
        return torch.stack([x, x], -1)[..., 0]
    return x


def upstream(out: Tensor) -> Tensor:
    """A gradient to pull back through ``out``."""
    return torch.randn(out.shape, generator=torch.Generator().manual_seed(7)).to(out.dtype)


layouts = st.sampled_from(["contiguous", "transposed", "sliced"])


def compare(x: Tensor, view: Tensor, function: Function, code: pointwise.Code, index: Tensor) -> None:
    """Forward bit for bit the stock function; gradient exactly autograd's with the derivative ``values[index]``."""
    derivative = torch.tensor(code.values, dtype=torch.float64)[index]
    out = coded(view, function, code)
    assert out.dtype == x.dtype
    assert torch.equal(out, function(view.detach()))
    given_grad = upstream(out)
    (found,) = torch.autograd.grad(out, x, given_grad)
    expected_out = oracles.with_derivative(view, function(view), derivative)
    (expected,) = torch.autograd.grad(expected_out, x, given_grad)
    assert found.dtype == x.dtype
    assert torch.equal(found, expected)


@given(x=tensors(), layout=layouts, bits=st.sampled_from(BITS), name=st.sampled_from(["gelu", "quick_gelu", "silu"]))
def test_paper_backward_is_the_rounded_derivative(x: Tensor, layout: str, bits: int, name: str) -> None:
    view, code = arrange(x, layout), activation_code(name, bits)
    stretch = 1.702 if name == "silu" else 1.0
    levels = oracles.grid_levels(bits, 2 * stretch)
    values = torch.tensor(code.values, dtype=torch.float64)
    torch.testing.assert_close(values, oracles.sine_derivative(levels / stretch), rtol=1e-13, atol=1e-13)
    index, tie = oracles.nearest_level(view, levels)
    assume(not tie.any())
    compare(x, view, SMOOTH[name], code, index)


@given(x=tensors(), layout=layouts, bits=st.sampled_from(BITS), name=st.sampled_from(sorted(SMOOTH)))
def test_fitted_backward_is_the_rounded_derivative(x: Tensor, layout: str, bits: int, name: str) -> None:
    view, code = arrange(x, layout), activation_code(name, bits, "derivative")
    borders, values = fitted_levels(name, bits)
    assert (code.borders, code.values) == (borders, values)
    means = oracles.cell_means(borders, SMOOTH[name])
    torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), means, rtol=1e-9, atol=1e-9)
    compare(x, view, SMOOTH[name], code, oracles.cell_of(view, borders))


@given(x=tensors(), layout=layouts, name=st.sampled_from(sorted(STEPS)))
def test_step_derivatives_are_exact(x: Tensor, layout: str, name: str) -> None:
    view = arrange(x, layout)
    (found,) = torch.autograd.grad(coded(view, STEPS[name], activation_code(name)), x, upstream(view))
    (expected,) = torch.autograd.grad(STEPS[name](view), x, upstream(view))
    if name == "leaky_relu" and x.dtype.itemsize == 2:  # The kept slope is itself rounded to 16 bits.
        torch.testing.assert_close(found, expected)
    else:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", STEPS)
def test_step_derivatives_are_exact_at_their_kinks(name: str, dtype: torch.dtype) -> None:
    kinks = torch.tensor([-1.0, 0.0, 1.0, 6.0], dtype=dtype)
    around = [torch.nextafter(kinks, torch.full_like(kinks, s)) for s in (-10, 10)] if dtype.itemsize > 2 else []
    infinite = torch.tensor([-torch.inf, torch.inf, -0.0], dtype=dtype)
    if dtype == torch.float64:
        around = [a.float().double() for a in around]  # Codes compare in float32.
    x = torch.cat([kinks, infinite, *around]).requires_grad_()
    (found,) = torch.autograd.grad(coded(x, STEPS[name], activation_code(name)).sum(), x)
    (expected,) = torch.autograd.grad(STEPS[name](x).sum(), x)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("name", STEPS)
def test_step_functions_pass_gradcheck(name: str) -> None:
    x = (3 * torch.randn(3, 5, dtype=torch.float64) + 0.01).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: coded(x, STEPS[name], activation_code(name)), x)


@pytest.mark.parametrize("bits", BITS)
def test_a_tie_goes_to_a_neighbour(bits: int) -> None:
    step = 4 / (2**bits - 1)
    ties = torch.tensor([-2 + (i + 0.5) * step for i in range(2**bits - 1)])
    codes = activation_code("gelu", bits).encode(ties).long()
    below = torch.arange(2**bits - 1)
    assert bool(((codes == below) | (codes == below + 1)).all())


@pytest.mark.parametrize("levels", pointwise.LEVEL_KINDS)
@pytest.mark.parametrize("name", [*SMOOTH, *STEPS])
def test_nan_and_infinity_pass_as_in_the_stock_function(name: str, levels: str) -> None:
    function = {**SMOOTH, **STEPS}[name]
    x = torch.tensor([torch.nan, torch.inf, -torch.inf, 1.0], requires_grad=True)
    code = activation_code(name, 4, levels)
    out = coded(x, function, code)
    torch.testing.assert_close(out.detach(), function(x.detach()), rtol=0, atol=0, equal_nan=True)
    assert int(code.encode(x.detach()).max()) < 2**code.bits
    (grad,) = torch.autograd.grad(out, x, torch.tensor([torch.nan, 1.0, 1.0, 1.0]))
    assert bool(grad[0].isnan())
    assert bool(grad[1:].isfinite().all())
    edges = torch.tensor([50.0, -50.0], requires_grad=True)
    assert torch.equal(grad[1:3], torch.autograd.grad(coded(edges, function, code).sum(), edges)[0])


@pytest.mark.parametrize("bits", BITS)
def test_chunks_do_not_show(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = (2 * torch.randn(1003)).requires_grad_()
    code = activation_code("gelu", bits, "derivative")
    (whole,) = torch.autograd.grad(coded(x, F.gelu, code).sum(), x)
    monkeypatch.setattr(pack, "CPU_CHUNK", 64)
    (pieces,) = torch.autograd.grad(coded(x, F.gelu, code).sum(), x)
    assert torch.equal(whole, pieces)


class Apply(nn.Module):
    """A function of an input that needs a gradient; the sum with the parameter keeps nothing."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x + self.shift)


@given(shape=st.lists(st.integers(0, 9), min_size=1, max_size=3), bits=st.sampled_from(BITS))
def test_gelu_keeps_its_codes_alone(shape: list[int], bits: int) -> None:
    x = torch.randn(shape)
    for levels in pointwise.LEVEL_KINDS:
        kept = s2a.saved_bytes(Apply(lambda x, k=levels: pointwise.gelu(x, bits=bits, levels=k)), x, torch.sum)
        assert kept.total == packed_bytes(x.numel(), bits)


def test_bytes_are_the_papers() -> None:
    x = torch.randn(4, 197, 64)
    assert s2a.saved_bytes(Apply(pointwise.gelu), x, torch.sum).total == x.numel() / 2
    assert s2a.saved_bytes(Apply(pointwise.silu), x, torch.sum).total == x.numel() / 2
    assert s2a.saved_bytes(Apply(pointwise.relu), x, torch.sum).total == x.numel() / 8
    assert s2a.saved_bytes(Apply(F.gelu), x, torch.sum).total == 4 * x.numel()


def test_nothing_is_kept_without_gradient() -> None:
    x = torch.randn(9)
    assert pointwise.gelu(x).grad_fn is None
    with torch.no_grad():
        assert pointwise.gelu(x.requires_grad_()).grad_fn is None


def test_no_second_derivative_is_claimed() -> None:
    x = torch.randn(9, requires_grad=True)
    (grad,) = torch.autograd.grad(pointwise.gelu(x).square().sum(), x, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_both_forms_of_gelu_have_their_own_forward(approximate: str) -> None:
    x = torch.randn(50, requires_grad=True)
    assert torch.equal(pointwise.gelu(x, approximate), F.gelu(x, approximate=approximate))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gelu", 5), r"bits=5 .* 1, 2, 3, 4, 8"),
        (("gelu", 0), "bits=0"),
        (("gelu", 4, "fine"), r"levels='fine' .* 'paper', 'derivative'"),
        (("mish", 4), r"'mish'; known: .*gelu"),
    ],
)
def test_bad_codes_are_refused(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        activation_code(*arguments)


class _Sizes(TorchDispatchMode):
    """Bytes of every tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {t.untyped_storage().data_ptr() for t in (*args, *(kwargs or {}).values()) if isinstance(t, Tensor)}
        if isinstance(out, Tensor) and out.untyped_storage().data_ptr() not in given:
            self.sizes.append(out.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("levels", ["paper", "derivative"])
def test_no_temporary_of_the_tensors_own_size(levels: str) -> None:
    activation_code("gelu", 4, levels)  # The fit happens once, before any training.
    n = 16 * CPU_CHUNK
    x = torch.randn(n, requires_grad=True)
    with _Sizes() as forward:
        y = gelu(x, levels=levels)
    with _Sizes() as backward:
        y.backward(torch.ones(n))
    temporary = 4 * CPU_CHUNK  # one chunk in float32
    assert sorted(size for size in forward.sizes if size > temporary) == [n // 2, 4 * n]  # the codes, the output
    assert all(size == 4 * n for size in backward.sizes if size > temporary)
    assert sum(size > temporary for size in backward.sizes) <= 2  # the incoming ones and the gradient


def test_channels_last_maps_keep_their_layout_and_are_not_copied() -> None:
    x = torch.randn(2, 8, 6, 5).contiguous(memory_format=torch.channels_last).requires_grad_()
    out = gelu(x, bits=4, levels="derivative")
    assert out.is_contiguous(memory_format=torch.channels_last)
    given = torch.randn(2, 8, 6, 5)
    (found,) = torch.autograd.grad(out, x, given)
    plain = x.detach().contiguous().requires_grad_()
    (expected,) = torch.autograd.grad(gelu(plain, bits=4, levels="derivative"), plain, given)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, expected)
