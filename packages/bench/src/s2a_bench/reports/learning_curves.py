"""Learning curves of a section: a panel for each dataset, a line for each method."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import statistics
from collections.abc import Sequence

from s2a_bench.reports.figures.epochs import DASHES, Line, draw_key, draw_panel, join_panels
from s2a_bench.reports.markup import Markup, element
from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.text import truncate_list

MOST_PANELS, MOST_LINES = 11, 12
"""Datasets and rows that are drawn at most; with the key, the panels fill rows of 3 and of 4."""

VALUES = (("loss", "loss", "training loss", ""), ("val", "val_accuracy", "validation accuracy", " %"))
"""Name of the picture, key of the records' curves, words and unit."""


@dataclasses.dataclass(frozen=True)
class LearningCurves:
    """Panels of one value.

    Attributes:
        name: ``loss`` or ``val``.
        caption: Below them.
        inline: For a page: as many panels beside each other as it has room for.
        joined: One drawing.
    """

    name: str
    caption: str
    inline: Markup
    joined: Markup


def draw_learning_curves(section: Section) -> list[LearningCurves]:
    """Training loss and validation accuracy over the epochs, where records have them for two epochs or more."""
    found = []
    for name, key, words, unit in VALUES:
        lines = {
            (row.label, dataset): line
            for row in section.rows
            for dataset in section.datasets
            if (line := _average(row, dataset, key)) is not None
        }
        if not lines:
            continue
        dashes = dict(_choose_rows([row for row in section.rows if any(label == row.label for label, _ in lines)]))
        lines = {(n, d): dataclasses.replace(v, dashes=dashes[n]) for (n, d), v in lines.items() if n in dashes}
        datasets = [dataset for dataset in section.datasets if any(dataset == d for _, d in lines)]
        shown = _choose_datasets(section, datasets)
        panels = [
            draw_panel(d, [lines[n, d] for n in dashes if (n, d) in lines], y_label=words, unit=unit) for d in shown
        ]
        samples = [next(lines[n, d] for d in datasets if (n, d) in lines) for n in dashes]
        panels.append(draw_key(samples, note=f"{words}{',' if unit else ''}{unit} over the epochs"))
        caption = f"{words.capitalize()} over the epochs"
        caption += ", mean over seeds." if any(line.seeds > 1 for line in lines.values()) else "."
        left = [d for d in datasets if d not in shown]
        caption += f" {len(shown)} of {len(datasets)} datasets; without {truncate_list(left, 12)}." if left else ""
        absent = [row.label for row in section.rows if row.label not in dashes]
        caption += f" Not drawn: {truncate_list(absent)}." if absent else ""
        inline = element("div", *panels, class_="panels")
        found.append(LearningCurves(name, caption, inline, join_panels(panels, caption)))
    return found


def _average(row: MethodRow, dataset: str, key: str) -> Line | None:
    """The mean of a cell's seeds, over the epochs that all of them have; ``None`` with fewer than two epochs."""
    if not row.cells[dataset].counted:
        return None
    curves = [
        {point["epoch"]: point[key] for point in record.curve if key in point and "epoch" in point}
        for record in row.cells[dataset].records
    ]
    curves = [curve for curve in curves if len(curve) > 1]
    if not curves:
        return None
    epochs = sorted(set.intersection(*map(set, curves)))
    points = [(epoch, statistics.fmean(curve[epoch] for curve in curves)) for epoch in epochs]
    return Line(row.label, points, row.method, seeds=len(curves)) if len(points) > 1 else None


def _choose_rows(rows: Sequence[MethodRow]) -> list[tuple[str, int]]:
    """The most accurate of each method, then the second of each, and so on: as many as can be told apart."""

    def accuracy(row: MethodRow) -> tuple[bool, float]:
        means = [cell.stat.mean for cell in row.cells.values() if cell.counted and cell.stat]
        # A row with every task stands for its method before one that has only the easy ones.
        return row.averages is not None, statistics.fmean(means) if means else 0.0

    ranks: dict[str, int] = {}
    seen: collections.Counter[str] = collections.Counter()
    for row in sorted(rows, key=accuracy, reverse=True):
        ranks[row.label] = seen[row.method]
        seen[row.method] += 1
    drawn = [row for row in sorted(rows, key=lambda row: ranks[row.label]) if ranks[row.label] < len(DASHES)]
    kept = {row.label for row in drawn[:MOST_LINES]}
    return [(row.label, ranks[row.label]) for row in rows if row.label in kept]


def _choose_datasets(section: Section, datasets: Sequence[str]) -> list[str]:
    """All of up to ``MOST_PANELS`` datasets, else of each group in turn."""
    turns = itertools.zip_longest(*([n for n in names if n in datasets] for names in section.groups.values()))
    chosen = [name for turn in turns for name in turn if name is not None][:MOST_PANELS]
    return [name for name in datasets if name in chosen]
