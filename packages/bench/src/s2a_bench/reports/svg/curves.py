"""Figures of an ablation over one or two sizes as SVG: curves with their spread, and a heat map."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence

from s2a_bench.reports.svg.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, linear_axis
from s2a_bench.reports.svg.elements import Markup, element

CURVE_COLOURS = (("#0069b4", "#62b5f5"), ("#00866a", "#3fcfa6"), ("#b8478a", "#ee9ccb"), ("#9c7400", "#e9c84f"))
"""Light and dark colour of each curve; its name stands at its end, so colour never carries the meaning alone."""
NAMES_WIDTH = 112.0
"""Width right of the curves for their names."""


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line.

    Attributes:
        name: At its end.
        points: ``x``, mean accuracy, and standard deviation between seeds, ``None`` if unknown; by rising ``x``.
    """

    name: str
    points: tuple[tuple[float, float, float | None], ...]


def css() -> Markup:
    """Style of these figures, in addition to ``scatter.css``."""
    light = "".join(f".fig .c{i}{{--m:{pair[0]}}}" for i, pair in enumerate(CURVE_COLOURS))
    dark = "".join(f".fig .c{i}{{--m:{pair[1]}}}" for i, pair in enumerate(CURVE_COLOURS))
    return Markup(
        ".fig .curve{fill:none;stroke:var(--m);stroke-width:2}"
        # Paper for dark ink, ink for light: the text on a tile takes the side that reads.
        ".fig .tile{fill:#0069b4}.fig text.low{fill:currentColor}.fig text.high{fill:#fff}.fig .none{fill:none;"
        "stroke:currentColor;opacity:.25;stroke-dasharray:3 3}"
        f"{light}@media (prefers-color-scheme:dark){{{dark}}}@media print{{{light}}}"
    )


def draw_curves(lines: Sequence[Curve], *, title: str, x_label: str, style: Markup | None = None) -> Markup:
    """Accuracy over a size; the values of the size are equally spaced, as they are usually doubled.

    Args:
        lines: At least one, each with a point or more.
        title: For screen readers.
        x_label: Below the horizontal axis.
        style: Of a file of its own.
    """
    values = sorted({x for line in lines for x, _, _ in line.points})
    right = WIDTH - RIGHT - NAMES_WIDTH
    step = (right - LEFT) / max(1, len(values))
    place = {value: LEFT + step * (k + 0.5) for k, value in enumerate(values)}
    sides = [v for line in lines for _, y, s in line.points for v in (y - (s or 0), y + (s or 0))]
    scale, ticks = linear_axis(sides, HEIGHT - BOTTOM, TOP, 0.06)
    drawn = _draw_frame(ticks, scale, right, x_label)
    drawn += [
        element("text", f"{v:g}", x=x, y=HEIGHT - BOTTOM + 15, text_anchor="middle", class_="quiet")
        for v, x in place.items()
    ]
    ends = _spread_out([scale(line.points[-1][1]) for line in lines])
    for index, (line, end) in enumerate(zip(lines, ends, strict=True)):
        path = " ".join(f"{place[x]:.1f},{scale(y):.1f}" for x, y, _ in line.points)
        parts = [element("polyline", points=path, class_="curve")] if len(line.points) > 1 else []
        for x, y, spread in line.points:
            if spread:
                low, high = scale(y - spread), scale(y + spread)
                parts.append(element("line", x1=place[x], x2=place[x], y1=low, y2=high, class_="bar"))
            hint = element("title", f"{line.name}: {y:.1f}{f' ± {spread:.1f}' if spread is not None else ''} at {x:g}")
            parts.append(element("circle", hint, cx=place[x], cy=scale(y), r=3.5, class_="mark"))
        parts.append(element("text", line.name, x=right + 6, y=end + 4, class_="name"))
        drawn.append(element("g", *parts, class_=f"c{index % len(CURVE_COLOURS)}"))
    return _make_svg(title, drawn, style)


