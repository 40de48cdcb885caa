"""Draws lean_pareto.svg: step time beside simulated peak of every method, from lean_pareto.json.

python benchmarks/lean.py pareto --output docs/figures/lean_pareto.json
python docs/figures/lean_pareto.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("svg")
mpl.rcParams["svg.hashsalt"] = "s2a"
mpl.rcParams["svg.fonttype"] = "none"

from matplotlib import pyplot as plt  # noqa: E402 - after the backend is chosen

HERE = Path(__file__).parent
NAMES = {
    "vit_base_patch16_224": "ViT-B/16",
    "swin_base_patch4_window7_224": "Swin-B",
    "convnext_base": "ConvNeXt-B",
}
CLAIMS = {"vit_base_patch16_224": 640, "swin_base_patch4_window7_224": 745, "convnext_base": 741}
STYLES = {
    "full": ("s", "#3b3b3b"),
    "bias": ("^", "#00866a"),
    "bias, 4 micro-batches": ("v", "#00866a"),
    "lora": ("D", "#0069b4"),
    "lora + checkpointing": ("d", "#62a5e5"),
    "lora lean": ("P", "#0069b4"),
    "adapter": ("p", "#b8478a"),
    "vpt": ("h", "#9c7400"),
    "unipt": ("<", "#2a93c4"),
    "lst": (">", "#6a4fb0"),
    "s2a exact": ("o", "#8a8a8a"),
    "s2a paper": ("o", "#e8b48f"),
    "s2a lean": ("o", "#d1480a"),
    "s2a lean, again in float32": ("*", "#d1480a"),
    "s2a exact, paged": ("$o$", "#8a8a8a"),
    "s2a lean, paged": ("$p$", "#d1480a"),
    "lora lean, paged": ("$p$", "#0069b4"),
    "s2a lean, the paper's figure": ("x", "#d1480a"),
    "s2a lean, half of it": ("X", "#d1480a"),
    "lora lean, half of it": ("X", "#0069b4"),
}


def front(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    """Points that no other beats in both, by memory."""
    found: list[tuple[float, float]] = []
    for point in sorted(points):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def main() -> None:
    """Writes the figure beside this file."""
    measured: dict[str, Any] = json.loads((HERE / "lean_pareto.json").read_text())
    figure, axes = plt.subplots(1, 3, figsize=(11, 4.6), sharey=True)
    figure.patch.set_facecolor("white")
    handles: dict[str, Any] = {}
    for axis, (backbone, title) in zip(axes, NAMES.items(), strict=True):
        rows = [row for row in measured["rows"] if row["backbone"] == backbone]
        base = next(min(row["seconds"]) for row in rows if row["name"] == "s2a exact")
        points = {row["name"]: (row["peak_mb_32"], min(row["seconds"]) / base) for row in rows}
        for name, (x, y) in points.items():
            marker, colour = STYLES[name]
            handles.setdefault(name, axis.scatter(x, y, marker=marker, color=colour, s=42, zorder=3))
            axis.scatter(x, y, marker=marker, color=colour, s=42, zorder=3)
        line = front(list(points.values()))
        axis.step([x for x, _ in line], [y for _, y in line], where="post", color="#bbbbbb", lw=1, zorder=1)
        axis.axvline(CLAIMS[backbone], color="#888888", lw=0.8, ls=":", zorder=0)
        axis.set_xscale("log")
        axis.set_xticks([250, 500, 1000, 2000, 4000, 8000], ["250", "500", "1,000", "2,000", "4,000", "8,000"])
        axis.set_xticks([], minor=True)
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("simulated peak at batch 32, MB", fontsize=9)
        axis.set_xlim(230, 10_500)
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"step time at batch {measured['rows'][0]['batch']}, of s2a exact")
    handles["the paper's figure for S2A"] = axes[0].plot([], [], color="#888888", lw=0.8, ls=":")[0]
    figure.legend(list(handles.values()), list(handles), frameon=False, fontsize=8, loc="center right")
    figure.tight_layout(rect=(0, 0, 0.83, 1))
    figure.savefig(HERE / "lean_pareto.svg", metadata={"Date": None})


if __name__ == "__main__":
    main()
