"""Maps the fields of a record to MLflow's parameters, tags and metrics, under the same names."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from s2a_bench.cells import learning, recipes
from s2a_bench.cells.evaluation import PHRASES
from s2a_bench.cells.record import Record
from s2a_bench.data import augment

_TAGS = ("suite", "dataset", "group", "backbone", "method", "seed", "status", "evaluated_on", "data_id", "split_id")
_TAGS += ("checkpoint_id", "git_sha", "git_dirty", "synthetic", "lossy", "random_weights", "started_at", "cell_id")
_TAGS += ("adapter_id", "notes", "trial", "feature_cache")
_PARAMS = ("suite", "dataset", "group", "backbone", "method", "seed", "epochs", "evaluated_on", "classes")
_PARAMS += (
    "train_images",
    "scored_images",
    "limit_train",
    "limit_test",
    "protocol",
    "schema",
    "data_id",
    "split_id",
    "checkpoint_id",
)
_NESTED = {"method_config": "method", "train_config": "train", "data_config": "data"}
_METRICS = ("accuracy", "params_total", "params_backbone", "params_trainable", "params_percent", "weights_mb")
_METRICS += ("theoretical_mb", "saved_mb", "measured_mb", "host_mb", "peak_mb", "images_per_second", "seconds")
_METRICS += ("resumed", "scoring_seconds", "wall_seconds", "guessing_loss", "guessing_accuracy")
_METRICS += ("balanced_accuracy", "macro_f1", "best_epoch")

_NOTHING = (None, "", "unknown", "null")

LAYOUT = 2
"""Raised when runs show the same records in another way: those of an earlier layout are made again."""

# MLflow's limits are 6,000 characters for a parameter and, in older versions, 5,000 for a tag.
_LONGEST_PARAM, _LONGEST_TAG, _LONGEST_KEY = 6000, 4000, 250


def run_params(record: Record) -> dict[str, str]:
    """A record's parameters; nested configs as ``method.lrp_rank``, ``train.lr``, ``data.size``.

    What is not known, or an option that is not used, is left out: MLflow's charts would give it a value of its own.
    """
    values: dict[str, Any] = {name: getattr(record, name) for name in _PARAMS}
    for field, prefix in _NESTED.items():
        values |= dict(_flatten(getattr(record, field), f"{prefix}."))
    given = {name: value for name, value in values.items() if value not in _NOTHING}
    return {safe_key(name): _format_value(value)[:_LONGEST_PARAM] for name, value in given.items()}


def run_tags(record: Record) -> dict[str, str]:
    """A record's tags: fields to filter by, hardware, versions, and the error of a failed cell."""
    values: dict[str, Any] = {name: getattr(record, name) for name in _TAGS}
    values |= dict(_flatten(record.hardware, "hardware.")) | dict(_flatten(record.versions, "versions."))
    values["search"] = record.search["mode"] if record.search else None
    if record.search:
        values |= dict(_flatten({k: v for k, v in record.search.items() if k != "trial_ids"}, "search."))
    if record.error:
        values |= {f"error.{name}": record.error[name] for name in ("type", "message") if name in record.error}
    if record.status == "done":
        problems = learning.find_problems(record)
        values |= {"learned": not problems, "did_not_learn": "; ".join(problems)}
    # Two names of MLflow's own, which its pages show as the run's source.
    values |= {"mlflow.source.name": "s2a-bench", "mlflow.source.git.commit": record.git_sha}
    return {safe_key(name): _format_value(value)[:_LONGEST_TAG] for name, value in values.items()}


def run_metrics(record: Record) -> list[tuple[str, float, int]]:
    """A record's numbers as ``(name, value, step)``; curves have the epoch as step.

    A curve with the name of a final number is called ``epoch_...``: MLflow shows the last value of a name.
    """
    # Only where val chose the epoch is its accuracy a final number; a search's looks at val are a curve alone.
    metrics = (*_METRICS, "val_accuracy") if record.val_accuracy is not None else _METRICS
    found = [(name, float(v), 0) for name in metrics if (v := getattr(record, name)) is not None]
    for index, point in enumerate(record.curve, start=1):
        step = int(point.get("epoch", index))
        for name, value in point.items():
            if name != "epoch" and value is not None:
                found.append((safe_key(f"epoch_{name}" if name in metrics else name), float(value), step))
    return [entry for entry in found if math.isfinite(entry[1])]


def run_name(record: Record) -> str:
    """``s2a:lrp_rank=5 digits seed 0 mini_vit train.lr=0.1``: what distinguishes a run; no defaults."""
    options = ",".join(f"{key}={_format_value(value)}" for key, value in _changed_options(record).items())
    method = f"{record.method}:{options}" if options else record.method
    words = [method, record.dataset, f"seed {record.seed}", record.backbone]
    words += recipes.spoken(recipes.changes(record.suite, record.method, record.backbone, record.train_config))
    words += augment.spoken(augment.from_record(record.data_config))
    return " ".join([*words, *(["trial"] if record.trial else [])])[:_LONGEST_KEY]


def _changed_options(record: Record) -> dict[str, Any]:
    """The options of a record's method that are not the defaults; all of a method that is not installed here."""
    import s2a  # here, since it imports torch, which nothing else in this package needs

    try:
        usual = json.loads(json.dumps(dataclasses.asdict(s2a.method_config(record.method))))
    except s2a.S2AError:
        usual = {}
    options = recipes.by_preset(record.method, record.method_config)
    return {key: value for key, value in options.items() if key not in usual or value != usual[key]}


def hash_record(record: Record) -> str:
    """16 hex digits of a record's whole content, and of how a run shows it."""
    text = json.dumps({**vars(record), "layout": LAYOUT}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def describe_sweep(records: Sequence[Record]) -> str:
    """What a sweep compared, in Markdown."""
    if not records:
        return "A sweep without records."

    def names(field: str) -> str:
        return ", ".join(str(value) for value in sorted({getattr(record, field) for record in records}))

    evaluated = "; ".join(PHRASES[value] for value in sorted({record.evaluated_on for record in records}))
    lines = [
        f"{len(records)} cell{'s' * (len(records) != 1)} of suite **{names('suite')}**, {evaluated}.",
        "",
        f"- methods: {names('method')}",
        f"- datasets: {names('dataset')}",
        f"- backbones: {names('backbone')}",
        f"- seeds: {names('seed')}; epochs: {names('epochs')}",
    ]
    if any(record.random_weights for record in records):
        lines.append("- **random backbone weights**: accuracies say nothing about transfer")
    failed = [record for record in records if record.status == "failed"]
    lines += ["", f"{len(failed)} of them failed:" if failed else "None failed."]
    for r in failed[:20]:
        kind = (r.error or {}).get("type", "unknown cause")
        lines.append(f"- `{r.cell_id}` {r.method} on {r.dataset}, seed {r.seed}: {kind}")
    lines += [f"- and {len(failed) - 20} more"] if len(failed) > 20 else []
    return "\n".join([*lines, "", "The records under the output folder are the source; this is a view of them."])


def _flatten(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def safe_key(name: str) -> str:
    """A name with only the characters that every version of MLflow takes in a name."""
    return re.sub(r"[^\w\-. /]", "_", name)[:_LONGEST_KEY]


def _format_value(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ", ".join(map(_format_value, value))
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
