"""Places the labels of a scatter plot so that they cover neither markers nor each other.

Greedy placement over a fixed list of candidate positions, as in Christensen, Marks and Shieber, "An empirical study of
algorithms for point-feature label placement", ACM Transactions on Graphics 14(3), 1995, with positions at growing
distance. The same marks give the same places, and a label that has no free place is left out. (The library adjustText
moves labels by forces until it runs out of time or steps, leaves out none, and imports ``pyplot``.)
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Sequence

MANY_MARKS, LABELLED_OF_FRONT = 14, 5
"""Above ``MANY_MARKS``, only ``LABELLED_OF_FRONT`` of the Pareto front and the best of other methods are labelled."""

MANY_VARIANTS, NEAR_PLACES = 3, 16
"""Above ``MANY_VARIANTS`` variants of a method, all but the best try only the ``NEAR_PLACES`` nearest places."""


@dataclasses.dataclass(frozen=True)
class Box:
    """An axis-parallel rectangle in the drawing, in points."""

    left: float
    bottom: float
    right: float
    top: float

    def overlaps(self, other: Box) -> bool:
        """Whether the interiors intersect."""
        side_by_side = self.left < other.right and other.left < self.right
        return side_by_side and self.bottom < other.top and other.bottom < self.top

    def contains(self, other: Box) -> bool:
        """Whether the other box lies inside."""
        across = self.left <= other.left and other.right <= self.right
        return across and self.bottom <= other.bottom and other.top <= self.top

    def distance(self, x: float, y: float) -> float:
        """Euclidean distance from a point to the box; 0 inside."""
        return math.hypot(max(self.left - x, 0, x - self.right), max(self.bottom - y, 0, y - self.top))

    def is_crossed_by(self, path: Sequence[tuple[float, float]]) -> bool:
        """Whether a line through these points passes over the box."""
        # Tested at 33 points of each segment.
        for (x0, y0), (x1, y1) in itertools.pairwise(path):
            for k in range(33):
                x, y = x0 + (x1 - x0) * k / 32, y0 + (y1 - y0) * k / 32
                if self.left < x < self.right and self.bottom < y < self.top:
                    return True
        return False


@dataclasses.dataclass(frozen=True)
class Label:
    """A label to be placed.

    Attributes:
        method: Whose it is.
        value: The best of a method's is labelled first.
        anchor: Position of its mark, in points.
        size: Width and height of its text.
    """

    method: str
    value: float
    anchor: tuple[float, float]
    size: tuple[float, float]


def choose_labelled(methods: Sequence[str], values: Sequence[float], front: Sequence[int]) -> list[int]:
    """Indices of the marks that get a label: all of up to ``MANY_MARKS``, else a selection.

    Args:
        methods: Of all marks.
        values: Of all marks.
        front: Indices of the Pareto front.
    """
    if len(methods) <= MANY_MARKS:
        return list(range(len(methods)))
    # A few of the front, spread over it, and the best mark of every method that is not among them.
    few = min(LABELLED_OF_FRONT, len(front))
    chosen = {front[round(k * (len(front) - 1) / max(1, few - 1))] for k in range(few)}
    for method in sorted(set(methods) - {methods[i] for i in chosen}):
        chosen.add(max((i for i, name in enumerate(methods) if name == method), key=lambda i: (values[i], -i)))
    return sorted(chosen)


def place_labels(
    labels: Sequence[Label],
    anchors: Sequence[tuple[float, float]],
    taken: Sequence[Box],
    path: Sequence[tuple[float, float]],
    plot: Box,
) -> list[Box | None]:
    """Places labels one after the other, marks with most neighbours first.

    A candidate place is allowed if it lies inside the plot and overlaps no box of ``taken`` and no placed label. Of the
    allowed ones the label takes that of least cost

        ``distance to its mark + 45 * [another mark is nearly as close] + 12 * [it covers the front]``,

    the earlier one of ``_list_places`` if equal. A label without an allowed place is left out. Of many variants of a
    method only the best may have a label farther away.

    Args:
        labels: To be placed.
        anchors: Positions of all marks, those without a label too.
        taken: Boxes that must stay free.
        path: Corners of the line through the Pareto front.
        plot: Where labels may lie.

    Returns:
        A box for each label; ``None`` where there is no place.
    """
    used, placed = list(taken), dict[int, Box]()
    variants = collections.Counter(label.method for label in labels)
    best = {
        max((i for i, each in enumerate(labels) if each.method == method), key=lambda i: (labels[i].value, -i))
        for method in variants
    }
    crowds = [sum(math.dist(label.anchor, other) < 60 for other in anchors) for label in labels]
    for index in sorted(range(len(labels)), key=lambda i: (-crowds[i], i)):
        label = labels[index]
        places = _list_places(label)
        if variants[label.method] > MANY_VARIANTS and index not in best:
            places = places[:NEAR_PLACES]
        others = [anchor for anchor in anchors if anchor != label.anchor]
        found: list[tuple[float, int, Box]] = []
        for rank, box in enumerate(places):
            if not plot.contains(box) or any(box.overlaps(other) for other in used):
                continue
            # A label nearly as close to another mark would be read as that one's.
            own = box.distance(*label.anchor)
            ambiguous = any(box.distance(*other) < own + 4 for other in others)
            found.append((own + 45 * ambiguous + 12 * box.is_crossed_by(path), rank, box))
        if found:
            placed[index] = min(found)[2]
            used.append(placed[index])
    return [placed.get(index) for index in range(len(labels))]


def leader_line(box: Box, anchor: tuple[float, float]) -> tuple[tuple[float, float], tuple[float, float]] | None:
    """Both ends of a thin line from a mark to its label; none where the label is within 17 points."""
    x, y = anchor
    end = (min(max(x, box.left), box.right), min(max(y, box.bottom + 2), box.top - 2))
    reach = math.dist(anchor, end)
    if reach < 17:
        return None
    return (x + (end[0] - x) * 7 / reach, y + (end[1] - y) * 7 / reach), end


def spread_out(places: Sequence[float], low: float, distance: float = 14.0) -> list[float]:
    """Moves the heights of names at the ends of curves until they are ``distance`` apart and above the plot's edge.

    From top to bottom ``y_k = min(y_k, y_(k-1) - distance)``; then from bottom to top
    ``y_k = max(y_k, y_(k+1) + distance)``, beginning with the edge ``low``.
    """
    order = sorted(range(len(places)), key=lambda i: (-places[i], i))
    found = list(places)
    # Push each name down from the one above it.
    for above, below in itertools.pairwise(order):
        found[below] = min(found[below], found[above] - distance)
    # Push them up again from the lower edge.
    for index in reversed(order):
        found[index] = max(found[index], low)
        low = found[index] + distance
    return found


def wrap(label: str) -> list[str]:
    """A label in at most three lines, broken after commas; the tables have all of a longer one."""
    words = label.split(", ")
    lines = [words[0]]
    for word in words[1:]:
        if len(lines[-1]) + len(word) < 16:
            lines[-1] += f", {word}"
        else:
            lines[-1] += ","
            lines.append(word)
    lines = [*lines[:2], "…"] if len(lines) > 3 else lines
    return [line if len(line) <= 26 else line[:25] + "…" for line in lines]


def _list_places(label: Label) -> list[Box]:
    """Candidate boxes for a label: at 8 growing distances right, left, above, below, then diagonally."""
    (x, y), (width, height) = label.anchor, label.size
    places = []
    for gap in (8.0, 13.0, 20.0, 28.0, 38.0, 50.0, 66.0, 84.0):
        for dx, dy in ((1, 0), (-1, 0), (0, 1), (0, -1), (1, 1), (1, -1), (-1, 1), (-1, -1)):
            reach = gap * (0.7 if dx and dy else 1)
            cx, cy = x + dx * (reach + width / 2), y + dy * (reach - 2 + height / 2)
            places.append(Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2))
    return places
