"""The baselines against dense formulations of their own papers."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from typing import Any

import oracles
import pytest
import s2a
import tiny
import torch
from method_contract import IN_BOTH_RINGS
from s2a.backbones.view import describe
from s2a.structure.bias import additive_biases
from s2a.testing import check_method, differences, snapshot
from s2a_baselines.lora import LoRA, LoRAConfig
from torch import nn


def attached(name: str, method: str, **options: Any) -> Any:
    make_model, size = tiny.MODELS[name]
    return s2a.attach(make_model(), s2a.method_config(method, **options), tiny.CLASSES, image_size=size)


def randomised(adapted: Any) -> Any:
    """Everything trainable away from its start."""
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return adapted


@pytest.fixture(params=tiny.MODELS)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


# Full, linear, bias


def test_full_trains_everything(family: str) -> None:
    adapted = attached(family, "full")
    assert all(p.requires_grad for p in adapted.parameters())
    assert sum(1 for _ in adapted.method.parameters()) == 0


def test_full_is_ordinary_training() -> None:
    model, images = tiny.vit(), torch.randn(2, 3, 32, 32)
    plain = copy.deepcopy(model)
    adapted = s2a.attach(model, s2a.method_config("full"))
    for m in (plain, adapted):
        m(images).square().sum().backward()
    for name, parameter in plain.named_parameters():
        own = adapted.get_parameter(name if name.startswith("head.") else f"backbone.{name}")
        torch.testing.assert_close(own.grad, parameter.grad)


def test_linear_trains_the_head_on_fixed_features(family: str) -> None:
    make_model, size = tiny.MODELS[family]
    model, images = make_model().train(), torch.randn(4, 3, size, size)
    expected = copy.deepcopy(model).eval().forward_head(model.eval().forward_features(images), pre_logits=True)
    model.train()
    adapted = s2a.attach(model, s2a.method_config("linear"), 3, image_size=size).train()
    assert adapted.training
    assert not any(m.training for m in adapted.backbone.modules())
    assert s2a.trainable_parameters(adapted).keys() == {"head.weight", "head.bias"}
    features = adapted.method(adapted.backbone, images)
    assert features.grad_fn is None
    assert torch.equal(features, expected)
    assert torch.equal(adapted(images), adapted.head(features))


def test_linear_keeps_the_heads_input_alone(family: str) -> None:
    adapted = attached(family, "linear").train()
    _, size = tiny.MODELS[family]
    kept = s2a.saved_bytes(adapted, torch.randn(4, 3, size, size), torch.sum)
    assert kept == {"head": 4 * 4 * adapted.head.in_features}


def test_linear_gives_modes_back() -> None:
    model = tiny.resnet().train()
    model.bn1.eval()
    before = snapshot(model)
    adapted = s2a.attach(model, s2a.method_config("linear"), 3, image_size=64)
    adapted.train().eval().train()(torch.randn(4, 3, 64, 64)).sum().backward()
    s2a.detach(adapted)
    assert not differences(before, snapshot(model))
    model.eval()
    assert not model.layer1.training  # The method's ``train`` is gone.


def test_bias_trains_additive_biases(family: str) -> None:
    adapted = attached(family, "bias")
    names = {f"backbone.{n}" for n in additive_biases(adapted.backbone)}
    assert s2a.trainable_parameters(adapted).keys() == names | {"head.weight", "head.bias"}


def test_bias_gradients_are_autograds(family: str) -> None:
    make_model, size = tiny.MODELS[family]
    model, images = make_model().eval(), torch.randn(2, 3, size, size)
    plain = copy.deepcopy(model)
    adapted = s2a.attach(model, s2a.method_config("bias"), image_size=size)
    for m in (plain, adapted):
        m(images).square().sum().backward()
    for name in additive_biases(plain):
        if name not in ("head.bias", "fc.bias", "head.fc.bias"):
            torch.testing.assert_close(adapted.backbone.get_parameter(name).grad, plain.get_parameter(name).grad)


@pytest.mark.parametrize("name", ["convnext_conv", "resnet"])
def test_bias_keeps_no_input_of_a_convolution(name: str) -> None:
    adapted = attached(name, "bias")
    _, size = tiny.MODELS[name]
    kept = s2a.saved_bytes(adapted, torch.randn(2, 3, size, size))
    convolutions = {n for n, m in adapted.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions
    assert not convolutions & kept.keys()


# LoRA

TARGETS = {"vit": ("qkv", "proj", "fc1", "fc2"), "swin": ("qkv", "fc2"), "convnext": ("fc1", "fc2"), "eva": ("proj",)}
TARGETS |= {"convnext_conv": TARGETS["convnext"], "resnet": ("conv2",)}


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize("alpha", [None, 6.0])
def test_lora_is_a_sum_of_weights(name: str, alpha: float | None) -> None:
    """A plain model with W + alpha / r B A written into its layers gives the same logits; so does the merged one."""
    make_model, size = tiny.MODELS[name]
    dense, images = make_model().eval(), torch.randn(2, 3, size, size)
    config = LoRAConfig(rank=3, targets=TARGETS[name], alpha=alpha)
    adapted = randomised(s2a.attach(copy.deepcopy(dense), config, 7, image_size=size))
    logits, before = adapted(images), snapshot(adapted)
    method = adapted.method
    assert type(method) is LoRA
    for path, update in zip(adapted.method.names, adapted.method.updates, strict=True):
        weight = dense.get_submodule(path).weight
        a, b = update.a.weight.flatten(1), update.b.weight.flatten(1)
        assert (a.shape[0], b.shape[1]) == (3, 3)
        summed = oracles.lora_weight(weight.detach().flatten(1), a, b, 3.0 if alpha is None else alpha)
        weight.data = summed.view_as(weight)
    assert len(set(method.names)) == len(TARGETS[name]) * len(describe(dense, size).blocks)
    features = dense.forward_head(dense.forward_features(images), pre_logits=True)
    torch.testing.assert_close(logits, features @ adapted.head.weight.T + adapted.head.bias, rtol=1e-4, atol=1e-5)
    merged: Any = s2a.merge(adapted)
    torch.testing.assert_close(merged(images), logits, rtol=1e-4, atol=1e-5)
    assert type(merged) is type(dense)
    assert merged.state_dict().keys() == dense.state_dict().keys()
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in merged.modules())
    assert not differences(before, snapshot(adapted))  # Merging leaves the adapted model as it was.


@pytest.mark.parametrize("name", TARGETS)
def test_lora_gradients_are_those_of_the_sum(name: str) -> None:
    """Chain rule through W + s B A: the gradients of A and B are s B^T G and s G A^T."""
    make_model, size = tiny.MODELS[name]
    dense, images = make_model().eval().double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    config = LoRAConfig(rank=3, targets=TARGETS[name], alpha=6.0)
    adapted = randomised(s2a.attach(copy.deepcopy(dense), config, image_size=size))
    adapted(images).square().sum().backward()
    with torch.no_grad():
        head = dense.get_classifier()
        head.load_state_dict(adapted.head.state_dict())
        for path, update in zip(adapted.method.names, adapted.method.updates, strict=True):
            weight = dense.get_submodule(path).weight
            weight += 2.0 * (update.b.weight.flatten(1) @ update.a.weight.flatten(1)).view_as(weight)
    dense(images).square().sum().backward()
    for path, update in zip(adapted.method.names, adapted.method.updates, strict=True):
        whole = dense.get_submodule(path).weight.grad.flatten(1)
        a, b = update.a.weight, update.b.weight
        torch.testing.assert_close(a.grad.flatten(1), 2.0 * b.flatten(1).T @ whole)
        torch.testing.assert_close(b.grad.flatten(1), 2.0 * whole @ a.flatten(1).T)


def test_lora_has_the_papers_sizes() -> None:
    """On the fused projection, r = C / 16: 4 C r values in every block."""
    adapted = attached("vit", "lora")
    for update in adapted.method.updates:
        assert update.a.weight.shape == (4, 64)
        assert update.b.weight.shape == (3 * 64, 4)
        assert not bool(update.b.weight.any())
        bound = (3 / 64) ** 0.5 * (2 / 6) ** 0.5  # Kaiming-uniform with a = sqrt(5) over 64 inputs: 1 / sqrt(64).
        assert abs(bound - 64**-0.5) < 1e-9
        assert 0.8 * bound < float(update.a.weight.detach().abs().max()) <= bound
    assert sum(p.numel() for p in adapted.method.parameters()) == 2 * 4 * 64 * 4


def test_lora_follows_the_width_of_a_hierarchy() -> None:
    adapted = attached("swin", "lora")
    assert [u.a.weight.shape for u in adapted.method.updates] == [(2, 32), (2, 32), (4, 64), (4, 64), (8, 128)]


def test_lora_keeps_input_and_hidden_tensor_of_its_layer() -> None:
    adapted = attached("vit", "lora", rank=4)
    kept = s2a.saved_bytes(adapted, torch.randn(2, 3, 32, 32))
    for i in range(2):
        assert kept[f"method.updates.{i}.a"] == 4 * 2 * 65 * 64
        assert kept[f"method.updates.{i}.b"] == 4 * 2 * 65 * 4


def test_lora_dropout_acts_in_training_alone() -> None:
    adapted = randomised(attached("vit", "lora", dropout=0.5))
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(adapted.eval()(images), adapted(images))
    assert not torch.equal(adapted.train()(images), adapted(images))


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", {"targets": ("qkv", "proj", "fc1", "fc2"), "dropout": 0.1}),
        ("swin", {"targets": ("proj",), "rank": 2, "alpha": 8.0}),
        ("convnext", {"targets": ("fc1", "fc2")}),
        ("convnext_conv", {"targets": ("fc2",), "rank": 5}),
    ],
)
@IN_BOTH_RINGS
def test_lora_elsewhere_keeps_its_promises(name: str, options: dict[str, Any], checks: Any) -> None:
    make_model, size = tiny.MODELS[name]
    check_method(LoRAConfig(**options), make_model, tiny.CLASSES, image_size=size, checks=checks)


@pytest.mark.parametrize("mode", [True, False])
def test_merging_keeps_the_mode_and_the_class_count(mode: bool) -> None:
    adapted = attached("swin", "lora").train(mode)
    merged: Any = s2a.merge(adapted)
    assert merged.training is mode
    assert (merged.num_classes, merged.get_classifier().out_features) == (tiny.CLASSES, tiny.CLASSES)


def test_a_merged_model_can_be_adapted_again() -> None:
    adapted = randomised(attached("vit", "lora")).eval()
    images = torch.randn(2, 3, 32, 32)
    again = s2a.attach(s2a.merge(adapted), s2a.method_config("lora")).eval()
    torch.testing.assert_close(again(images), adapted(images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": -1}, "rank=-1 is not a size; give an integer of at least 0"),
        ({"rank": 1.5}, "rank=1.5"),
        ({"rank": True}, "rank=True"),
        ({"reduction": 0}, "reduction=0 is not a size; give an integer of at least 1"),
        ({"targets": ()}, r"targets=\(\) must name"),
        ({"targets": ("qkv", "qkv")}, "each of its layers once"),
        ({"targets": ("query",)}, "choose from qkv, proj, fc1, fc2"),
        ({"alpha": 0.0}, "alpha=0.0 must be above 0"),
        ({"alpha": float("nan")}, "alpha=nan"),
        ({"alpha": "r*0"}, "alpha='r\\*0'"),
        ({"alpha": "4r"}, "alpha='4r' is not a multiple of the rank"),
        ({"dropout": 1.0}, r"dropout=1.0 is out of range; give a probability in \[0, 1\)"),
        ({"dropout": -0.1}, "dropout=-0.1"),
    ],
)
def test_bad_lora_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        LoRAConfig(**options)


@pytest.mark.parametrize("name", ["vit", "swin"])
def test_alpha_as_a_multiple_of_the_rank_is_one_scale_in_every_layer(name: str) -> None:
    """Swin's ranks follow its widths; ``r*4`` is 4 r / r in each of them, a number is not."""
    make_model, size = tiny.MODELS[name]
    adapted = s2a.attach(make_model(), LoRAConfig(reduction=8, alpha="r*4"), 7, image_size=size)
    updates: Any = adapted.method.updates
    assert {update.scale for update in updates} == {4.0}
    assert len({update.a.weight.shape[0] for update in updates}) == (3 if name == "swin" else 1)


