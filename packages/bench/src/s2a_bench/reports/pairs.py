"""Two methods compared cell by cell: the same dataset, the same seed, then the difference."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from s2a_bench.cells.record import Record
from s2a_bench.reports import statistics as stats

RESAMPLES, SEED, CONFIDENCE = 2000, 0, 0.95
MIN_PAIRS = 6
"""Fewer pairs never call a difference real: with five, even a sign test finds all of one sign by chance at 6 %."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """The mean difference of two methods, in points of accuracy.

    Attributes:
        mean: Every task weighs the same, however many seeds it has.
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
        """The same comparison the other way round."""
        if self.low is None or self.high is None:
            return dataclasses.replace(self, mean=-self.mean)
        return dataclasses.replace(self, mean=-self.mean, low=-self.high, high=-self.low)

    @property
    def significant(self) -> bool:
        """Whether it is outside the noise: ``FEWEST`` pairs, and an interval with a width that leaves out 0."""
        if self.low is None or self.high is None or self.pairs < MIN_PAIRS or self.high - self.low < 1e-9:
            return False
        return self.low > 0 or self.high < 0


def pair_differences(a: Sequence[Record], b: Sequence[Record]) -> dict[str, list[float]]:
    """``a`` minus ``b`` by dataset, for the seeds that both have on the same data; failed cells make no pair.

    A seed that comes twice on a dataset (two recipes in one row) makes none either: which of them to take is not known.
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
    """Mean and interval of paired differences; ``None`` without any.

    The interval is the percentile bootstrap of ``RESAMPLES`` draws with a fixed seed: tasks are drawn with replacement
    and, within each drawn task, its seeds. A single task is drawn always; then only its seeds vary.

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
    drawn = generator.integers(len(tasks), size=(RESAMPLES, len(tasks)))
    size = counts[drawn][..., None]
    starts = np.concatenate(([0], np.cumsum(counts)[:-1]))[drawn][..., None]
    places = starts + (generator.random((*drawn.shape, int(counts.max()))) * size).astype(int)
    used = np.arange(int(counts.max())) < size
    values = np.where(used, np.concatenate(tasks)[np.minimum(places, pairs - 1)], 0.0)
    means = (values.sum(-1) / size[..., 0]).mean(-1)
    low, high = np.quantile(means, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Difference(mean, float(low), float(high), len(tasks), pairs)


def compare_rows(a: Sequence[Record], b: Sequence[Record]) -> Difference | None:
    """The difference of two rows' records; ``None`` where they share no cell."""
    return bootstrap_difference(pair_differences(a, b))
