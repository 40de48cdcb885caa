"""The page's drawings as SVG: curves over the epochs, and the confusion matrix as a heat map."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from s2a_bench.reports.svg.axes import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, linear_axis, log_axis
from s2a_bench.reports.svg.curves import CURVE_COLOURS
from s2a_bench.reports.svg.elements import Markup, element

_NAMES = 74.0
"""Width right of the curves for their names."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve over the epochs.

    Attributes:
        name: At its end.
        points: ``(epoch, value)`` by rising epoch, at least one.
    """

    name: str
    points: Sequence[tuple[float, float]]


def draw_epochs(lines: Sequence[Line], *, title: str, y_label: str, best: int | None = None) -> Markup:
    """Curves over the epochs, the best epoch marked by a vertical line.

    Args:
        lines: At least one.
        title: For screen readers.
        y_label: Above the vertical axis.
        best: The best epoch.
    """
    right = WIDTH - RIGHT - _NAMES
    last = max(x for line in lines for x, _ in line.points)
    place = lambda epoch: LEFT + (right - LEFT) * (epoch - 1) / max(1, last - 1)  # noqa: E731
    scale, ticks = linear_axis([y for line in lines for _, y in line.points], HEIGHT - BOTTOM, TOP, 0.06)
    drawn = [element("text", y_label, x=6, y=TOP - 14, class_="quiet")]
    middle = (LEFT + right) / 2
    drawn.append(element("text", "epoch", x=middle, y=HEIGHT - 8, text_anchor="middle", class_="quiet"))
    for value, text in ticks:
        y = scale(value)
        drawn.append(element("line", x1=LEFT, x2=right, y1=y, y2=y, class_="grid"))
        drawn.append(element("text", text, x=LEFT - 6, y=y + 4, text_anchor="end", class_="quiet"))
    for epoch in _epoch_ticks(int(last)):
        x = place(epoch)
        drawn.append(element("text", str(epoch), x=x, y=HEIGHT - BOTTOM + 15, text_anchor="middle", class_="quiet"))
    if best is not None:
        x = place(best)
        drawn.append(element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="front"))
        anchor = "end" if x > middle else "start"
        words = {"x": x - 5 if anchor == "end" else x + 5, "y": TOP - 2, "text_anchor": anchor, "class_": "quiet"}
        drawn.append(element("text", f"best epoch {best}", **words))
    ends = _apart([scale(line.points[-1][1]) for line in lines])
    for index, (line, end) in enumerate(zip(lines, ends, strict=True)):
        path = " ".join(f"{place(x):.1f},{scale(y):.1f}" for x, y in line.points)
        parts = [element("polyline", points=path, class_="curve")] if len(line.points) > 1 else []
        for x, y in line.points:
            if x in (best, line.points[-1][0]) or len(line.points) <= 30:
                hint = element("title", f"{line.name}, epoch {x:g}: {y:.4g}")
                parts.append(element("circle", hint, cx=place(x), cy=scale(y), r=2.5, class_="mark"))
        parts.append(element("text", line.name, x=right + 6, y=end + 4, class_="name"))
        drawn.append(element("g", *parts, class_=f"c{index % len(CURVE_COLOURS)}"))
    return _svg(title, drawn, WIDTH, HEIGHT)


def draw_rates(points: Sequence[tuple[float, float]], *, title: str, chosen: float) -> Markup:
    """The loss of a range test over the learning rate, on a logarithmic axis.

    Args:
        points: ``(rate, loss)`` by rising rate, at least one.
        title: For screen readers.
        chosen: The rate that was taken, marked by a vertical line.
    """
    # The last losses of a range test are many times the first: they would flatten the rest.
    lowest, first = min(loss for _, loss in points), points[0][1]
    shown = [(rate, loss) for rate, loss in points if loss <= first + (first - lowest) + 0.1] or list(points)
    place, ticks = log_axis([*(rate for rate, _ in shown), chosen], LEFT, WIDTH - RIGHT, 0.0)
    scale, heights = linear_axis([loss for _, loss in shown], HEIGHT - BOTTOM, TOP, 0.06)
    drawn = [element("text", "loss", x=6, y=TOP - 14, class_="quiet")]
    middle = (LEFT + WIDTH - RIGHT) / 2
    drawn.append(element("text", "learning rate", x=middle, y=HEIGHT - 8, text_anchor="middle", class_="quiet"))
    for value, text in heights:
        y = scale(value)
        drawn.append(element("line", x1=LEFT, x2=WIDTH - RIGHT, y1=y, y2=y, class_="grid"))
        drawn.append(element("text", text, x=LEFT - 6, y=y + 4, text_anchor="end", class_="quiet"))
    for value, _ in ticks:
        words = {"x": place(value), "y": HEIGHT - BOTTOM + 15, "text_anchor": "middle", "class_": "quiet"}
        drawn.append(element("text", f"{value:.0e}", **words))
    x = place(chosen)
    drawn.append(element("line", x1=x, x2=x, y1=TOP, y2=HEIGHT - BOTTOM, class_="front"))
    path = " ".join(f"{place(rate):.1f},{scale(loss):.1f}" for rate, loss in shown)
    drawn.append(element("g", element("polyline", points=path, class_="curve"), class_="c0"))
    return _svg(title, drawn, WIDTH, HEIGHT)


def draw_confusion(counts: Mapping[tuple[int, int], int], labels: Sequence[str], *, title: str) -> Markup:
    """The confusion matrix as tiles: rows are true classes, columns what the model names, shares of the row.

    Args:
        counts: ``(true, named)`` to a number of images above 0.
        labels: Of the classes.
        title: For screen readers.
    """
    classes = len(labels)
    side, edge = 560.0, 22.0
    step = (side - edge) / classes
    rows: dict[int, int] = {}
    for (true, _), count in counts.items():
        rows[true] = rows.get(true, 0) + count
    drawn = [
        element("text", "named by the model →", x=edge, y=14, class_="quiet"),
        element("text", "true class →", transform=f"translate(14 {edge}) rotate(90)", class_="quiet"),
        element("rect", x=edge, y=edge, width=side - edge, height=side - edge, class_="none"),
    ]
    for (true, named), count in sorted(counts.items()):
        share = count / rows[true]
        hint = f"{labels[true]} named {labels[named]}: {count} of {rows[true]}"
        box = {"x": edge + named * step, "y": edge + true * step, "width": step, "height": step}
        kind = "tile" if true == named else "tile wrong"
        drawn.append(element("rect", element("title", hint), **box, class_=kind, fill_opacity=0.15 + 0.85 * share))
    return _svg(title, drawn, side, side)


def css() -> Markup:
    """Style of these drawings, in addition to the reports' ``scatter.css`` and ``curves.css``."""
    return Markup(
        ".fig .wrong{fill:#c4462d}.fig .front{stroke-dasharray:3 4}"
        ".thumbs{display:grid;grid-template-columns:repeat(auto-fill,minmax(8.5rem,1fr));gap:1rem;margin:.75rem 0}"
        ".thumbs img{display:block;height:88px;width:auto;max-width:100%;object-fit:contain;border-radius:4px}"
        ".thumbs figcaption{overflow-wrap:anywhere;line-height:1.35;margin-top:.25rem}"
        "td.right{background:color-mix(in srgb,var(--good) 16%,transparent)}"
        "td.wrong{background:color-mix(in srgb,var(--bad) 16%,transparent)}"
        ".big{font-size:2.2rem;font-weight:600;line-height:1.1}"
        ".numbers{display:flex;flex-wrap:wrap;gap:1rem 2.5rem;margin:1rem 0}.numbers div span{display:block}"
        ".short{max-width:12rem;overflow:hidden;text-overflow:ellipsis}"
    )


def _epoch_ticks(last: int) -> list[int]:
    step = next(unit for unit in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if last / unit <= 8)
    return sorted({1, *range(step, last + 1, step)} - ({step} if 1 < step <= 2 else set()))


def _apart(places: Sequence[float], distance: float = 14.0) -> list[float]:
    """Heights of names, moved down until they are ``distance`` apart."""
    found = list(places)
    order = sorted(range(len(places)), key=lambda i: places[i])
    for above, below in itertools.pairwise(order):
        found[below] = max(found[below], found[above] + distance)
    return found


def _svg(title: str, drawn: Sequence[Markup], width: float, height: float) -> Markup:
    box = f"0 0 {width:.0f} {height:.0f}"
    return element("svg", element("title", title), *drawn, viewBox=box, class_="fig", role="img", aria_label=title)
