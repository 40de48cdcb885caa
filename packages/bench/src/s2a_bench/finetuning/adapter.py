"""The adapter folder of a fine-tuning, and the images that its model names wrongly."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import s2a
import timm

from s2a_bench.cells import backbones
from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.config import CellConfig
from s2a_bench.data.folder import read_list
from s2a_bench.data.table.lookup import get_dataset
from s2a_bench.finetuning import pictures
from s2a_bench.finetuning.pictures import Mistake
from s2a_bench.finetuning.prepare import PreparedData

if TYPE_CHECKING:
    from s2a_bench.cells.run import Trained

SHOWN_MISTAKES = 24

_CARD_METRICS = {
    "accuracy": "accuracy",
    "accuracy_on": "evaluated_on",
    "balanced_accuracy": "balanced_accuracy",
    "macro_f1": "macro_f1",
    "val_accuracy": "val_accuracy",
    "best_epoch": "epoch that was kept",
    "epochs_run": "epochs that were run",
    "epochs": "epochs that were planned",
}
"""Metrics on the model card, by the names that it has for them."""

_CARD_DATA = ("name", "data_id", "split_id", "counts", "format", "drawn", "near_duplicates")


def save(trained: Trained, folder: Path, cell: CellConfig, data: PreparedData, metrics: Mapping[str, Any]) -> None:
    """Writes the adapter folder.

    Args:
        trained: What was trained.
        folder: Where.
        cell: The cell.
        data: Its data.
        metrics: See ``metrics.build``.
    """
    image = metrics["image"]
    values = {name: metrics[key] for key, name in _CARD_METRICS.items()}
    values |= {key: value for key, value in metrics["memory"].items() if value is not None}
    if metrics["hardware"].get("device") == "cpu":
        values["process_peak_mb"] = values.pop("peak_mb", None)  # no peak of a step can be read there
    values |= {f"note {number}": text for number, text in enumerate(metrics["notes"], start=1)}
    if metrics["status"] != "done":
        values["status"] = metrics["status"]
    s2a.save_pretrained(
        trained.adapted,
        folder,
        labels=list(data.manifest.classes),
        metrics=values,
        backbone=backbones.describe(cell.backbone),
        image={**{k: image[k] for k in ("size", "mean", "std", "interpolation")}, "resize": "crop"},
        data={key: metrics["data"].get(key) for key in _CARD_DATA},
        licence=licence_of(cell.backbone.name),
    )


def licence_of(backbone: str) -> str | None:
    """Licence of a backbone's weights, as far as timm says; those embedded here are this package's own."""
    if backbone in MINI_BACKBONES:
        return "apache-2.0"
    config = timm.get_pretrained_cfg(backbone)
    return getattr(config, "license", None) if config is not None else None


def find_mistakes(trained: Trained, data: PreparedData, metrics: Mapping[str, Any]) -> list[Mistake]:
    """The most confident mistakes on the scored images, with thumbnails."""
    name, scored = ("test", trained.test) if trained.test is not None else ("val", trained.val)
    entries = read_list(data.folder, name, get_dataset("own", data.name, data.root), data.manifest)
    if scored is None or len(entries) != len(scored.labels):
        return []  # a limited list: which images it holds is not known here
    probabilities, predicted = (part.tolist() for part in scored.probabilities.max(1))
    labels = scored.labels.tolist()
    names = metrics["labels"]
    return [
        Mistake(
            entries[i].path,
            names[labels[i]],
            names[predicted[i]],
            probabilities[i],
            pictures.thumbnail(data.images / entries[i].path),
        )
        for i in pictures.find_mistakes(labels, predicted, probabilities, SHOWN_MISTAKES)
    ]
