"""Chooses the epoch of a training by its validation images: the weights of the best one are kept.

Their state is part of the checkpoint; which epoch it is of follows from the curve (``evaluation``).
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor, nn

from s2a_bench.cells.evaluation import find_best
from s2a_bench.cells.scores import score
from s2a_bench.cells.train import Images
from s2a_bench.config import TrainConfig


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
