"""The paper's Figure 5 for a section: accuracy over the rank of S2A's prompt and the reduction of its side branch."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterable, Mapping

from s2a_bench.reports import statistics as stats
from s2a_bench.reports.figures.sizes import Curve
from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.statistics import Stat
from s2a_bench.reports.variants import canonical_text

RANK, REDUCTION = "lrp_rank", "lsb_reduction"
DEFAULTS = {RANK: 30, REDUCTION: 8}
"""The paper's values (section 4.1); a curve over one size holds the other one there if possible."""

Point = tuple[float, float]
"""Rank and reduction."""


@dataclasses.dataclass(frozen=True)
class SizeGrid:
    """Rows that differ in the two sizes only, and the tasks over which they compare.

    Attributes:
        rows: By rank and reduction; a size of 0 switches that part off.
        datasets: Tasks that all of ``rows`` have; means are over them.
        partial: Combinations that lack some of ``datasets``.
    """

    rows: Mapping[Point, MethodRow]
    datasets: tuple[str, ...]
    partial: tuple[Point, ...]

    def stat(self, point: Point, datasets: Iterable[str] | None = None) -> Stat:
        """Mean accuracy over the tasks, or over those of them that are in ``datasets``."""
        wanted = set(self.datasets if datasets is None else datasets)
        found = [self.rows[point].cells[name].stat for name in self.datasets if name in wanted]
        return stats.average_means(stat for stat in found if stat is not None)


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


def find_grid(section: Section) -> SizeGrid | None:
    """The largest set of S2A rows that share all options but the sizes; ``None`` without one.

    Not every row may have every task. Means are over the set ``D`` of tasks that makes most of the records count: of
    the sets that some row has, the one with the largest ``|D| * [number of rows that have all of D]``.
    """
    found: dict[str, dict[Point, MethodRow]] = collections.defaultdict(dict)
    for row in section.rows:
        records = [r for label, r in section.records if label == row.label and r.status == "done"]
        if row.method != "s2a" or not records or not _counted(row):
            continue
        config = records[0].method_config
        point = tuple(config.get(key, DEFAULTS[key]) for key in (RANK, REDUCTION))
        if all(isinstance(size, int) for size in point):
            rest = canonical_text(
                {k: v for k, v in config.items() if k not in DEFAULTS} | {"": records[0].train_config}
            )
            found[rest].setdefault((float(point[0]), float(point[1])), row)
    rows = max(found.values(), key=len, default={})
    if not rows:
        return None
    counted = {point: _counted(row) for point, row in rows.items()}

    def worth(tasks: frozenset[str]) -> tuple[int, int, list[str]]:
        return len(tasks) * sum(tasks <= other for other in counted.values()), len(tasks), sorted(tasks)

    chosen = max(set(counted.values()), key=worth)
    return SizeGrid(
        rows={point: row for point, row in rows.items() if chosen <= counted[point]},
        datasets=tuple(name for name in section.datasets if name in chosen),
        partial=tuple(sorted(point for point in rows if not chosen <= counted[point])),
    )


def _counted(row: MethodRow) -> frozenset[str]:
    return frozenset(name for name, cell in row.cells.items() if cell.counted and cell.stat)


def find_slices(grid: SizeGrid, section: Section) -> list[SizeSlice]:
    """A slice for each size with at least three values at one value of the other size, parts that are off left out."""
    points = [point for point in grid.rows if min(point) > 0]
    found = []
    for axis, key in enumerate((RANK, REDUCTION)):
        other = (RANK, REDUCTION)[1 - axis]
        held = collections.Counter(point[1 - axis] for point in points)
        usual = float(DEFAULTS[other])
        value = max(held, key=lambda v: (held[v] >= 3 and v == usual, held[v], -v), default=usual)
        line = sorted(point for point in points if point[1 - axis] == value)
        if len(line) >= 3:
            rows = tuple(grid.rows[point] for point in line)
            found.append(SizeSlice(key, (other, value), _make_curves(line, axis, grid, section), rows))
    return found


def _make_curves(line: list[Point], axis: int, grid: SizeGrid, section: Section) -> tuple[Curve, ...]:
    def curve(name: str, datasets: Iterable[str]) -> Curve:
        found = [(point[axis], grid.stat(point, datasets)) for point in line]
        return Curve(name, tuple((x, stat.mean, stat.std) for x, stat in found))

    groups = {group: names for group, names in section.groups.items() if set(names) & set(grid.datasets)}
    if len(groups) == 1:
        return (curve("mean", grid.datasets),)
    return tuple(curve(group, names) for group, names in groups.items())


def describe_change(part: SizeSlice) -> str:
    """Change of each curve from the fewest parameters to the most, as a sentence."""
    # A larger reduction is a smaller branch.
    first, last = (0, -1) if part.key == RANK else (-1, 0)
    steps = ", ".join(f"{c.name} {c.points[last][1] - c.points[first][1]:+.1f}" for c in part.curves)
    start, end = (part.curves[0].points[k][0] for k in (first, last))
    return f"From {part.key} {start:g} to {end:g}: {steps} points"
