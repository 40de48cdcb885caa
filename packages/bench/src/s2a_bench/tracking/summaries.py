"""What the pages of MLflow say in words and in one number: of a sweep's run, and of an experiment."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from s2a_bench.cells.record import Record

MARK = "Written by S2A Bench"
"""How an experiment's description begins; one that begins otherwise is somebody's own, and stays."""

_BEST = ("accuracy", "params_percent", "measured_mb", "peak_mb")
_FIRST_LINE = f"{MARK}. Unfold this: tables and charts of each sweep, and what the columns mean."
# A paragraph is one line: MLflow's pages break lines where the text does.
_HOW_TO_READ = "**How to read it.** " + " ".join(
    (
        "A run is a cell: one method, trained on one dataset with one backbone and one seed.",
        "The runs of cells lie under the run of their sweep, so that the plain table has a row per sweep;",
        "the links above show a row per cell. A cell that several sweeps planned has a run in each.",
    )
)
_COLUMNS = """\
| column | meaning |
|---|---|
| `accuracy` | top-1 in percent, on the images that `evaluated_on` names, scored once |
| `params_percent` | trainable parameters, the head included, in percent of the backbone's |
| `measured_mb` | weights, and what one training step keeps for the backward pass (1 MB = 1,000,000 bytes) |
| `peak_mb` | the most that the process (CPU) or the device (CUDA) held |
| `method.*`, `train.*` | options of the method, and of the training |
| `sweep_id`, `output` | which sweep, and in which output folder |
"""
_ADVICE = " ".join(
    (
        "Compare accuracies only where `dataset`, `backbone` and `evaluated_on` are the same.",
        "The chart of `accuracy` against `measured_mb` is what this benchmark is about: up and to the left is better.",
        "Means over seeds, and which differences are noise, are in the report.",
        "Tables and charts begin with the 100 best rows; *Load more*, below the table, adds the next.",
    )
)


def best_of(records: Sequence[Record]) -> Record | None:
    """The finished cell with the highest accuracy; trials of a search do not count."""
    done = [record for record in records if record.status == "done" and not record.trial]
    return max(done, key=lambda record: record.accuracy or 0.0, default=None)


def sweep_name(sweep_id: str, records: Sequence[Record]) -> str:
    """The name of a sweep's run: it says something even where its cells are folded away."""
    best = best_of(records)
    if best is None:
        return f"sweep {sweep_id}: {_count(records)}, none done"
    return f"{best.accuracy:.1f} % {best.method} on {best.dataset}, best of {_count(records)}, sweep {sweep_id}"[:250]


def sweep_metrics(records: Sequence[Record]) -> dict[str, float]:
    """The numbers of a sweep's run: those of its best cell as ``best_...``, and means of each method.

    ``accuracy/METHOD`` is the mean of all cells of a method, variants included, over the datasets and backbones where
    every method with a finished cell has one, each counted once.
    """
    best = best_of(records)
    values = {} if best is None else {f"best_{name}": getattr(best, name) for name in _BEST}
    groups: dict[str, dict[tuple[str, str], list[Record]]] = {}
    for record in records:
        if record.status == "done" and not record.trial:
            places = groups.setdefault(record.method, {})
            places.setdefault((record.dataset, record.backbone), []).append(record)
    shared = set.intersection(*(set(each) for each in groups.values())) if groups else set()
    for method, places in groups.items():
        for name in ("accuracy", "measured_mb"):
            means = [_mean(name, places[place]) for place in sorted(shared)]
            if means and None not in means:
                values[f"{name}/{method}"] = statistics.fmean(mean for mean in means if mean is not None)
    return {name: float(value) for name, value in values.items() if value is not None}


def sweep_tags(records: Sequence[Record]) -> dict[str, str]:
    """What a sweep's run is found by: methods, datasets and backbones, and which cell was best."""
    fields = {"methods": "method", "datasets": "dataset", "backbones": "backbone"}
    tags = {name: ", ".join(sorted({getattr(record, field) for record in records})) for name, field in fields.items()}
    if (best := best_of(records)) is not None:
        tags |= {"best_method": best.method, "best_dataset": best.dataset, "best_cell": best.cell_id}
    return {name: value[:4000] for name, value in tags.items() if value}


def view_title(sweep_id: str, records: Sequence[Record], output: str) -> str:
    """``Sweep 1a2b3c4d5e6f: s2a on digits, 16 cells (results)``."""
    what = f"{_some({r.method for r in records}, 'methods')} on {_some({r.dataset for r in records}, 'datasets')}"
    return f"Sweep {sweep_id}: {what}, {_count(records)} ({output})"


def describe_experiment(suite: str, links: Sequence[str]) -> str:
    """The description of an experiment, in Markdown.

    Args:
        suite: Its name.
        links: Lines of Markdown, one per view.
    """
    views = "\n".join(f"- {line}" for line in links)
    paragraphs = (_FIRST_LINE, f"**What was run**: cells of suite `{suite}`.", views, _HOW_TO_READ, _COLUMNS, _ADVICE)
    return "\n\n".join(paragraphs)


def _mean(name: str, records: Sequence[Record]) -> float | None:
    values = [value for record in records if (value := getattr(record, name)) is not None]
    return statistics.fmean(values) if values else None


def _count(records: Sequence[Record]) -> str:
    return "1 cell" if len(records) == 1 else f"{len(records)} cells"


def _some(values: set[str], many: str) -> str:
    return ", ".join(sorted(values)) if len(values) <= 3 else f"{len(values)} {many}"
