"""The report as Markdown, for places that show no HTML."""

from __future__ import annotations

import re
import urllib.parse
from collections.abc import Iterable, Sequence

from s2a_bench.reports import insights, notes, paper_text, tables
from s2a_bench.reports import text as report_text
from s2a_bench.reports.figures import canvas
from s2a_bench.reports.paper import Comparison
from s2a_bench.reports.paper_text import PairTable, PaperComparisons
from s2a_bench.reports.pictures import Picture
from s2a_bench.reports.sections import Section
from s2a_bench.reports.summary import Summary


def render_page(
    summary: Summary, pictures: Sequence[Sequence[Picture]], beside: PaperComparisons, printed: Sequence[Picture] = ()
) -> str:
    """The whole file.

    Args:
        summary: What to show.
        pictures: For each section; they lie in ``figures/``.
        beside: The paper's tables.
        printed: The paper's own figures.
    """
    blocks = ["# S2A Bench report", escape(summary.headline)]
    if not canvas.is_available():
        blocks.append(escape(canvas.MISSING))
    if summary.broken:
        blocks += ["## Files that are not records", _make_list(map(escape, summary.broken))]
    for section, drawn, pairs in zip(summary.sections, pictures, beside.pairs, strict=True):
        blocks += _render_section(section, drawn, pairs)
    if unplaced := report_text.list_unplaced(summary.unplaced):
        blocks += [f"## {report_text.UNPLACED}", _make_list(map(escape, unplaced))]
    blocks += _render_paper(beside, printed)
    blocks += ["## How to read this", _make_list(f"**{name}**: {escape(words)}" for name, words in report_text.READING)]
    rows = [[what, value, str(count)] for what, value, count in summary.provenance]
    blocks += ["## What ran where", _make_table(["what", "which", "cells"], [[escape(v) for v in row] for row in rows])]
    return "\n\n".join(blocks) + "\n"


def escape(value: str) -> str:
    """``value`` as one line that Markdown shows literally.

    Addresses that run code are no links for viewers either that make links of plain text.
    """
    literal = re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(value.split()))
    return re.sub(r"\b(javascript|vbscript):", r"\1\\:", literal, flags=re.IGNORECASE)


def _record_link(cell_id: str) -> str:
    """A link to a record's file; whatever its id is, the target lies in ``records/``."""
    return f"[record](records/{urllib.parse.quote(cell_id, safe='')}.json)"


def _render_section(section: Section, pictures: Sequence[Picture], pairs: PairTable | None) -> list[str]:
    blocks = [
        f"## {escape(report_text.section_title(section))}",
        escape(report_text.describe_setting(section.setting).capitalize()) + ".",
    ]
    failures = _render_failures(section)
    if not report_text.has_results(section):
        return blocks + failures + _render_missing(section)
    columns, shared = tables.fold_columns(section)
    rows = [
        [escape(row.label), *(_value_cell(section, column.key, row.label, column.text(row)) for column in columns)]
        for row in section.rows
    ]
    blocks.append(_make_table(["method", *(escape(column.title) for column in columns)], rows))
    if below := " ".join(text for text in (tables.describe_order(section, columns), shared) if text):
        blocks.append(escape(below))
    if sentences := insights.describe_hidden(section):
        blocks.append(_make_list(map(escape, sentences)))
    if named := report_text.list_names(section):
        names = _make_list(f"**{escape(name)}**: {escape(text)}" for name, text in named)
        blocks += [f"<details><summary>{report_text.NAMES}</summary>", names, "</details>"]
    blocks += [f"![{escape(picture.caption)}](figures/{picture.name}.svg)" for picture in pictures]
    if front := report_text.describe_front(section):
        blocks.append(escape(front))
    if known := notes.list_notes(section):
        blocks += ["### What to know before comparing", _make_list(map(escape, known))]
    blocks += failures
    lines = [
        [escape(line.title), *(_value_cell(section, line.key, row.label, line.text(row)) for row in section.rows)]
        for line in tables.task_lines(section)
    ]
    if tables.has_task_table(section):
        blocks += [
            "### Accuracy per task, in %",
            _make_table(["task", *(escape(row.label) for row in section.rows)], lines),
        ]
    if pairs:
        blocks += ["### Differences, paired", *_render_pairs(pairs)]
    if found := report_text.list_cell_remarks(section):
        blocks.append(_make_list(f"**{escape(where)}**: {escape(why)}" for where, why in found))
    return blocks + _render_missing(section)


def _render_failures(section: Section) -> list[str]:
    if not section.failed:
        return []
    failures = (
        f"**{escape(where)}**: {escape(why)} ({', '.join(_record_link(record.cell_id) for record in records)})"
        for where, why, records, _ in report_text.group_failures(section)
    )
    return [f"### Failed cells ({len(section.failed)})", _make_list(failures), report_text.FAILED_AGAIN]


def _render_missing(section: Section) -> list[str]:
    missing = report_text.list_missing(section)
    return [f"### {report_text.MISSING}", _make_list(map(escape, missing))] if missing else []


def _render_pairs(table: PairTable) -> list[str]:
    rows = []
    for label, values in zip(table.rows, table.values, strict=True):
        shown = [escape(paper_text.format_difference(value)) for value in values]
        marked = [f"**{s}**" if value and value.significant else s for s, value in zip(shown, values, strict=True)]
        rows.append([escape(label), *marked])
    words = escape(" ".join([paper_text.PAIRS_NOTE, table.note]).strip())
    return [words, _make_table(["row minus column", *map(escape, table.columns)], rows)]


def _render_paper(beside: PaperComparisons, printed: Sequence[Picture]) -> list[str]:
    """The paper's tables and figures; a line where nothing is comparable."""
    if not beside.tables and not printed:
        return []
    blocks = ["## The paper's numbers and ours"]
    some = [comparison for comparison in beside.tables if paper_text.is_comparable(comparison)]
    blocks += [escape(paper_text.TAGS_NOTE)] if some else []
    for comparison in some:
        blocks += [f"### {escape(paper_text.comparison_heading(comparison))}", *_render_comparison(comparison)]
    if others := [each for each in beside.tables if each not in some]:
        blocks.append(_make_list(escape(paper_text.describe_incomparable(comparison)) for comparison in others))
    if printed and some:
        blocks += [f"### {escape(paper_text.FIGURE_1)}"]
        blocks += [f"![{escape(picture.caption)}](figures/{picture.name}.svg)" for picture in printed]
    return blocks + ([escape(beside.absent)] if beside.absent else [])


def _render_comparison(comparison: Comparison) -> list[str]:
    marks = paper_text.assign_letters(comparison)
    rows = []
    for line in comparison.lines:
        cells = []
        for value, decimals in zip(line.values, comparison.decimals, strict=True):
            ours, paper = paper_text.format_ours(value, decimals), paper_text.format_printed(value, decimals)
            cells.append(escape(f"{ours} (paper {paper}) {paper_text.format_tag(value, marks)}"))
        rows.append([escape(f"{line.name}: {line.method}"), *cells])
    blocks = [
        escape(paper_text.describe_counts(comparison)),
        _make_table(["row", *map(escape, comparison.columns)], rows),
    ]
    blocks += [escape(comparison.experiment.note)] if comparison.experiment.note else []
    return blocks + ([_make_list(f"**{mark}**: {escape(why)}" for why, mark in marks.items())] if marks else [])


def _value_cell(section: Section, key: str | None, label: str, value: str) -> str:
    return f"**{escape(value)}** ★" if key is not None and section.best.get(key) == label else escape(value)


def _make_list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
