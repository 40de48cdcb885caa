"""The confusion matrix as a heat map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from s2a_bench.reports.figures.canvas import SMALL, open_canvas
from s2a_bench.reports.markup import Markup

NAMED_CLASSES = 30
"""Up to so many classes, their names stand at the axes, and counts in the tiles."""

NAME_CHARACTERS = 18


def draw_confusion(counts: Mapping[tuple[int, int], int], classes: Sequence[str], *, title: str) -> Markup:
    """The confusion matrix as tiles: rows are true classes, columns what the model names, shares of the row.

    Args:
        counts: ``(true, named)`` to a number of images above 0.
        classes: Their names.
        title: For screen readers.
    """
    from matplotlib.patches import Rectangle

    rows: dict[int, int] = {}
    for (true, _), count in counts.items():
        rows[true] = rows.get(true, 0) + count
    named = len(classes) <= NAMED_CLASSES
    names = [name if len(name) <= NAME_CHARACTERS else f"{name[: NAME_CHARACTERS - 1].rstrip()}…" for name in classes]
    side = 560.0
    with open_canvas(1.0, 1.0) as canvas:
        step = side / len(classes)
        size = min(SMALL, 0.72 * step)
        edge = 26.0 + (max(canvas.measure([name], size)[0] for name in names) + 6 if named else 0)
        canvas.resize(side + edge + 4, side + edge + 4)
        axes = canvas.add_axes(edge, 4, edge, 4)
        axes.set(xlim=(-0.5, len(classes) - 0.5), ylim=(len(classes) - 0.5, -0.5), xticks=[], yticks=[])
        canvas.write(edge, 13, "named by the model →")
        canvas.write(13, edge, "← true class", rotation=90, ha="right", va="top", rotation_mode="anchor")
        frame = Rectangle((-0.5, -0.5), len(classes), len(classes), facecolor="none", edgecolor=canvas.ink("grid"))
        axes.add_patch(frame).set_clip_on(False)
        for index in range(len(classes)) if named else ():
            words = {"fontsize": size, "color": canvas.ink(), "clip_on": False}
            row = axes.text(-0.5 - 5 / step, index, names[index], ha="right", va="center_baseline", **words)
            column = axes.text(index, -0.5 - 5 / step, names[index], rotation=90, ha="center", va="bottom", **words)
            for text in (row, column):
                canvas.tag(text, title=classes[index])
        for (true, other), count in sorted(counts.items()):
            share = count / rows[true]
            ink = canvas.ink("tile" if true == other else "wrong")
            box = Rectangle((other - 0.5, true - 0.5), 1, 1, facecolor=ink, alpha=0.25 + 0.5 * share, linewidth=0)
            hint = f"{classes[true]} named {classes[other]}: {count} of {rows[true]} images"
            canvas.tag(axes.add_patch(box), title=hint, class_="tile" if true == other else "tile wrong")
            if named:
                words = {"fontsize": size, "ha": "center", "va": "center_baseline", "color": canvas.ink()}
                canvas.tag(axes.text(other, true, str(count), **words), title=hint)
        return canvas.to_svg(title)
