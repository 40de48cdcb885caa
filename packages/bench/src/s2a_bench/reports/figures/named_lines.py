"""Lines that have their name at their end, in its colour: no key to look up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from s2a_bench.reports.figures import labels
from s2a_bench.reports.figures.canvas import FONT, Canvas
from s2a_bench.reports.figures.style import CURVES

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 30.0, 42.0
"""Margins of such a figure; the names stand between the axes and the right one."""


def draw_named_lines(
    canvas: Canvas, axes: Axes, lines: Sequence[tuple[str, Sequence[tuple[float, float]]]], names_width: float
) -> list[str]:
    """Draws every line, and its name beside its last point, moved where two would cover each other.

    Args:
        canvas: Of the figure.
        axes: With their scales.
        lines: Name and points of each, in the data's units.
        names_width: Width right of the axes for the names.

    Returns:
        The colour of each line.
    """
    ends = [float(axes.transData.transform(points[-1])[1]) for _, points in lines]
    colours = [canvas.ink(f"curve{index % len(CURVES)}") for index in range(len(lines))]
    for (name, points), colour, end in zip(lines, colours, labels.spread_out(ends, BOTTOM), strict=True):
        (path,) = axes.plot(*zip(*points, strict=True), color=colour, linewidth=2)
        canvas.tag(path, class_="curve")
        left, height = canvas.width - RIGHT - names_width + 6, canvas.height - end + 4
        written = canvas.write(left, height, name, color=colour, fontsize=FONT, fontweight="bold")
        canvas.tag(written, class_="name")
    return colours
