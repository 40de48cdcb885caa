"""Groups records into sections (one table each), rows and cells, and decides which of them may be averaged."""

from __future__ import annotations

import collections
import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from s2a_bench.cells import learning, method_cards
from s2a_bench.cells.record import Record
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.statistics import Averages, Stat

NUMBERS = ("params_trainable", "params_percent", "theoretical_mb", "measured_mb", "images_per_second")


@dataclasses.dataclass(frozen=True)
class TableCell:
    """One method on one dataset: a cell of a table (not a cell of a sweep).

    Attributes:
        stat: Over the seeds that may be averaged; ``None`` without any.
        counted: Whether it enters the row's averages.
        reasons: Why it is absent, incomplete or left out, or did not learn; empty when all is well.
        unlearned: How many of the seeds in ``stat`` did not learn (``cells.learning``).
    """

    stat: Stat | None
    counted: bool
    reasons: tuple[str, ...] = ()
    unlearned: int = 0


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """One method, or one variant of it, in one section.

    Attributes:
        label: Method, with the options that set it apart from its variants.
        cells: By dataset; every dataset of the section is there.
        averages: ``None`` unless every dataset counts: means over different tasks do not compare.
        numbers: Means over tasks of the fields in ``NUMBERS``; ``None`` where unknown.
        seeds: That at least one task has.
    """

    label: str
    method: str
    cells: Mapping[str, TableCell]
    averages: Averages | None
    numbers: Mapping[str, float | None]
    seeds: tuple[int, ...]

    @property
    def unlearned(self) -> tuple[str, ...]:
        """Datasets that count and of which a seed did not learn."""
        return tuple(name for name, cell in self.cells.items() if cell.counted and cell.unlearned)


