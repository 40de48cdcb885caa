"""The paper's Figure 1 for a section: accuracy against trainable parameters and against memory."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence

from s2a_bench import figures, stats
from s2a_bench.figures import Mark
from s2a_bench.markup import Markup
from s2a_bench.report_tables import Row, Section
from s2a_bench.report_text import few, title

PREFIX = "scatter-"
"""Every picture's file name begins with it, so that stale ones can be told from a user's own files."""


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure, for the page and for a file of its own.

    Attributes:
        name: File name without suffix.
        caption: Below it.
        inline: For a page that has ``figures.css``.
        alone: The same as a file.
    """

    name: str
    caption: str
    inline: Markup
    alone: Markup


def pictures(sections: Sequence[Section], methods: Sequence[str]) -> list[list[Picture]]:
    """For each section its figures; none where nothing has an average."""
    taken: set[str] = set()
    found = []
    for section in sections:
        stem = PREFIX + re.sub(r"[^A-Za-z0-9_.]+", "-", f"{section.suite}-{section.backbone}")[:80]
        name = next(n for i in range(1, len(sections) + 1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        found.append([p for p in (_parameters(section, methods, name), _memory(section, methods, name)) if p])
    return found


def _parameters(section: Section, methods: Sequence[str], stem: str) -> Picture | None:
    marks = _marks(section.rows, "params_percent")
    return _picture(
        f"{stem}-params", section, methods, marks,
        x_label="trainable parameters, % of the backbone (log)", log=True, key="",
        caption="Mean accuracy against trainable parameters.",
    )  # fmt: skip


def _memory(section: Section, methods: Sequence[str], stem: str) -> Picture | None:
    marks = _marks(section.rows, "measured_mb", "theoretical_mb")
    known = [v for m in marks for v in (m.x, m.ghost) if v is not None]
    return _picture(
        f"{stem}-memory", section, methods, marks,
        x_label="memory of one training step, MB", log=bool(known) and max(known) > 30 * min(known),
        key="filled: measured · hollow: theoretical",
        caption="Mean accuracy against memory: measured filled, theoretical hollow.",
    )  # fmt: skip


def _marks(rows: Sequence[Row], x: str, ghost: str | None = None) -> list[Mark]:
    marks = []
    for row in rows:
        cost, shadow = row.numbers[x], row.numbers[ghost] if ghost else None
        if row.averages and cost and cost > 0:
            mean = row.averages.mean_of_tasks
            marks.append(Mark(row.label, row.method, cost, mean.mean, mean.std, shadow or None))
    return marks


def _picture(
    name: str,
    section: Section,
    methods: Sequence[str],
    marks: list[Mark],
    *,
    x_label: str,
    log: bool,
    key: str,
    caption: str,
) -> Picture | None:
    if not marks:
        return None
    left_out = [row.label for row in section.rows if row.label not in {mark.label for mark in marks}]
    caption += " Bars: ± one standard deviation between seeds." if any(mark.spread for mark in marks) else ""
    caption += " Dashed: Pareto front." if len(stats.pareto([(mark.x, mark.y) for mark in marks])) > 1 else ""
    caption += f" Not drawn, values missing: {few(left_out)}." if left_out else ""
    drawing = {"title": f"{title(section)}: {caption}", "x_label": x_label, "log": log, "key": key}
    inline = figures.scatter(marks, methods, **drawing)
    alone = figures.scatter(marks, methods, **drawing, alone=True)
    return Picture(name, caption, inline, alone)
