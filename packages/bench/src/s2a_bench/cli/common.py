"""What several commands share: kinds of arguments, printing, exit codes."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from s2a_bench.cells.record import Record, list_files, read_all
from s2a_bench.errors import InputError
from s2a_bench.tracking.sqlite_uris import sqlite_uri

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""

Names = Annotated[tuple[str, ...], tyro.conf.arg(metavar="NAME ...")]
Number = Annotated[int | None, tyro.conf.arg(metavar="N")]
Seeds = Annotated[tuple[int, ...], tyro.conf.arg(metavar="N ...")]
Folder = Annotated[Path | None, tyro.conf.arg(metavar="DIR")]
File = Annotated[Path | None, tyro.conf.arg(metavar="FILE")]
Uri = Annotated[str | None, tyro.conf.arg(metavar="URI")]
Settings = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")]
"""A flag that takes several values and may be given several times; see ``flat``."""
Axes = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=V1,V2")]


def flat(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The values of a flag that was given several times, in order."""
    return tuple(text for group in groups for text in group)


def print_verbatim(console: Console, text: str, style: str | None = None) -> None:
    """Prints text that must come out as it is, paths and commands above all: no markup, no line breaks of Rich's."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def show_command(output: Path, tracking_uri: str) -> str:
    """The command that shows in MLflow's pages what was tracked: its own one for a store of somebody else's."""
    if sqlite_uri(output.absolute() / "mlflow.db") == tracking_uri:
        return shlex.join(["s2a-bench", "ui", "--output", str(output)])
    if tracking_uri.startswith(("http://", "https://")):
        return tracking_uri
    return shlex.join(["mlflow", "server", "--host", "127.0.0.1", "--backend-store-uri", tracking_uri])


def check_records(output: Path) -> None:
    """Checks that an output folder has records.

    Raises:
        InputError: It has none.
    """
    if not list_files(output):
        raise InputError(f"There are no records under {output / 'records'}; give the --output of a sweep.")


def read_records(output: Path) -> list[Record]:
    """The records of an output folder; each file that is none is named on stderr and left out."""
    good = []
    for _, found in read_all(output):
        if isinstance(found, Record):
            good.append(found)
        else:
            print(f"s2a-bench: left out: {found}", file=sys.stderr)
    return good
