"""Visual prompt tuning: learned tokens, or learned pixels, added to the input of frozen blocks.

Jia et al., VPT, ECCV 2022, https://arxiv.org/abs/2203.12119, section 3.2; https://github.com/KMnP/vpt. With class token
x, prompts P and patch tokens E of block i:

    deep:     [x_i, _, E_i] = Block_i([x_{i-1}, P_{i-1}, E_{i-1}])
    shallow:  [x_1, Z_1, E_1] = Block_1([x_0, P, E_0]),  [x_i, Z_i, E_i] = Block_i([x_{i-1}, Z_{i-1}, E_{i-1}])

The form of a prompt follows the layout of a block's input: tokens of a sequence or of every attention window, or a ring
around a map. Their sites on Swin and ConvNeXt were fitted: they reproduce the S2A paper's VPT rows.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from s2a.activations import release_frozen_inputs
from s2a.backbones import Backbone, Block, Edits, evaluating, pooled_features
from s2a.card import Card, Recipe, Style
from s2a.errors import S2AError, UnsupportedModel
from s2a.lean import LeanOptions
from s2a.registry import Method, register_method
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class VPTConfig(LeanOptions):
    """Number and sites of the prompts; the defaults are those of the S2A paper's VPT rows.

    Attributes:
        prompts: Tokens n in front of a sequence or of every window, at least 1 (transformers).
        deep: Fresh prompts at every prompted block. False: the published shallow form, where each family has one; see
            the card.
        sites: ``"preset"`` (all blocks of a plain ViT, all but the first stage's elsewhere) or ``"all"``. A shallow
            ring is around the image, whatever is given here.
        ring: Width p of the ring around a map in positions, or around the image in pixels; at least 1 (convolutional
            networks).
        dropout: Probability of dropping an element of a prompt in training, in [0, 1).
    """

    prompts: int = 50
    deep: bool = True
    sites: Literal["preset", "all"] = "preset"
    ring: int = 1
    dropout: float = 0.0

    def __post_init__(self) -> None:
        self.check_lean()
        for name in ("prompts", "ring"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise S2AError(f"{name}={value!r} is not a size; give an integer of 1 or more.")
        if not isinstance(self.deep, bool):
            raise S2AError(f"deep={self.deep!r} must be True or False.")
        if self.sites not in ("preset", "all"):
            raise S2AError(f"sites={self.sites!r} is unknown; choose 'preset' or 'all'.")
        if not 0 <= self.dropout < 1:
            raise S2AError(f"dropout={self.dropout} is out of range; give a probability in [0, 1).")


class TokenPrompts(nn.Module):
    """n tokens after the class and register tokens of a sequence, removed again after a block (shallow: the last one).

    Args:
        count: n.
        channels: C.
        prefix: Class and register tokens.
        bound: The start is uniform in [-bound, bound].
        dropout: An image's own.
    """

    def __init__(self, count: int, channels: int, prefix: int, bound: float, dropout: float) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(count, channels).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        self.prefix = prefix

    def insert(self, x: Tensor) -> Tensor:
        """``(B, P + N, C)`` to ``(B, P + n + N, C)``."""
        prompts = self.dropout(self.prompts.to(x.dtype).expand(x.shape[0], -1, -1))
        return torch.cat([x[:, : self.prefix], prompts, x[:, self.prefix :]], 1)

    def strip(self, x: Tensor) -> Tensor:
        """``(B, P + n + N, C)`` to ``(B, P + N, C)``: removes the outputs at the prompts' positions."""
        return torch.cat([x[:, : self.prefix], x[:, self.prefix + len(self.prompts) :]], 1)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of a block."""
        return (self.insert(args[0]), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a block."""
        return self.strip(output)

    def mask_elements(self, batch_size: int) -> int:
        """Elements of the dropout's mask."""
        return batch_size * self.prompts.numel()


def _refuse_intermediates(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise S2AError(
        "Between the blocks of shallow VPT there are prompts beside the positions, which timm's forward_intermediates "
        "would take for positions; use deep=True, or hooks on the blocks."
    )


class WindowPrompts(nn.Module):
    """n tokens in front of every attention window, added before attention and removed after it.

    Args:
        count: n.
        channels: C.
        bound: The start is uniform in [-bound, bound].
        dropout: One mask for all windows and images, as in the source.
    """

    def __init__(self, count: int, channels: int, bound: float, dropout: float) -> None:
        super().__init__()
        self.prompts = nn.Parameter(torch.empty(count, channels).uniform_(-bound, bound))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of an attention module on windows ``(B * windows, w * w, C)``."""
        x = args[0]
        prompts = self.dropout(self.prompts.to(x.dtype)).expand(x.shape[0], -1, -1)
        return (torch.cat([prompts, x], 1), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of the attention module."""
        return output[:, len(self.prompts) :].contiguous()  # The block views it as windows.

    def mask_elements(self, batch_size: int) -> int:
        """Elements of the dropout's mask."""
        return self.prompts.numel()


def _padded_bias(self: Any) -> Tensor:
    """Relative-position bias ``(1, heads, n + N, n + N)``: prompts have no position, so theirs is zero."""
    return F.pad(type(self)._get_rel_pos_bias(self), (self.s2a_prompts, 0, self.s2a_prompts, 0))


def _padded_mask(self: Any, x: Tensor | None = None, *args: Any, **kwargs: Any) -> Tensor | None:
    """Shift mask ``(windows, n + N, n + N)``: every token of a window sees its prompts, whatever region it is from."""
    mask = self.attn_mask  # ``None`` where nothing shifts, or where the block makes its mask anew each time.
    mask = type(self).get_attn_mask(self, x, *args, **kwargs) if mask is None else mask
    return None if mask is None else F.pad(mask, (self.s2a_prompts, 0, self.s2a_prompts, 0))


class RingPrompts(nn.Module):
    """A ring of p positions around a map, cropped again after a block.

    Storage: one row per channel with the positions of the ring's top, bottom, left and right part one after the other;
    top and bottom include the corners.

    Args:
        channels: C.
        grid: Height h and width w of the map.
        width: p.
        dropout: An image's own.
        scale: Mean and deviation of every channel: the ring is of pixels, uniform in [0, 1] at the start, and
            normalised as images are. ``None``: of features, zero at the start.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        width: int,
        dropout: float,
        scale: tuple[Sequence[float], Sequence[float]] | None = None,
    ) -> None:
        super().__init__()
        self.grid, self.width, self.pixels = grid, width, scale is not None
        rows, columns = width * (grid[1] + 2 * width), width * grid[0]
        self.sizes = (rows, rows, columns, columns)  # Top, bottom, left, right.
        self.prompts = nn.Parameter(torch.zeros(channels, sum(self.sizes)))
        self.dropout = nn.Dropout(dropout) if dropout else nn.Identity()
        if scale is not None:
            nn.init.uniform_(self.prompts)
            self.register_buffer("mean", torch.tensor(scale[0]).unsqueeze(1), persistent=False)
            self.register_buffer("std", torch.tensor(scale[1]).unsqueeze(1), persistent=False)

    def pad(self, x: Tensor) -> Tensor:
        """``(B, C, h, w)`` to ``(B, C, h + 2 p, w + 2 p)``.

        Raises:
            S2AError: A map of another size than the ring was made for.
        """
        height, width = x.shape[-2:]
        if (height, width) != self.grid:
            raise S2AError(
                f"The ring was made for {self.grid[0]} x {self.grid[1]} positions and gets {height} x {width}; "
                "give images of the size that attach was given as image_size."
            )
        # Pixels in [0, 1] are normalised as the images are; features are taken as they are.
        ring = (self.prompts - self.mean) / self.std if self.pixels else self.prompts
        ring = self.dropout(ring.to(x.dtype).expand(x.shape[0], -1, -1))
        # Left and right beside the map first, then top and bottom across the full width.
        top, bottom, left, right = ring.split(self.sizes, 2)
        across, down = (self.width, width + 2 * self.width), (height, self.width)
        middle = torch.cat([left.unflatten(2, down), x, right.unflatten(2, down)], 3)
        return torch.cat([top.unflatten(2, across), middle, bottom.unflatten(2, across)], 2)

    def crop(self, x: Tensor) -> Tensor:
        """``(B, C, h + 2 p, w + 2 p)`` to ``(B, C, h, w)``."""
        p = self.width
        return x[..., p:-p, p:-p].contiguous()

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of a block."""
        return (self.pad(args[0]), *args[1:])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        """Forward hook of a block."""
        return self.crop(output)

    def mask_elements(self, batch_size: int) -> int:
        """Elements of the dropout's mask."""
        return batch_size * self.prompts.numel()


@register_method("vpt", VPTConfig)
class VPT(Method):
    """Prompts at the inputs of all prompted blocks (deep) or of the first one (shallow).

    Raises:
        UnsupportedModel: A convolutional network without a block that keeps the size of its map, or windowed attention
            of another kind than Swin's.
    """

    card = Card(
        title="Visual prompt tuning (VPT)",
        trains="The head and the prompts.",
        place="ViT: n tokens between class and patch tokens of every block, removed after it (shallow: from the first "
        "block to the last). Swin: n tokens in front of every window, inside attention only, stages 2 to 4 "
        "(shallow: the first of those blocks). ConvNeXt, ResNet: a ring of p positions around the input of every "
        "block of stages 2 to 4 that keeps its map's size, cropped after it (shallow: p pixels around the image).",
        count="n C per block on tokens, n = 50; ((h + 2 p) (w + 2 p) - h w) C on an h x w map, p = 1.",
        keeps="Nothing of its own (with dropout, its mask). The backbone's tensors grow: attention by n tokens, "
        "ViT's MLP too, maps by the ring.",
        inference="The longer sequences and larger maps stay; it cannot be merged.",
        source="Jia et al., VPT, ECCV 2022 (KMnP/vpt).",
        evidence="ViT as published. Swin and ConvNeXt fitted: sites, prompts inside attention only and the one-pixel "
        "deep ring reproduce the S2A paper's counts and memory. The paper has no ResNet row: the same ring.",
        deviations="Swin: the source carries prompts through norms, MLP and patch merging, in all stages; here they "
        "are added after the first norm and not passed on, so that shallow is the first prompted block alone. "
        "ConvNeXt and ResNet: the source has only the ring around the image; ours is normalised by the checkpoint's "
        "mean and deviation. ResNet's strided blocks have no ring, and in training a ring counts in batch statistics. "
        "The backbone is not forced into evaluation mode.",
        recipe=Recipe(learning_rate=1e-1, width_power=2.5),
        style=Style(light="#9c7400", dark="#e9c84f", shape="hexagon"),
        order=60,
    )
    paper_rules = frozenset({"R8"})

    def __init__(self, config: VPTConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        self.names: list[str] = []
        self.sites = nn.ModuleList()
        self.frames_image = False
        place = {"NLC": self._place_tokens, "NHWC": self._place_in_windows, "NCHW": self._place_rings}
        place[backbone.blocks[0].layout](config, backbone, edits)
        release_frozen_inputs(backbone.model, edits)

    def _place_tokens(self, config: VPTConfig, backbone: Backbone, edits: Edits) -> None:
        blocks = _prompted(config, backbone)
        self.appended_tokens = config.prompts
        for block in blocks:
            # Rotary position embeddings skip this many tokens at the start, the prompts included.
            attention = backbone.module(block.parts["attn"]) if "attn" in block.parts else nn.Module()
            if "num_prefix_tokens" in attention.__dict__:
                edits.override(attention, "num_prefix_tokens", block.prefix + config.prompts)
        if not config.deep and len(blocks) > 1:
            edits.override(backbone.model, "forward_intermediates", _refuse_intermediates)
        for block in blocks if config.deep else blocks[:1]:
            site = TokenPrompts(config.prompts, block.channels, block.prefix, _bound(backbone), config.dropout)
            edits.before(backbone.module(block.name), site.before)
            edits.after(backbone.module(block.name if config.deep else blocks[-1].name), site.after)
            self._add(block.name, site)

    def _place_in_windows(self, config: VPTConfig, backbone: Backbone, edits: Edits) -> None:
        blocks = _prompted(config, backbone)
        for block in blocks if config.deep else blocks[:1]:
            name = block.parts.get("attn", "")
            module, attention = backbone.module(block.name), backbone.module(name)
            if not (name and hasattr(attention, "_get_rel_pos_bias") and hasattr(module, "get_attn_mask")):
                raise UnsupportedModel(
                    f"Block {block.name} of this {backbone.family} has no windowed attention with a relative-position "
                    "bias, which prompts would enter; use a timm Swin, ViT, ConvNeXt or ResNet."
                )
            site = WindowPrompts(config.prompts, block.channels, _bound(backbone), config.dropout)
            for owner in (module, attention):
                edits.override(owner, "s2a_prompts", config.prompts)
            edits.override(attention, "_get_rel_pos_bias", _padded_bias)
            edits.override(module, "dynamic_mask", True)  # The block then asks for its mask by ``get_attn_mask``.
            edits.override(module, "get_attn_mask", _padded_mask)
            edits.before(attention, site.before)
            edits.after(attention, site.after)
            self._add(name, site)

    def _place_rings(self, config: VPTConfig, backbone: Backbone, edits: Edits) -> None:
        if not config.deep:
            model_config = getattr(backbone.model, "pretrained_cfg", None) or {}
            mean = model_config.get("mean") or IMAGENET_DEFAULT_MEAN
            scale = (mean, model_config.get("std") or IMAGENET_DEFAULT_STD)
            self.frames_image = True
            self._add("images", RingPrompts(len(mean), backbone.image_size, config.ring, config.dropout, scale))
            return
        blocks = [block for block in _prompted(config, backbone) if block.grid == block.grid_out]
        if not blocks:
            raise UnsupportedModel(
                f"No block of this {backbone.family} that sites={config.sites!r} names keeps the size of its map, so "
                "that a ring around it could be cropped again; try sites='all', or deep=False."
            )
        self.identity_at_start = all(_ignores_zeros(backbone, block, config.ring) for block in blocks)
        for block in blocks:
            site = RingPrompts(block.channels, block.grid, config.ring, config.dropout)
            edits.before(backbone.module(block.name), site.before)
            edits.after(backbone.module(block.name), site.after)
            self._add(block.name, site)

    def _add(self, name: str, site: nn.Module) -> None:
        self.names.append(name)
        self.sites.append(site)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features of ``images`` ``(B, 3, H, W)``, ``(B, C)``; a shallow ring enlarges them first."""
        return pooled_features(model, self.sites[0].pad(images) if self.frames_image else images)  # type: ignore[operator]

    def keeps(self, batch_size: int) -> dict[str, int]:
        """Nothing; with dropout the bytes of its masks, float32 as on a CPU (CUDA saves one byte an element)."""
        if all(isinstance(site.dropout, nn.Identity) for site in self.sites):
            return {}
        return {
            f"sites.{i}.dropout": 4 * site.mask_elements(batch_size)  # type: ignore[operator]
            for i, site in enumerate(self.sites)
        }


def _prompted(config: VPTConfig, backbone: Backbone) -> list[Block]:
    """The blocks that ``sites`` names, in forward order."""
    stages = {block.stage for block in backbone.blocks}
    skipped = min(stages) if config.sites == "preset" and len(stages) > 1 else None
    return [block for block in backbone.blocks if block.stage != skipped]


def _bound(backbone: Backbone) -> float:
    """Bound of the start: sqrt(6 / (3 * patch area + C)) of the first stage, as in the source, for all stages."""
    first = backbone.blocks[0]
    area = math.prod(backbone.image_size) / math.prod(first.grid)
    return math.sqrt(6 / (3 * area + first.channels))


def _ignores_zeros(backbone: Backbone, block: Block, width: int) -> bool:
    """Whether a ring of zeros leaves a block's output inside the ring as it is (in evaluation mode, up to rounding).

    It does where a single convolution mixes positions, which pads with zeros itself; not where a second one reads what
    norms and biases made of the ring, nor where a layer averages over the map. Tested on a small random map.
    """
    module, generator = backbone.module(block.name), torch.Generator().manual_seed(0)
    reference = next(module.parameters())
    x = torch.randn(1, block.channels, 8, 8, generator=generator).to(reference.device, reference.dtype)
    with evaluating(module):
        plain = module(x)
        ringed = module(F.pad(x, (width,) * 4))[..., width:-width, width:-width]
    if plain.shape != ringed.shape:
        return False
    return bool((plain - ringed).abs().max() <= 100 * torch.finfo(x.dtype).eps * plain.abs().max())
