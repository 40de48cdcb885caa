"""The command line: arguments in, exit code out. Nothing below this file reads arguments."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from s2a_bench.cli.data_arguments import DataList, DataPrepare, DataVerify
from s2a_bench.cli.records_arguments import Experiments, Records
from s2a_bench.cli.sweep import Sweep
from s2a_bench.errors import InputError

BAD_INPUT, INTERRUPTED = 2, 130

_Settings = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")]
_Number = Annotated[int | None, tyro.conf.arg(metavar="N")]
_Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
_Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]


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

    backbone: _Names = ("mini_vit",)
    method: _Names = ("s2a",)
    batch_size: int = 32
    set: _Settings = ()
    device: Annotated[str | None, tyro.conf.arg(metavar="cuda")] = None
    paper: bool = False
    json: bool = False

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import memory as commands_memory

        if self.paper:
            return commands_memory.memory_paper(self.batch_size, self.json, console)
        return commands_memory.memory(
            self.backbone, self.method, self.batch_size, _flat(self.set), self.device, self.json, console
        )


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
        seconds: How long each step is measured, after one to warm up.
        json: Print JSON.
    """

    experiment: str = "table1"
    backbones: _Names = ()
    methods: _Names = ()
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: _Number = None
    batch_size: _Number = None
    device: str = "cpu"
    records: _Folder = None
    seconds: float = 2.0
    json: bool = False

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import estimate as commands_estimate
        from s2a_bench.cli import sweep_grid as commands
        from s2a_bench.sweeps import grid

        commands.checked(grid.Request(device=self.device))
        asked = {f.name: getattr(self, f.name) for f in dataclasses.fields(commands_estimate.Asked)}
        return commands_estimate.run(commands_estimate.Asked(**asked), self.json, console)


@dataclasses.dataclass(frozen=True)
class Methods:
    """What each method trains, where it sits, what it keeps, what it costs, and where it comes from.

    Attributes:
        name: One method; all if left out.
        markdown: Print the page docs/methods.md.
    """

    name: Annotated[tyro.conf.Positional[str | None], tyro.conf.arg(metavar="NAME")] = None
    markdown: bool = False

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import sweep_grid as commands

        return commands.methods(self.name, self.markdown, console)


@dataclasses.dataclass(frozen=True)
class Report:
    """Rebuilds the report from the records.

    Attributes:
        output: Folder of a sweep.
    """

    output: Path = Path("results")

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import sweep_grid as commands

        return commands.report(self.output, console)


@dataclasses.dataclass(frozen=True)
class Audit:
    """Measures what looking at the test set would have added to the records of a sweep. It changes none of them.

    Attributes:
        peek: Train the recorded cells again and score the test set after every epoch; print best epoch minus last.
            Behind a search, also train every config that it tried and print the best on test minus the chosen one.
        output: Folder of a sweep.
        datasets: Only these; all that have test records if left out.
        backbones: Only these.
        methods: Only these.
        seeds: Only these.
        data_dir: Where prepared datasets lie.
        weights: Local file of the backbone, where the sweep had one.
        device: cpu, cuda, cuda:0.
        skip_trials: Only the epochs, not the searches.
    """

    peek: bool = False
    output: Path = Path("results")
    datasets: _Names = ()
    backbones: _Names = ()
    methods: _Names = ()
    seeds: tuple[int, ...] = ()
    data_dir: _Folder = None
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    device: str = "cpu"
    skip_trials: bool = False

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import audit as commands_audit

        if not self.peek:
            raise InputError("audit has one question so far: give --peek.")
        wanted = {f.name: getattr(self, f.name) for f in dataclasses.fields(commands_audit.Wanted)}
        paths = {name: str(wanted[name]) for name in ("data_dir", "weights") if wanted[name] is not None}
        return commands_audit.peek(self.output, commands_audit.Wanted(**{**wanted, **paths}), console)


@dataclasses.dataclass(frozen=True)
class Track:
    """Rebuilds the MLflow store from the records.

    Attributes:
        output: Folder of a sweep.
        tracking_uri: MLflow store; <output>/mlflow.db if left out.
    """

    output: Path = Path("results")
    tracking_uri: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import sweep_grid as commands

        return commands.track(self.output, self.tracking_uri, console)


def _commands(argv: Sequence[str]) -> Any:
    """The union of all commands; ``pretrain``'s config needs torch, so it is looked up only where it is asked for."""
    from typing import Union

    def named(cls: Any, name: str, text: str | None = None) -> Any:
        return Annotated[cls, tyro.conf.subcommand(name, description=text)]

    data = Union[named(DataList, "list"), named(DataPrepare, "prepare"), named(DataVerify, "verify")]  # noqa: UP007
    return Union[  # noqa: UP007
        named(Sweep, "sweep"),
        named(Memory, "memory"),
        named(Estimate, "estimate"),
        named(Methods, "methods"),
        named(Experiments, "experiments"),
        named(data, "data", "What data exists; brings a download into the standard layout; checks it."),
        named(Records, "records"),
        named(Report, "report"),
        named(Track, "track"),
        named(Audit, "audit"),
        named(_pretrain() if [*argv][:1] == ["pretrain"] else _Pretrain, "pretrain"),
    ]


@dataclasses.dataclass(frozen=True)
class _Pretrain:
    """Makes the embedded mini backbones."""


def _pretrain() -> type[Any]:
    from s2a_bench.cells.pretrain import PretrainConfig

    @dataclasses.dataclass(frozen=True)
    class Pretrain:
        """Makes an embedded mini backbone from CIFAR-10.

        Attributes:
            data: CIFAR-10 as class folders, {train,test}/CLASS/*.jpg, or a .tar.gz of them.
            config: The run.
            out: Folder of the weights and their card.
        """

        data: Path
        config: Annotated[PretrainConfig, tyro.conf.arg(name="")]
        out: Path = Path("data/backbones")

        def run(self, console: Console) -> int:
            """Runs the command."""
            from s2a_bench.cli import sweep_grid as commands

            return commands.pretrain(self.config, self.data, self.out, console)

    Pretrain.__annotations__["config"] = Annotated[PretrainConfig, tyro.conf.arg(name="")]
    return Pretrain


def _flat(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    return tuple(text for group in groups for text in group)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Args:
        argv: Arguments without the program's name; ``None`` takes those of the process.

    Returns:
        The exit code.
    """
    if argv is None:  # the process is ours: being told to end is like Ctrl-C
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        argv = sys.argv[1:]
    command = tyro.cli(
        _commands(argv),
        args=list(argv),
        prog="s2a-bench",
        description="Fine-tuning methods for vision backbones, compared in accuracy and memory.",
        config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitSubcommandPrefixes, tyro.conf.OmitArgPrefixes),
    )
    console = Console(file=sys.stdout)  # bound now: what libraries do to sys.stdout later does not concern it
    try:
        return command.run(console)
    except ValueError as error:
        from s2a.errors import S2AError

        if not isinstance(error, InputError | S2AError):
            raise
        print(f"s2a-bench: {error}", file=sys.stderr)
        return BAD_INPUT
    except OSError as error:
        from s2a_bench import failures as faults

        if (sentence := faults.full_sentence(error)) is None:
            raise
        print(f"s2a-bench: {sentence}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("s2a-bench: interrupted", file=sys.stderr)
        return INTERRUPTED


if __name__ == "__main__":
    sys.exit(main())
