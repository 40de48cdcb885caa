"""LoRA: low-rank updates of frozen linear layers (Hu et al., "LoRA", ICLR 2022; layout after microsoft/LoRA)."""

from __future__ import annotations

import copy
import dataclasses
import math
from typing import Any

import torch
from s2a.activations import release_frozen_inputs
from s2a.attach import Adapted, detach
from s2a.backbones import Backbone
from s2a.errors import S2AError, UnsupportedModel
from s2a.registry import Method, register_method
from s2a.surgery import Edits
from torch import Tensor, nn

ROLES = ("qkv", "proj", "fc1", "fc2")
"""Linear layers of a block that can be updated; a family may lack some."""


@dataclasses.dataclass(frozen=True)
class LoRAConfig:
    """Where the updates go and how large they are; the defaults are those of the S2A paper's LoRA row.

    Attributes:
        rank: r of the update B A; 0: the block's width over ``reduction`` (48 for ViT-B). At most the smaller side
            of every target.
        reduction: Divisor of the block's width C that gives the rank when ``rank`` is 0.
        targets: Roles of the updated layers in every block, from ``ROLES``. ``qkv`` is one update of the fused
            projection: A ``(r, C)`` and B ``(3C, r)``.
        alpha: The update is scaled by alpha / r; ``None``: alpha = r, scale 1.
        dropout: Probability of dropping an element of the update's input in training, in [0, 1).
        train_a: False freezes A as it was drawn (LoRA-FA, Zhang et al., 2023): the backward pass then keeps A x,
            ``(..., r)``, instead of x, ``(..., C)``.
    """

    rank: int = 0
    reduction: int = 16
    targets: tuple[str, ...] = ("qkv",)
    alpha: float | None = None
    dropout: float = 0.0
    train_a: bool = True

    def __post_init__(self) -> None:
        for name, least in (("rank", 0), ("reduction", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise S2AError(f"{name}={value!r} is not a size; give an integer of at least {least}.")
        targets = (self.targets,) if isinstance(self.targets, str) else tuple(self.targets)
        object.__setattr__(self, "targets", targets)
        if not targets or len(set(targets)) < len(targets) or not set(targets) <= set(ROLES):
            raise S2AError(f"targets={targets} must name each of its layers once; choose from {', '.join(ROLES)}.")
        if self.alpha is not None and not 0 < self.alpha < math.inf:
            raise S2AError(f"alpha={self.alpha} must be above 0; leave it out for a scale of 1.")
        if not 0 <= self.dropout < 1:
            raise S2AError(f"dropout={self.dropout} is out of range; give a probability in [0, 1).")
        if not isinstance(self.train_a, bool):
            raise S2AError(f"train_a={self.train_a!r} is no switch; give True or False.")


class Update(nn.Module):
    """alpha / r * B A dropout(x), added to the output of a frozen layer. Starts at zero: B is zero.

    Args:
        layer: A linear layer, or a 1 x 1 convolution.
        rank: r.
        scale: alpha / r.
        dropout: Of x.
    """

    def __init__(self, layer: nn.Linear | nn.Conv2d, rank: int, scale: float, dropout: float) -> None:
        super().__init__()
        if isinstance(layer, nn.Linear):
            self.a: nn.Module = nn.Linear(layer.in_features, rank, bias=False)
            self.b: nn.Module = nn.Linear(rank, layer.out_features, bias=False)
        else:
            self.a = nn.Conv2d(layer.in_channels, rank, 1, bias=False)
            self.b = nn.Conv2d(rank, layer.out_channels, 1, bias=False)
        nn.init.kaiming_uniform_(self.a.weight, a=math.sqrt(5))  # type: ignore[arg-type]
        nn.init.zeros_(self.b.weight)  # type: ignore[arg-type]
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """The update of the layer's output for its input ``x``."""
        return self.scale * self.b(self.a(self.dropout(x)))

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the frozen layer."""
        return output + self(args[0])

    def delta(self) -> Tensor:
        """The product scale * B A, ``(out, in)``: what merging adds to the layer's weight."""
        return self.scale * (self.b.weight.flatten(1) @ self.a.weight.flatten(1))  # type: ignore[operator]


@register_method("lora", LoRAConfig)
class LoRA(Method):
    """Low-rank updates of the same layers in every block.

    Raises:
        UnsupportedModel: A family without such a layer.
        S2AError: A rank or reduction that does not fit it.
    """

    identity_at_start = True

    def __init__(self, config: LoRAConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        self.names: list[str] = []
        self.updates = nn.ModuleList()
        for block in backbone.blocks:
            for role in config.targets:
                if role not in block.linears:
                    raise UnsupportedModel(
                        f"targets={config.targets}: block {block.name} of this {backbone.family} has no {role!r}; "
                        f"it has {', '.join(block.linears) or 'no linear layer that LoRA could update'}."
                    )
                name = block.linears[role]
                layer = backbone.module(name)
                rank = _rank(config, block.channels, name, layer)
                scale = 1.0 if config.alpha is None else config.alpha / rank
                update = Update(layer, rank, scale, config.dropout)  # type: ignore[arg-type]
                update.a.requires_grad_(config.train_a)
                edits.after(layer, update.after)
                self.names.append(name)
                self.updates.append(update)
        for part in (backbone.model, self.updates):
            release_frozen_inputs(part, edits)


def _rank(config: LoRAConfig, channels: int, name: str, layer: nn.Module) -> int:
    """The rank r of one layer, checked against it."""
    if not config.rank and channels % config.reduction:
        raise S2AError(
            f"reduction={config.reduction} does not divide the {channels} channels in front of {name}; "
            f"choose a divisor of {channels}, or give rank itself."
        )
    rank = config.rank or channels // config.reduction
    if isinstance(layer, nn.Linear):
        limit = min(layer.in_features, layer.out_features)
    elif isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1) and layer.stride == (1, 1) and layer.groups == 1:
        limit = min(layer.in_channels, layer.out_channels)
    else:
        raise UnsupportedModel(f"{name} is {type(layer).__name__}; LoRA updates linear layers and 1 x 1 convolutions.")
    if rank > limit:
        raise S2AError(f"rank={rank} is larger than the smaller side of {name}, {limit}; choose 1 to {limit}.")
    return rank


def merge(adapted: Adapted) -> nn.Module:
    """Folds the updates into the weights: afterwards inference costs what the plain model costs.

    Args:
        adapted: A model under ``lora``; it does not change.

    Returns:
        A plain timm model with the trained classifier; its logits are those of ``adapted`` in evaluation mode.

    Raises:
        S2AError: A model under another method.
    """
    if not isinstance(adapted, Adapted) or not isinstance(adapted.method, LoRA):
        given = adapted.name if isinstance(adapted, Adapted) else type(adapted).__name__
        raise S2AError(f"merge takes a model that s2a.attach put under 'lora', not {given!r}.")
    copied = copy.deepcopy(adapted)
    method, head = copied.method, copied.head
    assert isinstance(method, LoRA)
    model: Any = detach(copied)
    with torch.no_grad():
        for name, update in zip(method.names, method.updates, strict=True):
            weight = model.get_submodule(name).weight
            weight += update.delta().view_as(weight)  # type: ignore[operator]
    model.reset_classifier(head.out_features)
    classifier = model.get_classifier().to(head.weight.device, head.weight.dtype)
    classifier.load_state_dict(head.state_dict())
    return model.train(adapted.training)
