"""Size of the figures and their axes: from values to positions in the drawing, with ticks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

WIDTH, HEIGHT = 440.0, 330.0
LEFT, RIGHT, TOP, BOTTOM = 46.0, 14.0, 30.0, 42.0
"""Size of a drawing and of the margins around its plot, in SVG units; y grows downwards."""

Axis = tuple[Callable[[float], float], list[tuple[float, str]]]
"""From a value to its position, and the ticks as ``(value, text)``."""


def linear_axis(values: Sequence[float], start: float, end: float, pad: float) -> Axis:
    """A linear axis with at most 7 ticks at steps of 1, 2 or 5 times a power of ten.

    Position of ``v``: ``start + (v - low) / (high - low) * (end - start)``.

    Args:
        values: What the axis must cover.
        start: Position of its lower end.
        end: Position of its upper end.
        pad: Free share of the range below the values, twice of it above. With 0 the axis begins at 0, so that lengths
            compare.
    """
    low, high = min(values), max(values)
    free = (high - low) * pad or 1.0
    # Twice as much above, where labels crowd.
    low, high = (low - free, high + 2 * free) if pad else (0.0, high * 1.06 or 1.0)
    # The smallest step of 1, 2, 5 or 10 times the unit that gives at most about six intervals.
    unit = 10 ** math.floor(math.log10((high - low) / 5))
    step = next(unit * k for k in (1, 2, 5, 10) if unit * k >= (high - low) / 6)
    decimals = max(0, -math.floor(math.log10(step)))
    ticks = [k * step for k in range(math.ceil(low / step), math.floor(high / step) + 1)]
    return (lambda v: start + (v - low) / (high - low) * (end - start)), [(t, f"{t:,.{decimals}f}") for t in ticks]


def log_axis(values: Sequence[float], start: float, end: float, pad: float) -> Axis:
    """A logarithmic axis for values above 0, with ticks at 1, 2, 5 or 1, 3 or 1 times powers of ten, as space allows.

    Position of ``v``: ``start + (log10(v) - low) / (high - low) * (end - start)``; arguments as ``linear_axis``.
    """
    low, high = math.log10(min(values)) - 0.12 - pad, math.log10(max(values)) + 0.12 + pad
    decades = range(math.floor(low), math.ceil(high) + 1)
    leads = (1,) if high - low > 3 else (1, 3) if high - low > 1.5 else (1, 2, 5)
    ticks = [lead * 10.0**d for d in decades for lead in leads if low <= math.log10(lead * 10.0**d) <= high]
    return (
        lambda v: start + (math.log10(v) - low) / (high - low) * (end - start),
        [(t, f"{t:,.0f}" if t >= 1 else f"{t:.{-math.floor(math.log10(t) + 1e-9)}f}") for t in ticks],
    )
