"""Cells fitted to a derivative: the best piecewise-constant approximation with ``2 ** bits`` values.

For cells C_1 ... C_K of the input axis with values v_1 ... v_K, borders and values minimise

    E = sum_k  integral over C_k of w(x) (f'(x) - v_k)^2 dx,    so  v_k = mean of f' over C_k, weighted by w

where w(x) is how often an input is met. Inputs of a network's activations are roughly centred normals of unknown
width, so w is a mixture of normals of standard deviation 0.5 to 3. Up to 4 bits the optimum is found by dynamic
programming over a fine grid (``_segment``); 8 bits use the asymptotically optimal density of cells, proportional to
the cube root of w f''^2 (``_compand``; Panter and Dite, Quantization distortion in pulse-count modulation, 1951).
Few-bit Backward (Novikov et al., 2023, https://arxiv.org/abs/2202.00441) introduced derivative cells of this kind.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

_WIDTHS = (0.5, 1.0, 1.7, 3.0)
_EDGE = 6.0
CELLS_PER_UNIT = 128
"""Borders lie on multiples of 1 / 128: a power of two, so that a look-up by cell of the grid is exact."""
_GRID = int(2 * _EDGE * CELLS_PER_UNIT)


def gelu_derivative(x: Tensor) -> Tensor:
    """d/dx of x Phi(x), the exact GELU."""
    return 0.5 * (1 + torch.erf(x / math.sqrt(2))) + x * torch.exp(-0.5 * x * x) / math.sqrt(2 * math.pi)


def silu_derivative(x: Tensor) -> Tensor:
    """d/dx of x sigmoid(x)."""
    s = torch.sigmoid(x)
    return s * (1 + x * (1 - s))


def quick_gelu_derivative(x: Tensor) -> Tensor:
    """d/dx of x sigmoid(1.702 x) (paper equation 11)."""
    s = torch.sigmoid(1.702 * x)
    return s * (1 + 1.702 * x * (1 - s))


def hardswish_derivative(x: Tensor) -> Tensor:
    """d/dx of x relu6(x + 3) / 6."""
    return torch.where(x <= -3, 0.0, torch.where(x >= 3, 1.0, (2 * x + 3) / 6))


DERIVATIVES: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": gelu_derivative,
    "silu": silu_derivative,
    "quick_gelu": quick_gelu_derivative,
    "hardswish": hardswish_derivative,
}


def input_weight(x: Tensor) -> Tensor:
    """How much an input counts in the fit: an even mixture of centred normals."""
    return sum((torch.exp(-0.5 * (x / s) ** 2) / s for s in _WIDTHS), torch.zeros_like(x)) / len(_WIDTHS)


@functools.cache
def fitted_levels(function: str, bits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Borders and values of the fitted cells.

    Args:
        function: Key of ``DERIVATIVES``.
        bits: 1 to 8.

    Returns:
        ``2 ** bits - 1`` ascending borders and ``2 ** bits`` values.
    """
    if torch.compiler.is_compiling():
        return _fitted(function, bits)
    # Asked for in a simulation, or inside an operator that it runs, these are real numbers all the same: another thread
    # has none of the caller's modes, default devices and dispatch keys.
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(_fitted, function, bits).result()


def _fitted(function: str, bits: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Borders by ``_segment`` or ``_compand``; values as the weighted means in between."""
    x = torch.linspace(-_EDGE, _EDGE, _GRID + 1, dtype=torch.float64)
    mid = (x[1:] + x[:-1]) / 2
    d, w = DERIVATIVES[function](mid), input_weight(mid)
    cuts = _segment(d, w, 1 << bits) if bits <= 4 else _compand(x, d, w, 1 << bits)
    edges = [0, *cuts, _GRID]
    values = []
    for a, b in itertools.pairwise(edges):
        values.append(float((w[a:b] * d[a:b]).sum() / w[a:b].sum()))
    return tuple(c / CELLS_PER_UNIT - _EDGE for c in cuts), tuple(values)


def _segment(d: Tensor, w: Tensor, cells: int) -> list[int]:
    """Cut indices of the best split of the grid into ``cells`` runs: exact dynamic programming.

    With cost(a, b) = sum of w d^2 - (sum of w d)^2 / sum of w over the run [a, b), from prefix sums, and best_k(b) the
    least cost of k runs that end at b:  best_1(b) = cost(0, b),  best_{k+1}(b) = min over a of best_k(a) + cost(a, b).
    """
    n = len(d)
    zero = torch.zeros(1, dtype=d.dtype)
    # Prefix sums of w, w d and w d^2, and from them the cost of every run.
    sw, sd, sq = (torch.cat([zero, t.cumsum(0)]) for t in (w, w * d, w * d * d))
    weight = (sw[None, :] - sw[:, None]).clamp_min(1e-300)
    cost = (sq[None, :] - sq[:, None]) - (sd[None, :] - sd[:, None]) ** 2 / weight
    index = torch.arange(n + 1)
    cost[index[:, None] >= index[None, :]] = math.inf
    # One run more in every round; ``choices`` remembers where the last run begins.
    best, choices = cost[0], []
    for _ in range(cells - 1):
        best, choice = (best[:, None] + cost).min(0)
        choices.append(choice)
    # Back from the end, run by run.
    cuts, end = [], n
    for choice in reversed(choices):
        end = int(choice[end])
        cuts.append(end)
    return cuts[::-1]


def _compand(x: Tensor, d: Tensor, w: Tensor, cells: int) -> list[int]:
    """Cut indices with the asymptotically optimal density of cells, proportional to (w f''^2)^(1/3)."""
    slope = torch.gradient(d, spacing=(float(x[1] - x[0]),))[0]
    density = (w * slope**2) ** (1 / 3) + 1e-4
    # Cells that hold equal shares of the density's integral.
    total = torch.cat([torch.zeros(1, dtype=d.dtype), density.cumsum(0)])
    marks = torch.arange(1, cells, dtype=d.dtype) * (total[-1] / cells)
    cuts = torch.searchsorted(total, marks).tolist()
    for i in range(1, len(cuts)):  # A grid cell is the smallest cell there is.
        cuts[i] = max(cuts[i], cuts[i - 1] + 1)
    return cuts
