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

import s2a
import torch

from s2a_bench import failures
from s2a_bench.cells import features, learning, measure, provenance
from s2a_bench.cells.checkpoint import Checkpointer
from s2a_bench.cells.evaluation import NO_TEST, describe_stop, stops
from s2a_bench.cells.identity import IdentifiedCell, OpenCell, identify, open_cell
from s2a_bench.cells.outputs import ADAPTER_BYTES, Keep, adapter_path, features_folder, file_id, remove_checkpoint
from s2a_bench.cells.prepare import PreparedCell, TrainingInput, prepare, training_input
from s2a_bench.cells.record import Record, check_place, new_record, write
from s2a_bench.cells.scores import Scored, accuracy, score
from s2a_bench.cells.select import Selection
from s2a_bench.cells.train import Diverged, train
from s2a_bench.config import CellConfig, from_dict
from s2a_bench.data import loading as data
from s2a_bench.files import let_streams_take_any_text, make_folder, sync_file

__all__ = ["PreparedCell", "Trained", "TrainingInput", "identify", "main", "prepare", "run", "training_input"]


@dataclasses.dataclass(frozen=True)
class Trained:
    """A model that a cell has trained, with the weights that its record is about.

    Attributes:
        adapted: The model.
        record: Its record; of an interrupted cell what is known so far, with status ``failed``.
        loaded: Its images.
        best_epoch: After how many epochs it had these weights.
        interrupted: Whether Ctrl-C ended the training: the weights are those of the best epoch so far.
        val: With ``evaluate="select"`` what it says of the validation images.
        test: Likewise of the test images; ``None`` where there are none, and of an interrupted cell, which has yet to
            be scored once.
    """

    adapted: s2a.Adapted
    record: Record
    loaded: data.TaskData
    best_epoch: int
    interrupted: bool = False
    val: Scored | None = None
    test: Scored | None = None


OnEpoch = Callable[[dict[str, float]], None]
OnLook = Callable[[Record], None]
OnStep = Callable[[int, int], None]
OnTrained = Callable[[Trained], None]


def run(
    cell: CellConfig | IdentifiedCell,
    on_epoch: OnEpoch | None = None,
    keep: Keep | None = None,
    on_look: OnLook | None = None,
    on_trained: OnTrained | None = None,
    on_step: OnStep | None = None,
) -> Record:
    """Runs a cell; a failure becomes a record too.

    Args:
        cell: The whole input; of a cell that was identified before, nothing is identified again.
        on_epoch: Called after every epoch with the loop's metrics, ``eta_seconds``, until the last epoch would end, and
            ``peak_mb``, the most memory so far (where it can be told: see ``measure.peak``).
        keep: Where to write checkpoints, from which a killed cell goes on, and the trained state; ``None``: nowhere.
        on_look: Given the record so far after every one of ``CellConfig.looks``.
        on_trained: Given the trained model once, when its record is done; what it raises is raised here. After Ctrl-C
            too, where ``evaluate="select"`` has a best epoch so far: the interrupt is raised afterwards, and the
            checkpoint stays, so that the same cell goes on from it.
        on_step: Called after every step with how many are done, of how many in all epochs.

    Returns:
        A record of status ``done``, or ``failed`` with the error and its traceback.

    Raises:
        ValueError: Bad input, as ``identity.open_cell``.
        KeyboardInterrupt: As it came.
    """
    began = time.perf_counter()
    opened = open_cell(cell)
    config = opened.cell.config
    if config.threads:
        torch.set_num_threads(config.threads)
    record = new_record(config, opened.cell.cell_id, opened.cell.facts, provenance.hardware(config.device))
    trained = None
    try:
        with measure.peak(config.device) as peak:
            trained = _train_and_measure(
                opened, record, on_epoch, keep, on_look, wanted=on_trained is not None, on_step=on_step
            )
        record.peak_mb = peak.get("peak_mb")
        record.status = "failed" if trained.interrupted else "done"
        record.did_not_learn = learning.find_problems(record)
    except Exception as error:
        record.status, record.accuracy = "failed", None
        kind, message = type(error).__name__, str(error) or type(error).__name__
        if failures.out_of_memory(error):
            kind, message = "OutOfMemory", failures.memory_sentence(error, config.device)
        record.error = {"type": kind, "message": message, "traceback": traceback.format_exc()}
    record.wall_seconds = time.perf_counter() - began
    if trained is not None and on_trained is not None and record.error is None:
        on_trained(trained)
    if trained is not None and trained.interrupted:
        raise KeyboardInterrupt
    if record.error and record.error["type"] == "OutOfMemory":
        gc.collect()  # What the failed cell held must not be missing from the next one of this process.
        if config.device.startswith("cuda"):
            torch.cuda.empty_cache()
    return record


