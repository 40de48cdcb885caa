"""``s2a-bench experiments``: the paper's experiments, and how much of each is done in an output folder."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench.cli.common import DONE, Flag, Folder, Names, Number, Seeds, make_console, print_text, say_next
from s2a_bench.cli.steps import show_activity
from s2a_bench.errors import Mistakes, sentences
from s2a_bench.experiments import spec as experiment
from s2a_bench.sweeps.request import Request


@dataclasses.dataclass(frozen=True)
class Experiments:
    """Lists the paper's experiments: what each shows, its cells, and how many of them are done in a folder.

    Attributes:
        suite: mini, real, vtab, fgvc, cifar, domainnet, imagenet.
        datasets: Datasets of the suite; its default subset if left out.
        backbones: Only these; the experiment's own if left out.
        seeds: One cell each; the suite's own if left out.
        epochs: Passes over the training images; the recipe's if left out.
        data_dir: Where prepared datasets lie.
        random_weights: Cells that start from random weights.
        limit_train: Cells with so many training images.
        limit_test: Cells with so many images scored.
        output: Folder of a sweep.
    """

    suite: str = "mini"
    datasets: Names = ()
    backbones: Names = ()
    seeds: Seeds = ()
    epochs: Number = None
    data_dir: Folder = None
    random_weights: Flag = False
    limit_train: Number = None
    limit_test: Number = None
    output: Path = Path("results")

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            ValueError: Unknown names or bad values.
        """
        from s2a_bench.sweeps.checks.request import check_request

        asked = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "output"}
        asked["data_dir"] = str(self.data_dir.absolute()) if self.data_dir else None
        request = Request(**asked)
        mistakes = Mistakes()
        check_request(mistakes, request)
        mistakes.raise_all()
        return print_experiments(request, self.output, console)


@dataclasses.dataclass(frozen=True)
class Standing:
    """An experiment against the records of a folder.

    Attributes:
        planned: What it is.
        cells: How many it has over the chosen suite.
        done: How many of them have a finished record; ``None`` where that cannot be told.
        why: The reasons then, a sentence each.
    """

    planned: experiment.Experiment
    cells: int
    done: int | None
    why: tuple[str, ...] = ()


def standing(name: str, request: Request, output: Path) -> Standing:
    """How far an experiment is.

    Args:
        name: Of the experiment.
        request: Suite, datasets, backbones, seeds and paths.
        output: The folder.

    Raises:
        ValueError: Unknown names.
    """
    from s2a_bench.sweeps import grid, plan
    from s2a_bench.sweeps.checks.request import check_data

    cells = grid.expand(dataclasses.replace(request, experiment=name))
    planned = experiment.load_experiment(name)
    try:
        check_data(request)
        found = plan.identify(cells)
    except ValueError as error:  # data or weights that are not here: cells can be counted, but not told apart
        return Standing(planned, len(cells), None, sentences(error))
    return Standing(planned, len(found), len(plan.plan(found, output).done))


def print_experiments(request: Request, output: Path, console: Console) -> int:
    """Prints the paper's experiments: what each shows, its cells, and how many of them are done.

    Raises:
        ValueError: Unknown names.
    """
    names, rows = experiment.list_experiments(), []
    for number, name in enumerate(names, 1):
        with show_activity(make_console(sys.stderr), f"looking at the cells of {name} ({number} of {len(names)})"):
            rows.append(standing(name, request, output))
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
    for reason in dict.fromkeys(reason for row in rows for reason in row.why):
        print_text(console, f"?: {reason}")
    next_one = next((row.planned.name for row in rows if row.done != row.cells), names[0])
    where = f"--suite {request.suite} --experiment {next_one} --output {shlex.quote(str(output))}"
    say_next(console, f"Next: s2a-bench sweep {where}")
    return DONE
