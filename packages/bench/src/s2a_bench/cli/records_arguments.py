"""The commands of the command line that look at records: ``records`` and ``experiments``."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from s2a_bench.errors import InputError

_File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
_Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]


@dataclasses.dataclass(frozen=True)
class Records:
    """Records in one file: one JSON object a line, gzipped if its name ends so. Give --import or --export.

    Attributes:
        source: Put the records of this file into the folder; finished ones that are there stay.
        export: Write the folder's records to this file.
        output: Folder of a sweep.
    """

    source: Annotated[Path | None, tyro.conf.arg(name="import", metavar="FILE")] = None
    export: _File = None
    output: Path = Path("results")

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import records as commands_records

        if (self.source is None) == (self.export is None):
            raise InputError("records either takes or gives: write --import FILE or --export FILE, one of them.")
        if self.source is not None:
            return commands_records.take(self.source, self.output, console)
        assert self.export is not None
        return commands_records.save(self.output, self.export, console)


@dataclasses.dataclass(frozen=True)
class Experiments:
    """Lists the paper's experiments: what each shows, its cells, and how many of them are done in a folder.

    Attributes:
        suite: mini, vtab, fgvc, cifar, domainnet, imagenet.
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
    datasets: _Names = ()
    backbones: _Names = ()
    seeds: Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")] = ()
    epochs: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    data_dir: Annotated[Path | None, tyro.conf.arg(metavar="DIR")] = None
    random_weights: bool = False
    limit_train: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    limit_test: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    output: Path = Path("results")

    def run(self, console: Console) -> int:
        """Runs the command."""
        from s2a_bench.cli import records as commands_records
        from s2a_bench.sweeps import grid

        asked = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "output"}
        asked["data_dir"] = str(self.data_dir.absolute()) if self.data_dir else None
        return commands_records.experiments(grid.Request(**asked), self.output, console)
