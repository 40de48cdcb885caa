"""Draws memory_bars.svg: the peak of a training step of ViT-B/16 by method, from the table in docs/memory.md.

python docs/figures/memory_bars.py
"""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib as mpl
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

HERE = Path(__file__).parent
SHOWN = {
    "full": "full fine-tuning",
    "vpt": "VPT",
    "lora": "LoRA",
    "bias": "BitFit",
    "s2a, paper": "S2A as in the paper",
    "s2a, lean": "S2A, lean activations",
}


def peaks() -> dict[str, int]:
    """Method -> simulated peak on ViT-B/16 in MB: third column of the table "measured | simulated"."""
    lines = (HERE.parent / "memory.md").read_text(encoding="utf-8").splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("| method | ViT-B/16: measured"))
    rows = {}
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            return rows
        name, _, peak, *_ = (cell.strip() for cell in line.strip("|").split("|"))
        rows[name] = int(peak.replace(",", ""))
    return rows


def draw() -> str:
    """The SVG: the same bytes for the same table and version of matplotlib."""
    found = peaks()
    values = [found[name] for name in SHOWN]
    with mpl.rc_context({"svg.hashsalt": "s2a", "svg.fonttype": "none", "font.family": "sans-serif", "font.size": 11}):
        figure = Figure(figsize=(7.2, 2.7), layout="constrained", facecolor="white")
        FigureCanvasSVG(figure)
        axes = figure.add_subplot()
        colours = ["#c9ccd1"] * (len(values) - 2) + ["#f2a468", "#d95f02"]
        axes.barh(range(len(values)), values, color=colours, height=0.72)
        for y, value in enumerate(values):
            axes.text(value + 40, y, f"{value:,} MB", va="center", ha="left", color="#222222")
        axes.set_yticks(range(len(values)), SHOWN.values(), color="#222222")
        axes.set_xlim(0, max(values) * 1.16)
        axes.invert_yaxis()
        axes.set_xticks([])
        axes.tick_params(length=0)
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title(
            "Memory of one training step: ViT-B/16, 32 images, fp32", loc="left", fontsize=11, color="#222222"
        )
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata={"Date": None})
    return "\n".join(line.rstrip() for line in svg.getvalue().splitlines()) + "\n"


if __name__ == "__main__":
    (HERE / "memory_bars.svg").write_text(draw(), encoding="utf-8")
