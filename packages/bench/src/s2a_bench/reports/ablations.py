"""The paper's Figure 5 for a section: accuracy over the rank of S2A's prompt and the reduction of its side branch."""

from __future__ import annotations

import collections
import dataclasses

from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.statistics import Stat
from s2a_bench.reports.svg.curves import Curve
from s2a_bench.reports.variants import canonical_text

RANK, REDUCTION = "lrp_rank", "lsb_reduction"
DEFAULTS = {RANK: 30, REDUCTION: 8}
"""The paper's values (section 4.1); a curve over one size holds the other one there if possible."""


@dataclasses.dataclass(frozen=True)
class SizeSlice:
    """Records in which one size varies and the other is fixed.

    Attributes:
        key: The size that varies.
        held: The other size and its value.
        curves: Per group of tasks, or the mean where there is one group.
        rows: Of their points.
    """

    key: str
    held: tuple[str, float]
    curves: tuple[Curve, ...]
    rows: tuple[MethodRow, ...]


def size_grid(section: Section) -> dict[tuple[float, float], MethodRow]:
    """``(rank, reduction)`` to row, for the largest set of S2A rows that share all other options.

    Rows with a size of 0, which switches that part off, are left out.
    """
    found: dict[str, dict[tuple[float, float], MethodRow]] = collections.defaultdict(dict)
    for row in section.rows:
        records = [r for label, r in section.records if label == row.label and r.status == "done"]
        if row.method != "s2a" or row.averages is None or not records:
            continue
        config = records[0].method_config
        point = tuple(config.get(key, DEFAULTS[key]) for key in (RANK, REDUCTION))
        if all(isinstance(size, int) and size > 0 for size in point):
            rest = canonical_text(
                {k: v for k, v in config.items() if k not in DEFAULTS} | {"": records[0].train_config}
            )
            found[rest].setdefault((float(point[0]), float(point[1])), row)
    return max(found.values(), key=len, default={})


def find_slices(section: Section) -> list[SizeSlice]:
    """A slice for each size with at least three values at one value of the other size."""
    points = size_grid(section)
    found = []
    for axis, key in enumerate((RANK, REDUCTION)):
        other = (RANK, REDUCTION)[1 - axis]
        held = collections.Counter(point[1 - axis] for point in points)
        usual = float(DEFAULTS[other])
        value = max(held, key=lambda v: (held[v] >= 3 and v == usual, held[v], -v), default=usual)
        line = sorted((point[axis], row) for point, row in points.items() if point[1 - axis] == value)
        if len({x for x, _ in line}) >= 3:
            curves, rows = _make_curves(line, section), tuple(row for _, row in line)
            found.append(SizeSlice(key, (other, value), curves, rows))
    return found


def _make_curves(line: list[tuple[float, MethodRow]], section: Section) -> tuple[Curve, ...]:
    def points(pick: str | None) -> tuple[tuple[float, float, float | None], ...]:
        found: list[tuple[float, Stat]] = []
        for x, row in line:
            assert row.averages is not None
            found.append((x, row.averages.groups[pick] if pick else row.averages.mean_of_tasks))
        return tuple((x, stat.mean, stat.std) for x, stat in found)

    if len(section.groups) == 1:
        return (Curve("mean", points(None)),)
    return tuple(Curve(group, points(group)) for group in section.groups)


def describe_change(part: SizeSlice) -> str:
    """Change of each curve from the fewest parameters to the most, as a sentence."""
    # A larger reduction is a smaller branch.
    first, last = (0, -1) if part.key == RANK else (-1, 0)
    steps = ", ".join(f"{c.name} {c.points[last][1] - c.points[first][1]:+.1f}" for c in part.curves)
    start, end = (part.curves[0].points[k][0] for k in (first, last))
    return f"From {part.key} {start:g} to {end:g}: {steps} points"
