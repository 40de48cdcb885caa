"""Measures the gain from choosing the epoch on the test set.

Finished cells are trained again exactly as before, but the test set is scored after every epoch. With accuracies
``a_1, ..., a_E``, the inflation is ``max_e(a_e) - a_E``: what reporting the best epoch instead of the last one would
add. Many published numbers are such maxima. The scores are kept apart from results: ``<output>/audit/<cell id>.json``
is not a record, and no other module reads it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s2a_bench.cells import recipes, run
from s2a_bench.cells.identity import open_cell
from s2a_bench.cells.record import Record
from s2a_bench.cells.scores import accuracy
from s2a_bench.cells.train import train
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig, from_dict
from s2a_bench.data import augment
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic

KIND = "peek"
WARNING = "An audit, not a result: the test set was scored after every epoch."


@dataclasses.dataclass(frozen=True)
class EpochAudit:
    """Test accuracies of one cell after every epoch.

    Attributes:
        cell_id: Of the record that was trained again.
        record_accuracy: What that record says: the test accuracy after the last epoch.
        test: Test accuracy in percent after each epoch.
        loss: Mean training loss of each epoch.
        kind: Always ``KIND``.
        warning: Always ``WARNING``.
    """

    cell_id: str
    suite: str
    dataset: str
    backbone: str
    method: str
    seed: int
    record_accuracy: float
    test: tuple[float, ...]
    loss: tuple[float, ...]
    kind: str = KIND
    warning: str = WARNING

    @property
    def inflation(self) -> float:
        """Points by which the best epoch exceeds the last: ``max(test) - test[-1]``."""
        return max(self.test) - self.test[-1]

    @property
    def best_epoch(self) -> int:
        """The first epoch with the highest test accuracy, counted from 1."""
        return self.test.index(max(self.test)) + 1


@dataclasses.dataclass(frozen=True)
class AuditRow:
    """One method of one suite on one backbone: means over seeds, then over datasets, in percent.

    Attributes:
        last: Accuracy after the last epoch.
        best: Accuracy of the best epoch on test.
        inflation: ``best - last``.
        largest: Largest inflation of a single cell.
        datasets: Number of datasets.
        cells: Number of cells.
    """

    suite: str
    backbone: str
    method: str
    last: float
    best: float
    inflation: float
    largest: float
    datasets: int
    cells: int


def recreate_cell(record: Record, data_dir: str | None, weights: str | None, device: str) -> CellConfig:
    """Recreates the cell config of a record.

    Args:
        record: Of a finished cell.
        data_dir: Root of prepared datasets.
        weights: The backbone's file, where it was trained from one.
        device: torch device.

    Raises:
        InputError: It cannot be run here, or it would be another cell, with other data or weights.
    """
    what = f"Record {record.cell_id} ({record.method} on {record.dataset}, seed {record.seed}) cannot be trained again"
    try:
        plain = CellConfig(
            data=DataConfig(
                suite=record.suite,
                dataset=record.dataset,
                root=data_dir,
                limit_train=record.limit_train,
                limit_test=record.limit_test,
                **augment.from_record(record.data_config),
            ),
            backbone=BackboneConfig(record.backbone, weights, record.random_weights),
            method=MethodConfig(record.method, recipes.as_recorded(record.method, record.method_config)),
            train=from_dict(TrainConfig, record.train_config, "train."),
            seed=record.seed,
            device=device,
        )
        sized = dataclasses.replace(plain.backbone, image_size=record.data_config.get("size"))
        for cell in (plain, dataclasses.replace(plain, backbone=sized)):
            if run.identify(cell) == record.cell_id:
                return cell
    except ValueError as error:
        raise InputError(f"{what}: {error}") from error
    raise InputError(
        f"{what}: its data, weights, recipe or protocol are not what is here; give its --data-dir and --weights, or "
        "run the sweep again."
    )


def score_every_epoch(
    cell: CellConfig,
    record: Record,
    on_epoch: Callable[[int, float], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> EpochAudit:
    """Trains the cell of a record as ``run.run`` does, and scores the test set after every epoch.

    Args:
        cell: From ``recreate_cell``.
        record: Its record.
        on_epoch: Called with the epoch, from 1, and the test accuracy after it.
        on_step: Called with how many steps of how many are done.

    Raises:
        Diverged: The loss became NaN or infinite, which it did not when the record was made.
    """
    what = run.training_input(run.prepare(open_cell(cell)), cached=record.feature_cache)
    scored = what.scored()
    torch.manual_seed(cell.seed)
    test: list[float] = []
    loss: list[float] = []
    for metrics in train(what.model, what.train, cell.train, cell.seed, on_step=on_step):
        loss.append(metrics["loss"])
        test.append(accuracy(what.model, scored, cell.train))
        what.model.train()
        if on_epoch is not None:
            on_epoch(len(test), test[-1])
    assert record.accuracy is not None
    return EpochAudit(
        cell_id=record.cell_id,
        suite=record.suite,
        dataset=record.dataset,
        backbone=record.backbone,
        method=record.method,
        seed=record.seed,
        record_accuracy=record.accuracy,
        test=tuple(test),
        loss=tuple(loss),
    )


def audit_path(output: Path, cell_id: str) -> Path:
    """Path of a cell's audit, outside the folder of records."""
    return output / "audit" / f"{cell_id}.json"


def write_audit(found: EpochAudit, output: Path) -> Path:
    """Writes an audit atomically."""
    place = audit_path(output, found.cell_id)
    write_atomic(place, json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False) + "\n")
    return place


def read_audit(output: Path, record: Record) -> EpochAudit | None:
    """Reads the audit of a record; ``None`` if there is no valid one."""
    try:
        values: dict[str, Any] = json.loads(audit_path(output, record.cell_id).read_text(encoding="utf-8"))
        found = EpochAudit(**{**values, "test": tuple(values["test"]), "loss": tuple(values["loss"])})
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None
    whole = found.kind == KIND and found.cell_id == record.cell_id and len(found.test) == record.epochs
    return found if whole else None


def summarise_audits(found: Iterable[EpochAudit]) -> list[AuditRow]:
    """Rows of the audit's table, one per suite, backbone and method, the largest inflation first."""
    groups: dict[tuple[str, str, str], dict[str, list[EpochAudit]]] = {}
    for each in found:
        groups.setdefault((each.suite, each.backbone, each.method), {}).setdefault(each.dataset, []).append(each)
    rows = [_make_row(*key, tasks) for key, tasks in groups.items()]
    return sorted(rows, key=lambda row: (row.suite, row.backbone, -row.inflation, row.method))


def _make_row(suite: str, backbone: str, method: str, tasks: Mapping[str, Sequence[EpochAudit]]) -> AuditRow:
    last = statistics.fmean(statistics.fmean(p.test[-1] for p in seeds) for seeds in tasks.values())
    best = statistics.fmean(statistics.fmean(max(p.test) for p in seeds) for seeds in tasks.values())
    every = [p for seeds in tasks.values() for p in seeds]
    largest = max(p.inflation for p in every)
    return AuditRow(suite, backbone, method, last, best, best - last, largest, len(tasks), len(every))
