"""Scatter plots as SVG, written by hand: small, reproducible byte for byte, readable on light and dark pages."""

from __future__ import annotations

from collections.abc import Sequence

from s2a_bench.reports import statistics as stats
from s2a_bench.reports.svg import method_styles
from s2a_bench.reports.svg.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, linear_axis, log_axis
from s2a_bench.reports.svg.elements import Markup, element
from s2a_bench.reports.svg.labels import Box, choose_labelled, place_labels
from s2a_bench.reports.svg.method_styles import class_name, marker
from s2a_bench.reports.svg.points import Mark


def css(methods: Sequence[str]) -> Markup:
    """Style of the figures: the page's ink through ``currentColor``, one class per method in use."""
    light, dark = method_styles.css(methods)
    return Markup(
        ".fig{display:block;width:100%;height:auto;color:#222;font:12px system-ui,'Segoe UI',Roboto,Arial,sans-serif}"
        ".fig text{fill:currentColor}.fig .quiet{opacity:.72;font-size:11px}.fig .grid{stroke:currentColor;opacity:.13}"
        ".fig .front{fill:none;stroke:currentColor;opacity:.38;stroke-dasharray:3 4}"
        ".fig .mark{fill:var(--m);stroke:var(--m)}.fig .ghost{fill:none;stroke:var(--m);stroke-width:1.5}"
        ".fig .tie{stroke:var(--m);opacity:.6}.fig .bar{stroke:var(--m);stroke-width:1.5;opacity:.75}"
        ".fig .lead{stroke:currentColor;opacity:.45;stroke-width:.75}.fig text.name{fill:var(--m);font-weight:600}"
        # A rim of the page's colour, where the page names one, lifts names off the lines.
        ".fig text.name{paint-order:stroke;stroke:var(--page,transparent);stroke-width:3px}"
        f"{light}@media (prefers-color-scheme:dark){{.fig{{color:#ddd}}{dark}}}"
        # Printed pages are white in a dark colour scheme as well.
        f"@media print{{.fig{{color:#222}}{light}}}"
    )


def draw_scatter(
    marks: Sequence[Mark],
    methods: Sequence[str],
    *,
    title: str,
    x_label: str,
    log: bool,
    key: str = "",
    alone: bool = False,
) -> Markup:
    """Accuracy against a cost, with direct labels that do not overlap and the Pareto front.

    Args:
        marks: At least one.
        methods: Whose styles a file of its own has; at least those of the marks.
        title: For screen readers and above the plot.
        x_label: Below the horizontal axis.
        log: Logarithmic horizontal axis.
        key: What filled and hollow markers mean; beside the title.
        alone: A file of its own: with its style, and a description of the format.
    """
    # Axes: the horizontal one spans both markers of each row, the vertical one the spreads.
    costs = [v for m in marks for v in (m.x, m.ghost) if v is not None]
    sides = [v for m in marks for v in (m.y - (m.spread or 0), m.y + (m.spread or 0))]
    scale_x, ticks_x = (log_axis if log else linear_axis)(costs, LEFT, WIDTH - RIGHT, 0.0)
    scale_y, ticks_y = linear_axis(sides, HEIGHT - BOTTOM, TOP, 0.08)

    grid = []
    for value, text in ticks_x:
        x = scale_x(value)
        grid.append(element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="grid"))
        grid.append(element("text", text, x=x, y=HEIGHT - BOTTOM + 15, text_anchor="middle", class_="quiet"))
    for value, text in ticks_y:
        y = scale_y(value)
        grid.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        grid.append(element("text", text, x=LEFT - 6, y=y + 4, text_anchor="end", class_="quiet"))
    grid.append(
        element("text", x_label, x=(LEFT + WIDTH - RIGHT) / 2, y=HEIGHT - 8, text_anchor="middle", class_="quiet")
    )
    grid.append(element("text", "accuracy, %", x=6, y=TOP - 14, class_="quiet"))
    grid.append(
        element("text", key, x=WIDTH - RIGHT, y=TOP - 14, text_anchor="end", class_="quiet") if key else Markup()
    )

    # The Pareto front as a dashed line.
    front = stats.pareto_front([(m.x, m.y) for m in marks])
    steps = " ".join(f"{scale_x(marks[i].x):.1f},{scale_y(marks[i].y):.1f}" for i in front)
    grid.append(element("polyline", points=steps, class_="front") if len(front) > 1 else Markup())

    # Markers with their spreads; ``taken`` collects the boxes that labels must not cover.
    drawn, taken = [], []
    for mark in marks:
        x, y = scale_x(mark.x), scale_y(mark.y)
        parts = [element("title", _tooltip(mark))]
        taken.append(Box(x - 6, y - 6, x + 6, y + 6))
        if mark.spread:
            low, high = scale_y(mark.y - mark.spread), scale_y(mark.y + mark.spread)
            parts.append(element("line", x1=x, x2=x, y1=low, y2=high, class_="bar"))
            taken.append(Box(x - 2, high, x + 2, low))
        if mark.ghost is not None:
            other = scale_x(mark.ghost)
            parts.append(element("line", x1=other, x2=x, y1=y, y2=y, class_="tie"))
            parts.append(marker(mark.method, other, y, 4.2, "ghost"))
            taken.append(Box(other - 5, y - 5, other + 5, y + 5))
            taken.append(Box(min(x, other), y - 1, max(x, other), y + 1))
        parts.append(marker(mark.method, x, y, 5.0, "mark"))
        drawn.append(element("g", *parts, class_=class_name(mark.method)))
    anchors = [(scale_x(m.x), scale_y(m.y)) for m in marks]
    path = [anchors[i] for i in front]
    names = place_labels(marks, anchors, choose_labelled(marks, front), taken, path)

    style = element("style", css(methods)) if alone else Markup()
    format_ = {"xmlns": "http://www.w3.org/2000/svg"} if alone else {}
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return element(
        "svg", element("title", title), style, *grid, *drawn, *names,
        viewBox=box, class_="fig", role="img", aria_label=title, **format_,
    )  # fmt: skip


def _tooltip(mark: Mark) -> str:
    spread = f" ± {mark.spread:.1f}" if mark.spread is not None else ""
    ghost = f", hollow {mark.ghost:.4g}" if mark.ghost is not None else ""
    return f"{mark.label}: {mark.y:.1f}{spread} % at {mark.x:.4g}{ghost}"