def draw_heat_map(
    cells: Mapping[tuple[float, float], float], *, title: str, x_label: str, y_label: str, style: Markup | None = None
) -> Markup:
    """Mean accuracy of every combination of two sizes, as tiles with their number; a combination not run is dashed.

    Args:
        cells: ``(x, y)`` to accuracy; at least one.
        title: For screen readers.
        x_label: Below the horizontal axis.
        y_label: Above the vertical axis.
        style: Of a file of its own.
    """
    across, up = sorted({x for x, _ in cells}), sorted({y for _, y in cells})
    width, height = (WIDTH - RIGHT - LEFT) / len(across), (HEIGHT - BOTTOM - TOP) / len(up)
    low, high = min(cells.values()), max(cells.values())
    drawn = [element("text", y_label, x=6, y=TOP - 14, class_="quiet")]
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(element("text", x_label, x=middle, y=HEIGHT - 8, text_anchor="middle", class_="quiet"))
    for (i, x), (j, y) in itertools.product(enumerate(across), enumerate(up)):
        left, top = LEFT + i * width, HEIGHT - BOTTOM - (j + 1) * height
        box = {"x": left + 1, "y": top + 1, "width": width - 2, "height": height - 2}
        if (value := cells.get((x, y))) is None:
            drawn.append(element("rect", **box, class_="none"))
            continue
        share = (value - low) / (high - low) if high > low else 0.0
        drawn.append(element("rect", **box, class_="tile", fill_opacity=0.08 + 0.87 * share))
        side = "high" if share > 0.55 else "low"
        center = {"x": left + width / 2, "y": top + height / 2 + 4}
        drawn.append(element("text", f"{value:.1f}", **center, text_anchor="middle", class_=side))
    for i, x in enumerate(across):
        center = LEFT + (i + 0.5) * width
        drawn.append(element("text", f"{x:g}", x=center, y=HEIGHT - BOTTOM + 15, text_anchor="middle", class_="quiet"))
    for j, y in enumerate(up):
        center = HEIGHT - BOTTOM - (j + 0.5) * height + 4
        drawn.append(element("text", f"{y:g}", x=LEFT - 6, y=center, text_anchor="end", class_="quiet"))
    return _make_svg(title, drawn, style)


def _draw_frame(
    ticks: Sequence[tuple[float, str]], scale: Callable[[float], float], right: float, x_label: str
) -> list[Markup]:
    drawn = []
    for value, text in ticks:
        y = scale(value)
        drawn.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        drawn.append(element("text", text, x=LEFT - 6, y=y + 4, text_anchor="end", class_="quiet"))
    middle = (LEFT + right) / 2
    drawn.append(element("text", x_label, x=middle, y=HEIGHT - 8, text_anchor="middle", class_="quiet"))
    drawn.append(element("text", "accuracy, %", x=6, y=TOP - 14, class_="quiet"))
    return drawn


def _spread_out(places: Sequence[float], distance: float = 14.0) -> list[float]:
    """Moves the heights of labels until they are ``distance`` apart and above the lower edge of the plot.

    From top to bottom ``y_k = max(y_k, y_(k-1) + distance)``; then from bottom to top
    ``y_k = min(y_k, y_(k+1) - distance)``, beginning with the edge.
    """
    order = sorted(range(len(places)), key=lambda i: places[i])
    found = list(places)
    # Push each label down from the one above it.
    for above, below in itertools.pairwise(order):
        found[below] = max(found[below], found[above] + distance)
    # Push them up again from the lower edge.
    limit = HEIGHT - BOTTOM
    for index in reversed(order):
        found[index] = min(found[index], limit)
        limit = found[index] - distance
    return found


def _make_svg(title: str, drawn: Sequence[Markup], style: Markup | None) -> Markup:
    format_ = {"xmlns": "http://www.w3.org/2000/svg"} if style else {}
    head = element("style", style) if style else Markup()
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return element(
        "svg", element("title", title), head, *drawn, viewBox=box, class_="fig", role="img", aria_label=title, **format_
    )
