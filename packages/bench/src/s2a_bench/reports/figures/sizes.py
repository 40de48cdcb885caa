"""Figures of an ablation over one or two sizes: curves with their spread, and a heat map."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence

from s2a_bench.reports.figures.axes import draw_grid, name_places, scale_linear
from s2a_bench.reports.figures.canvas import HEIGHT, SMALL, WIDTH, open_canvas
from s2a_bench.reports.figures.named_lines import BOTTOM, LEFT, RIGHT, TOP, draw_named_lines
from s2a_bench.reports.markup import Markup

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


@dataclasses.dataclass(frozen=True)
class Tile:
    """One combination of two sizes.

    Attributes:
        value: Accuracy, percent; ``None``: there is none.
        hint: What appears when it is pointed at, after the two sizes.
        text: In the place of a value.
    """

    value: float | None
    hint: str
    text: str = ""


def draw_curves(lines: Sequence[Curve], *, title: str, x_label: str) -> Markup:
    """Accuracy over a size; the values of the size are equally spaced, as they are usually doubled.

    Args:
        lines: At least one, each with a point or more.
        title: For screen readers.
        x_label: Below the horizontal axis.
    """
    with open_canvas() as canvas:
        axes = canvas.add_axes(LEFT, RIGHT + NAMES_WIDTH, TOP, BOTTOM)
        values = sorted({x for line in lines for x, _, _ in line.points})
        axes.set_xlim(-0.5, len(values) - 0.5)
        name_places(axes, "x", [f"{value:g}" for value in values])
        scale_linear(axes, "y", [v for c in lines for _, y, s in c.points for v in (y - (s or 0), y + (s or 0))], 0.06)
        draw_grid(canvas, axes, "y")
        canvas.label(axes, x_label, "accuracy, %")
        placed = [(line.name, [(values.index(x), y) for x, y, _ in line.points]) for line in lines]
        colours = draw_named_lines(canvas, axes, placed, NAMES_WIDTH)
        for line, (_, places), colour in zip(lines, placed, colours, strict=True):
            for (place, y), (x, _, spread) in zip(places, line.points, strict=True):
                if spread:
                    axes.plot([place, place], [y - spread, y + spread], color=colour, linewidth=1.5, alpha=0.75)
                text = f"{line.name}: accuracy {y:.1f}{f' ± {spread:.1f}' if spread is not None else ''} % at {x:g}"
                canvas.draw_point(axes, place, y, 3.5, colour, title=text)
        return canvas.to_svg(title)


def draw_heat_map(tiles: Mapping[tuple[float, float], Tile], *, title: str, x_label: str, y_label: str) -> Markup:
    """Accuracy of every combination of two sizes, as tiles with their number; one without a value is dashed.

    Args:
        tiles: ``(x, y)`` to a tile; at least one with a value. A combination that is not there was not run.
        title: For screen readers.
        x_label: Below the horizontal axis.
        y_label: Above the vertical axis.
    """
    from matplotlib.patches import Rectangle

    across, up = sorted({x for x, _ in tiles}), sorted({y for _, y in tiles})
    known = [tile.value for tile in tiles.values() if tile.value is not None]
    low, high = min(known), max(known)
    with open_canvas() as canvas:
        axes = canvas.add_axes(LEFT, RIGHT, TOP, BOTTOM)
        axes.set(xlim=(-0.5, len(across) - 0.5), ylim=(-0.5, len(up) - 0.5))
        name_places(axes, "x", [f"{x:g}" for x in across])
        name_places(axes, "y", [f"{y:g}" for y in up])
        canvas.label(axes, x_label, y_label)
        wide = (WIDTH - LEFT - RIGHT) / len(across)
        gap_x, gap_y = 1 / wide, len(up) / (HEIGHT - TOP - BOTTOM)
        size = min(SMALL, wide / 3.4)
        for (i, x), (j, y) in itertools.product(enumerate(across), enumerate(up)):
            tile = tiles.get((x, y), Tile(None, "not run", "not run"))
            share = 0.0 if tile.value is None or high == low else (tile.value - low) / (high - low)
            box = (i - 0.5 + gap_x, j - 0.5 + gap_y), 1 - 2 * gap_x, 1 - 2 * gap_y
            if tile.value is None:
                look = {"facecolor": "none", "edgecolor": canvas.ink("front"), "linestyle": (0, (3, 3))}
                class_, text, colour = "none", tile.text if wide > 50 else "·", canvas.ink("quiet")
            else:
                look = {"facecolor": canvas.ink("tile"), "alpha": 0.06 + 0.69 * share, "linewidth": 0}
                # The strongest tile is still light, or dark, enough for the text on it (a contrast of 4.5 and more).
                class_, text, colour = "tile", f"{tile.value:.1f}", canvas.ink()
            hint = f"{x_label.partition(' (')[0]} {x:g}, {y_label.partition(' (')[0]} {y:g}: {tile.hint}"
            canvas.tag(axes.add_patch(Rectangle(*box, **look)), title=hint, class_=class_)
            words = axes.text(i, j, text, ha="center", va="center", fontsize=size, color=colour)
            canvas.tag(words, title=hint)
        return canvas.to_svg(title)
