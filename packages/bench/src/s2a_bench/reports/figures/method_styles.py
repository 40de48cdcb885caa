"""Markers of methods: colour and shape from the method's card, and for methods without one by their name."""

from __future__ import annotations

import functools
import hashlib
import math
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from s2a_bench.cells import method_cards
from s2a_bench.reports.markup import Markup, element

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


def variable(method: str) -> str:
    """Name of the CSS variable of a method's colour. It needs no escaping, whatever the method is called."""
    if re.fullmatch(r"[a-z][a-z0-9_]*", method):
        return f"m-{method}"
    return f"m-x{hashlib.sha256(method.encode()).hexdigest()[:12]}"


def css(methods: Iterable[str]) -> tuple[str, str]:
    """Declarations of the methods' colours, for light and for dark pages."""
    styles = {variable(method): style(method) for method in sorted(set(methods))}
    light = "".join(f"--{name}:{found.light};" for name, found in styles.items())
    dark = "".join(f"--{name}:{found.dark};" for name, found in styles.items())
    return light, dark


def corners(method: str) -> tuple[tuple[float, float], ...] | None:
    """Corners of a method's shape around 0, y downwards, in units of the marker's size; ``None`` for a circle."""
    return _POLYGONS.get(style(method).shape)


def swatch(method: str, variant: int = 0) -> Markup:
    """A method's marker, for tables.

    Args:
        method: Name.
        variant: From the second variant (1) on, its number is in the marker, as in the figures.
    """
    middle, size = 8.0, 6.8 if has_room(method) else 6.0
    fill = f"fill:var(--{variable(method)})"
    if (found := corners(method)) is None:
        mark = element("circle", cx=middle, cy=middle, r=size, style=fill)
    else:
        points = " ".join(f"{middle + size * dx:.1f},{middle + size * dy:.1f}" for dx, dy in found)
        mark = element("polygon", points=points, style=fill)
    digits = Markup()
    if words := number(variant):
        height = 9.0 if has_room(method) and len(words) == 1 else 7.5
        look = f"fill:var(--page);font-size:{height:g}px;font-weight:700"
        digits = element("text", words, x=middle, y=middle + 0.36 * height, text_anchor="middle", style=look)
    return element("svg", mark, digits, viewBox="0 0 16 16", class_="fig swatch", aria_hidden="true")


def has_room(method: str) -> bool:
    """Whether a number fits into the method's shape; a triangle, star or cross must be larger for one."""
    return style(method).shape in ("circle", "square", "diamond", "pentagon", "hexagon")


def number(variant: int) -> str:
    """What stands in the marker of a variant: nothing for the first one, then 2, 3 and so on."""
    return str(variant + 1) if variant else ""
