"""Measures the gain from choosing a search's config on the test set.

A search chooses its config on val. Here each of the configs that it tried is trained as a final cell, on train and val
together, and scored on test. With these accuracies ``a_c`` and the chosen config ``c*``, the inflation is
``max_c(a_c) - a_c*``. The scores are kept apart from results: ``<output>/audit/trial-<cell id>.json`` is not a record,
and no other module reads it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.audit import epochs
from s2a_bench.cells import recipes, run
from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, MethodConfig, TrainConfig, from_dict
from s2a_bench.errors import InputError
from s2a_bench.failures import cause
from s2a_bench.files import write_atomic

KIND = "trial"
WARNING = "An audit, not a result: the test set was scored for every config that the search tried."


@dataclasses.dataclass(frozen=True)
class TriedConfig:
    """The config of one trial as a final cell.

    Attributes:
        cell_id: Id of the final cell, of which there may be no record.
        trial_id: Id of the trial.
        cell: The final cell.
    """

    cell_id: str
    trial_id: str
    cell: CellConfig


@dataclasses.dataclass(frozen=True)
class TestScore:
    """The test accuracy of a config, after the last epoch.

    Attributes:
        cell_id: Of the final cell with that config.
        accuracy: In percent; ``None`` where its loss was not finite.
        kind: Always ``KIND``.
        warning: Always ``WARNING``.
    """

    cell_id: str
    accuracy: float | None
    kind: str = KIND
    warning: str = WARNING


@dataclasses.dataclass(frozen=True)
class SearchAudit:
    """A final record and what every config of its search scores on test.

    Attributes:
        record: The one that the search led to.
        accuracies: On test, of all configs that finished, the chosen one included.
    """

    record: Record
    accuracies: tuple[float, ...]

    @property
    def inflation(self) -> float:
        """Points by which the best config on test exceeds the chosen one."""
        assert self.record.accuracy is not None
        return max(self.accuracies) - self.record.accuracy


def select_searched(chosen: Iterable[Record]) -> list[Record]:
    """Selects records whose config a search chose; of each search only that with the lowest seed, to save time."""
    found: dict[tuple[str, ...], Record] = {}
    for record in sorted(chosen, key=lambda record: record.seed):
        if record.search is not None:
            found.setdefault((record.dataset, *record.search["trial_ids"]), record)
    return list(found.values())


def list_tried_configs(record: Record, base: CellConfig, output: Path) -> list[TriedConfig]:
    """Final cells of all configs that a record's search tried, each once; trials that failed are left out.

    Args:
        record: From ``select_searched``.
        base: Its own cell, from ``epochs.recreate_cell``.
        output: Where the trials' records lie.

    Raises:
        InputError: The record of a trial is missing, or its config cannot be run here.
    """
    assert record.search is not None
    found: dict[str, TriedConfig] = {}
    for trial_id in record.search["trial_ids"]:
        try:
            trial = records.read(records.record_path(output, trial_id))
        except (OSError, ValueError) as error:
            raise InputError(
                f"Trial {trial_id} of the search behind {record.cell_id} has no record ({error}); run the search "
                "again, or leave this part out with --skip-trials."
            ) from error
        if trial.status == "failed":
            continue
        cell = dataclasses.replace(
            base,
            method=MethodConfig(trial.method, recipes.as_recorded(trial.method, trial.method_config)),
            train=from_dict(TrainConfig, trial.train_config, "train."),
        )
        cell_id = run.identify(cell)
        found.setdefault(cell_id, TriedConfig(cell_id, trial_id, cell))
    return list(found.values())


def find_known_score(one: TriedConfig, output: Path) -> TestScore | None:
    """The score of a config from a finished record or an earlier audit; ``None``: it has to be trained."""
    try:
        record = records.read(records.record_path(output, one.cell_id))
        if record.status == "done":
            return TestScore(one.cell_id, record.accuracy)
    except (OSError, ValueError):
        pass
    try:
        values: dict[str, Any] = json.loads(score_path(output, one.cell_id).read_text(encoding="utf-8"))
        found = TestScore(**values)
    except (OSError, ValueError, TypeError, RecursionError):
        return None
    return found if found.kind == KIND and found.cell_id == one.cell_id else None


def score_config(one: TriedConfig, on_step: Callable[[int, int], None] | None = None) -> TestScore:
    """Trains a config on train and val together and scores test, once.

    Args:
        one: The config.
        on_step: Called with how many steps of how many are done.

    Raises:
        RuntimeError: The cell failed for another reason than a loss that is not finite.
    """
    record = run.run(one.cell, on_step=on_step)
    kind = (record.error or {}).get("type")
    if record.status != "done" and kind != "Diverged":
        raise RuntimeError(f"Cell {one.cell_id} failed: {cause(record)}")
    return TestScore(one.cell_id, record.accuracy)


def score_path(output: Path, cell_id: str) -> Path:
    """Path of a config's score, outside the folder of records."""
    return output / "audit" / f"trial-{cell_id}.json"


def write_score(found: TestScore, output: Path) -> Path:
    """Writes a score atomically."""
    place = score_path(output, found.cell_id)
    write_atomic(place, json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False) + "\n")
    return place


def summarise_searches(found: Iterable[SearchAudit]) -> list[epochs.AuditRow]:
    """Rows per suite, backbone and method: ``last`` is the chosen config, ``best`` the best config on test."""
    groups: dict[tuple[str, str, str], list[SearchAudit]] = {}
    for each in found:
        groups.setdefault((each.record.suite, each.record.backbone, each.record.method), []).append(each)
    rows = [_make_row(*key, members) for key, members in groups.items()]
    return sorted(rows, key=lambda row: (row.suite, row.backbone, -row.inflation, row.method))


def _make_row(suite: str, backbone: str, method: str, members: Sequence[SearchAudit]) -> epochs.AuditRow:
    tasks: dict[str, list[SearchAudit]] = {}
    for each in members:
        tasks.setdefault(each.record.dataset, []).append(each)

    def mean(value: Any) -> float:
        return statistics.fmean(statistics.fmean(value(each) for each in some) for some in tasks.values())

    last, best = mean(lambda each: each.record.accuracy), mean(lambda each: max(each.accuracies))
    largest = max(each.inflation for each in members)
    return epochs.AuditRow(suite, backbone, method, last, best, best - last, largest, len(tasks), len(members))
