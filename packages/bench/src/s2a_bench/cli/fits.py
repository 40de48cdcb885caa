"""``s2a-bench fits``: the largest batch that a memory budget has room for, per backbone and method."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench.cli.common import DONE, Names, Number, Settings, flat
from s2a_bench.cli.memory import ALL, check, methods_and_recipe, patiently
from s2a_bench.errors import InputError, Mistakes


@dataclasses.dataclass(frozen=True)
class Fits:
    """The largest batch that a memory budget has room for, per backbone and method. No weights, no data, no GPU needed.

    Attributes:
        budget: 8GiB, 320MB, a number of bytes; free: what is free on the CUDA device, less 5 %.
        backbone: timm names, mini_vit, ...
        method: Methods, with options if need be: "s2a:activations=lean"; all: every one.
        image_size: Side of the images in pixels; each backbone's own if left out.
        set: method.KEY=VALUE, train.precision=bf16, train.checkpointing=true, train.frozen=bf16.
        json: Print JSON.
    """

    budget: Annotated[str, tyro.conf.arg(metavar="8GiB")]
    backbone: Names = ("mini_vit",)
    method: Names = (ALL,)
    image_size: Number = None
    set: Settings = ()
    json: bool = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            ValueError: Bad input.
        """
        settings = flat(self.set)
        _check_no_budget(settings, self.method)
        check(self.backbone, self.method, 1, settings, None, "fits", self.image_size)
        from s2a.fitting import budget_bytes

        budget = budget_bytes(self.budget, "--budget")
        rows = rows_of(self.backbone, self.method, budget, settings, self.image_size)
        if self.json:
            print(json.dumps(rows, indent=1), file=console.file)
        else:
            console.print(_table(rows, budget))
        return DONE


def _check_no_budget(settings: Sequence[str], labels: Sequence[str]) -> None:
    words = [*settings, *(f"method.{part}" for label in labels for part in label.partition(":")[2].split(","))]
    for text in words:
        key = text.partition("=")[0].strip()
        if key.endswith("_budget") or key.endswith("_budget_mb"):
            raise InputError(f"{key} is a second budget beside --budget, for which the plan is made; leave it out.")
        if key == "train.batch_size":
            raise InputError("train.batch_size has no effect: fits looks for the largest batch; leave it out.")


def rows_of(
    backbones: Sequence[str], labels: Sequence[str], budget: int, settings: tuple[str, ...], image_size: int | None
) -> list[dict[str, Any]]:
    """A row of ``cells.fits.fit_row`` per backbone and method, checked arguments given.

    Raises:
        ValueError: Bad input; of ``"all"``, a method that a backbone cannot take is a row that says why.
    """
    import s2a

    from s2a_bench.cells.fits import fit_row

    named, train = methods_and_recipe(labels, settings)
    mistakes = Mistakes()
    pairs = [(backbone, method, label) for backbone in backbones for method, label in named]
    rows: list[dict[str, Any]] = []
    for number, (backbone, method, label) in enumerate(pairs, 1):
        with patiently(f"{backbone}, {label} ({number} of {len(pairs)})"):
            try:
                row = fit_row(backbone, method.name, budget, method.options, train, image_size=image_size)
                rows.append(row | {"method": label})
            except s2a.S2AError as error:
                if label in labels:
                    mistakes.add(error)
                rows.append({"backbone": backbone, "method": label, "refused": str(error)})
    mistakes.raise_all()
    return rows


def _table(rows: list[dict[str, Any]], budget: int) -> Table:
    table = Table(title=f"The largest batch within {budget / 1e6:,.0f} MB", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for column in ("backbone", "method"):
        table.add_column(column, overflow="fold")
    planned = any(row.get("smallest_plan") for row in rows)
    for column in ("batch", "peak MB", "GFLOP", "operations", *(("smallest plan", "operations") if planned else ())):
        table.add_column(column, justify="right")
    notes = ["peak: simulated; leave a card some room for its context and workspaces (docs/fits.md)"]
    notes.append("operations (GFLOP per image): beside the same method with exact activations; no seconds")
    for row in rows:
        if "refused" in row:
            table.add_row(row["backbone"], row["method"], "refused")
            notes.append(f"{row['method']} on {row['backbone']}: {row['refused']}")
            continue
        cells = [
            _batch(row),
            f"{row['peak_mb']:,.0f}",
            f"{row['step_gflops']:,.1f}",
            f"{row['relative_step_flops']:.2f} x",
        ]
        if row["smallest_plan"]:
            cells += [_batch(row["smallest_plan"]), f"{row['smallest_plan']['relative_step_flops']:.2f} x"]
        table.add_row(row["backbone"], row["method"], *cells)
        if row["smallest_budget_mb"] is not None:
            notes.append(f"{row['method']} on {row['backbone']}: {row['answer']}")
    table.caption = "\n".join(notes)
    return table


def _batch(numbers: dict[str, Any]) -> str:
    if not numbers["batch_size"]:
        return "none"
    return f"{'at least ' if numbers['at_least'] else ''}{numbers['batch_size']:,}"
