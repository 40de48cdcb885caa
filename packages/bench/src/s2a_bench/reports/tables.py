"""Columns and rows of the report's tables: what stands in each cell, in every output format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from s2a_bench.reports.sections import MethodRow, Section, counted_stat
from s2a_bench.reports.statistics import Stat
from s2a_bench.reports.text import describe_stat, format_cell, format_mean, format_number, format_seeds

WIDE, MANY_ROWS = 8, 12
"""Above ``WIDE`` datasets the summary shows groups. Up to there it is all that more than ``MANY_ROWS`` rows need."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the summary table, or one line of the table per task.

    Attributes:
        title: Heading.
        text: The cell of a row.
        key: Of ``Section.best``; ``None`` for columns without a winner.
        meaning: What it is and in which unit, for the heading's hover text.
        hover: The hover text of a row's cell: the values with their units.
        dataset: Whose accuracies these are; ``None`` for means and costs.
        short: How a line below the table names it, behind the value.
    """

    title: str
    text: Callable[[MethodRow], str]
    key: str | None = None
    meaning: str = ""
    hover: Callable[[MethodRow], str] = lambda _: ""
    dataset: str | None = None
    short: str = ""


_COSTS = (
    ("measured MB", "measured_mb", 1, "weights plus what autograd kept for one batch, measured, in MB (1e6 bytes)"),
    ("theoretical MB", "theoretical_mb", 1, "what one training step should keep, counted, in MB (1e6 bytes)"),
    ("peak MB", "peak_mb", 0, "peak of the device on CUDA, on CPU of the whole process, in MB (1e6 bytes)"),
    ("trainable %", "params_percent", 2, "trainable parameters, head included, in % of the backbone without its head"),
)


def summary_columns(section: Section) -> list[Column]:
    """Columns of the summary after the method's name, so that a screen's width holds the first of them.

    The mean of tasks, memory and parameters, tasks or groups, the mean of groups, speed, seeds.
    """
    means = _mean_columns(section)
    if not means:
        return [*_accuracy_columns(section), *_cost_columns(section), *_run_columns()]
    return [*means[:1], *_cost_columns(section), *_accuracy_columns(section), *means[1:], *_run_columns()]


def fold_columns(section: Section) -> tuple[list[Column], str]:
    """Columns of the summary whose values differ, and a sentence with the values that all rows share.

    Accuracies are never folded, and nothing is where there is one row. What no row has is left out.
    """
    kept, shared = [], []
    for column in summary_columns(section):
        values = {column.text(row) for row in section.rows}
        if values == {"—"} and column.key is None:
            continue
        if column.key is not None or len(section.rows) < 2 or len(values) > 1:
            kept.append(column)
        else:
            shared.append(
                f"{column.short} {values.pop()}" if column.title == "seeds" else f"{values.pop()} {column.short}"
            )
    return kept, f"All rows: {', '.join(shared)}." if shared else ""


def describe_order(section: Section, columns: Sequence[Column] | None = None) -> str:
    """By what the rows are sorted, and what marks the best; empty for a single row.

    Args:
        section: Of the table.
        columns: That the table shows; ``None``: those of ``fold_columns``.
    """
    if len(section.rows) < 2:
        return ""
    by = "mean accuracy" if len(section.datasets) > 1 else "accuracy"
    words = [f"Sorted by {by}"] if any(row.averages for row in section.rows) else []
    if words and any(row.averages is None for row in section.rows):
        words[0] += ", rows without one at the end"
    columns = fold_columns(section)[0] if columns is None else columns
    keys = [column.key for column in columns if column.key is not None]
    if any(key in section.best for key in keys):
        words.append("★: best of its column by more than the noise between seeds")
    elif words:
        words += _explain_no_best(section, keys)
    return "; ".join(words) + "." if words else ""


def _explain_no_best(section: Section, keys: Sequence[str]) -> list[str]:
    """Why no column has a best row; empty where no column has two rows to compare."""
    found = [[stat for row in section.rows if (stat := counted_stat(row, key)) is not None] for key in keys]
    compared = [stats for stats in found if len(stats) > 1]
    if not compared:
        return []
    # A row is best where it is clearly above every other one: one whose noise is unknown leaves that open.
    if any(all(stat.uncertainty is not None for stat in stats) for stats in compared):
        return ["no ★: no row is best by more than the noise between seeds"]
    if all(len(row.seeds) < 2 for row in section.rows):
        return ["no ★: one seed each, the noise is unknown"]
    return ["no ★: some cells have one seed, their noise is unknown"]


def _mean_columns(section: Section) -> list[Column]:
    def average(pick: str) -> Callable[[MethodRow], str]:
        def text(row: MethodRow) -> str:
            if row.averages is None:
                counted = sum(cell.counted for cell in row.cells.values())
                return f"— ({counted} of {len(row.cells)})"
            return format_mean(row, getattr(row.averages, pick))

        return text

    def hover(pick: str, of: str) -> Callable[[MethodRow], str]:
        return lambda row: describe_stat(row, of, getattr(row.averages, pick) if row.averages else None)

    if len(section.datasets) == 1:
        return []
    tasks, groups = f"mean of {len(section.datasets)} tasks", f"mean of {len(section.groups)} groups"
    columns = [
        Column(tasks, average("mean_of_tasks"), "mean of tasks",
               "top-1 accuracy in %, every task weighs the same", hover("mean_of_tasks", tasks))
    ]  # fmt: skip
    if _has_group_means(section):
        columns.append(
            Column(groups, average("mean_of_groups"), "mean of groups",
                   "top-1 accuracy in %, every group of tasks weighs the same", hover("mean_of_groups", groups))
        )  # fmt: skip
    return columns


def _cost_columns(section: Section) -> list[Column]:
    return [
        Column(
            title,
            lambda row, field=field, digits=digits: format_number(row.numbers[field], digits),
            meaning=f"{meaning}; mean over tasks" if len(section.datasets) > 1 else meaning,
            hover=lambda row, field=field, title=title: _hover_number(row, field, title),
            short=title if title != "trainable %" else "% trainable",
        )
        for title, field, digits, meaning in _COSTS
        if field != "peak_mb" or any(row.numbers[field] is not None for row in section.rows)
    ]


def _accuracy_columns(section: Section) -> list[Column]:
    if len(section.datasets) <= WIDE:
        return [_dataset_column(name) for name in section.datasets]
    return [_group_column(section, group, group) for group in section.groups]


def _dataset_column(name: str) -> Column:
    return Column(
        name,
        lambda row: format_cell(row, name),
        f"dataset {name}",
        f"top-1 accuracy on {name} in %",
        lambda row: describe_stat(row, name, row.cells[name].stat),
        dataset=name,
    )


def _group_column(section: Section, group: str, title: str) -> Column:
    names = section.groups[group]

    def stat(row: MethodRow) -> Stat | None:
        return row.averages.groups[group] if row.averages else None

    return Column(
        title,
        lambda row: format_mean(row, stat(row), names),
        f"group {group}",
        f"top-1 accuracy in %, mean of the {len(names)} tasks of {group}",
        lambda row: describe_stat(row, f"mean of {group}", stat(row)),
    )


def _run_columns() -> list[Column]:
    def speed(row: MethodRow) -> str:
        value = row.numbers["images_per_second"]
        return format_number(value, 0 if (value or 0) >= 10 else 1)

    return [
        Column(
            "images/s",
            speed,
            meaning="training throughput in images per second; compares only on the same hardware",
            hover=lambda row: _hover_number(row, "images_per_second", "images per second"),
            short="images/s",
        ),
        Column(
            "seeds",
            lambda row: format_seeds(row.seeds),
            meaning="seeds that at least one task has",
            hover=lambda row: f"{row.label}: {len(row.seeds)} seed{'' if len(row.seeds) == 1 else 's'}",
            short="seeds",
        ),
    ]


def _hover_number(row: MethodRow, field: str, unit: str) -> str:
    value = row.numbers[field]
    return (
        ""
        if value is None
        else f"{row.label}: {value:,.4g} {unit}"
        if value < 1e4
        else f"{row.label}: {value:,.0f} {unit}"
    )


def task_lines(section: Section) -> list[Column]:
    """A line for each task, group by group, then the means: what a column says of rows, lying on its side."""
    lines = []
    for group, names in section.groups.items():
        lines += [_dataset_column(name) for name in names]
        if len(section.groups) > 1 and len(names) > 1:
            lines.append(_group_column(section, group, f"mean of {group} ({len(names)})"))
    return lines + _mean_columns(section)


def _has_group_means(section: Section) -> bool:
    """Whether there are several groups, and one of several tasks: else their means are those of the tasks."""
    return 1 < len(section.groups) < len(section.datasets)


def has_task_table(section: Section) -> bool:
    """Whether a table per task says more than the summary, and fits."""
    return len(section.datasets) > WIDE or (_has_group_means(section) and len(section.rows) <= MANY_ROWS)
