"""Full fine-tuning: everything trains. The reference for accuracy and for memory."""

from __future__ import annotations

import dataclasses

from s2a.backbones import Backbone, Edits
from s2a.card import Card, Recipe, Style
from s2a.lean import LeanOptions
from s2a.registry import Method, register_method
from torch import nn


@dataclasses.dataclass(frozen=True)
class FullConfig(LeanOptions):
    """Options of the lean activations alone: full fine-tuning has none of its own."""

    def __post_init__(self) -> None:
        self.check_lean()


@register_method("full", FullConfig)
class Full(Method):
    """Every parameter of the backbone trains."""

    identity_at_start = True
    card = Card(
        title="Full fine-tuning",
        trains="Every parameter.",
        place="Everywhere; nothing is added.",
        count="All of the backbone's.",
        keeps="The input of every layer, everything attention and activations need, norm statistics.",
        inference="Nothing; s2a.merge gives the plain model.",
        source="The usual practice.",
        recipe=Recipe(learning_rate=1e-3, searched_rates=(1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3), width_power=2.0),
        style=Style(light="#3b3b3b", dark="#e4e4e4", shape="square"),
        order=10,
        compared_by_default=True,
        step_time=1.5,
    )

    def __init__(self, config: FullConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        for parameter in backbone.model.parameters():
            edits.train(parameter)

    def fold(self, model: nn.Module) -> None:
        """Does nothing: no module was added."""
