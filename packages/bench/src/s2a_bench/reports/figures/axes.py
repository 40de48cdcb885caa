"""Axes of the figures: limits with room for labels, few ticks, quiet lines."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from s2a_bench.reports.figures.canvas import Canvas

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def scale_linear(axes: Axes, which: str, values: Sequence[float], pad: float, most: int = 7) -> None:
    """A linear axis with at most about ``most`` ticks at steps of 1, 2 or 5 times a power of ten.

    Args:
        axes: matplotlib's.
        which: ``"x"`` or ``"y"``.
        values: What the axis must cover.
        pad: Free share of the range below the values, twice of it above, where labels crowd. With 0 the axis begins
            at 0, so that lengths compare.
        most: Number of ticks.
    """
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    free = (high - low) * pad or max(abs(high) * pad, 1e-6 if pad and high else 0.5)
    low, high = (low - free, high + 2 * free) if pad else (0.0, high * 1.06 or 1.0)
    axes.set(**{f"{which}lim": (low, high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(MaxNLocator(most, steps=[1, 2, 5, 10]))
    axis.set_major_formatter(_tick_texts([t for t in axis.get_major_locator()() if low <= t <= high]))


def scale_log(axes: Axes, which: str, values: Sequence[float]) -> None:
    """A logarithmic axis for values above 0: ticks at 1, 2, 5 or 1, 3 or 1 times powers of ten, as space allows."""
    from matplotlib.ticker import FixedLocator, NullLocator

    low, high = math.log10(min(values)) - 0.12, math.log10(max(values)) + 0.12
    decades = range(math.floor(low), math.ceil(high) + 1)
    leads = (1,) if high - low > 3 else (1, 3) if high - low > 1.5 else (1, 2, 5)
    ticks = [lead * 10.0**d for d in decades for lead in leads if low <= math.log10(lead * 10.0**d) <= high]
    axes.set(**{f"{which}scale": "log", f"{which}lim": (10**low, 10**high)})
    axis = axes.xaxis if which == "x" else axes.yaxis
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(lambda value, _: format_power(value))


def name_places(axes: Axes, which: str, names: Sequence[str]) -> None:
    """Names at 0, 1, 2 and so on in the place of numbers."""
    axes.set(**{f"{which}ticks": range(len(names)), f"{which}ticklabels": names})


def draw_grid(canvas: Canvas, axes: Axes, which: str) -> None:
    """Thin lines at the ticks of an axis (``"x"``, ``"y"``, ``"both"``)."""
    axes.grid(True, axis=which, color=canvas.ink("grid"), linewidth=1, clip_on=False)  # type: ignore[arg-type]


def format_power(value: float) -> str:
    """``0.05``, ``5``, ``5,000``; very small ones as ``5e-05``."""
    if value >= 1:
        return f"{value:,.0f}"
    return f"{value:.{-math.floor(math.log10(value) + 1e-9)}f}" if value >= 1e-3 else f"{value:.0e}"


def _tick_texts(ticks: Sequence[float]) -> Callable[[float, object], str]:
    step = min((b - a for a, b in itertools.pairwise(ticks)), default=1.0)
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return lambda value, _: f"{value:,.{decimals}f}"
