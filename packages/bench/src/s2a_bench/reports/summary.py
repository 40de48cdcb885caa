"""The whole report as data, before it is written as HTML or Markdown."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from s2a_bench.cells import learning
from s2a_bench.cells.record import Record
from s2a_bench.reports.sections import PlannedTable, Section
from s2a_bench.reports.variants import format_option


@dataclasses.dataclass(frozen=True)
class Summary:
    """Sections, broken files and counts of a report.

    Attributes:
        sections: In the order of the page.
        broken: One sentence for each file that is not a record.
        trials: Records of searches' trials, which are in no section.
        planned: Cells that sweeps planned and that have no record.
        unplaced: Those of them that belong to no section.
    """

    sections: tuple[Section, ...]
    broken: tuple[str, ...] = ()
    trials: int = 0
    planned: int = 0
    unplaced: tuple[PlannedTable, ...] = ()

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
        """How many cells are done, failed, and planned but not run, and when they ran."""
        states = collections.Counter(record.status for record in self.records)
        times = sorted(record.started_at for record in self.records if record.started_at)
        unlearned = sum(bool(learning.find_problems(record)) for record in self.records)
        done = f"{states['done']} cell{'' if states['done'] == 1 else 's'} done"
        done += f" ({unlearned} did not learn)" if unlearned else ""
        words = [done, f"{states['failed']} failed"] + (
            [f"{self.planned} planned, not run yet"] if self.planned else []
        )
        words += [f"{len(self.broken)} broken file{'s' * (len(self.broken) > 1)}"] if self.broken else []
        words += (
            [f"{self.trials} trial{'s' * (self.trials > 1)} of searches on val, in no table"] if self.trials else []
        )
        times = [time.replace("T", " ").replace("+00:00", " UTC") for time in times]
        several = f"Cells started between {times[0]} and {times[-1]}." if times else ""
        when = f" {several if times[0] != times[-1] else f'Started {times[0]}.'}" if times else ""
        return ", ".join(words) + "." + when

    @property
    def provenance(self) -> list[tuple[str, str, int]]:
        """Machines, versions, code and data: what, which, and in how many cells."""
        found: collections.Counter[tuple[str, str]] = collections.Counter()
        for r in self.records:
            found["hardware", _join_pairs(r.hardware)] += 1
            found["versions", _join_pairs(r.versions)] += 1
            dirty = " with uncommitted changes" if r.git_dirty else ""
            found["git", f"{r.git_sha or 'unknown'}{dirty}"] += 1
            weights = "random weights" if r.random_weights else r.checkpoint_id
            found["checkpoint", f"{r.backbone}: {weights or 'unknown'}"] += 1
            if r.status == "done":
                size = f"{r.classes} classes, {r.train_images} images trained on, {r.scored_images} scored"
                found["data", f"{r.suite} / {r.dataset}: {size}, data_id {r.data_id}, split_id {r.split_id}"] += 1
        order = ["hardware", "versions", "git", "checkpoint", "data"]
        return [(*key, found[key]) for key in sorted(found, key=lambda key: (order.index(key[0]), key[1]))]


def _join_pairs(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{key} {format_option(value)}" for key, value in sorted(values.items())) or "unknown"
