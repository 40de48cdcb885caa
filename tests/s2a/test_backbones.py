"""The table of families: blocks, layouts, heads."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
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


# Ways out of a refusal


def wrapped(attribute: str) -> nn.Module:
    """A supported backbone inside of another library's module, as open_clip's TimmModel and HF's TimmWrapperModel."""
    wrapper = nn.Module()
    setattr(wrapper, attribute, tiny.vit())
    return wrapper


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (lambda: torch.compile(tiny.vit()), r"attach to model\._orig_mod, then compile .*torch\.compile\(s2a\.attach"),
        (lambda: nn.DataParallel(tiny.vit()), r"attach to model\.module, then wrap the adapted model"),
        (lambda: wrapped("trunk"), r"timm\.models\.vision_transformer\.VisionTransformer .*attach to model\.trunk,"),
        (lambda: nn.ModuleDict({"a": wrapped("timm_model")}), r"attach to model\.a\.timm_model,"),
        (lambda: timm.create_model("test_resnet", features_only=True), "create the model without features_only"),
        (lambda: timm.create_model("test_vit", features_only=True), "create the model without features_only"),
        (lambda: torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))), "timm model that it was made from"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch 2.11: about its own modules, while it imports them
def test_a_refused_model_gets_the_way_out(make_model: Any, message: str) -> None:
    with pytest.raises(s2a.UnsupportedModel, match=re.compile(f"is not a supported backbone.*{message}")):
        s2a.attach(make_model(), s2a.S2AConfig(), 5)


def test_a_class_of_the_same_name_is_told_apart() -> None:
    torchvision = pytest.importorskip("torchvision")
    with pytest.raises(s2a.UnsupportedModel) as refused:
        s2a.attach(torchvision.models.resnet18(), s2a.S2AConfig(), 5)
    assert str(refused.value).startswith("torchvision.models.resnet.ResNet is not a supported backbone")
    assert "timm.models.resnet.ResNet" in str(refused.value) and "timm.create_model" in str(refused.value)


def test_an_adapted_model_in_a_wrapper_is_found(tmp_path: Path) -> None:
    adapted = s2a.attach(tiny.vit(), s2a.S2AConfig(), 5)
    wrapper: Any = nn.DataParallel(adapted)
    with pytest.raises(s2a.S2AError, match=r"at model\.module, is already adapted by 's2a'"):
        s2a.attach(wrapper, s2a.S2AConfig(), 5)
    takers: tuple[Any, ...] = (s2a.detach, s2a.merge, s2a.cast_frozen, s2a.plan_memory, s2a.theoretical_memory)
    for call in (*takers, lambda wrapped: s2a.save(wrapped, tmp_path / "state.safetensors")):
        with pytest.raises(s2a.S2AError, match=r"not DataParallel; that is inside of it, at model\.module: give that"):
            call(wrapper)


# Heads and pools

FEATURES_MAPS = {
    "vit": lambda: tiny.vit(num_classes=0, global_pool="", class_token=True),
    "vit with a head": lambda: tiny.vit(global_pool=""),
    "swin": lambda: tiny.swin(num_classes=0, global_pool=""),
    "convnext": lambda: timm.create_model("test_convnext", num_classes=0, global_pool=""),
    "resnet": lambda: timm.create_model("test_resnet", num_classes=0, global_pool=""),
}


@pytest.mark.parametrize("name", FEATURES_MAPS)
@pytest.mark.parametrize("method", ["linear", "lora", "s2a", "unipt"])
def test_features_that_are_not_pooled_are_refused(name: str, method: str) -> None:
    model = FEATURES_MAPS[name]()
    before = snapshot(model)
    with pytest.raises(s2a.UnsupportedModel, match=r"not one vector: its pooling is off \(global_pool=''\)"):
        s2a.attach(model, s2a.method_config(method), 5, image_size=64 if "vit" not in name else 32)
    assert not differences(before, snapshot(model))


