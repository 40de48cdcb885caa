"""Text of the comparison with the paper and of paired differences, for HTML and Markdown."""

from __future__ import annotations

import dataclasses
import itertools
import string
from collections.abc import Sequence

from s2a_bench.cells import learning
from s2a_bench.experiments.spec import Experiment
from s2a_bench.reports import paired_differences as pairs
from s2a_bench.reports import paper
from s2a_bench.reports.paired_differences import Difference
from s2a_bench.reports.paper import ComparedValue, Comparison
from s2a_bench.reports.sections import Section
from s2a_bench.reports.tables import MANY_ROWS
from s2a_bench.reports.text import format_number, truncate_list

FIGURE_1 = "Figure 1 with the paper's numbers (Table 1, ViT-B/16)"

TAGS_NOTE = (
    f"reproduced: an accuracy within {paper.POINTS:g} point of the printed one or inside its own 95 % "
    f"interval between seeds, a size within {100 * paper.RELATIVE:g} %. differs: comparable, but outside. "
    "not comparable: the letters below the table say why; such a number is neither for nor against the paper. "
    "The paper's memory is theoretical and stands beside our theoretical figure, never beside a measured one. "
    "Means over tasks and groups follow from the printed group means."
)

PAIRS_NOTE = (
    f"Row minus column, in points of accuracy, over the cells that both have (same dataset, same seed, same images). "
    f"In brackets the bootstrap {100 * pairs.CONFIDENCE:g} % interval ({pairs.RESAMPLES:,} draws with a fixed seed, of "
    f"tasks and the seeds within them). Bold: the interval leaves out 0 and there are {pairs.MIN_PAIRS} pairs or more; "
    "everything else is inside the noise. Intervals are for one comparison each, not corrected for how many there are."
)


def comparison_heading(comparison: Comparison) -> str:
    """Table, title and backbone."""
    name = comparison.experiment.name.replace("table", "Table ")
    return f"{name}: {comparison.experiment.title} · {comparison.backbone} beside the paper's {comparison.beside}"


def is_comparable(comparison: Comparison) -> bool:
    """Whether any of a table's numbers can be held against the paper's."""
    return bool(comparison.counts[paper.REPRODUCED] + comparison.counts[paper.DIFFERS])


def describe_counts(comparison: Comparison) -> str:
    """How many of the printed numbers were compared, and with what result; of the others, how many cannot be."""
    counts = comparison.counts
    compared, run = counts[paper.REPRODUCED] + counts[paper.DIFFERS], sum(counts.values()) - counts[paper.NOT_RUN]
    states = (paper.REPRODUCED, paper.DIFFERS, paper.NOT_COMPARABLE)
    words = ", ".join(f"{counts[state]} {state}" for state in states if counts[state])
    return (
        f"{compared} of {run} numbers that we have can be compared: {words or 'none'}. "
        f"Source: {comparison.experiment.source}."
    )


def describe_incomparable(comparison: Comparison) -> str:
    """One line for a table of which nothing is comparable: which, and why."""
    reasons = truncate_list(comparison.reasons, 4)
    return f"{comparison_heading(comparison)}: nothing is comparable ({reasons or 'none of its numbers was run'})."


def assign_letters(comparison: Comparison) -> dict[str, str]:
    """Reason to the letter that stands for it."""
    names = [*string.ascii_lowercase, *(a + b for a in string.ascii_lowercase for b in string.ascii_lowercase)]
    return dict(zip(comparison.reasons, names, strict=False))


def format_tag(value: ComparedValue, marks: dict[str, str]) -> str:
    """The state of a cell, with the letters of its reasons."""
    return " ".join([value.state, ", ".join(sorted(marks[reason] for reason in value.reasons))]).strip()


def format_ours(value: ComparedValue, decimals: int) -> str:
    """Our number, with its spread between seeds."""
    if value.ours is None:
        return "—"
    spread = f" ± {value.ours.std:.{decimals}f}" if value.ours.std is not None else ""
    return format_number(value.ours.mean, decimals) + spread


def format_printed(value: ComparedValue, decimals: int) -> str:
    """The paper's number."""
    return format_number(value.paper, decimals)


@dataclasses.dataclass(frozen=True)
class PaperComparisons:
    """Comparisons with the paper's tables, and paired differences between rows.

    Attributes:
        tables: Those of which something was run.
        absent: Which of the paper's tables are not there, and how to run them, as a sentence; empty if all are.
        pairs: Paired differences of each section.
    """

    tables: tuple[Comparison, ...]
    absent: str
    pairs: tuple[PairTable | None, ...]


def compare_sections(sections: Sequence[Section]) -> PaperComparisons:
    """Compares all tables of the paper, and all rows of each section, with the records."""
    found, absent = paper.compare_with_paper(sections)
    return PaperComparisons(
        tuple(found), absent_tables(absent), tuple(make_pair_table(section) for section in sections)
    )


def absent_tables(absent: Sequence[Experiment]) -> str:
    """One sentence for all tables of which fewer than two rows were run on a backbone of the paper's families."""
    if not absent:
        return ""
    names = ", ".join(each.name for each in absent)
    return f"Not beside ours, as fewer than two of their rows were run: {names} (s2a-bench sweep --experiment NAME)."


@dataclasses.dataclass(frozen=True)
class PairTable:
    """Differences of rows (first) against columns (second); ``None`` where two share no cell, or are one."""

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    values: tuple[tuple[Difference | None, ...], ...]
    note: str = ""


def make_pair_table(section: Section) -> PairTable | None:
    """Every row against every other, or of a long table every row against the one with the highest mean."""
    by_label = {row.label: [r for label, r in section.records if label == row.label] for row in section.rows}
    labels = [label for label, records in by_label.items() if any(r.status == "done" for r in records)]
    if len(labels) < 2:
        return None
    columns, note = labels, ""
    if len(labels) > MANY_ROWS:
        whole = [row for row in section.rows if row.averages]
        if not whole:
            return None
        best = max(whole, key=lambda row: row.averages.mean_of_tasks.mean if row.averages else 0.0)
        columns = [best.label]
        note = "Only against the row with the highest mean, which choosing it favours."
    if unlearned := [label for label in labels if any(learning.find_problems(r) for r in by_label[label])]:
        note = f"{note} Differences of {truncate_list(unlearned)} hold cells that did not learn.".strip()
    known: dict[tuple[str, str], Difference | None] = {}
    for a, b in itertools.product(labels, columns):
        turned = known.get((b, a))
        known[a, b] = None if a == b else -turned if turned else pairs.compare_rows(by_label[a], by_label[b])
    values = tuple(tuple(known[a, b] for b in columns) for a in labels)
    if not any(value for line in values for value in line):
        return None
    return PairTable(tuple(labels), tuple(columns), values, note)


def describe_difference(row: str, column: str, value: Difference | None) -> str | None:
    """A difference with its unit, for a hover text; ``None`` where there is nothing to compare."""
    if value is None:
        return None
    pairs_of = f"{value.pairs} pair{'s' * (value.pairs > 1)} of cells, {value.tasks} task{'s' * (value.tasks > 1)}"
    return f"{row} minus {column}: {value.mean:+.2f} points of accuracy ({pairs_of})"


def format_difference(value: Difference | None) -> str:
    """``+1.2 [-0.3, 2.7]``; a dash where there is nothing to compare."""
    if value is None:
        return "—"
    if value.low is None or value.high is None:
        return f"{value.mean:+.1f}"
    return f"{value.mean:+.1f} [{value.low:.1f}, {value.high:.1f}]"
