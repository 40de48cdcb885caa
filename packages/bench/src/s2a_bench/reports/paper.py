"""Compares the paper's tables with our records; each cell says whether it is comparable and, if not, why.

Only records are read. The printed numbers are those of the experiments' files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Mapping, Sequence

from s2a_bench.cells import learning, recipes
from s2a_bench.cells.record import Record
from s2a_bench.data.table import lookup as datasets
from s2a_bench.experiments import spec
from s2a_bench.experiments.spec import FAMILIES, Experiment
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.statistics import Stat
from s2a_bench.reports.variants import canonical_text

POINTS, RELATIVE = 1.0, 0.03
"""An accuracy is reproduced within ``POINTS`` or within its own 95 % interval, a size within ``RELATIVE``."""

EPOCHS, BATCH, SIDE, CLASSES = 80, 32, 224, 100
"""The paper's: 10 + 70 epochs, batch and pixels (section 4.1); the head that its percentages fit (docs/memory.md)."""

SIZES = {"params_percent": "trainable %", "params_m": "trainable M", "memory_mb": "theoretical MB"}
GROUPS = {"vtab_natural": "natural", "vtab_specialized": "specialized", "vtab_structured": "structured"}
MEANS = {"tasks": "mean of all tasks (the paper: 19)", "groups": "mean of the 3 groups"}
WEIGHTS = {"vtab_natural": 7, "vtab_specialized": 4, "vtab_structured": 8}
"""Tasks of VTAB-1k in each group: the paper prints group means, the mean of tasks follows from them."""

REPRODUCED, DIFFERS, NOT_RUN, NOT_COMPARABLE = "reproduced", "differs", "not run", "not comparable"
UNPRINTED = "not printed"


@dataclasses.dataclass(frozen=True)
class ComparedValue:
    """One printed number and ours.

    Attributes:
        state: ``REPRODUCED``, ``DIFFERS``, ``NOT_RUN``, ``NOT_COMPARABLE`` or ``UNPRINTED``.
        ours: Our number; ``None`` if it was not run.
        paper: The printed number, or the mean of printed ones; ``None`` if there is none.
        reasons: Why it is not comparable, or would not be with a printed number.
    """

    state: str
    ours: Stat | None = None
    paper: float | None = None
    reasons: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class ComparedRow:
    """One printed row: its name, the label of its method here, and its cells."""

    name: str
    method: str
    values: tuple[ComparedValue, ...]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One table of the paper for one backbone of ours.

    Attributes:
        experiment: Which.
        backbone: Ours.
        beside: The paper's backbone that it is compared with.
        columns: Headings.
        decimals: Of each column.
        lines: In printed order.
    """

    experiment: Experiment
    backbone: str
    beside: str
    columns: tuple[str, ...]
    decimals: tuple[int, ...]
    lines: tuple[ComparedRow, ...]

    @property
    def counts(self) -> dict[str, int]:
        """How many cells are of each state."""
        states = [value.state for line in self.lines for value in line.values]
        return {state: states.count(state) for state in (REPRODUCED, DIFFERS, NOT_COMPARABLE, NOT_RUN)}

    @property
    def reasons(self) -> tuple[str, ...]:
        """Every reason once, in the order of the cells."""
        return tuple(dict.fromkeys(reason for line in self.lines for v in line.values for reason in v.reasons))


def family_of(backbone: str) -> str | None:
    """The paper's family that a backbone stands for: its own architectures and the mini ones; ``None`` for others."""
    for family, (mini, full) in FAMILIES.items():
        if backbone == mini or backbone.partition(".")[0] == full.partition(".")[0]:
            return family
    return None


def compare_with_paper(sections: Sequence[Section]) -> tuple[list[Comparison], list[Experiment]]:
    """Every table of which two rows were run on a backbone, and the tables of which that is true nowhere.

    VTAB-1k and FGVC of one backbone share a table. Where a suite was run in several settings, the newest that was
    scored on test stands there.
    """
    homes: dict[tuple[str, bool], dict[str, Section]] = {}
    for section in sections:
        if family_of(section.backbone) and section.suite in ("vtab", "fgvc", "mini"):
            held = homes.setdefault((section.backbone, section.suite == "mini"), {})
            current = held.get(section.suite)
            if current is None or (current.setting["evaluated_on"] != "test" == section.setting["evaluated_on"]):
                held[section.suite] = section
    found, absent = [], []
    for name in spec.list_experiments():
        planned = spec.load_experiment(name)
        if not name.startswith("table"):
            continue
        several = [
            c for (backbone, _), held in homes.items() if (c := _compare_table(planned, backbone, held)) is not None
        ]
        found += several
        if not several:
            absent.append(planned)
    return found, absent


def find_rows(section: Section, label: str) -> list[tuple[MethodRow, list[Record]]]:
    """The rows of a section that are the method of a label with exactly its options, and their finished records."""
    name, options = _parse_options(label)
    found = []
    for row in section.rows:
        records = [r for each, r in section.records if each == row.label and r.status == "done"]
        if row.method == name and records and all(_has_options(r, options) for r in records):
            found.append((row, records))
    return found


