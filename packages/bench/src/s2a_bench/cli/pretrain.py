"""``s2a-bench pretrain``: makes an embedded mini backbone."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.cells.pretrain_config import PretrainConfig
from s2a_bench.cli.common import DONE, is_alive, print_verbatim, say_next
from s2a_bench.cli.live import Pace, clock_text
from s2a_bench.cli.steps import Steps
from s2a_bench.errors import InputError, Mistakes, unknown


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
        """Runs the command; prints every epoch.

        Raises:
            InputError: Unknown backbone, or no images.
        """
        config = self.config
        _check(config, self.data)
        from s2a_bench.cells.measure import peak_so_far
        from s2a_bench.cells.pretrain import pretrain

        pace, steps = Pace(), Steps(console)
        pace.at(0.0)
        if is_alive(console):
            steps.step("epochs", 0, config.epochs)
        try:
            for row in pretrain(config, self.data, self.out):
                pace.at(row["epoch"] / config.epochs)
                memory, left = peak_so_far("cpu"), pace.left()
                words = [f"loss {row['loss']:.4f}", f"test accuracy {row['accuracy']:.2f} %"]
                words += [clock_text(row["seconds"]), *([f"{memory:,.0f} MB"] if memory else []), *filter(None, [left])]
                print_verbatim(console, f"epoch {row['epoch']}/{config.epochs}: {', '.join(words)}")
                if is_alive(console):
                    steps.step("epochs", int(row["epoch"]), config.epochs)
        except FileNotFoundError as error:
            raise InputError(f"{error}; pass the CIFAR-10 class folders, or their .tar.gz, to --data.") from error
        finally:
            steps.close()
        weights = f"{self.out / config.backbone}.safetensors"
        print_verbatim(console, f"Weights: {weights}")
        say_next(console, f"Next: s2a-bench sweep --backbones {config.backbone} --weights {shlex.quote(weights)}")
        return DONE


def _check(config: PretrainConfig, data: Path) -> None:
    mistakes = Mistakes()
    if config.backbone not in MINI_BACKBONES:
        mistakes.add(unknown("mini backbone", config.backbone, MINI_BACKBONES))
    if not data.exists():
        mistakes.add(
            InputError(f"There is nothing at {data}; pass the CIFAR-10 class folders, or their .tar.gz, to --data.")
        )
    spec = MINI_BACKBONES.get(config.backbone)
    if spec is not None and not spec.drops_patches:
        for name in ("patch_drop", "full_epochs"):
            if (value := getattr(config, name)) != getattr(PretrainConfig, name):
                flag = f"--{name.replace('_', '-')}"
                mistakes.add(InputError(f"{flag} {value} has no effect: {config.backbone} cannot hide patches."))
    elif config.patch_drop != PretrainConfig.patch_drop and config.full_epochs >= config.epochs:
        mistakes.add(
            InputError(
                f"--patch-drop {config.patch_drop:g} has no effect: the last {config.full_epochs} of {config.epochs} "
                "epochs see every patch; lower --full-epochs."
            )
        )
    for name in ("epochs", "batch_size"):
        if (value := getattr(config, name)) < 1:
            flag = f"--{name.replace('_', '-')}"
            mistakes.add(InputError(f"{flag} {value} is too small; it must be at least 1."))
    mistakes.raise_all()
