"""Tables that stay readable on narrow terminals: the least important columns give way, and it is said which."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Literal

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from s2a_bench.cli.common import print_text

_GAP, _EDGE = 1, 1


@dataclasses.dataclass(frozen=True)
class Column:
    """A column.

    Attributes:
        title: Its heading.
        drops: When it gives way: columns of higher numbers first, all of one number together; 0: never.
        justify: ``"left"`` for names, ``"right"`` for numbers.
        wraps: Whether its texts may take several lines, broken between words.
    """

    title: str
    drops: int = 0
    justify: Literal["left", "right"] = "right"
    wraps: bool = False


def print_table(
    console: Console,
    title: str,
    columns: Sequence[Column],
    rows: Sequence[Sequence[str]],
    notes: Sequence[str] = (),
) -> None:
    """Prints a table and sentences below it.

    Where not even the columns that never give way fit, every row becomes a block of lines ``heading: text``. Where no
    terminal is, nothing is left out.

    Args:
        console: Where to.
        title: Above it; empty: none.
        columns: Left to right.
        rows: A text for each column.
        notes: Below it.
    """
    kept = fitting_columns(columns, rows, console.width)
    if title:
        print_text(console, title, "bold")
    if kept is None:
        _print_blocks(console, columns, rows)
        kept = range(len(columns))
    else:
        console.print(_table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows]))
    for note in notes:
        print_text(console, note)
    if len(kept) < len(columns):
        left_out = ", ".join(column.title for i, column in enumerate(columns) if i not in kept)
        print_text(console, f"Left out for the width: {left_out}. A wider terminal, or a file, has all columns.", "dim")


def fitting_columns(columns: Sequence[Column], rows: Sequence[Sequence[str]], width: int) -> Sequence[int] | None:
    """The columns that ``width`` has room for, by their places; ``None``: not even those that never give way.

    Args:
        columns: Left to right.
        rows: A text for each column.
        width: Of the terminal.
    """
    kept = [*range(len(columns))]
    while _needed(columns, rows, kept) > width:
        first = max(columns[i].drops for i in kept)
        if first == 0:
            return None
        kept = [i for i in kept if columns[i].drops < first]
    return kept


def _needed(columns: Sequence[Column], rows: Sequence[Sequence[str]], kept: Sequence[int]) -> int:
    """Columns of a terminal that the table takes at least, without breaking a word."""
    total = 2 * _EDGE
    for i in kept:
        texts = [columns[i].title, *(row[i] for row in rows)]
        parts = [word for text in texts for word in text.split()] if columns[i].wraps else texts
        least = max((cell_len(part) for part in parts), default=0)
        # A sentence in a column of one word's width is no good either.
        total += _GAP + (max(least, min(24, *map(cell_len, texts))) if columns[i].wraps else least)
    return total


def _table(columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, _GAP, 0, 0))
    for column in columns:
        table.add_column(column.title, justify=column.justify, no_wrap=not column.wraps)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _print_blocks(console: Console, columns: Sequence[Column], rows: Sequence[Sequence[str]]) -> None:
    for row in rows:
        first, *others = [(column.title, text) for column, text in zip(columns, row, strict=True) if text]
        print_text(console, f"{first[0]}: {first[1]}")
        for heading, text in others:
            print_text(console, f"  {heading}: {text}")
