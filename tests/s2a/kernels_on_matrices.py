"""Triton's kernels beside the reference, whose CPU implementation is the oracle.

Not collected by itself: ``test_lean_kernels`` runs this file in a process of its own, under Triton's interpreter
(``TRITON_INTERPRET=1``, which has to be set before Triton is imported) and, where there is one, on a CUDA device.

The interpreter cuts bfloat16 off where a device rounds: such results may be one unit in the last place away. Its NumPy
warns of the infinities that the tests put in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from s2a.ops import reference
from s2a.ops import triton_launch as launch
from s2a.ops.rows import dequantize_rows, group_size
from torch import Tensor

KERNELS: Any = launch  # Type checkers do not count starred arguments.
DEVICE = "cpu" if os.environ.get("TRITON_INTERPRET") == "1" else "cuda"
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Columns: whole tiles, tails, several groups that do not fill a plane, a prime, one.
SHAPES = [(2, 768, 4), (3, 100, 8), (2, 256, 3), (3, 37, 3), (2, 50, 10), (9, 33, 12), (2, 1, 4), (1, 192, 2)]

pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(autouse=True)
def _only_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever falls back to the reference would be compared with itself: the tests that mean to undo this."""

    def refuse(*_: object) -> None:
        raise AssertionError("fell back to the reference")

    for name in ("rows_pack", "norm_pack", "norm_rebuild", "norm_backward", "act_pack", "act_backward"):
        monkeypatch.setattr(reference, name, refuse)


REFERENCE = {
    name: getattr(reference, name)
    for name in ("rows_pack", "norm_pack", "norm_rebuild", "norm_backward", "act_pack", "act_backward")
}


def there(*tensors: Tensor | None) -> Any:
    """Copies on the device under test."""
    return [None if tensor is None else tensor.clone().to(DEVICE) for tensor in tensors]


def assert_near(found: Tensor, expected: Tensor, scale: float = 1.0) -> None:
    """Equal up to a few roundings of the dtype, on numbers of the size of ``scale``."""
    eps = torch.finfo(found.dtype).eps
    torch.testing.assert_close(found.cpu(), expected, rtol=4 * eps, atol=4 * max(eps, 1e-7) * scale, equal_nan=True)


