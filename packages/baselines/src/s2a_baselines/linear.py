"""Linear probing: a new classifier on the features of a backbone that does not change at all."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from s2a.backbones import Backbone
from s2a.registry import Method, register_method
from s2a.surgery import Edits
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Linear probing has nothing to choose."""


def _stay_in_evaluation(self: Any, mode: bool = True) -> Any:
    return nn.Module.train(self, False)


@register_method("linear", LinearConfig)
class Linear(Method):
    """The head alone trains.

    The backbone runs without gradient and in evaluation mode, whatever mode the adapted model is in: its features are a
    fixed function of the image, its norm statistics stay as they are, and nothing of it is kept for the backward pass.
    """

    identity_at_start = True
    trains_backbone = False

    def __init__(self, config: LinearConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        for module in backbone.model.modules():
            edits.override(module, "training", False)
        edits.override(backbone.model, "train", _stay_in_evaluation)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features of the frozen backbone, without gradient, ``(B, C)``."""
        with torch.no_grad():
            return super().forward(model, images)
