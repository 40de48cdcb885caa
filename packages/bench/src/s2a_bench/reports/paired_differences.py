"""Paired comparison of two methods: differences over cells of the same dataset and seed, with a bootstrap interval."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from s2a_bench.cells.record import Record
from s2a_bench.reports import statistics as stats

RESAMPLES, SEED, CONFIDENCE = 2000, 0, 0.95
MIN_PAIRS = 6
"""With fewer pairs no difference is significant: five have the same sign by chance with probability 2 / 2**5 = 6 %."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference of two methods, in points of accuracy.

    Attributes:
        mean: Mean over tasks of the mean over seeds: every task weighs the same.
        low: Lower end of the bootstrap interval; ``None`` with a single pair.
        high: Upper end.
        tasks: How many tasks have pairs.
        pairs: How many pairs of cells.
    """

    mean: float
    low: float | None
    high: float | None
    tasks: int
    pairs: int

    def __neg__(self) -> Difference:
        """The comparison with both methods exchanged."""
        if self.low is None or self.high is None:
            return dataclasses.replace(self, mean=-self.mean)
        return dataclasses.replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    @property
    def significant(self) -> bool:
        """Whether there are ``MIN_PAIRS`` pairs and the interval, of more than zero width, excludes 0."""
        if self.low is None or self.high is None or self.pairs < MIN_PAIRS or self.high - self.low < 1e-9:
            return False
        return self.low > 0 or self.high < 0


def pair_differences(a: Sequence[Record], b: Sequence[Record]) -> dict[str, list[float]]:
    """``a`` minus ``b`` by dataset, over the seeds that both have on the same data; failed cells are left out.

    So is a seed that a row has twice on a dataset (with two recipes), since it is not clear which one to compare.
    """

    def by_key(records: Sequence[Record]) -> dict[tuple[str, int], list[Record]]:
        found: dict[tuple[str, int], list[Record]] = {}
        for record in records:
            if record.status == "done" and record.accuracy is not None:
                found.setdefault((record.dataset, record.seed), []).append(record)
        return found

    left, right = by_key(a), by_key(b)
    found: dict[str, list[float]] = {}
    for key in sorted(left.keys() & right.keys()):
        if len(left[key]) == len(right[key]) == 1:
            one, other = left[key][0], right[key][0]
            if stats.data_identity(one) == stats.data_identity(other):
                assert one.accuracy is not None and other.accuracy is not None
                found.setdefault(key[0], []).append(one.accuracy - other.accuracy)
    return found


def bootstrap_difference(by_task: dict[str, list[float]]) -> Difference | None:
    """Mean and bootstrap interval of paired differences; ``None`` without any.

    With differences ``d_ts`` of task ``t`` and seed ``s``, the statistic is ``D = mean_t(mean_s(d_ts))``. The interval
    is that of the two-level percentile bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
    chapter 13): ``RESAMPLES`` times, draw as many tasks as there are, with replacement, and within each drawn task as
    many of its seeds as it has, with replacement; the interval holds the middle ``CONFIDENCE`` of the values of ``D``.
    The generator has a fixed seed, so that the same records give the same interval.

    Args:
        by_task: Differences by dataset, none of them empty.
    """
    if not by_task:
        return None
    tasks = [np.asarray(values, dtype=float) for values in by_task.values()]
    counts = np.array([len(values) for values in tasks])
    mean, pairs = math.fsum(float(values.mean()) for values in tasks) / len(tasks), int(counts.sum())
    if pairs < 2:
        return Difference(mean, None, None, len(tasks), pairs)
    generator = np.random.default_rng(SEED)
    # 1. Tasks: (resamples, tasks) indices, and the number of seeds of each drawn task, (resamples, tasks, 1).
    drawn = generator.integers(len(tasks), size=(RESAMPLES, len(tasks)))
    size = counts[drawn][..., None]
    # 2. Seeds: indices into all differences one after the other. Every task gets as many as the largest one has; those
    # beyond its own number are masked out.
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))[drawn][..., None]
    places = starts + (generator.random((*drawn.shape, int(counts.max()))) * size).astype(int)
    used = np.arange(int(counts.max())) < size
    values = np.where(used, np.concatenate(tasks)[np.minimum(places, pairs - 1)], 0.0)
    # 3. Mean over seeds, then over tasks, per resample.
    means = (values.sum(-1) / size[..., 0]).mean(-1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(mean, float(low), float(high), len(tasks), pairs)


def compare_rows(a: Sequence[Record], b: Sequence[Record]) -> Difference | None:
    """Difference of the records of two rows; ``None`` where they share no cell."""
    return bootstrap_difference(pair_differences(a, b))
