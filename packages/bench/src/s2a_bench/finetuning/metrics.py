"""``metrics.json``: everything that is known of a fine-tuning, as plain values; page and card show parts of it."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig

if TYPE_CHECKING:
    from s2a_bench.cells.run import Trained
    from s2a_bench.cells.scores import Scored


@dataclasses.dataclass(frozen=True)
class Circumstances:
    """What a record does not say of a fine-tuning.

    Attributes:
        source: Where the images come from.
        labels: Names of the classes, by label.
        counts: Images per list: ``train``, ``val``, ``test``.
        own: How the lists were made, see ``Manifest.own``.
        weights: Where the backbone's weights come from, in words: a file, or a name on the hub.
        weights_file: That file, absolute; ``None``: the hub's or the embedded one.
        budget: Memory budget as given, or as found on the card; ``None``: none.
        simulated_mb: Peak of a training step, simulated; ``None``: unknown.
        lr_search: ``{"rate", "reason", "points"}`` of ``--lr find``; ``None``: none.
        notes: What a person should know, as sentences.
    """

    source: str
    labels: tuple[str, ...]
    counts: dict[str, int]
    own: dict[str, Any]
    weights: str
    weights_file: str | None = None
    budget: str | None = None
    simulated_mb: float | None = None
    lr_search: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()


def build(cell: CellConfig, record: Record, trained: Trained, about: Circumstances) -> dict[str, Any]:
    """The content of ``metrics.json``.

    Percentages are in [0, 100], MB are 1e6 bytes, times are seconds.

    Args:
        cell: The cell that was trained.
        record: Its record; of an interrupted one as it was then.
        trained: What the training left.
        about: The rest.
    """
    scored_on = "test" if trained.test is not None else "val"
    scored = trained.test if trained.test is not None else trained.val
    if scored is None:
        raise ValueError("a fine-tuning without a scored epoch has no metrics")
    val = trained.val
    data_config = record.data_config
    found = {
        "status": "interrupted" if trained.interrupted else "done",
        "cell_id": record.cell_id,
        "accuracy": scored.accuracy,
        "accuracy_on": scored_on,
        "balanced_accuracy": scored.balanced_accuracy,
        "macro_f1": scored.macro_f1,
        "loss": scored.loss,
        "val_accuracy": val.accuracy if val is not None else record.val_accuracy,
        "val_loss": val.loss if val is not None else None,
        "best_epoch": trained.best_epoch,
        "epochs": cell.train.epochs,
        "epochs_run": len(record.curve),
        "seed": cell.seed,
        "labels": list(about.labels),
        "per_class": per_class(scored, about.labels),
        "confusion": {"rows": "true class", "columns": "named class", "counts": confusion_counts(scored)},
        "curve": record.curve,
        "data": {
            "name": record.dataset,
            "source": about.source,
            "data_id": record.data_id,
            "split_id": record.split_id,
            "counts": about.counts,
            **{key: value for key, value in about.own.items() if key not in ("name", "source", "counts")},
        },
        "image": {key: data_config.get(key) for key in ("size", "mean", "std", "interpolation", "resize", "augment")},
        "backbone": {
            "name": record.backbone,
            "weights": about.weights,
            "weights_file": about.weights_file,
            "checkpoint_id": record.checkpoint_id,
        },
        "method": {"name": record.method, "options": dict(cell.method.options), "config": record.method_config},
        "params": {
            "total": record.params_total,
            "trainable": record.params_trainable,
            "percent": record.params_percent,
        },
        "memory": {
            "budget": about.budget,
            **{k: getattr(record, k) for k in ("weights_mb", "saved_mb", "measured_mb", "theoretical_mb", "peak_mb")},
            "simulated_mb": about.simulated_mb,
        },
        "times": {
            "training": sum(m["seconds"] for m in record.curve) if record.curve else None,
            "scoring": record.scoring_seconds,
            "total": record.wall_seconds,
            "started_at": record.started_at,
        },
        "images_per_second": record.images_per_second,
        "lr_search": about.lr_search,
        "config": dataclasses.asdict(cell),
        "hardware": record.hardware,
        "versions": record.versions,
        "notes": [*about.notes, *(note for note in record.notes if note not in about.notes)],
    }
    return json.loads(json.dumps(found, default=str))  # as the file has it: lists for tuples


def per_class(scored: Scored, labels: Sequence[str]) -> list[dict[str, Any]]:
    """Precision, recall and F1 (percent) and the number of images of each class, by label."""
    from sklearn.metrics import precision_recall_fscore_support

    true, named = scored.labels.numpy(), scored.probabilities.argmax(1).numpy()
    # scikit-learn's annotations say that zero_division is a text; its documentation, that it is a number too.
    values: Any = precision_recall_fscore_support(true, named, labels=range(len(labels)), zero_division=0.0)  # type: ignore[arg-type]
    return [
        {"label": label, "precision": 100.0 * p, "recall": 100.0 * r, "f1": 100.0 * f, "support": int(n)}
        for label, p, r, f, n in zip(labels, *(column.tolist() for column in values), strict=True)
    ]


def confusion_counts(scored: Scored) -> list[list[int]]:
    """``[true, named, images]`` of every pair of classes that has images: a table of 10,000 classes would not fit."""
    pairs = Counter(zip(scored.labels.tolist(), scored.probabilities.argmax(1).tolist(), strict=True))
    return [[true, named, count] for (true, named), count in sorted(pairs.items())]