@functools.lru_cache(maxsize=256)
def _parse_options(label: str) -> tuple[str, dict[str, object]]:
    from s2a import method_config

    from s2a_bench.sweeps.grid import parse_method

    method = parse_method(label)
    return method.name, dataclasses.asdict(method_config(method.name, **method.options))


def _has_options(record: Record, options: Mapping[str, object]) -> bool:
    # What a search chose is part of the protocol, not of the method.
    chosen = (getattr(record, "search", None) or {}).get("chosen", {})
    own = recipes.completed(record.method, record.method_config)
    return all(
        canonical_text(own[key]) == canonical_text(value)
        for key, value in options.items()
        if f"method.{key}" not in chosen
    )


def _compare_table(planned: Experiment, backbone: str, held: Mapping[str, Section]) -> Comparison | None:
    family = family_of(backbone)
    if family not in planned.families:
        return None
    printed = [row for row in planned.rows if family in row.expected]
    keys = [k for k in spec.COLUMNS if any(k in row.expected[family] for row in printed)]
    whole = WEIGHTS.keys() <= set(keys)
    titles = [SIZES.get(k) or GROUPS.get(k) or k.upper() for k in keys] + (list(MEANS.values()) if whole else [])
    decimals = [0 if k == "memory_mb" else 2 for k in keys] + ([2, 2] if whole else [])
    lines, run = [], 0
    for row in printed:
        ours = {
            suite: best for suite, section in held.items() if (best := _most_complete(find_rows(section, row.method)))
        }
        run += bool(ours)
        expected = row.expected[family]
        values = [_compare_value(key, expected.get(key), held, ours, family) for key in keys]
        if whole:
            values += [_compare_value(mean, mean_of_printed(expected, mean), held, ours, family) for mean in MEANS]
        lines.append(ComparedRow(row.name, row.method, tuple(values)))
    if run < min(2, len(printed)):
        return None
    beside = FAMILIES[family][1].partition(".")[0]
    return Comparison(planned, backbone, beside, tuple(titles), tuple(decimals), tuple(lines))


def _most_complete(found: Sequence[tuple[MethodRow, list[Record]]]) -> tuple[MethodRow, list[Record]] | None:
    return max(found, key=lambda each: sum(c.counted for c in each[0].cells.values()), default=None)


def mean_of_printed(expected: Mapping[str, float], mean: str) -> float | None:
    """The mean of 19 tasks or of 3 groups, from printed group means.

    With the mean ``m_g`` and the number ``n_g`` of tasks of each group: ``sum(n_g * m_g) / 19``, or ``sum(m_g) / 3``.
    """
    if not expected.keys() >= WEIGHTS.keys():
        return None
    weights = WEIGHTS if mean == "tasks" else dict.fromkeys(WEIGHTS, 1)
    return sum(expected[key] * weight for key, weight in weights.items()) / sum(weights.values())


def _compare_value(
    key: str,
    paper: float | None,
    held: Mapping[str, Section],
    ours: Mapping[str, tuple[MethodRow, list[Record]]],
    family: str,
) -> ComparedValue:
    if key in SIZES:
        return _compare_size(key, paper, next(iter(ours.values()), None), family)
    suite = "fgvc" if key == "fgvc" else "vtab" if "vtab" in held else "mini"
    if suite not in ours:
        return ComparedValue(NOT_RUN, paper=paper)
    row, records = ours[suite]
    stat, reasons, records = _mean_accuracy(key, row, records, suite)
    if stat is None:
        return ComparedValue(NOT_RUN, paper=paper)
    reasons += list_deviations(records, suite, family)
    if paper is None:
        return ComparedValue(UNPRINTED, stat, reasons=tuple(reasons))
    if reasons:
        return ComparedValue(NOT_COMPARABLE, stat, paper, tuple(reasons))
    return ComparedValue(
        REPRODUCED if abs(stat.mean - paper) <= max(POINTS, _half_interval(stat)) else DIFFERS, stat, paper
    )


