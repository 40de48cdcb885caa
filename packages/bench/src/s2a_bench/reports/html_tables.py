"""Tables of the report as HTML."""

from __future__ import annotations

from s2a_bench.cells import learning
from s2a_bench.reports import paper_text, tables
from s2a_bench.reports import text as report_text
from s2a_bench.reports.figures import method_styles as markers
from s2a_bench.reports.markup import Markup, element, join, make_table
from s2a_bench.reports.paper import ComparedValue, Comparison
from s2a_bench.reports.paper_text import PairTable
from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.summary import Summary

BEST = "above every other row by more than the noise between seeds"


def render_summary(section: Section) -> Markup:
    """The table of a section: a row per method or variant."""
    columns, shared = tables.fold_columns(section)
    body = []
    for row in section.rows:
        cells = [
            _value_cell(section, column.key, row, column.text(row), column.hover(row), data_dataset=column.dataset)
            for column in columns
        ]
        body.append(element("tr", _method_heading(row, "row"), *cells, data_method=row.method))
    head = [element("th", "method", scope="col", data_sort="text")]
    head += [
        element("th", column.title, scope="col", title=column.meaning or None, data_dataset=column.dataset)
        for column in columns
    ]
    words = [text for text in (tables.describe_order(section, columns), shared) if text]
    below = [element("p", " ".join(words), class_="soft small")] if words else []
    return join([make_table(head, body, sortable=True), *below])


def render_tasks(section: Section) -> Markup:
    """A line per task, a column per method or variant."""
    body = []
    for line in tables.task_lines(section):
        cells = [
            _value_cell(section, line.key, row, line.text(row), line.hover(row), data_method=row.method)
            for row in section.rows
        ]
        heading = element("th", line.title, scope="row")
        kind = "mean" if line.dataset is None else None
        body.append(element("tr", heading, *cells, class_=kind, data_dataset=line.dataset))
    return make_table([column_heading("task"), *(_method_heading(row, "col") for row in section.rows)], body)


def render_pairs(table: PairTable, section: Section) -> Markup:
    """Differences of rows, with what they are below."""
    rows = {row.label: row for row in section.rows}
    body = []
    for label, values in zip(table.rows, table.values, strict=True):
        cells = []
        for column, value in zip(table.columns, values, strict=True):
            text = paper_text.format_difference(value)
            cells.append(
                element(
                    "td",
                    element("strong", text) if value and value.significant else text,
                    title=paper_text.describe_difference(label, column, value),
                    data_method=rows[column].method,
                )
            )
        body.append(element("tr", _method_heading(rows[label], "row"), *cells, data_method=rows[label].method))
    head = [
        column_heading("row minus column"),
        *(_method_heading(rows[label], "col") for label in table.columns),
    ]
    words = element("p", " ".join([paper_text.PAIRS_NOTE, table.note]).strip(), class_="soft small")
    return join([make_table(head, body), words])


def render_comparison(comparison: Comparison) -> Markup:
    """One table of the paper beside ours."""
    marks = paper_text.assign_letters(comparison)
    body = []
    for line in comparison.lines:
        pairs = zip(line.values, comparison.decimals, strict=True)
        cells = (_compared_cell(value, decimals, marks) for value, decimals in pairs)
        name = element("th", line.name, element("span", line.method, class_="code"), scope="row")
        body.append(element("tr", name, *cells))
    head = [column_heading("row"), *(column_heading(column) for column in comparison.columns)]
    parts = [element("p", paper_text.describe_counts(comparison)), make_table(head, body)]
    if comparison.experiment.note:
        parts.append(element("p", comparison.experiment.note, class_="soft"))
    if marks:
        listed = (element("li", element("b", f"{mark}: "), reason, class_="break") for reason, mark in marks.items())
        parts.append(element("ul", *listed, class_="plain"))
    return join(parts)


def render_records(section: Section) -> Markup:
    """All records of a section, folded."""
    methods = {row.label: row.method for row in section.rows}
    body = []
    for label, record in section.records:
        status = f"{record.status}, did not learn" if learning.find_problems(record) else record.status
        values = [label, record.dataset, str(record.seed), status]
        values += [report_text.format_number(record.accuracy, 2), report_text.format_number(record.seconds, 1)]
        link = element("a", record.cell_id, href=f"records/{record.cell_id}.json")
        cells = (element("td", value) for value in values)
        body.append(element("tr", element("td", link), *cells, data_method=methods[label], data_dataset=record.dataset))
    meanings = {
        "record": "the file that holds everything known about this cell",
        "accuracy": "top-1 in %",
        "seconds": "time of the training's epochs in seconds",
    }
    names = ("record", "method", "dataset", "seed", "status", "accuracy", "seconds")
    numbers = ("seed", "accuracy", "seconds")
    head = [
        element("th", name, scope="col", title=meanings.get(name), data_sort=None if name in numbers else "text")
        for name in names
    ]
    count = len(section.records)
    title = f"All {count} records" if count > 1 else "The record"
    return element("details", element("summary", title), make_table(head, body, sortable=True))


def render_provenance(summary: Summary) -> Markup:
    """What ran where."""
    body = [
        element(
            "tr", element("th", what, scope="row"), element("td", value, class_="text break"), element("td", str(count))
        )
        for what, value, count in summary.provenance
    ]
    head = [column_heading("what"), element("th", "which", scope="col", class_="text"), column_heading("cells")]
    return make_table(head, body)


def column_heading(text: str) -> Markup:
    """A heading without more to say."""
    return element("th", text, scope="col")


def _compared_cell(value: ComparedValue, decimals: int, marks: dict[str, str]) -> Markup:
    """Our number, the paper's below it, and the tag."""
    ours = element("span", paper_text.format_ours(value, decimals), class_="ours")
    paper = element("span", f"paper {paper_text.format_printed(value, decimals)}", class_="printed")
    tag = element("span", paper_text.format_tag(value, marks), class_=f"tag {value.state.replace(' ', '-')}")
    return element("td", ours, paper, tag, class_="compared")


def _value_cell(section: Section, key: str | None, row: MethodRow, text: str, hover: str, **data: str | None) -> Markup:
    best = key is not None and section.best.get(key) == row.label
    shown = [element("strong", text), element("span", " ★", class_="star")] if best else [text]
    class_ = "best" if best else "bad" if text == "failed" else None
    title = f"{hover}; {BEST}" if best else hover
    return element("td", *shown, class_=class_, title=title or None, **data)


def _method_heading(row: MethodRow, scope: str) -> Markup:
    title = ", ".join(row.options) or None
    marker = markers.swatch(row.method, row.variant)
    return element("th", marker, row.label, scope=scope, title=title, data_method=row.method)