def _train_and_measure(
    opened: OpenCell,
    record: Record,
    on_epoch: OnEpoch | None,
    keep: Keep | None,
    on_look: OnLook | None,
    *,
    wanted: bool,
    on_step: OnStep | None,
) -> Trained:
    """Fills the record: memory and data first, then the curve epoch by epoch, then speed and accuracy.

    Args:
        opened: The cell.
        record: To be filled.
        on_epoch: As for ``run``.
        keep: Likewise.
        on_look: Likewise.
        wanted: Whether somebody wants what was trained, after Ctrl-C too.
        on_step: As for ``run``.
    """
    prepared = prepare(opened)
    config, loaded = opened.cell.config, prepared.loaded
    record.data_config, record.lossy, record.synthetic = loaded.data_config, loaded.lossy, loaded.synthetic
    record.train_images, record.scored_images = len(loaded.train), len(loaded.scored)
    record.guessing_loss = learning.guessing_loss(_class_counts(record, loaded), config.train.label_smoothing)
    for name, value in prepared.memory.items():
        setattr(record, name, value)

    # A frozen backbone runs once over all images, where that is allowed; the speed recorded is that of real steps.
    longest = max(len(images) for images in (loaded.train, loaded.scored, loaded.val) if images is not None)
    cacheable = keep is None or keep.features
    record.feature_cache = cacheable and features.usable(prepared.adapted, loaded.data_config, longest)
    if record.feature_cache:
        record.images_per_second = features.step_speed(prepared.adapted, loaded.train, config.train)
    inputs = training_input(
        prepared, cached=record.feature_cache, folder=features_folder(keep.output) if keep else None
    )
    selection = None if inputs.val is None else Selection(inputs.model, inputs.val(), config.train)

    torch.manual_seed(config.seed)  # Dropout and stochastic depth do not depend on what was measured before.
    try:
        _run_epochs(config, record, inputs, selection, on_epoch, keep, on_look, on_step)
        trained = _score(prepared, record, inputs, selection, wanted=wanted)
    except KeyboardInterrupt:
        if selection is None or not selection.epoch or not wanted:
            raise
        return _finish_interrupted(prepared, record, inputs, selection)
    record.notes += loaded.notes
    if keep and keep.adapters is not False:
        _keep_adapter(prepared.adapted, record, keep)
    return trained


def _class_counts(record: Record, loaded: data.TaskData) -> list[int]:
    """Images of each class in the training list, as the loss weights them."""
    counts = loaded.train.labels.bincount(minlength=record.classes)
    return (counts.clamp(max=1) if record.train_config.get("balance") else counts).tolist()


