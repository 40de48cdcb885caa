"""Ladder side-tuning: a narrow network beside the frozen backbone, which reads the outputs of the backbone's blocks.

Sung et al., LST, NeurIPS 2022, https://arxiv.org/abs/2206.06522, section 3. With h_0 the input of the first block, h_i
the output of block i, C channels in the backbone and c = C / r in the side network:

    s_0 = W_0 h_0
    s_i = SideBlock_i(mu_i s_{i-1} + (1 - mu_i) W_i h_i),  mu_i = sigmoid(alpha_i / T)
    features = W_up pool(LayerNorm(s_L))

Written from the paper's equations; details that it leaves open follow https://github.com/ylsung/Ladder-Side-Tuning.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Literal

import torch
from s2a.backbones import Backbone, Block, Edits, Shape, called
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.registry import Method, register_method
from torch import Tensor, nn

from s2a_baselines._frozen import Tap, keep_in_evaluation, run_frozen
from s2a_baselines._side_blocks import (
    ConvBlock,
    ConvNeXtBlock,
    Downsample,
    Grid,
    Merging,
    Projection,
    TransformerBlock,
    norm_bytes,
)
from s2a_baselines._side_pruning import depthwise, prune

SideBlock = TransformerBlock | ConvNeXtBlock | ConvBlock
Transition = Merging | Downsample | Projection


@dataclasses.dataclass(frozen=True)
class LSTConfig:
    """Width, blocks and start of the side network; the defaults are the source's for base models.

    Attributes:
        reduction: r, by which every width is divided, that of heads and MLPs too; must divide the blocks' channels,
            and the result must be a multiple of the heads, whose number stays.
        keep: Which blocks have a side block and feed it: ``"all"``, every ``k``-th (the last of each k blocks), or
            a tuple of indices from 0, in forward order. The source's T5 runs with dropping leave out 0, 4 and 8 of 12.
        init: Of the side blocks: ``"random"`` (Xavier, as the original ViT), or ``"pruned"``: the largest rows of the
            backbone's own matrices (transformers and ConvNeXt).
        temperature: T of the gates mu = sigmoid(alpha / T), above 0.
    """

    reduction: int = 8
    keep: Literal["all"] | int | tuple[int, ...] = "all"
    init: Literal["random", "pruned"] = "random"
    temperature: float = 0.1

    def __post_init__(self) -> None:
        if not _whole(self.reduction, 1):
            raise S2AError(f"reduction={self.reduction!r} must be an integer of 1 or more.")
        if isinstance(self.keep, list):
            object.__setattr__(self, "keep", tuple(self.keep))
        if isinstance(self.keep, tuple):
            known = self.keep and all(_whole(i, 0) for i in self.keep) and sorted(set(self.keep)) == list(self.keep)
        else:
            known = self.keep == "all" or _whole(self.keep, 1)
        if not known:
            raise S2AError(
                f"keep={self.keep!r} names no blocks; give 'all', an integer k for every k-th block, "
                "or increasing indices from 0."
            )
        if self.init not in ("random", "pruned"):
            raise S2AError(f"init={self.init!r} is unknown; choose 'random' or 'pruned'.")
        if not 0 < self.temperature < math.inf:
            raise S2AError(f"temperature={self.temperature} must be above 0; the paper's is 0.1.")


def _whole(value: object, least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


class Gate(nn.Module):
    """mu s + (1 - mu) h with mu = sigmoid(alpha / T), a learned scalar that starts at one half."""

    def __init__(self, temperature: float) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.zeros(1))
        self.temperature = temperature

    def forward(self, s: Tensor, h: Tensor) -> Tensor:
        """The weighted mean of two tensors of one shape."""
        # h + mu (s - h) is the same sum, for which the backward pass needs only the difference.
        return h + torch.sigmoid(self.alpha / self.temperature) * (s - h)


class Step(nn.Module):
    """One step of the side network: s_i from s_{i-1} and h_i, after the transitions to another width or grid.

    Args:
        transitions: Downsampling between the stages since the step before.
        down: W_i.
        gate: mu_i.
        block: SideBlock_i.
    """

    def __init__(self, transitions: list[Transition], down: nn.Module, gate: Gate, block: SideBlock) -> None:
        super().__init__()
        self.transitions = nn.Sequential(*transitions)
        self.down = down
        self.gate = gate
        self.block = block

    def forward(self, s: Tensor, h: Tensor) -> Tensor:
        """The next side state.

        Args:
            s: Side state, in the backbone's layout and of its channels over r.
            h: Output of the backbone's block.
        """
        return self.block(self.gate(self.transitions(s), self.down(h)))


@register_method("lst", LSTConfig)
class LST(Method):
    """A side network of the backbone's own type, r times narrower, on the outputs of the backbone's blocks.

    Raises:
        UnsupportedModel: A block of unknown type, or with ``init="pruned"`` one without weights to prune.
        S2AError: A reduction that does not fit the widths, or ``keep`` that names no block.
    """

    trains_backbone = False
    card = Card(
        title="Ladder side-tuning (LST)",
        trains="The head and a side network: its blocks, gates, projections and last norm.",
        place="Beside the backbone, which runs without gradient and in evaluation mode: s_0 = W_0 h_0, then "
        "s = SideBlock_i(mu_i s + (1 - mu_i) W_i h_i) with h_i the output of block i; at the end W_up LN(s), pooled "
        "as the backbone's head pools.",
        count="With c = C / r = 96 on ViT-B: 12 (12 c^2 + 13 c) + 13 (C c + c) + 12 + 2 c + (c C + C) = 2,376,492; "
        "2,444,064 on Swin-B, 2,928,356 on ConvNeXt-B.",
        keeps="h_i, (N, C), per kept block, and all of the side network: its activations, and in windowed attention "
        "softmax outputs as large as the backbone's, since the heads are as many.",
        inference="The side network runs too: blocks of about 1 / r^2 of the cost, and a thin product for each; it "
        "cannot be merged.",
        source="Sung et al., LST, NeurIPS 2022 (ylsung/Ladder-Side-Tuning).",
        evidence="As published for transformers, from language to vision; Swin, ConvNeXt and ResNet are transfers: the "
        "source has no such side networks. Not in the S2A paper's tables.",
        deviations="Random start, as in the source's code without a given initialisation, by Xavier: timm's 0.02 suits "
        "wide layers only. The source's runs prune by Fisher information, which needs data: 'pruned' scores by weight "
        "size, takes q, k and v within each head, and chooses its index set anew at each stage. No layer scale in "
        "transformer side blocks; in ConvNeXt's it starts at 1. Between stages the side state is reduced in front of "
        "the blend, by the family's own downsampling. Pooling comes before W_up, which gives the same features; "
        "pools other than the class token are the mean over the grid.",
        # Its network is its own, and narrow: the backbone's width says nothing about its rate.
        recipe=Recipe(learning_rate=1e-2, width_power=0.0),
        style=Style(light="#6a4fb0", dark="#b7a1f5", shape="right"),
        order=80,
    )

    def __init__(self, config: LSTConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        blocks = backbone.blocks
        kept = _kept(config.keep, len(blocks))
        shapes = called(backbone.model, [block.name for block in blocks], backbone.image_size)
        layout, first = blocks[0].layout, blocks[0]
        self.class_token, self.prefix, self.layout = backbone.reads_class_token, first.prefix, layout
        width = _narrow(config.reduction, first.channels, first.heads, first.name)
        self.first = _pointwise(first.channels, width, layout)
        self._rows = {"first": first.tokens * first.channels}  # Elements that one image keeps, by path.

        # One step for every kept block; ``width`` and ``grid`` are those of the side state so far.
        taps, steps = [Tap(first.name)], []
        edits.before(backbone.module(first.name), taps[0].before)
        pending: list[Transition] = []
        grid, columns, stage = first.grid, None, first.stage
        for i, block in enumerate(blocks[: kept[-1] + 1]):
            channels = _channels(shapes[block.name][1], layout)
            narrow = _narrow(config.reduction, channels, block.heads, block.name)
            # The backbone changed its width or grid here: the side state follows, before the next kept block.
            if (narrow, block.grid_out) != (width, grid):
                pending.append(_transition(block)(width, narrow, grid, _factor(grid, block)))
            width, grid = narrow, block.grid_out
            side = _side_block(config.reduction, backbone, block, narrow, _index_in_stage(blocks, i))
            if config.init == "pruned":
                # Blocks without a side block are pruned too: the channels that they keep decide those of the next.
                columns = prune(side, backbone, block, columns if block.stage == stage else None)
                stage = block.stage
            if i not in kept:
                continue
            tap = Tap(block.name)
            edits.after(backbone.module(block.name), tap.after)
            taps.append(tap)
            self._rows[f"steps.{len(steps)}.down"] = (block.prefix + math.prod(grid)) * channels
            self._rows[f"steps.{len(steps)}.gate"] = (block.prefix + math.prod(grid)) * width
            steps.append(Step(pending, _pointwise(channels, width, layout), Gate(config.temperature), side))
            pending = []
        self.taps = nn.ModuleList(taps)
        self.steps = nn.ModuleList(steps)
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.up = nn.Linear(width, backbone.features)
        self.positions = first.prefix + math.prod(grid)
        keep_in_evaluation(backbone.model, edits)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features of the side network, ``(B, C)``."""
        # h_0, h_1, ... of the kept blocks, without gradient.
        _, (start, *maps) = run_frozen(model, images, list(self.taps))  # type: ignore[arg-type]
        s = self.first(start)  # s_0 = W_0 h_0
        for step, h in zip(self.steps, maps, strict=True):
            s = step(s, h)
        # Pooling before W_up, which is linear: the same features, with fewer positions to project.
        if self.class_token:
            return self.up(self.norm(s[:, 0].clone()))  # A view would keep all tokens alive for the backward pass.
        if self.layout == "NCHW":
            s = s.permute(0, 2, 3, 1)
        s = self.norm(s)
        return self.up(s[:, self.prefix :].mean(1) if self.layout == "NLC" else s.mean((1, 2)))

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Bytes of the tapped maps, of the gates' differences, and of what the side network's own layers save."""
        kept = {path: 4 * batch_size * elements for path, elements in self._rows.items()}
        for i, step in enumerate(self.steps):
            kept[f"steps.{i}.gate"] += 4  # mu itself
            parts: dict[str, Transition | SideBlock] = {"block": step.block}  # type: ignore[dict-item]
            parts |= {f"transitions.{j}": part for j, part in enumerate(step.transitions)}  # type: ignore[arg-type]
            for path, part in parts.items():
                for inner, size in part.keeps(batch_size).items():
                    kept[f"steps.{i}.{path}.{inner}".removesuffix(".")] = size
        width = self.up.in_features
        kept["norm"] = norm_bytes(batch_size, 1 if self.class_token else self.positions, width)
        return kept | {"up": 4 * batch_size * width}


def _kept(keep: str | int | tuple[int, ...], count: int) -> list[int]:
    """Indices of the blocks that have a side block."""
    if keep == "all":
        return list(range(count))
    kept = list(keep) if isinstance(keep, tuple) else list(range(int(keep) - 1, count, int(keep)))
    if not kept or kept[-1] >= count:
        allowed = f"indices from 0 to {count - 1}" if isinstance(keep, tuple) else f"1 to {count}, or 'all'"
        raise S2AError(f"keep={keep!r} does not fit a backbone of {count} blocks; choose {allowed}.")
    return kept


def _narrow(reduction: int, channels: int, heads: int, name: str) -> int:
    """The width c = C / r of the side network where the backbone has ``channels``, checked against the heads."""
    if channels % (reduction * max(heads, 1)):
        what = f"width {channels // heads} of the {heads} heads" if heads else f"{channels} channels"
        size = channels // max(heads, 1)
        raise S2AError(f"reduction={reduction} does not divide the {what} of {name}; choose a divisor of {size}.")
    return channels // reduction


def _index_in_stage(blocks: tuple[Block, ...], index: int) -> int:
    return sum(block.stage == blocks[index].stage for block in blocks[:index])


def _channels(shape: Shape, layout: str) -> int:
    return shape[1] if layout == "NCHW" else shape[-1]


def _pointwise(channels: int, width: int, layout: str) -> nn.Module:
    """W_i, initialised as torch does by default, as in the source."""
    return nn.Conv2d(channels, width, 1) if layout == "NCHW" else nn.Linear(channels, width)


def _side_block(reduction: int, backbone: Backbone, block: Block, width: int, index: int) -> SideBlock:
    """A narrow block of the same type as ``block``."""
    norm = block.parts.get("mlp_norm")
    eps = float(getattr(backbone.module(norm), "eps", 1e-6)) if norm else 1e-6
    # Transformers: every second block of a stage has shifted windows, as in Swin.
    if block.layout != "NCHW" and block.heads:
        fc2 = block.linears.get("fc2")
        hidden = _inputs(backbone.module(fc2)) // reduction if fc2 else 4 * width
        positions = block.tokens if block.layout == "NLC" else block.grid
        return TransformerBlock(
            width, block.heads, max(hidden, 1), positions, max(block.window or (0,)), index % 2 == 1, eps
        )
    # ConvNeXt: a depthwise convolution and an MLP.
    if block.layout == "NCHW" and {"fc1", "fc2"} <= block.linears.keys():
        conv = depthwise(backbone, block)
        if conv is not None:
            hidden = _inputs(backbone.module(block.linears["fc2"])) // reduction
            return ConvNeXtBlock(width, hidden, conv.kernel_size[0], block.grid, eps)
    # ResNet: a residual chain of two or three convolutions.
    names = [block.linears[role] for role in ("conv1", "conv2", "conv3") if role in block.linears]
    if block.layout == "NCHW" and len(names) > 1:
        layers = []
        for name in names:
            conv = backbone.module(name)
            channels, groups = int(conv.out_channels), int(conv.groups)  # type: ignore[arg-type]
            if channels % (reduction * groups):
                raise S2AError(
                    f"reduction={reduction} does not divide the {channels // groups} channels of each of {name}'s "
                    f"{groups} group(s); choose a divisor of {channels // groups}."
                )
            layers.append((channels // reduction, int(conv.kernel_size[0]), groups))  # type: ignore[index]
        return ConvBlock(width, layers, block.grid_out)
    raise UnsupportedModel(
        f"Block {block.name} of this {backbone.family} is neither a transformer block, nor a ConvNeXt block, nor a "
        "residual chain of convolutions; LST has no side block of its type."
    )


def _inputs(layer: nn.Module) -> int:
    """Input channels of a linear layer or 1 x 1 convolution."""
    return int(layer.weight.shape[1])  # type: ignore[index, union-attr]


def _transition(block: Block) -> Callable[[int, int, Grid, Grid], Transition]:
    """The class of the downsampling in front of ``block``: that of the block's family."""
    if block.layout == "NHWC":
        return Merging
    if block.layout == "NCHW":
        return Downsample if "fc1" in block.linears else Projection
    raise UnsupportedModel(f"Block {block.name} gets tokens of another width than the block before; LST needs one.")


def _factor(grid: Grid, block: Block) -> Grid:
    """Height and width of the patches of ``grid`` that become one position of the block's output."""
    # ConvNeXt's downsampling drops an incomplete patch at the edge; Swin's and ResNet's pad it.
    whole = block.layout == "NCHW" and "fc1" in block.linears

    def one(before: int, after: int) -> int:
        for factor in range(1, before + 1):
            if (before // factor if whole else -(-before // factor)) == after:
                return factor
        raise UnsupportedModel(f"LST cannot bring a map of {grid} positions to the {block.grid_out} of {block.name}.")

    return one(grid[0], block.grid_out[0]), one(grid[1], block.grid_out[1])
