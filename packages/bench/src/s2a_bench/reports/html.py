"""The report as one HTML file: no requests, no scripts, every text from a record escaped."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence

from s2a_bench.cells import learning
from s2a_bench.failures import cause
from s2a_bench.reports import notes, paper_text, tables
from s2a_bench.reports import text as report_text
from s2a_bench.reports.figures import canvas, style
from s2a_bench.reports.figures import method_styles as markers
from s2a_bench.reports.markup import Markup, element, join
from s2a_bench.reports.paper import ComparedValue, Comparison
from s2a_bench.reports.paper_text import PairTable, PaperComparisons
from s2a_bench.reports.pictures import Picture, paper_methods
from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.summary import Summary

POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""The page may load nothing and run nothing; a browser enforces it even if an escape were missed."""


def render_page(
    summary: Summary, pictures: Sequence[Sequence[Picture]], beside: PaperComparisons, printed: Sequence[Picture] = ()
) -> str:
    """The whole file.

    Args:
        summary: What to show.
        pictures: For each section.
        beside: The paper's tables.
        printed: The paper's own figures.
    """
    sheet = (importlib.resources.files("s2a_bench.reports") / "report.css").read_text(encoding="utf-8")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=POLICY),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "S2A Bench report"),
        element(
            "style",
            Markup(sheet),
            style.css([*summary.methods, *(paper_methods() if printed else ())]),
        ),
    )
    blocks = [element("h1", "S2A Bench report"), element("p", summary.headline, class_="soft")]
    if not canvas.is_available():
        blocks.append(element("p", canvas.MISSING))
    if len(summary.sections) > 1:
        paper = element("li", element("a", "The paper's numbers and ours", href="#paper"))
        blocks.append(element("ul", *(_contents_entry(s, index) for index, s in enumerate(summary.sections)), paper))
    if summary.broken:
        items = (element("li", text, class_="break") for text in summary.broken)
        blocks += [element("h3", "Files that are not records", class_="bad"), element("ul", *items)]
    together = zip(summary.sections, pictures, beside.pairs, strict=True)
    for index, (section, drawn, pairs) in enumerate(together):
        blocks.append(_render_section(section, drawn, pairs, f"s{index}"))
    blocks += _render_paper(beside, printed)
    reading = (element("li", element("b", f"{name}: "), text) for name, text in report_text.READING)
    blocks += [element("h2", "How to read this"), element("ul", *reading)]
    blocks += [element("h2", "What ran where"), _render_provenance(summary)]
    body = element("body", element("main", *blocks))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _contents_entry(section: Section, index: int) -> Markup:
    link = element("a", report_text.section_title(section), href=f"#s{index}")
    setting = element("span", f" · {report_text.describe_setting(section.setting)}", class_="soft break")
    return element("li", link, setting)


def _render_section(section: Section, pictures: Sequence[Picture], pairs: PairTable | None, anchor: str) -> Markup:
    listed_notes = (element("li", note, class_="break") for note in notes.list_notes(section))
    parts = [
        element("h2", report_text.section_title(section), id=anchor),
        element("p", report_text.describe_setting(section.setting), class_="soft break"),
        _summary_table(section),
    ]
    if named := report_text.list_names(section):
        items = (
            element("li", element("b", f"{name}: "), element("span", text, class_="break")) for name, text in named
        )
        parts.append(element("details", element("summary", report_text.NAMES), element("ul", *items)))
    if pictures:
        drawn = (element("figure", p.inline, element("figcaption", p.caption)) for p in pictures)
        parts.append(element("div", *drawn, class_="figures"))
    if front := report_text.describe_front(section):
        parts.append(element("p", front))
    parts += [
        element("h3", "What to know before comparing"),
        element("div", element("ul", *listed_notes), class_="notes"),
    ]
    if tables.has_task_table(section):
        parts += [element("h3", "Accuracy per task"), _task_table(section)]
    if pairs:
        parts += [element("h3", "Differences, paired"), _render_pairs(pairs, section)]
    if found := report_text.list_cell_remarks(section):
        parts.append(element("ul", *(element("li", element("b", f"{where}: "), why) for where, why in found)))
    if section.failed:
        parts += [element("h3", f"Failed cells ({len(section.failed)})"), *_render_failures(section)]
    if missing := report_text.list_missing(section):
        listed = element("ul", *(element("li", text) for text in missing))
        if len(missing) > 10:
            listed = element("details", element("summary", f"Cells of {len(missing)} rows"), listed)
        parts += [element("h3", "Not run"), listed]
    return element("section", *parts, _render_records(section))


def _summary_table(section: Section) -> Markup:
    columns = tables.summary_columns(section)
    body = []
    for row in section.rows:
        cells = [_value_cell(section, column.key, row, column.text(row)) for column in columns]
        body.append(element("tr", _method_heading(row, "row"), *cells))
    return _make_table(
        [element("th", "method", scope="col"), *(_column_heading(column.title) for column in columns)], body
    )


def _task_table(section: Section) -> Markup:
    body = []
    for heading, key, text, mean in tables.task_lines(section):
        cells = [_value_cell(section, key, row, text(row)) for row in section.rows]
        body.append(element("tr", element("th", heading, scope="row"), *cells, class_="mean" if mean else None))
    return _make_table([_column_heading("task"), *(_method_heading(row, "col") for row in section.rows)], body)


