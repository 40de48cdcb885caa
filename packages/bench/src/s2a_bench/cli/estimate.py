"""``s2a-bench estimate``: the paper's Table 1 in full, in device-hours."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from s2a_bench.cells.record import Record, read_all
from s2a_bench.cli.common import (
    DONE,
    File,
    Flag,
    Folder,
    Names,
    Number,
    make_console,
    print_text,
    read_records,
    say_next,
)
from s2a_bench.cli.fitted_table import Column, print_table
from s2a_bench.cli.steps import show_activity
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.sweeps.plan import count_cells
from s2a_bench.sweeps.request import Request

if TYPE_CHECKING:
    from s2a_bench.cells.estimate import Costs

SUITES = ("vtab", "fgvc")
RULE = (
    "Rule: training images x epochs x step + scored images x scoring, by the table of datasets, the test set scored "
    "once; loading and start-up not counted. linear on VTAB-1k trains on features that are computed once."
)
MEASURED_RULE = f"{RULE} Times of whole epochs in the file, copies to the device included; ~: extrapolated; ?: unknown."
RECORDS_RULE = "Rule: as in the records, loading and each cell's overhead included; ~: extrapolated; ?: unknown."


@dataclasses.dataclass(frozen=True)
class Estimate:
    """The paper's Table 1 in full (27 datasets, 3 backbones, 7 methods, 3 seeds) in device-hours. Nothing is trained.

    Attributes:
        experiment: Another of the paper's experiments, or a .toml file.
        backbones: Only these.
        methods: Only these.
        seeds: One cell each.
        epochs: Passes over the training images; the recipe's if left out.
        batch_size: Images per step; the recipe's if left out.
        device: cpu, cuda, cuda:0.
        records: Take the times from a sweep's records instead of measuring steps now.
        measured: Take the times from a file that benchmarks/device.py wrote on a card; none is needed here.
        seconds: How long each step is measured, after one to warm up.
        json: Print JSON.
    """

    experiment: str = "table1"
    backbones: Names = ()
    methods: Names = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: Number = None
    batch_size: Number = None
    device: str = "cpu"
    records: Folder = None
    measured: File = None
    seconds: float = 2.0
    json: Flag = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            ValueError: Bad input.
        """
        asked = Asked(**{f.name: getattr(self, f.name) for f in dataclasses.fields(Asked)})
        check(asked)
        return print_estimate(asked, self.json, console)


@dataclasses.dataclass(frozen=True)
class Asked:
    """What is estimated.

    Attributes:
        experiment: Of the paper, over VTAB-1k and FGVC.
        backbones: The experiment's if empty.
        methods: The experiment's if empty.
        seeds: One cell each.
        epochs: The recipe's if left out.
        batch_size: Images per step; the recipe's if left out.
        device: torch device.
        records: Folder of a sweep whose measured times are taken; ``None``: steps are measured now.
        measured: File of ``benchmarks/device.py`` whose measured times are taken.
        seconds: How long each step is measured.
    """

    experiment: str = "table1"
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int | None = None
    batch_size: int | None = None
    device: str = "cpu"
    records: Path | None = None
    measured: Path | None = None
    seconds: float = 2.0


def check(asked: Asked) -> None:
    """Checks names and values without torch; then, with torch, the device.

    Raises:
        InputError: What is wrong, all of it.
    """
    from s2a_bench.sweeps.checks.request import check_request

    mistakes = Mistakes()
    check_request(mistakes, _request(asked, "vtab"))
    given = [f"--{name}" for name in ("records", "measured") if getattr(asked, name) is not None]
    if len(given) == 2:
        mistakes.add(InputError("--records and --measured both say where the times come from; leave one of them out."))
    if given and asked.seconds != Asked.seconds:
        mistakes.add(
            InputError(f"--seconds {asked.seconds:g} has no effect: with {given[0]} nothing is measured; leave it out.")
        )
    if asked.measured is not None and asked.device != Asked.device:
        mistakes.add(
            InputError(f"--device {asked.device} has no effect: with --measured nothing is measured; leave it out.")
        )
    if asked.measured is not None and not asked.measured.is_file():
        mistakes.add(InputError(f"--measured {asked.measured} is not a file; benchmarks/device.py writes one."))
    if asked.experiment != Asked.experiment and asked.backbones and asked.methods:
        mistakes.add(
            InputError(
                f"--experiment {asked.experiment} has no effect: it says which methods on which backbones, and "
                "--methods and --backbones are both given; leave one of the three out."
            )
        )
    if not asked.seconds > 0:
        mistakes.add(InputError(f"--seconds {asked.seconds:g} is too short; give a number above 0."))
    if asked.records is not None:
        have = [found for _, found in read_all(asked.records.absolute()) if isinstance(found, Record)]
        if not any(record.status == "done" for record in have):
            mistakes.add(InputError(f"{asked.records} has no finished record; give the output folder of a sweep."))
    mistakes.raise_all()
    from s2a_bench.sweeps.resources import check_device

    check_device(asked.device)


def _request(asked: Asked, suite: str) -> Request:
    return Request(
        suite=suite,
        experiment=asked.experiment,
        backbones=asked.backbones,
        methods=asked.methods,
        seeds=asked.seeds,
        epochs=asked.epochs,
        batch_size=asked.batch_size,
        device=asked.device,
        random_weights=True,
    )


