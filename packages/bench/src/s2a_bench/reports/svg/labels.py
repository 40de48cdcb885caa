"""Places the labels of a scatter plot so that they cover neither markers nor each other.

Greedy placement over a fixed list of candidate positions, as in Christensen, Marks and Shieber, "An empirical study of
algorithms for point-feature label placement", ACM Transactions on Graphics 14(3), 1995, with positions at growing
distance. The same marks give the same places.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence

from s2a_bench.reports.svg.axes import BOTTOM, HEIGHT, TOP, WIDTH
from s2a_bench.reports.svg.elements import Markup, element
from s2a_bench.reports.svg.method_styles import class_name
from s2a_bench.reports.svg.points import Mark

FONT, LINE = 12.0, 14.0
GLYPH_WIDTH = 6.9
"""Width kept free per character at ``FONT``: above the average of the usual interface fonts."""
MANY_MARKS, LABELLED_OF_FRONT = 14, 5
"""Above ``MANY_MARKS``, only ``LABELLED_OF_FRONT`` of the Pareto front and the best of other methods are labelled."""

MANY_VARIANTS, NEAR_PLACES = 3, 16
"""Above ``MANY_VARIANTS`` variants of a method, all but the best try only the ``NEAR_PLACES`` nearest places."""


@dataclasses.dataclass(frozen=True)
class Box:
    """An axis-parallel rectangle in the drawing."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: Box) -> bool:
        """Whether the interiors intersect."""
        side_by_side = self.left < other.right and other.left < self.right
        return side_by_side and self.top < other.bottom and other.top < self.bottom

    def distance(self, x: float, y: float) -> float:
        """Euclidean distance from a point to the box; 0 inside."""
        return math.hypot(max(self.left - x, 0, x - self.right), max(self.top - y, 0, y - self.bottom))

    def is_crossed_by(self, path: Sequence[tuple[float, float]]) -> bool:
        """Whether a line through these points passes over the box."""
        # Tested at 33 points of each segment.
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            for k in range(33):
                x, y = x0 + (x1 - x0) * k / 32, y0 + (y1 - y0) * k / 32
                if self.left < x < self.right and self.top < y < self.bottom:
                    return True
        return False


def choose_labelled(marks: Sequence[Mark], front: Sequence[int]) -> list[int]:
    """Indices of the marks that get a label: all of up to ``MANY_MARKS``, else a selection.

    Args:
        marks: All marks.
        front: Indices of the Pareto front.
    """
    if len(marks) <= MANY_MARKS:
        return list(range(len(marks)))
    # A few of the front, spread over it, and the best mark of every method that is not among them.
    few = min(LABELLED_OF_FRONT, len(front))
    chosen = {front[round(k * (len(front) - 1) / max(1, few - 1))] for k in range(few)}
    for method in sorted({mark.method for mark in marks} - {marks[i].method for i in chosen}):
        chosen.add(max((i for i, mark in enumerate(marks) if mark.method == method), key=lambda i: (marks[i].y, -i)))
    return sorted(chosen)


def place_labels(
    marks: Sequence[Mark],
    anchors: Sequence[tuple[float, float]],
    wanted: Sequence[int],
    taken: list[Box],
    path: Sequence[tuple[float, float]],
) -> list[Markup]:
    """Places labels one after the other, marks with most neighbours first.

    A candidate place is allowed if it lies inside the plot and overlaps no box of ``taken``, to which every placed
    label is added. Of the allowed ones the label takes that of least cost

        ``distance to its mark + 45 * [another mark is nearly as close] + 12 * [it covers the front]``,

    the earlier one of ``_label_places`` if equal. A label without an allowed place is left out; the tooltip has it. Of
    many variants of a method only the best may have a label farther away.

    Args:
        marks: All marks.
        anchors: Their positions in the drawing.
        wanted: Indices of the marks to label.
        taken: Boxes that must stay free; extended by the placed labels.
        path: Corners of the line through the Pareto front.
    """
    # Variants per method, and the index of the best of each.
    variants = collections.Counter(marks[index].method for index in wanted)
    best = {
        max((i for i in wanted if marks[i].method == method), key=lambda i: (marks[i].y, -i)) for method in variants
    }
    # Size of each label, and how many marks are within 60 units.
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
        found: list[tuple[float, int, Box]] = []
        places = _label_places(x, y, width, height)
        if variants[marks[index].method] > MANY_VARIANTS and index not in best:
            places = places[:NEAR_PLACES]
        for rank, box in enumerate(places):
            inside = box.left >= 2 and box.right <= WIDTH - 2 and box.top >= TOP - 8 and box.bottom <= HEIGHT - BOTTOM
            if not inside or any(box.overlaps(other) for other in taken):
                continue
            # A label nearly as close to another mark would be read as that one's.
            own = box.distance(x, y)
            ambiguous = any(box.distance(*other) < own + 4 for other in others)
            found.append((own + 45 * ambiguous + 12 * box.is_crossed_by(path), rank, box))
        if found:
            # Draw it, with a leader line if it is far away.
            box = min(found)[2]
            taken.append(box)
            lead = _leader_line(box, x, y)
            middle = (box.left + box.right) / 2
            words = [
                element("text", line, x=middle, y=box.top + LINE * row + FONT - 1, text_anchor="middle", class_="name")
                for row, line in enumerate(lines)
            ]
            placed.append(element("g", *lead, *words, class_=class_name(marks[index].method)))
    return placed


def _label_places(x: float, y: float, width: float, height: float) -> list[Box]:
    """Candidate boxes for a label: at 8 growing distances right, left, above, below, then diagonally."""
    places = []
    for gap in (8.0, 13.0, 20.0, 28.0, 38.0, 50.0, 66.0, 84.0):
        for dx, dy in ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1)):
            reach = gap * (0.7 if dx and dy else 1)
            cx, cy = x + dx * (reach + width / 2), y + dy * (reach - 2 + height / 2)
            places.append(Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return places


def _leader_line(box: Box, x: float, y: float) -> list[Markup]:
    """A thin line from a mark to its label; none where the label is within 17 units."""
    end = (min(max(x, box.left), box.right), min(max(y, box.top + 2), box.bottom - 2))
    reach = math.dist((x, y), end)
    if reach < 17:
        return []
    start = (x + (end[0] - x) * 7 / reach, y + (end[1] - y) * 7 / reach)
    return [element("line", x1=start[0], y1=start[1], x2=end[0], y2=end[1], class_="lead")]


def _wrap_label(label: str) -> list[str]:
    """Wraps a label to at most three lines with shortened options; the tables have the full one."""
    head, bracket, tail = label.partition(" (")
    words = [head, *map(_shorten_option, tail.removesuffix(")").split(", "))] if bracket else label.split(", ")
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
