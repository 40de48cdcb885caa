"""What several commands share: kinds of arguments, printing, exit codes."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console

from s2a_bench.cells.record import Record, list_files, read_all
from s2a_bench.cli.closed_pipe import PipeConsole
from s2a_bench.errors import InputError

DONE, SOME_FAILED, BAD_INPUT, INTERRUPTED = 0, 1, 2, 130
"""Exit codes."""

PIPE_WIDTH = 1000
"""Columns where standard output is no terminal: whole lines, for a file or a search."""


def argument(metavar: str) -> Any:
    """What the help says of an argument: nothing of a default that only stands for "not given"."""
    return tyro.conf.arg(metavar=metavar, help_behavior_hint=_default_hint)


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


def make_console() -> Console:
    """The console on standard output, as it is now: what libraries do to ``sys.stdout`` later does not concern it."""
    stream = sys.stdout
    # COLUMNS is Rich's way to ask for a width.
    width = None if stream.isatty() or os.environ.get("COLUMNS", "").isdigit() else PIPE_WIDTH
    return PipeConsole(file=stream, width=width)


def is_alive(console: Console) -> bool:
    """Whether lines on the console can be written over: a terminal, but no dumb one, and no file that wants colours."""
    return console.is_terminal and not console.is_dumb_terminal and console.file.isatty()


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


def mlflow_command(uri: str, output: Path, given: str | None) -> str:
    """The command that shows an MLflow store, or a server's address.

    Args:
        uri: Of the store.
        output: The output folder.
        given: ``--tracking-uri``; ``None``: the store is the folder's own.
    """
    if given is None:
        return f"s2a-bench ui --output {shlex.quote(str(output))}"
    if uri.startswith("http"):
        return uri
    return f"mlflow server --host 127.0.0.1 --backend-store-uri {shlex.quote(uri)}"


def print_text(console: Console, text: str, style: str | None = None) -> None:
    """Prints sentences: on a terminal broken between words, elsewhere as one line; no word, so no path, is broken."""
    if console.is_terminal:
        console.print(text, style=style, markup=False, highlight=False, overflow="ignore", crop=False)
    else:
        print_verbatim(console, text, style)


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
