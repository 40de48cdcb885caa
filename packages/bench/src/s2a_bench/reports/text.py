"""The report's words and numbers, the same in HTML, Markdown and on the terminal."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from s2a_bench.cells.record import Record
from s2a_bench.experiments.spec import FAMILIES
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.sections import Row, Section, key_of, option_value
from s2a_bench.reports.statistics import Stat

WIDE, MANY_ROWS = 8, 12
"""Above ``WIDE`` datasets the summary shows groups. Up to there it is all that more than ``MANY_ROWS`` rows need."""

READING = (
    ("Accuracy", "top-1 in percent after the last epoch, scored once; mean ± standard deviation between seeds (n-1)."),
    (
        "Averages",
        "the mean of tasks weighs every task the same, the mean of groups every group; published tables use either, "
        "and they can lie points apart. Spreads are propagated: square root of the summed variances over the count.",
    ),
    (
        "Bold",
        "above every other row of the column by more than the noise between seeds (Welch's t-test, 5 %). "
        "No bold means no single winner, or one seed.",
    ),
    ("Trainable %", "trainable parameters, head included, over those of the backbone without its head."),
    ("Theoretical MB", "what one training step should keep, counted from the architecture; MB are 1e6 bytes."),
    ("Measured MB", "weights plus the bytes that autograd really kept for the backward pass of one batch."),
    ("Images/s", "training throughput; it compares only between cells of the same hardware."),
    (
        "Comparable",
        "one table holds one suite, backbone, checkpoint, image size, number of epochs, scored split, data limit and "
        "protocol. A value marked * stands on other data than its column (data_id, split_id or number of images) and "
        "takes part in no average.",
    ),
)


@dataclasses.dataclass(frozen=True)
class Column:
    """One column of the summary table.

    Attributes:
        title: Heading.
        text: The cell of a row.
        key: Of ``Section.best``; ``None`` for columns without a winner.
    """

    title: str
    text: Callable[[Row], str]
    key: str | None = None


@dataclasses.dataclass(frozen=True)
class Summary:
    """The whole report before it is written down.

    Attributes:
        sections: In the order of the page.
        broken: One sentence for each file that is not a record.
        trials: Records of searches' trials, which are in no section.
    """

    sections: tuple[Section, ...]
    broken: tuple[str, ...] = ()
    trials: int = 0

    @property
    def records(self) -> list[Record]:
        """All records."""
        return [record for section in self.sections for _, record in section.records]

    @property
    def methods(self) -> list[str]:
        """All methods, for colours that agree between figures."""
        return sorted({record.method for record in self.records})

    @property
    def headline(self) -> str:
        """How much there is, and from when."""
        states = collections.Counter(record.status for record in self.records)
        missing = sum(len(seeds) for section in self.sections for _, _, seeds in section.missing)
        times = sorted(record.started_at for record in self.records if record.started_at)
        words = [f"{states['done']} cells done", f"{states['failed']} failed", f"{missing} of the grid not run"]
        words += [f"{len(self.broken)} broken file{'s' * (len(self.broken) > 1)}"] if self.broken else []
        words += (
            [f"{self.trials} trial{'s' * (self.trials > 1)} of searches on val, in no table"] if self.trials else []
        )
        times = [time.replace("T", " ").replace("+00:00", " UTC") for time in times]
        when = f" Cells started between {times[0]} and {times[-1]}." if times else ""
        return ", ".join(words) + "." + when

    @property
    def provenance(self) -> list[tuple[str, str, int]]:
        """Machines, versions, code and data: what, which, and in how many cells."""
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for r in self.records:
            found["hardware", _pairs(r.hardware)] += 1
            found["versions", _pairs(r.versions)] += 1
            dirty = " with uncommitted changes" if r.git_dirty else ""
            found["git", f"{r.git_sha or 'unknown'}{dirty}"] += 1
            weights = "random weights" if r.random_weights else r.checkpoint_id
            found["checkpoint", f"{r.backbone}: {weights or 'unknown'}"] += 1
            if r.status == "done":
                size = f"{r.classes} classes, {r.train_images} images trained on, {r.scored_images} scored"
                found["data", f"{r.suite} / {r.dataset}: {size}, data_id {r.data_id}, split_id {r.split_id}"] += 1
        order = ["hardware", "versions", "git", "checkpoint", "data"]
        return [(*key, found[key]) for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]


def few(names: Sequence[str], most: int = 6) -> str:
    """``a, b, c``; a long list ends in how many more there are."""
    names = list(names)
    if len(names) <= most + 1:
        return ", ".join(names)
    return f"{', '.join(names[:most])} and {len(names) - most} more"


def shown(stat: Stat | None) -> str:
    """``91.2 ± 0.4``, ``91.2`` for one seed, a dash for nothing."""
    if stat is None:
        return "—"
    return f"{stat.mean:.1f}" if stat.std is None else f"{stat.mean:.1f} ± {stat.std:.1f}"


def fixed(value: float | None, decimals: int) -> str:
    """``value`` with thousands apart; a dash for nothing."""
    return "—" if value is None or not math.isfinite(value) else f"{value:,.{decimals}f}"


def seeds_shown(seeds: Sequence[int]) -> str:
    """``0-2`` for consecutive seeds, ``0, 3`` else."""
    if len(seeds) > 2 and list(seeds) == list(range(seeds[0], seeds[-1] + 1)):
        return f"{seeds[0]}-{seeds[-1]}"
    return ", ".join(map(str, seeds)) or "—"


def title(section: Section) -> str:
    """Suite and backbone."""
    return f"{section.suite} · {section.backbone}"


def setting_shown(setting: Mapping[str, Any]) -> str:
    """A setting as half a sentence."""
    epochs = setting["epochs"]
    words = [f"{epochs} epoch{'' if epochs == 1 else 's'}", f"scored on {setting['evaluated_on']}"]
    words += [f"{setting['image_size']} px"] if setting["image_size"] else []
    words += [f"{name}={setting[name]}" for name in ("limit_train", "limit_test") if setting[name] is not None]
    words.append(f"checkpoint {setting['checkpoint_id'] or 'unknown'}")
    return ", ".join([*words, f"protocol {setting['protocol']}"])


def missing_shown(section: Section) -> list[str]:
    """A line for each row that lacks cells of the grid of all rows, datasets and seeds."""
    lines: dict[str, list[str]] = {}
    for label, dataset, seeds in section.missing:
        lines.setdefault(label, []).append(f"{dataset} seed{'s' * (len(seeds) > 1)} {seeds_shown(seeds)}")
    return [f"{label}: {'; '.join(parts)}" for label, parts in lines.items()]


def remarks(section: Section) -> list[tuple[str, str]]:
    """Cells that are incomplete, left out or not comparable: where and why."""
    return [
        (f"{row.label} on {name}", "; ".join(cell.reasons))
        for row in section.rows
        for name, cell in row.cells.items()
        if cell.reasons and cell.reasons != ("not run",)
    ]


def summary_columns(section: Section) -> list[Column]:
    """Columns of the summary after the method's name."""

    def average(pick: str) -> Callable[[Row], str]:
        def text(row: Row) -> str:
            if row.averages is None:
                counted = sum(cell.counted for cell in row.cells.values())
                return f"— ({counted} of {len(row.cells)})"
            return shown(getattr(row.averages, pick))

        return text

    columns = [Column(f"mean of {len(section.datasets)} tasks", average("mean_of_tasks"), "mean of tasks")]
    if len(section.datasets) == 1:
        columns = []
    if len(section.groups) > 1:
        columns.append(Column(f"mean of {len(section.groups)} groups", average("mean_of_groups"), "mean of groups"))
    if len(section.datasets) <= WIDE:
        columns += [Column(n, lambda row, n=n: cell_shown(row, n), f"dataset {n}") for n in section.datasets]
    else:
        columns += [Column(g, lambda row, g=g: group_shown(row, g), f"group {g}") for g in section.groups]
    return [
        *columns,
        Column("trainable %", lambda row: fixed(row.numbers["params_percent"], 2)),
        Column("theoretical MB", lambda row: fixed(row.numbers["theoretical_mb"], 1)),
        Column("measured MB", lambda row: fixed(row.numbers["measured_mb"], 1)),
        Column(
            "images/s", lambda row: fixed(speed := row.numbers["images_per_second"], 0 if (speed or 0) >= 10 else 1)
        ),
        Column("seeds", lambda row: str(len(row.seeds))),
    ]


