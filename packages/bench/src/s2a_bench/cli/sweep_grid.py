"""What the commands methods, report, track and pretrain do."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import s2a
from rich.console import Console
from rich.table import Table

from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.cli import progress
from s2a_bench.errors import InputError, unknown
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.resources import check_device

DONE, SOME_FAILED = 0, 1

_VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}
"""How to print text that must come out as it is, paths and commands above all."""


def checked(request: Request) -> Request:
    """The request, if its device is there."""
    check_device(request.device)
    return request


def methods(name: str | None, markdown: bool, console: Console) -> int:
    """Prints the card of every registered method, or of one.

    Raises:
        S2AError: An unknown method.
    """
    from s2a_bench.cli import methods as cards

    texts = [cards.card(found) for found in ([name] if name else s2a.list_methods())]
    if markdown:
        print(cards.page(texts), end="", file=console.file)
        return DONE
    for text in texts:
        table = Table(title=f"{text.name}: {text.title}", show_header=False, title_justify="left", expand=False)
        for key, value in text.rows:
            table.add_row(key, value)
        console.print(table, highlight=False, markup=False)
    return DONE


def report(output: Path, console: Console) -> int:
    """Rebuilds the report from the records.

    Raises:
        InputError: There are none.
    """
    from s2a_bench.reports import build as door

    paths = door.build(output.absolute())
    good = [found for _, found in records.read_all(output.absolute()) if isinstance(found, Record)]
    console.print(door.terminal_table(good, console.width))
    console.print(f"Report: {paths.html}", **_VERBATIM)
    return DONE


def track(output: Path, uri: str | None, console: Console) -> int:
    """Rebuilds the tracking store from the records.

    Raises:
        InputError: No records, or a store that cannot be used.
    """
    from s2a_bench.tracking import runs as door

    try:
        count = door.rebuild(output.absolute(), uri)
    except door.TrackingError as error:
        print(f"s2a-bench: {error}", file=sys.stderr)
        return SOME_FAILED
    console.print(f"{count} records are in the store.", **_VERBATIM)
    return DONE


def pretrain(config: Any, data: Path, out: Path, console: Console) -> int:
    """Makes an embedded mini backbone and prints every epoch.

    Raises:
        InputError: Unknown backbone, or no images.
    """
    from s2a_bench.cells.backbones import MINI_BACKBONES
    from s2a_bench.cells.pretrain import pretrain as epochs

    if config.backbone not in MINI_BACKBONES:
        raise unknown("mini backbone", config.backbone, MINI_BACKBONES)
    try:
        for row in epochs(config, data, out):
            console.print(
                f"epoch {row['epoch']}/{config.epochs}: loss {row['loss']:.4f}, test accuracy {row['accuracy']:.2f} %, "
                f"{progress.clock_text(row['seconds'])}",
                highlight=False,
            )
    except FileNotFoundError as error:
        raise InputError(f"{error}; pass the CIFAR-10 class folders, or their .tar.gz, to --data.") from error
    console.print(f"Weights: {out / config.backbone}.safetensors", **_VERBATIM)
    return DONE