def cells_of(asked: Asked) -> list[CellConfig]:
    """Every cell that is estimated.

    Raises:
        ValueError: Unknown names or bad numbers.
    """
    from s2a_bench.sweeps import grid

    mistakes = Mistakes()
    found = mistakes.each(lambda suite: grid.expand(_request(asked, suite)), SUITES)
    mistakes.raise_all()
    return [cell for cells in found for cell in cells]


def print_estimate(asked: Asked, as_json: bool, console: Console) -> int:
    """Prints seconds per image and device-hours per backbone and method, and their sum.

    Raises:
        ValueError: Bad input.
    """
    from s2a_bench.cells import estimate, provenance

    cells = cells_of(asked)
    pairs: dict[tuple[str, str], list[CellConfig]] = {}
    for cell in cells:
        pairs.setdefault((cell.backbone.name, _method(cell)), []).append(cell)
    hardware, rule = provenance.hardware(asked.device), RULE
    if asked.records is not None:
        costs, rule = _from(asked.records, asked.device), RECORDS_RULE
    elif asked.measured is not None:
        costs, hardware = estimate.from_measurements(asked.measured)
        rule = MEASURED_RULE
    else:
        costs = estimate.Costs(dict(_measured(pairs.values(), asked, console, quiet=as_json)))
    rows = [_row(*pair, of_pair, costs) for pair, of_pair in sorted(pairs.items())]
    known = [row["hours"] for row in rows if row["hours"] is not None]
    summary = {
        "cells": len(cells),
        "datasets": len({cell.data.dataset for cell in cells}),
        "seeds": len(asked.seeds),
        "epochs": sorted({cell.train.epochs for cell in cells}),
        "batch_size": sorted({cell.train.batch_size for cell in cells}),
        "hours": sum(known),
        "unknown": len(rows) - len(known),
        "hardware": hardware,
        "load": os.getloadavg()[0] if asked.measured is None else None,
        "rule": rule,
    }
    if as_json:
        print(json.dumps({"rows": rows, **summary}, indent=1), file=console.file)
    else:
        _print(rows, summary, console)
    say_next(
        console,
        f"Next: s2a-bench sweep --suite vtab --experiment {shlex.quote(asked.experiment)} --data-dir DIR --dry-run",
        data=as_json,
    )
    return DONE


def _method(cell: CellConfig) -> str:
    options = ",".join(f"{key}={value}" for key, value in cell.method.options.items())
    return f"{cell.method.name}:{options}" if options else cell.method.name


def _from(folder: Path, device: str) -> Costs:
    from s2a_bench.cells import estimate

    good = read_records(folder.absolute())
    costs, count, aside = estimate.from_records(good, device)
    if not count:
        raise InputError(
            f"{folder} has no finished record of this hardware ({aside} of other hardware); give the output folder of "
            "a sweep on this machine, or leave --records out to measure now."
        )
    return costs


def _measured(groups: Iterable[list[CellConfig]], asked: Asked, console: Console, quiet: bool) -> Any:
    from s2a_bench.cells import estimate

    for cells in groups:
        cell = cells[0]
        with show_activity(make_console(sys.stderr), f"measuring {_method(cell)} on {cell.backbone.name}"):
            cost = estimate.measure_cost(cell, asked.seconds)
        if not quiet:
            console.print(f"{_method(cell)} on {cell.backbone.name}: {cost.step * 1e3:,.2f} ms", highlight=False)
        yield (cell.method.name, estimate.settings(cell), cell.backbone.name), cost


def _row(backbone: str, method: str, cells: list[CellConfig], costs: Costs) -> dict[str, Any]:
    from s2a_bench.cells import estimate

    found = estimate.forecast(cells, costs)
    cost = costs.of(cells[0])
    return {
        "backbone": backbone,
        "method": method,
        "cells": len(cells),
        "step_ms": None if cost is None else cost.step * 1e3,
        "score_ms": None if cost is None else cost.score * 1e3,
        "hours": None if found.unknown else found.seconds / 3600,
        "extrapolated": bool(found.extrapolated),
    }


def _print(rows: list[dict[str, Any]], summary: dict[str, Any], console: Console) -> None:
    columns = [Column("backbone", justify="left"), Column("method", justify="left"), Column("cells", 1)]
    columns += [Column("step", 3), Column("scoring", 2), Column("hours")]
    texts = []
    for row in rows:
        mark = "~" if row["extrapolated"] else ""
        numbers = [f"{mark}{row[key]:,.2f}" if row[key] is not None else "?" for key in ("step_ms", "score_ms")]
        hours = f"{mark}{row['hours']:,.1f}" if row["hours"] is not None else "?"
        texts.append([row["backbone"], row["method"], str(row["cells"]), *numbers, hours])
    print_table(console, "ms per image of a step and of scoring, and device-hours", columns, texts)
    hardware = summary["hardware"]
    unknown = f", {summary['unknown']} rows unknown and not counted" if summary["unknown"] else ""
    name = hardware.get("gpu") or hardware["cpu"]
    load = "" if summary["load"] is None else f", load {summary['load']:.1f}"
    for line in (
        f"{count_cells(summary['cells'])} ({summary['datasets']} datasets, {summary['seeds']} seeds, "
        f"{summary['epochs']} epochs, batch {summary['batch_size']}): {summary['hours']:,.0f} device-hours{unknown}.",
        f"Hardware: {name}, {hardware['threads']} threads{load}.",
        summary["rule"],
    ):
        print_text(console, line)
