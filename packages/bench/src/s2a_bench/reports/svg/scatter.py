"""Scatter plots as hand-written SVG: small, the same bytes for the same numbers, readable on light and dark pages."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Callable, Sequence

from s2a_bench.reports import statistics as stats
from s2a_bench.reports.svg.markup import Markup, element

WIDTH, HEIGHT = 440.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 30.0, 42.0
FONT, LINE = 12.0, 14.0
GLYPH_WIDTH = 6.9
"""Width kept free per character at ``FONT``: above the average of the usual interface fonts."""
MANY_MARKS, LABELLED_OF_FRONT = 14, 5
"""Above ``MANY`` marks, ``FEW`` of the Pareto front and the best of every other method are labelled."""

MANY_VARIANTS, NEAR_PLACES = 3, 16
"""Variants of one method above ``FAMILY`` have their names in the first ``NEAR`` places around the mark, or none."""

# Light and dark variant of each method's colour. Neighbours differ in lightness too, and shapes repeat the message.
COLOURS = {
    "full": ("#3b3b3b", "#e4e4e4"),
    "linear": ("#868686", "#9d9d9d"),
    "bias": ("#00866a", "#3fcfa6"),
    "lora": ("#0069b4", "#62b5f5"),
    "adapter": ("#b8478a", "#ee9ccb"),
    "vpt": ("#9c7400", "#e9c84f"),
    "unipt": ("#2a93c4", "#95dbf8"),
    "lst": ("#6a4fb0", "#b7a1f5"),
    "s2a": ("#d1480a", "#ff8f4a"),
}
SPARE = (("#7a5c3e", "#d3b28c"), ("#a02c2c", "#ff9a94"), ("#4c7a1f", "#a9d96f"), ("#3a6f7a", "#8fcbd6"))
SHAPES = {
    "full": "square",
    "linear": "down",
    "bias": "up",
    "lora": "diamond",
    "adapter": "pentagon",
    "vpt": "hexagon",
    "unipt": "left",
    "lst": "right",
    "s2a": "circle",
}
_CORNERS = {"square": (4, 45), "down": (3, 90), "up": (3, -90), "diamond": (4, 0), "pentagon": (5, -90)}
_CORNERS |= {"hexagon": (6, 0), "left": (3, 180), "right": (3, 0)}


@dataclasses.dataclass(frozen=True)
class Mark:
    """One point.

    Attributes:
        label: Text beside it.
        method: Decides colour and shape.
        x: Above 0 on a logarithmic axis.
        y: Accuracy, percent.
        spread: Standard deviation of ``y``; ``None`` if unknown.
        ghost: Second, hollow marker at this x; ``None`` for none.
    """

    label: str
    method: str
    x: float
    y: float
    spread: float | None = None
    ghost: float | None = None


def palette(methods: Sequence[str]) -> dict[str, tuple[str, str]]:
    """Light and dark colour by method; methods outside the table share ``SPARE`` in the order of their names."""
    others = sorted(set(methods) - COLOURS.keys())
    return COLOURS | {name: SPARE[index % len(SPARE)] for index, name in enumerate(others)}


def css(methods: Sequence[str]) -> Markup:
    """Style of the figures: the page's ink through ``currentColor``, one class per method in use."""
    colours = palette(methods)
    names = _classes(methods)
    light = "".join(f".fig .{names[m]}{{--m:{colours[m][0]}}}" for m in sorted(set(methods)))
    dark = "".join(f".fig .{names[m]}{{--m:{colours[m][1]}}}" for m in sorted(set(methods)))
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
        # Paper is white whatever the screen prefers.
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
        methods: All methods of the report, so that colours agree between figures.
        title: For screen readers and above the plot.
        x_label: Below the horizontal axis.
        log: Logarithmic horizontal axis.
        key: What filled and hollow markers mean; beside the title.
        alone: A file of its own: with its style, and a description of the format.
    """
    costs = [v for m in marks for v in (m.x, m.ghost) if v is not None]
    sides = [v for m in marks for v in (m.y - (m.spread or 0), m.y + (m.spread or 0))]
    scale_x, ticks_x = (log_axis if log else linear_axis)(costs, LEFT, WIDTH - RIGHT, 0.0)
    scale_y, ticks_y = linear_axis(sides, HEIGHT - BOTTOM, TOP, 0.08)
    classes = _classes(methods)

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

    front = stats.pareto_front([(m.x, m.y) for m in marks])
    steps = " ".join(f"{scale_x(marks[i].x):.1f},{scale_y(marks[i].y):.1f}" for i in front)
    grid.append(element("polyline", points=steps, class_="front") if len(front) > 1 else Markup())

    drawn, taken = [], []
    for mark in marks:
        x, y = scale_x(mark.x), scale_y(mark.y)
        parts = [element("title", _tooltip(mark))]
        taken.append(_Box(x - 6, y - 6, x + 6, y + 6))
        if mark.spread:
            low, high = scale_y(mark.y - mark.spread), scale_y(mark.y + mark.spread)
            parts.append(element("line", x1=x, x2=x, y1=low, y2=high, class_="bar"))
            taken.append(_Box(x - 2, high, x + 2, low))
        if mark.ghost is not None:
            other = scale_x(mark.ghost)
            parts.append(element("line", x1=other, x2=x, y1=y, y2=y, class_="tie"))
            parts.append(_shape(mark.method, other, y, 4.2, "ghost"))
            taken.append(_Box(other - 5, y - 5, other + 5, y + 5))
            taken.append(_Box(min(x, other), y - 1, max(x, other), y + 1))
        parts.append(_shape(mark.method, x, y, 5.0, "mark"))
        drawn.append(element("g", *parts, class_=classes[mark.method]))
    anchors = [(scale_x(m.x), scale_y(m.y)) for m in marks]
    path = [anchors[i] for i in front]
    names = _place_labels(marks, anchors, _choose_labelled(marks, front), taken, path, classes)

    style = element("style", css(methods)) if alone else Markup()
    format_ = {"xmlns": "http://www.w3.org/2000/svg"} if alone else {}
    box = f"0 0 {WIDTH:.0f} {HEIGHT:.0f}"
    return element(
        "svg", element("title", title), style, *grid, *drawn, *names,
        viewBox=box, class_="fig", role="img", aria_label=title, **format_,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _Box:
    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        beside = self.left < other.right and other.left < self.right
        return beside and self.top < other.bottom and other.top < self.bottom

    def distance(self, x: float, y: float) -> float:
        """From a point to the nearest point of the box."""
        return math.hypot(max(self.left - x, 0, x - self.right), max(self.top - y, 0, y - self.bottom))

    def crossed(self, path: Sequence[tuple[float, float]]) -> bool:
        """Whether a line through these points passes over the box."""
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            for k in range(33):
                x, y = x0 + (x1 - x0) * k / 32, y0 + (y1 - y0) * k / 32
                if self.left < x < self.right and self.top < y < self.bottom:
                    return True
        return False


def _choose_labelled(marks: Sequence[Mark], front: Sequence[int]) -> list[int]:
    if len(marks) <= MANY_MARKS:
        return list(range(len(marks)))
    # A few of the front, spread over it, and the best mark of every method that is not among them.
    few = min(LABELLED_OF_FRONT, len(front))
    chosen = {front[round(k * (len(front) - 1) / max(1, few - 1))] for k in range(few)}
    for method in sorted({mark.method for mark in marks} - {marks[i].method for i in chosen}):
        chosen.add(max((i for i, mark in enumerate(marks) if mark.method == method), key=lambda i: (marks[i].y, -i)))
    return sorted(chosen)


def _place_labels(
    marks: Sequence[Mark],
    anchors: Sequence[tuple[float, float]],
    wanted: Sequence[int],
    taken: list[_Box],
    path: Sequence[tuple[float, float]],
    classes: dict[str, str],
) -> list[Markup]:
    """Greedy placement, the most crowded mark first; a name without room is left to the mark's tooltip.

    A name may cover nothing in ``taken``; of the places left it takes the one that is near its mark, not nearer to
    another mark, and off the line ``path``. Of many variants of a method only the best may have its name further away.
    """
    kin = collections.Counter(marks[index].method for index in wanted)
    best = {max((i for i in wanted if marks[i].method == method), key=lambda i: (marks[i].y, -i)) for method in kin}
    texts = []
    for index in wanted:
        lines = _wrap_label(marks[index].label)
        width, height = max(map(len, lines)) * GLYPH_WIDTH, LINE * len(lines)
        crowd = sum(math.dist(anchors[index], other) < 60 for other in anchors)
        texts.append((-crowd, index, lines, width, height))
    placed: list[Markup] = []
    for _, index, lines, width, height in sorted(texts):
        x, y = anchors[index]
        others = [anchor for i, anchor in enumerate(anchors) if i != index]
        found: list[tuple[float, int, _Box]] = []
        spots = _label_places(x, y, width, height)
        if kin[marks[index].method] > MANY_VARIANTS and index not in best:
            spots = spots[:NEAR_PLACES]
        for rank, box in enumerate(spots):
            inside = box.left >= 2 and box.right <= WIDTH - 2 and box.top >= TOP - 8 and box.bottom <= HEIGHT - BOTTOM
            if not inside or any(box.meets(other) for other in taken):
                continue
            own = box.distance(x, y)
            astray = any(box.distance(*other) < own + 4 for other in others)
            found.append((own + 45 * astray + 12 * box.crossed(path), rank, box))
        if found:
            box = min(found)[2]
            taken.append(box)
            lead = _leader_line(box, x, y)
            middle = (box.left + box.right) / 2
            words = [
                element("text", line, x=middle, y=box.top + LINE * row + FONT - 1, text_anchor="middle", class_="name")
                for row, line in enumerate(lines)
            ]
            placed.append(element("g", *lead, *words, class_=classes[marks[index].method]))
    return placed


def _label_places(x: float, y: float, width: float, height: float) -> list[_Box]:
    """Where a text may go around a mark; right before left, straight before slanted."""
    spots = []
    for gap in (8.0, 13.0, 20.0, 28.0, 38.0, 50.0, 66.0, 84.0):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            reach = gap * (0.7 if dx and dy else 1)
            cx, cy = x + dx * (reach + width / 2), y + dy * (reach - 2 + height / 2)
            spots.append(_Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return spots


def _leader_line(box: _Box, x: float, y: float) -> list[Markup]:
    """A thin line from a mark to a text that stands apart from it."""
    end = (min(max(x, box.left), box.right), min(max(y, box.top + 2), box.bottom - 2))
    reach = math.dist((x, y), end)
    if reach < 17:
        return []
    start = (x + (end[0] - x) * 7 / reach, y + (end[1] - y) * 7 / reach)
    return [element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_="lead")]


def _wrap_label(label: str) -> list[str]:
    """A label on at most three lines, with the options as ``_short`` has them: the tables have it all."""
    head, bracket, tail = label.partition(" (")
    words = [head, *map(_shorten_option, tail.removesuffix(")").split(", "))] if bracket else [label]
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < 16:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    lines = [*lines[:2], "…"] if len(lines) > 3 else lines
    return [line if len(line) <= 26 else line[:25] + "…" for line in lines]


def _shorten_option(option: str) -> str:
    """``exact`` for ``activations=exact``, ``rank 5`` for ``lrp_rank=5``, ``no bias`` for ``train_bias=false``."""
    key, _, value = option.partition("=")
    name = key.rpartition("_")[2].rpartition(".")[2]
    if value in ("", "true", "false"):
        return f"no {name}" if value == "false" else name
    return value if value.isalpha() and value != "null" else f"{name} {value}"


def _tooltip(mark: Mark) -> str:
    spread = f" ± {mark.spread:.1f}" if mark.spread is not None else ""
    ghost = f", hollow {mark.ghost:.4g}" if mark.ghost is not None else ""
    return f"{mark.label}: {mark.y:.1f}{spread} % at {mark.x:.4g}{ghost}"


def _shape(method: str, x: float, y: float, size: float, class_: str) -> Markup:
    name = SHAPES.get(method, "circle")
    if name == "circle":
        return element("circle", cx=x, cy=y, r=size, class_=class_)
    corners, turn = _CORNERS[name]
    radius = size * (1.3 if corners == 3 else 1.2)
    angles = [math.radians(turn + 360 * k / corners) for k in range(corners)]
    points = " ".join(f"{x + radius * math.cos(a):.1f},{y + radius * math.sin(a):.1f}" for a in angles)
    return element("polygon", points=points, class_=class_)


def _classes(methods: Sequence[str]) -> dict[str, str]:
    """Class names that need no escaping, whatever a method is called."""
    others = sorted(set(methods) - COLOURS.keys())
    # Known names are plain words, and the same in every figure of a page.
    return {name: f"m-{name}" for name in COLOURS} | {name: f"m{index}" for index, name in enumerate(others)}


_Axis = tuple[Callable[[float], float], list[tuple[float, str]]]


def linear_axis(values: Sequence[float], start: float, end: float, pad: float) -> _Axis:
    """Place of a value, and ticks.

    With ``pad`` 0 the axis begins at 0: the length of a cost then says how large it is.
    """
    low, high = min(values), max(values)
    room = (high - low) * pad or 1.0
    # Twice as much above: that is where names crowd.
    low, high = (low - room, high + 2 * room) if pad else (0.0, high * 1.06 or 1.0)
    unit = 10 ** math.floor(math.log10((high - low) / 5))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= (high - low) / 6)
    decimals = max(0, -math.floor(math.log10(step)))
    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return (lambda v: start + (v - low) / (high - low) * (end - start)), [(t, f"{t:,.{decimals}f}") for t in ticks]


def log_axis(values: Sequence[float], start: float, end: float, pad: float) -> _Axis:
    """Place of a value above 0, and ticks."""
    low, high = math.log10(min(values)) - 0.12 - pad, math.log10(max(values)) + 0.12 + pad
    decades = range(math.floor(low), math.ceil(high) + 1)
    leads = (1,) if high - low > 3 else (1, 3) if high - low > 1.5 else (1, 2, 5)
    ticks = [lead * 10.0**d for d in decades for lead in leads if low <= math.log10(lead * 10.0**d) <= high]
    return (
        lambda v: start + (math.log10(v) - low) / (high - low) * (end - start),
        [(t, f"{t:,.0f}" if t >= 1 else f"{t:.{-math.floor(math.log10(t) + 1e-9)}f}") for t in ticks],
    )


def swatch(method: str, methods: Sequence[str]) -> Markup:
    """A method's marker, for tables."""
    mark = element("g", _shape(method, 6.0, 6.0, 4.4, "mark"), class_=_classes(methods)[method])
    return element("svg", mark, viewBox="0 0 12 12", class_="fig swatch", aria_hidden="true")
