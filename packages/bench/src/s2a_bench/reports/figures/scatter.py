"""Scatter plots: accuracy against a cost, with the Pareto front and names beside the marks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

from s2a_bench.reports import statistics as stats
from s2a_bench.reports.figures import labels, method_styles
from s2a_bench.reports.figures.axes import draw_grid, scale_linear, scale_log
from s2a_bench.reports.figures.canvas import FONT, Canvas, open_canvas
from s2a_bench.reports.markup import Markup

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 30.0, 42.0
SIZE, NUMBERED_SIZE, NUMBERED_NARROW = 5.0, 6.5, 8.0
"""Radius of a marker, of one with a number in it, and of one whose shape leaves little room for the number."""


@dataclasses.dataclass(frozen=True)
class Mark:
    """A row of a table as a marker.

    Attributes:
        label: Text of its label.
        method: Decides colour and shape.
        x: Above 0 on a logarithmic axis.
        y: Accuracy, percent.
        spread: Standard deviation of ``y``; ``None`` if unknown.
        ghost: Position of a second, hollow marker; ``None``: there is none.
        variant: Which of its method's rows it is; from the second on (1) the marker has a number.
        hint: What appears when it is pointed at.
    """

    label: str
    method: str
    x: float
    y: float
    spread: float | None = None
    ghost: float | None = None
    variant: int = 0
    hint: str = ""


def draw_scatter(marks: Sequence[Mark], *, title: str, x_label: str, log: bool, key: str = "") -> Markup:
    """Accuracy against a cost, with direct labels that do not overlap and the Pareto front.

    Args:
        marks: At least one.
        title: For screen readers.
        x_label: Below the horizontal axis, with its unit.
        log: Logarithmic horizontal axis.
        key: What filled and hollow markers mean; above the plot.
    """
    with open_canvas() as canvas:
        axes = canvas.add_axes(LEFT, RIGHT, TOP, BOTTOM)
        # The horizontal axis spans both markers of each row, the vertical one the spreads.
        costs = [v for m in marks for v in (m.x, m.ghost) if v is not None]
        if log:
            scale_log(axes, "x", costs)
        else:
            scale_linear(axes, "x", costs, 0.0)
        scale_linear(axes, "y", [v for m in marks for v in (m.y - (m.spread or 0), m.y + (m.spread or 0))], 0.08)
        draw_grid(canvas, axes, "both")
        canvas.label(axes, x_label, "accuracy, %")
        canvas.write(canvas.width - RIGHT, TOP - 12, key, ha="right")

        front = stats.pareto_front([(m.x, m.y) for m in marks])
        if len(front) > 1:
            corners = [marks[i].x for i in front], [marks[i].y for i in front]
            (line,) = axes.plot(*corners, color=canvas.ink("front"), linewidth=1, linestyle=(0, (3, 4)), zorder=2)
            canvas.tag(line, class_="front")
        # Boxes that names must not cover.
        to_points = axes.transData.transform
        anchors = [(float(x), float(y)) for x, y in (to_points((m.x, m.y)) for m in marks)]
        heights = (float(to_points((marks[0].x, tick))[1]) for tick in axes.get_yticks())
        taken = [labels.Box(0, height - 6, LEFT - 2, height + 6) for height in heights]
        for mark, (x, y) in zip(marks, anchors, strict=True):
            size = _size(mark)
            taken.append(labels.Box(x - size - 1, y - size - 1, x + size + 1, y + size + 1))
            if mark.spread:
                low, high = (float(to_points((mark.x, mark.y + s))[1]) for s in (-mark.spread, mark.spread))
                taken.append(labels.Box(x - 2, low, x + 2, high))
            if mark.ghost is not None:
                other = float(to_points((mark.ghost, mark.y))[0])
                taken.append(labels.Box(other - 5, y - 5, other + 5, y + 5))
                taken.append(labels.Box(min(x, other), y - 1, max(x, other), y + 1))
        for mark in sorted(marks, key=lambda mark: mark.y):  # the best on top
            _draw_mark(canvas, axes, mark)
        _draw_names(canvas, marks, anchors, taken, front)
        return canvas.to_svg(title)


def _draw_mark(canvas: Canvas, axes: Axes, mark: Mark) -> None:
    colour = canvas.ink(method_styles.variable(mark.method))
    hint = mark.hint or mark.label
    if mark.ghost is not None:
        (tie,) = axes.plot([mark.ghost, mark.x], [mark.y, mark.y], color=canvas.ink("tie"), linewidth=1.2, zorder=3)
        canvas.tag(tie, class_="tie")
        ghost = _draw_marker(axes, mark.method, mark.ghost, mark.y, 4.2, fill=canvas.ink("page"), edge=colour, line=1.5)
        canvas.tag(ghost, title=hint, class_="ghost")
    if mark.spread:
        ends = [mark.y - mark.spread, mark.y + mark.spread]
        (bar,) = axes.plot([mark.x, mark.x], ends, color=colour, alpha=0.75, linewidth=1.5, zorder=4)
        canvas.tag(bar, class_="bar")
    # A rim of the page's colour keeps marks and numbers apart that lie on each other.
    drawn = _draw_marker(axes, mark.method, mark.x, mark.y, _size(mark), fill=colour, edge=canvas.ink("page"))
    canvas.tag(drawn, title=hint, class_="mark")
    if mark.variant:
        digits = method_styles.number(mark.variant)
        look = {
            "fontsize": 8.5 if len(digits) < 2 else 7.5,
            "fontweight": "bold",
            "color": canvas.ink("page"),
            "zorder": 5,
        }
        text = axes.text(mark.x, mark.y, digits, ha="center", va="center_baseline", **look)
        canvas.tag(text, title=hint, class_="digit")


def _size(mark: Mark) -> float:
    if not mark.variant:
        return SIZE
    return NUMBERED_SIZE if method_styles.has_room(mark.method) else NUMBERED_NARROW


def _draw_marker(
    axes: Axes, method: str, x: float, y: float, size: float, *, fill: str, edge: str, line: float = 0.8
) -> Artist:
    """A method's shape around a point of the plot, ``size`` points wide from its middle."""
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path
    from matplotlib.transforms import Affine2D

    corners = method_styles.corners(method)
    if corners is None:
        shape = Path.unit_circle()
    else:
        shape = Path([(dx, -dy) for dx, dy in corners] + [(0, 0)], closed=True)
    place = axes.transData.transform((x, y))
    patch = PathPatch(
        shape, transform=Affine2D().scale(size).translate(*place), facecolor=fill, edgecolor=edge, zorder=5,
        linewidth=line, clip_on=False,
    )  # fmt: skip
    return axes.add_artist(patch)


