"""Columns and rows of the report's tables: what stands in each cell, in every output format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.text import format_cell, format_mean, format_number

WIDE, MANY_ROWS = 8, 12
"""Above ``WIDE`` datasets the summary shows groups. Up to there it is all that more than ``MANY_ROWS`` rows need."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the summary table.

    Attributes:
        title: Heading.
        text: The cell of a row.
        key: Of ``Section.best``; ``None`` for columns without a winner.
    """

    title: str
    text: Callable[[MethodRow], str]
    key: str | None = None


def summary_columns(section: Section) -> list[Column]:
    """Columns of the summary after the method's name."""

    def average(pick: str) -> Callable[[MethodRow], str]:
        def text(row: MethodRow) -> str:
            if row.averages is None:
                counted = sum(cell.counted for cell in row.cells.values())
                return f"— ({counted} of {len(row.cells)})"
            return format_mean(row, getattr(row.averages, pick))

        return text

    columns = [Column(f"mean of {len(section.datasets)} tasks", average("mean_of_tasks"), "mean of tasks")]
    if len(section.datasets) == 1:
        columns = []
    if len(section.groups) > 1:
        columns.append(Column(f"mean of {len(section.groups)} groups", average("mean_of_groups"), "mean of groups"))
    if len(section.datasets) <= WIDE:
        columns += [Column(n, lambda row, n=n: format_cell(row, n), f"dataset {n}") for n in section.datasets]
    else:
        columns += [Column(g, _group_text(section, g), f"group {g}") for g in section.groups]
    return [
        *columns,
        Column("trainable %", lambda row: format_number(row.numbers["params_percent"], 2)),
        Column("theoretical MB", lambda row: format_number(row.numbers["theoretical_mb"], 1)),
        Column("measured MB", lambda row: format_number(row.numbers["measured_mb"], 1)),
        Column(
            "images/s",
            lambda row: format_number(speed := row.numbers["images_per_second"], 0 if (speed or 0) >= 10 else 1),
        ),
        Column("seeds", lambda row: str(len(row.seeds))),
    ]


def task_lines(section: Section) -> list[tuple[str, str, Callable[[MethodRow], str], bool]]:
    """Lines of the table per task: heading, key of ``Section.best``, text of a row, and whether it is a mean."""
    lines: list[tuple[str, str, Callable[[MethodRow], str], bool]] = []
    for group, names in section.groups.items():
        lines += [(name, f"dataset {name}", lambda row, n=name: format_cell(row, n), False) for name in names]
        if len(section.groups) > 1 and len(names) > 1:
            heading = f"mean of {group} ({len(names)})"
            lines.append((heading, f"group {group}", _group_text(section, group), True))
    means = [column for column in summary_columns(section) if column.key in ("mean of tasks", "mean of groups")]
    return lines + [(column.title, column.key or "", column.text, True) for column in means]


def _group_text(section: Section, group: str) -> Callable[[MethodRow], str]:
    names = section.groups[group]
    return lambda row: format_mean(row, row.averages.groups[group] if row.averages else None, names)


def has_task_table(section: Section) -> bool:
    """Whether a table per task says more than the summary, and fits."""
    return len(section.datasets) > WIDE or (len(section.datasets) > 1 and len(section.rows) <= MANY_ROWS)
