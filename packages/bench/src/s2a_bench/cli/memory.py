"""`memory`: parameters and memory of one training step, and the paper's tables of them beside ours."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import s2a
from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench.cli.sweep_grid import DONE
from s2a_bench.config import MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps import grid

ALL = "all"
"""Stands for every registered method."""

PATIENCE = 10.0
"""Seconds after which a row says that it is being worked on."""


def memory(
    backbones: Sequence[str],
    labels: Sequence[str],
    batch_size: int,
    settings: tuple[str, ...],
    device: str | None,
    as_json: bool,
    console: Console,
) -> int:
    """Prints parameters and memory of one training step: one pair in full, several as a table.

    Args:
        backbones: Names.
        labels: Methods with their options; ``"all"`` stands for every one that is registered.
        batch_size: Images.
        settings: ``method.*``, ``train.precision``, ``train.checkpointing``.
        device: A CUDA device, to measure the peak there too; ``None``: not.
        as_json: One row as an object, several as a list of them.
        console: Where to.

    Raises:
        ValueError: Bad input; of ``"all"``, a method that a backbone cannot take is a row that says why.
    """
    from s2a_bench.cells import device_peak

    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is too small; it must be at least 1.")
    if device is not None:
        device_peak.check_device(device)
    parsed = grid.parse_settings(settings)
    useless = parsed["train"].keys() - {"precision", "checkpointing", "frozen"}
    if useless:
        raise InputError(
            f"memory trains nothing: train.{min(useless)} has no place here; train.precision, "
            "train.checkpointing and train.frozen do."
        )
    given = [label for label in labels if label != ALL]
    every = [name for name in s2a.list_methods() if name not in given] if ALL in labels else []
    methods = grid.methods_with([grid.parse_method(label) for label in (*every, *given)], parsed["method"])
    train = TrainConfig(**grid.train_settings(grid.Request(batch_size=batch_size), parsed["train"]))
    named = list(zip(methods, (*every, *given), strict=True))
    pairs = [(backbone, method, name) for backbone in backbones for method, name in named]
    rows = []
    for number, (backbone, method, name) in enumerate(pairs, 1):
        with _patiently(f"{backbone}, {name} ({number} of {len(pairs)})"):
            try:
                rows.append(_row(backbone, method, train, device) | {"method": name})
            except s2a.S2AError as error:
                if name in given:
                    raise
                rows.append({"backbone": backbone, "method": name, "batch_size": batch_size, "refused": str(error)})
    if len(rows) == 1:
        _print_row(rows[0], as_json, console)
    elif as_json:
        print(json.dumps(rows, indent=1), file=console.file)
    else:
        console.print(_table(rows, device))
    return DONE


def _row(backbone: str, method: MethodConfig, train: TrainConfig, device: str | None) -> dict[str, Any]:
    from s2a_bench.cells import device_peak, measure

    options = dict(method.options)
    row = measure.memory_row(backbone, method.name, options, train, simulate=True)
    if device is not None:
        step = {"precision": train.precision, "checkpointing": train.checkpointing, "frozen": train.frozen}
        request = device_peak.Request(backbone, method.name, options, train.batch_size, **step, device=device)
        row |= device_peak.device_peak(request)
    return row


@contextlib.contextmanager
def _patiently(what: str) -> Iterator[None]:
    """Says on standard error what takes so long, if it does."""
    timer = threading.Timer(PATIENCE, lambda: print(f"s2a-bench: at {what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _table(rows: list[dict[str, Any]], device: str | None) -> Table:
    title = f"MB of one training step, {rows[0]['batch_size']} images"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("backbone", "method"):
        table.add_column(column, overflow="fold")
    measured = {"trained %": "params_percent", "saved": "saved_mb", "measured": "measured_mb"}
    measured |= {"simulated": "simulated_mb"} | ({"device": "device_mb"} if device else {})
    for column in (*measured, "peak in"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        if "refused" in row:
            table.add_row(row["backbone"], row["method"], "refused")
            continue
        numbers = [f"{row[key]:,.3f}" if key == "params_percent" else _mb(row[key]) for key in measured.values()]
        table.add_row(row["backbone"], row["method"], *numbers, row["simulated_phase"])
    refused = [f"{row['method']} on {row['backbone']}: {row['refused']}" for row in rows if "refused" in row]
    table.caption = "\n".join(["measured: weights and saved; docs/memory.md defines all of them", *refused])
    return table


def memory_paper(batch_size: int, as_json: bool, console: Console) -> int:
    """Prints every row of the paper's Tables 1 and 2 with what is measured here next to it."""
    from s2a_bench.experiments import memory_tables as paper

    rows = list(paper.measure_paper_rows(batch_size))
    if as_json:
        print(json.dumps(rows, indent=1), file=console.file)
    else:
        console.print(_paper_table(rows))
    return DONE


def _paper_table(rows: list[dict[str, Any]]) -> Table:
    """Ours next to the paper's, at most 80 columns wide: trainable percent, then MB."""
    title = "trainable % and MB of one step, ours and the paper's"
    table = Table(title=title, box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("", "model", "row"):
        table.add_column(column, no_wrap=True)
    for column in ("%", "paper", "theory", "paper", "honest", "measured"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        printed = row["paper_params_percent"]
        table.add_row(
            f"T{row['table']}",
            row["backbone"].split("_")[0],
            row["row"],
            f"{row['params_percent']:.3f}",
            "" if printed is None else f"{printed:g}",
            f"{row['theoretical_mb']:,.0f}",
            f"{row['paper_mb']:,.0f}",
            "" if row["honest_mb"] == row["theoretical_mb"] else f"{row['honest_mb']:,.0f}",
            f"{row['measured_mb']:,.0f}",
        )
    table.caption = "honest: without rule R9, UniPT's count of backbone activations that nothing reads"
    return table


def _print_row(row: dict[str, Any], as_json: bool, console: Console) -> None:
    if as_json:
        print(json.dumps(row, indent=1), file=console.file)
        return
    table = Table(show_header=False)
    for key, value in row.items():
        if isinstance(value, dict):
            for part, number in value.items():
                table.add_row(f"  {part}", _number(number))
        else:
            table.add_row(key, _number(value))
    console.print(table)


def _mb(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}"


def _number(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