def _draw_names(
    canvas: Canvas,
    marks: Sequence[Mark],
    anchors: Sequence[tuple[float, float]],
    taken: Sequence[labels.Box],
    front: Sequence[int],
) -> None:
    methods = {mark.method for mark in marks}
    texts = [labels.wrap(m.label.removeprefix(f"{m.method}, ") if len(methods) == 1 else m.label) for m in marks]
    wanted = labels.choose_labelled([m.method for m in marks], [m.y for m in marks], front)
    asked = [
        labels.Label(marks[i].method, marks[i].y, anchors[i], canvas.measure(texts[i], FONT, bold=True)) for i in wanted
    ]
    plot = labels.Box(2, BOTTOM, canvas.width - 2, canvas.height - TOP + 8)
    places = labels.place_labels(asked, anchors, taken, [anchors[i] for i in front], plot)
    for index, label, box in zip(wanted, asked, places, strict=True):
        if box is None:
            continue
        if ends := labels.leader_line(box, label.anchor):
            canvas.draw_line(*ends, color=canvas.ink("quiet"), linewidth=0.75, alpha=0.6)
        middle, line = (box.left + box.right) / 2, (box.top - box.bottom) / len(texts[index])
        for row, text in enumerate(texts[index]):
            y = canvas.height - box.top + line * (row + 0.82)
            colour = canvas.ink(method_styles.variable(label.method))
            drawn = canvas.write(middle, y, text, ha="center", color=colour, fontsize=FONT, fontweight="bold")
            canvas.tag(drawn, class_="name")
