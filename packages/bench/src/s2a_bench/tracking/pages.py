"""Fills what MLflow's pages show besides the runs of cells: views, an experiment's description, a sweep's numbers."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Mapping, Sequence

from s2a_bench.cells.record import Record
from s2a_bench.tracking import names, summaries, views
from s2a_bench.tracking.store import Store

NOTE = "mlflow.note.content"
"""MLflow's tag of a description."""

_OURS = "s2a-"
_ALL = f"{_OURS}all"
_MOST_LINKS, _LONGEST_NOTE = 20, 5000
_LOADED = 100
"""Runs that MLflow's pages load at once."""
_SHOWN = "shown"
"""Tag of a sweep's run: a hash of what was written into it."""


@dataclasses.dataclass(frozen=True)
class Link:
    """A view that can be opened.

    Attributes:
        title: Of the view.
        table: Address of its table, after the server's.
        charts: Of its charts.
    """

    title: str
    table: str
    charts: str


def sweep_link(store: Store, experiment_id: str, sweep_id: str, records: Sequence[Record]) -> Link:
    """The view of a sweep."""
    key = _key(store, sweep_id)
    title = summaries.view_title(sweep_id, records, store.output.name)
    return Link(title, views.link(experiment_id, key), views.link(experiment_id, key, charts=True))


def show_sweep(
    store: Store, run_id: str, sweep_id: str, records: Sequence[Record], tags: Mapping[str, str] | None = None
) -> None:
    """Gives a sweep's run a name, a description and numbers, so that its row says something with its cells folded away.

    Args:
        store: The store.
        run_id: Of the sweep's run.
        sweep_id: Of the sweep.
        records: Of its cells.
        tags: The run's, where they are known: nothing is written if they say that it was.
    """
    from mlflow.entities import Metric, RunTag

    shown = _hash(sorted(map(names.hash_record, records)))
    if tags is not None and tags.get(_SHOWN) == shown:
        return
    now = round(1000 * time.time())
    metrics = [Metric(names.safe_key(k), v, now, 0) for k, v in summaries.sweep_metrics(records).items()]
    wanted = {**summaries.sweep_tags(records), "mlflow.runName": summaries.sweep_name(sweep_id, records)}
    wanted |= {NOTE: names.describe_sweep(records), _SHOWN: shown}
    store.client.log_batch(run_id, metrics[:900], tags=[RunTag(*each) for each in wanted.items()])


def show_experiment(
    store: Store,
    suite: str,
    experiment_id: str,
    sweeps: Mapping[str, tuple[str, Sequence[Record]]],
    *,
    all_of_folder: bool = True,
) -> None:
    """Writes the views of sweeps into their experiment, and its description; what is there already costs nothing.

    Args:
        store: The store.
        suite: The experiment's name.
        experiment_id: Its id.
        sweeps: By the id of a sweep, the id of its run and its records.
        all_of_folder: These are all sweeps of the output folder; otherwise the view of all of them stays as it is.
    """
    experiment = store.client.get_experiment(experiment_id)
    there = dict(experiment.tags)
    created = int(experiment.creation_time or 0)
    wanted = {"mlflow.experiment.primaryMetric.name": "accuracy"}
    everything: list[Record] = []
    for sweep_id, (run_id, records) in sweeps.items():
        if not records:
            continue
        everything += records
        condition = {"tags.sweep_id": sweep_id}
        if not store.own:  # another output folder may have planned the same cells
            condition["tags.output_id"] = store.output_id
        title = summaries.view_title(sweep_id, records, _plain(store.output.name))
        view = views.make_view(_key(store, sweep_id), title, condition, records, created)
        wanted |= {each.tag: each.value for each in (view, *_views_of_datasets(view, condition, records, created))}
        if any(file.path == "report.html" for file in store.client.list_artifacts(run_id)):
            report = f"#/experiments/{experiment_id}/runs/{run_id}/artifacts/report.html"
            wanted[f"{_OURS}report.{view.key}"] = report
    # Several output folders write this view: it must not depend on which of them was the last.
    everything_view = views.make_view(_ALL, "All cells of all sweeps", {}, everything if store.own else [], created)
    if all_of_folder or everything_view.tag not in there:
        wanted[everything_view.tag] = everything_view.value
    wanted = {key: value for key, value in wanted.items() if there.get(key) != value}
    note = there.get(NOTE, "")
    if not note or note.startswith(summaries.MARK):  # otherwise somebody wrote their own
        text = _describe(suite, experiment_id, {**there, **wanted})
        wanted |= {} if note == text else {NOTE: text}
    for key, value in wanted.items():
        store.client.set_experiment_tag(experiment_id, key, value)


def _views_of_datasets(
    whole: views.View, condition: Mapping[str, str], records: Sequence[Record], created: int
) -> list[views.View]:
    """A view per dataset, where a sweep has more cells than MLflow's pages load: an easy one would hide the others."""
    datasets = sorted({record.dataset for record in records if not {*"'\"\\"} & {*record.dataset}})
    if len(records) <= _LOADED or not 1 < len(datasets) <= _MOST_LINKS:
        return []
    found = []
    for number, dataset in enumerate(datasets):
        chosen = [record for record in records if record.dataset == dataset]
        title = f"{dataset}: {len(chosen)} cells of {whole.title[0].lower()}{whole.title[1:]}"
        only = {**condition, "params.dataset": dataset}
        found.append(views.make_view(f"{whole.key}.{number:02d}", title, only, chosen, created))
    return found


def _describe(suite: str, experiment_id: str, tags: Mapping[str, str]) -> str:
    """The description of an experiment, with a line for each view that is there, other output folders' too."""
    lines = []
    for tag, value in sorted(tags.items()):
        key = tag.removeprefix(views.TAG)
        title = views.read_title(value) if key != tag and key.startswith(_OURS) else None
        if title is None or key == _ALL or "." in key:
            continue
        table, charts = views.link(experiment_id, key), views.link(experiment_id, key, charts=True)
        report = tags.get(f"{_OURS}report.{key}")
        end = f", [report]({report})" if report else ""
        parts = [part for part in sorted(tags) if part.startswith(f"{tag}.")]
        names_of = [(views.read_title(tags[part]) or "").partition(": ")[0] for part in parts]
        places = [views.link(experiment_id, part.removeprefix(views.TAG)) for part in parts]
        each = [f"[{_escape(name)}]({place})" for name, place in zip(names_of, places, strict=True)]
        end += f"; by dataset: {', '.join(each)}" if each else ""
        lines.append(f"[{_escape(title)}]({table}), [charts]({charts}){end}")
    rest = len(lines) - _MOST_LINKS
    more = [f"and {rest} more under *Views*"] if rest > 0 else []
    everything = f"[All cells of all sweeps]({views.link(experiment_id, _ALL)})"
    while True:
        text = summaries.describe_experiment(suite, [*lines[:_MOST_LINKS], *more, everything])
        if len(text) <= _LONGEST_NOTE or not lines:
            return text
        lines = lines[: min(len(lines), _MOST_LINKS) - 1]
        more = ["and more under *Views*"]


def _key(store: Store, sweep_id: str) -> str:
    return f"{_OURS}{sweep_id}" if store.own else f"{_OURS}{store.output_id}-{sweep_id}"


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _escape(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"\\{character}" if character in "\\`*_{}[]<>()#+!|" else character for character in text)


def _hash(values: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]
