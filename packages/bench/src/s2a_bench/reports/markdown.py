"""The report as Markdown, for places that show no HTML."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from s2a_bench.failures import cause
from s2a_bench.reports import paper_text as report_words
from s2a_bench.reports import text as report_text
from s2a_bench.reports.paper import Comparison
from s2a_bench.reports.paper_text import Beside, PairTable
from s2a_bench.reports.pictures import Picture
from s2a_bench.reports.sections import Section
from s2a_bench.reports.text import Summary


def page(
    summary: Summary, pictures: Sequence[Sequence[Picture]], beside: Beside, printed: Sequence[Picture] = ()
) -> str:
    """The whole file.

    Args:
        summary: What to show.
        pictures: For each section; they lie in ``figures/``.
        beside: The paper's tables.
        printed: The paper's own figures.
    """
    blocks = ["# S2A Bench report", text(summary.headline)]
    if summary.broken:
        blocks += ["## Files that are not records", _list(map(text, summary.broken))]
    for section, drawn, pairs in zip(summary.sections, pictures, beside.pairs, strict=True):
        blocks += _section(section, drawn, pairs)
    blocks += _paper(beside, printed)
    blocks += ["## How to read this", _list(f"**{name}**: {text(words)}" for name, words in report_text.READING)]
    rows = [[what, value, str(count)] for what, value, count in summary.provenance]
    blocks += ["## What ran where", _table(["what", "which", "cells"], [[text(v) for v in row] for row in rows])]
    return "\n\n".join(blocks) + "\n"


def text(value: str) -> str:
    """``value`` as one line that Markdown shows literally."""
    return re.sub(r"([\\`*_\[\]<>|#&~])", r"\\\1", " ".join(value.split()))


def _section(section: Section, pictures: Sequence[Picture], pairs: PairTable | None) -> list[str]:
    blocks = [
        f"## {text(report_text.title(section))}",
        text(report_text.setting_shown(section.setting).capitalize()) + ".",
    ]
    columns = report_text.summary_columns(section)
    rows = [
        [text(row.label), *(_value(section, column.key, row.label, column.text(row)) for column in columns)]
        for row in section.rows
    ]
    blocks.append(_table(["method", *(text(column.title) for column in columns)], rows))
    blocks += [f"![{text(picture.caption)}](figures/{picture.name}.svg)" for picture in pictures]
    if front := report_text.front_shown(section):
        blocks.append(text(front))
    blocks += ["### What to know before comparing", _list(map(text, report_text.notes(section)))]
    lines = [
        [text(heading), *(_value(section, key, row.label, cell(row)) for row in section.rows)]
        for heading, key, cell, _ in report_text.task_lines(section)
    ]
    if report_text.has_task_table(section):
        blocks += ["### Accuracy per task", _table(["task", *(text(row.label) for row in section.rows)], lines)]
    if pairs:
        blocks += ["### Differences, paired", *_pairs(pairs)]
    if found := report_text.remarks(section):
        blocks.append(_list(f"**{text(where)}**: {text(why)}" for where, why in found))
    if section.failed:
        failures = (
            f"**{text(f'{label} on {record.dataset}, seed {record.seed}')}**: {text(cause(record))} "
            f"([record](records/{record.cell_id}.json))"
            for label, record in section.failed
        )
        blocks += [f"### Failed cells ({len(section.failed)})", _list(failures)]
    if missing := report_text.missing_shown(section):
        blocks += ["### Not run", _list(map(text, missing))]
    return blocks


def _pairs(table: PairTable) -> list[str]:
    rows = []
    for label, values in zip(table.rows, table.values, strict=True):
        shown = [text(report_words.difference_shown(value)) for value in values]
        marked = [f"**{s}**" if value and value.real else s for s, value in zip(shown, values, strict=True)]
        rows.append([text(label), *marked])
    words = text(" ".join([report_words.PAIRED, table.note]).strip())
    return [words, _table(["row minus column", *map(text, table.columns)], rows)]


def _paper(beside: Beside, printed: Sequence[Picture]) -> list[str]:
    blocks = ["## The paper's numbers and ours"]
    if beside.tables:
        blocks.append(text(report_words.TAGS))
    for comparison in beside.tables:
        blocks += [f"### {text(report_words.heading(comparison))}", *_beside(comparison)]
    if printed:
        blocks += [f"### {text(report_words.FIGURE_1)}"]
        blocks += [f"![{text(picture.caption)}](figures/{picture.name}.svg)" for picture in printed]
    if beside.absent:
        blocks += ["### Not run", _list(map(text, beside.absent))]
    return blocks


def _beside(comparison: Comparison) -> list[str]:
    marks = report_words.letters(comparison)
    rows = []
    for line in comparison.lines:
        cells = []
        for value, decimals in zip(line.values, comparison.decimals, strict=True):
            ours, paper = report_words.ours(value, decimals), report_words.printed(value, decimals)
            cells.append(text(f"{ours} (paper {paper}) {report_words.tag(value, marks)}"))
        rows.append([text(f"{line.name}: {line.method}"), *cells])
    blocks = [text(report_words.counted(comparison)), _table(["row", *map(text, comparison.columns)], rows)]
    blocks += [text(comparison.experiment.note)] if comparison.experiment.note else []
    return blocks + ([_list(f"**{mark}**: {text(why)}" for why, mark in marks.items())] if marks else [])


def _value(section: Section, key: str | None, label: str, value: str) -> str:
    return f"**{text(value)}**" if key is not None and section.best.get(key) == label else text(value)


def _list(items: Iterable[str]) -> str:
    return "\n".join(f"- {item}" for item in items)


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    rule = ["---", *["---:"] * (len(head) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, rule, *rows])
