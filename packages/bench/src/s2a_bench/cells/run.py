"""One cell, from its config to its record: opens it, prepares it, trains, measures and scores.

``python -m s2a_bench.cells.run cell.json OUTPUT`` runs a cell bare, without sweep, tracker or command-line library.
"""

from __future__ import annotations

import dataclasses
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

from s2a_bench import failures
from s2a_bench.cells import features, learning, measure, provenance
from s2a_bench.cells.checkpoint import Checkpointer
from s2a_bench.cells.identity import IdentifiedCell, OpenCell, adapt, data_format, identify, open_cell
from s2a_bench.cells.outputs import ADAPTER_BYTES, Keep, adapter_path, features_folder, file_id, remove_checkpoint
from s2a_bench.cells.record import Record, check_place, new_record, write
from s2a_bench.cells.score import accuracy
from s2a_bench.cells.train import Images, train
from s2a_bench.config import CellConfig, from_dict
from s2a_bench.data import loading as data
from s2a_bench.errors import InputError
from s2a_bench.files import let_streams_take_any_text, make_folder, sync_file

__all__ = ["PreparedCell", "TrainingInput", "identify", "main", "prepare", "run", "training_input"]

OnEpoch = Callable[[dict[str, float]], None]
OnLook = Callable[[Record], None]


def run(
    cell: CellConfig | IdentifiedCell,
    on_epoch: OnEpoch | None = None,
    keep: Keep | None = None,
    on_look: OnLook | None = None,
) -> Record:
    """Runs a cell; a failure becomes a record too.

    Args:
        cell: The whole input; of a cell that was identified before, nothing is identified again.
        on_epoch: Called after every epoch with the loop's metrics.
        keep: Where to write checkpoints, from which a killed cell goes on, and the trained state; ``None``: nowhere.
        on_look: Given the record so far after every one of ``CellConfig.looks``.

    Returns:
        A record of status ``done``, or ``failed`` with the error and its traceback.

    Raises:
        ValueError: Bad input, as ``identity.open_cell``.
    """
    began = time.perf_counter()
    opened = open_cell(cell)
    config = opened.cell.config
    if config.threads:
        torch.set_num_threads(config.threads)
    record = new_record(config, opened.cell.cell_id, opened.cell.facts, provenance.hardware(config.device))
    try:
        with measure.peak(config.device) as peak:
            _train_and_measure(opened, record, on_epoch, keep, on_look)
        record.peak_mb = peak.get("peak_mb")
        record.status = "done"
        record.did_not_learn = learning.find_problems(record)
    except Exception as error:
        record.status, record.accuracy = "failed", None
        kind, message = type(error).__name__, str(error) or type(error).__name__
        if failures.out_of_memory(error):
            kind, message = "OutOfMemory", failures.memory_sentence(error, config.device)
        record.error = {"type": kind, "message": message, "traceback": traceback.format_exc()}
    record.wall_seconds = time.perf_counter() - began
    if record.error and record.error["type"] == "OutOfMemory":
        gc.collect()  # What the failed cell held must not be missing from the next one of this process.
        if config.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return record


@dataclasses.dataclass(frozen=True)
class PreparedCell:
    """A cell before its first step.

    Attributes:
        cell: The cell.
        adapted: The backbone with its method and head, on the cell's device.
        loaded: Its images.
        memory: What one step holds, see ``measure.memory``.
    """

    cell: IdentifiedCell
    adapted: s2a.Adapted
    loaded: data.TaskData
    memory: dict[str, Any]


def prepare(opened: OpenCell) -> PreparedCell:
    """Data, model and memory of a cell: everything that comes before training.

    Raises:
        ValueError: A model that cannot be built, images that cannot be read.
    """
    cell, config = opened.cell, opened.cell.config
    expected, adapted = data_format(cell), opened.adapted
    if adapted is None:
        adapted, found = adapt(config)
        if found != expected:
            raise InputError(
                f"Backbone {config.backbone.name} expects other images here ({found}) than where the cell was "
                f"identified ({expected}); use the same version of timm."
            )
    loaded = data.load_data(config.data, **dataclasses.asdict(expected), opened=opened.dataset)
    adapted = adapted.to(config.device)
    first = loaded.train.batch(torch.arange(min(config.train.batch_size, len(loaded.train)))).to(config.device)
    return PreparedCell(cell, adapted, loaded, measure.memory(adapted, first, config.train))


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """What the loop trains on.

    Attributes:
        model: The adapted backbone, or its head alone.
        train: Images, or features of a frozen backbone in their place.
        scored: Gives what is scored; of the test set to be called after the last epoch.
    """

    model: nn.Module
    train: Images
    scored: Callable[[], Images]


def training_input(prepared: PreparedCell, *, cached: bool, folder: Path | None = None) -> TrainingInput:
    """Images, or with ``cached`` features that the frozen backbone computes once.

    Args:
        prepared: The cell.
        cached: Whether features take the images' place, which ``features.usable`` must allow.
        folder: Where features are kept and shared; ``None``: in memory.
    """
    adapted, loaded = prepared.adapted, prepared.loaded
    if not cached:
        return TrainingInput(adapted, loaded.train, lambda: loaded.scored)
    config = prepared.cell.config
    key = features.key(prepared.cell.facts, config.device)

    def features_of(images: Images, name: str) -> Images:
        return features.compute(adapted, images, config.train, {**key, "list": name}, folder)

    scored = functools.cache(lambda: features_of(loaded.scored, "scored"))
    return TrainingInput(features.HeadOnly(adapted), features_of(loaded.train, "train"), scored)


