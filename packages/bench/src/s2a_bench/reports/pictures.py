"""Which figures a section gets: accuracy against costs, the sizes of S2A, learning curves; the paper's Figure 1."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Sequence

from s2a_bench.experiments import spec
from s2a_bench.reports import ablations, paper
from s2a_bench.reports import statistics as stats
from s2a_bench.reports.figures import canvas, scatter, sizes, style
from s2a_bench.reports.figures.scatter import Mark
from s2a_bench.reports.learning_curves import draw_learning_curves
from s2a_bench.reports.markup import Markup
from s2a_bench.reports.sections import MethodRow, Section
from s2a_bench.reports.text import section_title, truncate_list
from s2a_bench.reports.variants import canonical_text

PREFIX = "scatter-"
"""Prefix of all file names, by which stale figures are told from a user's own files."""

PAPER_FIGURE = "fig1"

X_LABELS = {
    "params": "trainable parameters, % of the backbone (log)",
    "memory": "memory of one training step, MB",
    "time": "time of one training image, ms",
}
"""Of the scatter plots, by kind."""

AXES = {ablations.RANK: "rank of the prompt (lrp_rank)", ablations.REDUCTION: "reduction of the branch (lsb_reduction)"}


@dataclasses.dataclass(frozen=True)
class Picture:
    """One figure, for the page and for a file of its own.

    Attributes:
        name: File name without suffix.
        kind: ``memory``, ``params`` or ``time`` (accuracy against it), ``sweep`` (one size of S2A), ``map`` (two),
            ``curves`` (over the epochs) or ``paper``.
        caption: Below it.
        inline: For a page that has ``figures.style.css``.
        alone: The same as a file.
    """

    name: str
    kind: str
    caption: str
    inline: Markup
    alone: Markup


def draw_pictures(sections: Sequence[Section], methods: Sequence[str]) -> list[list[Picture]]:
    """For each section its figures; none where nothing has an average, and none at all without matplotlib.

    Args:
        sections: Of the report.
        methods: Whose colours a file of its own knows; at least those of the sections.
    """
    if not canvas.is_available():
        return [[] for _ in sections]
    taken: set[str] = set()
    found = []
    for section in sections:
        stem = PREFIX + re.sub(r"[^A-Za-z0-9_.]+", "-", f"{section.suite}-{section.backbone}")[:80]
        name = next(n for i in range(1, len(sections) + 1) if (n := stem if i == 1 else f"{stem}-{i}") not in taken)
        taken.add(name)
        look = style.css(methods)
        found.append(
            [
                *_draw_costs(section, look, name),
                *_draw_sizes(section, look, name),
                *_draw_curves(section, look, name),
            ]
        )
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
    ran = any(sum(bool(paper.find_rows(s, label)) for label in labels) > 1 for s in shown)
    if not ran or not canvas.is_available():
        return []
    found = []
    for kind, key, unit in (("params", "params_percent", "% of the backbone"), ("memory", "memory_mb", "MB")):
        marks = []
        for row in planned.rows:
            printed = row.expected.get(planned.families[0], {})
            mean = paper.mean_of_printed(printed, "tasks")
            if mean is not None and key in printed:
                variant = sum(mark.method == row.method for mark in marks)
                hint = f"{row.name}, the paper: accuracy {mean:.1f} %, {printed[key]:.4g} {unit}"
                marks.append(Mark(row.name, row.method, printed[key], mean, variant=variant, hint=hint))
        x_label = X_LABELS["params"] if kind == "params" else f"theoretical {X_LABELS['memory']}"
        caption = f"The paper's numbers, ViT-B/16: mean of 19 tasks of VTAB-1k against {x_label.partition(' (')[0]}."
        drawn = scatter.draw_scatter(marks, title=caption, x_label=x_label, log=kind == "params")
        look = style.css({*methods, *labels})
        found.append(_make_picture(f"{PREFIX}paper-{kind}", "paper", caption, caption, drawn, look))
    return found


def _make_picture(name: str, kind: str, caption: str, title: str, drawn: Markup, look: Markup) -> Picture:
    return Picture(name, kind, caption, drawn, canvas.stand_alone(drawn, Markup(look + style.ALONE), title))


def _draw_costs(section: Section, look: Markup, stem: str) -> list[Picture]:
    """The paper's Figures 1 and 5, and accuracy against the time of a step where all ran on the same hardware."""
    found = [
        _draw_cost(section, look, stem, "memory", _make_marks(section, "measured_mb")),
        _draw_cost(section, look, stem, "params", _make_marks(section, "params_percent")),
    ]
    done = [r for _, r in section.records if r.status == "done"]
    machines = {canonical_text(r.hardware) for r in done}
    if len(machines) < 2 and len({r.train_config.get("batch_size") for r in done}) < 2:
        found.append(_draw_cost(section, look, stem, "time", _make_marks(section, "images_per_second")))
    return [picture for picture in found if picture]


