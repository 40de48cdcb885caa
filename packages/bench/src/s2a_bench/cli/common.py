"""What several commands share: kinds of arguments, printing, exit codes."""

from __future__ import annotations

import os
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TextIO

import tyro
from rich.console import Console

from s2a_bench.cells.record import Record, list_files, read_all
from s2a_bench.cli.closed_pipe import PipeConsole
from s2a_bench.errors import InputError
from s2a_bench.tracking.sqlite_uris import sqlite_uri

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""

PIPE_WIDTH = 1000
"""Columns where standard output is no terminal: whole lines, for a file or a search."""


def argument(metavar: str, name: str | None = None) -> Any:
    """What the help says of an argument: nothing of a default that only stands for "not given"."""
    return tyro.conf.arg(name=name, metavar=metavar, help_behavior_hint=_default_hint)


def _default_hint(default: str) -> str:
    return "" if default in ("None", "False", "") else f"(default: {default})"


Flag = Annotated[bool, tyro.conf.arg(help_behavior_hint=_default_hint)]
Names = Annotated[tuple[str, ...], argument("NAME ...")]
Number = Annotated[int | None, argument("N")]
Seeds = Annotated[tuple[int, ...], argument("N ...")]
Folder = Annotated[Path | None, argument("DIR")]
File = Annotated[Path | None, argument("FILE")]
Uri = Annotated[str | None, argument("URI")]
Settings = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=VALUE")]
"""A flag that takes several values and may be given several times; see ``flat``."""
Axes = Annotated[tuple[tuple[str, ...], ...], tyro.conf.UseAppendAction, tyro.conf.arg(metavar="KEY=V1,V2")]


def flat(groups: Sequence[Sequence[str]]) -> tuple[str, ...]:
    """The values of a flag that was given several times, in order."""
    return tuple(text for group in groups for text in group)


def make_console(stream: TextIO | None = None) -> Console:
    """A console on standard output, or another stream, as it is now: libraries may replace ``sys.stdout`` later.

    In a file or a pipe it has whole lines, and nothing moves, even where Rich is told to colour them (``FORCE_COLOR``).
    """
    stream = stream or sys.stdout
    if stream is not None and stream.isatty():
        return PipeConsole(file=stream)
    # COLUMNS is Rich's way to ask for a width.
    width = None if os.environ.get("COLUMNS", "").isdigit() else PIPE_WIDTH
    return PipeConsole(file=stream, width=width, force_interactive=False)


def is_alive(console: Console) -> bool:
    """Whether lines on the console can be written over: a terminal, but no dumb one."""
    return console.is_interactive


def say_next(console: Console, text: str, *, data: bool = False) -> None:
    """The last line of a command: where to look, or what to run next.

    Args:
        console: Standard output.
        text: The line.
        data: Standard output is for a program: the line goes to standard error.
    """
    if data:
        print(f"s2a-bench: {text}", file=sys.stderr)
    else:
        print_verbatim(console, text)


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


def print_text(console: Console, text: str, style: str | None = None) -> None:
    """Prints sentences: on a terminal broken between words, elsewhere as one line; no word, so no path, is broken."""
    lines = [text]
    if console.is_terminal:
        width = console.width
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False) or [""]
    for line in lines:
        print_verbatim(console, line, style)


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
