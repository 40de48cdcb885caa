"""BitFit: only biases train (Ben Zaken et al., BitFit, ACL 2022, https://arxiv.org/abs/2106.10199).

The original selects parameters by the substring "bias", which also matches Swin's ``relative_position_bias_table``, a
table that is added to attention scores. Here, as in the S2A paper's counts, only biases that are added to a layer's
output train.
"""

from __future__ import annotations

import dataclasses

from s2a.activations import release_frozen_inputs
from s2a.backbones import Backbone, Edits
from s2a.card import Card, Recipe, Style
from s2a.lean import LeanOptions
from s2a.registry import Method, register_method
from s2a.structure.bias import additive_biases
from torch import nn


@dataclasses.dataclass(frozen=True)
class BiasConfig(LeanOptions):
    """Options of the lean activations alone: BitFit has none of its own."""

    def __post_init__(self) -> None:
        self.check_lean()


@register_method("bias", BiasConfig)
class Bias(Method):
    """Every bias of a linear, convolution or normalisation layer trains."""

    identity_at_start = True
    card = Card(
        title="BitFit",
        trains="The head and every additive bias.",
        place="The biases of all linear, convolution and normalisation layers; nothing is added.",
        count="102,912 on ViT-B/16, 137,216 on Swin-B, 130,304 on ConvNeXt-B.",
        keeps="Nothing of its own; the backbone keeps what passing a gradient through frozen layers takes: inputs of "
        "norms, activations and softmax, q, k, v.",
        inference="Nothing; s2a.merge gives the plain model.",
        source="Ben Zaken et al., BitFit, ACL 2022 (benzakenelad/BitFit).",
        deviations="Swin's relative_position_bias_table, which the source's search by name would find, stays frozen: "
        "the S2A paper's counts leave it out.",
        recipe=Recipe(learning_rate=1e-2),
        style=Style(light="#00866a", dark="#3fcfa6", shape="up"),
        order=30,
        compared_by_default=True,
    )

    def __init__(self, config: BiasConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        for bias in additive_biases(backbone.model).values():
            edits.train(bias)
        release_frozen_inputs(backbone.model, edits)

    def fold(self, model: nn.Module) -> None:
        """Does nothing: no module was added."""
