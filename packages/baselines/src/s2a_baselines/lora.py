"""LoRA: a low-rank update of frozen linear layers, y = W x + b + alpha / r * B A x.

Hu et al., LoRA, ICLR 2022, https://arxiv.org/abs/2106.09685, section 4.1; https://github.com/microsoft/LoRA. Storage: A
is ``(r, in)``, B is ``(out, r)``, one pair for a fused qkv projection (out = 3 C). A frozen A is LoRA-FA (Zhang et al.,
2023, https://arxiv.org/abs/2308.03303).
"""

from __future__ import annotations

import dataclasses
import math
import re

from s2a.activations import release_frozen_inputs
from s2a.backbones import Backbone, Block, Edits
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.lean import LeanOptions
from s2a.registry import Method, register_method
from s2a.structure.low_rank_update import LowRankUpdates, largest_rank
from torch import nn

ROLES = ("qkv", "proj", "fc1", "fc2", "conv1", "conv2", "conv3")
"""Layers of a block that can be updated; a family has some of them."""

PRESETS = (("qkv",), ("fc1", "fc2"), ("conv2",))
"""What ``targets="preset"`` updates: the first where there is attention, else the first that a block has."""

_MULTIPLE = re.compile(r"r\*[0-9]+(\.[0-9]+)?")


