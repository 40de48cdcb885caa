"""S2A: Structure-Activation Synergy, composed from its two halves (paper sections 3.1 and 3.2)."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from s2a.activations import quantize_activations, release_frozen_inputs
from s2a.backbones import Backbone, Block, Edits, pooled_features
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.lean.options import LeanOptions, later_option
from s2a.ops.pack import BITS, packed_bytes
from s2a.ops.pointwise import LEVEL_KINDS
from s2a.registry import Method, register_method
from s2a.structure.bias import additive_biases
from s2a.structure.low_rank_prompt import LowRankPrompt, max_rank
from s2a.structure.low_rank_update import LowRankUpdates, gain_of, largest_rank
from s2a.structure.side_branch import LiteSideBranch, Tap

Activations = Literal["exact", "paper", "lean"]

UPDATED = ("qkv", "proj", "fc1", "fc2")
"""Layers of a block that can get a low-rank update; a family has some of them."""

GAINS_WITHOUT_ATTENTION = 3.0
"""Unit of ``update_scale`` in blocks without attention. With attention twice a layer's gain may end at chance; without,
three to five gains are better than one on every structured task, and eight may end at chance (docs/plus.md)."""


@dataclasses.dataclass(frozen=True)
class S2AConfig(LeanOptions):
    """S2A's parts and sizes; the defaults are the paper's (section 4.1).

    Attributes:
        lrp_rank: r of the Low-Rank Prompt y = x + AB, equation 3. 0 switches the prompt off. Sites whose
            min(N, C) is smaller take that, which is full rank.
        lsb_reduction: Channels averaged into one for the Lite Side Branch, equation 5. 0 switches the branch off.
        train_bias: Train every additive bias of the backbone.
        activations: What the backward pass keeps. ``"exact"``: full precision. ``"paper"``: softmax outputs and
            activation inputs in ``bits`` bits (section 3.2). ``"lean"``: everything small, see ``LeanOptions``, which
            has the memory budgets too.
        bits: 1, 2, 3, 4 or 8.
        levels: ``"derivative"``: cells fitted to the derivative; ``"paper"``: equation 12's sine on a uniform grid.
            The same bytes; the default's gradients measure closer to the exact ones (docs/memory.md).
        sites: Blocks that get a prompt and a tap: ``"preset"`` (what reproduces the paper's counts; see
            ``preset_sites``), ``"all"``, or indices over all blocks.
        lrp_shape: Positions with an own prompt: ``"preset"`` (windows where attention has windows, else the map),
            ``"map"`` or ``"window"``.
        lrp_std: Standard deviation of B at the start.
        lsb_activation: ``"none"`` (equation 6 to the letter) or ``"gelu"`` after the depthwise convolution. The paper
            leaves it open ("for simplicity"); without one was better on the mini suite's validation images.
        update_rank: r of a low-rank update of frozen linear layers, W + s B A (equation 15), in every block; the
            smaller side of layers that are smaller. 0 switches updates off. The paper's S2A has none; with
            ``activations="lean"`` they keep not one byte more.
        update_targets: Updated layers of every block that has them: ``"all"`` of ``UPDATED``, or some of these.
        update_scale: s in units of the layer's own gain, ``|W| / sqrt(out)``, in a block with attention, and of three
            gains in one without (docs/plus.md).
        presets: Options by the name of what they make: ``"paper"``, the defaults, and ``"plus"``, S2A with updates
            (docs/plus.md); ``s2a.method_config("s2a", preset="plus")``.
    """

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "paper": {},
        "plus": {"activations": "lean", "lrp_rank": 4, "update_rank": 8},
    }

    lrp_rank: int = 30
    lsb_reduction: int = 8
    train_bias: bool = True
    activations: Activations = "paper"  # type: ignore[assignment]
    bits: int = 4
    levels: Literal["paper", "derivative"] = "derivative"
    sites: str | tuple[int, ...] = "preset"
    lrp_shape: Literal["preset", "map", "window"] = "preset"
    lrp_std: float = 0.02
    lsb_activation: Literal["gelu", "none"] = "none"
    update_rank: int = later_option(0)
    update_targets: str | tuple[str, ...] = later_option("all")
    update_scale: float = later_option(1.0)

    def __post_init__(self) -> None:
        for name in ("lrp_rank", "lsb_reduction", "update_rank"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise S2AError(f"{name}={value!r} is not a size; give an integer of 1 or more, or 0 to switch it off.")
        if not isinstance(self.train_bias, bool):
            raise S2AError(f"train_bias={self.train_bias!r} must be True or False.")
        self.check_lean("paper")
        _choice("bits", self.bits, BITS)
        _choice("levels", self.levels, LEVEL_KINDS)
        _choice("lrp_shape", self.lrp_shape, ("preset", "map", "window"))
        _choice("lsb_activation", self.lsb_activation, ("gelu", "none"))
        if isinstance(self.sites, list):
            object.__setattr__(self, "sites", tuple(self.sites))
        if isinstance(self.sites, str):
            _choice("sites", self.sites, ("preset", "all"))
        elif (
            not isinstance(self.sites, tuple)
            or not self.sites
            or any(type(i) is not int for i in self.sites)
            or sorted(set(self.sites)) != list(self.sites)
        ):
            raise S2AError(f"sites={self.sites} must be ascending block indices without repeats, 'preset' or 'all'.")
        self._check_updates()
        if not self.lrp_std > 0:
            raise S2AError(f"lrp_std={self.lrp_std} must be above 0: with A zero too, the prompt could never learn.")

    def _check_updates(self) -> None:
        scale, targets = self.update_scale, self.update_targets
        if isinstance(scale, bool) or not isinstance(scale, int | float) or not 0 < scale < math.inf:
            raise S2AError(f"update_scale={scale!r} must be a number above 0; 1 is the usual scale.")
        if targets != "all":
            named = (targets,) if isinstance(targets, str) else targets
            wrong = not isinstance(named, list | tuple) or any(name not in UPDATED for name in named)
            if wrong or not named or len(set(named)) < len(named):
                raise S2AError(
                    f"update_targets={targets!r} must name each of its layers once; choose from {', '.join(UPDATED)}, "
                    "or 'all'."
                )
            # In one order, so that the same method is one cell.
            ordered = tuple(name for name in UPDATED if name in named)
            object.__setattr__(self, "update_targets", "all" if ordered == UPDATED else ordered)
        if not self.update_rank:  # Of no effect then, whatever they are.
            object.__setattr__(self, "update_targets", "all")
            object.__setattr__(self, "update_scale", 1.0)


def _choice(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if type(value) not in {type(one) for one in allowed} or value not in allowed:
        raise S2AError(f"{name}={value!r} is unknown; choose one of {', '.join(map(repr, allowed))}.")


def preset_sites(backbone: Backbone) -> tuple[Block, ...]:
    """The blocks with prompt and tap that reproduce the paper's parameter counts.

    Every block of a plain ViT. Hierarchical models leave their first stage out; convolutional ones also take only
    every third block of a stage of more than nine (ConvNeXt-B: 3 + 9 + 3 sites). The paper does not state its sites:
    these were fitted to Table 1's parameters and memory.
    """
    stages = sorted({b.stage for b in backbone.blocks})
    if len(stages) == 1:
        return backbone.blocks
    sites: list[Block] = []
    for stage in stages[1:]:
        blocks = [b for b in backbone.blocks if b.stage == stage]
        sites += blocks[2::3] if len(blocks) > 9 and blocks[0].layout == "NCHW" else blocks
    return tuple(sites)


def _sites(config: S2AConfig, backbone: Backbone) -> tuple[Block, ...]:
    if config.sites == "preset":
        return preset_sites(backbone)
    if config.sites == "all":
        return backbone.blocks
    count = len(backbone.blocks)
    if any(not 0 <= int(i) < count for i in config.sites):
        raise S2AError(f"sites={config.sites} goes beyond the {count} blocks of the model; use 0 to {count - 1}.")
    return tuple(backbone.blocks[int(i)] for i in config.sites)


def _update_targets(config: S2AConfig, backbone: Backbone) -> list[tuple[str, int, float]]:
    """Paths of the layers that are updated, each with rank, at most the layer's smaller side, and scale.

    Scales are in units of the layers' own gains, so that one learning rate moves the layers of all backbones alike,
    those of blocks without attention further.
    """
    wanted = UPDATED if config.update_targets == "all" else config.update_targets
    found: list[tuple[str, int, float]] = []
    for block in backbone.blocks:
        for role in wanted:
            if role in block.linears:
                path = block.linears[role]
                layer = backbone.module(path)
                rank = min(config.update_rank, largest_rank(layer, path))
                gains = 1.0 if block.heads or "qkv" in block.linears else GAINS_WITHOUT_ATTENTION
                found.append((path, rank, config.update_scale * gains * gain_of(layer)))
    if not found:
        raise UnsupportedModel(
            f"update_targets={config.update_targets}: no block of this {backbone.family} has such a layer; "
            "set update_rank=0 to switch updates off."
        )
    return found


@register_method("s2a", S2AConfig)
class S2A(Method):
    """Biases, Low-Rank Prompts and the Lite Side Branch on a backbone with quantised non-parametric layers."""

    identity_at_start = True
    card = Card(
        title="S2A",
        trains="The head, every additive bias, Low-Rank Prompts, the Lite Side Branch; with preset=plus low-rank "
        "updates of every linear layer of a block too.",
        place="A prompt on the input of every site, a tap of the side branch in front of it; sites are all blocks of a "
        "ViT, stages 2 to 4 of Swin, every third block of stage 3 and all of stages 2 and 4 in ConvNeXt.",
        count="r (N + C) per prompt; 2 (c^2 + c) + 10 c per branch site, c = C / 8; the head reads C + c. "
        "r (in + out) per update.",
        keeps="Three tensors (N, c) per branch site; nothing for biases and prompts; for an update its layer's input "
        "and A x, (N, r), nothing with lean activations. Softmax outputs and activation inputs of the backbone in "
        "4 bits.",
        inference="An addition per prompt and the side branch, which cannot be merged; without both, biases and "
        "updates can.",
        source="Structure-Activation Synergy, arXiv:2503.08154, sections 3.1 and 3.2; no code is published.",
        evidence="ViT as published; Swin (weak) and ConvNeXt (strong) fitted to the paper's counts and memory.",
        deviations='levels="derivative" instead of equation 12 by default: the same bytes, closer gradients. No '
        "normalisation or activation in the branch, which the paper leaves open.",
        recipe=Recipe(learning_rate=1e-2),
        style=Style(light="#d1480a", dark="#ff8f4a", shape="circle"),
        order=90,
        compared_by_default=True,
        step_time=1.3,
    )

    def __init__(self, config: S2AConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        self.bits = config.bits if config.activations == "paper" else None
        sites = _sites(config, backbone)
        if config.train_bias:
            for bias in additive_biases(backbone.model).values():
                edits.train(bias)
        self.prompts = nn.ModuleList()
        self.branch: LiteSideBranch | None = None
        if config.lsb_reduction:
            # Taps come before prompts: the branch sees the block's own input.
            self.branch = LiteSideBranch(sites, config.lsb_reduction, config.lsb_activation)
            self.feature_dim += self.branch.width
            for i, block in enumerate(sites):
                edits.before(backbone.module(block.name), Tap(self.branch, i).before)
        if config.lrp_rank:
            self._add_prompts(config, sites, backbone, edits)
        self.updates: LowRankUpdates | None = None
        if config.update_rank:
            self.updates = LowRankUpdates(backbone, edits, _update_targets(config, backbone), keep_scales=True)
        release_frozen_inputs(backbone.model, edits)
        if config.activations == "paper":
            for part in (backbone.model, self.branch):
                if part is not None:
                    quantize_activations(part, config.bits, config.levels, edits=edits)
        self.lean = config.activations == "lean"

    def _add_prompts(self, config: S2AConfig, sites: tuple[Block, ...], backbone: Backbone, edits: Edits) -> None:
        windows = [None if config.lrp_shape == "map" else block.window for block in sites]
        if config.lrp_shape == "window" and not all(windows):
            raise S2AError(f"lrp_shape='window' needs windowed attention, which {backbone.family} lacks; use 'map'.")
        limits = [max_rank(block, w) for block, w in zip(sites, windows, strict=True)]
        if config.lrp_rank > max(limits):
            raise S2AError(
                f"lrp_rank={config.lrp_rank} is larger than min(N, C) = {max(limits)} of every site of this model; "
                f"choose 1 to {max(limits)}, or 0 to switch the prompt off."
            )
        for block, window, limit in zip(sites, windows, limits, strict=True):
            prompt = LowRankPrompt(block, min(config.lrp_rank, limit), config.lrp_std, window)
            self.prompts.append(prompt)
            edits.before(backbone.module(block.name), prompt.before)

    def keeps(self, batch_size: int) -> dict[str, int]:
        """What the side branch and the updates hold; biases and prompts need no activation."""
        kept: dict[str, int] = {}
        bits = self.bits
        if self.branch is not None:
            branch = self.branch.keeps(batch_size, lambda n: 4 * n if bits is None else packed_bytes(n, bits))
            kept |= {f"branch.{name}": size for name, size in branch.items()}
        if self.updates is not None:
            kept |= {f"updates.{name}": size for name, size in self.updates.keeps(batch_size).items()}
        return kept

    def why_no_fold(self) -> str | None:
        """Biases and updates are of the backbone's form; prompts and the side branch are not."""
        if self.branch is None and not len(self.prompts):
            return None
        return (
            "S2A with prompts or the side branch cannot be merged: they are not of the backbone's form; keep the "
            "adapted model, or save it with s2a.save. With lrp_rank=0 and lsb_reduction=0 it can be merged."
        )

    def fold(self, model: nn.Module) -> None:
        """Writes the updates into the weights, where there is neither prompt nor side branch."""
        if why := self.why_no_fold():
            raise S2AError(why)
        if self.updates is not None:
            self.updates.fold(model)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Backbone features, and the side branch's behind them, ``(B, C + c)``."""
        if self.branch is None:
            return pooled_features(model, images)
        run = self.branch.new_run(at_once=self.lean)
        features = pooled_features(model, images, [(self.branch, run)])
        return torch.cat([features, run.finish()], dim=1)
