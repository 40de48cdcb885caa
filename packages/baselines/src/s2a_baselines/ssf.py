"""SSF: scales and shifts the output of every layer, y = gamma * x + beta.

Lian et al., Scaling & Shifting Your Features, NeurIPS 2022, https://arxiv.org/abs/2210.08823;
https://github.com/dongzelian/SSF. For a frozen linear layer W, b the two merge exactly:
gamma * (W x + b) + beta = (gamma * W) x + (gamma * b + beta).
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import torch
from s2a.activations import release_frozen_inputs
from s2a.backbones import Backbone, Edits, called, channel_axis
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.lean import LeanOptions
from s2a.registry import Method, register_method
from s2a.structure.bias import additive_biases
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

_LAYERS = (nn.Linear, _ConvNd, nn.LayerNorm, nn.GroupNorm, _BatchNorm)


@dataclasses.dataclass(frozen=True)
class SSFConfig(LeanOptions):
    """The start of SSF's parameters.

    Attributes:
        std: Standard deviation of the scales around 1 and of the shifts around 0 at the start, 0 or more. 0.02 is the
            paper's; at 0 the adapted model starts as the backbone.
    """

    std: float = 0.02

    def __post_init__(self) -> None:
        self.check_lean()
        if isinstance(self.std, bool) or not isinstance(self.std, int | float) or not 0 <= self.std < math.inf:
            raise S2AError(f"std={self.std!r} must be a finite number of at least 0; the paper's is 0.02.")


class ScaleShift(nn.Module):
    """y = gamma * x + beta per channel, on the output x of a frozen layer.

    Args:
        channels: C of x.
        axis: Of the channels in x: 1 or -1.
        std: Of gamma around 1 and beta around 0.
    """

    def __init__(self, channels: int, axis: int, std: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(1 + std * torch.randn(channels))
        self.beta = nn.Parameter(std * torch.randn(channels))
        self.axis = axis

    def forward(self, x: Tensor) -> Tensor:
        """The scaled and shifted x, of its shape and dtype."""
        shape = (-1,) if self.axis == -1 else (-1, *[1] * (x.dim() - 2))
        # Under autocast the sum is float32: the next layer would save twice the bytes of this layer's own output.
        return (self.gamma.view(shape) * x + self.beta.view(shape)).to(x.dtype)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the frozen layer."""
        return self(output)


@register_method("ssf", SSFConfig)
class SSF(Method):
    """A scale and a shift on the output of every linear, convolution and normalisation layer that runs and has a bias.

    Raises:
        UnsupportedModel: No such layer, or one whose channels are not where its type puts them.
    """

    card = Card(
        title="SSF",
        trains="The head, a scale gamma and a shift beta per channel of every layer.",
        place="y = gamma x + beta on the output of every linear, convolution and normalisation layer that is "
        "called and has an additive bias, except the classifier.",
        count="2 C per layer of C channels, twice the number of biases: 205,824 on ViT-B/16, 274,432 on Swin-B, "
        "260,608 on ConvNeXt-B.",
        keeps="The whole output of every such layer, for gamma; beta needs nothing. So SSF has few parameters, but "
        "saves one more full-size tensor per layer.",
        inference="Nothing after s2a.merge, exactly: weight * gamma, bias * gamma + beta; before, one product and one "
        "sum per layer.",
        source="Lian et al., Scaling & Shifting Your Features, NeurIPS 2022 (dongzelian/SSF).",
        evidence="As published on ViT, Swin and ConvNeXt; the S2A paper has no row. ResNet has no published form: its "
        "convolutions have no bias, so there only the batch norms are scaled.",
        deviations="Layers whose weights a block reads without calling them are left out (EVA's qkv).",
        recipe=Recipe(learning_rate=1e-2),
        style=Style(light="#4c7a1f", dark="#a9d96f", shape="plus"),
        order=57,
    )

    def __init__(self, config: SSFConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        biases = {name.rpartition(".")[0]: bias for name, bias in additive_biases(backbone.model).items()}
        layers = [name for name in biases if isinstance(backbone.module(name), _LAYERS)]
        shapes = called(backbone.model, layers, backbone.image_size)
        self.names = [name for name in layers if name in shapes]
        if not self.names:
            raise UnsupportedModel(
                f"No linear, convolution or normalisation layer of this {backbone.family} has a bias, so ssf has no "
                "place in it; create the model with biases, or choose another method."
            )
        self.scales = nn.ModuleList()
        self._kept: dict[str, int] = {}
        for name in self.names:
            layer, shape, channels = backbone.module(name), shapes[name][1], biases[name].numel()
            axis = channel_axis(layer)
            if shape[axis] != channels:
                raise UnsupportedModel(
                    f"{name} ({type(layer).__name__}) outputs {shape}, not {channels} channels on axis {axis}; "
                    "ssf does not know this layer."
                )
            scale = ScaleShift(channels, axis, config.std)
            edits.after(layer, scale.after)
            self._kept[f"scales.{len(self.scales)}"] = math.prod(shape)
            self.scales.append(scale)
        release_frozen_inputs(backbone.model, edits)

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes of the output of every scaled layer."""
        return {name: 4 * batch_size * elements for name, elements in self._kept.items()}

    def fold(self, model: nn.Module) -> None:
        """Writes weight * gamma and bias * gamma + beta into every layer.

        Raises:
            S2AError: A layer ends in an activation function, in front of which a scale cannot be moved.
        """
        for name, scale in zip(self.names, self.scales, strict=True):
            layer: Any = model.get_submodule(name)
            if not isinstance(getattr(layer, "act", None), nn.Identity | None):
                raise S2AError(
                    f"ssf cannot be merged here: {name} ({type(layer).__name__}) applies {type(layer.act).__name__} "
                    "itself, before the scale; keep the adapted model, or save it with s2a.save."
                )
            layer.weight *= scale.gamma.view(-1, *[1] * (layer.weight.dim() - 1))  # type: ignore[operator]
            layer.bias.mul_(scale.gamma).add_(scale.beta)
