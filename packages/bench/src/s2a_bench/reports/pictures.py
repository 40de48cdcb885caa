"""The paper's Figures 1 and 5 for a section, accuracy against step time, and Figure 1 with the paper's numbers."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence
from typing import Any

from s2a_bench.experiments import spec
from s2a_bench.reports import ablations, paper
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.svg import curves, scatter
from s2a_bench.reports.svg.elements import Markup
from s2a_bench.reports.svg.points import Mark
from s2a_bench.reports.text import section_title, truncate_list
from s2a_bench.reports.variants import canonical_text

PREFIX = "scatter-"
"""Prefix of all file names, by which stale figures are told from a user's own files."""

PAPER_FIGURE = "fig1"


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure, for the page and for a file of its own.

    Attributes:
        name: File name without suffix.
        caption: Below it.
        inline: For a page that has ``scatter.css``.
        alone: The same as a file.
        kind: ``params``, ``memory`` or ``time``; empty for others.
    """

    name: str
    caption: str
    inline: Markup
    alone: Markup
    kind: str = ""


def draw_pictures(sections: Sequence[Section], methods: Sequence[str]) -> list[list[Picture]]:
    """For each section its figures; none where nothing has an average."""
    taken: set[str] = set()
    found = []
    for section in sections:
        stem = PREFIX + re.sub(r"[^A-Za-z0-9_.]+", "-", f"{section.suite}-{section.backbone}")[:80]
        name = next(n for i in range(1, len(sections) + 1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        drawn = (
            _draw_parameters(section, methods, name),
            _draw_memory(section, methods, name),
            _draw_time(section, methods, name),
        )
        found.append([*(p for p in drawn if p), *_draw_sweeps(section, methods, name)])
    return found


def paper_methods() -> list[str]:
    """The methods in ``draw_paper_pictures``."""
    return [row.method for row in spec.load_experiment(PAPER_FIGURE).rows]


def draw_paper_pictures(sections: Sequence[Section], methods: Sequence[str]) -> list[Picture]:
    """Figure 1 drawn from the paper's printed numbers, if at least two of its rows were run."""
    planned = spec.load_experiment(PAPER_FIGURE)
    labels = paper_methods()
    families = [paper.family_of(section.backbone) for section in sections]
    shown = [s for s, family in zip(sections, families, strict=True) if family in planned.families]
    if not any(sum(bool(paper.find_rows(s, label)) for label in labels) > 1 for s in shown):
        return []
    marks: dict[str, list[Mark]] = {"params_percent": [], "memory_mb": []}
    for row in planned.rows:
        printed = row.expected.get(planned.families[0], {})
        mean = paper.mean_of_printed(printed, "tasks")
        for key, several in marks.items():
            if mean is not None and key in printed:
                several.append(Mark(row.name, row.method, printed[key], mean))
    everyone = sorted({*methods, *labels})
    found = []
    for key, x_label, log in (
        ("params_percent", "trainable parameters, % of the backbone (log)", True),
        ("memory_mb", "theoretical memory of one training step, MB", False),
    ):
        caption = f"The paper's numbers, ViT-B/16: mean of 19 tasks of VTAB-1k against {x_label.partition(' (')[0]}."
        drawing = {"title": caption, "x_label": x_label, "log": log}
        inline = scatter.draw_scatter(marks[key], everyone, **drawing)
        alone = scatter.draw_scatter(marks[key], everyone, **drawing, alone=True)
        found.append(Picture(f"{PREFIX}paper-{key.partition('_')[0]}", caption, inline, alone))
    return found


def _draw_parameters(section: Section, methods: Sequence[str], stem: str) -> Picture | None:
    marks = _make_marks(section.rows, "params_percent")
    return _make_picture(
        f"{stem}-params", section, methods, marks,
        x_label="trainable parameters, % of the backbone (log)", log=True, key="",
        caption="Mean accuracy against trainable parameters.",
    )  # fmt: skip