def odd(rows: int, columns: int) -> Tensor:
    """Normal numbers with everything among them that is not."""
    x = torch.randn(rows, columns) * 2
    special = torch.tensor([float("nan"), float("inf"), float("-inf"), -0.0, 0.0, 1e-41, 6.0, -2.0, 2.0, 1e30])
    place = torch.randperm(x.numel())[: min(10, x.numel() // 3)]
    x.view(-1)[place] = special[: len(place)]
    return x


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "columns", "bits"), SHAPES)
def test_rows_are_packed_to_the_same_bytes(rows: int, columns: int, bits: int, dtype: torch.dtype) -> None:
    for x in (torch.randn(rows, columns), odd(rows, columns), torch.full((1, columns), -1.5)):
        x = x.to(dtype)
        (given,) = there(x)
        codes, numbers = launch.rows_pack(given, bits)
        expected = REFERENCE["rows_pack"](x, bits)
        torch.testing.assert_close(numbers.cpu(), expected[1], rtol=0, atol=0, equal_nan=True)
        assert torch.equal(codes.cpu(), expected[0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("rows", "columns", "bits"), SHAPES)
def test_rows_are_unpacked_to_the_same_values(rows: int, columns: int, bits: int, dtype: torch.dtype) -> None:
    codes, numbers = REFERENCE["rows_pack"](torch.randn(rows, columns), bits)
    found = KERNELS.rows_unpack(*there(codes, numbers), columns, bits, dtype)
    assert found.dtype == dtype
    assert_near(found, dequantize_rows(codes, numbers, columns, bits, torch.float32).to(dtype))


@pytest.mark.parametrize(
    ("dtype", "affine"), [(torch.float32, "both"), (torch.float16, "weight"), (torch.bfloat16, "none")]
)
@pytest.mark.parametrize(("rows", "columns", "bits"), SHAPES)
def test_norms(rows: int, columns: int, bits: int, dtype: torch.dtype, affine: str) -> None:
    x = (torch.randn(rows, columns) * 3 + 1).to(dtype)
    weight = None if affine == "none" else torch.randn(columns).to(dtype)
    bias = torch.randn(columns) if affine == "both" else None
    out, codes, numbers, rstd = KERNELS.norm_pack(*there(x, weight, bias), 1e-6, bits)
    precise = x.double()
    expected = (precise.var(1, correction=0, keepdim=True) + 1e-6).rsqrt()
    torch.testing.assert_close(rstd.cpu().double(), expected, rtol=1e-5, atol=0)
    normed = (precise - precise.mean(1, keepdim=True)) * expected
    # Sums in another order move the last bits, so codes may differ at the middle of two levels: their values may not.
    found = dequantize_rows(codes.cpu(), numbers.cpu(), columns, bits, torch.float64)
    step = numbers.cpu()[:, :, 1].double().repeat_interleave(group_size(columns, bits), 1)
    rounding = 2.0**bits * 2**-11 * step + 2**-10 if bits < 8 else 1e-5
    assert ((found - normed).abs() <= step / 2 + rounding).all()
    value = normed if weight is None else normed * weight
    assert_near(out, (value if bias is None else value + bias).to(dtype), 4.0)
    # The rest starts from the same codes on both sides.
    kept = (codes.cpu(), numbers.cpu(), rstd.cpu())
    rebuilt = KERNELS.norm_rebuild(*there(*kept[:2], weight, bias), columns, bits, dtype)
    assert_near(rebuilt, REFERENCE["norm_rebuild"](*kept[:2], weight, bias, columns, bits, dtype), 4.0)
    grad, expected_moved = torch.randn(rows, columns).to(dtype), torch.empty(rows, columns)
    for want in (True, False):
        moved = torch.empty(rows, columns, dtype=dtype, device=DEVICE)
        sums = KERNELS.norm_backward(*there(grad, *kept, weight), bits, want, moved)
        sums_expected = REFERENCE["norm_backward"](grad, *kept, weight, bits, want, expected_moved)
        assert_near(moved, expected_moved.to(dtype), 8.0)
        for own, other in zip(sums, sums_expected, strict=True):
            assert own.dtype == torch.float32
            torch.testing.assert_close(own.cpu(), other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("activation", "bits", "levels", "dtype"),
    [
        ("gelu", 4, "paper", torch.float32),
        ("gelu", 4, "derivative", torch.bfloat16),
        ("gelu", 3, "derivative", torch.float32),
        ("gelu", 3, "paper", torch.float16),
        ("gelu", 1, "derivative", torch.bfloat16),
        ("gelu_tanh", 4, "derivative", torch.float32),
        ("quick_gelu", 8, "paper", torch.float32),
        ("silu", 2, "derivative", torch.float16),
        ("silu", 8, "derivative", torch.float32),
        ("hardswish", 4, "paper", torch.float32),
        ("relu", 4, "paper", torch.bfloat16),
        ("relu6", 4, "paper", torch.float32),
        ("relu6", 4, "paper", torch.float16),
    ],
)
def test_activations(activation: str, bits: int, levels: str, dtype: torch.dtype) -> None:
    # Whole tiles; tails (three bits have a kernel where the plane of two is twice as wide as that of one); many rows.
    for rows, columns in ((2, 384), (9, 45), (70, 8)):
        u, grad = odd(rows, columns).to(dtype), torch.randn(rows, columns).to(dtype)
        (found,) = there(u)
        codes = launch.act_pack(found, activation, bits, levels)
        finite, broken = u.isfinite(), u.isnan()
        expected = REFERENCE["act_pack"](u, activation, bits, levels)
        assert torch.equal(codes.cpu(), expected)
        assert_near(found[finite.to(DEVICE)], u[finite], 4.0)
        assert found.cpu()[broken].isnan().all()
        (moved,) = there(grad)
        sums = launch.act_backward(moved, codes, activation, bits, levels)
        REFERENCE["act_backward"](grad, expected, activation, bits, levels)
        if dtype == torch.bfloat16:
            assert_near(moved, grad)
        else:
            assert torch.equal(moved.cpu(), grad)
        torch.testing.assert_close(sums.cpu().double(), moved.cpu().double().sum(0), rtol=1e-4, atol=1e-4)


def test_sums_are_the_same_bits_every_time() -> None:
    x, grad = torch.randn(100, 320), torch.randn(100, 320)
    kept = REFERENCE["norm_pack"](x, None, None, 1e-6, 8)[1:]
    codes = REFERENCE["act_pack"](x, "gelu", 4, "paper")
    runs = []
    for _ in range(2):
        moved = torch.empty(100, 320, device=DEVICE)
        norm = KERNELS.norm_backward(*there(grad, *kept, None), 8, True, moved)
        runs.append([*norm, KERNELS.act_backward(*there(grad, codes), "gelu", 4, "paper")])
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    # More rows than a program takes: the partial sums of several are added.
    torch.testing.assert_close(runs[0][1].cpu(), grad.sum(0), rtol=1e-4, atol=1e-4)


def test_matrices_that_lie_otherwise() -> None:
    x, grad = torch.randn(40, 6).t(), torch.randn(6, 80)[:, :40]
    far, given, out = x.to(DEVICE), grad.to(DEVICE), torch.empty(40, 6, device=DEVICE).t()
    wide = torch.zeros(6, 80, device=DEVICE)
    wide[:, :40] = given
    kept = launch.norm_pack(far, None, None, 1e-6, 4)[1:]
    straight = launch.norm_pack(far.contiguous(), None, None, 1e-6, 4)[1:]
    assert all(torch.equal(a, b) for a, b in zip(kept, straight, strict=True))
    launch.norm_backward(wide[:, :40], *kept, None, 4, False, out)
    other = torch.empty(6, 40, device=DEVICE)
    launch.norm_backward(given.contiguous(), *kept, None, 4, False, other)
    assert torch.equal(out, other)
    codes = launch.act_pack(far.clone(memory_format=torch.preserve_format), "gelu", 4, "paper")
    view, plain = wide[:, :40], given.clone(memory_format=torch.contiguous_format)
    assert not view.is_contiguous()
    assert torch.equal(
        launch.act_backward(view, codes, "gelu", 4, "paper"), launch.act_backward(plain, codes, "gelu", 4, "paper")
    )
    assert torch.equal(view, plain)
    assert not wide[:, 40:].any()  # Nothing beside the matrix was touched.


FALLBACKS: dict[str, Callable[[], tuple[str, object]]] = {
    "doubles": lambda: ("rows_pack", launch.rows_pack(torch.randn(2, 8, dtype=torch.float64), 4)),
    "whole elements": lambda: ("norm_pack", launch.norm_pack(torch.randn(2, 8), None, None, 1e-6, 32)),
    "no rows": lambda: ("act_pack", launch.act_pack(torch.randn(0, 8), "gelu", 4, "paper")),
    "long rows": lambda: ("rows_pack", launch.rows_pack(torch.randn(2, launch.LARGEST_TILE + 1), 8)),
    "three bits with a tail": lambda: ("act_pack", launch.act_pack(torch.randn(2, 10), "gelu", 3, "paper")),
}


@pytest.mark.parametrize("case", FALLBACKS)
def test_what_no_kernel_takes_goes_to_the_reference(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    called = []
    for name, function in REFERENCE.items():
        monkeypatch.setattr(reference, name, lambda *a, n=name, f=function: (called.append(n), f(*a))[1])
    name, _ = FALLBACKS[case]()
    assert called == [name]
