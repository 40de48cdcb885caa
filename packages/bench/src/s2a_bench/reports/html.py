"""The report as one HTML file: no requests, no scripts, every text from a record escaped."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence

from s2a_bench.failures import cause
from s2a_bench.reports import paper_text as report_words
from s2a_bench.reports import text as report_text
from s2a_bench.reports.paper import Comparison, Value
from s2a_bench.reports.paper_text import Beside, PairTable
from s2a_bench.reports.pictures import Picture, paper_methods
from s2a_bench.reports.sections import Row, Section
from s2a_bench.reports.svg import curves as figures_sweep
from s2a_bench.reports.svg import markers
from s2a_bench.reports.svg import scatter as figures
from s2a_bench.reports.svg.markup import Markup, element, join
from s2a_bench.reports.text import Summary

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page may load nothing and run nothing; a browser enforces it even if an escape were missed."""


def page(
    summary: Summary, pictures: Sequence[Sequence[Picture]], beside: Beside, printed: Sequence[Picture] = ()
) -> str:
    """The whole file.

    Args:
        summary: What to show.
        pictures: For each section.
        beside: The paper's tables.
        printed: The paper's own figures.
    """
    style = (importlib.resources.files("s2a_bench.reports") / "report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "S2A Bench report"),
        element(
            "style",
            Markup(style),
            figures.css([*summary.methods, *(paper_methods() if printed else ())]),
            figures_sweep.css(),
        ),
    )
    blocks = [element("h1", "S2A Bench report"), element("p", summary.headline, class_="soft")]
    if len(summary.sections) > 1:
        paper = element("li", element("a", "The paper's numbers and ours", href="#paper"))
        blocks.append(element("ul", *(_entry(s, index) for index, s in enumerate(summary.sections)), paper))
    if summary.broken:
        items = (element("li", text, class_="break") for text in summary.broken)
        blocks += [element("h3", "Files that are not records", class_="bad"), element("ul", *items)]
    together = zip(summary.sections, pictures, beside.pairs, strict=True)
    for index, (section, drawn, pairs) in enumerate(together):
        blocks.append(_section(section, drawn, pairs, f"s{index}"))
    blocks += _paper(beside, printed)
    reading = (element("li", element("b", f"{name}: "), text) for name, text in report_text.READING)
    blocks += [element("h2", "How to read this"), element("ul", *reading)]
    blocks += [element("h2", "What ran where"), _provenance(summary)]
    body = element("body", element("main", *blocks))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _entry(section: Section, index: int) -> Markup:
    link = element("a", report_text.title(section), href=f"#s{index}")
    setting = element("span", f" · {report_text.setting_shown(section.setting)}", class_="soft break")
    return element("li", link, setting)


def _section(section: Section, pictures: Sequence[Picture], pairs: PairTable | None, anchor: str) -> Markup:
    notes = (element("li", note, class_="break") for note in report_text.notes(section))
    parts = [
        element("h2", report_text.title(section), id=anchor),
        element("p", report_text.setting_shown(section.setting), class_="soft break"),
        _summary_table(section),
    ]
    if pictures:
        drawn = (element("figure", p.inline, element("figcaption", p.caption)) for p in pictures)
        parts.append(element("div", *drawn, class_="figures"))
    if front := report_text.front_shown(section):
        parts.append(element("p", front))
    parts += [element("h3", "What to know before comparing"), element("div", element("ul", *notes), class_="notes")]
    if report_text.has_task_table(section):
        parts += [element("h3", "Accuracy per task"), _task_table(section)]
    if pairs:
        parts += [element("h3", "Differences, paired"), _pairs(pairs, section)]
    if found := report_text.remarks(section):
        parts.append(element("ul", *(element("li", element("b", f"{where}: "), why) for where, why in found)))
    if section.failed:
        parts += [element("h3", f"Failed cells ({len(section.failed)})"), *_failed(section)]
    if missing := report_text.missing_shown(section):
        listed = element("ul", *(element("li", text) for text in missing))
        if len(missing) > 10:
            listed = element("details", element("summary", f"Cells of {len(missing)} rows"), listed)
        parts += [element("h3", "Not run"), listed]
    return element("section", *parts, _records(section))


def _summary_table(section: Section) -> Markup:
    columns = report_text.summary_columns(section)
    body = []
    for row in section.rows:
        cells = [_value(section, column.key, row, column.text(row)) for column in columns]
        body.append(element("tr", _name(row, "row"), *cells))
    return _table([element("th", "method", scope="col"), *(_head(column.title) for column in columns)], body)


def _task_table(section: Section) -> Markup:
    body = []
    for heading, key, text, mean in report_text.task_lines(section):
        cells = [_value(section, key, row, text(row)) for row in section.rows]
        body.append(element("tr", element("th", heading, scope="row"), *cells, class_="mean" if mean else None))
    return _table([_head("task"), *(_name(row, "col") for row in section.rows)], body)


