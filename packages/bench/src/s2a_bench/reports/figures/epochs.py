"""Learning curves: of one training, of the methods of a sweep, and the range test of a learning rate."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from s2a_bench.reports.figures import method_styles
from s2a_bench.reports.figures.axes import draw_grid, scale_linear, scale_log
from s2a_bench.reports.figures.canvas import SMALL, open_canvas
from s2a_bench.reports.figures.named_lines import BOTTOM, LEFT, RIGHT, TOP, draw_named_lines
from s2a_bench.reports.markup import Markup, element

NAMES_WIDTH = 74.0
"""Width right of the curves for their names."""

MARKED_EPOCHS = 30
"""Up to so many epochs, each has a point to be pointed at; of more, the best and the last."""

PANEL_WIDTH, PANEL_HEIGHT, ACROSS = 220.0, 160.0, 3
"""Size of a panel of many, and how many are beside each other in a file."""

DASHES = ("solid", (0, (5, 2)), (0, (2, 2)), (0, (6, 2, 1, 2)))
"""Lines of the variants of a method, which share its colour."""


@dataclasses.dataclass(frozen=True)
class Line:
    """A curve over the epochs.

    Attributes:
        name: At its end, or in the key.
        points: ``(epoch, value)`` by rising epoch, at least one.
        method: Gives it its colour, in panels.
        dashes: Which of ``DASHES`` it has, in panels.
        seeds: How many trainings it is the mean of.
    """

    name: str
    points: Sequence[tuple[float, float]]
    method: str = ""
    dashes: int = 0
    seeds: int = 1


def draw_epochs(lines: Sequence[Line], *, title: str, y_label: str, unit: str = "", best: int | None = None) -> Markup:
    """Curves over the epochs, the best epoch marked by a vertical line.

    Args:
        lines: At least one.
        title: For screen readers.
        y_label: Above the vertical axis.
        unit: Behind a value that is pointed at, with a space in front.
        best: The best epoch.
    """
    last = int(max(x for line in lines for x, _ in line.points))
    with open_canvas() as canvas:
        axes = canvas.add_axes(LEFT, RIGHT + NAMES_WIDTH, TOP, BOTTOM)
        axes.set(xlim=(1, max(2, last)), xticks=_epoch_ticks(last))
        scale_linear(axes, "y", [y for line in lines for _, y in line.points], 0.06)
        draw_grid(canvas, axes, "y")
        canvas.label(axes, "epoch", y_label)
        if best is not None:
            axes.axvline(best, color=canvas.ink("front"), linestyle=(0, (3, 4)), linewidth=1)
            x = float(axes.transData.transform((best, 0))[0])
            late = best > (1 + last) / 2
            canvas.write(x + (-5 if late else 5), TOP - 2, f"best epoch {best}", ha="right" if late else "left")
        colours = draw_named_lines(canvas, axes, [(line.name, line.points) for line in lines], NAMES_WIDTH)
        for line, colour in zip(lines, colours, strict=True):
            for x, y in line.points:
                if len(line.points) <= MARKED_EPOCHS or x in (best, line.points[-1][0]):
                    text = f"{line.name}, epoch {x:g}: {y:.4g}{unit}"
                    canvas.draw_point(axes, x, y, 2.5, colour, title=text)
        return canvas.to_svg(title)


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
    with open_canvas() as canvas:
        axes = canvas.add_axes(LEFT, RIGHT, TOP, BOTTOM)
        scale_log(axes, "x", [*(rate for rate, _ in shown), chosen])
        scale_linear(axes, "y", [loss for _, loss in shown], 0.06)
        draw_grid(canvas, axes, "y")
        canvas.label(axes, "learning rate", "loss")
        axes.axvline(chosen, color=canvas.ink("front"), linestyle=(0, (3, 4)), linewidth=1)
        x = float(axes.transData.transform((chosen, shown[0][1]))[0])
        late = x > canvas.width / 2
        canvas.write(x + (-5 if late else 5), TOP - 2, f"chosen: {chosen:.2g}", ha="right" if late else "left")
        colour = canvas.ink("curve0")
        (path,) = axes.plot(*zip(*shown, strict=True), color=colour, linewidth=2)
        canvas.tag(path, class_="curve")
        for rate, loss in shown:
            canvas.draw_point(axes, rate, loss, 2.0, colour, title=f"learning rate {rate:.2g}: loss {loss:.4g}")
        return canvas.to_svg(title)


def draw_panel(name: str, lines: Sequence[Line], *, y_label: str, unit: str = "") -> Markup:
    """A small figure of one dataset's curves, a line for each method.

    Args:
        name: Of the dataset, above it.
        lines: At least one.
        y_label: What the values are, for screen readers and the mouse.
        unit: Behind a value that is pointed at, with a space in front.
    """
    last = int(max(x for line in lines for x, _ in line.points))
    with open_canvas(PANEL_WIDTH, PANEL_HEIGHT) as canvas:
        axes = canvas.add_axes(36.0, 8.0, 22.0, 20.0)
        axes.set(xlim=(1, max(2, last)), xticks=_epoch_ticks(last, 5))
        scale_linear(axes, "y", [y for line in lines for _, y in line.points], 0.03, most=4)
        draw_grid(canvas, axes, "y")
        canvas.write(4, 13, _shorten(name), color=canvas.ink(), fontweight="bold")
        for line in lines:
            start, end = line.points[0], line.points[-1]
            means = f", mean of {line.seeds} seeds" if line.seeds > 1 else ""
            text = f"{line.name}, {name}: {y_label} {start[1]:.4g}{unit} after epoch {start[0]:g}, "
            text += f"{end[1]:.4g}{unit} after epoch {end[0]:g}{means}"
            colour = canvas.ink(method_styles.variable(line.method))
            dashes = DASHES[line.dashes]
            (path,) = axes.plot(*zip(*line.points, strict=True), color=colour, linewidth=1.5, linestyle=dashes)
            canvas.tag(path, title=text, class_="curve")
        return canvas.to_svg(f"{y_label} over the epochs, {name}")


def draw_key(lines: Sequence[Line], *, note: str) -> Markup:
    """The key of panels, as large as one: a sample of each line and its name.

    Args:
        lines: One of each, up to 12.
        note: Above them.
    """
    with open_canvas(PANEL_WIDTH, PANEL_HEIGHT) as canvas:
        canvas.write(4, 13, note)
        step = min(16.0, (PANEL_HEIGHT - 22.0) / len(lines))
        for row, line in enumerate(lines):
            y = 22.0 + step * (row + 0.75)
            colour = canvas.ink(method_styles.variable(line.method))
            level = PANEL_HEIGHT - y + 4
            dashes = DASHES[line.dashes]
            canvas.draw_line((6, level), (34, level), color=colour, linewidth=1.8, linestyle=dashes)
            text = canvas.write(40, y, _shorten(line.name), color=colour, fontsize=min(SMALL, step), fontweight="bold")
            canvas.tag(text, title=line.name, class_="name")
        return canvas.to_svg(f"Key: {', '.join(line.name for line in lines)}")


def join_panels(panels: Sequence[Markup], title: str) -> Markup:
    """Panels of ``draw_panel`` and ``draw_key`` as one drawing, row by row."""
    rows = -(-len(panels) // ACROSS)
    across = min(ACROSS, len(panels))
    placed = [
        Markup(panel.replace("<svg ", f'<svg x="{i % ACROSS * PANEL_WIDTH:g}" y="{i // ACROSS * PANEL_HEIGHT:g}" '
                             f'width="{PANEL_WIDTH:g}" height="{PANEL_HEIGHT:g}" ', 1).replace('class="fig" ', "", 1))
        for i, panel in enumerate(panels)
    ]  # fmt: skip
    box = f"0 0 {across * PANEL_WIDTH:g} {rows * PANEL_HEIGHT:g}"
    return element("svg", *placed, viewBox=box, class_="fig", role="img", aria_label=title)


def _shorten(name: str) -> str:
    """A name that fits into a panel: of a long one the beginning."""
    return name if len(name) < 29 else f"{name[:27]}…"


def _epoch_ticks(last: int, most: int = 8) -> list[int]:
    step = next(unit for unit in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 10**9) if last / unit <= most)
    return sorted({1, *range(step, last + 1, step)} - ({step} if 1 < step <= 2 else set()))
