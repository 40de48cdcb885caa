"""The report as one HTML file: no requests, one script of its own, every text from a record escaped."""

from __future__ import annotations

import base64
import hashlib
import importlib.resources
from collections.abc import Sequence

from s2a_bench.reports import html_tables, insights, notes, paper_text, tables
from s2a_bench.reports import text as report_text
from s2a_bench.reports.figures import canvas, style
from s2a_bench.reports.markup import Markup, element, join
from s2a_bench.reports.paper import Comparison
from s2a_bench.reports.paper_text import PairTable, PaperComparisons
from s2a_bench.reports.pictures import Picture, paper_methods
from s2a_bench.reports.sections import Section
from s2a_bench.reports.summary import Summary

PANEL = {"memory": "memory", "params": "trainable parameters", "time": "time"}
"""Kinds of pictures that share one place, in the order of their buttons, and the buttons' words."""


def make_policy(script: str) -> str:
    """The page may load nothing and run nothing but this script; a browser enforces it even if an escape were missed.

    Args:
        script: Text between the script's tags, to the byte.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; base-uri 'none'; "
        "form-action 'none'"
    )


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
    script = _read("report.js")
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=make_policy(script)),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", "S2A Bench report"),
        element(
            "style",
            Markup(_read("report.css")),
            style.css([*summary.methods, *(paper_methods() if printed else ())]),
        ),
    )
    blocks = [element("h1", "S2A Bench report"), element("p", summary.headline, class_="soft")]
    if not canvas.is_available():
        blocks.append(element("p", canvas.MISSING))
    if len(summary.sections) > 1:
        paper = element("li", element("a", "The paper's numbers and ours", href="#paper"))
        entries = (_contents_entry(section, index) for index, section in enumerate(summary.sections))
        blocks.append(element("ul", *entries, *([paper] if beside.tables else [])))
    if summary.broken:
        items = (element("li", text, class_="break") for text in summary.broken)
        blocks += [element("h3", "Files that are not records", class_="bad"), element("ul", *items)]
    blocks.append(element("div", id="filter"))
    together = zip(summary.sections, pictures, beside.pairs, strict=True)
    for index, (section, drawn, pairs) in enumerate(together):
        blocks.append(_render_section(section, drawn, pairs, f"s{index}"))
    blocks += _render_missing(report_text.list_unplaced(summary.unplaced), "h2", report_text.UNPLACED)
    blocks += _render_paper(beside, printed)
    reading = (element("li", element("b", f"{name}: "), text) for name, text in report_text.READING)
    blocks += [element("h2", "How to read this"), element("ul", *reading)]
    blocks += [element("h2", "What ran where"), html_tables.render_provenance(summary)]
    body = element("body", element("main", *blocks), element("script", Markup(script)))
    return f"<!DOCTYPE html>\n{element('html', head, body, lang='en')}\n"


def _read(name: str) -> str:
    return (importlib.resources.files("s2a_bench.reports") / name).read_text(encoding="utf-8")


def _contents_entry(section: Section, index: int) -> Markup:
    link = element("a", report_text.section_title(section), href=f"#s{index}")
    setting = element("span", f" · {report_text.describe_setting(section.setting)}", class_="soft break")
    return element("li", link, setting)


def _render_section(section: Section, pictures: Sequence[Picture], pairs: PairTable | None, anchor: str) -> Markup:
    parts = [
        element("h2", report_text.section_title(section), id=anchor),
        element("p", report_text.describe_setting(section.setting), class_="soft break"),
    ]
    failures = _render_failures(section)
    missing = _render_missing(report_text.list_missing(section), "h3", report_text.MISSING)
    if not report_text.has_results(section):
        # Nothing to compare: what went wrong is all there is to say.
        return element("section", *parts, *failures, *missing, html_tables.render_records(section))
    parts.append(html_tables.render_summary(section))
    if sentences := insights.describe_hidden(section):
        parts += [element("ul", *(element("li", text) for text in sentences), class_="hidden-by-means")]
    if named := report_text.list_names(section):
        items = (element("li", element("b", f"{name}: "), text, class_="break") for name, text in named)
        parts.append(element("details", element("summary", report_text.NAMES), element("ul", *items)))
    parts += _lay_out(pictures, anchor)
    if front := report_text.describe_front(section):
        parts.append(element("p", front))
    if found := notes.list_notes(section):
        items = (element("li", note, class_="break") for note in found)
        parts += [element("h3", "What to know before comparing"), element("div", element("ul", *items), class_="notes")]
    parts += failures
    if tables.has_task_table(section):
        parts += [element("h3", "Accuracy per task, in %"), html_tables.render_tasks(section)]
    if pairs:
        parts += [element("h3", "Differences, paired"), html_tables.render_pairs(pairs, section)]
    if remarks := report_text.list_cell_remarks(section):
        parts.append(element("ul", *(element("li", element("b", f"{where}: "), why) for where, why in remarks)))
    return element("section", *parts, *missing, html_tables.render_records(section))


def _lay_out(pictures: Sequence[Picture], anchor: str) -> list[Markup]:
    """Figures side by side; those that differ in their cost alone share a place, with buttons that need no script."""
    together = sorted((p for p in pictures if p.kind in PANEL), key=lambda p: list(PANEL).index(p.kind))
    others = [p for p in pictures if p.kind not in PANEL]
    blocks = []
    if len(together) > 1:
        group = f"{anchor}-cost"
        buttons = [
            join(
                [
                    element("input", type="radio", name=group, id=f"{group}-{index}", checked=index == 0),
                    element("label", f"against {PANEL[picture.kind]}", for_=f"{group}-{index}"),
                ]
            )
            for index, picture in enumerate(together)
        ]
        blocks.append(element("div", *buttons, *map(_render_figure, together), class_="panel"))
    else:
        others = [*together, *others]
    blocks += map(_render_figure, others)
    return [element("div", *blocks, class_="figures")] if blocks else []


def _render_figure(picture: Picture) -> Markup:
    return element("figure", picture.inline, element("figcaption", picture.caption))


def _render_missing(missing: Sequence[str], tag: str, heading: str) -> list[Markup]:
    if not missing:
        return []
    listed = element("ul", *(element("li", text) for text in missing))
    if len(missing) > 10:
        listed = element("details", element("summary", f"Cells of {len(missing)} rows"), listed)
    return [element(tag, heading), listed]


def _render_paper(beside: PaperComparisons, printed: Sequence[Picture]) -> list[Markup]:
    """The paper's tables and figures; folded where nothing is comparable."""
    if not beside.tables and not printed:
        return []
    blocks = [element("h2", "The paper's numbers and ours", id="paper")]
    some = [comparison for comparison in beside.tables if paper_text.is_comparable(comparison)]
    blocks += [element("p", paper_text.TAGS_NOTE, class_="soft small")] if some else []
    blocks += map(_render_comparison, beside.tables)
    if printed:
        figures = element("div", *map(_render_figure, printed), class_="figures")
        if some:
            blocks += [element("h3", paper_text.FIGURE_1), figures]
        else:
            blocks.append(element("details", element("summary", paper_text.FIGURE_1), figures))
    return blocks + ([element("p", beside.absent, class_="soft small")] if beside.absent else [])


def _render_comparison(comparison: Comparison) -> Markup:
    table = html_tables.render_comparison(comparison)
    if paper_text.is_comparable(comparison):
        return join([element("h3", paper_text.comparison_heading(comparison)), table])
    note = element("p", paper_text.TAGS_NOTE, class_="soft small")
    return element("details", element("summary", paper_text.describe_incomparable(comparison)), note, table)


def _render_failures(section: Section) -> list[Markup]:
    if not section.failed:
        return []
    items = [element("h3", f"Failed cells ({len(section.failed)})")]
    for where, why, _, trace in report_text.group_failures(section):
        line = join([element("b", f"{where}: "), element("span", why, class_="bad break")])
        folded = element("details", element("summary", line), element("pre", trace))
        items.append(folded if trace else element("p", line))
    return [*items, element("p", report_text.FAILED_AGAIN, class_="soft small")]
