"""``s2a-bench sweep``: its arguments, and what it prints; the sweep itself is ``s2a_bench.api``."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from rich.console import Console

from s2a_bench.cli.common import (
    DONE,
    INTERRUPTED,
    SOME_FAILED,
    Axes,
    File,
    Flag,
    Folder,
    Names,
    Number,
    Seeds,
    Settings,
    Uri,
    argument,
    flat,
    print_text,
    print_verbatim,
    say_next,
    show_command,
)
from s2a_bench.cli.fitted_table import Column, print_table
from s2a_bench.errors import InputError

if TYPE_CHECKING:
    from s2a_bench.api import Job


@dataclasses.dataclass(frozen=True)
class Sweep:
    """Runs the missing cells of a grid (datasets x backbones x methods x seeds), then reports on all of them.

    Exit codes: 0 every cell is done, 1 some cell failed (each is named), 2 bad input, before anything ran.

    Attributes:
        suite: mini (offline, embedded), real (for trained weights without a card), vtab, fgvc, cifar, domainnet,
            imagenet; own: your own images, as `s2a-bench data prepare NAME --from DIR` leaves them under --data-dir.
        datasets: Datasets of the suite; its default subset if left out (own: all under --data-dir).
        backbones: timm names, mini_vit, ...
        methods: Methods, with options if need be: s2a "s2a:activations=exact,bits=8".
        seeds: One cell each; 0 1 2 for vtab and fgvc, 0 1 for real, 0 for the others if left out.
        epochs: Passes over the training images; short for --set train.epochs=N.
        batch_size: Images per step; short for --set train.batch_size=N.
        data_dir: Where prepared datasets lie.
        output: Folder of records, report and the default tracking store.
        tracking_uri: MLflow store: sqlite:///PATH or http://HOST:PORT; <output>/mlflow.db if left out.
        experiment: One of the paper's: table1, table2, table3, table4, fig1, fig5, or a .toml file of that form; its
            methods and backbones where none are named.
        set: method.KEY=VALUE for every method that has the option, or train.KEY=VALUE; values as in JSON or Python.
        sweep: method.KEY=V1,V2,... or train.KEY=V1,V2,...; given more than once: all combinations.
        weights: Local .safetensors or .pth file for the backbone, or a folder with model.safetensors.
        random_weights: Start from random weights; the record says so.
        image_size: Side in pixels, instead of the checkpoint's own.
        limit_train: Keep this many training images.
        limit_test: Keep this many of the images that are scored.
        evaluate: test: train on train and val, score the test set once. val: train on train, score val. select:
            train on train, keep the best epoch on val (train.patience=N stops early), score the test set once with it.
        augment: Random views of training images: default (the suite's: none for mini and vtab, crop for the others),
            none, crop, resized-crop, rand or rand-mM-nN (timm's RandAugment, magnitude M, N operations).
        no_mirror: Do not mirror training images: left and right matter.
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
        keep_adapters: Keep what each cell trained, <output>/adapters/CELL.safetensors (s2a.load reads it), however
            large; without this flag what is larger than 50 MB is not kept.
        no_keep_adapters: Keep nothing that was trained.
        no_feature_cache: Run the backbone of linear in every epoch, instead of once (features: <output>/cache).
    """

    suite: str = "mini"
    datasets: Names = ()
    backbones: Names = ()
    methods: Names = ()
    seeds: Seeds = ()
    epochs: Number = None
    batch_size: Number = None
    data_dir: Folder = None
    output: Path = Path("results")
    tracking_uri: Uri = None
    experiment: Annotated[str | None, argument("NAME")] = None
    set: Settings = ()
    sweep: Axes = ()
    weights: File = None
    random_weights: Flag = False
    image_size: Number = None
    limit_train: Number = None
    limit_test: Number = None
    evaluate: Literal["test", "val", "select"] = "test"
    augment: Annotated[str, tyro.conf.arg(metavar="NAME")] = "default"
    no_mirror: Flag = False
    device: str = "cpu"
    serial: Flag = False
    max_concurrent: Number = None
    dry_run: Flag = False
    search: Annotated[str, tyro.conf.arg(metavar="none|grid|N")] = "none"
    search_scheduler: Literal["none", "asha"] = "none"
    checkpoint_every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 60.0
    keep_adapters: Flag = False
    no_keep_adapters: Flag = False
    ray_address: Annotated[str | None, argument("HOST:PORT")] = None
    gpu_memory_gb: Annotated[float | None, argument("GB")] = None
    no_feature_cache: Flag = False

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench import api

        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given |= {"set": flat(self.set), "sweep": flat(self.sweep)}
        del given["dry_run"], given["no_keep_adapters"]
        if self.keep_adapters and self.no_keep_adapters:
            raise InputError("--keep-adapters and --no-keep-adapters exclude each other; give one of them.")
        given["keep_adapters"] = self.keep_adapters or (False if self.no_keep_adapters else None)
        job = api.prepare(**given)
        return _preview(job, console) if self.dry_run else _sweep(job, console)


def _sweep(job: Job, console: Console) -> int:
    from s2a_bench.api import execute
    from s2a_bench.cli.progress import ConsoleListener
    from s2a_bench.sweeps.stage import SweepStopped, done_sentence

    with ConsoleListener(console) as listener:
        try:
            found = execute(job, [listener])
        except KeyboardInterrupt:
            if not listener.interrupted:
                raise
            return INTERRUPTED
        except SweepStopped as stopped:
            print(f"s2a-bench: {stopped}", file=sys.stderr)
            return SOME_FAILED
    if found.report is not None:
        print_verbatim(console, f"Report: {found.report.html}")
        if found.tracking_uri is not None:
            print_verbatim(console, f"MLflow: {show_command(job.options.keep.output, found.tracking_uri)}")
    last = found.result.stages[-1]
    done = sum(record.status == "done" for record in last.records)
    if last.choices is None and done < len(last.plan.cells):
        rest = "" if last.plan.newer else "; the same command runs the others again"
        say_next(console, f"{done_sentence(done, len(last.plan.cells))} done{rest}.")
    return DONE if found.result.complete else SOME_FAILED


def _preview(job: Job, console: Console) -> int:
    from s2a_bench.sweeps.driver import preview

    found = preview(job.request, job.options, job.mode)
    for problem in found.problems:
        print(f"s2a-bench: {problem}", file=sys.stderr)
    columns = [Column("cell", 1, "left"), Column("record", justify="left")]
    columns += [Column("what", justify="left", wraps=True), Column("epochs", 2)]
    rows = [[row.cell_id or "after the search", row.state, row.text, str(row.epochs)] for row in found.rows]
    print_table(console, "", columns, rows)
    print_text(console, found.sentence)
    print_text(console, found.estimate)
    say_next(console, "Next: the same command without --dry-run.")
    return DONE