def _render_pairs(table: PairTable, section: Section) -> Markup:
    rows = {row.label: row for row in section.rows}
    body = []
    for label, values in zip(table.rows, table.values, strict=True):
        cells = []
        for value in values:
            text = paper_text.format_difference(value)
            cells.append(element("td", element("strong", text) if value and value.significant else text))
        body.append(element("tr", _method_heading(rows[label], "row"), *cells))
    head = [
        _column_heading("row minus column"),
        *(_method_heading(rows[label], "col") for label in table.columns),
    ]
    words = element("p", " ".join([paper_text.PAIRS_NOTE, table.note]).strip(), class_="soft")
    return join([words, _make_table(head, body)])


def _render_paper(beside: PaperComparisons, printed: Sequence[Picture]) -> list[Markup]:
    """The paper's tables and figures."""
    blocks = [element("h2", "The paper's numbers and ours", id="paper")]
    if beside.tables:
        blocks.append(element("p", paper_text.TAGS_NOTE, class_="soft"))
    for comparison in beside.tables:
        blocks += [element("h3", paper_text.comparison_heading(comparison)), _render_comparison(comparison)]
    if printed:
        drawn = (element("figure", p.inline, element("figcaption", p.caption)) for p in printed)
        blocks += [element("h3", paper_text.FIGURE_1), element("div", *drawn, class_="figures")]
    if beside.absent:
        blocks += [element("h3", "Not run"), element("ul", *(element("li", text) for text in beside.absent))]
    return blocks


def _render_comparison(comparison: Comparison) -> Markup:
    marks = paper_text.assign_letters(comparison)
    body = []
    for line in comparison.lines:
        pairs = zip(line.values, comparison.decimals, strict=True)
        cells = (_compared_cell(value, decimals, marks) for value, decimals in pairs)
        name = element("th", line.name, element("span", line.method, class_="code"), scope="row")
        body.append(element("tr", name, *cells))
    head = [_column_heading("row"), *(_column_heading(column) for column in comparison.columns)]
    parts = [element("p", paper_text.describe_counts(comparison)), _make_table(head, body)]
    if comparison.experiment.note:
        parts.append(element("p", comparison.experiment.note, class_="soft"))
    if marks:
        listed = (element("li", element("b", f"{mark}: "), reason, class_="break") for reason, mark in marks.items())
        parts.append(element("ul", *listed, class_="plain"))
    return join(parts)


def _compared_cell(value: ComparedValue, decimals: int, marks: dict[str, str]) -> Markup:
    """Our number, the paper's below it, and the tag."""
    ours = element("span", paper_text.format_ours(value, decimals), class_="ours")
    paper = element("span", f"paper {paper_text.format_printed(value, decimals)}", class_="printed")
    tag = element("span", paper_text.format_tag(value, marks), class_=f"tag {value.state.replace(' ', '-')}")
    return element("td", ours, paper, tag, class_="compared")


def _value_cell(section: Section, key: str | None, row: MethodRow, text: str) -> Markup:
    best = key is not None and section.best.get(key) == row.label
    return element("td", element("strong", text) if best else text, class_="bad" if text == "failed" else None)


def _method_heading(row: MethodRow, scope: str) -> Markup:
    return element("th", markers.swatch(row.method, row.variant), row.label, scope=scope)


def _render_failures(section: Section) -> list[Markup]:
    items = []
    for label, record in section.failed:
        where = element("b", f"{label} on {record.dataset}, seed {record.seed}: ")
        line = join([where, element("span", cause(record), class_="bad break")])
        trace = (record.error or {}).get("traceback", "")
        folded = element("details", element("summary", line), element("pre", trace))
        items.append(folded if trace else element("p", line))
    return items


def _render_records(section: Section) -> Markup:
    body = []
    for label, record in section.records:
        status = f"{record.status}, did not learn" if learning.find_problems(record) else record.status
        values = [label, record.dataset, str(record.seed), status]
        values += [report_text.format_number(record.accuracy, 2), report_text.format_number(record.seconds, 1)]
        link = element("a", record.cell_id, href=f"records/{record.cell_id}.json")
        body.append(element("tr", element("td", link), *(element("td", value) for value in values)))
    names = ("record", "method", "dataset", "seed", "status", "accuracy", "seconds")
    return element(
        "details",
        element("summary", f"All {len(section.records)} records"),
        _make_table([_column_heading(name) for name in names], body),
    )


def _render_provenance(summary: Summary) -> Markup:
    body = [
        element(
            "tr", element("th", what, scope="row"), element("td", value, class_="text break"), element("td", str(count))
        )
        for what, value, count in summary.provenance
    ]
    head = [_column_heading("what"), element("th", "which", scope="col", class_="text"), _column_heading("cells")]
    return _make_table(head, body)


def _column_heading(text: str) -> Markup:
    return element("th", text, scope="col")


def _make_table(head: Sequence[Markup], body: Sequence[Markup]) -> Markup:
    table = element("table", element("thead", element("tr", *head)), element("tbody", *body))
    # Focusable, so that the keyboard can scroll it too.
    return element("div", table, class_="wide", tabindex="0")