@pytest.mark.each_value
@pytest.mark.parametrize("method", ["linear", "s2a", "unipt", "lst", "bias"])
@pytest.mark.parametrize(
    ("make_model", "size"),
    [
        (lambda: tiny.vit(num_classes=0), 32),
        (lambda: tiny.vit(num_classes=0, global_pool="avg"), 32),
        (lambda: tiny.vit(num_classes=0, global_pool="map"), 32),
        (lambda: tiny.vit(num_classes=0, global_pool="avg", class_token=False, fc_norm=True), 32),
        (lambda: tiny.vit(global_pool="max", class_token=False, reg_tokens=2), 32),
        (lambda: tiny.swin(num_classes=0), 64),
        (lambda: timm.create_model("test_resnet", num_classes=0), 64),
        (lambda: timm.create_model("test_resnet", global_pool="catavgmax"), 64),
        (lambda: timm.create_model("test_convnext", num_classes=0, global_pool="max"), 64),
    ],
)
def test_pools_and_missing_heads_are_right(make_model: Any, size: int, method: str) -> None:
    """The features in front of the new head are the model's own; a merged model computes what the adapted one does."""
    model, images = make_model().eval(), torch.randn(2, 3, size, size)
    expected = model.forward_head(model.forward_features(images), pre_logits=True)
    adapted = s2a.attach(model, s2a.method_config(method), 5, image_size=size).eval()
    features = adapted.method(adapted.backbone, images)
    if adapted.method.identity_at_start:
        torch.testing.assert_close(features[:, : expected.shape[1]], expected)
    logits = adapted(images)
    assert logits.shape == (2, 5)
    if method in ("linear", "bias"):
        merged: Any = s2a.merge(adapted)
        torch.testing.assert_close(merged(images), logits)
        assert (merged.num_classes, merged.get_classifier().out_features) == (5, 5)
    logits.sum().backward()


def test_two_heads_are_refused() -> None:
    model = timm.create_model("deit_tiny_distilled_patch16_224", img_size=32, patch_size=8, depth=1)
    with pytest.raises(s2a.UnsupportedModel, match="no single classifier module"):
        s2a.attach(model, s2a.S2AConfig(), 5)


# Quantised weights


class Int8Weight(torch.Tensor):
    """A weight as torchao's: a tensor class that stands for int8 values and a scale, and multiplies by itself."""

    integers: torch.Tensor
    scale: torch.Tensor

    @staticmethod
    def __new__(cls, weight: torch.Tensor) -> Int8Weight:
        return torch.Tensor._make_wrapper_subclass(cls, weight.shape, dtype=weight.dtype)  # type: ignore[attr-defined]

    def __init__(self, weight: torch.Tensor) -> None:
        self.scale = weight.abs().amax(1, keepdim=True) / 127
        self.integers = (weight / self.scale).round().to(torch.int8)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.linear:
            x, weight, *rest = args
            return nn.functional.linear(x, weight.integers * weight.scale, *rest, **(kwargs or {}))
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return args[0]
        raise NotImplementedError(func)


class Int8Linear(nn.Module):
    """A linear layer with int8 weights as a buffer."""

    def __init__(self, layer: Any) -> None:
        super().__init__()
        self.register_buffer("weight", layer.weight.detach().mul(127).round().to(torch.int8))
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.weight.to(x.dtype) / 127, self.bias)  # type: ignore[operator]


def tensor_class(model: Any) -> Any:
    for block in model.blocks:
        block.mlp.fc1.weight = nn.Parameter(Int8Weight(block.mlp.fc1.weight.detach()), requires_grad=False)
    return model


def int8_module(model: Any) -> Any:
    model.blocks[0].mlp.fc1 = Int8Linear(model.blocks[0].mlp.fc1)
    return model


def float8(model: Any) -> Any:
    weight = model.blocks[0].mlp.fc1.weight.detach().to(torch.float8_e4m3fn)
    model.blocks[0].mlp.fc1.weight = nn.Parameter(weight, requires_grad=False)
    return model


def dynamic(model: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(model, {nn.Linear}, dtype=torch.qint8)


@pytest.mark.parametrize("method", ["bias", "lora", "linear", "s2a"])
@pytest.mark.parametrize("quantise", [tensor_class, int8_module, float8, dynamic])
def test_quantised_backbones_are_refused(quantise: Any, method: str) -> None:
    model = quantise(tiny.vit().eval())
    with pytest.raises(s2a.UnsupportedModel, match=r"blocks\.0\.\S+ (is a|holds) .*attach to the model as it was"):
        s2a.attach(model, s2a.method_config(method), 5)
