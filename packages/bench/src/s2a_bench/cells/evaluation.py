"""Which images a cell is scored on, and when: the protocols of ``DataConfig.evaluate``. Torch-free.

With ``"select"`` the epoch is chosen by validation accuracy. Which one is best, and whether training stops early, are
functions of the curve alone, so that a training that goes on from a checkpoint decides as one that was never cut off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from s2a_bench.config import TrainConfig

PHRASES = {"test": "scored on test", "val": "scored on val", "select": "best epoch on val, scored on test"}
"""Each protocol in a few words."""

NO_TEST = (
    "There are no test images: the accuracy is that of the validation images, which also chose the epoch, and so an "
    "optimistic one."
)
"""Note of a record whose accuracy is that of its validation images."""

Point = Mapping[str, float]
"""One epoch of a curve, with ``epoch``, ``val_accuracy`` and ``val_loss``."""


def find_best(curve: Sequence[Point]) -> int:
    """The epoch with the highest validation accuracy; of several the one with the lowest loss, then the earliest.

    Args:
        curve: At least one epoch.
    """
    best = min(curve, key=lambda p: (-p["val_accuracy"], p.get("val_loss", math.inf), p["epoch"]))
    return int(best["epoch"])


def stops(curve: Sequence[Point], patience: int) -> bool:
    """Whether training stops here: ``patience`` epochs have brought no better validation accuracy.

    Args:
        curve: At least one epoch.
        patience: 0: never.
    """
    highest = max(point["val_accuracy"] for point in curve)
    since = next(point["epoch"] for point in curve if point["val_accuracy"] == highest)
    return bool(patience) and curve[-1]["epoch"] - since >= patience


def describe_stop(curve: Sequence[Point], config: TrainConfig) -> str:
    """The record's note on a training that stopped early."""
    return (
        f"Training stopped after epoch {len(curve)} of {config.epochs}: train.patience={config.patience} epochs "
        f"brought no better validation accuracy than {max(point['val_accuracy'] for point in curve):.1f} %."
    )