@dataclasses.dataclass(frozen=True)
class Section:
    """All records that may stand in one table: one suite, one backbone, one setting.

    Attributes:
        groups: Datasets by group, both in the order of the columns.
        best: By column, the label of the row that exceeds all others by more than the noise.
        missing: Label, dataset and seeds of the grid's cells without a record.
        failed: Label and record of failed cells.
        records: Label and record of all cells.
    """

    suite: str
    backbone: str
    setting: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]]
    rows: tuple[MethodRow, ...]
    best: Mapping[str, str]
    missing: tuple[tuple[str, str, tuple[int, ...]], ...]
    failed: tuple[tuple[str, Record], ...]
    records: tuple[tuple[str, Record], ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets in the order of the columns."""
        return tuple(name for names in self.groups.values() for name in names)


def make_sections(records: Iterable[Record]) -> list[Section]:
    """Groups records by suite, backbone and setting, the newest setting of each pair first. Trials are left out."""
    buckets: dict[tuple[str, str, str], list[Record]] = collections.defaultdict(list)
    failed: list[Record] = []
    for record in sorted((r for r in records if not r.trial), key=lambda r: r.cell_id):
        if record.status == "failed":
            failed.append(record)
        else:
            buckets[(record.suite, record.backbone, canonical_text(stats.table_setting(record)))].append(record)
    for record in failed:
        buckets[_choose_bucket(record, buckets)].append(record)
    newest = {key: max(record.started_at for record in bucket) for key, bucket in buckets.items()}
    keys = sorted(buckets)
    keys.sort(key=lambda k: newest[k], reverse=True)
    keys.sort(key=lambda k: k[:2])
    return [_make_section(buckets[key]) for key in keys]


def canonical_text(values: Any) -> str:
    """JSON text that is equal for equal values."""
    return json.dumps(values, sort_keys=True, default=str)


def _choose_bucket(record: Record, buckets: Mapping[tuple[str, str, str], Sequence[Record]]) -> tuple[str, str, str]:
    """The section of a failed record, which may have failed before its checkpoint or data were known.

    Of the sections that agree in all fields that the record has, the newest.
    """
    own = stats.table_setting(record)
    known = {k: v for k, v in own.items() if v not in (None, "")}
    near = [
        (max(r.started_at for r in bucket), key)
        for key, bucket in buckets.items()
        if key[:2] == (record.suite, record.backbone) and known.items() <= stats.table_setting(bucket[0]).items()
    ]
    exact = (record.suite, record.backbone, canonical_text(own))
    return exact if exact in buckets or not near else max(near)[1]


def _make_section(records: Sequence[Record]) -> Section:
    first = next((r for r in records if r.status == "done"), records[0])
    reference = {
        name: _find_reference_data([r for r in records if r.dataset == name]) for name in {r.dataset for r in records}
    }
    groups: dict[str, tuple[str, ...]] = {}
    for group, dataset in sorted((group, name) for name, (group, _) in reference.items()):
        groups[group] = (*groups.get(group, ()), dataset)
    datasets = [name for names in groups.values() for name in names]
    wanted = sorted({r.seed for r in records})

    rows: list[MethodRow] = []
    labelled: list[tuple[str, Record]] = []
    missing: list[tuple[str, str, tuple[int, ...]]] = []
    for label, members in _group_variants(records):
        rows.append(_make_row(label, members, groups, reference))
        labelled += [(label, record) for record in sorted(members, key=lambda r: (datasets.index(r.dataset), r.seed))]
        for name in datasets:
            absent = sorted(set(wanted) - {r.seed for r in members if r.dataset == name})
            if absent:
                missing.append((label, name, tuple(absent)))
    return Section(
        suite=first.suite,
        backbone=first.backbone,
        setting=stats.table_setting(first),
        groups=groups,
        rows=tuple(rows),
        best=_find_best(rows, groups),
        missing=tuple(missing),
        failed=tuple((label, record) for label, record in labelled if record.status == "failed"),
        records=tuple(labelled),
    )


def _find_reference_data(records: Sequence[Record]) -> tuple[str, str]:
    """Group and identity of the data of a column: the most frequent among its records, then the newest."""
    records = [r for r in records if r.status == "done"] or records
    found: dict[tuple[str, str], list[str]] = {}
    for record in records:
        found.setdefault((record.group, canonical_text(stats.data_identity(record))), []).append(record.started_at)
    return max(found, key=lambda key: (len(found[key]), max(found[key]), key))


def _group_variants(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Groups records into labelled rows: by options, and by recipe if a cell was run with several recipes."""
    by_method: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        by_method[record.method].append(record)
    found: list[tuple[tuple[Any, ...], str, list[Record]]] = []
    for method, members in by_method.items():
        recipes: dict[str, set[str]] = collections.defaultdict(set)
        for r in members:
            recipes[canonical_text([_options_of(r, False), r.dataset])].add(
                canonical_text(stats.comparable_train_config(r))
            )
        swept = any(len(several) > 1 for several in recipes.values())
        options = [_options_of(record, swept) for record in members]
        keys = sorted({key for option in options for key in option})
        differing = [k for k in keys if len({canonical_text(o.get(k, _ABSENT)) for o in options}) > 1]
        buckets: dict[str, list[Record]] = collections.defaultdict(list)
        parts: dict[str, dict[str, Any]] = {}
        for record, option in zip(members, options, strict=True):
            part = {k: option[k] for k in differing if k in option}
            buckets[canonical_text(part)].append(record)
            parts[canonical_text(part)] = part
        position = method_cards.table_position(method)
        for key, bucket in buckets.items():
            values = ", ".join(f"{k}={format_option(v)}" for k, v in parts[key].items())
            natural = tuple(_sort_key(parts[key].get(k)) for k in differing)
            found.append(((position, natural), f"{method} ({values})" if values else method, bucket))
    return [(label, bucket) for _, label, bucket in sorted(found, key=lambda row: row[:2])]


_ABSENT = "\0absent"


def _options_of(record: Record, recipe: bool) -> dict[str, Any]:
    search = stats.describe_search(record)
    options = stats.comparable_method_config(record) | ({"search": search} if search else {})
    return options | {f"train.{k}": v for k, v in stats.comparable_train_config(record).items()} if recipe else options


def format_option(value: Any) -> str:
    """An option as it is written on a command line."""
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else canonical_text(value)


def _sort_key(value: Any) -> tuple[int, float, str]:
    """Sorts numbers as numbers, before text, after nothing."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def _make_row(
    label: str, records: Sequence[Record], groups: Mapping[str, Sequence[str]], reference: Mapping[str, tuple[str, str]]
) -> MethodRow:
    cells: dict[str, TableCell] = {}
    counted: list[Record] = []
    for name in (name for names in groups.values() for name in names):
        cells[name], used = _make_cell([r for r in records if r.dataset == name], reference[name][1])
        counted += used
    complete = all(cell.counted for cell in cells.values())
    return MethodRow(
        label=label,
        method=records[0].method,
        cells=cells,
        averages=stats.average_tasks(counted) if complete else None,
        numbers={name: _mean_over_tasks(counted, lambda r, n=name: getattr(r, n)) for name in NUMBERS},
        seeds=tuple(sorted({r.seed for r in counted})),
    )


def _make_cell(records: Sequence[Record], reference: str) -> tuple[TableCell, list[Record]]:
    done = [r for r in records if r.status == "done"]
    good = [r for r in done if canonical_text(stats.data_identity(r)) == reference]
    reasons: list[str] = []
    if failures := len(records) - len(done):
        reasons.append(f"{failures} of {len(records)} seeds failed" if done else "failed")
    if not done:
        return TableCell(None, False, tuple(reasons) or ("not run",)), []
    for record in sorted(done, key=lambda record: record.seed):
        if problems := learning.describe_problems(record):
            reasons.append(f"seed {record.seed} {problems}")
    if not good:
        # All of it is from other data than the column: shown, but not counted.
        other = collections.Counter(canonical_text(stats.data_identity(r)) for r in done).most_common(1)[0][0]
        good = [r for r in done if canonical_text(stats.data_identity(r)) == other]
        try:
            stat = stats.average_seeds(good)
        except stats.NotComparable as error:
            return TableCell(None, False, (*reasons, str(error))), []
        reasons.append("not comparable: other data than this column")
        return TableCell(stat, False, tuple(reasons), _count_unlearned(good)), []
    if len(good) < len(done):
        reasons.append(f"{len(done) - len(good)} left out: other data than this column")
    try:
        return TableCell(stats.average_seeds(good), True, tuple(reasons), _count_unlearned(good)), good
    except stats.NotComparable as error:
        return TableCell(None, False, (*reasons, str(error))), []


def _count_unlearned(records: Iterable[Record]) -> int:
    return sum(bool(learning.find_problems(record)) for record in records)


def _mean_over_tasks(records: Sequence[Record], value: Callable[[Record], float | None]) -> float | None:
    by_task: dict[str, list[float]] = collections.defaultdict(list)
    for record in records:
        if (found := value(record)) is not None:
            by_task[record.dataset].append(found)
    if not by_task:
        return None
    return stats.average_means(stats.mean_over_seeds(values) for values in by_task.values()).mean


def _find_best(rows: Sequence[MethodRow], groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    columns: dict[str, Callable[[MethodRow], Stat | None]] = {
        "mean of tasks": lambda row: row.averages.mean_of_tasks if row.averages else None,
        "mean of groups": lambda row: row.averages.mean_of_groups if row.averages else None,
    }
    for group, names in groups.items():
        columns[f"group {group}"] = lambda row, g=group: row.averages.groups[g] if row.averages else None
        for name in names:
            columns[f"dataset {name}"] = lambda row, n=name: row.cells[n].stat if row.cells[n].counted else None
    best = {}
    for column, pick in columns.items():
        known = [(row.label, stat) for row in rows if (stat := pick(row)) is not None]
        for label, stat in known:
            others = [other for name, other in known if name != label]
            if others and all(stats.is_clearly_above(stat, other) for other in others):
                best[column] = label
    return best
