"""Draws gelu_levels.svg: GELU's derivative, the paper's equation 12, and both sets of 16 levels.

python docs/figures/gelu_levels.py
"""

from __future__ import annotations

from pathlib import Path

import matplotlib as mpl
import torch
from s2a.ops.levels import gelu_derivative, input_weight
from s2a.ops.pointwise import activation_code
from torch import Tensor

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "s2a"
mpl.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot as plt  # noqa: E402 - after the backend is chosen

PANELS = {
    "paper": ("The paper's levels: equation 12, uniform", "#c2571a"),
    "derivative": ("Levels fitted to the derivative", "#1a6fc2"),
}


def errors(x: Tensor, levels: str) -> tuple[Tensor, float, float]:
    """Error of the coded derivative at ``x``, its largest size, and its rms under the fit's weight of inputs."""
    code = activation_code("gelu", 4, levels)
    error = code.decode(code.encode(x.float()), torch.float32).double() - gelu_derivative(x)
    weight = input_weight(x)
    return error, float(error.abs().max()), float(((weight * error**2).sum() / weight.sum()).sqrt())


def main() -> None:
    """Writes the figure beside this file and prints the errors."""
    x = torch.linspace(-4, 4, 4001, dtype=torch.float64)
    sine = torch.sigmoid(1.702 * x) + 0.22 * torch.sin(1.5 * x)
    figure, axes = plt.subplots(2, 2, figsize=(9, 5.4), sharex=True, sharey="row", height_ratios=(3, 1))
    figure.patch.set_facecolor("white")
    for column, (levels, (title, colour)) in enumerate(PANELS.items()):
        code = activation_code("gelu", 4, levels)
        top, bottom = axes[0][column], axes[1][column]
        top.plot(x, gelu_derivative(x), color="#222222", lw=1.4, label="GELU's derivative")
        inside = x.abs() <= 2
        top.plot(x[inside], sine[inside], color="#888888", lw=1.2, ls="--", label="equation 12 on [-2, 2]")
        top.plot(x, code.decode(code.encode(x.float()), torch.float32), color=colour, lw=1.2, label="16 levels")
        top.set_title(title, fontsize=10)
        top.legend(frameon=False, fontsize=8, loc="upper left")
        error, most, rms = errors(x, levels)
        bottom.plot(x, error, color=colour, lw=0.9)
        bottom.axhline(0, color="#888888", lw=0.6)
        bottom.set_xlabel("input")
        print(f"{levels}: largest error {most:.3f}, rms {rms:.4f}")
    axes[0][0].set_ylabel("derivative")
    axes[1][0].set_ylabel("error")
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(Path(__file__).with_suffix(".svg"), metadata={"Date": None})


if __name__ == "__main__":
    main()