def _pairs(table: PairTable, section: Section) -> Markup:
    rows = {row.label: row for row in section.rows}
    body = []
    for label, values in zip(table.rows, table.values, strict=True):
        cells = []
        for value in values:
            text = report_words.difference_shown(value)
            cells.append(element("td", element("strong", text) if value and value.real else text))
        body.append(element("tr", _name(rows[label], "row"), *cells))
    head = [_head("row minus column"), *(_name(rows[label], "col") for label in table.columns)]
    words = element("p", " ".join([report_words.PAIRED, table.note]).strip(), class_="soft")
    return join([words, _table(head, body)])


def _paper(beside: Beside, printed: Sequence[Picture]) -> list[Markup]:
    """The paper's tables and figures."""
    blocks = [element("h2", "The paper's numbers and ours", id="paper")]
    if beside.tables:
        blocks.append(element("p", report_words.TAGS, class_="soft"))
    for comparison in beside.tables:
        blocks += [element("h3", report_words.heading(comparison)), _beside(comparison)]
    if printed:
        drawn = (element("figure", p.inline, element("figcaption", p.caption)) for p in printed)
        blocks += [element("h3", report_words.FIGURE_1), element("div", *drawn, class_="figures")]
    if beside.absent:
        blocks += [element("h3", "Not run"), element("ul", *(element("li", text) for text in beside.absent))]
    return blocks


def _beside(comparison: Comparison) -> Markup:
    marks = report_words.letters(comparison)
    body = []
    for line in comparison.lines:
        pairs = zip(line.values, comparison.decimals, strict=True)
        cells = (_compared(value, decimals, marks) for value, decimals in pairs)
        name = element("th", line.name, element("span", line.method, class_="code"), scope="row")
        body.append(element("tr", name, *cells))
    head = [_head("row"), *(_head(column) for column in comparison.columns)]
    parts = [element("p", report_words.counted(comparison)), _table(head, body)]
    if comparison.experiment.note:
        parts.append(element("p", comparison.experiment.note, class_="soft"))
    if marks:
        listed = (element("li", element("b", f"{mark}: "), reason, class_="break") for reason, mark in marks.items())
        parts.append(element("ul", *listed, class_="plain"))
    return join(parts)


def _compared(value: Value, decimals: int, marks: dict[str, str]) -> Markup:
    """Our number, the paper's below it, and the tag."""
    ours = element("span", report_words.ours(value, decimals), class_="ours")
    paper = element("span", f"paper {report_words.printed(value, decimals)}", class_="printed")
    tag = element("span", report_words.tag(value, marks), class_=f"tag {value.state.replace(' ', '-')}")
    return element("td", ours, paper, tag, class_="compared")


def _value(section: Section, key: str | None, row: Row, text: str) -> Markup:
    best = key is not None and section.best.get(key) == row.label
    return element("td", element("strong", text) if best else text, class_="bad" if text == "failed" else None)


def _name(row: Row, scope: str) -> Markup:
    return element("th", markers.swatch(row.method), row.label, scope=scope)


def _failed(section: Section) -> list[Markup]:
    items = []
    for label, record in section.failed:
        where = element("b", f"{label} on {record.dataset}, seed {record.seed}: ")
        line = join([where, element("span", cause(record), class_="bad break")])
        trace = (record.error or {}).get("traceback", "")
        folded = element("details", element("summary", line), element("pre", trace))
        items.append(folded if trace else element("p", line))
    return items


def _records(section: Section) -> Markup:
    body = []
    for label, record in section.records:
        values = [label, record.dataset, str(record.seed), record.status]
        values += [report_text.fixed(record.accuracy, 2), report_text.fixed(record.seconds, 1)]
        link = element("a", record.cell_id, href=f"records/{record.cell_id}.json")
        body.append(element("tr", element("td", link), *(element("td", value) for value in values)))
    names = ("record", "method", "dataset", "seed", "status", "accuracy", "seconds")
    return element(
        "details",
        element("summary", f"All {len(section.records)} records"),
        _table([_head(name) for name in names], body),
    )


def _provenance(summary: Summary) -> Markup:
    body = [
        element(
            "tr", element("th", what, scope="row"), element("td", value, class_="text break"), element("td", str(count))
        )
        for what, value, count in summary.provenance
    ]
    head = [_head("what"), element("th", "which", scope="col", class_="text"), _head("cells")]
    return _table(head, body)


def _head(text: str) -> Markup:
    return element("th", text, scope="col")


def _table(head: Sequence[Markup], body: Sequence[Markup]) -> Markup:
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    # Focusable, so that the keyboard can scroll it too.
    return element("div", table, class_="wide", tabindex="0")
