"""Columns and rows of the report's tables: what stands in each cell, in every output format."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.text import describe_stat, format_cell, format_mean, format_number, format_seeds

WIDE, MANY_ROWS = 8, 12
"""Above ``WIDE`` datasets the summary shows groups. Up to there it is all that more than ``MANY_ROWS`` rows need."""


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the summary table.

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


def describe_order(section: Section) -> str:
    """By what the rows are sorted, and what marks the best; empty for a single row."""
    if len(section.rows) < 2:
        return ""
    by = "mean accuracy" if len(section.datasets) > 1 else "accuracy"
    words = [f"Sorted by {by}"] if any(row.averages for row in section.rows) else []
    if words and any(row.averages is None for row in section.rows):
        words[0] += ", rows without one at the end"
    if section.best:
        words.append("★: best of its column by more than the noise between seeds")
    elif words:
        words.append("no ★: no row is best by more than the noise between seeds")
    return "; ".join(words) + "." if words else ""


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
        return [
            Column(
                name,
                lambda row, n=name: format_cell(row, n),
                f"dataset {name}",
                f"top-1 accuracy on {name} in %",
                lambda row, n=name: describe_stat(row, n, row.cells[n].stat),
                dataset=name,
            )
            for name in section.datasets
        ]
    return [
        Column(
            group,
            _group_text(section, group),
            f"group {group}",
            f"top-1 accuracy in %, mean of the {len(names)} tasks of {group}",
            _group_hover(group),
        )
        for group, names in section.groups.items()
    ]


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


@dataclasses.dataclass(frozen=True)
class TaskLine:
    """One line of the table per task.

    Attributes:
        title: Heading.
        key: Of ``Section.best``.
        text: The cell of a row.
        hover: Its hover text.
        dataset: Whose accuracies these are; ``None`` for means.
    """

    title: str
    key: str
    text: Callable[[MethodRow], str]
    hover: Callable[[MethodRow], str]
    dataset: str | None = None

    @property
    def mean(self) -> bool:
        """Whether the line is a mean."""
        return self.dataset is None


def task_lines(section: Section) -> list[TaskLine]:
    """A line for each task, group by group, then the means."""
    lines = []
    for group, names in section.groups.items():
        for name in names:
            lines.append(
                TaskLine(
                    name,
                    f"dataset {name}",
                    lambda row, n=name: format_cell(row, n),
                    lambda row, n=name: describe_stat(row, n, row.cells[n].stat),
                    name,
                )
            )
        if len(section.groups) > 1 and len(names) > 1:
            heading = f"mean of {group} ({len(names)})"
            lines.append(TaskLine(heading, f"group {group}", _group_text(section, group), _group_hover(group)))
    means = _mean_columns(section)
    return lines + [TaskLine(column.title, column.key or "", column.text, column.hover) for column in means]


def _has_group_means(section: Section) -> bool:
    """Whether there are several groups, and one of several tasks: else their means are those of the tasks."""
    return 1 < len(section.groups) < len(section.datasets)


def _group_hover(group: str) -> Callable[[MethodRow], str]:
    return lambda row: describe_stat(row, f"mean of {group}", row.averages.groups[group] if row.averages else None)


def _group_text(section: Section, group: str) -> Callable[[MethodRow], str]:
    names = section.groups[group]
    return lambda row: format_mean(row, row.averages.groups[group] if row.averages else None, names)


def has_task_table(section: Section) -> bool:
    """Whether a table per task says more than the summary, and fits."""
    return len(section.datasets) > WIDE or (_has_group_means(section) and len(section.rows) <= MANY_ROWS)
