"""Forward passes with visual prompts, put together by hand from plain timm models and the equations."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import s2a
import timm
import tiny
import torch
from s2a_baselines.vpt import VPTConfig
from torch import Tensor, nn


def eva_rotary() -> Any:
    """An EVA-02: positions are rotations of q and k."""
    sizes: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}
    return timm.create_model("eva02_tiny_patch14_224", num_classes=tiny.CLASSES, **sizes)


MODELS: dict[str, tuple[Callable[..., Any], int]] = {**tiny.MODELS, "eva_rotary": (eva_rotary, 32)}


def attached(name: str, size: Any = None, batch: int = 2, **options: Any) -> tuple[Any, Any, Tensor]:
    """A plain model in float64 and evaluation mode, an adapted copy with prompts away from zero, and images."""
    make_model, side = MODELS[name]
    shape = size or (side, side)
    model = (make_model(img_size=shape) if size and name in ("vit", "swin") else make_model()).eval().double()
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() == 1 or "bias_table" in key:  # No bias or layer scale is switched off.
                parameter.add_(0.3 * torch.randn_like(parameter))
    adapted = s2a.attach(copy.deepcopy(model), VPTConfig(**{"prompts": 3, **options}), 5, image_size=shape)
    for site in sites_of(adapted):
        nn.init.normal_(site.prompts)
    return model, adapted, torch.randn(batch, 3, *shape, dtype=torch.float64)


def sites_of(adapted: Any) -> Any:
    """The prompts, site by site."""
    return adapted.method.sites


def leaves_of(adapted: Any) -> list[Tensor]:
    """Copies of the prompts, to be differentiated by."""
    return [site.prompts.detach().clone().requires_grad_() for site in sites_of(adapted)]


def sequence_by_hand(model: Any, images: Tensor, prompts: list[Tensor], deep: bool) -> Tensor:
    """The blocks of timm one by one on concatenated tokens; a prompt is rotated by zero."""
    x, rotary = model.patch_embed(images), None
    x = model._pos_embed(x)
    if isinstance(x, tuple):
        x, rotary = x
    x, p, n = model.norm_pre(x), model.num_prefix_tokens, prompts[0].shape[0]
    if rotary is not None:
        sine, cosine = rotary.tensor_split(2, -1)
        none = torch.zeros(n, sine.shape[-1], dtype=sine.dtype)
        rotary = torch.cat([torch.cat([none, sine]), torch.cat([none + 1, cosine])], -1)
    for i, block in enumerate(model.blocks):
        if deep or i == 0:
            x = torch.cat([x[:, :p], torch.stack([prompts[i]] * len(x)), x[:, p:]], 1)
        x = block(x) if rotary is None else block(x, rope=rotary)
        if deep or i == len(model.blocks) - 1:
            x = torch.cat([x[:, :p], x[:, p + n :]], 1)
    return model.forward_head(model.norm(x), pre_logits=True)


def window_attention(attention: Any, x: Tensor, prompts: Tensor, allowed: Tensor) -> Tensor:
    """One window ``(N, C)`` of one image: softmax over n + N keys, bias and mask zero in a prompt's row and column.

    ``allowed`` ``(N, N)`` says which tokens of the window come from one region.
    """
    n, (size, channels), heads = len(prompts), x.shape, attention.num_heads
    (rows, columns), width = attention.window_size, channels // heads
    tokens = torch.cat([prompts, x])
    q, k, v = (attention.qkv.weight @ tokens.T + attention.qkv.bias[:, None]).T.tensor_split(3, 1)
    mixed = []
    for h in range(heads):
        part = slice(h * width, (h + 1) * width)
        logits = q[:, part] @ k[:, part].T / math.sqrt(width)
        bias = torch.zeros(size, size, dtype=x.dtype)
        for i in range(size):
            for j in range(size):
                down, right = i // columns - j // columns + rows - 1, i % columns - j % columns + columns - 1
                bias[i, j] = attention.relative_position_bias_table[down * (2 * columns - 1) + right, h]
                bias[i, j] += 0.0 if allowed[i, j] else -100.0
        logits = logits + torch.cat([torch.zeros(n + size, n), torch.cat([torch.zeros(n, size), bias])], 1)
        mixed.append((torch.exp(logits) / torch.exp(logits).sum(1, keepdim=True)) @ v[:, part])
    return (torch.cat(mixed, 1) @ attention.proj.weight.T + attention.proj.bias)[n:]


def window_block(block: Any, x: Tensor, prompts: Tensor) -> Tensor:
    """A Swin block on ``(B, H, W, C)``, window by window."""
    (rows, columns), (up, along), (height, width) = block.window_size, block.shift_size, x.shape[1:3]
    normed = torch.roll(block.norm1(x), (-up, -along), (1, 2))
    out = torch.zeros_like(x)
    for top in range(0, height, rows):
        for left in range(0, width, columns):
            place = [(top + i, left + j) for i in range(rows) for j in range(columns)]
            # What was rolled in from the other edge is another region.
            wrapped = torch.tensor([[r >= height - up, c >= width - along] for r, c in place])
            allowed = (wrapped[:, None] == wrapped[None]).all(-1)
            for b in range(len(x)):
                window = normed[b, top : top + rows, left : left + columns].flatten(0, 1)
                mixed = window_attention(block.attn, window, prompts, allowed)
                out[b, top : top + rows, left : left + columns] = mixed.view(rows, columns, -1)
    x = x + torch.roll(out, (up, along), (1, 2))
    return x + block.mlp(block.norm2(x))


def swin_by_hand(model: Any, images: Tensor, prompts: dict[str, Tensor]) -> Tensor:
    x = model.patch_embed(images)
    for s, stage in enumerate(model.layers):
        x = stage.downsample(x)
        for i, block in enumerate(stage.blocks):
            leaf = prompts.get(f"layers.{s}.blocks.{i}.attn")
            x = block(x) if leaf is None else window_block(block, x, leaf)
    return model.forward_head(model.norm(x), pre_logits=True)


def ring_by_hand(x: Tensor, prompts: Tensor, width: int) -> Tensor:
    """The ring read row by row: top, bottom, left, right."""
    batch, channels, height, columns = x.shape
    out = torch.zeros(batch, channels, height + 2 * width, columns + 2 * width, dtype=x.dtype)
    top = [(i, j) for i in range(width) for j in range(columns + 2 * width)]
    left = [(width + i, j) for i in range(height) for j in range(width)]
    places = [*top, *[(width + height + i, j) for i, j in top], *left, *[(i, width + columns + j) for i, j in left]]
    assert len(set(places)) == prompts.shape[1]
    for place, values in zip(places, prompts.unbind(1), strict=True):
        out[:, :, place[0], place[1]] = values
    out[:, :, width : width + height, width : width + columns] = x
    return out


def convolutional_by_hand(model: Any, images: Tensor, prompts: dict[str, Tensor], width: int) -> Tensor:
    """Every prompted block on its framed map."""

    def block_by_hand(name: str, block: Any, x: Tensor) -> Tensor:
        if name not in prompts:
            return block(x)
        height, columns = x.shape[-2:]
        return block(ring_by_hand(x, prompts[name], width))[:, :, width : width + height, width : width + columns]

    if hasattr(model, "stages"):
        x = model.stem(images)
        for s, stage in enumerate(model.stages):
            x = stage.downsample(x)
            for i, block in enumerate(stage.blocks):
                x = block_by_hand(f"stages.{s}.blocks.{i}", block, x)
        x = model.norm_pre(x)
    else:
        x = model.maxpool(model.act1(model.bn1(model.conv1(images))))
        for s in range(1, 5):
            for i, block in enumerate(getattr(model, f"layer{s}")):
                x = block_by_hand(f"layer{s}.{i}", block, x)
    return model.forward_head(x, pre_logits=True)