@dataclasses.dataclass(frozen=True)
class LoRAConfig(LeanOptions):
    """Target layers, rank and scale of the updates; the defaults are those of the S2A paper's LoRA row.

    Attributes:
        rank: r of the update B A; 0: the block's width over ``reduction`` (48 for ViT-B). At most the smaller side
            of every target.
        reduction: Divisor of the block's width C that gives the rank when ``rank`` is 0.
        targets: Roles of the updated layers in every block, from ``ROLES``, or ``"preset"``: ``qkv`` where there is
            attention, one update of the fused projection, A ``(r, C)`` and B ``(3C, r)``; both layers of the MLP in
            ConvNeXt; the 3 x 3 convolutions in ResNet. The paper has a row for ViT only.
        alpha: The update is scaled by alpha / r; ``None``: alpha = r, scale 1; ``"r*4"``: alpha = 4 r, scale 4 in every
            layer, whatever its rank.
        dropout: Probability of dropping an element of the update's input in training, in [0, 1).
        train_a: False freezes A as it was drawn (LoRA-FA, Zhang et al., 2023): the backward pass then keeps A x,
            ``(..., r)``, instead of x, ``(..., C)``.
    """

    rank: int = 0
    reduction: int = 16
    targets: str | tuple[str, ...] = "preset"
    alpha: float | str | None = None
    dropout: float = 0.0
    train_a: bool = True

    def __post_init__(self) -> None:
        self.check_lean()
        for name, least in (("rank", 0), ("reduction", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise S2AError(f"{name}={value!r} is not a size; give an integer of at least {least}.")
        if self.targets != "preset":
            targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
            object.__setattr__(self, "targets", targets)
            if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(ROLES):
                raise S2AError(
                    f"targets={targets} must name each of its layers once; choose from {', '.join(ROLES)}, or 'preset'."
                )
        if isinstance(self.alpha, str):
            if not _MULTIPLE.fullmatch(self.alpha) or not float(self.alpha[2:]):
                raise S2AError(
                    f"alpha={self.alpha!r} is not a multiple of the rank; write r*4 or a number, or leave it out."
                )
        elif self.alpha is not None and not 0 < self.alpha < math.inf:
            raise S2AError(f"alpha={self.alpha} must be above 0; leave it out for a scale of 1.")
        if not 0 <= self.dropout < 1:
            raise S2AError(f"dropout={self.dropout} is out of range; give a probability in [0, 1).")
        if not isinstance(self.train_a, bool):
            raise S2AError(f"train_a={self.train_a!r} must be True or False.")

    def scale(self, rank: int) -> float:
        """The factor alpha / r of an update of rank r."""
        if isinstance(self.alpha, str):
            return float(self.alpha[2:])
        return 1.0 if self.alpha is None else self.alpha / rank


@register_method("lora", LoRAConfig)
class LoRA(Method):
    """Low-rank updates of the same layers in every block.

    Raises:
        UnsupportedModel: A family without such a layer.
        S2AError: A rank or reduction that does not fit it.
    """

    identity_at_start = True
    card = Card(
        title="LoRA",
        trains="The head, A and B of every update; with train_a=False (LoRA-FA) the head and B.",
        place="Beside frozen layers of every block: y = W x + b + alpha / r B A x. The fused qkv projection of "
        "attention, both MLP layers of ConvNeXt, the 3 x 3 convolutions of ResNet.",
        count="4 C r per block for qkv, r = C / 16; r (in + out) for any other layer.",
        keeps="The updated layer's input x, (N, C), and A x, (N, r), per update; LoRA-FA only A x.",
        inference="Nothing after s2a.merge, exactly W + alpha / r B A; before, two thin products per update.",
        source="Hu et al., LoRA, ICLR 2022 (microsoft/LoRA); convolutions as in LyCORIS and peft; frozen A: Zhang et "
        "al., LoRA-FA, 2023.",
        evidence="ViT fitted: r = C / 16 on qkv reproduces the S2A paper's count and memory, its text says 8 times "
        "fewer channels. The paper has no row for the other families: their targets are the nearest published form.",
        deviations="alpha = r (scale 1) unless given. LoRA-FA without peft's preconditioning of B's gradient.",
        recipe=Recipe(learning_rate=1e-2, searched_rates=(1e-3, 1e-2, 1e-1), searched_option=("alpha", (None, "r*4"))),
        style=Style(light="#0069b4", dark="#62b5f5", shape="diamond"),
        order=40,
        compared_by_default=True,
        step_time=1.1,
    )

    def __init__(self, config: LoRAConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        targets: list[tuple[str, int, float]] = []
        for block in backbone.blocks:
            for role in _targets(config, block):
                if role not in block.linears:
                    raise UnsupportedModel(
                        f"targets={config.targets}: block {block.name} of this {backbone.family} has no {role!r}; "
                        f"it has {', '.join(block.linears) or 'no layer that LoRA could update'}."
                    )
                name = block.linears[role]
                rank = _rank(config, block.channels, name, backbone.module(name))
                targets.append((name, rank, config.scale(rank)))
        self.updates = LowRankUpdates(backbone, edits, targets, config.dropout, config.train_a)
        self.names = self.updates.paths
        for part in (backbone.model, self.updates):
            release_frozen_inputs(part, edits)

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes of every update's input and A x, and of dropout's mask where a gradient passes."""
        return {f"updates.{name}": size for name, size in self.updates.keeps(batch_size).items()}

    def fold(self, model: nn.Module) -> None:
        """Writes W + scale * B A into every updated layer."""
        self.updates.fold(model)


def _targets(config: LoRAConfig, block: Block) -> tuple[str, ...]:
    if config.targets != "preset":
        return tuple(config.targets)
    if block.heads:
        return PRESETS[0]
    return next((roles for roles in PRESETS[1:] if set(roles) <= block.linears.keys()), PRESETS[0])


def _rank(config: LoRAConfig, channels: int, name: str, layer: nn.Module) -> int:
    """The rank r of one layer, checked against it."""
    if not config.rank and channels % config.reduction:
        raise S2AError(
            f"reduction={config.reduction} does not divide the {channels} channels in front of {name}; "
            f"choose a divisor of {channels}, or give rank itself."
        )
    rank, limit = config.rank or channels // config.reduction, largest_rank(layer, name)
    if rank > limit:
        raise S2AError(f"rank={rank} is larger than the smaller side of {name}, {limit}; choose 1 to {limit}.")
    return rank
