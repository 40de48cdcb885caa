"""The ``data`` commands of the command line."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from s2a_bench.errors import InputError


@dataclasses.dataclass(frozen=True)
class DataList:
    """Lists every dataset and what of it is on disk; with names, everything that is known of these.

    Attributes:
        datasets: Which datasets; a suite's name stands for all of its datasets.
        data_dir: Where prepared datasets lie.
    """

    datasets: tyro.conf.Positional[tuple[str, ...]] = ()
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import data as commands_data

        return commands_data.show(self.datasets, self.data_dir, console)


@dataclasses.dataclass(frozen=True)
class DataPrepare:
    """Brings a download into the standard folder; exactly one of --from, --download and --synthetic says from where.

    Attributes:
        datasets: Which datasets; a suite's name stands for all of its datasets.
        source: The archive, the folder it extracts to, or a folder that holds either, or one such folder per dataset
            under the dataset's name.
        data_dir: Where prepared datasets lie.
        download: Get the files first, into DIR/.downloads/; interrupted downloads go on where they ended.
        synthetic: Make up a source in the original format: offline, marked in every record.
        full: With --synthetic: as many test images as the real dataset has.
        seed: Of --synthetic.
        split: A published split: CoOp's split_zhou_*.json, or a folder with VPT's train.json, val.json, test.json.
    """

    datasets: tyro.conf.Positional[tuple[str, ...]]
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")]
    source: Annotated[Path | None, tyro.conf.arg(name="from", metavar="PATH")] = None
    download: bool = False
    synthetic: bool = False
    full: bool = False
    seed: int = 0
    split: Annotated[Path | None, tyro.conf.arg(metavar="PATH")] = None

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import data as commands_data

        if (self.source is not None) + self.download + self.synthetic != 1:
            raise InputError("Give exactly one of --from PATH, --download and --synthetic.")
        if (self.full or self.seed) and not self.synthetic:
            raise InputError("--full and --seed go with --synthetic.")
        if self.split is not None and self.synthetic:
            raise InputError("--split goes with --from and --download: made-up sources have their own lists.")
        if self.synthetic:
            return commands_data.make(self.datasets, self.data_dir, self.seed, self.full, console)
        if self.download:
            return commands_data.download(self.datasets, self.data_dir, self.split, console)
        assert self.source is not None
        return commands_data.prepare(self.datasets, self.source, self.data_dir, self.split, console)


@dataclasses.dataclass(frozen=True)
class DataVerify:
    """Checks prepared datasets: counts, hashes, every image.

    Attributes:
        datasets: Which datasets; a suite's name stands for all of its datasets.
        data_dir: Where prepared datasets lie.
    """

    datasets: tyro.conf.Positional[tuple[str, ...]]
    data_dir: Annotated[Path, tyro.conf.arg(metavar="DIR")]

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import data as commands_data

        return commands_data.verify(self.datasets, self.data_dir, console)
