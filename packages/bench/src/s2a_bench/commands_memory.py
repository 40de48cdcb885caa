"""`memory`: parameters and memory of one training step, and the paper's tables of them beside ours."""

from __future__ import annotations

import json
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench import grid
from s2a_bench.commands import DONE
from s2a_bench.config import TrainConfig
from s2a_bench.errors import InputError


def memory(
    backbone: str, label: str, batch_size: int, settings: tuple[str, ...], as_json: bool, console: Console
) -> int:
    """Prints parameters and memory of one training step.

    Raises:
        ValueError: Bad input.
    """
    from s2a_bench import measure

    if batch_size < 1:
        raise InputError(f"--batch-size {batch_size} is too small; it must be at least 1.")
    parsed = grid.parse_settings(settings)
    useless = parsed["train"].keys() - {"precision", "checkpointing"}
    if useless:
        raise InputError(
            f"memory trains nothing: train.{min(useless)} has no place here; train.precision and "
            "train.checkpointing do."
        )
    method = grid.methods_with([grid.parse_method(label)], parsed["method"])[0]
    step = grid.train_settings(grid.Request(batch_size=batch_size), parsed["train"])
    _print_row(measure.memory_row(backbone, method.name, dict(method.options), TrainConfig(**step)), as_json, console)
    return DONE


def memory_paper(batch_size: int, as_json: bool, console: Console) -> int:
    """Prints every row of the paper's Tables 1 and 2 with what is measured here next to it."""
    from s2a_bench import paper

    rows = list(paper.paper_rows(batch_size))
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
        table.add_row(key, _number(value))
    console.print(table)


def _number(value: Any) -> str:
    return f"{value:,.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
