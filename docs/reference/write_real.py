"""Writes the tables of docs/real.md from its records: accuracies; every method against S2A+, paired, and costs.

python docs/reference/write_real.py

The numbers are the report's. A test compares the page with what this gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from s2a_bench.cells.records_file import load
from s2a_bench.reports.markdown import escape
from s2a_bench.reports.paired_differences import compare_rows
from s2a_bench.reports.paper_text import format_difference
from s2a_bench.reports.sections import make_sections
from s2a_bench.reports.tables import summary_columns

PAGE = Path(__file__).parents[1] / "real.md"
RECORDS = PAGE.with_name("records") / "real.jsonl.gz"
COSTS = ("measured MB", "trainable %")
"""Columns of the report beside the differences."""
PLUS = "s2a, plus"
"""The report's name of S2A+."""
PIXELS = 112
"""Of the cells in the tables."""


def make_tables() -> dict[str, str]:
    """The page's tables by name, in Markdown."""
    (section,) = make_sections(record for record in load(RECORDS) if record.data_config["size"] == PIXELS)
    columns = {column.title: column for column in summary_columns(section)}
    shown = [columns.pop("mean of 5 tasks"), *(column for column in columns.values() if column.dataset)]
    records = {row.label: [r for label, r in section.records if label == row.label] for row in section.rows}
    against = []
    for row in section.rows:
        pair = None if row.label == PLUS else compare_rows(records[row.label], records[PLUS])
        apart = "yes" if pair and pair.significant else ""
        against.append([row.label, format_difference(pair), apart, *(columns[title].text(row) for title in COSTS)])
    return {
        "accuracies": _make_table(
            ["method", *(column.title.removeprefix("scene_") for column in shown)],
            [[row.label, *(column.text(row) for column in shown)] for row in section.rows],
        ),
        "differences": _make_table(["method", f"minus {PLUS}", "told apart", *COSTS], against),
    }


def _make_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line if i == 1 else map(escape, line))} |" for i, line in enumerate(lines))


def fill(page: str) -> str:
    """The page with its tables made anew, each between two comments that name it."""
    for name, table in make_tables().items():
        before, start, rest = page.partition(f"<!-- {name}: written by docs/reference/write_real.py -->")
        _, end, after = rest.partition(f"<!-- end of {name} -->")
        if not start or not end:
            raise SystemExit(f"{PAGE} has no place for '{name}': the two comments around the table are missing.")
        page = f"{before}{start}\n\n{table}\n\n{end}{after}"
    return page


if __name__ == "__main__":
    PAGE.write_text(fill(PAGE.read_text()))
