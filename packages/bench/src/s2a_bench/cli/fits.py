"""``s2a-bench fits``: the largest batch that a memory budget has room for, per backbone and method."""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Sequence
from typing import Annotated, Any

import tyro
from rich.console import Console

from s2a_bench.cli.common import DONE, Flag, Names, Number, Settings, flat, say_next
from s2a_bench.cli.fitted_table import Column, print_table
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
        set: method.KEY=VALUE, train.precision=bf16, train.checkpointing=true, train.frozen=paged.
        json: Print JSON.
    """

    budget: Annotated[str, tyro.conf.arg(metavar="8GiB")]
    backbone: Names = ("mini_vit",)
    method: Names = (ALL,)
    image_size: Number = None
    set: Settings = ()
    json: Flag = False

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
            _print_table(rows, budget, console)
        fitting = next((row for row in rows if row.get("batch_size")), None)
        if fitting is not None:
            command = _train_command(fitting, self.budget, settings, self.image_size)
            say_next(console, f"Next, on your own images: {command}", data=self.json)
        return DONE


def _train_command(row: dict[str, Any], budget: str, settings: Sequence[str], image_size: int | None) -> str:
    """Trains with what a row is for, and with the settings that it was computed for."""
    words = ["s2a-bench", "finetune", "DIR", "--backbone", row["backbone"], "--method", row["method"]]
    words += [] if budget == "free" else ["--memory-budget", budget]
    words += [] if image_size is None else ["--image-size", str(image_size)]
    words += ["--set", *settings] if settings else []
    return shlex.join(words)


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


def _print_table(rows: list[dict[str, Any]], budget: int, console: Console) -> None:
    planned = any(row.get("smallest_plan") for row in rows)
    columns = [Column("backbone", justify="left"), Column("method", justify="left"), Column("batch")]
    columns += [Column("peak MB", 1), Column("GFLOP", 3), Column("operations", 2)]
    columns += [Column("smallest plan", 4), Column("its operations", 4)] if planned else []
    notes = ["peak: simulated; leave a card some room for its context and workspaces (docs/fits.md)"]
    notes.append("operations (GFLOP per image): beside the same method with exact activations; no seconds")
    texts = []
    for row in rows:
        head = [row["backbone"], row["method"]]
        if "refused" in row:
            texts.append([*head, "refused", *[""] * (len(columns) - 3)])
            notes.append(f"{row['method']} on {row['backbone']}: {row['refused']}")
            continue
        cells = [
            _batch(row),
            f"{row['peak_mb']:,.0f}",
            f"{row['step_gflops']:,.1f}",
            f"{row['relative_step_flops']:.2f} x",
        ]
        if smallest := row["smallest_plan"]:
            cells += [_batch(smallest), f"{smallest['relative_step_flops']:.2f} x"]
        texts.append([*head, *cells, *[""] * (len(columns) - 2 - len(cells))])
        if row["smallest_budget_mb"] is not None:
            notes.append(f"{row['method']} on {row['backbone']}: {row['answer']}")
    print_table(console, f"The largest batch within {budget / 1e6:,.0f} MB", columns, texts, notes)


def _batch(numbers: dict[str, Any]) -> str:
    if not numbers["batch_size"]:
        return "none"
    return f"{'at least ' if numbers['at_least'] else ''}{numbers['batch_size']:,}"
