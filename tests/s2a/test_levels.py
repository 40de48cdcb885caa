"""Cells fitted to a derivative."""

from __future__ import annotations

import itertools
import math

import oracles
import pytest
import timm.layers
import torch
import torch.nn.functional as F
from s2a.ops import levels
from s2a.ops.levels import DERIVATIVES, fitted_levels
from s2a.ops.pack import BITS
from s2a.ops.pointwise import activation_code
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode, in_kernel_invocation_manager

FUNCTIONS = {
    "gelu": F.gelu,
    "silu": F.silu,
    "quick_gelu": timm.layers.quick_gelu,
    "hardswish": F.hardswish,
}


def _cost(values: Tensor, weights: Tensor) -> float:
    mean = (values * weights).sum() / weights.sum()
    return float((weights * (values - mean) ** 2).sum())


def _error(function: str, bits: int, kind: str) -> float:
    """Weighted squared error of a code's derivative over the grid of the fit."""
    x = torch.linspace(-6, 6, 6001, dtype=torch.float64)
    code = activation_code(function, bits, kind)
    rounded = code.decode(code.encode(x.float()), torch.float64)
    exact = oracles.exact_derivative(FUNCTIONS[function], x)
    return float((levels.input_weight(x) * (rounded - exact) ** 2).sum())


@pytest.mark.parametrize("function", FUNCTIONS)
def test_derivatives_are_autograds(function: str) -> None:
    x = torch.linspace(-7, 7, 1402, dtype=torch.float64)  # Meets none of hardswish's kinks.
    torch.testing.assert_close(DERIVATIVES[function](x), oracles.exact_derivative(FUNCTIONS[function], x))


@pytest.mark.parametrize("cells", [1, 2, 3, 4, 5])
def test_no_other_segmentation_is_better(cells: int) -> None:
    derivative, weight = torch.randn(11, dtype=torch.float64), torch.rand(11, dtype=torch.float64) + 0.1

    def total(cuts: tuple[int, ...]) -> float:
        edges = [0, *cuts, 11]
        return sum(_cost(derivative[a:b], weight[a:b]) for a, b in itertools.pairwise(edges))

    best = min(total(cuts) for cuts in itertools.combinations(range(1, 11), cells - 1))
    assert math.isclose(total(tuple(levels._segment(derivative, weight, cells))), best, rel_tol=1e-9)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_one_bit_is_the_best_single_border(function: str) -> None:
    grid = torch.linspace(-6, 6, 1537, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    derivative, weight = oracles.exact_derivative(FUNCTIONS[function], middle), levels.input_weight(middle)
    costs = [_cost(derivative[:i], weight[:i]) + _cost(derivative[i:], weight[i:]) for i in range(1, 1536)]
    (border,), _ = fitted_levels(function, 1)
    found = int(torch.searchsorted(grid, border))
    assert math.isclose(costs[found - 1], min(costs), rel_tol=1e-9)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("function", FUNCTIONS)
def test_cells_are_ordered_and_values_lie_inside(function: str, bits: int) -> None:
    borders, values = fitted_levels(function, bits)
    assert (len(borders), len(values)) == (2**bits - 1, 2**bits)
    edges = [-6.0, *borders, 6.0]
    assert all(a < b for a, b in itertools.pairwise(edges))
    for (low, high), value in zip(itertools.pairwise(edges), values, strict=True):
        inside = oracles.exact_derivative(FUNCTIONS[function], torch.linspace(low, high, 101, dtype=torch.float64))
        assert float(inside.min()) - 1e-9 <= value <= float(inside.max()) + 1e-9


@pytest.mark.parametrize("function", FUNCTIONS)
def test_more_bits_are_better(function: str) -> None:
    errors = [_error(function, bits, "derivative") for bits in BITS]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-3 * errors[0]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("function", ["gelu", "silu", "quick_gelu"])
def test_fitted_cells_beat_the_papers_sine(function: str, bits: int) -> None:
    assert _error(function, bits, "derivative") < _error(function, bits, "paper")


@pytest.mark.parametrize("function", ["gelu", "silu", "quick_gelu", "hardswish"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_look_up_finds_the_cell_that_a_border_search_finds(function: str, bits: int) -> None:
    code = activation_code(function, bits, "derivative")
    borders = torch.tensor(code.borders)
    edges = [borders, borders.nextafter(torch.tensor(99.0)), borders.nextafter(torch.tensor(-99.0))]
    special = torch.tensor([float("inf"), -float("inf"), 0.0, -0.0, 1e-9, -1e-9])
    x = torch.cat([torch.randn(20_000) * 3, *edges, special])
    assert torch.equal(code.encode(x).long(), torch.bucketize(x, borders))


@pytest.mark.parametrize("where", ["mode", "kernel", "device", "vmap"])
def test_cells_asked_for_first_where_tensors_have_no_data_are_the_same(where: str) -> None:
    def asked() -> tuple[tuple[float, ...], tuple[float, ...]]:
        return fitted_levels.__wrapped__("gelu", 2)

    found = []
    if where == "device":
        with torch.device("meta"):
            found.append(asked())
    elif where == "vmap":
        torch.vmap(lambda x: (found.append(asked()), x)[1])(torch.zeros(2))
    else:
        with FakeTensorMode() as mode, in_kernel_invocation_manager(mode) if where == "kernel" else mode:
            found.append(asked())
    assert found == [fitted_levels("gelu", 2)]
