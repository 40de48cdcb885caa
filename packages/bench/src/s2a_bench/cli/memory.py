"""``s2a-bench memory``: parameters and memory of one training step, and the paper's tables of them beside ours."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import shlex
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

from rich.console import Console
from rich.table import Table

from s2a_bench.cli.common import DONE, Flag, Names, Settings, argument, flat, is_alive, make_console, say_next
from s2a_bench.cli.fitted_table import Column, print_table
from s2a_bench.cli.steps import show_activity
from s2a_bench.config import MethodConfig, TrainConfig
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.settings import SCOPES, methods_with, parse_method, parse_settings, train_settings

ALL = "all"
"""Stands for every registered method."""

PATIENCE = 10.0
"""Seconds after which a row says that it is being worked on."""

STEP_KEYS = ("precision", "checkpointing", "frozen")
"""Keys of the recipe that decide what a step keeps."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Parameters and memory of one training step: theoretical, saved, simulated. No training, no data.

    Attributes:
        backbone: timm names, mini_vit, ...
        method: Methods, with options if need be: "s2a:activations=exact"; all: every one.
        batch_size: Images of the step.
        set: method.KEY=VALUE, train.precision=bf16, train.checkpointing=true; values as in JSON or Python.
        device: cuda or cuda:0: also measure the peak there, every row in a process of its own.
        paper: Every row of the paper's Tables 1 and 2 instead, next to what is printed there.
        json: Print JSON.
    """

    backbone: Names = ("mini_vit",)
    method: Names = ("s2a",)
    batch_size: int = 32
    set: Settings = ()
    device: Annotated[str | None, argument("cuda")] = None
    paper: Flag = False
    json: Flag = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            ValueError: Bad input.
        """
        settings = flat(self.set)
        if self.paper:
            self._check_paper_alone()
            check((), (), self.batch_size, (), None)
            return memory_paper(self.batch_size, self.json, console)
        return memory(self.backbone, self.method, self.batch_size, settings, self.device, self.json, console)

    def _check_paper_alone(self) -> None:
        names = ("backbone", "method", "set", "device")
        usual = {field.name: field.default for field in dataclasses.fields(self)}
        if given := [f"--{name}" for name in names if getattr(self, name) != usual[name]]:
            raise InputError(
                f"{' and '.join(given)} can have no effect with --paper, whose rows are those of the paper's tables; "
                "leave one of them out."
            )


def check(
    backbones: Sequence[str],
    labels: Sequence[str],
    batch_size: int,
    settings: tuple[str, ...],
    device: str | None,
    command: str = "memory",
    image_size: int | None = None,
) -> None:
    """Checks names, options and values without torch.

    Args:
        backbones: As ``memory``, and so are the others.
        labels: Likewise.
        batch_size: Likewise.
        settings: Likewise.
        device: Likewise.
        command: What an error calls the command.
        image_size: Side in pixels; ``None``: each backbone's own.

    Raises:
        InputError: What is wrong, all of it.
    """
    from s2a_bench.sweeps.checks.devices import check_device_name
    from s2a_bench.sweeps.checks.effects import check_setting_effects
    from s2a_bench.sweeps.checks.methods import method_table
    from s2a_bench.sweeps.checks.request import check_backbones, check_labels, check_settings

    mistakes = Mistakes()
    check_backbones(mistakes, backbones, random_weights=True, size=image_size)
    table = method_table()
    named = [label for label in labels if label != ALL]
    check_labels(mistakes, named, table)
    of_methods = [] if ALL in labels else [label.partition(":")[0] for label in named]
    check_settings(mistakes, Request(settings=settings), of_methods, table)
    if ALL not in labels:
        check_setting_effects(mistakes, Request(settings=settings), named, table)
    for text in settings:
        scope, _, key = text.partition("=")[0].strip().partition(".")
        if scope == SCOPES[1] and key in TrainConfig.__dataclass_fields__ and key not in STEP_KEYS:
            mistakes.add(
                InputError(
                    f"{command} trains nothing: train.{key} has no place here; train.precision, train.checkpointing "
                    "and train.frozen do."
                )
            )
    if batch_size < 1:
        mistakes.add(InputError(f"--batch-size {batch_size} is too small; it must be at least 1."))
    if device is not None:
        with mistakes.collecting():
            check_device_name(device)
    mistakes.raise_all()


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
    check(backbones, labels, batch_size, settings, device)
    import s2a

    from s2a_bench.cells import device_peak

    if device is not None:
        device_peak.check_device(device)
    given = [label for label in labels if label != ALL]
    mistakes = Mistakes()
    named, train = methods_and_recipe(labels, settings, batch_size)
    pairs = [(backbone, method, name) for backbone in backbones for method, name in named]
    rows = []
    for number, (backbone, method, name) in enumerate(pairs, 1):
        with patiently(f"{backbone}, {name} ({number} of {len(pairs)})"):
            try:
                rows.append(_row(backbone, method, train, device) | {"method": name})
            except s2a.S2AError as error:
                if name in given:
                    mistakes.add(error)
                rows.append({"backbone": backbone, "method": name, "batch_size": batch_size, "refused": str(error)})
    mistakes.raise_all()
    if len(rows) == 1:
        _print_row(rows[0], as_json, console)
    elif as_json:
        print(json.dumps(rows, indent=1), file=console.file)
    else:
        _print_table(rows, device, console)
    backbone, _, name = next((pair for pair, row in zip(pairs, rows, strict=True) if "refused" not in row), pairs[0])
    words = ["s2a-bench", "fits", "--budget", "8GiB", "--backbone", backbone, "--method", name]
    words += ["--set", *settings] if settings else []
    say_next(console, f"Next, the largest batch in a memory: {shlex.join(words)}", data=as_json)
    return DONE


