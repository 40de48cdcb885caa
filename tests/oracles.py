"""Independent formulations that the library is compared with: dense, brute force, in float64, straight from the papers.

Nothing here calls the code under test.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# Activations (paper equations 8, 9, 11 and 12)


def exact_derivative(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Autograd's derivative of an element-wise function, in float64."""
    leaf = x.detach().double().requires_grad_()
    (grad,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return grad


def grid_levels(bits: int, edge: float) -> Tensor:
    """The uniform grid of equation 8 over [-edge, edge], float64."""
    return torch.tensor([-edge + 2 * edge * i / (2**bits - 1) for i in range(2**bits)], dtype=torch.float64)


def nearest_level(x: Tensor, levels: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the level nearest to each element, clipped to the outer ones, by comparing with them all.

    Returns:
        The indices, and a mask of elements so close to the middle of two levels that rounding may go either way.
    """
    clipped = x.detach().double().clamp(float(levels[0]), float(levels[-1]))
    distance = (clipped.unsqueeze(-1) - levels).abs()
    nearest = distance.topk(2, largest=False).values
    return distance.argmin(-1), (nearest[..., 1] - nearest[..., 0]) < 1e-5


def sine_derivative(x: Tensor) -> Tensor:
    """Equation 12: sigmoid(1.702 x) + 0.22 sin(1.5 x)."""
    return torch.sigmoid(1.702 * x) + 0.22 * torch.sin(1.5 * x)


def cell_of(x: Tensor, borders: tuple[float, ...]) -> Tensor:
    """Index of each element's cell: how many borders lie below it."""
    return (x.detach().double().unsqueeze(-1) > torch.tensor(borders, dtype=torch.float64)).sum(-1)


def cell_means(borders: tuple[float, ...], function: Callable[[Tensor], Tensor]) -> Tensor:
    """Mean derivative of every cell, weighted as the fit weighs inputs."""
    grid = torch.linspace(-6, 6, 1537, dtype=torch.float64)
    middle = (grid[1:] + grid[:-1]) / 2
    weight = torch.stack([torch.exp(-(middle**2) / (2 * s * s)) / s for s in (0.5, 1.0, 1.7, 3.0)]).sum(0)
    derivative = exact_derivative(function, middle)
    cell = cell_of(middle, borders)
    means = [(weight * derivative)[cell == i].sum() / weight[cell == i].sum() for i in range(len(borders) + 1)]
    return torch.stack(means)


def with_derivative(x: Tensor, value: Tensor, derivative: Tensor) -> Tensor:
    """A function whose value is ``value`` and whose autograd derivative is ``derivative``, exactly."""
    return value.detach() + (x - x.detach()) * derivative.to(x.dtype)


# Softmax and attention (paper equations 7 to 9)


def quantised_rows(y: Tensor, bits: int) -> Tensor:
    """Every row rounded to the nearest of ``2 ** bits`` levels from its minimum to its maximum.

    Minimum and step are float16, as they are stored.
    """
    top = 2**bits - 1
    rows = y.detach().float().double().reshape(-1, y.shape[-1])
    low = rows.min(1).values.half().double()
    step = ((rows.max(1).values - low) / top).half().double()
    levels = low[:, None] + step[:, None] * torch.arange(top + 1)
    nearest = (rows[:, :, None] - levels[:, None, :]).abs().argmin(-1)
    return levels.gather(1, nearest).view(y.shape)


def softmax_jacobian(y: Tensor) -> Tensor:
    """diag(y) - y y^T of every row, ``(..., n, n)``."""
    return torch.diag_embed(y) - torch.einsum("...i,...j->...ij", y, y)


def attention_with_map(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, scale: float, kept: Tensor) -> Tensor:
    """A function whose autograd is attention's, had the softmax output been ``kept``: linear around that map."""
    scores = torch.einsum("...nd,...sd->...ns", q, k) * scale
    if bias is not None:
        scores = scores + bias
    moved = torch.einsum("...nij,...nj->...ni", softmax_jacobian(kept), scores)
    return torch.einsum("...ns,...se->...ne", kept, v) + torch.einsum("...ns,...se->...ne", moved, v.detach())


# Structure (paper equations 3, 5 and 6)


def average_channels(x: Tensor, reduction: int) -> Tensor:
    """Means of neighbouring channels on the last axis, as a product with a dense matrix."""
    channels = x.shape[-1]
    matrix = torch.zeros(channels, channels // reduction, dtype=x.dtype)
    for c in range(channels):
        matrix[c, c // reduction] = 1 / reduction
    return x @ matrix


def side_branch(branch: Any, inputs: list[Tensor], prefix: int) -> Tensor:
    """Equation 6 over tokens ``(B, P + H * W, C)`` of one resolution; the mean of the last output.

    Args:
        branch: Whose weights are used.
        inputs: Input of every tapped block.
        prefix: P, tokens without a place on the square grid; the depthwise convolution does not see them.
    """
    state: Tensor | None = None
    for site, x in zip(branch.sites, inputs, strict=True):
        s = average_channels(x, branch.reduction)
        s = s if state is None else s + state
        hidden = s @ site.pw1.weight[:, :, 0, 0].T + site.pw1.bias
        side = math.isqrt(hidden.shape[1] - prefix)
        grid = hidden[:, prefix:].reshape(len(x), side, side, -1)
        padded = F.pad(grid, (0, 0, 1, 1, 1, 1))
        mixed = site.dw.bias.expand_as(grid).clone()
        for i in range(3):
            for j in range(3):
                mixed = mixed + padded[:, i : i + side, j : j + side] * site.dw.weight[:, 0, i, j]
        tokens = torch.cat([hidden[:, :prefix], mixed.reshape(len(x), side * side, -1)], 1)
        state = site.act(tokens) @ site.pw2.weight[:, :, 0, 0].T + site.pw2.bias
    assert state is not None
    return state.mean(1)


def lora_weight(weight: Tensor, a: Tensor, b: Tensor, alpha: float) -> Tensor:
    """W + alpha / r * B A, as an explicit sum over ranks."""
    rank = a.shape[0]
    total = weight.double().clone()
    for i in range(rank):
        total += alpha / rank * torch.outer(b[:, i].double(), a[i].double())
    return total.to(weight.dtype)
