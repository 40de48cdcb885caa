"""Files of a cell in the output folder, beside its record: checkpoint, trained state, cached features.

Paths and their removal only, without torch. Contents are written by ``checkpoint``, ``run`` and ``features``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import shlex
from pathlib import Path

from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError
from s2a_bench.files import process_runs, temporary_owner

CHECKPOINT_SECONDS = 60.0
"""A killed cell loses about this much of its training."""

ADAPTER_BYTES = 50_000_000
"""A trained state above this size is kept only where it is asked for: fine-tuning all of ViT-B leaves 340 MB a cell."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """What a cell writes to the output folder besides its record.

    Attributes:
        output: The output folder.
        checkpoint_every: Seconds of training between two checkpoints, which are written at the ends of epochs; 0:
            after every epoch; infinity: none.
        adapters: Whether to write the trained state too, in the format of ``s2a.save``; ``None``: unless it is larger
            than ``ADAPTER_BYTES``.
        features: Whether heads of frozen backbones are trained on features that are computed once (``features``).
    """

    output: Path
    checkpoint_every: float = CHECKPOINT_SECONDS
    adapters: bool | None = None
    features: bool = True

    def __post_init__(self) -> None:
        if math.isnan(self.checkpoint_every) or self.checkpoint_every < 0:
            raise InputError(
                f"--checkpoint-every {self.checkpoint_every:g} must be a non-negative number of seconds; 0 writes one "
                "after every epoch, inf switches checkpoints off."
            )


def check_no_finetuning(output: Path) -> None:
    """Checks that an output folder is not that of a fine-tuning, whose ``report.html`` a sweep's would overwrite.

    Raises:
        InputError: It is.
    """
    if _is_of_finetuning(output):
        raise InputError(
            f"{output} holds a fine-tuning, whose report.html would be overwritten; give another --output (its record "
            f"comes along with `s2a-bench records --output {shlex.quote(str(output))} --export FILE`)."
        )


def check_no_sweep(output: Path) -> None:
    """Checks that an output folder is not that of a sweep, whose ``report.html`` a fine-tuning's would overwrite.

    Raises:
        InputError: It is: there is no fine-tuning, but a report, or a record of a cell that no fine-tuning has.
    """
    if _is_of_finetuning(output):
        return
    if (output / "report.md").is_file():  # which only a sweep's report has
        raise InputError(f"{output} holds the report of a sweep, which would be overwritten; give another --output.")
    found = (record for _, record in records.read_all(output) if isinstance(record, Record))
    if any((record.suite, record.evaluated_on) != ("own", "select") for record in found):
        raise InputError(f"{output} holds records of a sweep, whose report would be lost; give another --output.")


def _is_of_finetuning(output: Path) -> bool:
    return (output / "metrics.json").is_file() and (output / "adapter" / "adapter_config.json").is_file()


def checkpoint_path(output: Path, cell: str) -> Path:
    """Where the checkpoint of a cell lies while it runs."""
    return output / "checkpoints" / f"{cell}.pt"


def adapter_path(output: Path, cell: str) -> Path:
    """Where the trained state of a cell lies, if it was kept."""
    return output / "adapters" / f"{cell}.safetensors"


def features_folder(output: Path) -> Path:
    """Where the features of frozen backbones lie; they can be deleted at any time."""
    return output / "cache" / "features"


def file_id(path: Path) -> str:
    """16 hex digits of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def recorded_adapter(record: Record, output: Path) -> Path | None:
    """The file with the trained state of a record; ``None`` if it is missing or its content is not the recorded one."""
    path = adapter_path(output, record.cell_id)
    with contextlib.suppress(OSError):
        if record.adapter_id and file_id(path) == record.adapter_id:
            return path
    return None


def remove_checkpoint(record: Record, output: Path) -> None:
    """Removes a cell's checkpoint once its record makes it needless; call it after the record was written.

    The checkpoint of a failed cell stays, so that the next attempt goes on from it, unless the loss was not finite,
    which only a new start can change. A trial that was stopped must not go on either.
    """
    diverged = record.error is not None and record.error.get("type") == "Diverged"
    if record.status in ("done", "stopped") or diverged:
        with contextlib.suppress(OSError):
            checkpoint_path(output, record.cell_id).unlink(missing_ok=True)


def clean_up(output: Path) -> None:
    """Removes what killed processes left: half-written files, and checkpoints of cells that are done.

    Only for the process that holds the folder's lock (``sweeps.output_lock.only_writer``).
    """
    stale = [*(output / "records").glob(".*.tmp"), *(output / "checkpoints").glob(".*.tmp")]
    stale += (output / "adapters").glob(".*")
    stale += features_folder(output).glob(".*.tmp")
    # Another process may be rebuilding the report, which needs no lock: only files of dead processes are removed.
    stale += [path for folder in (output, output / "figures") for path in folder.glob(".*.tmp") if _abandoned(path)]
    for path in (output / "checkpoints").glob("*.pt"):
        with contextlib.suppress(OSError, ValueError):
            if records.read(records.record_path(output, path.stem)).status in ("done", "stopped"):
                stale.append(path)
    for path in stale:
        if path.is_file():
            path.unlink(missing_ok=True)


def _abandoned(temporary: Path) -> bool:
    process = temporary_owner(temporary)
    return process is None or not process_runs(process)