def _make_marks(section: Section, key: str) -> list[Mark]:
    """A mark for each row that has an average and the cost."""
    marks = []
    for row in section.rows:
        cost = row.numbers[key]
        if not row.averages or not cost or cost <= 0:
            continue
        mean, ghost = row.averages.mean_of_tasks, None
        spread = f" ± {mean.std:.1f}" if mean.std is not None else ""
        hint = f"{row.label}: accuracy {mean.mean:.1f}{spread} %, "
        if key == "measured_mb":
            ghost = row.numbers["theoretical_mb"] or None
            hint += f"measured {cost:.4g} MB" + (f", theoretical {ghost:.4g} MB" if ghost else "")
        elif key == "params_percent":
            hint += f"trainable {cost:.3g} % of the backbone"
        else:
            cost = 1000 / cost
            hint += f"{cost:.3g} ms per training image"
        marks.append(Mark(row.label, row.method, cost, mean.mean, mean.std, ghost, row.variant, hint))
    return marks


def _draw_cost(section: Section, look: Markup, stem: str, kind: str, marks: Sequence[Mark]) -> Picture | None:
    if not marks:
        return None
    known = [v for mark in marks for v in (mark.x, mark.ghost) if v is not None]
    both = any(mark.ghost is not None for mark in marks)
    caption = {
        "params": "Mean accuracy against trainable parameters.",
        "memory": f"Mean accuracy against memory{': measured filled, theoretical hollow' if both else ''}.",
        "time": "Mean accuracy against the time of a training step, per image.",
    }[kind]
    left_out = [row.label for row in section.rows if row.label not in {mark.label for mark in marks}]
    caption += " Bars: ± one standard deviation between seeds." if any(mark.spread for mark in marks) else ""
    caption += " Dashed: Pareto front." if len(stats.pareto_front([(mark.x, mark.y) for mark in marks])) > 1 else ""
    caption += " Numbers: variants of a method, as in the table." if any(mark.variant for mark in marks) else ""
    caption += _name_unlearned([row for row in section.rows if row.averages], section.datasets)
    caption += f" Not drawn, values missing: {truncate_list(left_out)}." if left_out else ""
    title = f"{section_title(section)}: {caption}"
    log = kind == "params" or max(known) > 30 * min(known)
    key = "filled: measured · hollow: theoretical" if both else ""
    drawn = scatter.draw_scatter(marks, title=title, x_label=X_LABELS[kind], log=log, key=key)
    return _make_picture(f"{stem}-{kind}", kind, caption, title, drawn, look)


def _draw_sizes(section: Section, look: Markup, stem: str) -> list[Picture]:
    """Figure 5: a curve picture for each size of S2A that was swept, and a map where both were."""
    grid = ablations.find_grid(section)
    if grid is None:
        return []
    found, over = [], ""
    if len(grid.datasets) < len(section.datasets):
        over = f" Means of the tasks that these rows share: {truncate_list(grid.datasets, 12)}."
    for part in ablations.find_slices(grid, section):
        caption = f"Accuracy over {part.key}, with {part.held[0]}={part.held[1]:g}. {ablations.describe_change(part)}."
        bars = any(spread for curve in part.curves for _, _, spread in curve.points)
        caption += " Bars: ± one standard deviation between seeds." if bars else ""
        caption += over + _name_unlearned(part.rows, grid.datasets)
        title = f"{section_title(section)}: {caption}"
        drawn = sizes.draw_curves(part.curves, title=title, x_label=AXES[part.key])
        found.append(_make_picture(f"{stem}-{part.key.replace('_', '-')}", "sweep", caption, title, drawn, look))
    tiles = {point: _make_tile(grid, point) for point in grid.rows}
    tiles |= {point: sizes.Tile(None, "not every task was run", "incomplete") for point in grid.partial}
    ranks, reductions = ({point[axis] for point in tiles} for axis in (0, 1))
    if len(ranks) > 1 and len(reductions) > 1 and len(grid.rows) > 2:
        caption = f"Mean accuracy by {ablations.RANK} and {ablations.REDUCTION}"
        caption += "; dashed: no number." if len(grid.rows) < len(ranks) * len(reductions) else "."
        caption += " 0 switches a part off." if 0 in ranks | reductions else ""
        caption += over + _name_unlearned(grid.rows.values(), grid.datasets)
        title = f"{section_title(section)}: {caption}"
        labels = {"x_label": AXES[ablations.RANK], "y_label": AXES[ablations.REDUCTION]}
        drawn = sizes.draw_heat_map(tiles, title=title, **labels)
        found.append(_make_picture(f"{stem}-map", "map", caption, title, drawn, look))
    return found


def _make_tile(grid: ablations.SizeGrid, point: ablations.Point) -> sizes.Tile:
    stat = grid.stat(point)
    spread = f" ± {stat.std:.1f}" if stat.std is not None else ""
    return sizes.Tile(stat.mean, f"accuracy {stat.mean:.1f}{spread} %")


def _draw_curves(section: Section, look: Markup, stem: str) -> list[Picture]:
    found = []
    for curves in draw_learning_curves(section):
        title = f"{section_title(section)}: {curves.caption}"
        alone = canvas.stand_alone(curves.joined, Markup(look + style.ALONE), title)
        found.append(Picture(f"{stem}-curves-{curves.name}", "curves", curves.caption, curves.inline, alone))
    return found


def _name_unlearned(rows: Iterable[MethodRow], datasets: Sequence[str]) -> str:
    """A sentence for a caption, with a space in front; empty where every cell of the drawn means learned.

    Args:
        rows: That are drawn.
        datasets: Whose means are drawn.
    """
    names = [row.label for row in rows if set(row.unlearned) & set(datasets)]
    return f" Means that hold a cell that did not learn: {truncate_list(names)}." if names else ""
