"""Formats numbers and sentences of the report, for HTML, Markdown and the terminal."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from s2a_bench.cells import recipes
from s2a_bench.cells.evaluation import PHRASES
from s2a_bench.cells.record import Record
from s2a_bench.failures import cause
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.sections import MethodRow, PlannedTable, Section
from s2a_bench.reports.statistics import Stat
from s2a_bench.reports.variants import format_option

READING = (
    (
        "Accuracy",
        "top-1 in percent after the last epoch, or after the best epoch on val where the setting says so, scored once; "
        "mean ± standard deviation between seeds (n-1); nothing behind the mean of a single seed.",
    ),
    (
        "Averages",
        "the mean of tasks weighs every task the same, the mean of groups every group; published tables use either, "
        "and they can lie points apart. Their ± is the standard deviation between seeds too, that of a mean of "
        "independent tasks: square root of the tasks' summed variances, over their number.",
    ),
    (
        "★",
        "above every other row of the column by more than the noise between seeds (Welch's t-test, 5 %). "
        "A column without ★ has no single winner, or one seed.",
    ),
    ("Trainable %", "trainable parameters, head included, over those of the backbone without its head."),
    ("Theoretical MB", "what one training step should keep, counted from the architecture; MB are 1e6 bytes."),
    ("Measured MB", "weights plus the bytes that autograd really kept for the backward pass of one batch."),
    (
        "Peak MB",
        "the device's peak on CUDA; on CPU the largest resident size of the process, Python and everything that ran in "
        "it before included, so that it compares hardly.",
    ),
    ("Images/s", "training throughput; it compares only between cells of the same hardware."),
    (
        "Comparable",
        "one table holds one suite, backbone, checkpoint, image size, augmentation, number of epochs, scored split, "
        "data limit and protocol. A value marked * stands on other data than its column (data_id, split_id or number "
        "of images) and takes part in no average.",
    ),
    (
        "Did not learn",
        "a value marked † holds a training that ended no better than guessing: a loss that did not fall below that of "
        "predicting the class frequencies, that rose again, or an accuracy not above that of the most frequent class "
        "(one-sided, 1 %). It counts in means, which carry the mark too; the reasons are listed with the cells.",
    ),
)


def truncate_list(names: Sequence[str], most: int = 6) -> str:
    """``a, b, c``; a long list ends in how many more there are. Names that hold commas themselves: ``a, x; b``."""
    names = list(names)
    shown = names if len(names) <= most + 1 else names[:most]
    text = ("; " if any("," in name for name in names) else ", ").join(shown)
    return text if len(shown) == len(names) else f"{text} and {len(names) - most} more"


def format_stat(stat: Stat | None) -> str:
    """``91.2 ± 0.4``, ``91.2`` for one seed, a dash for nothing."""
    if stat is None:
        return "—"
    return f"{stat.mean:.1f}" if stat.std is None else f"{stat.mean:.1f} ± {stat.std:.1f}"


def format_number(value: float | None, decimals: int) -> str:
    """``value`` with thousands apart; a dash for nothing."""
    return "—" if value is None or not math.isfinite(value) else f"{value:,.{decimals}f}"


def format_seeds(seeds: Sequence[int]) -> str:
    """``0-2`` for consecutive seeds, ``0, 3`` else."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds)) or "—"


def section_title(section: Section | PlannedTable) -> str:
    """Suite and backbone."""
    return f"{section.suite} · {section.backbone}"


def has_results(section: Section) -> bool:
    """Whether any cell of a section has finished."""
    return any(record.status == "done" for _, record in section.records)


def describe_setting(setting: Mapping[str, Any]) -> str:
    """A setting as half a sentence."""
    checkpoint = f"checkpoint {setting['checkpoint_id'] or 'unknown'}"
    return f"{_describe_run(setting)}, {checkpoint}, protocol {setting['protocol']}"


def _describe_run(setting: Mapping[str, Any]) -> str:
    """What of a setting is known before a cell has run."""
    epochs = setting["epochs"]
    words = [f"{epochs} epoch{'' if epochs == 1 else 's'}", PHRASES[setting["evaluated_on"]]]
    words += [f"{setting['image_size']} px"] if setting["image_size"] else []
    words += [f"{name}={setting[name]}" for name in ("limit_train", "limit_test") if setting[name] is not None]
    words += [setting["augmentation"]] if setting.get("augmentation") else []
    return ", ".join(words)


