"""Softmax and attention that keep a few-bit map."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import s2a
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from s2a.activations.attention import (
    QuantizedAttentionMode,
    attention,
    dequantize_rows,
    quantize_rows,
    quantized_softmax,
)
from s2a.ops.pack import BITS, packed_bytes
from torch import Tensor, nn


def three(qkv: list[Tensor], bits: int = 4) -> Tensor:
    """Attention of a list of q, k and v."""
    q, k, v = qkv
    return attention(q, k, v, bits=bits)


def kept_map(y: Tensor, bits: int) -> Tensor:
    """What the library keeps of ``y``."""
    return dequantize_rows(*quantize_rows(y, bits), y.shape, bits, torch.float64)


shapes = st.lists(st.integers(0, 6), min_size=1, max_size=4)
rows = st.builds(
    lambda shape, scale, seed: (scale * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).double(),
    shapes,
    st.sampled_from([0.0, 0.3, 1.0, 5.0]),
    st.integers(0, 2**20),
)


@given(x=rows, bits=st.sampled_from(BITS))
def test_rows_are_rounded_to_their_own_levels(x: Tensor, bits: int) -> None:
    y = x.softmax(-1)
    if 0 in y.shape:
        assert kept_map(y, bits).shape == y.shape
    else:
        torch.testing.assert_close(kept_map(y, bits), oracles.quantised_rows(y, bits), rtol=0, atol=1e-12)


@given(x=rows, bits=st.sampled_from(BITS))
def test_softmax_backward_is_that_of_the_kept_map(x: Tensor, bits: int) -> None:
    x.requires_grad_()
    y = quantized_softmax(x, bits)
    assert torch.equal(y, x.softmax(-1))
    given_grad = torch.randn(y.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    (found,) = torch.autograd.grad(y, x, given_grad)
    kept = kept_map(y.detach(), bits)
    jacobian = oracles.softmax_jacobian(kept)
    torch.testing.assert_close(found, torch.einsum("...i,...ij->...j", given_grad, jacobian), rtol=0, atol=1e-12)


def exact_rows(width: int = 4) -> tuple[Tensor, Tensor]:
    """Scores and an additive mask whose softmax rows hold 0 and 1 / 2^k alone: one bit keeps them exactly."""
    scores = torch.randn(3, 1, dtype=torch.float64).expand(3, width).contiguous()
    mask = torch.zeros(3, width, dtype=torch.float64)
    mask[1, width // 2 :] = -torch.inf
    mask[2, 1:] = -torch.inf
    return scores, mask


@pytest.mark.parametrize("bits", BITS)
def test_softmax_passes_gradcheck_where_its_rows_are_exact(bits: int) -> None:
    scores, mask = exact_rows()
    if bits > 1:  # Fifteenths are no float16 numbers; equal rows are kept exactly by any width.
        mask = torch.zeros_like(mask)
    assert torch.autograd.gradcheck(lambda x: quantized_softmax(x + mask, bits), scores.requires_grad_())


def test_attention_passes_gradcheck_where_its_map_is_exact() -> None:
    _, mask = exact_rows()
    q, k, v = (torch.randn(2, n, 5, dtype=torch.float64) for n in (3, 4, 4))
    same_keys = k[:, :1].expand_as(k).contiguous()

    def call(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
        return attention(q, k, v, bias, bits=1)

    for keys, queries in ((same_keys, q), (k, torch.zeros_like(q))):
        leaves = [t.clone().requires_grad_() for t in (queries, keys, v)]
        assert torch.autograd.gradcheck(call, (*leaves, mask))
        whole = torch.zeros(1, 4, dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(call, (*leaves, whole))


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("shape", [(2, 3, 5, 5, 4, 4), (1, 2, 1, 7, 3, 6), (4, 5, 2, 3)])
@pytest.mark.parametrize("mask", [None, "full", "broadcast"])
def test_attention_backward_is_that_of_the_kept_map(bits: int, shape: tuple[int, ...], mask: str | None) -> None:
    *batch, n, s, d, e = shape
    leaves = [torch.randn(*batch, a, b, dtype=torch.float64, requires_grad=True) for a, b in ((n, d), (s, d), (s, e))]
    bias = None
    if mask:
        bias = torch.randn(*(batch if mask == "full" else ()), n, s, dtype=torch.float64, requires_grad=True)
        leaves.append(bias)
    q, k, v = leaves[:3]
    scale = 0.7
    out = attention(q, k, v, bias, scale=scale, bits=bits)
    scores = (q * scale) @ k.transpose(-2, -1) + (0 if bias is None else bias)
    torch.testing.assert_close(out, scores.softmax(-1) @ v, rtol=0, atol=1e-12)
    given_grad = torch.randn_like(out)
    found = torch.autograd.grad(out, leaves, given_grad)
    kept = oracles.quantised_rows(scores.softmax(-1), bits)
    expected = torch.autograd.grad(oracles.attention_with_map(q, k, v, bias, scale, kept), leaves, given_grad)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def _arguments() -> list[dict[str, Any]]:
    boolean = torch.ones(5, 5, dtype=torch.bool).tril()
    return [
        {},
        {"scale": 0.3},
        {"is_causal": True},
        {"attn_mask": boolean},
        {"attn_mask": torch.linspace(-2, 2, 25, dtype=torch.float64).view(5, 5)},
        {"enable_gqa": True},
    ]


@pytest.mark.parametrize("arguments", _arguments(), ids=lambda a: next(iter(a), "plain"))
@pytest.mark.parametrize("needs_grad", [True, False])
def test_attention_is_pytorchs(arguments: dict[str, Any], needs_grad: bool) -> None:
    heads = 2 if "enable_gqa" in arguments else 4
    q = torch.randn(2, 4, 5, 8, dtype=torch.float64, requires_grad=needs_grad)
    k, v = (torch.randn(2, heads, 5, 8, dtype=torch.float64) for _ in range(2))
    expected = F.scaled_dot_product_attention(q, k, v, **arguments)
    with QuantizedAttentionMode(8):
        found = F.scaled_dot_product_attention(q, k, v, **arguments)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-10)
    if needs_grad:  # Eight bits are near the exact gradient.
        one, other = (torch.autograd.grad(o.square().sum(), q)[0] for o in (found, expected))
        assert float((one - other).norm() / other.norm()) < 0.02


def test_dropout_acts_on_the_map() -> None:
    q, k, v = (torch.randn(2, 3, 6, 4, requires_grad=True) for _ in range(3))
    torch.manual_seed(3)
    found = attention(q, k, v, dropout_p=0.5, scale=0.5)
    torch.manual_seed(3)
    expected = F.dropout(((q * 0.5) @ k.transpose(-2, -1)).softmax(-1), 0.5) @ v
    assert torch.equal(found, expected)
    assert all(bool(g.isfinite().all()) for g in torch.autograd.grad(found.sum(), (q, k, v)))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_gradients_are_near(dtype: torch.dtype) -> None:
    leaves = [torch.randn(2, 3, 9, 8).to(dtype).requires_grad_() for _ in range(3)]
    wide = [t.detach().double().requires_grad_() for t in leaves]
    found = torch.autograd.grad(three(leaves, 8).square().sum(), leaves)
    expected = torch.autograd.grad(three(wide, 8).square().sum(), wide)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == dtype
        assert float((one.double() - other).norm() / other.norm()) < 0.05


@pytest.mark.parametrize("shape", [(0, 3, 5, 4), (2, 3, 0, 4), (2, 0, 5, 4)])
def test_empty_inputs(shape: tuple[int, ...]) -> None:
    leaves = [torch.randn(shape, requires_grad=True) for _ in range(3)]
    out = three(leaves)
    assert out.shape == shape
    assert all(g.shape == shape for g in torch.autograd.grad(out.sum(), leaves))


def test_a_scalar_has_a_softmax() -> None:
    x = torch.tensor(2.0, requires_grad=True)
    y = quantized_softmax(x)
    y.backward()
    assert y.item() == 1.0
    assert x.grad is not None
    assert x.grad.item() == 0.0


def test_non_contiguous_inputs_give_the_same() -> None:
    base = [torch.randn(2, 3, 6, 4) for _ in range(3)]
    plain = [t.clone().requires_grad_() for t in base]
    strided = [t.transpose(1, 2).contiguous().requires_grad_() for t in base]
    out = three(plain)
    other = three([t.transpose(1, 2) for t in strided])
    torch.testing.assert_close(out, other)
    for one, two in zip(
        torch.autograd.grad(out.square().sum(), plain), torch.autograd.grad(other.square().sum(), strided), strict=True
    ):
        torch.testing.assert_close(one, two.transpose(1, 2), rtol=1e-4, atol=1e-5)


def test_nan_stays_in_its_row() -> None:
    x = torch.randn(3, 5)
    x[1, 2] = torch.nan
    x.requires_grad_()
    y = quantized_softmax(x)
    (grad,) = torch.autograd.grad(y, x, torch.randn(3, 5))
    assert bool(grad[1].isnan().all())
    assert bool(grad[[0, 2]].isfinite().all())


def test_infinite_scores_take_the_whole_row() -> None:
    x = torch.tensor([[0.0, -torch.inf, 1.0], [-torch.inf, -torch.inf, 0.0]], requires_grad=True)
    (grad,) = torch.autograd.grad(quantized_softmax(x), x, torch.randn(2, 3))
    assert bool(grad.isfinite().all())
    assert bool((grad[:, 1] == 0).all())


def test_peaked_and_diffuse_rows_do_not_share_a_scale() -> None:
    x = torch.randn(2, 197, dtype=torch.float64)
    x[0, 0] = 30.0
    y = x.softmax(-1)
    assert torch.equal(kept_map(y, 4)[1], kept_map(y[1:], 4)[0])


class Apply(nn.Module):
    """Attention of a projection that nothing is kept of but by attention itself."""

    def __init__(self, bits: int, heads: int, bias: Tensor | None = None) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.bits, self.heads, self.bias = bits, heads, bias

    def forward(self, x: Tensor) -> Tensor:
        batch, n, width = x.shape
        qkv = (x + self.shift).reshape(batch, n, 3, self.heads, width // 3 // self.heads).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind(0)
        return attention(q, k, v, self.bias, bits=self.bits)


@pytest.mark.parametrize(("bits", "tokens"), list(itertools.product(BITS, [5, 16])))
def test_attention_keeps_one_projection_and_codes(bits: int, tokens: int) -> None:
    batch, heads, width = 2, 3, 12
    x = torch.randn(batch, tokens, 3 * width)
    map_rows = batch * heads * tokens
    for bias in (None, torch.randn(tokens, tokens)):
        kept = s2a.saved_bytes(Apply(bits, heads, bias), x, torch.sum)
        assert kept.total == 4 * x.numel() + packed_bytes(map_rows * tokens, bits) + map_rows * (2 + 2)  # paper levels


def test_softmax_keeps_codes_and_two_halves_a_row() -> None:
    class Softmax(Apply):
        def forward(self, x: Tensor) -> Tensor:
            return quantized_softmax(x + self.shift, self.bits)

    x = torch.randn(6, 10)
    assert s2a.saved_bytes(Softmax(4, 1), x, torch.sum).total == 6 * 10 // 2 + 6 * 4


def test_other_functions_pass_the_mode() -> None:
    x = torch.randn(4, 3)
    with QuantizedAttentionMode(4):
        assert torch.equal(F.softmax(x, -1), x.softmax(-1))
        assert torch.equal(F.linear(x, torch.eye(3)), x)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_derivative_levels_row_by_row(bits: int, dtype: torch.dtype) -> None:
    """Written out for one row at a time: the largest value, and squares of a grid that share what is left."""
    y = (torch.randn(7, 33, dtype=torch.float64) * 2).softmax(-1)
    y[2] = 0.0
    y[2, 5] = 1.0  # Nothing is left.
    y[3] = 1 / 33  # All are the largest.
    found = dequantize_rows(*quantize_rows(y, bits, "derivative"), y.shape, bits, dtype, "derivative")
    for row, values in zip(y.tolist(), found.double().tolist(), strict=True):
        peak = max(row)
        others = [v for v in row if v != peak]
        steps = 2**bits - 2
        grid = [round((v / max(others)) ** 0.5 * steps) if max(others) else 0 for v in others]
        squares = [k * k for k in grid] if steps else [1] * len(others)
        share = sum(others) / max(sum(squares), 1)
        expected = iter([k * share for k in squares])
        wanted = torch.tensor([peak if v == peak else next(expected) for v in row], dtype=torch.float64)
        tolerance = max(2e-3, 2 * torch.finfo(dtype).eps)
        torch.testing.assert_close(torch.tensor(values, dtype=torch.float64), wanted, rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_derivative_levels_keep_the_sum_of_a_peaked_row(bits: int) -> None:
    """1 - y is what a peaked row's gradient hangs on; float16 near 1 would round it away."""
    scores = torch.zeros(1, 50, dtype=torch.float64)
    scores[0, 7] = 14.0
    y = scores.softmax(-1)
    found = dequantize_rows(*quantize_rows(y, bits, "derivative"), y.shape, bits, torch.float64, "derivative")
    left = 1 - y[0, 7]
    assert left < 1e-4
    torch.testing.assert_close(found[0].sum() - found[0, 7], left, rtol=5e-3, atol=0)
    torch.testing.assert_close(1 - found[0, 7], left, rtol=5e-3, atol=0)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("gap", [6.0, 10.0, 14.0])