def _draw_memory(section: Section, methods: Sequence[str], stem: str) -> Picture | None:
    marks = _make_marks(section.rows, "measured_mb", "theoretical_mb")
    known = [v for m in marks for v in (m.x, m.ghost) if v is not None]
    return _make_picture(
        f"{stem}-memory", section, methods, marks,
        x_label="memory of one training step, MB", log=bool(known) and max(known) > 30 * min(known),
        key="filled: measured · hollow: theoretical",
        caption="Mean accuracy against memory: measured filled, theoretical hollow.",
    )  # fmt: skip


def _draw_time(section: Section, methods: Sequence[str], stem: str) -> Picture | None:
    """Accuracy against the time of a training step, where all of it ran on the same hardware."""
    done = [r for _, r in section.records if r.status == "done"]
    if len({canonical_text(r.hardware) for r in done}) > 1 or len({r.train_config.get("batch_size") for r in done}) > 1:
        return None
    marks = [dataclasses.replace(mark, x=1000 / mark.x) for mark in _make_marks(section.rows, "images_per_second")]
    known = [mark.x for mark in marks]
    return _make_picture(
        f"{stem}-time", section, methods, marks,
        x_label="time of one training image, ms", log=bool(known) and max(known) > 30 * min(known), key="",
        caption="Mean accuracy against the time of a training step, per image.",
    )  # fmt: skip


def _draw_sweeps(section: Section, methods: Sequence[str], stem: str) -> list[Picture]:
    """Figure 5: a curve picture for each size of S2A that was swept, and a map where both were."""
    found = []
    style = Markup(scatter.css(methods) + curves.css())
    for part in ablations.find_slices(section):
        caption = f"Accuracy over {part.key}, with {part.held[0]}={part.held[1]:g}. {ablations.describe_change(part)}."
        caption += " Bars: ± one standard deviation between seeds." + _name_unlearned(part.rows)
        drawing: dict[str, Any] = {"title": f"{section_title(section)}: {caption}", "x_label": part.key}
        inline = curves.draw_curves(part.curves, **drawing)
        alone = curves.draw_curves(part.curves, **drawing, style=style)
        found.append(Picture(f"{stem}-{part.key.replace('_', '-')}", caption, inline, alone))
    rows = ablations.size_grid(section)
    if len({x for x, _ in rows}) > 1 and len({y for _, y in rows}) > 1 and len(rows) > 3:
        cells = {point: row.averages.mean_of_tasks.mean for point, row in rows.items() if row.averages}
        caption = f"Mean accuracy by {ablations.RANK} and {ablations.REDUCTION}; dashed: not run."
        caption += _name_unlearned(rows.values())
        drawing: dict[str, Any] = {"title": f"{section_title(section)}: {caption}", "x_label": ablations.RANK}
        inline = curves.draw_heat_map(cells, **drawing, y_label=ablations.REDUCTION)
        alone = curves.draw_heat_map(cells, **drawing, y_label=ablations.REDUCTION, style=style)
        found.append(Picture(f"{stem}-map", caption, inline, alone))
    return found


def _make_marks(rows: Sequence[MethodRow], x: str, ghost: str | None = None) -> list[Mark]:
    marks = []
    for row in rows:
        cost, shadow = row.numbers[x], row.numbers[ghost] if ghost else None
        if row.averages and cost and cost > 0:
            mean = row.averages.mean_of_tasks
            marks.append(Mark(row.label, row.method, cost, mean.mean, mean.std, shadow or None))
    return marks


def _make_picture(
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
    caption += " Dashed: Pareto front." if len(stats.pareto_front([(mark.x, mark.y) for mark in marks])) > 1 else ""
    caption += _name_unlearned(section.rows)
    caption += f" Not drawn, values missing: {truncate_list(left_out)}." if left_out else ""
    drawing = {"title": f"{section_title(section)}: {caption}", "x_label": x_label, "log": log, "key": key}
    inline = scatter.draw_scatter(marks, methods, **drawing)
    alone = scatter.draw_scatter(marks, methods, **drawing, alone=True)
    return Picture(name, caption, inline, alone, name.rpartition("-")[2])


def _name_unlearned(rows: Iterable[MethodRow]) -> str:
    """A sentence for a caption, with a space in front; empty where every cell of the drawn means learned."""
    names = [row.label for row in rows if row.averages and row.unlearned]
    return f" Means that hold a cell that did not learn: {truncate_list(names)}." if names else ""
