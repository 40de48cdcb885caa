"""From records to what a report shows: sections, rows, cells and the sentences that say what is comparable."""

from __future__ import annotations

import collections
import dataclasses
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from s2a_bench import stats
from s2a_bench.record import Record
from s2a_bench.stats import Averages, Stat

METHOD_ORDER = ("full", "linear", "bias", "lora", "adapter", "vpt", "unipt", "lst", "s2a")
NUMBERS = ("params_trainable", "params_percent", "theoretical_mb", "measured_mb", "images_per_second")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method on one dataset.

    Attributes:
        stat: Over the seeds that may be averaged; ``None`` without any.
        counted: Whether it takes part in the row's averages.
        reasons: Why it is absent, incomplete or left out; empty when all is well.
    """

    stat: Stat | None
    counted: bool
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Row:
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
    cells: Mapping[str, Cell]
    averages: Averages | None
    numbers: Mapping[str, float | None]
    seeds: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Section:
    """Everything that may stand in one table: one suite, one backbone, one setting.

    Attributes:
        groups: Datasets by group, both in the order of the columns.
        best: By column, the label of the row that is above all others by more than the noise.
        missing: Cells of the grid without a record, in words.
    """

    suite: str
    backbone: str
    setting: Mapping[str, Any]
    groups: Mapping[str, tuple[str, ...]]
    rows: tuple[Row, ...]
    best: Mapping[str, str]
    notes: tuple[str, ...]
    missing: tuple[str, ...]
    failed: tuple[tuple[str, Record], ...]
    records: tuple[tuple[str, Record], ...]

    @property
    def datasets(self) -> tuple[str, ...]:
        """Datasets in the order of the columns."""
        return tuple(name for names in self.groups.values() for name in names)


def sections(records: Iterable[Record]) -> list[Section]:
    """Records by suite, backbone and setting; in each pair the newest setting first."""
    buckets: dict[tuple[str, str, str], list[Record]] = collections.defaultdict(list)
    failed: list[Record] = []
    for record in sorted(records, key=lambda r: r.cell_id):
        if record.status == "failed":
            failed.append(record)
        else:
            buckets[(record.suite, record.backbone, _key(stats.setting(record)))].append(record)
    for record in failed:
        buckets[_home(record, buckets)].append(record)
    newest = {key: max(record.started_at for record in bucket) for key, bucket in buckets.items()}
    keys = sorted(buckets)
    keys.sort(key=lambda k: newest[k], reverse=True)
    keys.sort(key=lambda k: k[:2])
    return [_section(buckets[key]) for key in keys]


def shown(stat: Stat | None) -> str:
    """``91.2 ± 0.4``, ``91.2`` for one seed, a dash for nothing."""
    if stat is None:
        return "–"
    return f"{stat.mean:.1f}" if stat.std is None else f"{stat.mean:.1f} ± {stat.std:.1f}"


def number(value: float | None, digits: int = 3) -> str:
    """``value`` with about ``digits`` significant digits and never an exponent; a dash for nothing."""
    if value is None or not math.isfinite(value):
        return "–"
    decimals = max(0, digits - 1 - (math.floor(math.log10(abs(value))) if value else 0))
    return f"{value:,.{min(decimals, 4)}f}"


def seeds_shown(seeds: Sequence[int]) -> str:
    """``0-2`` for consecutive seeds, ``0, 3`` else."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds))


def setting_shown(setting: Mapping[str, Any]) -> str:
    """A setting as half a sentence."""
    words = [f"{setting['epochs']} epochs", f"scored on {setting['evaluated_on']}"]
    words += [f"{name}={setting[name]}" for name in ("limit_train", "limit_test") if setting[name] is not None]
    words.append(f"checkpoint {setting['checkpoint_id'] or 'unknown'}")
    return ", ".join([*words, f"protocol {setting['protocol']}"])


def cause(record: Record) -> str:
    """Why a cell failed, in one line."""
    error = record.error or {}
    text = ": ".join(part for part in (error.get("type", ""), error.get("message", "")) if part)
    return " ".join(text.split()) or "no cause recorded"


def _key(values: Any) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def _home(record: Record, buckets: Mapping[tuple[str, str, str], Sequence[Record]]) -> tuple[str, str, str]:
    """Where a failed record belongs: it may have failed before its checkpoint was known."""
    own = (record.suite, record.backbone, _key(stats.setting(record)))
    if own in buckets or record.checkpoint_id:
        return own
    blind = {**stats.setting(record), "checkpoint_id": None}
    near = [
        (max(r.started_at for r in bucket), key)
        for key, bucket in buckets.items()
        if key[:2] == own[:2] and {**stats.setting(bucket[0]), "checkpoint_id": None} == blind
    ]
    return max(near)[1] if near else own