def cell_shown(row: Row, dataset: str) -> str:
    """A cell's accuracy; marked where it stands on other data than its column."""
    cell = row.cells[dataset]
    if cell.stat is None and "failed" in cell.reasons:
        return "failed"
    return shown(cell.stat) + (" *" if cell.stat and not cell.counted else "")


def group_shown(row: Row, group: str) -> str:
    """A group's mean accuracy."""
    return shown(row.averages.groups[group] if row.averages else None)


def task_lines(section: Section) -> list[tuple[str, str, Callable[[Row], str], bool]]:
    """Lines of the table per task: heading, key of ``Section.best``, text of a row, and whether it is a mean."""
    lines: list[tuple[str, str, Callable[[Row], str], bool]] = []
    for group, names in section.groups.items():
        lines += [(name, f"dataset {name}", lambda row, n=name: cell_shown(row, n), False) for name in names]
        if len(section.groups) > 1 and len(names) > 1:
            heading = f"mean of {group} ({len(names)})"
            lines.append((heading, f"group {group}", lambda row, g=group: group_shown(row, g), True))
    means = [column for column in summary_columns(section) if column.key in ("mean of tasks", "mean of groups")]
    return lines + [(column.title, column.key or "", column.text, True) for column in means]


def has_task_table(section: Section) -> bool:
    """Whether a table per task says more than the summary, and fits."""
    return len(section.datasets) > WIDE or (len(section.datasets) > 1 and len(section.rows) <= MANY_ROWS)


