"""One cell from config to record: the only place where the steps meet.

``python -m s2a_bench.cells.run cell.json OUTPUT`` runs a cell bare, without sweep, tracker or command-line library.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import gc
import json
import math
import os
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import s2a
import torch
from torch import nn

from s2a_bench import failures as faults
from s2a_bench.cells import backbones, features, measure
from s2a_bench.cells.backbones import DataFormat
from s2a_bench.cells.checkpoint import Keeper
from s2a_bench.cells.outputs import Keep, adapter_path, features_folder, file_id, settle
from s2a_bench.cells.record import Record, cell_id, make_folder, sync_folder, write
from s2a_bench.cells.train import Images, accuracy, attach, train
from s2a_bench.config import BackboneConfig, CellConfig, TrainConfig, from_dict, identifying
from s2a_bench.data import loading as data
from s2a_bench.data.table.lookup import DATASETS

OnEpoch = Callable[[dict[str, float]], None]
OnLook = Callable[[Record], None]


@functools.lru_cache(maxsize=256)
def _check_method(
    backbone: BackboneConfig, method: str, options: str, classes: int, number_format: TrainConfig
) -> DataFormat:
    """Attaches once: a rank, a reduction, a budget or a file that does not fit is found before anything runs."""
    model, expected = backbones.create(backbone)
    attach(model, s2a.method_config(method, **json.loads(options)), classes, expected.size, number_format)
    return expected


def identify(cell: CellConfig) -> str:
    """The cell's id; everything that can be wrong with the cell is found here, before anything runs.

    The id covers suite, dataset with its data and split ids, backbone with its checkpoint id and data format, the
    method's whole config, the recipe, limits, seed and protocol version. Paths, device and threads are not part of it.

    Raises:
        ValueError: Bad input: one sentence.
    """
    return _identity(cell)[0]


def _identity(cell: CellConfig) -> tuple[str, dict[str, Any]]:
    config = s2a.method_config(cell.method.name, **cell.method.options)
    data_id, split_id = data.check_data(cell.data)
    checkpoint = backbones.checkpoint_id(cell.backbone)
    dataset = DATASETS[cell.data.dataset]
    options = json.dumps(dict(cell.method.options), sort_keys=True)
    expected = _check_method(cell.backbone, cell.method.name, options, dataset.classes, cell.train.number_format)
    facts = {
        "suite": cell.data.suite,
        "dataset": cell.data.dataset,
        "data_id": data_id,
        "split_id": split_id,
        "evaluate": cell.data.evaluate,
        "limits": [cell.data.limit_train, cell.data.limit_test],
        "backbone": cell.backbone.name,
        "checkpoint_id": checkpoint,
        "format": dataclasses.asdict(expected),
        "method": cell.method.name,
        "method_config": _plain(identifying(config)),
        "train": identifying(cell.train),
        "seed": cell.seed,
    }
    return cell_id(facts), facts


def _plain(values: Any) -> Any:
    """``values`` as JSON would give them back (tuples become lists)."""
    return json.loads(json.dumps(values))


def run(
    cell: CellConfig, on_epoch: OnEpoch | None = None, keep: Keep | None = None, on_look: OnLook | None = None
) -> Record:
    """Runs a cell; a failure becomes a record too.

    Args:
        cell: The whole input.
        on_epoch: Called after every epoch with the loop's metrics.
        keep: Where to keep checkpoints, from which a killed cell goes on, and the trained state; ``None``: nowhere.
        on_look: Given the record so far after every one of ``cell.looks``.

    Returns:
        A record of status ``done``, or ``failed`` with the error and its traceback.

    Raises:
        ValueError: Bad input, as ``identify``.
    """
    began = time.perf_counter()
    identity, facts = _identity(cell)
    if cell.threads:
        torch.set_num_threads(cell.threads)
    record = _blank(cell, identity, facts)
    try:
        with measure.peak(cell.device) as peak:
            _train_and_measure(cell, record, on_epoch, keep, on_look)
        record.peak_mb = peak.get("peak_mb")
        record.status = "done"
    except Exception as error:
        record.status, record.accuracy = "failed", None
        kind, message = type(error).__name__, str(error) or type(error).__name__
        if faults.out_of_memory(error):
            kind, message = "OutOfMemory", faults.memory_sentence(error, cell.device)
        record.error = {"type": kind, "message": message, "traceback": traceback.format_exc()}
    record.wall_seconds = time.perf_counter() - began
    if record.error and record.error["type"] == "OutOfMemory":
        gc.collect()  # What the failed cell held must not be missing from the next one of this process.
        if cell.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return record


def _blank(cell: CellConfig, identity: str, facts: dict[str, Any]) -> Record:
    sha, dirty = measure.git_state(Path(__file__).parent)
    return Record(
        cell_id=identity,
        status="failed",
        suite=cell.data.suite,
        dataset=cell.data.dataset,
        group=DATASETS[cell.data.dataset].group,
        backbone=cell.backbone.name,
        method=cell.method.name,
        method_config=facts["method_config"],
        train_config=facts["train"],
        seed=cell.seed,
        epochs=cell.train.epochs,
        evaluated_on=cell.data.evaluate,
        data_id=facts["data_id"],
        split_id=facts["split_id"],
        checkpoint_id=facts["checkpoint_id"],
        random_weights=cell.backbone.random_weights,
        limit_train=cell.data.limit_train,
        limit_test=cell.data.limit_test,
        classes=DATASETS[cell.data.dataset].classes,
        trial=cell.trial,
        search=_plain(cell.search),
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_sha=sha,
        git_dirty=dirty,
        versions=measure.versions(),
        hardware=measure.hardware(cell.device),
    )


@dataclasses.dataclass(frozen=True)
class Ready:
    """A cell before its first step.

    Attributes:
        adapted: The backbone with its method and head, on the cell's device.
        loaded: Its images.
        memory: What one step holds, see ``measure.memory``.
    """

    adapted: s2a.Adapted
    loaded: data.TaskData
    memory: dict[str, Any]


def ready(cell: CellConfig) -> Ready:
    """Data, backbone, method and measurement of a cell: everything that comes before training.

    Raises:
        ValueError: Bad input, as ``identify``.
    """
    model, expected = backbones.create(cell.backbone, cell.seed, cell.train.drop_path)
    loaded = data.load_data(
        cell.data,
        size=expected.size,
        mean=expected.mean,
        std=expected.std,
        interpolation=expected.interpolation,
    )
    torch.manual_seed(cell.seed)
    config = s2a.method_config(cell.method.name, **cell.method.options)
    adapted = attach(model, config, loaded.classes, expected.size, cell.train).to(cell.device)
    first = loaded.train.batch(torch.arange(min(cell.train.batch_size, len(loaded.train)))).to(cell.device)
    return Ready(adapted, loaded, measure.memory(adapted, first, cell.train))


@dataclasses.dataclass(frozen=True)
class Material:
    """What the loop trains on.

    Attributes:
        model: The adapted backbone, or its head alone.
        train: Images, or features of a frozen backbone in their place.
        scored: Gives what is scored; of the test set to be called after the last epoch.
    """

    model: nn.Module
    train: Images
    scored: Callable[[], Images]


def material(cell: CellConfig, found: Ready, *, cached: bool, folder: Path | None = None) -> Material:
    """Images, or with ``cached`` features that the frozen backbone computes once.

    Args:
        cell: Whose.
        found: The cell, ready.
        cached: Whether features take the images' place, which ``features.usable`` must allow.
        folder: Where features are kept and shared; ``None``: in memory.
    """
    if not cached:
        return Material(found.adapted, found.loaded.train, lambda: found.loaded.scored)
    key = features.key(_identity(cell)[1], cell.device)

    def of(images: Images, name: str) -> Images:
        return features.compute(found.adapted, images, cell.train, {**key, "list": name}, folder)

    scored = found.loaded.scored
    later = functools.cache(lambda: of(scored, "scored"))
    return Material(features.HeadOnly(found.adapted), of(found.loaded.train, "train"), later)


def _train_and_measure(
    cell: CellConfig, record: Record, on_epoch: OnEpoch | None, keep: Keep | None, on_look: OnLook | None
) -> None:
    found = ready(cell)
    loaded = found.loaded
    record.data_config, record.lossy, record.synthetic = loaded.data_config, loaded.lossy, loaded.synthetic
    record.train_images, record.scored_images = len(loaded.train), len(loaded.scored)
    for name, value in found.memory.items():
        setattr(record, name, value)

    longest = max(len(loaded.train), len(loaded.scored))
    wanted = keep is None or keep.features
    record.feature_cache = wanted and features.usable(found.adapted, loaded.data_config, longest)
    if record.feature_cache:
        record.images_per_second = features.step_speed(found.adapted, loaded.train, cell.train)
    folder = features_folder(keep.output) if keep else None
    what = material(cell, found, cached=record.feature_cache, folder=folder)
    torch.manual_seed(cell.seed)  # Dropout and stochastic depth do not depend on what was measured before.
    keeper = Keeper(keep, record, cell.device) if keep and math.isfinite(keep.checkpoint_every) else None
    look = functools.partial(_look, cell, what) if cell.looks else None
    for metrics in train(what.model, what.train, cell.train, cell.seed, keeper, look):
        record.curve.append(metrics)
        if on_epoch is not None:
            on_epoch(metrics)
        if on_look is not None and "val_accuracy" in metrics:
            on_look(record)
    record.seconds = sum(m["seconds"] for m in record.curve)
    # A process's first epoch pays for warm caches; a single epoch has nothing better to offer.
    first_epochs = {0, *(keeper.starts if keeper else ())}
    steady = [m for index, m in enumerate(record.curve) if index not in first_epochs] or record.curve
    if not record.feature_cache:
        record.images_per_second = len(loaded.train) * len(steady) / sum(m["seconds"] for m in steady)
    started = time.perf_counter()
    record.accuracy = accuracy(what.model, what.scored(), cell.train)
    record.scoring_seconds = time.perf_counter() - started
    if keep and keep.adapters:
        record.adapter_id = _keep_adapter(found.adapted, adapter_path(keep.output, record.cell_id))


def _look(cell: CellConfig, what: Material, epoch: int) -> dict[str, float]:
    if epoch not in cell.looks:
        return {}
    return {"val_accuracy": accuracy(what.model, what.scored(), cell.train)}


def _keep_adapter(adapted: s2a.Adapted, path: Path) -> str:
    make_folder(path.parent)
    s2a.save(adapted, path)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_folder(path.parent)
    return file_id(path)


def main(arguments: list[str]) -> int:
    """``cell.json OUTPUT``: runs the cell of a JSON file and writes its record."""
    if len(arguments) != 2:
        print("usage: python -m s2a_bench.cells.run CELL.json OUTPUT", file=sys.stderr)
        return 2
    try:
        cell = from_dict(CellConfig, json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        record = run(cell, lambda m: print(json.dumps(m), flush=True), Keep(Path(arguments[1])))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = write(record, Path(arguments[1]))
    settle(record, Path(arguments[1]))
    for note in record.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{record.status}: {path}")
    return os.EX_OK if record.status == "done" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