def _section(records: Sequence[Record]) -> Section:
    first = next((r for r in records if r.status == "done"), records[0])
    groups: dict[str, tuple[str, ...]] = {}
    for group, dataset in sorted({(r.group, r.dataset) for r in records}):
        groups[group] = (*groups.get(group, ()), dataset)
    datasets = [name for names in groups.values() for name in names]
    reference = {name: _reference([r for r in records if r.dataset == name]) for name in datasets}
    wanted = sorted({r.seed for r in records})

    rows: list[Row] = []
    labelled: list[tuple[str, Record]] = []
    missing: list[str] = []
    for label, members in _variants(records):
        rows.append(_row(label, members, groups, reference))
        labelled += [(label, record) for record in members]
        for name in datasets:
            absent = sorted(set(wanted) - {r.seed for r in members if r.dataset == name})
            if absent:
                missing.append(f"{label} on {name}: seed {seeds_shown(absent)}")
    return Section(
        suite=first.suite,
        backbone=first.backbone,
        setting=stats.setting(first),
        groups=groups,
        rows=tuple(rows),
        best=_best(rows, groups),
        notes=tuple(_notes(rows, labelled)),
        missing=tuple(missing),
        failed=tuple((label, record) for label, record in labelled if record.status == "failed"),
        records=tuple(labelled),
    )


def _reference(records: Sequence[Record]) -> str:
    """Which data this section's column is about: the most frequent, then the newest."""
    done = [r for r in records if r.status == "done"]
    counts = collections.Counter(_key(stats.data_identity(r)) for r in done)
    newest = {_key(stats.data_identity(r)): r.started_at for r in sorted(done, key=lambda r: r.started_at)}
    return max(counts, key=lambda k: (counts[k], newest[k], k), default="")


def _variants(records: Sequence[Record]) -> list[tuple[str, list[Record]]]:
    """Records by row, labelled. Options always part rows; the recipe does where a cell was run with two of them."""
    by_method: dict[str, list[Record]] = collections.defaultdict(list)
    for record in records:
        by_method[record.method].append(record)
    found: list[tuple[tuple[Any, ...], str, list[Record]]] = []
    for method, members in by_method.items():
        recipes: dict[str, set[str]] = collections.defaultdict(set)
        for r in members:
            recipes[_key([r.method_config, r.dataset])].add(_key(r.train_config))
        swept = any(len(several) > 1 for several in recipes.values())
        options = [_options(record, swept) for record in members]
        keys = sorted({key for option in options for key in option})
        differing = [k for k in keys if len({_key(o.get(k, _ABSENT)) for o in options}) > 1]
        buckets: dict[str, list[Record]] = collections.defaultdict(list)
        parts: dict[str, dict[str, Any]] = {}
        for record, option in zip(members, options, strict=True):
            part = {k: option[k] for k in differing if k in option}
            buckets[_key(part)].append(record)
            parts[_key(part)] = part
        order = METHOD_ORDER.index(method) if method in METHOD_ORDER else len(METHOD_ORDER)
        for key, bucket in buckets.items():
            values = ", ".join(f"{k}={_value(v)}" for k, v in parts[key].items())
            natural = tuple(_natural(parts[key].get(k)) for k in differing)
            found.append(((order, method, natural), f"{method} ({values})" if values else method, bucket))
    return [(label, bucket) for _, label, bucket in sorted(found, key=lambda row: row[:2])]


_ABSENT = "\0absent"


def _options(record: Record, recipe: bool) -> dict[str, Any]:
    options = {k: v for k, v in record.method_config.items() if k != "name"}
    return options | {f"train.{k}": v for k, v in record.train_config.items()} if recipe else options


