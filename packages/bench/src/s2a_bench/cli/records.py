"""`records` and `experiments`: what an output folder holds, and what of the paper's experiments is in it."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench.cells import bundle
from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.cli.sweep_grid import DONE
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError
from s2a_bench.experiments import spec as experiment
from s2a_bench.sweeps import grid
from s2a_bench.sweeps import plan as sweeping

_VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}


def take(file: Path, output: Path, console: Console) -> int:
    """Puts the records of a file into an output folder.

    Raises:
        InputError: The file is not of records, or the folder cannot be written.
    """
    found = bundle.load(file)
    output = output.absolute()
    with sweeping.only_writer(output):
        taken = bundle.take(found, output)
    kept = f", {len(taken.kept)} of cells that have another record here, which stayed" if taken.kept else ""
    console.print(
        f"{len(found)} records in {file}: {len(taken.new)} written to {output}, {len(taken.same)} were there{kept}.",
        **_VERBATIM,
    )
    return DONE


def save(output: Path, file: Path, console: Console) -> int:
    """Writes the records of an output folder to a file.

    Raises:
        InputError: There are none, or one is broken.
    """
    found = []
    for _, record in records.read_all(output):
        if not isinstance(record, Record):
            raise InputError(str(record))
        found.append(record)
    if not found:
        raise InputError(f"There are no records under {output / 'records'}; give the --output of a sweep.")
    try:
        count = bundle.save(found, file.absolute())
    except OSError as error:
        raise InputError(f"Cannot write {file} ({error}).") from error
    console.print(f"{count} records written to {file}.", **_VERBATIM)
    return DONE


@dataclasses.dataclass(frozen=True)
class Standing:
    """An experiment against the records of a folder.

    Attributes:
        planned: What it is.
        cells: How many it has over the chosen suite.
        done: How many of them have a finished record; ``None`` where that cannot be told.
        why: The reason then, one sentence.
    """

    planned: experiment.Experiment
    cells: int
    done: int | None
    why: str = ""


def standing(name: str, request: grid.Request, output: Path) -> Standing:
    """How far an experiment is.

    Args:
        name: Of the experiment.
        request: Suite, datasets, backbones, seeds and paths.
        output: The folder.

    Raises:
        ValueError: Unknown names.
    """
    cells = grid.expand(dataclasses.replace(request, experiment=name))
    planned = experiment.load_experiment(name)
    try:
        found = sweeping.identify(cells)
    except ValueError as error:  # data or weights that are not here: cells can be counted, but not told apart
        return Standing(planned, len(cells), None, str(error))
    return Standing(planned, len(found), len(sweeping.plan(found, output).done))


def experiments(request: grid.Request, output: Path, console: Console) -> int:
    """Prints the paper's experiments: what each shows, its cells, and how many of them are done.

    Raises:
        ValueError: Unknown names.
    """
    datasets.get_suite(request.suite)
    rows = [standing(name, request, output) for name in experiment.list_experiments()]
    table = Table(
        title=f"The paper's experiments over {request.suite}, records of {output}",
        title_justify="left",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
    )
    table.add_column("experiment", no_wrap=True)
    table.add_column("shows")
    for name in ("cells", "done"):
        table.add_column(name, justify="right", no_wrap=True)
    for row in rows:
        done = "?" if row.done is None else str(row.done)
        text = f"{row.planned.title}. {row.planned.question}"
        table.add_row(row.planned.name, text, str(row.cells), done)
    console.print(table, highlight=False)
    for reason in dict.fromkeys(row.why for row in rows if row.why):
        console.print(f"?: {reason}", **_VERBATIM)
    return DONE
