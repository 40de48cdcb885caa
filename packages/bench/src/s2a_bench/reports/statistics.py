"""Averages of accuracies with their spread, tests of differences, and checks that records may be averaged."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from s2a_bench.cells.record import Record
from s2a_bench.data import augment

NOISE_LEVEL = 0.05
"""Two-sided level of the test of ``is_clearly_above``."""


class NotComparable(ValueError):
    """Records that must not be put into one average; the sentence names two of them and the field that differs."""


@dataclasses.dataclass(frozen=True)
class Stat:
    """A mean with its spread.

    Attributes:
        mean: The mean.
        std: Standard deviation between seeds (ddof=1), propagated through averages; ``None`` with a single seed.
        n: Number of seeds; of an average, the smallest number of its parts.
        standard_error: Standard error of ``mean``; ``None`` with a single seed.
        degrees_of_freedom: Of ``standard_error``.
    """

    mean: float
    std: float | None
    n: int
    standard_error: float | None = None
    degrees_of_freedom: float | None = None

    @property
    def uncertainty(self) -> tuple[float, float] | None:
        """``(standard_error, degrees_of_freedom)``; ``None`` where they are unknown."""
        if self.standard_error is None or self.degrees_of_freedom is None:
            return None
        return self.standard_error, self.degrees_of_freedom


def mean_over_seeds(values: Sequence[float]) -> Stat:
    """Mean and standard deviation (ddof=1) of one task's seeds.

    With ``n`` seeds of standard deviation ``s``, the standard error is ``s / sqrt(n)`` with ``n - 1`` degrees of
    freedom.

    Raises:
        ValueError: No values.
    """
    if not values:
        raise ValueError("mean_over_seeds needs at least one value.")
    n = len(values)
    if n == 1:
        return Stat(float(values[0]), None, 1)
    std = statistics.stdev(values)
    return Stat(statistics.fmean(values), std, n, std / math.sqrt(n), n - 1.0)


def average_means(parts: Iterable[Stat]) -> Stat:
    """Mean of ``k`` independent means ``m_i`` with standard deviations ``s_i`` and standard errors ``e_i``.

    ``mean = sum(m_i) / k``, ``std = sqrt(sum(s_i^2)) / k``, ``standard_error = sqrt(sum(e_i^2)) / k``, with the
    degrees of freedom of Welch and Satterthwaite. Spread and error are ``None`` where those of one part are.

    Raises:
        ValueError: No parts.
    """
    parts = list(parts)
    if not parts:
        raise ValueError("average_means needs at least one mean.")
    count = len(parts)
    mean = math.fsum(part.mean for part in parts) / count
    fewest = min(part.n for part in parts)
    stds = [part.std for part in parts if part.std is not None]
    errors = [part.uncertainty for part in parts if part.uncertainty is not None]
    # One part with a single seed leaves the spread of the whole unknown.
    if len(stds) < count or len(errors) < count:
        return Stat(mean, None, fewest)
    std = math.sqrt(math.fsum(s**2 for s in stds)) / count
    error, freedom = _add_errors(errors)
    return Stat(mean, std, fewest, error / count, freedom)


def is_clearly_above(a: Stat, b: Stat, level: float = NOISE_LEVEL) -> bool:
    """Whether ``a.mean`` exceeds ``b.mean`` by more than the noise between seeds (Welch's t-test, two-sided).

    ``a.mean - b.mean > t(1 - level / 2, f) * sqrt(e_a^2 + e_b^2)`` with ``f`` from Welch and Satterthwaite
    (https://en.wikipedia.org/wiki/Welch%27s_t-test). Never true where a standard error is unknown (one seed) or both
    are 0: seeds that agree to the last digit say nothing about the noise.
    """
    errors = [stat.uncertainty for stat in (a, b) if stat.uncertainty is not None]
    if a.mean <= b.mean or len(errors) < 2:
        return False
    error, freedom = _add_errors(errors)
    if error == 0:
        return False
    from scipy.special import stdtrit

    return a.mean - b.mean > float(stdtrit(freedom, 1 - level / 2)) * error


def _add_errors(errors: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Standard error of a sum of independent terms, and its effective degrees of freedom.

    For terms with standard errors ``e_i`` and degrees of freedom ``f_i``: ``e = sqrt(sum(e_i^2))`` and, after Welch and
    Satterthwaite, ``f = (sum(e_i^2))^2 / sum(e_i^4 / f_i)``.

    Args:
        errors: ``(e_i, f_i)`` of each term.
    """
    # Scaled by the largest, so that the fourth powers of tiny errors do not vanish.
    scale = max(error for error, _ in errors)
    if scale == 0:
        return 0.0, math.fsum(freedom for _, freedom in errors)
    variances = [((error / scale) ** 2, freedom) for error, freedom in errors]
    total = math.fsum(v for v, _ in variances)
    return scale * math.sqrt(total), total**2 / math.fsum(v**2 / f for v, f in variances)


def table_setting(record: Record) -> dict[str, Any]:
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
        "preprocessing": _describe_view(record.data_config),
        "augmentation": ", ".join(augment.spoken(augment.from_record(record.data_config))),
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


def comparable_method_config(record: Record) -> dict[str, Any]:
    """A method's options as rows compare them: without those that a search chose, which may differ between datasets."""
    config = dict(record.method_config)
    if config.get("activations") != "lean":
        config.pop("recompute", None)  # Has no effect there, and another default in older records.
    return _without_searched("method", config, record)


def comparable_train_config(record: Record) -> dict[str, Any]:
    """A recipe as rows compare them, as ``method_config``."""
    return _without_searched("train", record.train_config, record)


def describe_search(record: Record) -> str | None:
    """How large a search chose the config: ``grid of 12``, ``random 5, asha``; ``None`` without one."""
    if record.search is None:
        return None
    size = f"{record.search['mode']} {'of ' if record.search['mode'] == 'grid' else ''}{record.search['trials']}"
    return size if record.search.get("scheduler", "none") == "none" else f"{size}, {record.search['scheduler']}"


def _without_searched(scope: str, config: Mapping[str, Any], record: Record) -> dict[str, Any]:
    chosen = record.search["chosen"] if record.search else {}
    return {key: value for key, value in config.items() if f"{scope}.{key}" not in chosen}


def average_seeds(records: Sequence[Record]) -> Stat:
    """Accuracy over the seeds of one method on one dataset.

    Raises:
        NotComparable: Anything but the seed differs between two of them, one has no accuracy, or a seed comes twice.
    """
    _check_same(
        records,
        lambda r: {
            "suite": r.suite,
            "dataset": r.dataset,
            **_method_identity(r),
            **table_setting(r),
            **data_identity(r),
        },
    )
    _check_same(records, lambda r: {"train_config": r.train_config, "method_config": r.method_config})
    for a, b in itertools.pairwise(sorted(records, key=lambda r: r.seed)):
        if a.seed == b.seed:
            raise NotComparable(f"Records {a.cell_id} and {b.cell_id} are the same cell: both have seed {a.seed}.")
    return mean_over_seeds([_accuracy(record) for record in records])


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


def average_tasks(records: Sequence[Record]) -> Averages:
    """Both averages that the literature prints, from all records of one method on one backbone.

    Raises:
        NotComparable: Records differ in method, backbone, checkpoint, epochs, scored split, limits or protocol, or,
            within a dataset, in their data, split or recipe.
    """
    _check_same(records, lambda r: {"suite": r.suite, **_method_identity(r), **table_setting(r)})
    by_task: dict[str, list[Record]] = {}
    members: dict[str, list[str]] = {}
    for record in sorted(records, key=lambda r: (r.group, r.dataset, r.seed)):
        by_task.setdefault(record.dataset, []).append(record)
        if record.dataset not in members.setdefault(record.group, []):
            members[record.group].append(record.dataset)
    tasks = {name: average_seeds(rows) for name, rows in by_task.items()}
    groups = {group: average_means(tasks[name] for name in names) for group, names in members.items()}
    return Averages(tasks, groups, average_means(tasks.values()), average_means(groups.values()))


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the Pareto-optimal ``(cost, value)`` points, by rising cost.

    A point is dominated by another with ``cost' <= cost`` and ``value' >= value``, one of the two strictly.
    """
    # By rising cost, and by falling value where costs are equal, a point is on the front if it exceeds every value so
    # far. Copies of the last point of the front are on it as well.
    front: list[int] = []
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1])):
        if not front or points[index][1] > points[front[-1]][1] or points[index] == points[front[-1]]:
            front.append(index)
    return front


def _describe_view(config: Mapping[str, Any]) -> str:
    """The preprocessing as text; tuples of a fresh record and lists of one read from a file give the same."""
    view = {key: config[key] for key in ("mean", "std", "interpolation", "resize") if key in config}
    return json.dumps(view, sort_keys=True) if view else ""


def _method_identity(record: Record) -> dict[str, Any]:
    who = {"backbone": record.backbone, "method": record.method, "method_config": comparable_method_config(record)}
    return {**who, "search": describe_search(record)}


def _accuracy(record: Record) -> float:
    if record.status != "done" or record.accuracy is None:
        raise NotComparable(f"Record {record.cell_id} has no accuracy (status {record.status!r}).")
    return record.accuracy


def _check_same(records: Sequence[Record], fields: Callable[[Record], Mapping[str, Any]]) -> None:
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
