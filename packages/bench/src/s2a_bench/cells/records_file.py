"""Many records in one file, to keep or to publish: one line of JSON each, in the order of cell ids, gzipped or not."""

from __future__ import annotations

import dataclasses
import gzip
import io
import json
import zlib
from collections.abc import Iterable
from pathlib import Path

from s2a_bench.cells import record as records
from s2a_bench.cells.record import NewerRecord, Record
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.files import replacing


@dataclasses.dataclass(frozen=True)
class ImportResult:
    """What became of the records of a file, by cell id.

    Attributes:
        new: Written.
        same: There already, with the same content.
        kept: There already with another content, which stayed: the cell had been run here too, or a newer version
            of s2a-bench has written it.
    """

    new: tuple[str, ...]
    same: tuple[str, ...]
    kept: tuple[str, ...]


def load(path: Path) -> list[Record]:
    """Reads the records of a file.

    Raises:
        InputError: It cannot be read, a line is no record of this version, or two lines are of one cell: all of these
            lines are named.
    """
    found: dict[str, Record] = {}
    mistakes = Mistakes()
    for number, line in enumerate(_read_lines(path), start=1):
        if not line.strip():
            continue
        try:
            record = records.parse(line)
        except NewerRecord as error:
            sentence = f"Line {number} of {path} was written by a newer version of s2a-bench ({error}); update it."
        except ValueError as error:
            sentence = f"Line {number} of {path} is not a record ({error}); nothing was written."
        else:
            if record.cell_id not in found:
                found[record.cell_id] = record
                continue
            sentence = f"Line {number} of {path} is cell {record.cell_id} a second time; nothing was written."
        mistakes.add(InputError(sentence))
    mistakes.raise_all()
    return list(found.values())


def _read_lines(path: Path) -> list[str]:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path} is no file; give one of records, one a line.")
        text = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        # Not splitlines: a text within a record may hold other ends of lines.
        return text.decode("utf-8-sig").split("\n")
    except InputError:
        raise
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{path} cannot be read as records, one a line ({error}).") from error


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
        except NewerRecord:
            kept.append(record.cell_id)
            continue
        except (OSError, ValueError):  # ``write`` sets aside what is no record
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