def list_names(section: Section) -> list[tuple[str, str]]:
    """What the rows' short names stand for, then the defaults of the methods of which a row has options of its own."""
    named = [(row.label, ", ".join(row.options)) for row in section.rows if row.options]
    found = list(named)
    for method in dict.fromkeys(row.method for row in section.rows if row.options):
        if usual := recipes.completed(method, {}):
            text = ", ".join(f"{key}={format_option(value)}" for key, value in sorted(usual.items()))
            found.append((f"defaults of {method}", text))
    return found


NAMES = "What the names stand for"


MISSING, UNPLACED = "Planned, not run yet", "Planned, not run yet, in no table"


def list_missing(section: Section | PlannedTable) -> list[str]:
    """A line for each row that lacks cells which a sweep planned."""
    lines: dict[str, list[str]] = {}
    for label, dataset, seeds in section.missing:
        lines.setdefault(label, []).append(f"{dataset} seed{'s' * (len(seeds) > 1)} {format_seeds(seeds)}")
    return [f"{label}: {'; '.join(parts)}" for label, parts in lines.items()]


def list_unplaced(planned: Sequence[PlannedTable]) -> list[str]:
    """The same of cells for which there is no table yet, behind the table that they would stand in."""
    return [
        f"{section_title(table)}, {_describe_run(table.setting)}: {line}"
        for table in planned
        for line in list_missing(table)
    ]


def group_failures(section: Section) -> list[tuple[str, str, list[Record], str]]:
    """Failed cells by their cause: where, the cause, the records and the first one's traceback."""
    found: dict[str, list[tuple[str, Record]]] = {}
    for label, record in section.failed:
        found.setdefault(cause(record), []).append((label, record))
    groups = []
    for why, cells in found.items():
        names = [f"{label} on {record.dataset}, seed {record.seed}" for label, record in cells]
        where = names[0] if len(names) == 1 else f"{len(names)} cells ({truncate_list(names, 4)})"
        records = [record for _, record in cells]
        groups.append((where, why, records, (records[0].error or {}).get("traceback", "")))
    return groups


FAILED_AGAIN = "The same command runs them again."


def list_cell_remarks(section: Section) -> list[tuple[str, str]]:
    """Cells that are incomplete, left out or not comparable: where and why."""
    return [
        (f"{row.label} on {name}", "; ".join(cell.reasons))
        for row in section.rows
        for name, cell in row.cells.items()
        if cell.reasons and cell.reasons != ("not run",)
    ]


UNLEARNED = " †"
"""Mark of a value that holds a training that did not learn."""


def format_cell(row: MethodRow, dataset: str) -> str:
    """A cell's accuracy; marked where it stands on other data than its column, or holds a seed that did not learn."""
    cell = row.cells[dataset]
    if cell.stat is None and "failed" in cell.reasons:
        return "failed"
    marks = (" *" if cell.stat and not cell.counted else "") + (UNLEARNED if cell.unlearned else "")
    return format_stat(cell.stat) + marks


def format_mean(row: MethodRow, stat: Stat | None, datasets: Sequence[str] | None = None) -> str:
    """A mean of a row's tasks; marked if a seed of one of them did not learn.

    Args:
        row: Whose.
        stat: The mean.
        datasets: Those it is over; ``None``: all of the row.
    """
    unlearned = any(datasets is None or name in datasets for name in row.unlearned)
    return format_stat(stat) + (UNLEARNED if stat and unlearned else "")


def describe_stat(row: MethodRow, where: str, stat: Stat | None) -> str:
    """An accuracy with its unit and spread, for a hover text; empty for nothing."""
    if stat is None:
        return ""
    spread = "one seed" if stat.std is None else f"± {stat.std:.2f} points, standard deviation between {stat.n} seeds"
    return f"{row.label}, {where}: {stat.mean:.2f} %, {spread}"


def describe_front(section: Section) -> str:
    """Which rows no other row beats in accuracy and measured memory at once."""
    known = [
        (row.label, (row.numbers["measured_mb"] or 0.0, row.averages.mean_of_tasks.mean))
        for row in section.rows
        if row.averages and row.numbers["measured_mb"]
    ]
    if len(known) < 2:
        return ""
    unlearned = {row.label for row in section.rows if row.unlearned}
    front = [known[i][0] for i in stats.pareto_front([point for _, point in known])]
    names = [f"{name}{UNLEARNED}" if name in unlearned else name for name in front]
    return f"Pareto front of mean accuracy against measured memory, by rising memory: {truncate_list(names, 8)}."
