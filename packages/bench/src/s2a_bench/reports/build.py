"""Writes ``report.html``, ``report.md`` and their figures from the records of an output folder."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path

from s2a_bench.cells import record as records_door
from s2a_bench.cells.outputs import check_no_finetuning
from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic
from s2a_bench.reports import html, markdown, paper_text
from s2a_bench.reports.pictures import PREFIX, draw_paper_pictures, draw_pictures
from s2a_bench.reports.planned import find_missing
from s2a_bench.reports.sections import make_planned_tables, make_sections
from s2a_bench.reports.summary import Summary


@dataclasses.dataclass(frozen=True)
class ReportPaths:
    """What ``build`` wrote."""

    html: Path
    markdown: Path
    figures: tuple[Path, ...]


def build(output: Path) -> ReportPaths:
    """Writes the report of all records under ``output``; the same records give the same bytes.

    Raises:
        InputError: There is nothing to report on, or the folder is that of a fine-tuning, which has its own report.
    """
    check_no_finetuning(output)
    good: list[Record] = []
    broken: list[str] = []
    for path, found in records_door.read_all(output):
        if isinstance(found, Record):
            good.append(found)
        else:
            # Relative to the output folder: the report may be read on another machine.
            broken.append(str(found).replace(str(path), str(path.relative_to(output))))
    if not good and not broken:
        raise InputError(
            f"There are no records under {output / 'records'}; give the --output of a sweep, or run "
            f"`s2a-bench sweep --output {shlex.quote(str(output))}` first."
        )
    planned = find_missing(output)
    sections = tuple(make_sections(good, planned))
    unplaced = tuple(make_planned_tables(good, planned))
    summary = Summary(sections, tuple(broken), sum(record.trial for record in good), len(planned), unplaced)
    drawn = draw_pictures(summary.sections, summary.methods)
    printed = draw_paper_pictures(summary.sections, summary.methods)
    beside = paper_text.compare_sections(summary.sections)
    written = []
    for picture in [p for several in [*drawn, printed] for p in several]:
        path = output / "figures" / f"{picture.name}.svg"
        write_atomic(path, picture.alone + "\n")
        written.append(path)
    for stale in set((output / "figures").glob(f"{PREFIX}*.svg")) - set(written):
        stale.unlink(missing_ok=True)
    html_path, markdown_path = output / "report.html", output / "report.md"
    write_atomic(html_path, html.render_page(summary, drawn, beside, printed))
    write_atomic(markdown_path, markdown.render_page(summary, drawn, beside, printed))
    return ReportPaths(html_path, markdown_path, tuple(written))
