"""What lies in an output folder beside the records: checkpoints of cells that run, and trained states.

Paths and housekeeping only, without torch; ``checkpoint`` writes and reads.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import math
import os
from pathlib import Path

from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError

CHECKPOINT_SECONDS = 60.0
"""A killed cell loses about this much of its training."""


@dataclasses.dataclass(frozen=True)
class Keep:
    """What a cell leaves in the output folder besides its record.

    Attributes:
        output: The folder.
        checkpoint_every: Seconds of training between two checkpoints, taken at the ends of epochs; 0: after every
            epoch, infinity: none.
        adapters: Keep the trained state too, in the format of ``s2a.save``.
        features: Train heads of frozen backbones on features that are computed once (``features``).
    """

    output: Path
    checkpoint_every: float = CHECKPOINT_SECONDS
    adapters: bool = False
    features: bool = True

    def __post_init__(self) -> None:
        if math.isnan(self.checkpoint_every) or self.checkpoint_every < 0:
            raise InputError(
                f"--checkpoint-every {self.checkpoint_every:g} is no number of seconds; give 0 (after every epoch) or "
                "more; inf switches checkpoints off."
            )


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


def own_adapter(record: Record, output: Path) -> Path | None:
    """The file with the trained state that a record speaks of; ``None`` where it is not, or no longer, there."""
    path = adapter_path(output, record.cell_id)
    with contextlib.suppress(OSError):
        if record.adapter_id and file_id(path) == record.adapter_id:
            return path
    return None


def settle(record: Record, output: Path) -> None:
    """Removes the checkpoint that a written record makes needless.

    That of a cell which failed stays, so that the next attempt goes on from it; unless its loss was no number, which
    only a new start can change. A trial that was stopped shall not go on.
    """
    hopeless = record.error is not None and record.error.get("type") == "Diverged"
    if record.status in ("done", "stopped") or hopeless:
        with contextlib.suppress(OSError):
            checkpoint_path(output, record.cell_id).unlink(missing_ok=True)


def tidy(output: Path) -> None:
    """Removes what killed processes left: half-written files, and checkpoints of cells that are done.

    Only for the one who holds the folder (``sweep.only_writer``).
    """
    stale = [*(output / "records").glob(".*.tmp"), *(output / "checkpoints").glob(".*.tmp")]
    stale += (output / "adapters").glob(".*")
    stale += features_folder(output).glob(".*.tmp")
    # The report may be rebuilt by another process just now.
    stale += [path for folder in (output, output / "figures") for path in folder.glob(".*.tmp") if not _alive(path)]
    for path in (output / "checkpoints").glob("*.pt"):
        with contextlib.suppress(OSError, ValueError):
            if records.read(records.record_path(output, path.stem)).status in ("done", "stopped"):
                stale.append(path)
    for path in stale:
        if path.is_file():
            path.unlink(missing_ok=True)


def _alive(temporary: Path) -> bool:
    """Whether the process that a temporary file is named after (``.NAME.PID.tmp``) still runs."""
    try:
        os.kill(int(temporary.name.split(".")[-2]), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
