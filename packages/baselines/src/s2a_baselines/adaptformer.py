"""AdaptFormer: a bottleneck in parallel with the MLP of every block.

Chen et al., AdaptFormer, NeurIPS 2022, https://arxiv.org/abs/2205.13535, section 3.2;
https://github.com/ShoufaChen/AdaptFormer. With x the input of the norm in front of the MLP, a block's second half is
x + MLP(norm(x)) + s * W_up dropout(ReLU(W_down x)), with s = 0.1.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from s2a.activations import release_frozen_inputs
from s2a.backbones import Backbone, Block, BlockRun, Edits, called, channel_axis, run_block, state_of
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.lean import LeanOptions
from s2a.registry import Method, register_method
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class AdaptFormerConfig(LeanOptions):
    """Width and scale of the bottlenecks; the defaults are the AdaptFormer paper's.

    Attributes:
        width: Channels w of the bottleneck, 1 or more, the same in every block.
        scale: Factor of what is added to the MLP's output, above 0.
        dropout: Probability of dropping one of the w channels at a position in training, in [0, 1).
    """

    width: int = 64
    scale: float = 0.1
    dropout: float = 0.1

    def __post_init__(self) -> None:
        self.check_lean()
        if not isinstance(self.width, int) or isinstance(self.width, bool) or self.width < 1:
            raise S2AError(f"width={self.width!r} is not a size; give an integer of at least 1 (the paper's is 64).")
        if not 0 < self.scale < math.inf:
            raise S2AError(f"scale={self.scale} must be above 0 and finite; the paper's is 0.1.")
        if not 0 <= self.dropout < 1:
            raise S2AError(f"dropout={self.dropout} is out of range; give a probability in [0, 1).")


class Parallel(nn.Module):
    """scale * (W_up dropout(ReLU(W_down x + b_down)) + b_up), added to the MLP's output. Starts at zero.

    x is the input of the norm in front of the MLP. A pre-hook of the norm leaves it with the running block, and the
    hook of the MLP takes it, so that it lives no longer than the block's own reference to it; a block that runs again
    (gradient checkpointing) leaves it again.

    Args:
        channels: C of x.
        config: Width w, scale and dropout.
        maps: x is ``(B, C, H, W)`` and both layers are 1 x 1 convolutions; otherwise ``(..., C)``, and both linear.
        block: The block that both are in.
    """

    reads_output_only = True  # Lean branches do not have the input that a hook is given.

    def __init__(self, channels: int, config: AdaptFormerConfig, maps: bool, block: nn.Module) -> None:
        super().__init__()
        width = config.width
        self.down: nn.Module = nn.Conv2d(channels, width, 1) if maps else nn.Linear(channels, width)
        self.act = nn.ReLU()
        self.dropout = nn.Dropout(config.dropout) if config.dropout else nn.Identity()
        self.up: nn.Module = nn.Conv2d(width, channels, 1) if maps else nn.Linear(width, channels)
        self.scale = config.scale
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))  # type: ignore[arg-type]
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)  # type: ignore[arg-type]
        self._block = (block,)  # In a tuple: it is no part of the bottleneck.

    def forward(self, x: Tensor) -> Tensor:
        """What is added, of the shape of ``x``."""
        return self.scale * self.up(self.dropout(self.act(self.down(x))))

    def before_norm(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of the norm: leaves x with the running block."""
        run: BlockRun | None = state_of(self._block[0])
        if run is not None:
            run.leave(self, args[0])

    def after_mlp(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the MLP: adds to its output and lets x go.

        Raises:
            S2AError: The MLP was called without its block.
        """
        run: BlockRun | None = state_of(self._block[0])
        x = None if run is None else run.take(self)
        if x is None:
            raise S2AError(
                "AdaptFormer's bottleneck beside an MLP reads the input of the norm in front of it; call or checkpoint "
                "the whole block, not its MLP alone."
            )
        return output + self(x)


@register_method("adaptformer", AdaptFormerConfig)
class AdaptFormer(Method):
    """One bottleneck per block, from the stream in front of the MLP's norm to the MLP's output.

    Raises:
        UnsupportedModel: A block without an MLP that follows a norm.
    """

    identity_at_start = True
    reads_stream = True
    card = Card(
        title="AdaptFormer",
        trains="The head and one bottleneck per block.",
        place="In parallel with the norm and MLP of every block: MLP(norm(x)) + 0.1 W_up dropout(ReLU(W_down x)).",
        count="2 C w + w + C per block, w = 64: 1,189,632 on ViT-B/16, 1,553,664 on Swin-B, 2,330,496 on ConvNeXt-B.",
        keeps="Per block x, (N, C), which after the first block the frozen norm keeps too, two tensors (N, w) and "
        "dropout's mask.",
        inference="Two thin products per block; it cannot be merged, as the bottleneck is not linear.",
        source="Chen et al., AdaptFormer, NeurIPS 2022 (ShoufaChen/AdaptFormer).",
        evidence="As published on ViT and Swin; the S2A paper has no row. ConvNeXt is a transfer: x is the depthwise "
        "convolution's output. ResNet has no MLP and is refused.",
        deviations="No BatchNorm1d without affine before the head, which the source's code adds: heads are the "
        "same for all methods. The bottleneck is added to the MLP's output, so before layer scale and stochastic "
        "depth where a block has them; the source adds it after them, and its ViT has no layer scale.",
        recipe=Recipe(learning_rate=1e-2, searched_rates=(1e-3, 1e-2, 1e-1), searched_option=("scale", (0.1, 1.0))),
        style=Style(light="#a02c2c", dark="#ff9a94", shape="star"),
        order=55,
    )

    def __init__(self, config: AdaptFormerConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        paths = [path for block in backbone.blocks for path in block.parts.values()]
        shapes = called(backbone.model, paths, backbone.image_size)
        self.adapters = nn.ModuleList()
        self._positions: list[tuple[int, int]] = []
        for block in backbone.blocks:
            shape, axis = _stream(backbone, block, shapes)
            module = backbone.module(block.name)
            adapter = Parallel(block.channels, config, axis == 1 and len(shape) == 4, module)
            edits.override(module, "forward", run_block)
            edits.before(backbone.module(block.parts["mlp_norm"]), adapter.before_norm)
            edits.after(backbone.module(block.parts["mlp"]), adapter.after_mlp)
            self._positions.append((math.prod(shape) // block.channels, block.channels))
            self.adapters.append(adapter)
        self.width = config.width
        release_frozen_inputs(backbone.model, edits)

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes of the inputs of ``down`` and ``up``, the output of the ReLU, and in training dropout's mask."""
        kept: dict[str, int] = {}
        for i, (adapter, (positions, channels)) in enumerate(zip(self.adapters, self._positions, strict=True)):
            hidden = batch_size * positions * self.width
            kept[f"adapters.{i}.down"] = 4 * batch_size * positions * channels
            kept[f"adapters.{i}.act"] = kept[f"adapters.{i}.up"] = 4 * hidden
            if self.training and isinstance(adapter.dropout, nn.Dropout):
                # The fused kernel of accelerators saves booleans, the CPU's saves float factors.
                on_cpu = next(adapter.parameters()).device.type == "cpu"
                kept[f"adapters.{i}.dropout"] = (4 if on_cpu else 1) * hidden
        return kept


def _stream(backbone: Backbone, block: Block, shapes: dict[str, Any]) -> tuple[tuple[int, ...], int]:
    """Input shape of the norm in front of a block's MLP for one image, and the axis of its channels."""
    norm, mlp = block.parts.get("mlp_norm"), block.parts.get("mlp")
    # ``called`` lists modules as they finish: a norm behind the MLP (post-norm blocks) comes after it.
    order = list(shapes)
    if norm is None or mlp is None or order.index(norm) > order.index(mlp):
        raise UnsupportedModel(
            f"Block {block.name} of this {backbone.family} has no MLP that follows a norm, with which "
            "AdaptFormer's bottleneck could run in parallel; use a pre-norm transformer or a ConvNeXt."
        )
    shape, axis = shapes[norm][0], channel_axis(backbone.module(norm))
    if shape != shapes[mlp][1] or shape[axis] != block.channels:
        raise UnsupportedModel(
            f"Block {block.name} of this {backbone.family}: {norm} gets {shape} and {mlp} outputs {shapes[mlp][1]}, "
            f"which are not both of the block's {block.channels} channels on axis {axis}; AdaptFormer needs that."
        )
    return shape, axis
