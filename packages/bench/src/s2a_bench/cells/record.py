"""One cell, one record: a JSON file that is the source of truth. MLflow and the report are views of it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from s2a_bench.cells import provenance
from s2a_bench.config import CellConfig, identifying
from s2a_bench.data.table import lookup
from s2a_bench.files import write_atomic

SCHEMA = 1
"""Version of the record's fields."""

PROTOCOL = 2
"""Version of everything in code that decides a cell's result (rendering, order, schedule, scoring). Raise it when
such code changes: old cells then count as missing, not as comparable."""


@dataclasses.dataclass
class Record:
    """Everything known about one cell. MB are 1e6 bytes, accuracies percent, times seconds.

    ``accuracy`` is top-1 on ``evaluated_on`` ("test" or "val") after the last epoch, scored once. ``params_percent`` is
    trainable parameters (head included) over the backbone's without its head, the paper's definition.
    ``measured_mb`` = ``weights_mb`` + ``saved_mb`` for one batch; ``peak_mb`` is the device's peak on CUDA and the
    process's peak resident size on CPU. ``seconds`` are those of the epochs that count: what a killed process trained
    after its last checkpoint is not in it. ``resumed`` is how often the training went on from a checkpoint, ``notes``
    are sentences about it, ``adapter_id`` the hash of the trained state's file, if it was kept. ``trial``: a search ran
    this cell to choose from; ``search``: how one chose this cell's config, ``None`` where none did. ``feature_cache``:
    the head trained on features that were computed once; ``seconds`` are then those of the head alone, and
    ``images_per_second`` is measured on real steps, on images, before. ``scoring_seconds`` are those of the scoring
    pass, ``wall_seconds`` of everything that the last process did for the cell. ``status`` is ``"stopped"`` for a
    trial that its search ended early; its curve says after how many epochs, and holds ``val_accuracy`` where val was
    looked at before the last epoch. ``guessing_loss`` is the loss of predicting the class frequencies of the training
    list, ``guessing_accuracy`` that of naming the most frequent class of the scored list; ``did_not_learn`` says, for a
    finished cell that is no better, how that shows (``learning.find_problems``).
    """

    cell_id: str
    status: Literal["done", "failed", "stopped"]
    suite: str
    dataset: str
    group: str
    backbone: str
    method: str
    method_config: dict[str, Any]
    train_config: dict[str, Any]
    seed: int
    epochs: int
    evaluated_on: str
    data_id: str = ""
    split_id: str = ""
    data_config: dict[str, Any] = dataclasses.field(default_factory=dict)
    synthetic: bool = False
    lossy: bool = False
    checkpoint_id: str = ""
    random_weights: bool = False
    limit_train: int | None = None
    limit_test: int | None = None
    classes: int = 0
    train_images: int = 0
    scored_images: int = 0
    accuracy: float | None = None
    params_total: int | None = None
    params_backbone: int | None = None
    params_trainable: int | None = None
    params_percent: float | None = None
    weights_mb: float | None = None
    theoretical_mb: float | None = None
    saved_mb: float | None = None
    measured_mb: float | None = None
    peak_mb: float | None = None
    images_per_second: float | None = None
    seconds: float | None = None
    scoring_seconds: float | None = None
    wall_seconds: float | None = None
    feature_cache: bool = False
    guessing_loss: float | None = None
    guessing_accuracy: float | None = None
    did_not_learn: list[str] = dataclasses.field(default_factory=list)
    curve: list[dict[str, float]] = dataclasses.field(default_factory=list)
    resumed: int = 0
    notes: list[str] = dataclasses.field(default_factory=list)
    adapter_id: str = ""
    error: dict[str, str] | None = None
    trial: bool = False
    search: dict[str, Any] | None = None
    started_at: str = ""
    git_sha: str = ""
    git_dirty: bool | None = None
    versions: dict[str, str] = dataclasses.field(default_factory=dict)
    hardware: dict[str, Any] = dataclasses.field(default_factory=dict)
    protocol: int = PROTOCOL
    schema: int = SCHEMA


