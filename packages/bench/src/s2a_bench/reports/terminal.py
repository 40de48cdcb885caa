"""The summary table that a sweep prints on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from s2a_bench.cells.record import Record
from s2a_bench.reports import insights
from s2a_bench.reports.sections import MethodRow, Section, make_sections
from s2a_bench.reports.tables import Column, describe_order, fold_columns
from s2a_bench.reports.text import describe_setting, has_results, section_title, truncate_list

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table

NAME_WIDTH = 26
"""Places that the longest name of a row takes at most on one line; longer ones are broken between words."""

DROPPED = ("mean of groups", "dataset ", "group ", "peak MB", "seeds", "images/s", "theoretical MB", "trainable %")
"""Columns by title or by the beginning of ``Column.key``, those first that are left out first where room is short."""


def terminal_table(records: Iterable[Record], width: int | None = None) -> Group:
    """The summary for the end of a sweep: accuracy, memory, parameters and speed per method.

    Args:
        records: Of one sweep or several; every backbone and setting gets a table of its own, one below the other.
        width: Of the terminal; where it is too narrow, columns are left out in the order of ``DROPPED`` and named
            below. ``None`` keeps them all.
    """
    from rich.console import Group
    from rich.text import Text

    parts = []
    for section in make_sections(records):
        heading = f"{section_title(section)}: {describe_setting(section.setting)}"
        parts.append(Text(heading, style="bold", overflow="fold"))
        if not has_results(section):
            parts.append(Text(f"No cell has finished; {len(section.failed)} failed.\n"))
            continue
        columns, shared = fold_columns(section)
        kept = _choose_columns(section, columns, width)
        parts.append(_make_terminal_table(section, kept))
        left_out = [column.title for column in columns if column not in kept]
        words = [describe_order(section, kept), shared, *insights.describe_hidden(section)]
        words += [f"In the report: {truncate_list(left_out, 12)}."] if left_out else []
        parts.append(Text(" ".join(word for word in words if word) + "\n"))
    return Group(*parts)


def _choose_columns(section: Section, columns: Sequence[Column], width: int | None) -> list[Column]:
    """Columns that fit side by side with the methods' names, the most important ones first."""
    kept = list(columns)
    if width is None:
        return kept
    names = _name_width(section)
    for dropped in DROPPED:
        if _measure(section, kept, names) <= width:
            break
        rest = [column for column in kept if dropped != column.title and not (column.key or "").startswith(dropped)]
        # The accuracy is what the table is for: where it is that of one dataset, there is no mean to take its place.
        kept = rest if any(column.key for column in rest) else kept
    return kept


def _name_width(section: Section) -> int:
    """Of the first column: no word of a name is broken."""
    from rich.cells import cell_len

    words = [cell_len(word) for row in section.rows for word in row.label.split()]
    return max([len("method"), *words, *(min(cell_len(row.label), NAME_WIDTH) for row in section.rows)])


def _measure(section: Section, columns: Sequence[Column], names: int) -> int:
    """Places that a line takes: every column is as wide as its heading or its widest cell, with two between them."""
    from rich.cells import cell_len

    widths = []
    for column in columns:
        cells = [_cell(section, column, row) for row in section.rows]
        widths.append(max(map(cell_len, [*_fold_heading(column.title).split("\n"), *cells])))
    return names + sum(width + 2 for width in widths)


def _cell(section: Section, column: Column, row: MethodRow) -> str:
    text = column.text(row)
    if column.dataset and len(section.datasets) > 1:
        # Spreads per task are in the report; here they would cost the width.
        text = re.sub(r" ± [\d.]+", "", text)
    return f"{text} ★" if column.key and section.best.get(column.key) == row.label else text


def _make_terminal_table(section: Section, columns: Sequence[Column]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0))
    names = _name_width(section)
    table.add_column("method", min_width=names, max_width=names)
    for column in columns:
        table.add_column(Text(_fold_heading(column.title)), justify="right", no_wrap=True)
    for row in section.rows:
        cells = []
        for column in columns:
            best = column.key and section.best.get(column.key) == row.label
            cells.append(Text(_cell(section, column, row), style="bold" if best else ""))
        table.add_row(Text(row.label), *cells)
    return table


def _fold_heading(title: str) -> str:
    """A heading on two lines, broken where that makes it narrowest."""
    places = [index for index, letter in enumerate(title) if letter in " _"]
    if len(title) < 9 or not places:
        return title
    place = min(places, key=lambda p: max(p, len(title) - p))
    return f"{title[:place]}{title[place].strip()}\n{title[place + 1 :]}"
