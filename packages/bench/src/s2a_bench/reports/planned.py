"""What sweeps planned in an output folder: the only cells that a report may call missing.

The product of all rows, datasets and seeds that ever ran in a folder is nothing that anybody asked for.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.files import write_atomic
from s2a_bench.reports.variants import canonical_text

_FILE = ".planned.json"


def remember_cells(output: Path, cells: Mapping[str, CellConfig], done: Iterable[str]) -> None:
    """Adds a sweep's cells to those that are to be run here, and forgets those that are done.

    Ids follow the weights, the data and the protocol. After a change of these the same sweep has new ids, so that its
    former cells will never be run: known cells that say the same as one of the new plan are forgotten too.

    Args:
        output: Folder of the sweep.
        cells: Of its plan, by id; trials of searches are left out.
        done: Ids of those with a finished record.
    """
    before, finished = _read(output), set(done)
    plan = {key: _describe(cell) for key, cell in cells.items() if not cell.trial}
    again = {canonical_text(entry) for entry in plan.values()}
    after = {
        key: entry
        for key, entry in before.items()
        if not records.record_path(output, key).exists() and canonical_text(entry) not in again
    }
    after |= {key: entry for key, entry in plan.items() if key not in finished}
    if canonical_text(after) != canonical_text(before):
        with contextlib.suppress(OSError):  # without it nothing is called missing
            write_atomic(output / _FILE, json.dumps(after) + "\n")


def find_missing(output: Path) -> tuple[Record, ...]:
    """Planned cells of which there is no file, as far as they are known; entries that are damaged are left out."""
    found = []
    for key, entry in sorted(_read(output).items()):
        if not records.record_path(output, key).exists():
            with contextlib.suppress(ValueError):
                values = entry | {"cell_id": key, "status": "failed", "schema": records.SCHEMA}
                found.append(records.parse(json.dumps(values)))
    return tuple(found)


def _describe(cell: CellConfig) -> dict[str, Any]:
    """The fields of a record that are known before the cell has run."""
    record = records.new_record(cell, "", hardware={})
    fields = ("suite", "dataset", "group", "backbone", "method", "method_config", "train_config", "seed", "epochs")
    more = ("evaluated_on", "limit_train", "limit_test", "random_weights", "search")
    return {name: getattr(record, name) for name in (*fields, *more)}


def _read(output: Path) -> dict[str, dict[str, Any]]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads((output / _FILE).read_text(encoding="utf-8"))
        if isinstance(values, dict):
            return {key: entry for key, entry in values.items() if isinstance(entry, dict)}
    return {}
