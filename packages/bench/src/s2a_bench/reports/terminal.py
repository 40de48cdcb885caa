"""The summary table that a sweep prints on the terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from s2a_bench.cells.record import Record
from s2a_bench.reports.sections import Section, make_sections
from s2a_bench.reports.tables import summary_columns
from s2a_bench.reports.text import describe_setting, section_title

if TYPE_CHECKING:
    from rich.table import Table


def terminal_table(records: Iterable[Record], width: int | None = None) -> Table:
    """The summary for the end of a sweep: accuracy, trainable %, theoretical and measured MB, images/s per method.

    Args:
        records: Of one sweep or several; every backbone and setting gets a table of its own, one below the other.
        width: Of the terminal; where it is too narrow the mean of groups and the datasets are left out. ``None``
            keeps them.
    """
    from rich.console import Console
    from rich.table import Table

    # The first that fits; the last if none does.
    attempts = [(), ("mean of groups",), ("dataset ",), ("mean of groups", "dataset ")]
    whole = Table.grid(padding=(0, 0, 1, 0))
    for section in make_sections(records):
        tables = [_make_terminal_table(section, without) for without in attempts[: None if width else 1]]
        console = Console(width=1000)
        fitting = (table for table in tables if not width or console.measure(table).maximum <= width)
        whole.add_row(next(fitting, tables[-1]))
    return whole


def _make_terminal_table(section: Section, without: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = summary_columns(section)
    if len(section.datasets) > 1:
        columns = [column for column in columns if not (column.key or "").startswith(without or ("\0",))]
    heading = Text(f"{section_title(section)}: {describe_setting(section.setting)}", style="bold")
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold", min_width=8)
    for column in columns:
        table.add_column(Text(_fold_heading(column.title)), justify="right", no_wrap=True)
    for row in section.rows:
        cells = []
        for column in columns:
            text = column.text(row)
            if len(section.datasets) > 1 and (column.key or "").startswith("dataset "):
                # Spreads per task are in the report; here they would cost the width.
                text = re.sub(r" ± [\d.]+", "", text)
            cells.append(Text(text, style="bold" if column.key and section.best.get(column.key) == row.label else ""))
        table.add_row(Text(row.label), *cells)
    return table


def _fold_heading(title: str) -> str:
    """A heading on two lines, broken where that makes it narrowest."""
    places = [index for index, letter in enumerate(title) if letter in " _"]
    if len(title) < 9 or not places:
        return title
    place = min(places, key=lambda p: max(p, len(title) - p))
    return f"{title[:place]}{title[place].strip()}\n{title[place + 1 :]}"
