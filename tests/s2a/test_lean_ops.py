"""The lean operators: codes of rows, layer normalisation and activations, in plain torch on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from s2a import S2AError
from s2a.ops import custom_ops as ops
from s2a.ops import reference
from s2a.ops.pointwise import activation_code
from s2a.ops.rows import WIDTHS, dequantize_rows, group_size, kept_bytes, pack_rows, row_bytes, unpack_rows
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

CODES = tuple(bits for bits in WIDTHS if bits <= 12)
HALVES = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, *HALVES)
STOCK = {
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "silu": F.silu,
    "hardswish": F.hardswish,
    "relu": F.relu,
    "relu6": F.relu6,
}
ODD = torch.tensor([[0.0, -0.0, float("inf"), float("-inf"), float("nan"), 1e-40, 6.0, 3e38]])
"""Values that code for ordinary numbers may trip over."""


def random_codes(rows: int, columns: int, bits: int, seed: int) -> Tensor:
    dtype = torch.int16 if bits > 8 else torch.uint8
    return torch.randint(0, 2**bits, (rows, columns), generator=torch.Generator().manual_seed(seed)).to(dtype)


def bytes_of(*tensors: Tensor) -> int:
    return sum(tensor.untyped_storage().nbytes() for tensor in tensors)


@given(st.sampled_from((1, *CODES)), st.integers(0, 3), st.integers(1, 70), st.integers(0, 2**20))
def test_codes_survive_packing(bits: int, rows: int, columns: int, seed: int) -> None:
    codes = random_codes(rows, columns, bits, seed)
    data = pack_rows(codes, bits)
    assert data.dtype == torch.uint8
    assert data.shape == (rows, row_bytes(columns, bits))
    assert torch.equal(unpack_rows(data, columns, bits, codes.dtype), codes)


@pytest.mark.parametrize(("bits", "split"), [(1, [1]), (2, [2]), (4, [4]), (3, [2, 1]), (10, [2, 8]), (12, [4, 8])])
def test_bytes_lie_as_documented(bits: int, split: list[int]) -> None:
    codes = random_codes(2, 37, bits, 0)
    expected: list[list[int]] = []
    for row in codes.tolist():
        line, shift = [], 0
        for own in split:
            width = -(-37 // (8 // own))
            plane = [0] * width
            for column, code in enumerate(row):
                plane[column % width] |= ((code >> shift) & (2**own - 1)) << (own * (column // width))
            line, shift = line + plane, shift + own
        expected.append(line)
    assert pack_rows(codes, bits).tolist() == expected


@given(
    bits=st.sampled_from(CODES),
    rows=st.integers(1, 4),
    columns=st.integers(1, 200),
    seed=st.integers(0, 2**20),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    offset=st.sampled_from([0.0, 5.0, -100.0]),
)
def test_no_value_is_further_than_half_a_step_and_the_numbers_rounding(
    bits: int, rows: int, columns: int, seed: int, scale: float, offset: float
) -> None:
    x = torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed)) * scale + offset
    codes, numbers = ops.rows_pack(x, bits)
    groups = x.double().view(rows, -1, group_size(columns, bits))
    kept_low, kept_step = numbers.double().split(1, 2)
    low = groups.amin(2, keepdim=True)
    step = (groups.amax(2, keepdim=True) - low) / (2**bits - 1)
    rounding = (kept_low - low).abs() + (2**bits - 1) * (kept_step - step).abs()
    found = ops.rows_unpack(codes, numbers, columns, bits, torch.float32).double().view_as(groups)
    slack = 4 * torch.finfo(torch.float32).eps * (groups.abs().amax() + 2**bits * step.amax())
    assert ((found - groups).abs() <= kept_step / 2 + rounding + slack).all()
    # And the numbers are no further from what they stand for than their own format makes them.
    eps = torch.finfo(numbers.dtype).eps
    assert ((kept_low - low).abs() <= eps * low.abs() + 1e-7).all()
    # The step's low end is the kept one: what it moved by is part of the step.
    assert ((kept_step - step).abs() <= eps * step + 2 * (kept_low - low).abs() / (2**bits - 1) + 1e-7).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("bits", [16, 32])
def test_halves_and_whole_elements_are_kept_as_they_are(bits: int, dtype: torch.dtype) -> None:
    x = torch.randn(5, 24).to(dtype)
    codes, numbers = ops.rows_pack(x, bits)
    assert not numbers.numel()
    assert codes.data_ptr() != x.data_ptr()
    expected = x.half().to(dtype) if bits == 16 else x
    assert torch.equal(ops.rows_unpack(codes, numbers, 24, bits, dtype), expected)


@given(st.sampled_from(WIDTHS), st.integers(1, 4), st.integers(1, 300), st.sampled_from(DTYPES))
def test_kept_bytes_are_those_of_the_storages(bits: int, rows: int, columns: int, dtype: torch.dtype) -> None:
    x = torch.randn(rows, columns).to(dtype)
    assert bytes_of(*ops.rows_pack(x, bits)) == kept_bytes(rows, columns, bits, x.element_size())
    _, codes, numbers, rstd = ops.norm_pack(x, None, None, 1e-6, bits)
    assert bytes_of(codes, numbers) == kept_bytes(rows, columns, bits, x.element_size())
    assert bytes_of(rstd) == rows * max(4, x.element_size())


@given(st.integers(1, 1000), st.sampled_from(CODES))
def test_groups_divide_a_row_and_are_as_large_as_they_may(columns: int, bits: int) -> None:
    size = group_size(columns, bits)
    fitting = [g for g in range(32, 129) if columns % g == 0]
    assert size == (columns if bits >= 8 or not fitting else max(fitting))


@pytest.mark.parametrize("bits", CODES)
def test_rows_do_not_know_each_other_and_nan_breaks_only_its_own_group(bits: int) -> None:
    x = torch.randn(3, 256)
    x[1, 7], x[2, 0] = float("nan"), float("inf")
    codes, numbers = ops.rows_pack(x, bits)
    alone = ops.rows_pack(x[:1], bits)
    assert torch.equal(codes[:1], alone[0]) and torch.equal(numbers[:1], alone[1])
    found = ops.rows_unpack(codes, numbers, 256, bits, torch.float32)
    size = group_size(256, bits)
    assert found[1, :size].isnan().all()
    assert found[1, size:].isfinite().all()
    assert not found[2, :size].isfinite().any()


@pytest.mark.parametrize("bits", WIDTHS)
def test_a_row_of_equal_values_comes_back_exactly(bits: int) -> None:
    x = torch.tensor([[0.25], [-0.0], [-3.0]]).expand(3, 96)
    assert torch.equal(ops.rows_unpack(*ops.rows_pack(x, bits), 96, bits, torch.float32), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("affine", ["none", "weight", "both", "float32"])
def test_layer_norm_is_the_stock_one_bit_for_bit(dtype: torch.dtype, affine: str) -> None:
    x = (torch.randn(7, 96) * 3 + 1).to(dtype)
    kind = torch.float32 if affine == "float32" and dtype in HALVES else dtype
    weight = None if affine == "none" else torch.randn(96).to(kind)
    bias = None if affine in ("none", "weight") else torch.randn(96).to(kind)
    out, codes, numbers, rstd = ops.norm_pack(x, weight, bias, 1e-6, 8)
    assert torch.equal(out, F.layer_norm(x, (96,), weight, bias, 1e-6))
    precise = x.double()
    expected = (precise.var(1, correction=0, keepdim=True) + 1e-6).rsqrt()
    # Statistics are never rounded to halves, whatever the stock layer does with its own.
    torch.testing.assert_close(rstd.double(), expected, rtol=1e-5, atol=0)
    normed = (precise - precise.mean(1, keepdim=True)) * expected
    found = ops.rows_unpack(codes, numbers, 96, 8, torch.float32).double()
    assert ((found - normed).abs() <= numbers[:, :, 1] / 2 + 1e-5).all()


@pytest.mark.parametrize("bits", WIDTHS)
@pytest.mark.parametrize("affine", ["none", "weight", "both"])
def test_a_norms_output_is_rebuilt_from_its_codes(bits: int, affine: str) -> None:
    weight = None if affine == "none" else torch.randn(96)
    bias = None if affine != "both" else torch.randn(96)
    _, codes, numbers, _ = ops.norm_pack(torch.randn(6, 96), weight, bias, 1e-6, bits)
    expected = dequantize_rows(codes, numbers, 96, bits, torch.float64)
    expected = expected if weight is None else expected * weight
    expected = expected if bias is None else expected + bias
    for dtype in DTYPES:
        found = ops.norm_rebuild(codes, numbers, weight, bias, 96, bits, dtype)
        assert found.dtype == dtype
        tolerance = {torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 1e-5)
        torch.testing.assert_close(found.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("with_weight", [True, False])
def test_a_norms_backward_pass_at_full_precision_is_autograds(
    dtype: torch.dtype, tolerance: float, with_weight: bool
) -> None:
    x, grad = torch.randn(9, 96, dtype=dtype, requires_grad=True), torch.randn(9, 96, dtype=dtype)
    weight = torch.randn(96, dtype=dtype, requires_grad=True) if with_weight else None
    bias = torch.randn(96, dtype=dtype, requires_grad=True) if with_weight else None
    _, codes, numbers, rstd = ops.norm_pack(x.detach(), None if weight is None else weight.detach(), None, 1e-6, 32)
    out = torch.empty_like(grad)
    sums = ops.norm_backward(grad, codes, numbers, rstd, None if weight is None else weight.detach(), 32, True, out)
    F.layer_norm(x, (96,), weight, bias, 1e-6).backward(grad)
    torch.testing.assert_close(out, x.grad, rtol=tolerance, atol=tolerance)
    if weight is not None and bias is not None:
        torch.testing.assert_close(sums[0], weight.grad, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(sums[1], bias.grad, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", CODES)
@pytest.mark.parametrize("dtype", [torch.float32, *HALVES])
def test_a_norms_backward_pass_is_its_formula_on_the_decoded_input(bits: int, dtype: torch.dtype) -> None:
    x, grad, weight = torch.randn(9, 96).to(dtype), torch.randn(9, 96).to(dtype), torch.randn(96)
    _, codes, numbers, rstd = ops.norm_pack(x, weight.to(dtype), None, 1e-6, bits)
    out = torch.empty(9, 96)
    found = ops.norm_backward(grad, codes, numbers, rstd, weight, bits, True, out)
    normed, g = dequantize_rows(codes, numbers, 96, bits, torch.float64), grad.double()
    gw = g * weight
    expected = rstd * (gw - gw.mean(1, keepdim=True) - normed * (gw * normed).mean(1, keepdim=True))
    torch.testing.assert_close(out.double(), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found[0].double(), (g * normed).sum(0), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(found[1].double(), g.sum(0), rtol=1e-4, atol=1e-4)
    skipped = ops.norm_backward(grad, codes, numbers, rstd, weight, bits, False, out)
    assert not skipped[0].numel()
    assert torch.equal(skipped[1], found[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("activation", STOCK)
def test_an_activation_is_the_stock_one_bit_for_bit(activation: str, dtype: torch.dtype) -> None:
    x = torch.cat([torch.randn(5, 96) * 3, ODD.repeat(1, 12)]).to(dtype)
    u = x.clone()
    codes = ops.act_pack(u, activation, 4, "derivative")
    torch.testing.assert_close(u, STOCK[activation](x), rtol=0, atol=0, equal_nan=True)
    code = activation_code("gelu" if activation == "gelu_tanh" else activation, 4, "derivative")
    # NaN may have any code; the others have the code of their own value.
    same = unpack_rows(codes, 96, code.bits) == code.encode(x)
    assert (same | x.isnan()).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("levels", ["paper", "derivative"])
@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_its_backward_pass_multiplies_by_the_derivative_of_every_code(
    bits: int, levels: str, dtype: torch.dtype
) -> None:
    for columns in (96, 37):
        x, grad = torch.randn(6, columns).to(dtype) * 2, torch.randn(6, columns).to(dtype)
        codes = ops.act_pack(x.clone(), "gelu", bits, levels)
        code = activation_code("gelu", bits, levels)
        moved = grad.clone()
        sums = ops.act_backward(moved, codes, "gelu", bits, levels)
        assert torch.equal(moved, grad * code.decode(code.encode(x), dtype))
        assert sums.dtype == torch.promote_types(dtype, torch.float32)
        torch.testing.assert_close(sums.double(), moved.double().sum(0), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("bits", [3, 8])
def test_work_in_pieces_gives_what_work_at_once_gives(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x, grad, weight, u = torch.randn(11, 64), torch.randn(11, 64), torch.randn(64), torch.randn(11, 64)

    def everything() -> list[Tensor]:
        out, own = torch.empty_like(x), u.clone()
        packed = ops.norm_pack(x, weight, weight, 1e-6, bits)
        sums = ops.norm_backward(grad, *packed[1:], weight, bits, True, out)
        codes, moved = ops.act_pack(own, "gelu", bits, "paper"), grad.clone()
        act = ops.act_backward(moved, codes, "gelu", bits, "paper")
        return [*packed, *ops.rows_pack(x, bits), *sums, out, own, codes, moved, act]

    at_once = everything()
    monkeypatch.setattr(reference, "CPU_PIECE", 3 * 64)
    for found, expected in zip(everything(), at_once, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [0, 1])
def test_no_rows_and_one_row(rows: int) -> None:
    x, u = torch.randn(rows, 40), torch.randn(rows, 40)
    out, *kept = ops.norm_pack(x, None, None, 1e-6, 4)
    assert out.shape == x.shape
    moved = torch.empty_like(x)
    sums = ops.norm_backward(x, *kept, None, 4, True, moved)
    codes = ops.act_pack(u, "gelu", 3, "paper")
    assert [s.shape for s in sums] == [(40,), (40,)]
    assert ops.act_backward(moved, codes, "gelu", 3, "paper").shape == (40,)
    assert ops.rows_unpack(*ops.rows_pack(x, 2), 40, 2, torch.float32).shape == x.shape


def test_matrices_that_lie_otherwise_are_taken_too() -> None:
    wide = torch.randn(64, 12)
    x, grad = wide.t(), torch.randn(12, 128)[:, ::2]
    assert all(torch.equal(a, b) for a, b in zip(ops.rows_pack(x, 4), ops.rows_pack(x.contiguous(), 4), strict=True))
    packed = ops.norm_pack(x, None, None, 1e-6, 4)
    for found, expected in zip(packed, ops.norm_pack(x.contiguous(), None, None, 1e-6, 4), strict=True):
        torch.testing.assert_close(found, expected)
    out, straight = torch.empty(64, 12).t(), torch.empty(12, 64)
    ops.norm_backward(grad, *packed[1:], None, 4, False, out)
    ops.norm_backward(grad.contiguous(), *packed[1:], None, 4, False, straight)
    assert torch.equal(out, straight)
    codes = ops.act_pack(x.clone(), "gelu", 4, "paper")
    moved, plain = grad.clone(memory_format=torch.preserve_format), grad.contiguous()
    assert torch.equal(
        ops.act_backward(moved, codes, "gelu", 4, "paper"), ops.act_backward(plain, codes, "gelu", 4, "paper")
    )
    assert torch.equal(moved, plain)


def _samples() -> list[tuple[str, tuple[Any, ...]]]:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(5, 64, generator=generator), torch.randn(64, generator=generator)
    samples: list[tuple[str, tuple[Any, ...]]] = []
    for bits in (3, 8, 10, 16, 32):
        _, *kept = ops.norm_pack(x, weight, weight, 1e-6, bits)
        samples += [
            ("rows_pack", (x, bits)),
            ("rows_unpack", (*kept[:2], 64, bits, torch.bfloat16)),
            ("norm_pack", (x.to(torch.bfloat16), weight, None, 1e-6, bits)),
            ("norm_rebuild", (*kept[:2], weight, None, 64, bits, torch.float32)),
            ("norm_backward", (x, *kept, weight, bits, bits > 8, torch.empty(5, 64))),
        ]
    for activation, bits, levels in (("gelu", 4, "paper"), ("silu", 3, "derivative"), ("relu", 4, "paper")):
        codes = ops.act_pack(x.clone(), activation, bits, levels)
        samples += [
            ("act_pack", (x.clone(), activation, bits, levels)),
            ("act_backward", (x.clone(), codes, activation, bits, levels)),
        ]
    return samples


@pytest.mark.parametrize(("name", "arguments"), _samples(), ids=lambda value: value if isinstance(value, str) else "")
def test_pytorch_finds_schema_and_shapes_true(name: str, arguments: tuple[Any, ...]) -> None:
    torch.library.opcheck(ops.OPERATORS[name], arguments)


def test_every_operator_is_among_the_samples() -> None:
    assert {name for name, _ in _samples()} == set(ops.OPERATORS)


_X, _CODES, _NUMBERS = torch.randn(4, 64), torch.zeros(4, 32, dtype=torch.uint8), torch.zeros(4, 1, 2).half()
_RSTD, _OUT = torch.ones(4, 1), torch.empty(4, 64)
BAD: list[tuple[str, tuple[Any, ...], str]] = [
    ("rows_pack", (_X, 5), r"bits=5 .*2, 3, 4, 8, 10, 12, 16, 32"),
    ("rows_pack", (torch.randn(2, 3, 4), 8), r"\(2, 3, 4\).*reshape"),
    ("rows_pack", (torch.zeros(2, 8, dtype=torch.int32), 8), r"int32.*real numbers"),
    ("rows_pack", (torch.randn(4, 0), 8), r"\(4, 0\)"),
    ("rows_unpack", (_CODES, _NUMBERS, 65, 4, torch.float32), "not those of 65 columns in 4 bits"),
    ("rows_unpack", (_CODES, _NUMBERS.repeat(1, 2, 1), 64, 4, torch.float32), r"numbers \(4, 2, 2\)"),
    ("rows_unpack", (_CODES, _NUMBERS, 64, 4, torch.int32), "int32.*floating"),
    ("norm_pack", (_X, torch.ones(63), None, 1e-6, 8), r"\(63,\) does not go with 64 channels"),
    ("norm_pack", (_X, None, torch.ones(64, 1), 1e-6, 8), r"\(64, 1\) does not go"),
    ("norm_pack", (_X, None, None, 1e-6, 7), "bits=7"),
    ("norm_rebuild", (_CODES, _NUMBERS, torch.ones(3), None, 64, 4, torch.float32), r"\(3,\)"),
    ("norm_backward", (_X[:3], _CODES, _NUMBERS, _RSTD, None, 4, False, _OUT[:3]), "codes of 4 rows"),
    ("norm_backward", (_X, _CODES, _NUMBERS, _RSTD[:, 0], None, 4, False, _OUT), r"rstd \(4,\)"),
    ("norm_backward", (_X, _CODES, _NUMBERS, _RSTD, None, 4, False, _OUT[:, :3]), r"out \(4, 3\)"),
    ("norm_backward", (_X, _CODES, _NUMBERS, _RSTD, None, 8, False, _OUT), "in 8 bits"),
    ("act_pack", (_X.clone(), "mish", 4, "paper"), "'mish'.*'gelu_tanh'"),
    ("act_pack", (_X.clone(), "gelu", 5, "paper"), "bits=5"),
    ("act_pack", (_X.clone(), "gelu", 4, "best"), "levels='best'"),
    ("act_pack", (_X[0].clone(), "gelu", 4, "paper"), r"\(64,\)"),
    ("act_backward", (_X.clone(), _CODES[:3], "gelu", 4, "paper"), r"\(3, 32\).*\(4, 32\)"),
    ("act_backward", (_X.clone(), _CODES, "gelu", 8, "paper"), r"\(4, 64\)"),
]


@pytest.mark.parametrize(("name", "arguments", "message"), BAD)
def test_what_does_not_go_together_is_refused(name: str, arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(S2AError, match=message):
        ops.OPERATORS[name](*arguments)
    # Simulations and compilers hear the same.
    with FakeTensorMode() as mode:
        fake = [mode.from_tensor(a) if isinstance(a, Tensor) else a for a in arguments]
        with pytest.raises(S2AError, match=message):
            ops.OPERATORS[name](*fake)
