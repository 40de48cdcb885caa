"""Chooses the epoch of a training by its validation images: the best one's weights are kept, and training may stop.

Which epoch is best, and whether training stops, are functions of the curve alone, so that a training that goes on
from a checkpoint decides as one that was never cut off. The weights of the best epoch are part of the checkpoint.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from s2a_bench.cells.scores import score
from s2a_bench.cells.train import Images
from s2a_bench.config import TrainConfig

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


def kept_tensors(model: nn.Module) -> dict[str, Tensor]:
    """What of a model is kept of its best epoch: parameters that train, and buffers that a state dict holds."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    stored = model.state_dict(keep_vars=True).keys()
    return trained | {name: buffer for name, buffer in model.named_buffers() if name in stored}


class Selection:
    """Scores the validation images after every epoch and keeps the weights of the best one."""

    def __init__(self, model: nn.Module, val: Images, config: TrainConfig) -> None:
        """Prepares for one training.

        Args:
            model: What is trained.
            val: The validation images, or their features.
            config: The recipe.
        """
        self._model, self._val, self._config = model, val, config
        # One object, replaced as a whole: an interruption never finds weights of another epoch than the curve says.
        self._state: dict[str, Any] = {"curve": [], "tensors": {}}

    @property
    def curve(self) -> list[dict[str, float]]:
        """``epoch``, ``val_accuracy`` and ``val_loss`` of the epochs so far."""
        return self._state["curve"]

    @property
    def epoch(self) -> int:
        """The best epoch, from 1; 0 before the first has ended."""
        return find_best(self.curve) if self.curve else 0

    @property
    def accuracy(self) -> float:
        """Validation accuracy of the best epoch, in percent."""
        return self.curve[self.epoch - 1]["val_accuracy"]

    def look(self, epoch: int) -> dict[str, float]:
        """Scores the validation images after an epoch and keeps its weights if it is the best so far.

        Nothing is drawn at random. The model is left in evaluation mode.

        Returns:
            ``val_accuracy``, ``val_loss`` (left out where it is not finite), ``val_seconds``.
        """
        began = time.perf_counter()
        found = score(self._model, self._val, self._config)
        seen = {"val_accuracy": found.accuracy}
        if math.isfinite(found.loss):  # a record holds finite numbers only
            seen["val_loss"] = found.loss
        curve, tensors = [*self.curve, {"epoch": epoch, **seen}], self._state["tensors"]
        if find_best(curve) == epoch:
            tensors = {name: t.detach().to("cpu", copy=True) for name, t in kept_tensors(self._model).items()}
        self._state = {"curve": curve, "tensors": tensors}
        return seen | {"val_seconds": time.perf_counter() - began}

    def restore_best(self) -> None:
        """Puts the weights of the best epoch into the model, in place."""
        with torch.no_grad():
            for name, target in kept_tensors(self._model).items():
                target.copy_(self._state["tensors"][name])

    def state(self) -> dict[str, Any]:
        """Curve and weights, for a checkpoint."""
        return self._state

    def load_state(self, state: dict[str, Any]) -> None:
        """Goes on from what ``state`` returned."""
        self._state = state