def methods_and_recipe(
    labels: Sequence[str], settings: tuple[str, ...], batch_size: int | None = None
) -> tuple[list[tuple[MethodConfig, str]], TrainConfig]:
    """Methods with all their options, each with its label, and the recipe, from arguments that ``check`` has passed.

    Raises:
        ValueError: Bad input.
    """
    import s2a

    parsed = parse_settings(settings)
    given = [label for label in labels if label != ALL]
    every = [name for name in s2a.list_methods() if name not in given] if ALL in labels else []
    mistakes = Mistakes()
    methods = mistakes.each(parse_method, (*every, *given))
    mistakes.raise_all()
    methods = methods_with(methods, parsed["method"])
    train = TrainConfig(**train_settings(Request(batch_size=batch_size), parsed["train"]))
    return list(zip(methods, (*every, *given), strict=True)), train


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
def patiently(what: str) -> Iterator[None]:
    """Says on standard error what is at work: on a terminal at once, elsewhere if it takes long."""
    console = make_console(sys.stderr)
    if is_alive(console):
        with show_activity(console, what):
            yield
        return
    timer = threading.Timer(PATIENCE, lambda: print(f"s2a-bench: at {what} ...", file=sys.stderr, flush=True))
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _print_table(rows: list[dict[str, Any]], device: str | None, console: Console) -> None:
    names = {"trained %": "params_percent", "saved": "saved_mb", "measured": "measured_mb"}
    names |= {"simulated": "simulated_mb"} | ({"device": "device_mb"} if device else {})
    drops = {"trained %": 2, "saved": 3}
    columns = [Column("backbone", justify="left"), Column("method", justify="left")]
    columns += [*(Column(name, drops.get(name, 0)) for name in names), Column("peak in", 1)]
    texts = []
    for row in rows:
        head = [row["backbone"], row["method"]]
        if "refused" in row:
            texts.append([*head, "refused", *[""] * len(names)])
            continue
        numbers = [f"{row[key]:,.3f}" if key == "params_percent" else _mb(row[key]) for key in names.values()]
        texts.append([*head, *numbers, row["simulated_phase"]])
    notes = ["measured: weights and saved; docs/memory.md defines all of them"]
    notes += [f"{row['method']} on {row['backbone']}: {row['refused']}" for row in rows if "refused" in row]
    print_table(console, f"MB of one training step, {rows[0]['batch_size']} images", columns, texts, notes)


def memory_paper(batch_size: int, as_json: bool, console: Console) -> int:
    """Prints every row of the paper's Tables 1 and 2 with what is measured here next to it."""
    from s2a_bench.experiments import memory_tables as paper

    rows = list(paper.measure_paper_rows(batch_size))
    if as_json:
        print(json.dumps(rows, indent=1), file=console.file)
    else:
        _print_paper(rows, console)
        say_next(console, "Next: docs/memory.md says what each column counts, and where ours and the paper's differ.")
    return DONE


def _print_paper(rows: list[dict[str, Any]], console: Console) -> None:
    """Ours next to the paper's: trainable percent, then MB."""
    columns = [Column("", 4, "left"), Column("model", justify="left"), Column("row", justify="left")]
    columns += [Column("%", 3), Column("paper", 3), Column("theory"), Column("paper"), Column("honest", 2)]
    columns += [Column("measured", 1)]
    texts = []
    for row in rows:
        printed = row["paper_params_percent"]
        texts.append(
            [
                f"T{row['table']}",
                row["backbone"].split("_")[0],
                row["row"],
                f"{row['params_percent']:.3f}",
                "" if printed is None else f"{printed:g}",
                f"{row['theoretical_mb']:,.0f}",
                f"{row['paper_mb']:,.0f}",
                "" if row["honest_mb"] == row["theoretical_mb"] else f"{row['honest_mb']:,.0f}",
                f"{row['measured_mb']:,.0f}",
            ]
        )
    title = "trainable % and MB of one step, ours and the paper's"
    note = "honest: without rule R9, UniPT's count of backbone activations that nothing reads"
    print_table(console, title, columns, texts, [note])


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
