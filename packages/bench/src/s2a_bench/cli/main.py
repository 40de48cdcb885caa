"""The command line: arguments in, exit code out. Nothing below this file reads arguments."""

from __future__ import annotations

import dataclasses
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console

from s2a_bench.cli.data_arguments import DataList, DataPrepare, DataVerify
from s2a_bench.cli.records_arguments import Experiments, Records
from s2a_bench.errors import InputError

BAD_INPUT, INTERRUPTED = 2, 130

_Settings = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")]
_Number = Annotated[int | None, tyro.conf.arg(metavar="N")]
_Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
_Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs the missing cells of a grid (datasets x backbones x methods x seeds), then reports on all of them.

    Exit codes: 0 every cell is done, 1 some cell failed (each is named), 2 bad input, before anything ran.

    Attributes:
        suite: mini (offline, embedded), vtab, fgvc, cifar, domainnet, imagenet.
        datasets: Datasets of the suite; its default subset if left out.
        backbones: timm names, mini_vit, ...
        methods: Methods, with options if need be: s2a "s2a:activations=exact,bits=8".
        seeds: One cell each; 0 1 2 for vtab and fgvc, 0 for the others if left out.
        epochs: Passes over the training images; short for --set train.epochs=N.
        batch_size: Images per step; short for --set train.batch_size=N.
        data_dir: Where prepared datasets lie.
        output: Folder of records, report and the default tracking store.
        tracking_uri: MLflow store: sqlite:///PATH or http://HOST:PORT; <output>/mlflow.db if left out.
        experiment: One of the paper's: table1, table2, table3, table4, fig1, fig5, or a .toml file of that form; its
            methods and backbones where none are named.
        set: method.KEY=VALUE for every method that has the option, or train.KEY=VALUE; values as in JSON or Python.
        sweep: method.KEY=V1,V2,... or train.KEY=V1,V2,...; given more than once: all combinations.
        weights: Local .safetensors or .pth file for the backbone.
        random_weights: Start from random weights; the record says so.
        image_size: Side in pixels, instead of the checkpoint's own.
        limit_train: Keep this many training images.
        limit_test: Keep this many of the images that are scored.
        evaluate: test: train on train and val, score the test set once. val: train on train, score val.
        device: cpu, cuda, cuda:0.
        serial: Run cell after cell in this process, without Ray.
        max_concurrent: Cells at once; chosen by cores and memory if left out.
        dry_run: Only print what would run, with an estimate of time and memory from the records so far.
        search: none: each method's default recipe. grid, or a number of random trials: first choose learning rate,
            weight decay and scale on val, the same number of trials for every method.
        search_scheduler: none: every trial comes to its end. asha: Ray Tune stops trials that fall behind on val.
        checkpoint_every: Seconds between checkpoints of a running cell, from which a killed one goes on; inf: none.
        ray_address: HOST:PORT of a running Ray cluster to use instead of this machine; auto: the one that runs here.
        gpu_memory_gb: Memory of a card; cells get shares of it by their predicted memory.
        keep_adapters: Keep what each cell trained, <output>/adapters/CELL.safetensors (s2a.load reads it).
        no_feature_cache: Run the backbone of linear in every epoch, instead of once (features: <output>/cache).
    """

    suite: str = "mini"
    datasets: _Names = ()
    backbones: _Names = ()
    methods: _Names = ()
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = ()
    epochs: _Number = None
    batch_size: _Number = None
    data_dir: _Folder = None
    output: Path = Path("results")
    tracking_uri: Annotated[str | None, tyro.conf.arg(metavar="URI")] = None
    experiment: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    set: _Settings = ()
    sweep: Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=V1,V2")] = ()
    weights: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    random_weights: bool = False
    image_size: _Number = None
    limit_train: _Number = None
    limit_test: _Number = None
    evaluate: Literal["test", "val"] = "test"
    device: str = "cpu"
    serial: bool = False
    max_concurrent: _Number = None
    dry_run: bool = False
    search: Annotated[str, tyro.conf.arg(metavar="none|grid|N")] = "none"
    search_scheduler: Literal["none", "asha"] = "none"
    checkpoint_every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    keep_adapters: bool = False
    ray_address: Annotated[str | None, tyro.conf.arg(metavar="HOST:PORT")] = None
    gpu_memory_gb: Annotated[float | None, tyro.conf.arg(metavar="GB")] = None
    no_feature_cache: bool = False

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import sweep_grid as commands
        from s2a_bench.cli import sweep_search as commands_search
        from s2a_bench.sweeps import grid
        from s2a_bench.sweeps.search.choice import parse_mode

        same = {f.name for f in dataclasses.fields(grid.Request)} & {f.name for f in dataclasses.fields(self)}
        request = grid.Request(
            **{name: getattr(self, name) for name in same}, settings=_flat(self.set), axes=_flat(self.sweep)
        )
        # The workers' folder is not this one.
        paths = {name: str(Path(path).absolute()) for name in ("data_dir", "weights") if (path := getattr(self, name))}
        conduct = commands.Conduct(self.output, self.tracking_uri, self.serial, self.max_concurrent, self.dry_run)
        conduct = dataclasses.replace(conduct, checkpoint_every=self.checkpoint_every, keep_adapters=self.keep_adapters)
        conduct = dataclasses.replace(conduct, ray_address=self.ray_address, gpu_memory_gb=self.gpu_memory_gb)
        conduct = dataclasses.replace(conduct, feature_cache=not self.no_feature_cache)
        request = dataclasses.replace(request, **paths)
        if (mode := parse_mode(self.search, self.search_scheduler)) is not None:
            return commands_search.sweep(request, mode, conduct, console)
        return commands.sweep(request, conduct, console)


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
