"""The Adapter baseline against its equation, written out without layers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import s2a
import tiny
import torch
from method_contract import IN_BOTH_RINGS
from s2a.backbones.view import pooled_features
from s2a.testing import check_method, differences, snapshot
from s2a_baselines.adapter import AdapterConfig
from torch import Tensor

ENDS = ("attn.proj", "mlp.fc2")
SITES = {
    "vit": [f"blocks.{i}.{end}" for i in (0, 1) for end in ENDS],
    "eva": [f"blocks.{i}.{end}" for i in (0, 1) for end in ENDS],
    "swin": [
        f"layers.{b}.{end}" for b in ("1.blocks.0", "1.blocks.1", "2.blocks.0") for end in ("attn.proj", "mlp.fc2")
    ],
    "convnext": [
        f"stages.{b}.{end}"
        for b in ("1.blocks.0", "2.blocks.0", "2.blocks.1", "3.blocks.0")
        for end in ("conv_dw", "mlp.fc2")
    ],
}
SITES["convnext_conv"] = SITES["convnext"]
CONFIGS = {name: AdapterConfig(width=4) for name in SITES}


def attached(
    name: str, config: AdapterConfig | None = None, dtype: torch.dtype = torch.float64
) -> tuple[Any, Any, Any]:
    """A plain tiny model in evaluation mode, an adapted copy, and images."""
    make_model, size = tiny.MODELS[name]
    model = make_model().eval().to(dtype)
    adapted = s2a.attach(copy.deepcopy(model), config or AdapterConfig(), tiny.CLASSES, image_size=size)
    return model, adapted, torch.randn(2, 3, size, size, dtype=dtype)


def bottleneck(h: Tensor, w_down: Tensor, b_down: Tensor, w_up: Tensor, b_up: Tensor) -> Tensor:
    """The equation h + W_up GELU(W_down h + b_down) + b_up; ``h`` has its channels last.

    A ``w_down`` of ``(w, C)`` reads one position, one of ``(w, C / w, 3, 3)`` a neighbourhood of w groups of channels.
    """
    if w_down.dim() == 2:
        inner = torch.einsum("wc,...c->...w", w_down, h)
    else:
        (width, group), (rows, columns) = w_down.shape[:2], h.shape[1:3]
        padded = h.new_zeros(len(h), rows + 2, columns + 2, h.shape[3])
        padded[:, 1:-1, 1:-1] = h
        padded = padded.unflatten(3, (width, group))
        inner = sum(
            torch.einsum("wg,bhvwg->bhvw", w_down[:, :, i, j], padded[:, i : i + rows, j : j + columns])
            for i in range(3)
            for j in range(3)
        )
    z = inner + b_down
    return h + torch.einsum("cw,...w->...c", w_up, z * (1 + torch.erf(z / math.sqrt(2))) / 2) + b_up


def dense_hook(weights: list[Tensor], module: Any, args: Any, output: Tensor) -> Tensor:
    first = isinstance(module, torch.nn.Conv2d)
    adapted = bottleneck(output.movedim(1, -1) if first else output, *weights)
    return adapted.movedim(-1, 1) if first else adapted


@pytest.mark.parametrize("name", SITES)
def test_outputs_and_gradients_are_the_equations(name: str) -> None:
    model, adapted, images = attached(name, CONFIGS[name])
    assert adapted.method.names == SITES[name]
    leaves: dict[str, Tensor] = {}
    for i, path in enumerate(SITES[name]):
        for key, parameter in adapted.method.adapters[i].named_parameters():
            torch.nn.init.normal_(parameter, std=0.1)
            leaves[f"{i}.{key}"] = parameter.detach().clone().requires_grad_()
        down, up = leaves[f"{i}.down.weight"], leaves[f"{i}.up.weight"]
        assert down.shape[0] == 4
        weights = [down, leaves[f"{i}.down.bias"], up.flatten(1), leaves[f"{i}.up.bias"]]
        model.get_submodule(path).register_forward_hook(partial(dense_hook, weights))
    expected = pooled_features(model, images)
    found = adapted.method(adapted.backbone, images)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert len(leaves) == 4 * len(SITES[name])
    for key, leaf in leaves.items():
        grad = adapted.method.adapters.get_parameter(key).grad
        assert bool(grad.any())
        torch.testing.assert_close(grad, leaf.grad, msg=lambda m, n=key: f"{n}: {m}")


@torch.no_grad()
@pytest.mark.parametrize("name", SITES)
def test_the_start_is_nearly_the_backbone(name: str) -> None:
    """Weights of 1e-3 move features by their square; zeros in ``up`` do not move them at all."""
    model, adapted, images = attached(name)
    expected = pooled_features(model, images)
    found = adapted.method(adapted.backbone, images)
    assert 0 < float((found - expected).norm() / expected.norm()) < 1e-4
    for adapter in adapted.method.adapters:
        assert not bool(adapter.up.bias.any() | adapter.down.bias.any())
        for layer in (adapter.down, adapter.up):
            assert 0.5e-3 < float(layer.weight.std()) < 1.2e-3
            assert float(layer.weight.abs().max()) <= 2e-3
        torch.nn.init.zeros_(adapter.up.weight)
    assert torch.equal(adapted.method(adapted.backbone, images), expected)


def test_only_adapters_and_head_train() -> None:
    for name in SITES:
        _, adapted, _ = attached(name)
        names = s2a.trainable_parameters(adapted)
        assert names.keys() == {f"method.{n}" for n, _ in adapted.method.named_parameters()} | {
            "head.weight",
            "head.bias",
        }


@pytest.mark.parametrize(
    ("name", "widths"),
    [("vit", [8] * 4), ("swin", [4] * 4 + [8] * 2), ("convnext", [2, 2, 4, 4, 4, 4, 8, 8])],
)
def test_the_preset_follows_the_width_of_a_stage(name: str, widths: list[int]) -> None:
    """An eighth of the channels where there is one width; else a sixteenth, and nothing in the first stage."""
    _, adapted, _ = attached(name)
    assert [a.down.weight.shape[0] for a in adapted.method.adapters] == widths


@pytest.mark.parametrize("name", ["swin", "convnext"])
def test_all_sites_take_the_first_stage_too(name: str) -> None:
    _, adapted, _ = attached(name, AdapterConfig(sites="all", reduction=8))
    _, preset, _ = attached(name)
    first = {"swin": 2, "convnext": 1}[name]
    assert len(adapted.method.names) == len(preset.method.names) + 2 * first
    assert adapted.method.names[2 * first :] == preset.method.names


def test_a_bottleneck_keeps_its_input_and_two_hidden_tensors() -> None:
    _, adapted, images = attached("vit", AdapterConfig(width=4), torch.float32)
    kept = s2a.saved_bytes(adapted, images)
    tokens = 2 * 65
    for i in range(4):
        found = [kept.get(f"method.adapters.{i}.{part}", 0) for part in ("down", "act", "up")]
        assert found == [4 * tokens * 64, 4 * tokens * 4, 4 * tokens * 4]


@IN_BOTH_RINGS
@pytest.mark.parametrize("name", ["swin", "convnext_conv"])
def test_other_options_keep_the_promises(name: str, checks: Any) -> None:
    make_model, size = tiny.MODELS[name]
    config = AdapterConfig(width=2, sites="all", std=0.1)
    check_method(config, make_model, tiny.CLASSES, image_size=size, checks=checks)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": -1}, "width=-1 is not a size"),
        ({"width": True}, "width=True"),
        ({"reduction": 2.0}, "reduction=2.0 is not a size; give an integer of 1 or more"),
        ({"width": 4, "reduction": 8}, "give one of them"),
        ({"sites": "some"}, "sites='some' is unknown; choose 'preset' or 'all'"),
        ({"std": 0.0}, "std=0.0 must be above 0"),
        ({"std": float("nan")}, "std=nan"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        AdapterConfig(**options)


@pytest.mark.parametrize(
    ("make_model", "size", "options", "message"),
    [
        (tiny.vit, 32, {"reduction": 7}, "reduction=7 does not divide the 64 channels of blocks.0.attn.proj"),
        (tiny.vit, 32, {"width": 65}, "width=65 is larger than the 64 channels of blocks.0.attn.proj"),
        (tiny.convnext, 64, {"width": 3}, "width=3 does not divide the 32 channels of stages.1.blocks.0.conv_dw"),
        (tiny.resnet, 64, {}, "this resnet has no attention or depthwise convolution"),
    ],
)
def test_what_does_not_fit_leaves_the_model_alone(
    make_model: Callable[[], Any], size: int, options: dict[str, Any], message: str
) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        s2a.attach(model, AdapterConfig(**options), 5, image_size=size)
    assert not differences(before, snapshot(model))
