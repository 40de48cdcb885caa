"""Saved views of MLflow's runs table: which rows, columns and charts a link opens with.

MLflow's pages keep a saved view as a tag of the experiment, ``mlflow.sharedViewState.KEY``; a link with
``viewStateShareKey=KEY`` opens it. Here a view shows one row per cell, without the parent runs of sweeps, sorted by
accuracy, and charts of accuracy against memory and of the options that differ.
"""

from __future__ import annotations

import base64
import dataclasses
import json
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

from s2a_bench.cells import learning
from s2a_bench.cells.record import Record
from s2a_bench.tracking import names

TAG = "mlflow.sharedViewState."
"""Prefix of MLflow's tags for saved views."""

_LONGEST = 5000
"""Characters that the oldest supported MLflow takes in a tag of an experiment."""

_METRICS = ("accuracy", "params_percent", "measured_mb", "peak_mb")
_FIRST_PARAMS, _LAST_PARAMS = ("method", "dataset"), ("seed", "backbone")
_OWN_METRICS = ("val_accuracy", "balanced_accuracy")
_RUN_NAME, _CREATED = "attributes.`Run Name`", "runDateAndNestInfo"
_WIDTHS = {_RUN_NAME: 150, _CREATED: 120, "params.`method`": 90, "params.`dataset`": 95, "params.`seed`": 65}
_WIDTHS |= {"metrics.`params_percent`": 125, "metrics.`measured_mb`": 115}
_USUAL_WIDTHS = {"metrics": 100, "params": 120, "tags": 130}
"""Pixels; the names in the header are longer than what is below them."""
_MOST_AXES = 6
"""Axes of a parallel-coordinates chart; more cannot be read."""


@dataclasses.dataclass(frozen=True)
class View:
    """A saved view.

    Attributes:
        key: Its name in a link.
        title: Its name in MLflow's list of views.
        value: Of the experiment's tag.
    """

    key: str
    title: str
    value: str

    @property
    def tag(self) -> str:
        """Name of the experiment's tag."""
        return TAG + self.key


def link(experiment_id: str, key: str, *, charts: bool = False) -> str:
    """The part of an address of MLflow's pages that follows the server's: a view's table, or its charts."""
    mode = "&compareRunsMode=CHART" if charts else ""
    return f"#/experiments/{experiment_id}/runs?viewStateShareKey={key}&workflowType=machine_learning{mode}"


def make_view(key: str, title: str, fields: Mapping[str, str], records: Sequence[Record], created: int) -> View:
    """The view of some cells.

    Args:
        key: Letters, digits, ``-`` and ``.``.
        title: For people.
        fields: What its runs have, besides that of a cell: ``{"tags.sweep_id": ...}``.
        records: Their records; they decide which columns and charts there are.
        created: Unix time in milliseconds.
    """
    condition = " and ".join(f"{name} = '{value}'" for name, value in {"tags.kind": "cell", **fields}.items())
    columns = _columns(records, outputs="tags.sweep_id" not in fields)
    table = {
        "searchFilter": condition,
        "orderByKey": "metrics.`accuracy`",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": columns,
    }
    shown = [_RUN_NAME, _CREATED, *columns]
    rest = {
        "columnOrder": shown,
        "columnWidths": {each: _WIDTHS.get(each) or _USUAL_WIDTHS[each.partition(".")[0]] for each in shown},
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": _charts(records),
        "compareRunSections": _sections(),
        "isAccordionReordered": False,
        "hideEmptyCharts": True,
        "groupBy": None,
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "groupsExpanded": {},
        "viewMaximized": False,
        "runListHidden": False,
        "useGroupedValuesInCharts": True,
        "autoRefreshEnabled": True,
    }
    whole = _dump({**table, **rest})
    packed = "deflate;" + base64.b64encode(zlib.compress(whole.encode(), 9)).decode()
    envelope = {"name": title, "createdAt": created, "updatedAt": created, "state": packed}
    # Newer versions of MLflow read the envelope, older ones the fields beside it.
    wanted = [{**envelope, **table, **rest}, {**envelope, **table}, envelope]
    texts = [_dump(each) for each in wanted]
    return View(key, title, next((text for text in texts if len(text) <= _LONGEST), texts[-1]))


def read_title(value: str) -> str | None:
    """The title in the tag of a saved view; ``None``: it has none."""
    try:
        found = json.loads(value)
    except (ValueError, RecursionError):
        return None
    title = found.get("name") if isinstance(found, dict) else None
    return title if isinstance(title, str) else None


