"""What an output folder knows about its MLflow stores: a name of its own, and the sweeps that were run in it.

Several output folders may share one store. Each touches only the runs that carry its name.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from s2a_bench.files import write_atomic

_ID, _SWEEPS = ".output.json", ".sweeps.json"


def output_id(output: Path) -> str:
    """16 hex digits that stand for an output folder: a folder that was moved keeps them, a copy gets its own.

    They lie in ``.output.json`` with the folder's path. Where that path is another one and still holds the same id,
    this folder is a copy. A folder that cannot be written is known by its path.
    """
    found = _read(output / _ID)
    known, path = found.get("id"), found.get("path")
    if isinstance(known, str) and isinstance(path, str):
        if path == str(output):
            return known
        if _read(Path(path) / _ID).get("id") != known:
            return _write_id(output, known)
    return _write_id(output, secrets.token_hex(8))


def _write_id(output: Path, chosen: str) -> str:
    try:
        write_atomic(output / _ID, json.dumps({"id": chosen, "path": str(output)}) + "\n")
    except OSError:
        return hashlib.sha256(str(output).encode(errors="surrogateescape")).hexdigest()[:16]
    return chosen


def remember_sweep(output: Path, sweep_id: str, suite: str, cells: Iterable[str]) -> None:
    """Notes which cells a sweep plans, so that its parent run can be made again."""
    known = _read(output / _SWEEPS)
    entry = {"suite": suite, "cells": sorted(set(cells))}
    if known.get(sweep_id) != entry:
        with contextlib.suppress(OSError):  # without it, lost parent runs are made again by suite
            write_atomic(output / _SWEEPS, json.dumps({**known, sweep_id: entry}) + "\n")


def remembered_sweeps(output: Path) -> dict[str, tuple[str, list[str]]]:
    """Suite and cells of the sweeps that were run in a folder, by their ids; what is damaged is left out."""
    found = {}
    for key, entry in _read(output / _SWEEPS).items():
        match entry:
            case {"suite": str(suite), "cells": list(cells)} if all(isinstance(cell, str) for cell in cells):
                found[key] = (suite, cells)
    return found


def _read(path: Path) -> dict[str, Any]:
    with contextlib.suppress(OSError, ValueError, RecursionError):
        values = json.loads(path.read_text(encoding="utf-8"))
        return values if isinstance(values, dict) else {}
    return {}
