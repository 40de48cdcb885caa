"""The table of families: blocks, layouts, heads."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from s2a.backbones.view import describe, evaluating, pooled_features, split_tokens
from s2a.structure.bias import additive_biases
from s2a.testing import differences, snapshot
from torch import nn

LINEARS = ("qkv", "proj", "fc1", "fc2")

# Name -> family, blocks, C of the blocks, sides of the maps, prefix tokens, roles.
EXPECTED = {
    "vit": ("vit", 2, [64] * 2, [8] * 2, 1, LINEARS),
    "vit_registers": ("vit", 2, [64] * 2, [8] * 2, 5, LINEARS),
    "eva": ("vit", 2, [64] * 2, [8] * 2, 1, LINEARS[1:]),  # EVA reads the weight of qkv and does not call the layer.
    "swin": ("swin", 5, [32, 32, 64, 64, 128], [16, 16, 8, 8, 4], 0, LINEARS),
    "convnext": ("convnext", 5, [32, 32, 64, 64, 128], [16, 8, 4, 4, 2], 0, LINEARS[2:]),
    "convnext_conv": ("convnext", 5, [32, 32, 64, 64, 128], [16, 8, 4, 4, 2], 0, LINEARS[2:]),
    "resnet": ("resnet", 4, [32, 32, 48, 192], [16, 16, 8, 4], 0, ("conv1", "conv2")),
}

# Every layer's bias of the models in the paper's Table 1.
PUBLISHED_BIASES = {
    "vit_base_patch16_224": 102_912,
    "swin_base_patch4_window7_224": 137_216,
    "convnext_base": 130_304,
}


@pytest.mark.parametrize("name", tiny.MODELS)
def test_blocks_are_described(name: str) -> None:
    make_model, size = tiny.MODELS[name]
    model = make_model()
    family, count, channels, sides, prefix, roles = EXPECTED[name]
    view = describe(model, size)
    assert (view.family, len(view.blocks), view.image_size) == (family, count, (size, size))
    assert [b.grid for b in view.blocks[1:]] == [(s, s) for s in sides[1:]]
    assert [b.channels for b in view.blocks][1:] == channels[1:]
    assert {b.prefix for b in view.blocks} == {prefix}
    bottlenecks = {(*roles, "conv3")} if family == "resnet" else set()
    assert {tuple(b.linears) for b in view.blocks} <= {roles} | bottlenecks
    assert view.module(view.classifier) is model.get_classifier()
    assert view.features == model.get_classifier().in_features


@pytest.mark.parametrize("name", tiny.MODELS)
def test_shapes_are_those_of_a_real_pass(name: str) -> None:
    make_model, size = tiny.MODELS[name]
    model = make_model().eval()
    view = describe(model, size)
    seen: dict[str, Any] = {}

    def record(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...]) -> None:
            seen[path] = args[0]

        return hook

    for block in view.blocks:
        for path in (block.name, *block.linears.values()):
            view.module(path).register_forward_pre_hook(record(path))
    images = torch.randn(2, 3, size, size)
    assert pooled_features(model, images).shape == (2, view.features)
    order = [key for key in seen if key in {b.name for b in view.blocks}]
    assert order == [b.name for b in view.blocks]
    for block in view.blocks:
        x = seen[block.name]
        prefix, grid = split_tokens(x, block)
        assert grid.shape == (2, block.channels, *block.grid)
        assert (0 if prefix is None else prefix.shape[1]) == block.prefix
        assert x.numel() == 2 * block.tokens * block.channels
        assert all(path in seen for path in block.linears.values())


def test_tokens_are_split_without_loss() -> None:
    block = describe(tiny.vit_registers()).blocks[0]
    x = torch.randn(2, block.tokens, block.channels)
    prefix, grid = split_tokens(x, block)
    assert prefix is not None
    assert torch.equal(torch.cat([prefix, grid.flatten(2).transpose(1, 2)], 1), x)


def test_windows_are_those_of_the_blocks() -> None:
    blocks = describe(tiny.swin()).blocks
    assert [b.window for b in blocks] == [(8, 8), (8, 8), (8, 8), (8, 8), (4, 4)]
    assert {b.window for b in describe(tiny.vit()).blocks} == {None}


@pytest.mark.parametrize(("name", "count"), PUBLISHED_BIASES.items())
def test_biases_of_the_papers_backbones(name: str, count: int) -> None:
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0)
    assert sum(p.numel() for p in additive_biases(model).values()) == count


def test_swins_bias_table_is_no_additive_bias() -> None:
    model = tiny.swin()
    tables = [n for n, _ in model.named_parameters() if n.endswith("relative_position_bias_table")]
    assert len(tables) == 5
    assert not set(tables) & additive_biases(model).keys()


@pytest.mark.parametrize("name", tiny.MODELS)
def test_describing_changes_nothing(name: str) -> None:
    make_model, size = tiny.MODELS[name]
    model = make_model().train()
    next(m for m in model.modules() if isinstance(m, nn.LayerNorm | nn.BatchNorm2d)).eval()  # A mode of its own.
    before = snapshot(model)
    describe(model, size)
    with pytest.raises(s2a.UnsupportedModel):
        describe(model, 0)
    assert not differences(before, snapshot(model))


def test_every_module_gets_its_own_mode_back() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Dropout()).train()
    model[1].eval()
    with pytest.raises(KeyError), evaluating(model):
        assert not model.training
        assert not torch.is_grad_enabled()
        raise KeyError
    assert (model.training, model[0].training, model[1].training) == (True, True, False)


def test_meta_models_are_described() -> None:
    with torch.device("meta"):
        model = timm.create_model("vit_base_patch16_224")
    block = describe(model).blocks[0]
    assert (block.tokens, block.channels) == (197, 768)


@pytest.mark.parametrize("size", [32, (32, 32), [32, 32]])
def test_sizes_may_be_sides_or_pairs(size: Any) -> None:
    assert describe(tiny.resnet(), size).image_size == (32, 32)


def test_rectangular_images() -> None:
    view = describe(tiny.vit(img_size=(16, 32)))
    assert view.image_size == (16, 32)
    assert view.blocks[0].grid == (4, 8)


@pytest.mark.parametrize(
    ("model", "size", "message"),
    [
        (
            nn.Sequential(nn.Linear(3, 3)),
            None,
            r"Sequential is not a supported .*VisionTransformer \(vit\).*does not fit: the model itself",
        ),
        (nn.Linear(3, 3), None, r"the model itself \(Linear\)"),
        (
            timm.create_model("test_efficientnet"),
            None,
            r"EfficientNet is not a supported .*does not fit: blocks\.0\.0 \(\w+\)\.",
        ),
        (tiny.vit(), 48, r"cannot take an image of 48 x 48 pixels .*image_size"),
        (tiny.vit(), 30, "30 x 30"),
    ],
)
def test_what_is_not_supported_is_said(model: nn.Module, size: int | None, message: str) -> None:
    with pytest.raises(s2a.UnsupportedModel, match=re.compile(message, re.DOTALL)):
        describe(model, size)


def test_patch_dropping_is_refused() -> None:
    model = tiny.vit(img_size=32, dynamic_img_size=True, no_embed_class=True)
    model.patch_embed.patch_size = (8, 8)
    with pytest.raises(s2a.UnsupportedModel, match="64 patch tokens, not a 4 x 4 grid"):
        describe(model)
