"""Means, spreads and what may be compared with what. Plain numbers in, plain numbers out."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from s2a_bench.cells.record import Record

NOISE_LEVEL = 0.05
"""Two-sided level of the test behind ``clearly_above``."""


class NotComparable(ValueError):
    """Records that must not be put into one average; the sentence names two of them and the field that differs."""


@dataclasses.dataclass(frozen=True)
class Stat:
    """A mean with its spread.

    Attributes:
        mean: The mean.
        std: Spread from seed to seed (ddof=1), propagated through averages; ``None`` where a single seed hides it.
        n: Seeds behind it; the fewest of all parts for an average.
        error: Standard error of ``mean``.
        freedom: Degrees of freedom of ``error``.
    """

    mean: float
    std: float | None
    n: int
    error: float | None = None
    freedom: float | None = None


def over_seeds(values: Sequence[float]) -> Stat:
    """Mean and standard deviation (ddof=1) of one task's seeds.

    Raises:
        ValueError: No values.
    """
    if not values:
        raise ValueError("over_seeds needs at least one value.")
    n = len(values)
    if n == 1:
        return Stat(float(values[0]), None, 1)
    std = statistics.stdev(values)
    return Stat(statistics.fmean(values), std, n, std / math.sqrt(n), n - 1.0)


def propagate(parts: Iterable[Stat]) -> Stat:
    """Mean of independent means; the spread is ``sqrt(sum of variances) / count``.

    Degrees of freedom follow Welch and Satterthwaite.

    Raises:
        ValueError: No parts.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("propagate needs at least one mean.")
    count = len(parts)
    mean = math.fsum(part.mean for part in parts) / count
    fewest = min(part.n for part in parts)
    stds = [part.std for part in parts if part.std is not None]
    errors = [(part.error, part.freedom) for part in parts if part.error is not None and part.freedom is not None]
    if len(stds) < count or len(errors) < count:
        return Stat(mean, None, fewest)
    std = math.sqrt(math.fsum(s**2 for s in stds)) / count
    error, freedom = _satterthwaite(errors)
    return Stat(mean, std, fewest, error / count, freedom)


def clearly_above(a: Stat, b: Stat, level: float = NOISE_LEVEL) -> bool:
    """Whether ``a.mean`` exceeds ``b.mean`` by more than the noise between seeds (Welch's t-test, two-sided).

    Never true where a spread is unknown (one seed) or where neither side has any: seeds that agree to the last digit
    say nothing about the noise.
    """
    if a.mean <= b.mean or a.error is None or b.error is None or a.freedom is None or b.freedom is None:
        return False
    error, freedom = _satterthwaite([(a.error, a.freedom), (b.error, b.freedom)])
    if error == 0:
        return False
    from scipy.special import stdtrit

    return a.mean - b.mean > float(stdtrit(freedom, 1 - level / 2)) * error


