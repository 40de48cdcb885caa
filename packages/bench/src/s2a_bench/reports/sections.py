"""Groups records into sections (one table each), rows and cells, and decides which of them may be averaged."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from s2a_bench.cells import learning
from s2a_bench.cells.record import Record
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.statistics import Averages, Stat
from s2a_bench.reports.variants import Variant, canonical_text, group_variants, name_planned

NUMBERS = ("params_trainable", "params_percent", "theoretical_mb", "measured_mb", "peak_mb", "images_per_second")


@dataclasses.dataclass(frozen=True)
class TableCell:
    """One method on one dataset: a cell of a table (not a cell of a sweep).

    Attributes:
        stat: Over the seeds that may be averaged; ``None`` without any.
        counted: Whether it enters the row's averages.
        reasons: Why it is absent, incomplete or left out, or did not learn; empty when all is well.
        unlearned: How many of the seeds in ``stat`` did not learn (``cells.learning``).
        records: Those in ``stat``.
    """

    stat: Stat | None
    counted: bool
    reasons: tuple[str, ...] = ()
    unlearned: int = 0
    records: tuple[Record, ...] = ()


@dataclasses.dataclass(frozen=True)
class MethodRow:
    """One method, or one variant of it, in one section.

    Attributes:
        label: Short name, unique in its section: the method, and what of its options differs from the defaults and
            within the section, in words.
        cells: By dataset; every dataset of the section is there.
        averages: ``None`` unless every dataset counts: means over different tasks do not compare.
        numbers: Means over tasks of the fields in ``NUMBERS``; ``None`` where unknown.
        seeds: That at least one task has.
        variant: 0 for the first variant of a method in the section, counted up.
        options: What differs from the method's defaults or within the section, as ``key=value``.
    """

    label: str
    method: str
    cells: Mapping[str, TableCell]
    averages: Averages | None
    numbers: Mapping[str, float | None]
    seeds: tuple[int, ...]
    variant: int = 0
    options: tuple[str, ...] = ()

    @property
    def unlearned(self) -> tuple[str, ...]:
        """Datasets that count and of which a seed did not learn."""
        return tuple(name for name, cell in self.cells.items() if cell.counted and cell.unlearned)


@dataclasses.dataclass(frozen=True)
class Section:
    """All records that may stand in one table: one suite, one backbone, one setting.

    Attributes:
        groups: Datasets by group, both in the order of the columns.
        rows: By the mean of tasks, highest first; behind them those without one, in the order of the methods' cards.
        best: By column, the label of the row that exceeds all others by more than the noise.
        missing: Label, dataset and seeds of cells that a sweep planned and that have no record.
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


@dataclasses.dataclass(frozen=True)
class PlannedTable:
    """Planned cells of one suite, backbone and setting of which nothing was run: there is no section for them.

    Attributes:
        missing: As ``Section.missing``; the labels are those of no row.
    """

    suite: str
    backbone: str
    setting: Mapping[str, Any]
    missing: tuple[tuple[str, str, tuple[int, ...]], ...]


_Key = tuple[str, str, str]
"""Suite, backbone and setting of a section."""


def make_sections(records: Iterable[Record], planned: Iterable[Record] = ()) -> list[Section]:
    """Groups records by suite, backbone and setting, the newest setting of each pair first. Trials are left out.

    Args:
        records: What ran.
        planned: Cells that a sweep planned and that have no record (``planned.find_missing``). Those that belong to
            none of the sections are left out, see ``make_planned_tables``.
    """
    buckets = _fill_buckets(records)
    absent = _place_planned(planned, buckets)
    newest = {key: max(record.started_at for record in bucket) for key, bucket in buckets.items()}
    keys = sorted(buckets)
    keys.sort(key=lambda k: newest[k], reverse=True)
    keys.sort(key=lambda k: k[:2])
    return [_make_section(buckets[key], absent.get(key, ())) for key in keys]


def make_planned_tables(records: Iterable[Record], planned: Iterable[Record]) -> list[PlannedTable]:
    """The planned cells that belong to no section of ``make_sections``, by suite, backbone and setting."""
    buckets = _fill_buckets(records)
    absent = _place_planned(planned, buckets)
    return [
        PlannedTable(*key[:2], stats.table_setting(absent[key][0]), _list_missing(absent[key], ()))
        for key in sorted(absent.keys() - buckets.keys())
    ]


def _fill_buckets(records: Iterable[Record]) -> dict[_Key, list[Record]]:
    """The records of each section."""
    buckets: dict[_Key, list[Record]] = collections.defaultdict(list)
    failed: list[Record] = []
    for record in sorted((r for r in records if not r.trial), key=lambda r: r.cell_id):
        if record.status == "failed":
            failed.append(record)
        else:
            buckets[(record.suite, record.backbone, canonical_text(stats.table_setting(record)))].append(record)
    for record in failed:
        buckets[_choose_bucket(record, buckets)].append(record)
    return dict(buckets)


