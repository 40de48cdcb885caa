"""The report: records in, ``report.html``, ``report.md`` and figures out. It never measures anything again."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from s2a_bench.cells import record as records_door
from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic
from s2a_bench.reports import html as report_html
from s2a_bench.reports import markdown as report_markdown
from s2a_bench.reports import paper_text as report_words
from s2a_bench.reports import text as report_text
from s2a_bench.reports.pictures import PREFIX, paper_pictures, pictures
from s2a_bench.reports.sections import Section, sections
from s2a_bench.reports.text import Summary

if TYPE_CHECKING:
    from rich.table import Table


@dataclasses.dataclass(frozen=True)
class ReportPaths:
    """What ``build`` wrote."""

    html: Path
    markdown: Path
    figures: tuple[Path, ...]


def build(output: Path) -> ReportPaths:
    """Writes the report of all records under ``output``; the same records give the same bytes.

    Raises:
        InputError: There is nothing to report on.
    """
    good: list[Record] = []
    broken: list[str] = []
    for path, found in records_door.read_all(output):
        if isinstance(found, Record):
            good.append(found)
        else:
            # The path within the output folder: a report may travel.
            broken.append(str(found).replace(str(path), str(path.relative_to(output))))
    if not good and not broken:
        raise InputError(
            f"There are no records under {output / 'records'}; give the --output of a sweep, or run "
            f"`s2a-bench sweep --output {output}` first."
        )
    summary = Summary(tuple(sections(good)), tuple(broken), sum(record.trial for record in good))
    drawn = pictures(summary.sections, summary.methods)
    printed = paper_pictures(summary.sections, summary.methods)
    beside = report_words.beside(summary.sections)
    written = []
    for picture in [p for several in [*drawn, printed] for p in several]:
        path = output / "figures" / f"{picture.name}.svg"
        write_atomic(path, picture.alone + "\n")
        written.append(path)
    for stale in set((output / "figures").glob(f"{PREFIX}*.svg")) - set(written):
        stale.unlink(missing_ok=True)
    html, markdown = output / "report.html", output / "report.md"
    write_atomic(html, report_html.page(summary, drawn, beside, printed))
    write_atomic(markdown, report_markdown.page(summary, drawn, beside, printed))
    return ReportPaths(html, markdown, tuple(written))


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
    for section in sections(records):
        tables = [_terminal_section(section, without) for without in attempts[: None if width else 1]]
        console = Console(width=1000)
        fitting = (table for table in tables if not width or console.measure(table).maximum <= width)
        whole.add_row(next(fitting, tables[-1]))
    return whole


def _terminal_section(section: Section, without: tuple[str, ...]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    columns = report_text.summary_columns(section)
    if len(section.datasets) > 1:
        columns = [column for column in columns if not (column.key or "").startswith(without or ("\0",))]
    heading = Text(f"{report_text.title(section)}: {report_text.setting_shown(section.setting)}", style="bold")
    table = Table(title=heading, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    table.add_column("method", overflow="fold", min_width=8)
    for column in columns:
        table.add_column(Text(_folded(column.title)), justify="right", no_wrap=True)
    for row in section.rows:
        cells = []
        for column in columns:
            text = column.text(row)
            if len(section.datasets) > 1 and (column.key or "").startswith("dataset "):
                text = text.partition(" ±")[0]  # Spreads per task are in the report; here they would cost the width.
            cells.append(Text(text, style="bold" if column.key and section.best.get(column.key) == row.label else ""))
        table.add_row(Text(row.label), *cells)
    return table


def _folded(title: str) -> str:
    """A heading on two lines, broken where that makes it narrowest."""
    places = [index for index, letter in enumerate(title) if letter in " _"]
    if len(title) < 9 or not places:
        return title
    place = min(places, key=lambda p: max(p, len(title) - p))
    return f"{title[:place]}{title[place].strip()}\n{title[place + 1 :]}"
