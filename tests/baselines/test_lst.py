"""Ladder side-tuning against its equations, written out in loops over images, heads and kernel positions."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from s2a.backbones import describe
from s2a.testing import check_method, differences, snapshot
from s2a_baselines._side_blocks import ConvBlock, ConvNeXtBlock, Merging, TransformerBlock
from s2a_baselines.lst import LST, Gate, LSTConfig
from timm.models.convnext import ConvNeXtBlock as TimmConvNeXtBlock
from timm.models.resnet import Bottleneck
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn

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


@pytest.mark.parametrize(
    ("name", "kwargs"),
    [
        ("vit", {}),
        ("vit", {"global_pool": "avg"}),
        ("vit_registers", {}),
        ("eva", {}),
        ("swin", {}),
        ("convnext", {}),
        ("convnext_conv", {}),
        ("resnet", {}),
    ],
)
def test_outputs_and_gradients_are_the_equations(name: str, kwargs: dict[str, Any]) -> None:
    model, adapted, images = attached(name, **kwargs)
    leaves: Leaves = {}
    for key, parameter in adapted.method.named_parameters():
        offset = 1.0 if key.endswith(("norm.weight", "gamma")) else 0.0
        nn.init.normal_(parameter, offset, 0.3)
        if key.endswith("alpha"):
            nn.init.normal_(parameter, std=0.1)
        leaves[key] = parameter.detach().clone().requires_grad_()
    start, maps = tapped(model, images)
    if name in ("convnext", "convnext_conv", "resnet"):
        start, maps = start.movedim(1, -1), [h.movedim(1, -1) for h in maps]
    expected = ladder(name, leaves, start, maps, token=name != "eva" and not kwargs)
    found = adapted.method(adapted.backbone, images)
    assert found.shape == (2, model.num_features)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (found * weight).sum().backward()
    (expected * weight).sum().backward()
    for key, leaf in leaves.items():
        grad = adapted.method.get_parameter(key).grad
        assert leaf.grad is not None and bool(leaf.grad.any())
        torch.testing.assert_close(grad, leaf.grad, msg=lambda m, n=key: f"{n}: {m}")


# Blocks against timm's of the same weights


def renamed(block: nn.Module, names: dict[str, str]) -> dict[str, Tensor]:
    """A side block's state under timm's names."""
    state = {}
    for key, value in block.state_dict().items():
        for old, new in names.items():
            key = key.replace(old, new)
        state[key] = value
    return state


MLP = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}


@given(
    height=st.integers(2, 9), width=st.integers(2, 9), window=st.integers(2, 5), shifted=st.booleans(), batch=st.just(2)
)
def test_windows_of_any_fit_are_timms(height: int, width: int, window: int, shifted: bool, batch: int) -> None:
    """Also where the map has to be padded, and windows are larger than it."""
    side = TransformerBlock(8, 2, 20, (height, width), window, shifted).double()
    other = SwinTransformerBlock(
        8, (height, width), 2, window_size=window, shift_size=window // 2 if shifted else 0, mlp_ratio=2.5
    ).double()
    other.norm1.eps = other.norm2.eps = 1e-6  # type: ignore[assignment]
    for parameter in side.parameters():
        nn.init.normal_(parameter, std=0.5)
    missing = other.load_state_dict(renamed(side, MLP), strict=False)
    assert not missing.missing_keys and not missing.unexpected_keys
    x = torch.randn(batch, height, width, 8, dtype=torch.float64)
    torch.testing.assert_close(side(x), other(x))


@given(height=st.integers(1, 6), width=st.integers(1, 6))
def test_merging_is_timms(height: int, width: int) -> None:
    side, other = Merging(3, 6, (height, width), (2, 2)).double(), PatchMerging(3).double()
    nn.init.normal_(side.norm.weight)
    other.load_state_dict(side.state_dict())
    x = torch.randn(2, height, width, 3, dtype=torch.float64)
    torch.testing.assert_close(side(x), other(x))


def test_convolution_blocks_are_timms() -> None:
    x = torch.randn(2, 8, 5, 6)
    side: nn.Module = ConvNeXtBlock(8, 32, 7, (5, 6))
    nn.init.normal_(side.gamma)  # type: ignore[arg-type]
    other: nn.Module = TimmConvNeXtBlock(8)
    other.load_state_dict(renamed(side, MLP))
    torch.testing.assert_close(side(x), other(x))
    side = ConvBlock(8, [(2, 1, 1), (2, 3, 1), (8, 1, 1)], (5, 6))
    other = Bottleneck(8, 2)
    names = {
        f"{ours}s.{i}": f"{theirs}{i + 1}" for i in range(3) for ours, theirs in (("conv", "conv"), ("norm", "bn"))
    }
    other.load_state_dict(renamed(side, names))
    torch.testing.assert_close(side(x), other(x))


# Counts and bytes


def transformer_count(c: int, heads: int = 0, window: int = 0) -> int:
    """Two norms, qkv, proj, an MLP of 4 c, and a bias per relative position and head."""
    norms, qkv, proj, fc1, fc2 = 2 * 2 * c, 3 * c * (c + 1), c * (c + 1), 4 * c * (c + 1), c * (4 * c + 1)
    return norms + qkv + proj + fc1 + fc2 + (2 * window - 1) ** 2 * heads


def convnext_count(c: int) -> int:
    """A 7 x 7 depthwise convolution, a norm, an MLP of 4 c and a layer scale."""
    return 49 * c + c + 2 * c + 4 * c * (c + 1) + c * (4 * c + 1) + c


def around(channels: list[int], width: int, last: int) -> int:
    """W_0 and every W_i, a gate per block, the last norm, W_up."""
    return sum(c * (c // 8) + c // 8 for c in channels) + len(channels) - 1 + 2 * width + width * last + last


def test_counts_of_the_base_models() -> None:
    """Percentages are of the backbone's weights without a head, and include one of 100 classes."""
    swin = [(128, 4, 2), (256, 8, 2), (512, 16, 18), (1024, 32, 2)]
    convnext = [(128, 3), (256, 3), (512, 27), (1024, 3)]
    expected = {
        "vit_base_patch16_224": (
            12 * transformer_count(96) + around([768] * 13, 96, 768),
            85_798_656,
            768,
            2_376_492,
            2.859,
        ),
        "swin_base_patch4_window7_224": (
            sum(n * transformer_count(c // 8, h, 7) for c, h, n in swin)
            + sum(2 * 4 * c + 4 * c * 2 * c for c in (16, 32, 64))
            + around([128] + [c for c, _, n in swin for _ in range(n)], 128, 1024),
            86_743_224,
            1024,
            2_444_064,
            2.936,
        ),
        "convnext_base": (
            sum(n * convnext_count(c // 8) for c, n in convnext)
            + sum(2 * c + 4 * c * 2 * c + 2 * c for c in (16, 32, 64))
            + around([128] + [c for c, n in convnext for _ in range(n)], 128, 1024),
            87_566_464,
            1024,
            2_928_356,
            3.461,
        ),
    }
    for name, (equation, backbone, width, published, percent) in expected.items():
        adapted = s2a.attach(timm.create_model(name), LSTConfig(), 100)
        trained = sum(p.numel() for p in s2a.trainable_parameters(adapted).values())
        assert equation == published
        assert trained == equation + 100 * width + 100
        assert sum(p.numel() for p in adapted.backbone.parameters()) == backbone
        assert round(100 * trained / backbone, 3) == percent


def test_what_a_step_keeps_on_a_vit() -> None:
    """Tapped map, difference, two norms with statistics, and attention through the fused kernel."""
    _, adapted, images = attached("vit", dtype=torch.float32)
    kept, rows, c = s2a.saved_bytes(adapted, images).shared, 2 * 65, 8
    step = {
        "down": 64,
        "block.norm1": c + 2,
        "block.attn.qkv": c,
        "block.attn": 3 * c + c + 2,
        "block.attn.proj": c,
        "block.norm2": c + 2,
        "block.fc1": c,
        "block.act": 4 * c,
        "block.fc2": 4 * c,
    }
    for i in (0, 1):
        assert {path: kept[f"method.steps.{i}.{path}"] for path in step} == {p: 4 * rows * n for p, n in step.items()}
        assert kept[f"method.steps.{i}.gate"] == 4 * rows * c + 4
    assert kept["method.norm"] == 4 * 2 * (c + 2) and kept["method.up"] == 4 * 2 * c
    assert not any(size for name, size in kept.items() if name.startswith("backbone"))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vit", LSTConfig(reduction=4, keep=2)),
        ("swin", LSTConfig(reduction=2, keep=(0, 4), init="pruned")),
        ("convnext_conv", LSTConfig(keep=(1, 3), init="pruned")),
        ("resnet", LSTConfig(reduction=4, keep=(0, 3), temperature=1.0)),
    ],
)
def test_other_options_keep_the_promises(name: str, config: LSTConfig) -> None:
    make_model, size = tiny.MODELS[name]
    check_method(config, make_model, tiny.CLASSES, image_size=size)


def test_declared_bytes_hold_where_windows_are_padded() -> None:
    model = timm.create_model(
        "swin_tiny_patch4_window7_224",
        img_size=40,
        window_size=3,
        embed_dim=32,
        depths=(2, 2),
        num_heads=(2, 4),
        num_classes=3,
    )
    adapted = s2a.attach(model, LSTConfig()).train()
    kept = s2a.saved_bytes(adapted, torch.randn(2, 3, 40, 40)).shared
    own = {n.removeprefix("method."): size for n, size in kept.items() if n.startswith("method") and size}
    assert own == adapted.method.keeps(2)
    assert own["steps.1.block.attn"] == 4 * 2 * 12 * 12 * (3 * 4 + 2 * 9)  # 10 x 10 positions in 3 x 3 windows.


# Layer dropping, gates, pruning


def test_gates_start_at_one_half_and_follow_the_temperature() -> None:
    gate = Gate(0.1)
    s, h = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(gate(s, h), (s + h) / 2)
    nn.init.constant_(gate.alpha, 0.2)
    mu = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(gate(s, h), mu * s + (1 - mu) * h)


@pytest.mark.parametrize(
    ("keep", "blocks", "transitions", "width"),
    [
        ("all", [0, 1, 2, 3, 4], [0, 0, 1, 0, 1], 16),
        (2, [1, 3], [0, 1], 8),
        ((0,), [0], [0], 4),
        ((1, 4), [1, 4], [0, 2], 16),
    ],
)
def test_dropped_layers_leave_the_stages_connected(
    keep: Any, blocks: list[int], transitions: list[int], width: int
) -> None:
    _, adapted, images = attached("swin", LSTConfig(keep=keep))
    names = [block.name for block in describe(tiny.swin(), 64).blocks]
    assert [tap.place for tap in adapted.method.taps] == [names[0]] + [names[i] for i in blocks]
    assert [len(step.transitions) for step in adapted.method.steps] == transitions
    assert adapted.method.up.in_features == width
    assert adapted(images).shape == (2, tiny.CLASSES)


def top(score: Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: -float(score[i]))[:count])


def pruned_transformer(block: Any, columns: list[int] | None, heads: int, r: int) -> tuple[Leaves, list[int]]:
    """A block's pruned weights, row by row, and the rows that its last matrix keeps."""
    width = block.attn.proj.weight.shape[0]
    size, found = width // heads, {}
    if columns is None:
        columns = top(block.attn.qkv.weight.abs().sum(0), width // r)
    found |= {"norm1.weight": block.norm1.weight[columns], "norm1.bias": block.norm1.bias[columns]}
    q, k, v = (block.attn.qkv.weight[i * width : (i + 1) * width][:, columns] for i in range(3))
    rows: list[int] = []
    for h in range(heads):
        score = torch.stack([(q[i] * k[i] * v[i]).abs().sum() for i in range(h * size, (h + 1) * size)])
        rows += [h * size + i for i in top(score, size // r)]
    found["attn.qkv.weight"] = torch.cat([q[rows], k[rows], v[rows]])
    found["attn.qkv.bias"] = torch.cat([block.attn.qkv.bias[i * width : (i + 1) * width][rows] for i in range(3)])
    for new, layer in (("attn.proj", block.attn.proj), ("fc1", block.mlp.fc1), ("fc2", block.mlp.fc2)):
        weight = layer.weight[:, rows]
        rows = top(weight.abs().sum(1), len(weight) // r)
        found |= {f"{new}.weight": weight[rows], f"{new}.bias": layer.bias[rows]}
        if new == "attn.proj":
            found |= {"norm2.weight": block.norm2.weight[rows], "norm2.bias": block.norm2.bias[rows]}
    return found, rows


def pruned_convnext(block: Any, columns: list[int] | None, r: int) -> tuple[Leaves, list[int]]:
    fc1, fc2 = block.mlp.fc1.weight.flatten(1), block.mlp.fc2.weight.flatten(1)
    if columns is None:
        columns = top(fc1.abs().sum(0), fc1.shape[1] // r)
    found = {
        f"{n}.{k}": getattr(getattr(block, n), k)[columns] for n in ("conv_dw", "norm") for k in ("weight", "bias")
    }
    rows = top(fc1[:, columns].abs().sum(1), len(fc1) // r)
    found |= {"fc1.weight": fc1[rows][:, columns], "fc1.bias": block.mlp.fc1.bias[rows]}
    last = top(fc2[:, rows].abs().sum(1), len(fc2) // r)
    found |= {"fc2.weight": fc2[last][:, rows], "fc2.bias": block.mlp.fc2.bias[last], "gamma": block.gamma[last]}
    return found, last


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "convnext_conv"])
def test_pruned_weights_are_the_largest_rows(name: str) -> None:
    model = tiny.MODELS[name][0]()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    adapted = s2a.attach(copy.deepcopy(model), LSTConfig(init="pruned"), 5, image_size=tiny.MODELS[name][1])
    blocks = describe(model, tiny.MODELS[name][1]).blocks
    columns: list[int] | None = None
    for i, block in enumerate(blocks):
        if i and block.stage != blocks[i - 1].stage:
            columns = None
        module: Any = model.get_submodule(block.name)
        if name.startswith("convnext"):
            found, columns = pruned_convnext(module, columns, 8)
        else:
            found, columns = pruned_transformer(module, columns, block.heads, 8)
        if name == "swin":
            found["attn.relative_position_bias_table"] = module.attn.relative_position_bias_table
        state = dict(adapted.method.get_submodule(f"steps.{i}.block").named_parameters())
        assert state.keys() == found.keys()
        for key, value in found.items():
            assert torch.equal(state[key], value), f"{block.name} {key}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "convnext_conv"])
def test_pruning_nothing_is_the_backbones_own_block(name: str) -> None:
    """With r = 1 every side block is the block that it stands beside, windows, shifts and all."""
    model, adapted, images = attached(name, LSTConfig(reduction=1, init="pruned"))
    start, maps = tapped(model, images)
    compared = 0
    for step, before, after in zip(adapted.method.steps, [start, *maps], maps, strict=False):
        if before.shape == after.shape:  # No downsampling in between.
            torch.testing.assert_close(step.block(before), after)
            compared += 1
    assert compared >= 2


@torch.no_grad()
def test_dropped_blocks_pass_their_rows_on() -> None:
    """Pruning walks all blocks: the second one's weights do not depend on whether the first has a side block."""
    model = tiny.vit()
    both, one = (s2a.attach(copy.deepcopy(model), LSTConfig(init="pruned", keep=keep), 5) for keep in ("all", (1,)))
    state = one.method.get_submodule("steps.0.block").state_dict()
    for key, value in both.method.get_submodule("steps.1.block").state_dict().items():
        assert torch.equal(state[key], value)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 0}, "reduction=0 is no divisor of widths; give an integer of 1 or more"),
        ({"reduction": True}, "reduction=True"),
        ({"reduction": 2.0}, "reduction=2.0"),
        ({"keep": "some"}, "keep='some' names no blocks; give 'all', an integer k"),
        ({"keep": 0}, "keep=0 names no blocks"),
        ({"keep": True}, "keep=True"),
        ({"keep": ()}, "keep=() names no blocks"),
        ({"keep": (1, 0)}, "keep=(1, 0) names no blocks"),
        ({"keep": (1, 1)}, "keep=(1, 1)"),
        ({"keep": (-1,)}, "keep=(-1,)"),
        ({"init": "fisher"}, "init='fisher' is unknown; choose 'random' or 'pruned'"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.inf}, "temperature=inf"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        LSTConfig(**options)


def test_blocks_may_be_a_list() -> None:
    assert s2a.method_config("lst", keep=[0, 1]) == LSTConfig(keep=(0, 1))


@pytest.mark.parametrize(
    ("make_model", "size", "options", "message"),
    [
        (tiny.vit, 32, {"reduction": 7}, "reduction=7 does not divide the width 32 of the 2 heads of blocks.0"),
        (tiny.vit, 32, {"reduction": 64}, "choose a divisor of 32"),
        (tiny.convnext, 64, {"reduction": 64}, "reduction=64 does not divide the 32 channels of stages.0.blocks.0"),
        (tiny.vit, 32, {"keep": 3}, "keep=3 does not fit a backbone of 2 blocks; choose 1 to 2, or 'all'"),
        (tiny.vit, 32, {"keep": (0, 2)}, "keep=(0, 2) does not fit a backbone of 2 blocks; choose indices from 0 to 1"),
        (tiny.resnet, 64, {"init": "pruned"}, "init='pruned': block layer1.0 of this resnet lacks the matrices"),
        (tiny.eva, 32, {"init": "pruned"}, "init='pruned': block blocks.0 of this vit lacks the matrices"),
    ],
)
def test_what_does_not_fit_leaves_the_model_alone(
    make_model: Callable[[], Any], size: int, options: dict[str, Any], message: str
) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        s2a.attach(model, LSTConfig(**options), 5, image_size=size)
    assert not differences(before, snapshot(model))


def test_it_is_registered() -> None:
    assert s2a.method_config("lst") == LSTConfig()
    assert not LST.trains_backbone