def _run_epochs(
    config: CellConfig,
    record: Record,
    inputs: TrainingInput,
    selection: Selection | None,
    on_epoch: OnEpoch | None,
    keep: Keep | None,
    on_look: OnLook | None,
    on_step: OnStep | None,
) -> None:
    """Trains; the record gets its curve, seconds and speed."""
    checkpointer = None
    if keep and math.isfinite(keep.checkpoint_every):
        checkpointer = Checkpointer(keep, record, config.device, selection=selection)
    look = functools.partial(_look, config, inputs) if config.looks else None
    look = look if selection is None else selection.look
    try:
        for metrics in train(inputs.model, inputs.train, config.train, config.seed, checkpointer, look, on_step):
            record.curve.append(metrics)
            if on_epoch is not None:
                most = measure.peak_so_far(config.device)
                on_epoch({**metrics, "eta_seconds": _seconds_left(record)} | ({"peak_mb": most} if most else {}))
            if on_look is not None and metrics["epoch"] in config.looks:
                on_look(record)
            early = selection is not None and len(record.curve) < record.epochs
            if early and stops(record.curve, config.train.patience):
                record.notes.append(describe_stop(record.curve, config.train))
                break
    except Diverged as error:
        # The weights of the best epoch are whole: hours of training are not thrown away with the last step.
        if selection is None or not selection.epoch:
            raise
        record.notes.append(f"{error} The weights are those of epoch {selection.epoch}, the best before.")

    record.seconds = sum(m["seconds"] for m in record.curve)
    # A process's first epoch pays for warm caches; a single epoch has nothing better to offer.
    first_epochs = {0, *(checkpointer.starts if checkpointer else ())}
    steady = [m for index, m in enumerate(record.curve) if index not in first_epochs] or record.curve
    if not record.feature_cache:
        record.images_per_second = record.train_images * len(steady) / sum(m["seconds"] for m in steady)


def _seconds_left(record: Record) -> float:
    """Until the last epoch ends, at the pace of the epochs so far; the first one, which warms up, counts only alone."""
    took = [m["seconds"] + m.get("val_seconds", 0.0) for m in record.curve]
    steady = took[1:] or took
    return (record.epochs - len(took)) * sum(steady) / len(steady)


def _look(config: CellConfig, inputs: TrainingInput, epoch: int) -> dict[str, float]:
    if epoch not in config.looks:
        return {}
    return {"val_accuracy": accuracy(inputs.model, inputs.scored(), config.train)}


def _score(
    prepared: PreparedCell, record: Record, inputs: TrainingInput, selection: Selection | None, *, wanted: bool
) -> Trained:
    """Scores what is scored once, with the weights of the best epoch where there is one."""
    config, loaded, val, test = prepared.cell.config.train, prepared.loaded, None, None
    if selection is not None:
        _restore_best(record, selection)
    started = time.perf_counter()
    if selection is None:
        record.accuracy = accuracy(inputs.model, inputs.scored(), config)
    else:
        scored = score(inputs.model, inputs.scored(), config)
        record.accuracy = scored.accuracy
        record.balanced_accuracy, record.macro_f1 = scored.balanced_accuracy, scored.macro_f1
        if loaded.scored is loaded.val:
            record.notes.append(NO_TEST)
            val = scored
        else:
            test = scored
    record.guessing_accuracy = learning.guessing_accuracy(loaded.scored.labels.bincount().tolist())
    record.scoring_seconds = time.perf_counter() - started
    if wanted and val is None and inputs.val is not None:
        val = score(inputs.model, inputs.val(), config)
    return Trained(prepared.adapted, record, loaded, record.best_epoch or len(record.curve), val=val, test=test)


def _restore_best(record: Record, selection: Selection) -> None:
    selection.restore_best()
    record.best_epoch, record.val_accuracy = selection.epoch, selection.accuracy


def _finish_interrupted(prepared: PreparedCell, record: Record, inputs: TrainingInput, selection: Selection) -> Trained:
    """The best epoch so far. The test images stay unseen: the cell goes on from its checkpoint and scores them then."""
    _restore_best(record, selection)
    # What the end had found already, if it came to that.
    record.accuracy = record.balanced_accuracy = record.macro_f1 = None
    val = score(inputs.model, inputs.val(), prepared.cell.config.train) if inputs.val else None
    return Trained(prepared.adapted, record, prepared.loaded, selection.epoch, interrupted=True, val=val)


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
