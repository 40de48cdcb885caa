"""What the run of a cell on somebody's own images gets besides its numbers: the data as an input, and the model.

The model is an MLflow ``pyfunc``: ``mlflow models predict`` and ``mlflow.pyfunc.load_model`` load it by
``runs:/RUN/model``. It holds the adapter folder; the backbone's weights come from where that folder says.
"""

from __future__ import annotations

import json
import shlex
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2a_bench.cells.record import Record
from s2a_bench.data.table.lookup import DATASETS
from s2a_bench.tracking.store import Store

NAME = "model"
"""Of the logged model: ``runs:/RUN/model``."""

SUMMARY, ADAPTER = "metrics.json", "adapter"
"""Names under the output folder of a fine-tuning: its numbers, which name the cell, and its adapter."""


def log_inputs(store: Store, run_id: str, record: Record) -> None:
    """Logs the dataset of a record as an input of its run; nothing where its data have no id.

    Args:
        store: The store.
        run_id: Of the record's run.
        record: The record.
    """
    if not record.data_id:
        return
    from mlflow.entities import Dataset, DatasetInput, InputTag

    known = _summary_of(store.output, record).get("data", {})
    counts = known.get("counts") or {"train": record.train_images, "scored": record.scored_images}
    source = known.get("source") or _source_of(record)
    profile = {"classes": record.classes, "images": counts, "split_id": record.split_id}
    data = Dataset(
        name=record.dataset,
        digest=record.data_id[:36],
        source_type="http" if source.startswith("https://") else "local",
        source=json.dumps({"url" if source.startswith("https://") else "uri": source}),
        profile=json.dumps({**profile, "evaluated_on": record.evaluated_on}),
    )
    tags = {"mlflow.data.context": "training", "evaluated_on": record.evaluated_on}
    store.client.log_inputs(run_id, [DatasetInput(data, [InputTag(*each) for each in tags.items()])])


def _source_of(record: Record) -> str:
    """Where a dataset comes from, as the table of datasets has it."""
    found = DATASETS.get(record.dataset)
    if found is None or found.suite != record.suite:
        return ""
    address = next((word for word in found.where.split() if word.startswith("https://")), "")
    return address or found.source


def log_model(store: Store, experiment_id: str, run_id: str, record: Record) -> str | None:
    """Logs the model of a record whose adapter folder lies in the output folder.

    Returns:
        The model's id; ``None``: the output folder has no adapter of this record.
    """
    summary, adapter = _summary_of(store.output, record), store.output / ADAPTER
    if not summary or not (adapter / "adapter_config.json").is_file():
        return None
    from mlflow.entities import LoggedModelOutput

    with tempfile.TemporaryDirectory(prefix="s2a-model-") as folder:
        place = Path(folder) / NAME
        save_model(adapter, place, summary)
        params = {"backbone": record.backbone, "method": record.method, "classes": str(record.classes)}
        model = store.client.create_logged_model(
            experiment_id, NAME, run_id, tags={"cell_id": record.cell_id}, params=params, model_type="pyfunc"
        )
        store.client.log_model_artifacts(model.model_id, str(place))
    store.client.finalize_logged_model(model.model_id, "READY")
    store.client.log_outputs(run_id, [LoggedModelOutput(model.model_id, max(1, len(record.curve)))])
    return model.model_id


def save_model(adapter: Path, place: Path, summary: Mapping[str, Any]) -> None:
    """Writes an MLflow model for an adapter folder.

    Args:
        adapter: The folder.
        place: Where; must not exist.
        summary: The fine-tuning's ``metrics.json``, for the requirements and for where the weights are here.
    """
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    columns = [ColSpec(DataType.string, "label"), ColSpec(DataType.double, "probability")]
    columns += [ColSpec(AnyType(), "top"), ColSpec(DataType.string, "error")]
    signature = ModelSignature(
        Schema([ColSpec(AnyType())]),  # a path, or the bytes of a file; without a name, so that lists are taken too
        Schema([*columns]),
        ParamSchema([ParamSpec("top", DataType.long, 1)]),
    )
    versions = summary.get("versions", {})
    wanted = ("s2a", "s2a-baselines", "s2a-bench", "torch", "timm", "pillow")
    requirements = [f"{name}=={version}" for name in wanted if (version := versions.get(name))]
    weights = summary.get("backbone", {}).get("weights_file")
    with warnings.catch_warnings(action="ignore"):  # advice for whoever writes a model
        mlflow.pyfunc.save_model(
            str(place),
            python_model=str(Path(__file__).with_name("served_model.py")),
            artifacts={"adapter": str(adapter)},
            model_config={"weights": weights} if weights else {},
            signature=signature,
            pip_requirements=requirements or ["s2a"],
            metadata={"labels": summary.get("labels", []), "cell_id": summary.get("cell_id", "")},
        )


def load_command(uri: str, run_id: str) -> str:
    """The command that names images with a logged model."""
    words = ["mlflow", "models", "predict", "-m", f"runs:/{run_id}/{NAME}", "-i", "images.csv", "-t", "csv"]
    return f"MLFLOW_TRACKING_URI={shlex.quote(uri)} {shlex.join([*words, '--env-manager', 'local'])}"


def _summary_of(output: Path, record: Record) -> dict[str, Any]:
    """``metrics.json`` of the output folder, if it is that of the record."""
    try:
        found = json.loads((output / SUMMARY).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) and found.get("cell_id") == record.cell_id else {}
