"""Adapters: a bottleneck on the output of both residual branches of a block, h + W_up GELU(W_down h + b_down) + b_up.

Houlsby et al., Parameter-Efficient Transfer Learning for NLP, ICML 2019, https://arxiv.org/abs/1902.00751, section 2.1;
https://github.com/google-research/adapter-bert.

Widths, sites and the convolution on feature maps are those that reproduce the S2A paper's Adapter rows, parameters and
memory. They were fitted: the paper's text, 8 times fewer channels in every block, gives twice Swin's count.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, Literal

from s2a.activations import release_frozen_inputs
from s2a.backbones import Backbone, Block, Edits
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.lean import LeanOptions
from s2a.registry import Method, register_method
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class AdapterConfig(LeanOptions):
    """Width and sites of the adapters; the defaults are those of the S2A paper's Adapter rows.

    Attributes:
        width: Channels w of the bottleneck; 0: the block's width C over ``reduction``.
        reduction: Divisor of C that gives w when ``width`` is 0; 0: 8 where all blocks have one width (ViT), 16 where
            stages have widths of their own (Swin, ConvNeXt).
        sites: ``"preset"`` (all blocks of a plain ViT, all but the first stage's elsewhere) or ``"all"``.
        std: Standard deviation of both weights at the start; the normal distribution is truncated at two of them.
    """

    width: int = 0
    reduction: int = 0
    sites: Literal["preset", "all"] = "preset"
    std: float = 1e-3

    def __post_init__(self) -> None:
        self.check_lean()
        for name in ("width", "reduction"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise S2AError(f"{name}={value!r} is not a size; give an integer of 1 or more, or 0 for the preset.")
        if self.width and self.reduction:
            raise S2AError(f"width={self.width} and reduction={self.reduction} both set the width; give one of them.")
        if self.sites not in ("preset", "all"):
            raise S2AError(f"sites={self.sites!r} is unknown; choose 'preset' or 'all'.")
        if not 0 < self.std < math.inf:
            raise S2AError(f"std={self.std} must be above 0: with both weights zero, neither could ever learn.")


class Bottleneck(nn.Module):
    """h + W_up GELU(W_down h + b_down) + b_up on the output h of a frozen layer; close to h at the start (``std``).

    Args:
        channels: C of h.
        width: w, at least 1; for maps a divisor of C.
        std: Of both weights; the biases start at zero.
        spatial: ``down`` is a 3 x 3 convolution in w groups, ``up`` a 1 x 1 convolution, on maps ``(B, C, H, W)``;
            otherwise both are linear, on tokens ``(..., C)``.
        channels_last: The maps come as ``(B, H, W, C)``.
    """

    reads_output_only = True  # Lean branches do not have the input that a hook is given.

    def __init__(self, channels: int, width: int, std: float, spatial: bool, channels_last: bool) -> None:
        super().__init__()
        if spatial:
            self.down: nn.Module = nn.Conv2d(channels, width, 3, padding=1, groups=width)
            self.up: nn.Module = nn.Conv2d(width, channels, 1)
        else:
            self.down, self.up = nn.Linear(channels, width), nn.Linear(width, channels)
        self.act = nn.GELU()
        self.permuted = spatial and channels_last
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=std, a=-2 * std, b=2 * std)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, h: Tensor) -> Tensor:
        """The adapted output, of the shape of ``h``."""
        x = h.permute(0, 3, 1, 2) if self.permuted else h
        x = self.up(self.act(self.down(x)))
        return h + (x.permute(0, 2, 3, 1) if self.permuted else x)

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the frozen layer."""
        return self(output)


@register_method("adapter", AdapterConfig)
class Adapter(Method):
    """Two bottlenecks per block: after attention or the depthwise convolution, and after the MLP, before each sum.

    Raises:
        UnsupportedModel: A family whose blocks lack either.
        S2AError: A width or reduction that does not fit it.
    """

    card = Card(
        title="Adapter",
        trains="The head and two bottlenecks per block.",
        place="On the output of attention's projection (ConvNeXt: of the depthwise convolution) and of the MLP, "
        "before the residual sum; stages 2 to 4 of Swin and ConvNeXt.",
        count="2 C w + w + C per adapter on tokens, w = C / 8 (ViT) or C / 16 (Swin); 10 C + w + C w on maps.",
        keeps="h, (N, C), and two tensors (N, w) per adapter.",
        inference="Two thin products per adapter; it cannot be merged, as the bottleneck is not linear.",
        source="Houlsby et al., ICML 2019 (google-research/adapter-bert).",
        evidence="Fitted: widths, sites and ConvNeXt's grouped 3 x 3 convolution reproduce the S2A paper's counts and "
        "memory; its text (8 times fewer channels, every block) gives twice Swin's count.",
        deviations="Norms stay frozen (the source trains them; the paper tunes only introduced modules).",
        recipe=Recipe(learning_rate=1e-2),
        style=Style(light="#b8478a", dark="#ee9ccb", shape="pentagon"),
        order=50,
    )

    def __init__(self, config: AdapterConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        stages = {block.stage for block in backbone.blocks}
        skipped = min(stages) if config.sites == "preset" and len(stages) > 1 else None
        reduction = config.reduction or (16 if len(stages) > 1 else 8)
        self.names: list[str] = []
        self.adapters = nn.ModuleList()
        self._kept: dict[str, int] = {}
        for block in backbone.blocks:
            if block.stage == skipped:
                continue
            spatial = block.layout == "NCHW"
            for name in _outputs(backbone, block):
                layer = backbone.module(name)
                width = _width(config.width, reduction, block.channels, name, spatial)
                adapter = Bottleneck(block.channels, width, config.std, spatial, isinstance(layer, nn.Linear))
                edits.after(layer, adapter.after)
                path, positions = f"adapters.{len(self.adapters)}", math.prod(block.grid_out) + block.prefix
                self._kept |= {f"{path}.down": positions * block.channels}
                self._kept |= dict.fromkeys((f"{path}.act", f"{path}.up"), positions * width)
                self.names.append(name)
                self.adapters.append(adapter)
        release_frozen_inputs(backbone.model, edits)

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes of every adapter's input, and of the input and the output of its GELU."""
        return {name: 4 * batch_size * elements for name, elements in self._kept.items()}


def _outputs(backbone: Backbone, block: Block) -> tuple[str, str]:
    """Paths of the last layers of a block's two branches: attention or depthwise convolution, and MLP."""
    mixer = block.linears.get("proj")
    if mixer is None:
        for name, module in backbone.module(block.name).named_modules():
            if isinstance(module, nn.Conv2d) and module.groups == module.out_channels == block.channels:
                mixer = f"{block.name}.{name}"
                break
    if mixer is None or "fc2" not in block.linears:
        raise UnsupportedModel(
            f"Block {block.name} of this {backbone.family} has no attention or depthwise convolution followed by an "
            "MLP, which adapters could follow; use a transformer or a ConvNeXt."
        )
    return mixer, block.linears["fc2"]


def _width(width: int, reduction: int, channels: int, name: str, spatial: bool) -> int:
    """The width w of one adapter, checked against the channels it gets."""
    if not width and channels % reduction:
        raise S2AError(
            f"reduction={reduction} does not divide the {channels} channels of {name}; "
            f"choose a divisor of {channels}, or give width itself."
        )
    width = width or channels // reduction
    if width > channels:
        raise S2AError(f"width={width} is larger than the {channels} channels of {name}; choose 1 to {channels}.")
    if spatial and channels % width:
        raise S2AError(
            f"width={width} does not divide the {channels} channels of {name}; "
            "a convolution in groups needs a width that divides those of every stage."
        )
    return width