def test_gradients_of_peaked_rows_are_close(gap: float, bits: int) -> None:
    """Heads that look at one token: values with a common offset make 1 - y all that is left of the gradient."""
    q, k = torch.randn(2, 40, 8, dtype=torch.float64), torch.randn(2, 40, 8, dtype=torch.float64)
    v = torch.randn(2, 40, 8, dtype=torch.float64) + 5
    bias = torch.zeros(40, 40, dtype=torch.float64)
    bias[:, 3] = gap
    given = torch.randn(2, 40, 8, dtype=torch.float64)

    def gradient(quantised: bool) -> Tensor:
        leaf = q.clone().requires_grad_()
        if quantised:
            out = attention(leaf, k, v, bias, bits=bits, levels="derivative")
        else:
            out = F.scaled_dot_product_attention(leaf, k, v, bias)
        out.backward(given)
        assert leaf.grad is not None
        return leaf.grad

    exact = gradient(False)
    assert (gradient(True) - exact).norm() < (0.1 if bits == 4 else 0.01) * exact.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_with_inputs_in_fp32(dtype: torch.dtype) -> None:
    """Some models leave q, k, v in fp32 under autocast; PyTorch's function casts them."""
    q, k, v = (torch.randn(2, 5, 4, requires_grad=True) for _ in range(3))
    with torch.autocast("cpu", dtype):
        out = attention(q, k, v, levels="derivative")
        expected = F.scaled_dot_product_attention(q, k, v)
    assert out.dtype == expected.dtype == dtype
    torch.testing.assert_close(out, expected, rtol=2e-2, atol=2e-2)
    out.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in (q, k, v))


def test_rows_that_are_not_a_number_stay_so() -> None:
    y = torch.randn(3, 9).softmax(-1)
    y[1] = float("nan")
    found = dequantize_rows(*quantize_rows(y, 4, "derivative"), y.shape, 4, torch.float32, "derivative")
    assert found.isnan().any(1).tolist() == [False, True, False]


@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0])
def test_derivative_levels_give_closer_softmax_gradients_than_uniform_ones(spread: float) -> None:
    x, g = torch.randn(64, 197) * spread, torch.randn(64, 197)

    def gradient(step: Callable[[Tensor], Tensor]) -> Tensor:
        leaf = x.clone().requires_grad_()
        step(leaf).backward(g)
        assert leaf.grad is not None
        return leaf.grad.flatten()

    exact = gradient(lambda t: t.softmax(-1))
    found = {k: gradient(lambda t, k=k: quantized_softmax(t, 4, levels=k)) for k in ("paper", "derivative")}
    errors = {k: 1 - F.cosine_similarity(exact, v, 0).item() for k, v in found.items()}
    # Almost flat rows are easy for both: the grid from zero to the largest of the others is hardly used there.
    assert errors["derivative"] < (min(errors["paper"], 0.005) if spread > 0.5 else 0.0025)