def _satterthwaite(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error of a sum and its effective degrees of freedom, from ``(error, freedom)`` of each term."""
    # Scaled by the largest, so that the fourth powers of tiny errors do not vanish.
    scale = max(error for error, _ in errors)
    if scale == 0:
        return 0.0, math.fsum(freedom for _, freedom in errors)
    variances = [((error / scale) ** 2, freedom) for error, freedom in errors]
    total = math.fsum(v for v, _ in variances)
    return scale * math.sqrt(total), total**2 / math.fsum(v**2 / f for v, f in variances)


def setting(record: Record) -> dict[str, Any]:
    """What all records of one table must share, by name."""
    return {
        "protocol": record.protocol,
        # All draws of random weights are one population; their ids may follow the seed.
        "checkpoint_id": "random weights" if record.random_weights else record.checkpoint_id,
        "evaluated_on": record.evaluated_on,
        "epochs": record.epochs,
        "limit_train": record.limit_train,
        "limit_test": record.limit_test,
        "image_size": record.data_config.get("size"),
        "preprocessing": _view(record.data_config),
    }


def data_identity(record: Record) -> dict[str, Any]:
    """What all records of one dataset must share, by name."""
    return {
        "group": record.group,
        "data_id": record.data_id,
        "split_id": record.split_id,
        "train_images": record.train_images,
        "scored_images": record.scored_images,
    }


def method_config(record: Record) -> dict[str, Any]:
    """A method's options as rows compare them: without those that a search chose, which may differ between datasets."""
    return _given("method", record.method_config, record)


def train_config(record: Record) -> dict[str, Any]:
    """A recipe as rows compare them, as ``method_config``."""
    return _given("train", record.train_config, record)


def searched(record: Record) -> str | None:
    """How large a search chose the config: ``grid of 12``, ``random 5, asha``; ``None`` without one."""
    if record.search is None:
        return None
    size = f"{record.search['mode']} {'of ' if record.search['mode'] == 'grid' else ''}{record.search['trials']}"
    return size if record.search.get("scheduler", "none") == "none" else f"{size}, {record.search['scheduler']}"


def _given(scope: str, config: Mapping[str, Any], record: Record) -> dict[str, Any]:
    chosen = record.search["chosen"] if record.search else {}
    return {key: value for key, value in config.items() if f"{scope}.{key}" not in chosen}


def task_mean(records: Sequence[Record]) -> Stat:
    """Accuracy over the seeds of one method on one dataset.

    Raises:
        NotComparable: Anything but the seed differs between two of them, one has no accuracy, or a seed comes twice.
    """
    _same(records, lambda r: {"suite": r.suite, "dataset": r.dataset, **_who(r), **setting(r), **data_identity(r)})
    _same(records, lambda r: {"train_config": r.train_config, "method_config": r.method_config})
    for a, b in itertools.pairwise(sorted(records, key=lambda r: r.seed)):
        if a.seed == b.seed:
            raise NotComparable(f"Records {a.cell_id} and {b.cell_id} are the same cell: both have seed {a.seed}.")
    return over_seeds([_accuracy(record) for record in records])


@dataclasses.dataclass(frozen=True)
class Averages:
    """One method over several tasks.

    Attributes:
        tasks: Per dataset.
        groups: Per group of datasets, the mean of its tasks.
        mean_of_tasks: Every task weighs the same.
        mean_of_groups: Every group weighs the same, however many tasks it has.
    """

    tasks: Mapping[str, Stat]
    groups: Mapping[str, Stat]
    mean_of_tasks: Stat
    mean_of_groups: Stat


def averages(records: Sequence[Record]) -> Averages:
    """Both averages that the literature prints, from all records of one method on one backbone.

    Raises:
        NotComparable: Records differ in method, backbone, checkpoint, epochs, scored split, limits or protocol, or,
            within a dataset, in their data, split or recipe.
    """
    _same(records, lambda r: {"suite": r.suite, **_who(r), **setting(r)})
    by_task: dict[str, list[Record]] = {}
    members: dict[str, list[str]] = {}
    for record in sorted(records, key=lambda r: (r.group, r.dataset, r.seed)):
        by_task.setdefault(record.dataset, []).append(record)
        if record.dataset not in members.setdefault(record.group, []):
            members[record.group].append(record.dataset)
    tasks = {name: task_mean(rows) for name, rows in by_task.items()}
    groups = {group: propagate(tasks[name] for name in names) for group, names in members.items()}
    return Averages(tasks, groups, propagate(tasks.values()), propagate(groups.values()))


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the ``(cost, value)`` points that no other point beats, by rising cost.

    A point is beaten by one that costs no more and is worth no less, and is better in one of the two.
    """
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def _view(config: Mapping[str, Any]) -> str:
    """How images reach the model, as text: lists of a file and tuples of a fresh record are the same."""
    view = {key: config[key] for key in ("mean", "std", "interpolation", "resize") if key in config}
    return json.dumps(view, sort_keys=True) if view else ""


def _who(record: Record) -> dict[str, Any]:
    who = {"backbone": record.backbone, "method": record.method, "method_config": method_config(record)}
    return {**who, "search": searched(record)}


def _accuracy(record: Record) -> float:
    if record.status != "done" or record.accuracy is None:
        raise NotComparable(f"Record {record.cell_id} has no accuracy (status {record.status!r}).")
    return record.accuracy


def _same(records: Sequence[Record], fields: Callable[[Record], Mapping[str, Any]]) -> None:
    if not records:
        raise NotComparable("There are no records to average.")
    first, wanted = records[0], fields(records[0])
    for record in records[1:]:
        for name, value in fields(record).items():
            if value != wanted[name]:
                raise NotComparable(
                    f"Records {first.cell_id} and {record.cell_id} cannot be averaged: "
                    f"{name} is {wanted[name]!r} in one and {value!r} in the other."
                )