def _place_planned(planned: Iterable[Record], buckets: Mapping[_Key, Sequence[Record]]) -> dict[_Key, list[Record]]:
    """Planned cells by the section that they belong to, or that they would make."""
    absent: dict[_Key, list[Record]] = collections.defaultdict(list)
    for record in planned:
        absent[_choose_bucket(record, buckets)].append(record)
    return dict(absent)


def _list_missing(
    planned: Sequence[Record], variants: Sequence[Variant]
) -> tuple[tuple[str, str, tuple[int, ...]], ...]:
    """``Section.missing`` of the planned cells of a table with these rows."""
    missing: dict[tuple[str, str], set[int]] = collections.defaultdict(set)
    for record, label in zip(planned, name_planned(planned, variants), strict=True):
        missing[label, record.dataset].add(record.seed)
    return tuple((*key, tuple(sorted(seeds))) for key, seeds in sorted(missing.items()))


def _choose_bucket(record: Record, buckets: Mapping[_Key, Sequence[Record]]) -> _Key:
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


def _make_section(records: Sequence[Record], planned: Sequence[Record] = ()) -> Section:
    first = next((r for r in records if r.status == "done"), records[0])
    reference = {
        name: _find_reference_data([r for r in records if r.dataset == name]) for name in {r.dataset for r in records}
    }
    groups: dict[str, tuple[str, ...]] = {}
    for group, dataset in sorted((group, name) for name, (group, _) in reference.items()):
        groups[group] = (*groups.get(group, ()), dataset)
    datasets = [name for names in groups.values() for name in names]

    rows: list[MethodRow] = []
    labelled: list[tuple[str, Record]] = []
    variants = group_variants(records)
    for variant in variants:
        rows.append(_make_row(variant, groups, reference))
        cells = sorted(variant.records, key=lambda r: (datasets.index(r.dataset), r.seed))
        labelled += [(variant.label, record) for record in cells]
    rows.sort(key=lambda row: -row.averages.mean_of_tasks.mean if row.averages else math.inf)
    return Section(
        suite=first.suite,
        backbone=first.backbone,
        setting=stats.table_setting(first),
        groups=groups,
        rows=tuple(rows),
        best=_find_best(rows, groups),
        missing=_list_missing(planned, variants),
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


def _make_row(
    variant: Variant, groups: Mapping[str, Sequence[str]], reference: Mapping[str, tuple[str, str]]
) -> MethodRow:
    records = variant.records
    cells: dict[str, TableCell] = {}
    counted: list[Record] = []
    for name in (name for names in groups.values() for name in names):
        cells[name] = _make_cell([r for r in records if r.dataset == name], reference[name][1])
        counted += cells[name].records if cells[name].counted else ()
    complete = all(cell.counted for cell in cells.values())
    return MethodRow(
        label=variant.label,
        method=variant.method,
        cells=cells,
        averages=stats.average_tasks(counted) if complete else None,
        numbers={name: _mean_over_tasks(counted, lambda r, n=name: getattr(r, n)) for name in NUMBERS},
        seeds=tuple(sorted({r.seed for r in counted})),
        variant=variant.number,
        options=variant.options,
    )


def _make_cell(records: Sequence[Record], reference: str) -> TableCell:
    done = [r for r in records if r.status == "done"]
    good = [r for r in done if canonical_text(stats.data_identity(r)) == reference]
    reasons: list[str] = []
    if failures := len(records) - len(done):
        reasons.append(f"{failures} of {len(records)} seeds failed" if done else "failed")
    if not done:
        return TableCell(None, False, tuple(reasons) or ("not run",))
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
            return TableCell(None, False, (*reasons, str(error)))
        reasons.append("not comparable: other data than this column")
        return TableCell(stat, False, tuple(reasons), _count_unlearned(good), tuple(good))
    if len(good) < len(done):
        reasons.append(f"{len(done) - len(good)} left out: other data than this column")
    try:
        return TableCell(stats.average_seeds(good), True, tuple(reasons), _count_unlearned(good), tuple(good))
    except stats.NotComparable as error:
        return TableCell(None, False, (*reasons, str(error)))


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


def counted_stat(row: MethodRow, key: str) -> Stat | None:
    """What a row has in a column of accuracies; ``None`` where it has nothing that counts.

    Args:
        row: The row.
        key: ``mean of tasks``, ``mean of groups``, ``group NAME`` or ``dataset NAME``.
    """
    kind, _, name = key.partition(" ")
    if kind == "dataset":
        return row.cells[name].stat if row.cells[name].counted else None
    if row.averages is None:
        return None
    if kind == "group":
        return row.averages.groups[name]
    return row.averages.mean_of_tasks if name == "of tasks" else row.averages.mean_of_groups


def _find_best(rows: Sequence[MethodRow], groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    columns = ["mean of tasks", "mean of groups"]
    for group, names in groups.items():
        columns += [f"group {group}", *(f"dataset {name}" for name in names)]
    best = {}
    for column in columns:
        known = [(row.label, stat) for row in rows if (stat := counted_stat(row, column)) is not None]
        for label, stat in known:
            others = [other for name, other in known if name != label]
            if others and all(stats.is_clearly_above(stat, other) for other in others):
                best[column] = label
    return best
