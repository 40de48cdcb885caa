"""Ladder side-tuning's equations, written out in loops over images, heads and kernel positions."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import s2a
import tiny
import torch
import torch.nn.functional as F
from s2a.backbones.view import describe
from s2a_baselines.lst import LSTConfig
from torch import Tensor

Leaves = dict[str, Tensor]

# The equations. Maps have their channels last; w(name) is a weight of one side block.


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    mean = x.mean(-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(-1, keepdim=True)
    return (x - mean) / (variance + eps).sqrt() * weight + bias


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def convolution(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int = 1, padding: int = 0) -> Tensor:
    """Of a map ``(B, H, W, I)`` with ``weight`` ``(O, I, k, k)``, or ``(C, 1, k, k)`` per channel."""
    kernel, depthwise = weight.shape[-1], weight.shape[1] == 1 and x.shape[-1] > 1
    x = F.pad(x, (0, 0, padding, padding, padding, padding))
    rows, columns = ((side - kernel) // stride + 1 for side in x.shape[1:3])
    out = x.new_zeros(len(x), rows, columns, len(weight))
    for i in range(kernel):
        for j in range(kernel):
            seen = x[:, i : i + stride * rows : stride, j : j + stride * columns : stride][:, :rows, :columns]
            out = out + (seen * weight[:, 0, i, j] if depthwise else seen @ weight[:, :, i, j].T)
    return out if bias is None else out + bias


def attention(x: Tensor, w: Callable[[str], Tensor], heads: int, bias: Callable[[int], Tensor | float]) -> Tensor:
    """Among the rows of ``x`` ``(N, c)``; ``bias(h)`` is added to head h's scores."""
    width, out = x.shape[-1], []
    size = width // heads
    q, k, v = (x @ w("attn.qkv.weight")[i * width : (i + 1) * width].T for i in range(3))
    q, k, v = (t + w("attn.qkv.bias")[i * width : (i + 1) * width] for i, t in enumerate((q, k, v)))
    for h in range(heads):
        part = slice(h * size, (h + 1) * size)
        scores = torch.exp(q[:, part] @ k[:, part].T / math.sqrt(size) + bias(h))
        out.append(scores / scores.sum(1, keepdim=True) @ v[:, part])
    return torch.cat(out, 1) @ w("attn.proj.weight").T + w("attn.proj.bias")