def _value(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else value if isinstance(value, str) else _key(value)


def _natural(value: Any) -> tuple[int, float, str]:
    """Sorts numbers as numbers, before text, after nothing."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    return (2, 0.0, str(value))


def _row(label: str, records: Sequence[Record], groups: Mapping[str, Sequence[str]], reference: Mapping[str, str]) -> Row:
    cells: dict[str, Cell] = {}
    counted: list[Record] = []
    for name in (name for names in groups.values() for name in names):
        cells[name], used = _cell([r for r in records if r.dataset == name], reference[name])
        counted += used
    complete = all(cell.counted for cell in cells.values())
    return Row(
        label=label,
        method=records[0].method,
        cells=cells,
        averages=stats.averages(counted) if complete else None,
        numbers={name: _mean_over_tasks(counted, lambda r, n=name: getattr(r, n)) for name in NUMBERS},
        seeds=tuple(sorted({r.seed for r in counted})),
    )


def _cell(records: Sequence[Record], reference: str) -> tuple[Cell, list[Record]]:
    done = [r for r in records if r.status == "done"]
    good = [r for r in done if _key(stats.data_identity(r)) == reference]
    reasons: list[str] = []
    if failures := len(records) - len(done):
        reasons.append(f"{failures} of {len(records)} seeds failed" if done else "failed")
    if not done:
        return Cell(None, False, tuple(reasons) or ("not run",)), []
    if not good:
        # Shown, since it was paid for, but it stands beside numbers from other images.
        other = collections.Counter(_key(stats.data_identity(r)) for r in done).most_common(1)[0][0]
        good = [r for r in done if _key(stats.data_identity(r)) == other]
        try:
            stat = stats.task_mean(good)
        except stats.NotComparable as error:
            return Cell(None, False, (*reasons, str(error))), []
        return Cell(stat, False, (*reasons, "not comparable: data_id or split_id is not this column's")), []
    if len(good) < len(done):
        reasons.append(f"{len(done) - len(good)} left out: data_id or split_id is not this column's")
    try:
        return Cell(stats.task_mean(good), True, tuple(reasons)), good
    except stats.NotComparable as error:
        return Cell(None, False, (*reasons, str(error))), []


def _mean_over_tasks(records: Sequence[Record], value: Callable[[Record], float | None]) -> float | None:
    by_task: dict[str, list[float]] = collections.defaultdict(list)
    for record in records:
        if (found := value(record)) is not None:
            by_task[record.dataset].append(found)
    if not by_task:
        return None
    return stats.propagate(stats.over_seeds(values) for values in by_task.values()).mean


def _best(rows: Sequence[Row], groups: Mapping[str, Sequence[str]]) -> dict[str, str]:
    columns: dict[str, Callable[[Row], Stat | None]] = {
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
            if others and all(stats.clearly_above(stat, other) for other in others):
                best[column] = label
    return best


def _notes(rows: Sequence[Row], labelled: Sequence[tuple[str, Record]]) -> list[str]:
    """What a reader must know before comparing numbers of this section with each other or with a paper."""
    done = [record for _, record in labelled if record.status == "done"]
    if not done:
        return ["No cell of this section has finished."]
    notes = []
    if any(r.random_weights for r in done):
        notes.append("Backbone weights are random: accuracies say nothing about transfer, only memory and speed count.")
    limits = sorted({f"{k}={v}" for r in done for k, v in r.data_config.items() if k.startswith("limit_") and v is not None})
    if limits:
        notes.append(f"Limited data ({', '.join(limits)}): not comparable with runs on the full lists.")
    if any(r.evaluated_on == "val" for r in done):
        notes.append("Scored on the validation images, trained without them: not comparable with published test numbers.")
    for flag, text in (
        ("synthetic", "Rendered images, not photographs, comparable only within this suite"),
        ("lossy", "Images were stored lossily (JPEG), which alone can move accuracies by points"),
    ):
        names = sorted({r.dataset for r in done if getattr(r, flag)})
        if names:
            notes.append(f"{text}: {', '.join(names)}.")
    if all(len(row.seeds) < 2 for row in rows):
        notes.append("One seed per cell: the spread between seeds is unknown, so no difference is called real.")
    elif len({row.seeds for row in rows if row.seeds}) > 1:
        notes.append("Rows do not share the same seeds; see the column.")
    if short := [row.label for row in rows if row.averages is None]:
        notes.append(f"No averages for {', '.join(short)}: not every task counts there.")
    batches = sorted({b for r in done if (b := r.train_config.get("batch_size")) is not None})
    if len(batches) > 1:
        notes.append(f"Batch sizes differ ({', '.join(map(str, batches))}): memory and speed do not compare.")
    if len({_key(r.hardware) for r in done}) > 1:
        notes.append("Cells ran on different hardware: images/s do not compare between them.")
    for what, values in (("code versions", {r.git_sha for r in done}), ("library versions", {_key(r.versions) for r in done})):
        if len(values) > 1:
            notes.append(f"Cells ran with {len(values)} {what}; the protocol version is the same.")
    if any(r.git_dirty for r in done):
        notes.append("Some cells ran from a working tree with uncommitted changes.")
    return notes + _recipes(labelled)


def _recipes(labelled: Sequence[tuple[str, Record]]) -> list[str]:
    """The training recipe: what all rows share, then what sets them apart."""
    done = [(label, r) for label, r in labelled if r.status == "done"]
    keys = sorted({k for _, r in done for k in r.train_config})
    common, apart = [], []
    for key in keys:
        values: dict[str, list[str]] = {}
        for label, record in done:
            text = _value(record.train_config.get(key))
            if text not in values.setdefault(label, []):
                values[label].append(text)
        if len({tuple(v) for v in values.values()}) == 1 and all(len(v) == 1 for v in values.values()):
            common.append(f"{key}={next(iter(values.values()))[0]}")
        else:
            apart.append(f"{key}: " + ", ".join(f"{label} {' or '.join(v)}" for label, v in values.items()))
    notes = [f"Recipe of all rows: {', '.join(common)}."] if common else []
    return notes + [f"Recipe by row, {text}." for text in apart]