def front_shown(section: Section) -> str:
    """Which rows no other row beats in accuracy and measured memory at once."""
    known = [
        (row.label, (row.numbers["measured_mb"] or 0.0, row.averages.mean_of_tasks.mean))
        for row in section.rows
        if row.averages and row.numbers["measured_mb"]
    ]
    if len(known) < 2:
        return ""
    names = [known[i][0] for i in stats.pareto([point for _, point in known])]
    return f"Pareto front of mean accuracy against measured memory, by rising memory: {few(names, 8)}."


def notes(section: Section) -> list[str]:
    """What a reader must know before comparing numbers of this section with each other or with a paper."""
    done = [record for _, record in section.records if record.status == "done"]
    if not done:
        return ["No cell of this section has finished."]
    found = []
    if any(r.random_weights for r in done):
        found.append("Backbone weights are random: accuracies say nothing about transfer, only memory and speed count.")
    limits = [f"{k}={v}" for k, v in section.setting.items() if k.startswith("limit_") and v is not None]
    if limits:
        found.append(f"Limited data ({', '.join(limits)}): not comparable with runs on the full lists.")
    if section.setting["evaluated_on"] != "test":
        found.append(
            "Scored on the validation images, trained without them: not comparable with published test numbers."
        )
    for flag, text in (
        (
            "synthetic",
            "Synthetic images, made by this package: comparable only with records of the same data id",
        ),
        ("lossy", "Images were stored lossily (JPEG), which alone can move accuracies by points"),
    ):
        names = sorted({r.dataset for r in done if getattr(r, flag)})
        if names:
            found.append(f"{text}: {', '.join(names)}.")
    mini = {small for small, _ in FAMILIES.values()}
    if any(r.dataset == "cifar10" and r.backbone in mini and not r.random_weights for r in done):
        found.append(
            "The mini backbones were pretrained on CIFAR-10's training images: cifar10 says nothing of transfer."
        )
    if all(len(row.seeds) < 2 for row in section.rows):
        found.append("One seed per cell: the spread between seeds is unknown, so no difference is called real.")
    elif len({row.seeds for row in section.rows if row.seeds}) > 1:
        held: dict[str, list[str]] = {}
        for row in section.rows:
            held.setdefault(seeds_shown(row.seeds), []).append(row.label)
        found.append(
            "Rows do not share the same seeds: " + "; ".join(f"{k} for {few(v)}" for k, v in held.items()) + "."
        )
    if short := [row.label for row in section.rows if row.averages is None]:
        found.append(f"No averages for {few(short)}: not every task counts there.")
    batches = sorted({b for r in done if (b := r.train_config.get("batch_size")) is not None})
    if len(batches) > 1:
        found.append(f"Batch sizes differ ({', '.join(map(str, batches))}): memory and speed do not compare.")
    if len({key_of(r.hardware) for r in done}) > 1:
        found.append("Cells ran on different hardware: images/s and peak memory do not compare between them.")
    if (shas := len({r.git_sha for r in done})) > 1:
        found.append(f"Cells ran from {shas} commits; the protocol version is the same.")
    if (kinds := len({key_of(r.versions) for r in done})) > 1:
        found.append(f"Cells ran with {kinds} sets of library versions.")
    if any(r.git_dirty for r in done):
        found.append("Some cells ran from a working tree with uncommitted changes.")
    return found + _recipes(section)


def _recipes(section: Section) -> list[str]:
    """The training recipe: what all rows share, then what sets them apart."""
    done = [(label, r) for label, r in section.records if r.status == "done"]
    common, apart = [], []
    for key in sorted({k for _, r in done for k in r.train_config}):
        values: dict[str, list[str]] = {}
        for label, record in done:
            text = option_value(record.train_config.get(key))
            if text not in values.setdefault(label, []):
                values[label].append(text)
        if len({tuple(v) for v in values.values()}) == 1 and all(len(v) == 1 for v in values.values()):
            common.append(f"{key}={next(iter(values.values()))[0]}")
        else:
            apart.append(f"{key}: " + few([f"{label} {' or '.join(v)}" for label, v in values.items()], 10))
    found = [f"Recipe of all rows: {', '.join(common)}."] if common else []
    return found + [f"Recipe by row, {text}." for text in apart]


def _pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {option_value(value)}" for key, value in sorted(values.items())) or "unknown"