def cell_id(identity: Mapping[str, Any]) -> str:
    """16 hex digits that stand for everything that decides a cell's result.

    Args:
        identity: JSON-able values; the order of keys does not matter.
    """
    text = json.dumps({"protocol": PROTOCOL, **identity}, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def new_record(
    cell: CellConfig, cell_id: str, facts: Mapping[str, Any] | None = None, hardware: Mapping[str, Any] | None = None
) -> Record:
    """The record of a cell before it has run: status ``failed``, with everything that is known before the first step.

    Args:
        cell: The cell.
        cell_id: Its id.
        facts: ``IdentifiedCell.facts``; ``None``: not known, as where the input was bad.
        hardware: Of the process that runs the cell, see ``provenance.hardware``; ``None``: not known.
    """
    facts = facts or {}
    sha, dirty = provenance.git_state(Path(__file__).parent)
    dataset = lookup.get_dataset(cell.data.suite, cell.data.dataset)
    return Record(
        cell_id=cell_id,
        status="failed",
        suite=cell.data.suite,
        dataset=cell.data.dataset,
        group=dataset.group,
        backbone=cell.backbone.name,
        method=cell.method.name,
        method_config=_plain(facts.get("method_config", dict(cell.method.options))),
        train_config=_plain(identifying(cell.train)),
        seed=cell.seed,
        epochs=cell.train.epochs,
        evaluated_on=cell.data.evaluate,
        data_id=facts.get("data_id", ""),
        split_id=facts.get("split_id", ""),
        data_config=_plain(facts.get("format", {})),
        checkpoint_id=facts.get("checkpoint_id", ""),
        random_weights=cell.backbone.random_weights,
        limit_train=cell.data.limit_train,
        limit_test=cell.data.limit_test,
        classes=dataset.classes,
        trial=cell.trial,
        search=_plain(cell.search if cell.search is None else dict(cell.search)),
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_sha=sha,
        git_dirty=dirty,
        versions=provenance.versions(),
        hardware=dict(hardware or {}),
    )


def failed_record(
    cell: CellConfig,
    cell_id: str,
    error: tuple[str, str, str],
    facts: Mapping[str, Any] | None = None,
    hardware: Mapping[str, Any] | None = None,
) -> Record:
    """The record of a cell that came to no end of its own: its worker died, or its input was bad.

    Args:
        cell: The cell.
        cell_id: Its id.
        error: Type, message and traceback.
        facts: As for ``new_record``.
        hardware: Likewise.
    """
    record = new_record(cell, cell_id, facts, hardware)
    record.error = dict(zip(("type", "message", "traceback"), error, strict=True))
    return record


def _plain(values: Any) -> Any:
    """``values`` as JSON would give them back (tuples become lists)."""
    return json.loads(json.dumps(values))


def record_path(output: Path, cell: str) -> Path:
    """Where the record of ``cell`` lies under an output folder."""
    return output / "records" / f"{cell}.json"


def write(record: Record, output: Path) -> Path:
    """Writes ``<output>/records/<cell_id>.json`` atomically and returns its path."""
    path = record_path(output, record.cell_id)
    write_atomic(path, json.dumps(dataclasses.asdict(record), indent=1, allow_nan=False) + "\n")
    return path


def parse(text: str) -> Record:
    """A record from its JSON.

    Raises:
        ValueError: Not a record of this schema: broken JSON, missing or unknown fields, no id, an unknown status.
    """
    values = json.loads(text)
    if not isinstance(values, dict) or values.get("schema") != SCHEMA:
        raise ValueError(f"expected a record of schema {SCHEMA}")
    try:
        record = Record(**values)
    except TypeError as error:
        raise ValueError(str(error)) from error
    if not re.fullmatch(r"[\w-]+", str(record.cell_id)) or record.status not in ("done", "failed", "stopped"):
        raise ValueError(f"content belongs to cell {record.cell_id!r}, status {record.status!r}")
    return record


def read(path: Path) -> Record:
    """A record from its file.

    Raises:
        ValueError: Not a record of this schema: broken JSON, missing or unknown fields, or another cell's content.
    """
    try:
        record = parse(path.read_text(encoding="utf-8"))
        if record.cell_id != path.stem:
            raise ValueError(f"content belongs to cell {record.cell_id!r}")
    except (ValueError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a valid record ({error}); delete it and run the sweep again.") from error
    return record


def read_all(output: Path) -> Iterator[tuple[Path, Record | ValueError]]:
    """Every record under ``output`` in the order of cell ids; a broken file comes as its error, never silently."""
    for path in sorted((output / "records").glob("*.json")):
        try:
            yield path, read(path)
        except ValueError as error:
            yield path, error
