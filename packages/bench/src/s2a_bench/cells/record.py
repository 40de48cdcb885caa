"""One cell, one record: a JSON file that is the source of truth. MLflow and the report are views of it."""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
import json
import stat
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from s2a_bench.cells import provenance
from s2a_bench.cells.record_fields import check_fields
from s2a_bench.config import CellConfig, DataConfig, identifying
from s2a_bench.data import augment
from s2a_bench.data.table import lookup
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic

SCHEMA = 1
"""Version of the record's fields."""

PROTOCOL = 2
"""Version of everything in code that decides a cell's result (rendering, order, schedule, scoring). Raise it when
such code changes: old cells then count as missing, not as comparable."""

_LARGEST_FILE = 100_000_000
"""Bytes; nothing larger is taken for a record. A curve of a million epochs fits."""


class NewerRecord(InputError):
    """A record that a newer version of s2a-bench wrote. It is read by no one here, and never overwritten."""


@dataclasses.dataclass
class Record:
    """Everything known about one cell. MB are 1e6 bytes, accuracies percent, times seconds.

    ``accuracy`` is top-1 on ``evaluated_on`` ("test" or "val") after the last epoch, scored once; where that is
    "select", on test with the weights of ``best_epoch``, the one with the best validation accuracy, ``val_accuracy``
    (where there are no test images, on val, and a note says so). Only then are ``balanced_accuracy`` (mean recall of
    the classes) and ``macro_f1`` computed, both in percent and of the images of ``accuracy``; ``curve`` has
    ``val_accuracy``, ``val_loss`` and ``val_seconds`` of each epoch, and is shorter than ``epochs`` where training
    stopped early. ``params_percent`` is trainable parameters (head included) over the backbone's without its head, the
    paper's definition.
    ``measured_mb`` = ``weights_mb`` + ``saved_mb`` for one batch; paged weights and saved tensors that are offloaded
    are ``host_mb`` instead. ``peak_mb`` is
    the device's peak on CUDA and the process's peak resident size on CPU. ``seconds`` are those of the epochs that
    count: what a killed process trained after its last checkpoint is not in it. ``resumed`` is how often the training
    went on from a checkpoint, ``notes`` are sentences about it, ``adapter_id`` the hash of the trained state's file, if
    it was kept. ``trial``: a search ran
    this cell to choose from; ``search``: how one chose this cell's config, ``None`` where none did. ``feature_cache``:
    the head trained on features that were computed once; ``seconds`` are then those of the head alone, and
    ``images_per_second`` is measured on real steps, on images, before. ``scoring_seconds`` are those of the scoring
    pass, ``wall_seconds`` of everything that the last process did for the cell. ``status`` is ``"stopped"`` for a
    trial that its search ended early; its curve says after how many epochs, and holds ``val_accuracy`` where val was
    looked at before the last epoch. ``guessing_loss`` is the loss of predicting the class frequencies of the training
    list (or their smoothed targets), ``guessing_accuracy`` that of naming the most frequent class of the scored list;
    ``did_not_learn`` says, for a finished cell that is no better, how that shows (``learning.find_problems``).
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
    balanced_accuracy: float | None = None
    macro_f1: float | None = None
    val_accuracy: float | None = None
    best_epoch: int | None = None
    params_total: int | None = None
    params_backbone: int | None = None
    params_trainable: int | None = None
    params_percent: float | None = None
    weights_mb: float | None = None
    theoretical_mb: float | None = None
    saved_mb: float | None = None
    measured_mb: float | None = None
    host_mb: float | None = None
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
    group, classes = _describe_dataset(cell.data)
    return Record(
        cell_id=cell_id,
        status="failed",
        suite=cell.data.suite,
        dataset=cell.data.dataset,
        group=group,
        backbone=cell.backbone.name,
        method=cell.method.name,
        method_config=_plain(facts.get("method_config", dict(cell.method.options))),
        train_config=_plain(identifying(cell.train)),
        seed=cell.seed,
        epochs=cell.train.epochs,
        evaluated_on=cell.data.evaluate,
        data_id=facts.get("data_id", ""),
        split_id=facts.get("split_id", ""),
        data_config=_plain({**facts.get("format", {}), **(augment.describe(cell.data) if facts else {})}),
        checkpoint_id=facts.get("checkpoint_id", ""),
        random_weights=cell.backbone.random_weights,
        limit_train=cell.data.limit_train,
        limit_test=cell.data.limit_test,
        classes=classes,
        trial=cell.trial,
        search=_plain(cell.search if cell.search is None else dict(cell.search)),
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        git_sha=sha,
        git_dirty=dirty,
        versions=provenance.versions(),
        hardware=dict(hardware or {}),
    )


def _describe_dataset(config: DataConfig) -> tuple[str, int]:
    """Group and number of classes; 0 classes of an own dataset whose folder is not there (any more)."""
    try:
        dataset = lookup.get_dataset(config.suite, config.dataset, config.root)
    except InputError:
        if config.suite != lookup.OWN:
            raise
        return lookup.OWN, 0
    return dataset.group, dataset.classes


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
    """Writes ``<output>/records/<cell_id>.json`` atomically and returns its path.

    A file there that is no record is set aside first (``set_aside``): nothing that somebody may want is lost.

    Raises:
        NewerRecord: The record there was written by a newer version; it stays as it is.
        OSError: It could not be written.
    """
    path = record_path(output, record.cell_id)
    text = json.dumps(_encodable(dataclasses.asdict(record)), indent=1, allow_nan=False) + "\n"
    try:
        read(path)
    except FileNotFoundError:
        pass
    except NewerRecord:
        raise
    except ValueError:
        set_aside(path)
    write_atomic(path, text)
    return path


def check_place(output: Path, cell: str) -> None:
    """Refuses to run a cell whose record could not be written afterwards.

    Raises:
        NewerRecord: The record there was written by a newer version.
    """
    try:
        read(record_path(output, cell))
    except NewerRecord:
        raise
    except (OSError, ValueError):
        pass


def set_aside(path: Path) -> Path:
    """Renames what lies in the place of a file to a free name, ``NAME.bad`` or ``NAME.bad2``, and returns that.

    Raises:
        OSError: It could not be renamed.
    """
    number = 1
    while True:
        beside = path.with_name(f"{path.name}.bad{number if number > 1 else ''}")
        if not beside.exists() and not beside.is_symlink():
            return path.rename(beside)
        number += 1


def _encodable(value: Any) -> Any:
    """``value`` with text that UTF-8 can hold: a message may carry a file's name that is no UTF-8."""
    if isinstance(value, str):
        return value.encode("utf-8", "backslashreplace").decode()
    if isinstance(value, Mapping):
        return {_encodable(key): _encodable(each) for key, each in value.items()}
    return [_encodable(each) for each in value] if isinstance(value, list | tuple) else value