def mlp(x: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    return gelu(x @ w("fc1.weight").T + w("fc1.bias")) @ w("fc2.weight").T + w("fc2.bias")


def window_bias(table: Tensor, grid: int, window: int, shift: int) -> Tensor:
    """Added to the scores of all pairs of positions of the whole map: -inf where they are not in one window.

    The map is moved by ``shift`` first; what came over the edge is in a window with its like only.
    """
    count = grid * grid
    bias = table.new_full((count, count), -math.inf)
    moved = [((y - shift) % grid, (x - shift) % grid) for y in range(grid) for x in range(grid)]
    for p, (y, x) in enumerate(moved):
        for o, (v, u) in enumerate(moved):
            same_window = (y // window, x // window) == (v // window, u // window)
            same_side = (y >= grid - shift, x >= grid - shift) == (v >= grid - shift, u >= grid - shift)
            if same_window and same_side:
                bias[p, o] = table[(y - v + window - 1) * (2 * window - 1) + x - u + window - 1]
    return bias


def transformer_block(z: Tensor, w: Callable[[str], Tensor], heads: int, eps: float, geometry: Any = None) -> Tensor:
    """``z`` ``(B, N, c)`` or ``(B, H, W, c)`` with ``geometry`` (window, shift)."""
    shape, z = z.shape, z.reshape(len(z), -1, z.shape[-1])
    biases: list[Any] = [0.0] * heads
    if geometry:
        table = w("attn.relative_position_bias_table")
        biases = [window_bias(table[:, h], shape[1], *geometry) for h in range(heads)]
    out = []
    for x in z:
        x = x + attention(layer_norm(x, w("norm1.weight"), w("norm1.bias"), eps), w, heads, lambda h: biases[h])
        out.append(x + mlp(layer_norm(x, w("norm2.weight"), w("norm2.bias"), eps), w))
    return torch.stack(out).view(shape)


def convnext_block(z: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    x = convolution(z, w("conv_dw.weight"), w("conv_dw.bias"), padding=3)
    return z + w("gamma") * mlp(layer_norm(x, w("norm.weight"), w("norm.bias"), 1e-6), w)


def batch_norm(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    mean = x.mean((0, 1, 2))
    return (x - mean) / (((x - mean) ** 2).mean((0, 1, 2)) + 1e-5).sqrt() * weight + bias


def residual_block(z: Tensor, w: Callable[[str], Tensor], count: int) -> Tensor:
    x = z
    for i in range(count):
        weight = w(f"convs.{i}.weight")
        x = batch_norm(
            convolution(x, weight, None, padding=weight.shape[-1] // 2), w(f"norms.{i}.weight"), w(f"norms.{i}.bias")
        )
        x = (x if i < count - 1 else x + z).clamp(min=0)
    return x


def swin_transition(s: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    """Four neighbours side by side, in the order of the Swin paper's code: down the left column, then the right."""
    joined = torch.cat([s[:, i::2, j::2] for j in (0, 1) for i in (0, 1)], -1)
    return layer_norm(joined, w("norm.weight"), w("norm.bias"), 1e-5) @ w("reduction.weight").T


def convnext_transition(s: Tensor, w: Callable[[str], Tensor]) -> Tensor:
    s = layer_norm(s, w("norm.weight"), w("norm.bias"), 1e-6)
    return convolution(s, w("conv.weight"), w("conv.bias"), stride=2)


def resnet_transition(s: Tensor, w: Callable[[str], Tensor], stride: int) -> Tensor:
    return batch_norm(convolution(s, w("conv.weight"), None, stride), w("norm.weight"), w("norm.bias"))


STAGES = {"swin": [0, 0, 1, 1, 2], "convnext": [0, 1, 2, 2, 3], "convnext_conv": [0, 1, 2, 2, 3]}
"""Of every block of the tiny models."""

SWIN = [(1, (8, 0)), (1, (8, 4)), (2, (8, 0)), (2, (8, 0)), (4, (4, 0))]
"""Heads, window and shift of every block: maps of 16, 8 and 4 positions a side, windows of 8 at most."""

RESNET = [(2, None), (2, 2), (3, 2), (2, 2)]
"""Convolutions of every block, and the stride with which a new width comes."""


def ladder(name: str, leaves: Leaves, start: Tensor, maps: list[Tensor], token: bool) -> Tensor:
    """Features by the equations, from block 0's input and all blocks' outputs, channels last."""

    def project(path: str, h: Tensor) -> Tensor:
        return h @ leaves[f"{path}.weight"].flatten(1).T + leaves[f"{path}.bias"]

    s = project("first", start)
    for i, h in enumerate(maps):

        def w(path: str, at: str = f"steps.{i}.block.") -> Tensor:
            return leaves[at + path]

        def t(path: str, at: str = f"steps.{i}.transitions.0.") -> Tensor:
            return leaves[at + path]

        new_stage = i > 0 and name in STAGES and STAGES[name][i] != STAGES[name][i - 1]
        if name == "resnet" and RESNET[i][1]:
            s = resnet_transition(s, t, RESNET[i][1])  # type: ignore[arg-type]
        elif new_stage:
            s = swin_transition(s, t) if name == "swin" else convnext_transition(s, t)
        mu = 1 / (1 + torch.exp(-leaves[f"steps.{i}.gate.alpha"] / 0.1))
        z = mu * s + (1 - mu) * project(f"steps.{i}.down", h)
        if name == "swin":
            s = transformer_block(z, w, SWIN[i][0], 1e-5, SWIN[i][1])
        elif name.startswith("convnext"):
            s = convnext_block(z, w)
        elif name == "resnet":
            s = residual_block(z, w, RESNET[i][0])
        else:
            s = transformer_block(z, w, 2, 1e-6)
    s = layer_norm(s, leaves["norm.weight"], leaves["norm.bias"], 1e-6)
    features = project("up", s)  # The source's order: to full width first, then pooling.
    if name in ("swin", "convnext", "convnext_conv", "resnet"):
        return features.mean((1, 2))
    prefix = 5 if name == "vit_registers" else 1
    return features[:, 0] if token else features[:, prefix:].mean(1)


def tapped(model: Any, images: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Input of block 0 and outputs of all blocks of a plain model, channels last."""
    blocks = [model.get_submodule(block.name) for block in describe(model, images.shape[-1]).blocks]
    found: list[Tensor] = []
    handles = [blocks[0].register_forward_pre_hook(lambda module, args: found.append(args[0].clone()))]
    handles += [b.register_forward_hook(lambda module, args, out: found.append(out.clone())) for b in blocks]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()
    return found[0], found[1:]


def attached(name: str, config: LSTConfig | None = None, dtype: torch.dtype = torch.float64, **kwargs: Any) -> Any:
    """A plain tiny model in evaluation mode, an adapted copy in training mode, and images."""
    make_model, size = tiny.MODELS[name]
    model = make_model(**kwargs).eval().to(dtype)
    adapted = s2a.attach(copy.deepcopy(model), config or LSTConfig(), tiny.CLASSES, image_size=size).train()
    return model, adapted, torch.randn(2, 3, size, size, dtype=dtype)
