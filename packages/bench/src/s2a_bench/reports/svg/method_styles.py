"""Markers of methods: colour and shape from the method's card, and for methods without one by their name."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from s2a_bench.cells import method_cards
from s2a_bench.reports.svg.elements import Markup, element

if TYPE_CHECKING:
    from s2a.card import Style

SPARE_COLOURS = (
    ("#7a5c3e", "#d3b28c"),
    ("#3a6f7a", "#8fcbd6"),
    ("#5a5f9e", "#a9aee0"),
    ("#8a5a83", "#d3a9cc"),
    ("#6b6b1f", "#cfcf7a"),
)
"""Light and dark colours for methods whose cards name none; with every shape each."""


def _regular(corners: int, turn: float, radius: float) -> tuple[tuple[float, float], ...]:
    """Corners of a regular polygon, the first of them ``turn`` degrees clockwise from the right."""
    angles = [math.radians(turn + 360 * k / corners) for k in range(corners)]
    return tuple((radius * math.cos(a), radius * math.sin(a)) for a in angles)


def _star() -> tuple[tuple[float, float], ...]:
    """A star of five points: the corners of two pentagons in turn."""
    pairs = zip(_regular(5, -90, 1.35), _regular(5, -54, 0.62), strict=True)
    return tuple(point for pair in pairs for point in pair)


def _plus() -> tuple[tuple[float, float], ...]:
    """An upright cross."""
    reach, half = 1.2, 0.42
    # From the top bar's right corner to the right bar's upper corner; then the same three turned by 90 degrees.
    corners = [(half, -reach), (half, -half), (reach, -half)]
    while len(corners) < 12:
        corners += [(-y, x) for x, y in corners[-3:]]
    return tuple(corners)


_POLYGONS = {
    "square": _regular(4, 45, 1.2),
    "diamond": _regular(4, 0, 1.2),
    "pentagon": _regular(5, -90, 1.2),
    "hexagon": _regular(6, 0, 1.2),
    "up": _regular(3, -90, 1.3),
    "down": _regular(3, 90, 1.3),
    "left": _regular(3, 180, 1.3),
    "right": _regular(3, 0, 1.3),
    "star": _star(),
    "plus": _plus(),
}
"""Corners of every shape but the circle, in units of the marker's size."""


def style(method: str) -> Style:
    """Colours and shape of a method.

    A method whose card names no style, or that is not installed here, takes a pair of a spare colour and a shape by a
    hash of its name: the same in every report, whichever methods are beside it.
    """
    return method_cards.card(method).style or _spare_style(method)


@functools.cache
def _spare_style(method: str) -> Style:
    from s2a.card import SHAPES, Style

    pairs = [(light, dark, shape) for light, dark in SPARE_COLOURS for shape in SHAPES]
    digest = hashlib.sha256(method.encode()).digest()
    return Style(*pairs[int.from_bytes(digest[:6], "big") % len(pairs)])


def class_name(method: str) -> str:
    """CSS class of a method's marks. It needs no escaping, whatever the method is called."""
    if re.fullmatch(r"[a-z][a-z0-9_]*", method):
        return f"m-{method}"
    return f"m-x{hashlib.sha256(method.encode()).hexdigest()[:12]}"


def css(methods: Iterable[str]) -> tuple[str, str]:
    """Rules that set the colour ``--m`` of the methods' marks, for light and for dark pages."""
    styles = {class_name(method): style(method) for method in sorted(set(methods))}
    light = "".join(f".fig .{name}{{--m:{found.light}}}" for name, found in styles.items())
    dark = "".join(f".fig .{name}{{--m:{found.dark}}}" for name, found in styles.items())
    return light, dark


def marker(method: str, x: float, y: float, size: float, class_: str) -> Markup:
    """A method's shape around a point.

    Args:
        method: Name.
        x: Of the centre.
        y: Of the centre.
        size: Radius of a circle of the same weight to the eye.
        class_: CSS class of the drawn element.
    """
    shape = style(method).shape
    if shape == "circle":
        return element("circle", cx=x, cy=y, r=size, class_=class_)
    points = " ".join(f"{x + size * dx:.1f},{y + size * dy:.1f}" for dx, dy in _POLYGONS[shape])
    return element("polygon", points=points, class_=class_)


def swatch(method: str) -> Markup:
    """A method's marker, for tables."""
    mark = element("g", marker(method, 6.0, 6.0, 4.4, "mark"), class_=class_name(method))
    return element("svg", mark, viewBox="0 0 12 12", class_="fig swatch", aria_hidden="true")
