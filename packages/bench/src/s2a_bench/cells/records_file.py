"""Many records in one file, to keep or to publish: one line of JSON each, in the order of cell ids, gzipped or not."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
from collections.abc import Iterable
from pathlib import Path

from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError
from s2a_bench.files import replacing


@dataclasses.dataclass(frozen=True)
class ImportResult:
    """What became of the records of a file, by cell id.

    Attributes:
        new: Written.
        same: There already, with the same content.
        kept: There already with another content, which stayed: the cell had been run here too.
    """

    new: tuple[str, ...]
    same: tuple[str, ...]
    kept: tuple[str, ...]


def load(path: Path) -> list[Record]:
    """Reads the records of a file.

    Raises:
        InputError: It cannot be read, a line is no record of this version, or two lines are of one cell.
    """
    found: dict[str, Record] = {}
    try:
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = text.decode().splitlines()
    except (OSError, EOFError, ValueError) as error:
        raise InputError(f"{path} cannot be read as records, one a line ({error}).") from error
    for number, line in enumerate(lines, start=1):
        try:
            record = records.parse(line)
        except ValueError as error:
            raise InputError(f"Line {number} of {path} is not a record ({error}); nothing was written.") from error
        if record.cell_id in found:
            raise InputError(f"Line {number} of {path} is cell {record.cell_id} a second time; nothing was written.")
        found[record.cell_id] = record
    return list(found.values())


def import_records(imported: Iterable[Record], output: Path) -> ImportResult:
    """Writes records that an output folder does not have; a finished one that is there stays as it is.

    Args:
        imported: From ``load``.
        output: The folder, whose lock the caller holds (``sweeps.output_lock.only_writer``).
    """
    new, same, kept = [], [], []
    for record in imported:
        try:
            present = records.read(records.record_path(output, record.cell_id))
        except (OSError, ValueError):
            present = None
        if present == record:
            same.append(record.cell_id)
        elif present is not None and (present.status == "done" or record.status != "done"):
            kept.append(record.cell_id)
        else:
            records.write(record, output)
            new.append(record.cell_id)
    return ImportResult(tuple(new), tuple(same), tuple(kept))


def save(exported: Iterable[Record], path: Path) -> int:
    """Writes records to a file, atomically, and returns their number; the same records give the same bytes."""
    ordered = sorted(exported, key=lambda record: record.cell_id)
    lines = [json.dumps(dataclasses.asdict(record), allow_nan=False) + "\n" for record in ordered]
    content = "".join(lines).encode()
    if path.suffix == ".gz":
        packed = io.BytesIO()
        with gzip.GzipFile(filename="", mode="wb", fileobj=packed, mtime=0) as file:
            file.write(content)
        content = packed.getvalue()
    with replacing(path) as file:
        file.write(content)
    return len(ordered)