def differing_params(records: Sequence[Record]) -> list[str]:
    """The parameters that are chosen for a cell, that all of these records have and in which they differ."""
    found = [names.run_params(record) for record in records]
    if not found:
        return []
    shared = [name for name in found[0] if all(name in each for each in found)]
    chosen = [name for name in shared if name in ("method", "dataset", "backbone", "seed") or _is_option(name)]
    return [name for name in chosen if len({each[name] for each in found}) > 1]


def _is_option(name: str) -> bool:
    # The image's format follows from the backbone; warm-up from the number of epochs.
    return name.startswith(("method.", "train.")) and name != "train.warmup_epochs"


def _options_of_methods(records: Sequence[Record]) -> dict[str, list[str]]:
    """By method, the options of its own in which its records differ."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        groups.setdefault(record.method, []).append(record)
    found = {method: list(filter(_is_option, differing_params(group))) for method, group in groups.items()}
    return {method: options for method, options in found.items() if options}


def _columns(records: Sequence[Record], outputs: bool) -> list[str]:
    metrics = [*_METRICS]
    metrics += [name for name in _OWN_METRICS if any(getattr(record, name) is not None for record in records)]
    options = [name for each in _options_of_methods(records).values() for name in each]
    options = list(dict.fromkeys(options))[:_MOST_AXES]
    tags = ["trial"] if any(record.trial for record in records) else []
    tags += (
        ["did_not_learn"]
        if any(learning.find_problems(record) for record in records if record.status == "done")
        else []
    )
    tags += ["sweep_id", "output"] if outputs else []
    # Few options that every row has come first; many, or some that most rows lack, would push the numbers out of view.
    few = len(options) <= 2 and len({record.method for record in records}) == 1
    order = [("params", (*_FIRST_PARAMS, *(options if few else ()))), ("metrics", metrics), ("params", _LAST_PARAMS)]
    order += [("params", () if few else options), ("tags", tags)]
    return [f"{kind}.`{name}`" for kind, these in order for name in these]


_OURS, _GENERATED = "s2a-bench", "s2a-bench-metrics"


def _sections() -> list[dict[str, Any]]:
    shared = {"isReordered": False}
    # MLflow adds a chart of every metric to the section of that name.
    return [
        {"uuid": _OURS, "name": "Accuracy and memory", "display": True, "columns": 2, **shared},
        {"uuid": _GENERATED, "name": "Model metrics", "display": False, **shared},
    ]


def _charts(records: Sequence[Record]) -> list[dict[str, Any]]:
    charts = [
        _card("SCATTER", "Accuracy against measured MB", xaxis=_metric("measured_mb"), yaxis=_metric("accuracy")),
    ]
    params = differing_params(records)[:_MOST_AXES] or list(_FIRST_PARAMS)
    charts.append(_parallel("What differs", params))
    for method, options in _options_of_methods(records).items():
        if not set(options) <= set(params):
            charts.append(_parallel(f"Options of {method}", options[:_MOST_AXES]))
        numbers = [name for name in options if _are_numbers(records, method, name)]
        if len(numbers) == 2:
            x, y = ({"key": name, "type": "PARAM"} for name in numbers)
            charts.append(_card("CONTOUR", f"Accuracy of {method}", xaxis=x, yaxis=y, zaxis=_metric("accuracy")))
    peak = _card("SCATTER", "Accuracy against peak MB", xaxis=_metric("peak_mb"), yaxis=_metric("accuracy"))
    return [{**card, "uuid": f"{_OURS}-{index}"} for index, card in enumerate([*charts, peak])]


def _are_numbers(records: Sequence[Record], method: str, name: str) -> bool:
    values = [names.run_params(record)[name] for record in records if record.method == method]
    try:
        return len({float(value) for value in values}) > 1
    except ValueError:
        return False


def _metric(name: str) -> dict[str, str]:
    return {"key": name, "type": "METRIC"}


def _parallel(title: str, params: Sequence[str]) -> dict[str, Any]:
    metrics = ["measured_mb", "accuracy"]  # the last one colours the lines
    return _card("PARALLEL", title, selectedParams=[*params], selectedMetrics=metrics, showAllRuns=True)


def _card(kind: str, title: str, **fields: Any) -> dict[str, Any]:
    common = {"type": kind, "displayName": title, "metricSectionId": _OURS, "runsCountToCompare": 500}
    return {**common, "deleted": False, "isGenerated": False, **fields}


def _dump(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
