"""`audit --peek`: trains recorded cells again and prints what the best epoch on test would have added."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench import audit, commands
from s2a_bench import record as records
from s2a_bench.audit import Peek
from s2a_bench.grid import Request
from s2a_bench.record import Record

_VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which records to audit, and what training them again takes; empty names take all."""

    datasets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    data_dir: str | None = None
    weights: str | None = None
    device: str = "cpu"


def peek(output: Path, wanted: Wanted, console: Console) -> int:
    """Audits the records under ``output``; audits that are there already are not made again.

    Returns:
        0, or 1 if some record's accuracy was not met again.

    Raises:
        ValueError: Nothing to audit, or a record that cannot be trained again: before anything ran.
    """
    commands.checked(Request(device=wanted.device))
    output = output.absolute()
    have = [found for _, found in records.read_all(output) if isinstance(found, Record)]
    chosen = audit.pick(
        have, datasets=wanted.datasets, backbones=wanted.backbones, methods=wanted.methods, seeds=wanted.seeds
    )
    peeks = {record.cell_id: found for record in chosen if (found := audit.read(output, record)) is not None}
    todo = [
        (record, audit.cell_of(record, wanted.data_dir, wanted.weights, wanted.device))
        for record in chosen
        if record.cell_id not in peeks
    ]
    console.print(f"Audit: {len(chosen)} records, {len(todo)} to train again. {audit.WARNING}", **_VERBATIM)
    for number, (record, cell) in enumerate(todo, start=1):
        found = peeks[record.cell_id] = audit.peek(cell, record)
        audit.write(found, output)
        console.print(
            f"[{number}/{len(todo)}] {record.method} on {record.dataset}, {record.backbone}, seed {record.seed}: last "
            f"{found.test[-1]:.1f} %, best {max(found.test):.1f} % at epoch {found.best_epoch} of {len(found.test)}",
            **_VERBATIM,
        )
    found = [peeks[record.cell_id] for record in chosen]
    console.print(_table(found))
    return _compare(found, console)


def _table(found: Sequence[Peek]) -> Table:
    title = "What the best epoch on test would have added"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("suite", "backbone", "method"):
        table.add_column(name, no_wrap=True)
    for name in ("last %", "best %", "gain", "largest", "tasks", "cells"):
        table.add_column(name, justify="right")
    for row in audit.lines(found):
        numbers = [f"{row.last:.1f}", f"{row.best:.1f}", f"+{row.inflation:.2f}", f"+{row.largest:.2f}"]
        table.add_row(row.suite, row.backbone, row.method, *numbers, str(row.datasets), str(row.cells))
    return table


def _compare(found: Sequence[Peek], console: Console) -> int:
    """Says which records were not met again: the same cell on the same machine gives the same number."""
    other = [each for each in found if each.test[-1] != each.record_accuracy]
    same = len(found) - len(other)
    console.print(f"{same} of {len(found)} records were met again to the last image.", **_VERBATIM)
    for each in other:
        console.print(
            f"{each.cell_id}: the record says {each.record_accuracy:.2f} %, trained again it has {each.test[-1]:.2f} % "
            "(another machine, device or library version).",
            style="yellow",
            **_VERBATIM,
        )
    return commands.SOME_FAILED if other else commands.DONE
