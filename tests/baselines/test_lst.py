"""Ladder side-tuning against its equations and timm's blocks; counts and bytes."""

from __future__ import annotations

from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from lst_by_hand import (
    Leaves,
    attached,
    ladder,
    tapped,
)
from method_contract import IN_BOTH_RINGS
from s2a.testing import check_method
from s2a_baselines._side_blocks import ConvBlock, ConvNeXtBlock, Merging, TransformerBlock
from s2a_baselines.lst import LSTConfig
from timm.models.convnext import ConvNeXtBlock as TimmConvNeXtBlock
from timm.models.resnet import Bottleneck
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock
from torch import Tensor, nn


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


@pytest.mark.full
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
@IN_BOTH_RINGS
def test_other_options_keep_the_promises(name: str, config: LSTConfig, checks: Any) -> None:
    make_model, size = tiny.MODELS[name]
    check_method(config, make_model, tiny.CLASSES, image_size=size, checks=checks)


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