def _train_and_measure(
    opened: OpenCell, record: Record, on_epoch: OnEpoch | None, keep: Keep | None, on_look: OnLook | None
) -> None:
    """Fills the record: memory and data first, then the curve epoch by epoch, then speed and accuracy."""
    prepared = prepare(opened)
    config, loaded = opened.cell.config, prepared.loaded
    record.data_config, record.lossy, record.synthetic = loaded.data_config, loaded.lossy, loaded.synthetic
    record.train_images, record.scored_images = len(loaded.train), len(loaded.scored)
    counts = loaded.train.labels.bincount(minlength=record.classes).tolist()
    record.guessing_loss = learning.guessing_loss(counts, config.train.label_smoothing)
    for name, value in prepared.memory.items():
        setattr(record, name, value)

    # A frozen backbone runs once over all images, where that is allowed; the speed recorded is that of real steps.
    longest = max(len(loaded.train), len(loaded.scored))
    wanted = keep is None or keep.features
    record.feature_cache = wanted and features.usable(prepared.adapted, loaded.data_config, longest)
    if record.feature_cache:
        record.images_per_second = features.step_speed(prepared.adapted, loaded.train, config.train)
    inputs = training_input(
        prepared, cached=record.feature_cache, folder=features_folder(keep.output) if keep else None
    )

    torch.manual_seed(config.seed)  # Dropout and stochastic depth do not depend on what was measured before.
    checkpointer = Checkpointer(keep, record, config.device) if keep and math.isfinite(keep.checkpoint_every) else None
    look = functools.partial(_look, config, inputs) if config.looks else None
    for metrics in train(inputs.model, inputs.train, config.train, config.seed, checkpointer, look):
        record.curve.append(metrics)
        if on_epoch is not None:
            on_epoch(metrics)
        if on_look is not None and "val_accuracy" in metrics:
            on_look(record)

    record.seconds = sum(m["seconds"] for m in record.curve)
    # A process's first epoch pays for warm caches; a single epoch has nothing better to offer.
    first_epochs = {0, *(checkpointer.starts if checkpointer else ())}
    steady = [m for index, m in enumerate(record.curve) if index not in first_epochs] or record.curve
    if not record.feature_cache:
        record.images_per_second = len(loaded.train) * len(steady) / sum(m["seconds"] for m in steady)
    started = time.perf_counter()
    record.accuracy = accuracy(inputs.model, inputs.scored(), config.train)
    record.guessing_accuracy = learning.guessing_accuracy(loaded.scored.labels.bincount().tolist())
    record.scoring_seconds = time.perf_counter() - started
    record.notes += loaded.notes
    if keep and keep.adapters is not False:
        _keep_adapter(prepared.adapted, record, keep)


def _look(config: CellConfig, inputs: TrainingInput, epoch: int) -> dict[str, float]:
    if epoch not in config.looks:
        return {}
    return {"val_accuracy": accuracy(inputs.model, inputs.scored(), config.train)}


def _keep_adapter(adapted: s2a.Adapted, record: Record, keep: Keep) -> None:
    """Writes the trained state; where that fails, or it is too large, the record says so: its numbers stand."""
    path, size = adapter_path(keep.output, record.cell_id), _trained_bytes(adapted)
    if keep.adapters is None and size > ADAPTER_BYTES:
        record.notes.append(
            f"The trained state was not kept: {size / 1e6:.0f} MB are more than {ADAPTER_BYTES / 1e6:.0f} MB; "
            "--keep-adapters keeps it."
        )
        return
    try:
        make_folder(path.parent)
        s2a.save(adapted, path)
        sync_file(path)
        record.adapter_id = file_id(path)
    except Exception as error:  # a full disk, no memory for a copy, a state that no file can hold
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        record.notes.append(f"The trained state could not be kept ({reason}).")


def _trained_bytes(adapted: s2a.Adapted) -> int:
    """Of what trains, in memory: about the size of the file."""
    return sum(p.numel() * p.element_size() for p in adapted.parameters() if p.requires_grad)


def main(arguments: list[str]) -> int:
    """``cell.json OUTPUT``: runs the cell of a JSON file and writes its record."""
    let_streams_take_any_text()
    if len(arguments) != 2:
        print("usage: python -m s2a_bench.cells.run CELL.json OUTPUT", file=sys.stderr)
        return 2
    try:
        cell = from_dict(CellConfig, json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
        check_place(Path(arguments[1]), identify(cell))
        record = run(cell, lambda m: print(json.dumps(m), flush=True), Keep(Path(arguments[1])))
    except (OSError, ValueError, RecursionError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    path = write(record, Path(arguments[1]))
    remove_checkpoint(record, Path(arguments[1]))
    for note in record.notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"{record.status}: {path}")
    return os.EX_OK if record.status == "done" else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