def parse(text: str) -> Record:
    """A record from its JSON.

    Raises:
        NewerRecord: It was written by a newer version of s2a-bench.
        ValueError: Not a record: broken JSON, a missing field, or a value that is not allowed.
    """
    try:
        values = json.loads(text, object_pairs_hook=_unique)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(values, dict):
        raise ValueError(f"expected a record of schema {SCHEMA}")
    schema = values.get("schema")
    if isinstance(schema, int) and schema > SCHEMA:
        raise NewerRecord(f"schema {_shorten(schema)}, this version knows {SCHEMA}")
    if schema != SCHEMA or type(schema) is not int:
        raise ValueError(f"expected a record of schema {SCHEMA}")
    fields = dataclasses.fields(Record)
    left_out = [field.name for field in fields if field.name not in values]
    unknown = values.keys() - {field.name for field in fields}
    if unknown and left_out:
        raise ValueError(f"unknown field {_shorten(min(unknown))}")
    check_fields(values)
    if missing := [field.name for field in fields if field.name in left_out and _is_required(field)]:
        raise ValueError(f"without {', '.join(missing)}")
    if unknown:  # a version that added fields writes all of these too, and right
        raise NewerRecord(f"it has the field {_shorten(min(unknown))}, which this version does not know")
    return Record(**values)


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"two values of {_shorten(next(key for key in keys if keys.count(key) > 1))}")
    return values


def _shorten(value: Any) -> str:
    return ascii(value)[:80].strip("'\"")


def read(path: Path) -> Record:
    """A record from its file.

    Raises:
        FileNotFoundError: There is none.
        NewerRecord: It was written by a newer version of s2a-bench.
        ValueError: Anything else that is there, and another cell's content: one sentence with the reason.
    """
    try:
        record = parse(_read_text(path))
        if record.cell_id != path.stem:
            raise ValueError(f"content belongs to cell {record.cell_id!r}")
    except NewerRecord as error:
        raise NewerRecord(
            f"{_show(path)} was written by a newer version of s2a-bench ({error}) and stays as it is; update "
            "s2a-bench, or pass another --output."
        ) from error
    except FileNotFoundError:
        if not path.is_symlink():
            raise
        raise _invalid(path, "a link that leads nowhere") from None
    except OSError as error:
        raise _invalid(path, error.strerror or type(error).__name__) from error
    except ValueError as error:
        raise _invalid(path, str(error)) from error
    return record


def _read_text(path: Path) -> str:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ValueError("not a file")  # opening a pipe would wait for ever
    if found.st_size > _LARGEST_FILE:
        raise ValueError(f"{found.st_size} bytes long")
    return path.read_text(encoding="utf-8-sig")


def _invalid(path: Path, reason: str) -> ValueError:
    return ValueError(f"{_show(path)} is not a valid record ({reason}); delete it and run the sweep again.")


def _show(path: Path) -> str:
    """A path that can be printed anywhere, on one line."""
    text = str(path)
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def list_files(output: Path) -> list[Path]:
    """Files under ``output`` that may be records, in order of their names.

    Hidden files are none: ``._NAME.json`` is what macOS leaves on other file systems.
    """
    return sorted(path for path in (output / "records").glob("*.json") if not path.name.startswith("."))


def read_all(output: Path) -> Iterator[tuple[Path, Record | ValueError]]:
    """Every record under ``output`` in the order of cell ids; a file that is none comes as its error."""
    for path in list_files(output):
        try:
            yield path, read(path)
        except FileNotFoundError:
            continue  # removed in between
        except ValueError as error:
            yield path, error
