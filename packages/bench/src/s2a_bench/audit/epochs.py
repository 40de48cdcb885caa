"""What peeking would have given: cells trained again as they were, but with the test set scored after every epoch.

Many published numbers are the best of such scores. Here they are taken to measure that mistake, and kept apart:
``<output>/audit/<cell id>.json`` is no record, and nothing but this module reads it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from s2a_bench.cells import record as records
from s2a_bench.cells import run
from s2a_bench.cells.record import Record
from s2a_bench.cells.train import accuracy, train
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig, from_dict
from s2a_bench.errors import InputError

KIND = "peek"
WARNING = "An audit, not a result: the test set was scored after every epoch."


@dataclasses.dataclass(frozen=True)
class Peek:
    """One cell whose test set was looked at after every epoch.

    Attributes:
        cell_id: Of the record that was trained again.
        record_accuracy: What that record says: the test accuracy after the last epoch.
        test: Accuracy on test in percent, epoch by epoch.
        loss: Mean training loss, epoch by epoch.
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
        """Points by which the best epoch on test exceeds the last."""
        return max(self.test) - self.test[-1]

    @property
    def best_epoch(self) -> int:
        """The first of the best epochs, counted from 1."""
        return self.test.index(max(self.test)) + 1


@dataclasses.dataclass(frozen=True)
class Line:
    """One method of one suite on one backbone: means over seeds, then over datasets.

    Attributes:
        last: Accuracy after the last epoch.
        best: Accuracy of the best epoch on test.
        inflation: ``best - last``.
        largest: Of a single cell.
        datasets: How many.
        cells: How many.
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


def cell_of(record: Record, data_dir: str | None, weights: str | None, device: str) -> CellConfig:
    """The cell that a record came from.

    Args:
        record: Of a finished cell.
        data_dir: Root of prepared datasets.
        weights: The backbone's file, where it was trained from one.
        device: torch device.

    Raises:
        ValueError: It cannot be run again here, or what would run is another cell: other data, other weights.
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
            ),
            backbone=BackboneConfig(record.backbone, weights, record.random_weights),
            method=MethodConfig(record.method, record.method_config),
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


def peek(cell: CellConfig, record: Record, on_epoch: Callable[[int, float], None] | None = None) -> Peek:
    """Trains a record's cell as ``run.run`` does, and scores the test set after every epoch.

    Args:
        cell: From ``cell_of``.
        record: Its record.
        on_epoch: Told the epoch, from 1, and the test accuracy after it.

    Raises:
        Diverged: The loss became NaN or infinite, which it did not when the record was made.
    """
    found = run.ready(cell)
    what = run.material(cell, found, cached=record.feature_cache)
    scored = what.scored()
    torch.manual_seed(cell.seed)
    test: list[float] = []
    loss: list[float] = []
    for metrics in train(what.model, what.train, cell.train, cell.seed):
        loss.append(metrics["loss"])
        test.append(accuracy(what.model, scored, cell.train))
        what.model.train()
        if on_epoch is not None:
            on_epoch(len(test), test[-1])
    assert record.accuracy is not None
    return Peek(
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


def path(output: Path, cell_id: str) -> Path:
    """Where the audit of a cell lies: never among the records."""
    return output / "audit" / f"{cell_id}.json"


def write(found: Peek, output: Path) -> Path:
    """Writes an audit atomically."""
    place = path(output, found.cell_id)
    records.write_atomic(place, json.dumps(dataclasses.asdict(found), indent=1, allow_nan=False) + "\n")
    return place


def read(output: Path, record: Record) -> Peek | None:
    """The audit of a record, if there is a valid one."""
    try:
        values: dict[str, Any] = json.loads(path(output, record.cell_id).read_text(encoding="utf-8"))
        found = Peek(**{**values, "test": tuple(values["test"]), "loss": tuple(values["loss"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    whole = found.kind == KIND and found.cell_id == record.cell_id and len(found.test) == record.epochs
    return found if whole else None


def lines(found: Iterable[Peek]) -> list[Line]:
    """The audit's table: per suite, backbone and method, the largest inflation first."""
    groups: dict[tuple[str, str, str], dict[str, list[Peek]]] = {}
    for each in found:
        groups.setdefault((each.suite, each.backbone, each.method), {}).setdefault(each.dataset, []).append(each)
    rows = [_line(*key, tasks) for key, tasks in groups.items()]
    return sorted(rows, key=lambda row: (row.suite, row.backbone, -row.inflation, row.method))


def _line(suite: str, backbone: str, method: str, tasks: Mapping[str, Sequence[Peek]]) -> Line:
    last = statistics.fmean(statistics.fmean(p.test[-1] for p in seeds) for seeds in tasks.values())
    best = statistics.fmean(statistics.fmean(max(p.test) for p in seeds) for seeds in tasks.values())
    every = [p for seeds in tasks.values() for p in seeds]
    largest = max(p.inflation for p in every)
    return Line(suite, backbone, method, last, best, best - last, largest, len(tasks), len(every))
