"""``s2a-bench finetune``: its arguments, and what it shows; the fine-tuning itself is ``s2a_bench.finetune``."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console

from s2a_bench.cli.common import (
    DONE,
    SOME_FAILED,
    File,
    Flag,
    Folder,
    Number,
    Settings,
    Uri,
    argument,
    flat,
    is_alive,
    print_text,
    print_verbatim,
    say_next,
    show_command,
)
from s2a_bench.cli.live import Clock, Heartbeat, LiveRows, Pace, Row, clock_text
from s2a_bench.cli.steps import Steps
from s2a_bench.errors import InputError
from s2a_bench.sweeps.events import Level, Listener

if TYPE_CHECKING:
    from s2a_bench.finetuning.result import Result
    from s2a_bench.sweeps.plan import Plan

HEARTBEAT = 60.0
"""Seconds between plain lines within an epoch."""

Name = Annotated[str | None, argument("NAME")]


@dataclasses.dataclass(frozen=True)
class Finetune:
    """Trains on your own images: from a folder to an adapter that predict, export and s2a.from_pretrained take.

    Exit codes: 0 done (or finished before), 1 the training failed, 2 bad input, before anything was written,
    130 interrupted: the best epoch so far is kept, and the same command goes on.

    Attributes:
        data: A folder with one folder of images per class, or with train, val, test of those; a CSV or Parquet table of
            paths and labels; a Hugging Face datasets folder; an archive; or a dataset that was prepared, by its folder,
            or by its name under --data-dir.
        backbone: timm name or mini_vit, ...; if left out a good one for the device.
        method: Method, with options if need be: "s2a:lrp_rank=16"; activations are lean unless it says otherwise.
        output: Gets adapter/, metrics.json, report.html, records, checkpoints and MLflow's mlflow.db.
        memory_budget: For a training step, 8GiB say: batch and plan are chosen so that it fits. If left out 90 % of
            what is free on the card, and no limit on a CPU.
        epochs: Passes over the training images; 5 to 30 by their number if left out.
        batch_size: Images per step; 32 if left out, fewer for few images or a small budget.
        lr: Peak learning rate; find: by a range test on the training images; the method's recipe if left out.
        augment: Of training images: default (random crop), none, resized-crop, rand (timm's RandAugment), rand-m7-n2.
        no_mirror: Do not mirror training images: where left and right mean something.
        balance: Weight classes by their inverse frequency: where some have many more images than others.
        patience: Stop after N epochs without a better validation accuracy; 0: train to the end.
        val: Share of the images drawn for validation, where the data have no such part.
        test: Share drawn for the final test; 0: none.
        group_column: Column of a table: rows with the same value, of one patient say, stay in one part.
        path_column: Column of a table with the paths of the images.
        label_column: Column of a table with the labels.
        split_column: Column of a table with train, val or test.
        no_near_duplicates: Do not look for images that look the same, which otherwise stay in one part.
        skip_unreadable: Leave images out that cannot be read, instead of refusing them.
        seed: Of the splits, the new parameters and the order of the images.
        device: auto (a GPU where there is one), cpu, cuda, cuda:0.
        weights: Local .safetensors or .pth file of the backbone's weights.
        image_size: Side in pixels; 224 if left out, or less where the checkpoint's own is smaller.
        set: train.KEY=VALUE or method.KEY=VALUE; values as in JSON or Python.
        data_dir: Where prepared datasets lie.
        tracking_uri: MLflow store: sqlite:///PATH or http://HOST:PORT; <output>/mlflow.db if left out.
        checkpoint_every: Seconds between checkpoints, from which a training that was cut off goes on; 0: every epoch, a
            large state less often (5 % of the time at most goes into writing); inf: none.
    """

    data: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DATA")]
    backbone: Name = None
    method: str = "s2a"
    output: Path = Path("finetuned")
    memory_budget: Annotated[str | None, argument("SIZE")] = None
    epochs: Number = None
    batch_size: Number = None
    lr: Annotated[str | None, argument("RATE|find")] = None
    augment: str = "default"
    no_mirror: Flag = False
    balance: Flag = False
    patience: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    val: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.1
    test: Annotated[float, tyro.conf.arg(metavar="SHARE")] = 0.1
    group_column: Name = None
    path_column: Name = None
    label_column: Name = None
    split_column: Name = None
    no_near_duplicates: Flag = False
    skip_unreadable: Flag = False
    seed: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    device: str = "auto"
    weights: File = None
    image_size: Number = None
    set: Settings = ()
    data_dir: Folder = None
    tracking_uri: Uri = None
    checkpoint_every: Annotated[float, tyro.conf.arg(metavar="SECONDS")] = 0.0

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench import api
        from s2a_bench.finetuning.result import FinetuneFailed

        given: dict[str, Any] = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        given["set"] = flat(self.set)
        given["mirror"], given["near_duplicates"] = not given.pop("no_mirror"), not given.pop("no_near_duplicates")
        if self.lr is not None and self.lr != "find":
            try:
                given["lr"] = float(self.lr)
            except ValueError:
                raise InputError(f"--lr {self.lr!r} is no learning rate; give a number, or find.") from None
        with FinetuneConsole(console) as listener:
            try:
                result = api.finetune(**given, listeners=[listener])
            except FinetuneFailed as error:
                print(f"s2a-bench: {error}", file=sys.stderr)
                return SOME_FAILED
        _print_result(console, result)
        return DONE


def _print_result(console: Console, result: Result) -> None:
    from s2a_bench.finetuning import page

    found = result.metrics
    if not result.ran:
        print_verbatim(console, "This was trained before, with these very arguments and data; nothing was done.")
    scored = "validation" if found["accuracy_on"] == "val" else found["accuracy_on"]
    where = f"{scored} accuracy {found['accuracy']:.1f} %"
    val = f"validation {found['val_accuracy']:.1f} % in epoch {found['best_epoch']} of {found['epochs_run']}"
    print_text(
        console,
        f"Done: {where}, balanced {found['balanced_accuracy']:.1f} %, macro F1 {found['macro_f1']:.1f} % ({val}).",
    )
    for note in found["notes"]:
        print_text(console, f"Note: {note}", "yellow")
    print_verbatim(console, f"Adapter: {result.adapter}")
    print_verbatim(console, f"Metrics: {result.adapter.with_name('metrics.json')}")
    print_verbatim(console, f"Report: {result.report}")
    if result.tracking_uri is not None:
        print_verbatim(console, f"MLflow: {show_command(result.adapter.parent, result.tracking_uri)}")
    say_next(console, f"Next: {page.predict_command(result.adapter, found)}")


class FinetuneConsole(Listener):
    """Shows a fine-tuning: a line for each epoch, and on a terminal below them what runs and how far it is."""

    def __init__(self, console: Console, clock: Clock = time.monotonic) -> None:
        """Nothing is shown yet; leave the block to take away what changes.

        Args:
            console: Where to print.
            clock: For tests.
        """
        self._console, self._clock = console, clock
        self._steps = Steps(console, clock)
        self._live = LiveRows(console, self._rows, clock) if is_alive(console) else None
        self._heartbeat = Heartbeat(self._say_how_far, HEARTBEAT, clock)
        self._epochs = self._done = self._total = 0
        self._pace, self._began = Pace(clock), clock()
        self._curve: list[Mapping[str, float]] = []

    def __enter__(self) -> FinetuneConsole:
        """Shows nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Takes away what changes."""
        self._hide()

    def message(self, text: str, level: Level) -> None:
        """Prints it."""
        print_text(self._console, text, {"warning": "yellow", "error": "red"}.get(level))

    def progress(self, what: str, done: int, total: int) -> None:
        """Shows how far the preparation of images and model is."""
        self._steps.step(what, done, total)

    def planned(self, plan: Plan) -> None:
        """Says what is trained."""
        self._hide()
        (cell,) = plan.cells.values()
        self._epochs = cell.train.epochs
        if plan.todo:
            options = ", ".join(f"{key}={value}" for key, value in sorted(cell.method.options.items()))
            method = f"{cell.method.name} ({options})" if options else cell.method.name
            epochs = "1 epoch" if self._epochs == 1 else f"{self._epochs} epochs"
            text = f"Training {cell.data.dataset}: {method} on {cell.backbone.name}, {epochs}, "
            print_text(
                self._console,
                f"{text}batch {cell.train.batch_size}, learning rate {cell.train.lr:.2g}, {cell.train.precision}, on "
                f"{cell.device}.",
            )

    def started(self, cell_id: str) -> None:
        """Shows that the training begins."""
        self._began = self._clock()
        if self._live is not None:
            self._live.open()
        else:
            self._heartbeat.start()

    def step(self, cell_id: str, done: int, total: int) -> None:
        """Moves the bar."""
        self._done, self._total = done, total
        self._pace.at(done / total)

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Prints the epoch: loss, validation accuracy, the best so far, memory, and the time that is left."""
        from s2a_bench.cells.select import find_best

        epoch, left = int(metrics["epoch"]), metrics.get("eta_seconds")
        self._curve.append(metrics)
        eta = "" if left is None else f"about {clock_text(left)} left" if left > 0 else "scoring"
        words = [f"epoch {epoch:{len(str(self._epochs))}}/{self._epochs}", f"loss {metrics['loss']:.4f}"]
        if "val_accuracy" in metrics:
            best = next(each for each in self._curve if each["epoch"] == find_best(self._curve))
            words.append(f"val {metrics['val_accuracy']:.1f} %")
            words.append(f"best {best['val_accuracy']:.1f} % (epoch {best['epoch']:.0f})")
        words.append(f"{metrics['peak_mb']:,.0f} MB" if "peak_mb" in metrics else "")
        line = "  ".join(word for word in words if word)
        if self._live is None or len(line) + 2 + len(eta) <= self._console.width:  # it stands below, too
            line = f"{line}  {eta}" if eta else line
        self._heartbeat.spoken()
        print_verbatim(self._console, line)

    def finished(self, record: Any) -> None:
        """Takes away what changes."""
        self._hide()

    def _rows(self) -> list[Row]:
        share = self._done / self._total if self._total else 0.0
        return [Row("training", share, list(filter(None, (self._where(), self._pace.left()))), self._began)]

    def _where(self) -> str:
        """``epoch 3/10`` of the epoch that runs, or what comes before and after all of them."""
        if not self._done:
            return "loading images, measuring memory"
        if self._done == self._total and len(self._curve) and int(self._curve[-1]["epoch"]) == self._epochs:
            return "scoring, writing results"
        return f"epoch {min(self._epochs, 1 + self._done * self._epochs // self._total)}/{self._epochs}"

    def _say_how_far(self) -> None:
        if self._total:
            how_far = f"step {self._done:,}/{self._total:,}"
            print_verbatim(self._console, "  ".join(filter(None, (self._where(), how_far, self._pace.left()))))

    def _hide(self) -> None:
        self._steps.close()
        self._heartbeat.stop()
        if self._live is not None:
            self._live.close()
