"""The results in the output folder: ``adapter/``, ``metrics.json`` and ``report.html``, all of one cell.

They are written in a temporary folder and moved when all are complete. What another cell left there is moved to
``previous/CELL/`` and comes back when that cell is asked for again. A process that is killed in between leaves the
folder ``.results-CELL``; the next one ends what it began (``recover``).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from s2a_bench.files import make_folder, sync_folder, write_atomic

ADAPTER, METRICS, PAGE = "adapter", "metrics.json", "report.html"
NAMES = (ADAPTER, PAGE, METRICS)
"""In the order in which they are moved: the metrics, which name the cell, come last."""

_READY, _PARTIAL, _REPLACED = ".results-", ".partial", ".replaced"


def read_metrics(folder: Path) -> dict[str, Any] | None:
    """The metrics of complete results in a folder; ``None``: there are none."""
    try:
        found = json.loads((folder / METRICS).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    whole = isinstance(found, dict) and (folder / ADAPTER / "adapter_config.json").is_file()
    return found if whole and (folder / PAGE).is_file() else None


def find(output: Path, cell_id: str) -> dict[str, Any] | None:
    """The metrics of a cell that is finished; results of it that were set aside come back first.

    Returns:
        ``None``: there are none, or only those of an interrupted training.
    """
    for folder in (output, _aside(output, cell_id)):
        found = read_metrics(folder)
        if found is None or found.get("cell_id") != cell_id or found.get("status") != "done":
            continue
        if folder != output:
            write_atomic(folder / _REPLACED, _cell_of(output))
            ready = output / f"{_READY}{cell_id}"
            shutil.rmtree(ready, ignore_errors=True)
            folder.rename(ready)
            _move_in(output, ready)
        return found
    return None


def _cell_of(output: Path) -> str:
    """The name under which what is in the output folder is set aside: its cell, or a free one."""
    if (found := read_metrics(output)) is not None and isinstance(found.get("cell_id"), str):
        return found["cell_id"]
    number = 1
    while _aside(output, f"unknown-{number}").exists():
        number += 1
    return f"unknown-{number}"


def install(output: Path, cell_id: str, fill: Callable[[Path], None]) -> None:
    """Puts the results of a cell in the output folder.

    Args:
        output: The output folder.
        cell_id: Of the cell.
        fill: Writes ``NAMES`` to the folder that it is given.

    Raises:
        OSError: They could not be written; what was there is as it was.
    """
    ready = output / f"{_READY}{cell_id}"
    partial = ready.with_name(ready.name + _PARTIAL)
    shutil.rmtree(partial, ignore_errors=True)
    make_folder(partial)
    try:
        fill(partial)
        write_atomic(partial / _REPLACED, _cell_of(output))
        shutil.rmtree(ready, ignore_errors=True)
        partial.rename(ready)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    sync_folder(output)
    _move_in(output, ready)


def recover(output: Path) -> None:
    """Ends or removes what a killed process began. Only for the process that holds the output folder's lock."""
    for folder in sorted(output.glob(f"{_READY}*")):
        if folder.name.endswith(_PARTIAL):
            shutil.rmtree(folder, ignore_errors=True)
        elif folder.is_dir():
            _move_in(output, folder)


def _move_in(output: Path, ready: Path) -> None:
    """Moves complete results into their place, each name for itself; it can be done again from any point."""
    cell_id = ready.name.removeprefix(_READY)
    replaced = (ready / _REPLACED).read_text(encoding="utf-8")
    aside = _aside(output, replaced)
    for name in NAMES:
        if not (ready / name).exists():
            continue  # moved before
        if (output / name).exists():
            if replaced == cell_id:  # an earlier state of this very cell
                _remove(output / name)
            else:
                make_folder(aside)
                _remove(aside / name)
                (output / name).rename(aside / name)
        (ready / name).rename(output / name)
    sync_folder(output)
    shutil.rmtree(ready, ignore_errors=True)


def _aside(output: Path, cell_id: str) -> Path:
    return output / "previous" / cell_id


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
