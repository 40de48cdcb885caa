"""`audit --peek`: trains recorded cells again and prints what the best epoch on test would have added."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench.audit import epochs as audit
from s2a_bench.audit import trials as audit_trials
from s2a_bench.audit.epochs import AuditRow, EpochAudit
from s2a_bench.audit.trials import TriedConfig
from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.cli import sweep_grid as commands
from s2a_bench.config import CellConfig, MethodConfig
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.grid import Request

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
    skip_trials: bool = False


def peek(output: Path, wanted: Wanted, console: Console) -> int:
    """Audits the records under ``output``, and the searches behind them; what is there already is not made again.

    Returns:
        0, or 1 if some record's accuracy was not met again.

    Raises:
        ValueError: Nothing to audit, or a record that cannot be trained again: before anything ran.
    """
    commands.checked(Request(device=wanted.device))
    output = output.absolute()
    have = [found for _, found in records.read_all(output) if isinstance(found, Record)]
    chosen = audit.select_records(
        have, datasets=wanted.datasets, backbones=wanted.backbones, methods=wanted.methods, seeds=wanted.seeds
    )
    peeks = {record.cell_id: found for record in chosen if (found := audit.read_audit(output, record)) is not None}
    todo = [
        (record, audit.recreate_cell(record, wanted.data_dir, wanted.weights, wanted.device))
        for record in chosen
        if record.cell_id not in peeks
    ]
    searches = [] if wanted.skip_trials else _searches(chosen, wanted, output)
    console.print(f"Audit: {len(chosen)} records, {len(todo)} to train again. {audit.WARNING}", **_VERBATIM)
    for number, (record, cell) in enumerate(todo, start=1):
        found = peeks[record.cell_id] = audit.score_every_epoch(cell, record)
        audit.write_audit(found, output)
        console.print(
            f"[{number}/{len(todo)}] {record.method} on {record.dataset}, {record.backbone}, seed {record.seed}: last "
            f"{found.test[-1]:.1f} %, best {max(found.test):.1f} % at epoch {found.best_epoch} of {len(found.test)}",
            **_VERBATIM,
        )
    found = [peeks[record.cell_id] for record in chosen]
    console.print(_table(audit.summarise_audits(found), "What the best epoch on test would have added", "last %"))
    code = _compare(found, console)
    if searches:
        _trials(searches, output, console)
    return code


_Search = tuple[Record, list[TriedConfig]]


def _searches(chosen: Sequence[Record], wanted: Wanted, output: Path) -> list[_Search]:
    """The searches behind records, with the final cells of everything that they tried."""
    return [
        (
            record,
            audit_trials.list_tried_configs(
                record, audit.recreate_cell(record, wanted.data_dir, wanted.weights, wanted.device), output
            ),
        )
        for record in audit_trials.select_searched(chosen)
    ]


def _trials(searches: Sequence[_Search], output: Path, console: Console) -> None:
    """Trains what was tried and not chosen, and prints what choosing by the test set would have added."""
    todo = [
        (record, one)
        for record, tried in searches
        for one in tried
        if audit_trials.find_known_score(one, output) is None
    ]
    console.print(f"Searches: {len(searches)}, {len(todo)} configs to train. {audit_trials.WARNING}", **_VERBATIM)
    for number, (record, one) in enumerate(todo, start=1):
        found = audit_trials.score_config(one)
        audit_trials.write_score(found, output)
        shown = "the loss became infinite" if found.accuracy is None else f"{found.accuracy:.1f} % on test"
        console.print(f"[{number}/{len(todo)}] {grid.label(_brief(one.cell, record))}: {shown}", **_VERBATIM)
    measured = []
    for record, tried in searches:
        scores = [audit_trials.find_known_score(one, output) for one in tried]
        accuracies = [score.accuracy for score in scores if score is not None and score.accuracy is not None]
        if accuracies:
            measured.append(audit_trials.SearchAudit(record, tuple(accuracies)))
    title = "What choosing the trial by the test set would have added (one seed of each search)"
    console.print(_table(audit_trials.summarise_searches(measured), title, "chosen %"))


def _brief(cell: CellConfig, record: Record) -> CellConfig:
    """The cell with only those options that differ from the record's, for its label."""
    options = {key: value for key, value in cell.method.options.items() if value != record.method_config.get(key)}
    return dataclasses.replace(cell, method=MethodConfig(cell.method.name, options))


def _table(rows: Sequence[AuditRow], title: str, first: str) -> Table:
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for name in ("suite", "backbone", "method"):
        table.add_column(name, no_wrap=True)
    for name in (first, "best %", "gain", "largest", "tasks", "cells"):
        table.add_column(name, justify="right")
    for row in rows:
        numbers = [f"{row.last:.1f}", f"{row.best:.1f}", f"+{row.inflation:.2f}", f"+{row.largest:.2f}"]
        table.add_row(row.suite, row.backbone, row.method, *numbers, str(row.datasets), str(row.cells))
    return table


def _compare(found: Sequence[EpochAudit], console: Console) -> int:
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