def _compare_size(
    key: str, paper: float | None, ours: tuple[MethodRow, list[Record]] | None, family: str
) -> ComparedValue:
    numbers = {"params_percent": "params_percent", "params_m": "params_trainable", "memory_mb": "theoretical_mb"}
    number = ours[0].numbers[numbers[key]] if ours else None
    if ours is None or number is None:
        return ComparedValue(NOT_RUN, paper=paper)
    stat = Stat(number / 1e6 if key == "params_m" else number, None, 1)
    if paper is None:
        return ComparedValue(UNPRINTED, stat)
    records, reasons = ours[1], []
    if any(r.backbone in FAMILIES[family][:1] for r in records):
        reasons.append(f"a mini backbone, not {FAMILIES[family][1].partition('.')[0]}")
    if any(r.data_config.get("size") not in (None, SIDE) for r in records):
        reasons.append(f"image size {_join_values(r.data_config.get('size') for r in records)}, not {SIDE}")
    if key == "memory_mb":
        if any(r.train_config.get("batch_size") != BATCH for r in records):
            reasons.append(f"batch size {_join_values(r.train_config.get('batch_size') for r in records)}, not {BATCH}")
        if any(r.train_config.get("precision", "fp32") != "fp32" for r in records):
            reasons.append("memory of another precision than fp32")
        if any(r.train_config.get("checkpointing") for r in records):
            reasons.append("memory with checkpointing")
    # Printed with two digits after the point: half of the last one is the paper's rounding.
    close = abs(stat.mean - paper) <= max(RELATIVE * paper, 0.005 if key != "memory_mb" else 0.5)
    heads = {r.classes for r in records}
    if not close and not reasons and key != "memory_mb" and heads != {CLASSES}:
        reasons.append(f"heads of {_join_values(heads)} classes; the paper's counts fit a head of {CLASSES}")
    if reasons:
        return ComparedValue(NOT_COMPARABLE, stat, paper, tuple(reasons))
    return ComparedValue(REPRODUCED if close else DIFFERS, stat, paper)


def _mean_accuracy(
    key: str, row: MethodRow, records: list[Record], suite: str
) -> tuple[Stat | None, list[str], list[Record]]:
    """Mean over the tasks that a printed number is about; what is missing from it; its records."""
    table = datasets.get_suite(suite)
    members = table.defaults if suite == "fgvc" else table.datasets
    wanted = [n for n in members if key not in GROUPS or datasets.get_dataset(suite, n).group == GROUPS[key]]
    by_task = {n: stat for n in wanted if n in row.cells and row.cells[n].counted and (stat := row.cells[n].stat)}
    if not by_task:
        return None, [], []
    parts = list(by_task.values())
    if key == "groups":
        groups: dict[str, list[Stat]] = {}
        for name, stat in by_task.items():
            groups.setdefault(datasets.get_dataset(suite, name).group, []).append(stat)
        parts = [stats.average_means(each) for each in groups.values()]
    lacking = [] if len(by_task) == len(wanted) else [f"only {len(by_task)} of {len(wanted)} tasks ({table.name})"]
    return stats.average_means(parts), lacking, [r for r in records if r.dataset in by_task]


def list_deviations(records: Sequence[Record], suite: str, family: str) -> list[str]:
    """Differences from the paper's protocol that make accuracies not comparable, in words; empty for a faithful run."""
    full = FAMILIES[family][1]
    found = []
    if suite == "mini":
        found.append("the mini suite, not VTAB-1k")
    backbones = {r.backbone for r in records}
    if backbones & {FAMILIES[family][0]}:
        found.append(f"a mini backbone, not {full.partition('.')[0]}")
    elif backbones != {full}:
        found.append(f"checkpoint {_join_values(backbones)}, not the one from ImageNet-21k ({full})")
    if any(learning.find_problems(r) for r in records):
        found.append("a cell that did not learn")
    if any(r.random_weights for r in records):
        found.append("random weights")
    if any(r.evaluated_on == "select" for r in records):
        found.append("the epoch chosen on validation images, trained without them")
    if any(r.evaluated_on == "val" for r in records):
        found.append("scored on validation images")
    if any(r.limit_train is not None or r.limit_test is not None for r in records):
        found.append("limited data")
    if suite != "mini" and any(r.synthetic for r in records):
        found.append("synthetic images")
    if any(r.lossy for r in records):
        found.append("images stored lossily")
    if any(r.epochs != EPOCHS for r in records):
        found.append(f"{_join_values(r.epochs for r in records)} epochs, not {EPOCHS}")
    if any(r.train_config.get("batch_size") != BATCH for r in records):
        found.append(f"batch size {_join_values(r.train_config.get('batch_size') for r in records)}, not {BATCH}")
    if suite != "mini":
        if own := {r.split_id for r in records if r.split_id.startswith("s2a-")}:
            found.append(f"a split of our own ({_join_values(own)}) for some tasks")
        if any(r.data_config.get("size") not in (None, SIDE) for r in records):
            found.append(f"image size {_join_values(r.data_config.get('size') for r in records)}, not {SIDE}")
    return found


def _half_interval(stat: Stat) -> float:
    """Half of the 95 % interval of a mean, ``t(0.975, f) * standard_error``; 0 where that is unknown."""
    if stat.standard_error is None or not stat.degrees_of_freedom:
        return 0.0
    from scipy.special import stdtrit

    return float(stdtrit(stat.degrees_of_freedom, 0.975)) * stat.standard_error


def _join_values(values: Iterable[object]) -> str:
    values = list(values)
    numbers = sorted({value for value in values if isinstance(value, int)})
    return ", ".join(map(str, [*numbers, *sorted({str(v) for v in values if not isinstance(v, int)})]))