def test_targets_may_be_a_list_or_one_name() -> None:
    assert s2a.method_config("lora", targets=["qkv", "fc1"]) == LoRAConfig(targets=("qkv", "fc1"))
    assert s2a.method_config("lora", targets="proj").targets == ("proj",)


def _grouped() -> nn.Module:
    model = tiny.convnext_conv()
    model.stages[0].blocks[0].mlp.fc1 = nn.Conv2d(32, 128, 1, groups=2)
    return model


@pytest.mark.parametrize(
    ("make_model", "size", "options", "message"),
    [
        (
            tiny.vit,
            32,
            {"rank": 65},
            "rank=65 is larger than the smaller side of blocks.0.attn.qkv, 64; choose 1 to 64",
        ),
        (tiny.vit, 32, {"reduction": 7}, "reduction=7 does not divide the 64 channels in front of blocks.0.attn.qkv"),
        (tiny.swin, 64, {"rank": 33}, "choose 1 to 32"),
        (tiny.resnet, 64, {"targets": ("fc1",)}, "this resnet has no 'fc1'; it has conv1, conv2"),
        (tiny.convnext, 64, {"targets": ("qkv",)}, "this convnext has no 'qkv'; it has fc1, fc2"),
        (tiny.eva, 32, {}, "this vit has no 'qkv'; it has proj, fc1, fc2"),
        (
            _grouped,
            64,
            {"targets": ("fc1",)},
            "fc1 is Conv2d; low-rank updates are for linear layers and convolu",
        ),
    ],
)
def test_lora_that_does_not_fit_leaves_the_model_alone(
    make_model: Callable[[], Any], size: int, options: dict[str, Any], message: str
) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        s2a.attach(model, LoRAConfig(**options), 5, image_size=size)
    assert not differences(before, snapshot(model))


@pytest.mark.parametrize("method", ["full", "linear", "bias"])
def test_what_adds_nothing_merges_into_the_plain_model(family: str, method: str) -> None:
    make_model, size = tiny.MODELS[family]
    plain, images = make_model(), torch.randn(2, 3, size, size)
    adapted = randomised(s2a.attach(copy.deepcopy(plain), s2a.method_config(method), 7, image_size=size)).eval()
    before = snapshot(adapted)
    merged: Any = s2a.merge(adapted)
    assert torch.equal(merged(images), adapted(images))
    assert type(merged) is type(plain) and merged.state_dict().keys() == plain.state_dict().keys()
    assert not differences(before, snapshot(adapted))


def test_what_the_backbone_cannot_compute_is_not_merged() -> None:
    adapted = attached("vit", "adapter")
    before = snapshot(adapted)
    with pytest.raises(s2a.S2AError, match="Adapter cannot be merged"):
        s2a.merge(adapted)
    assert not differences(before, snapshot(adapted))
    with pytest.raises(s2a.S2AError, match=r"merge takes what s2a\.attach returned, not VisionTransformer"):
        s2a.merge(tiny.vit())
