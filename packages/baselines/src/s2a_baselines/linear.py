"""Linear probing: only a new classifier trains, on the features of the frozen backbone."""

from __future__ import annotations

import dataclasses

from s2a.backbones import Backbone, Edits
from s2a.card import Card, Recipe, Style
from s2a.registry import Method, register_method
from torch import Tensor, nn

from s2a_baselines._frozen import keep_in_evaluation, run_frozen


@dataclasses.dataclass(frozen=True)
class LinearConfig:
    """Linear probing has no options."""


@register_method("linear", LinearConfig)
class Linear(Method):
    """The head alone trains.

    The backbone runs without gradient and in evaluation mode, whatever mode the adapted model is in: its features are a
    fixed function of the image, its norm statistics stay as they are, and nothing of it is kept for the backward pass.
    """

    identity_at_start = True
    trains_backbone = False
    fixed_features = True
    card = Card(
        title="Linear probing",
        trains="The head.",
        place="After the backbone, which runs without gradient and in evaluation mode.",
        count="0.",
        keeps="Nothing but the head's input, (C,) per image.",
        inference="Nothing; s2a.merge gives the plain model.",
        source="The usual practice.",
        recipe=Recipe(learning_rate=3e-2, searched_rates=(1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
        style=Style(light="#868686", dark="#9d9d9d", shape="down"),
        order=20,
        compared_by_default=True,
        step_time=0.3,
    )

    def __init__(self, config: LinearConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        keep_in_evaluation(backbone.model, edits)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features of the frozen backbone, without gradient, ``(B, C)``."""
        return run_frozen(model, images)[0]

    def fold(self, model: nn.Module) -> None:
        """Does nothing: no module was added."""
