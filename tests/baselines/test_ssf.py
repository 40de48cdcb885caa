"""The SSF baseline against its equation, and against weights that the scales were multiplied into by hand."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a.backbones.view import pooled_features
from s2a.structure.bias import additive_biases
from s2a.testing import differences, snapshot
from s2a_baselines.ssf import SSF, ScaleShift, SSFConfig, channel_axis
from timm.layers.norm import LayerNorm, LayerNorm2d, LayerNorm2dFp32
from timm.layers.norm_act import BatchNormAct2d, LayerNormAct2d
from torch import Tensor, nn

CLASSIFIERS = ("head.weight", "head.bias", "fc.weight", "fc.bias", "head.fc.weight", "head.fc.bias")


def attached(name: str, config: SSFConfig | None = None, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Tensor]:
    """A plain tiny model in evaluation mode, an adapted copy, and images."""
    make_model, size = tiny.MODELS[name]
    model = make_model().eval().to(dtype)
    if name == "resnet":  # Statistics as after training: means and variances of their own in every channel.
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                assert module.running_mean is not None and module.running_var is not None
                nn.init.normal_(module.running_mean)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
    adapted = s2a.attach(copy.deepcopy(model), config or SSFConfig(), tiny.CLASSES, image_size=size)
    return model, adapted, torch.randn(2, 3, size, size, dtype=dtype)


def dense_hook(gamma: Tensor, beta: Tensor, module: nn.Module, args: Any, output: Tensor) -> Tensor:
    """y_c = gamma_c x_c + beta_c, channel by channel; where the channels are is read off how the layer computes."""
    first = isinstance(module, nn.Conv2d | nn.BatchNorm2d | LayerNorm2d)
    channels = [output[:, c] if first else output[..., c] for c in range(len(gamma))]
    scaled = [gamma[c] * x + beta[c] for c, x in enumerate(channels)]
    return torch.stack(scaled, 1 if first else -1)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_outputs_and_gradients_are_the_equation(name: str) -> None:
    model, adapted, images = attached(name, SSFConfig(std=0.2))
    method, leaves = adapted.method, {}
    assert type(method) is SSF
    for path, scale in zip(method.names, method.scales, strict=True):
        for key in ("gamma", "beta"):
            leaves[path, key] = getattr(scale, key).detach().clone().requires_grad_()
        hook = partial(dense_hook, leaves[path, "gamma"], leaves[path, "beta"])
        model.get_submodule(path).register_forward_hook(hook)
    expected, found = pooled_features(model, images), method(adapted.backbone, images)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for path, scale in zip(method.names, method.scales, strict=True):
        for key in ("gamma", "beta"):
            assert bool(leaves[path, key].grad.any())
            torch.testing.assert_close(
                getattr(scale, key).grad, leaves[path, key].grad, msg=lambda m, n=path: f"{n}: {m}"
            )


# Written out, so that the list of layers has a second source.
SITES = {
    "vit": {"patch_embed.proj", "norm"}
    | {f"blocks.{i}.{p}" for i in (0, 1) for p in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")},
    "eva": {"patch_embed.proj", "fc_norm"}
    | {f"blocks.{i}.{p}" for i in (0, 1) for p in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")},
    "convnext": {"stem.0", "stem.1", "head.norm"}
    | {f"stages.{s}.downsample.{i}" for s in range(4) for i in (0, 1)}
    | {
        f"stages.{b}.{p}"
        for b in ("0.blocks.0", "1.blocks.0", "2.blocks.0", "2.blocks.1", "3.blocks.0")
        for p in ("conv_dw", "norm", "mlp.fc1", "mlp.fc2")
    },
}
SITES["vit_registers"] = SITES["vit"]


@pytest.mark.parametrize("name", SITES)
def test_it_sits_behind_these_layers(name: str) -> None:
    _, adapted, _ = attached(name)
    assert len(adapted.method.names) == len(set(adapted.method.names))
    assert set(adapted.method.names) == SITES[name]


def test_swins_reduction_has_no_bias_and_no_scale() -> None:
    _, adapted, _ = attached("swin")
    assert "layers.1.downsample.norm" in adapted.method.names
    assert "layers.1.downsample.reduction" not in adapted.method.names


def test_resnets_scales_sit_behind_batch_norms_alone() -> None:
    model, adapted, _ = attached("resnet")
    norms = [n for n, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert adapted.method.names == norms


@pytest.mark.parametrize("name", [n for n in tiny.MODELS if n != "eva"])
def test_the_count_is_twice_that_of_the_biases(name: str) -> None:
    model, adapted, _ = attached(name)
    biases = sum(b.numel() for n, b in additive_biases(model).items() if n not in CLASSIFIERS)
    assert sum(p.numel() for p in adapted.method.parameters()) == 2 * biases
    trained = {n for n in s2a.trainable_parameters(adapted) if not n.startswith("head.")}
    assert trained == {f"method.{n}" for n, _ in adapted.method.named_parameters()}


# Published counts, as sums of the widths of what a layer puts out.
WIDTHS, DEPTHS = (128, 256, 512, 1024), {"swin": (2, 2, 18, 2), "convnext": (3, 3, 27, 3)}
COUNTS = {
    # Patch embedding; norm1, qkv, proj, norm2, fc1, fc2 of twelve blocks; last norm.
    "vit_base_patch16_224": 768 + 12 * (1 + 3 + 1 + 1 + 4 + 1) * 768 + 768,
    # Patch embedding and its norm; blocks; norms of 4 C in front of three mergings; last norm.
    "swin_base_patch4_window7_224": 128
    + 128
    + sum(n * 11 * c for n, c in zip(DEPTHS["swin"], WIDTHS, strict=True))
    + sum(4 * c for c in WIDTHS[:3])
    + 1024,
    # Stem and its norm; conv_dw, norm, fc1, fc2; norm of C and convolution to 2 C between stages; last norm.
    "convnext_base": 128
    + 128
    + sum(n * 7 * c for n, c in zip(DEPTHS["convnext"], WIDTHS, strict=True))
    + sum(c + 2 * c for c in WIDTHS[:3])
    + 1024,
}


@pytest.mark.parametrize(
    ("name", "published"),
    [("vit_base_patch16_224", 205_824), ("swin_base_patch4_window7_224", 274_432), ("convnext_base", 260_608)],
)
def test_published_counts(name: str, published: int) -> None:
    assert 2 * COUNTS[name] == published
    adapted = s2a.attach(timm.create_model(name), SSFConfig(), 100)
    assert sum(p.numel() for p in adapted.method.parameters()) == published


def test_the_start_is_gaussian_around_the_identity() -> None:
    _, adapted, _ = attached("convnext")
    gamma = torch.cat([s.gamma.detach() for s in adapted.method.scales])
    beta = torch.cat([s.beta.detach() for s in adapted.method.scales])
    error = 0.02 / len(gamma) ** 0.5  # Standard error of the mean.
    for values, mean in ((gamma, 1.0), (beta, 0.0)):
        assert abs(float(values.mean()) - mean) < 5 * error
        assert 0.019 < float(values.std()) < 0.021
        assert float((values - mean).abs().max()) > 0.05  # Uniform values would end at 0.035.


@pytest.mark.parametrize("name", tiny.MODELS)
def test_without_spread_the_start_is_the_backbone(name: str) -> None:
    model, adapted, images = attached(name, SSFConfig(std=0.0))
    torch.testing.assert_close(adapted.method(adapted.backbone, images), pooled_features(model, images))


# Merging


@pytest.mark.parametrize("name", tiny.MODELS)
def test_merging_is_exact(name: str) -> None:
    model, adapted, images = attached(name, SSFConfig(std=0.3))
    before = snapshot(adapted)
    merged: Any = s2a.merge(adapted)
    torch.testing.assert_close(merged(images), adapted(images), rtol=1e-9, atol=1e-9)
    assert not differences(before, snapshot(adapted))
    assert not any(m._forward_hooks for m in merged.modules())
    weights, plain = merged.state_dict(), model.state_dict()
    assert weights.keys() == plain.keys()
    scales = dict(zip(adapted.method.names, adapted.method.scales, strict=True))
    for key in plain:
        if key in CLASSIFIERS:
            continue
        path, _, leaf = key.rpartition(".")
        scale, expected = scales.get(path), plain[key].clone()
        if scale is not None and leaf in ("weight", "bias"):
            for c in range(len(expected)):
                expected[c] = expected[c] * scale.gamma[c] + (scale.beta[c] if leaf == "bias" else 0)
        torch.testing.assert_close(weights[key], expected, msg=lambda m, n=key: f"{n}: {m}")


def test_a_layer_with_its_own_activation_is_not_merged() -> None:
    """ReLU(x) * gamma is no ReLU of anything where gamma is negative; the model itself stays as it is."""
    model: Any = tiny.resnet()
    model.bn1 = BatchNormAct2d(model.bn1.num_features)
    adapted = s2a.attach(model.eval(), SSFConfig(), tiny.CLASSES, image_size=64)
    before = snapshot(adapted)
    with pytest.raises(s2a.S2AError, match=r"ssf cannot be merged here: bn1 \(BatchNormAct2d\) applies ReLU itself"):
        s2a.merge(adapted)
    assert not differences(before, snapshot(adapted))
    model = s2a.detach(adapted)
    model.bn1 = BatchNormAct2d(model.bn1.num_features, apply_act=False).eval()
    adapted, images = s2a.attach(model, SSFConfig(), tiny.CLASSES, image_size=64), torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(s2a.merge(adapted)(images), adapted(images), rtol=1e-4, atol=1e-4)


# Memory and types


@pytest.mark.parametrize("name", tiny.MODELS)
def test_gamma_keeps_every_output_and_beta_nothing(name: str) -> None:
    _, adapted, images = attached(name, dtype=torch.float32)
    sizes: dict[str, int] = {}
    plain, _, _ = attached(name, dtype=torch.float32)

    def note(path: str, module: nn.Module, args: Any, output: Tensor) -> None:
        sizes[path] = 4 * output.numel()

    for path in adapted.method.names:
        plain.get_submodule(path).register_forward_hook(partial(note, path))
    pooled_features(plain, images)
    expected = {f"scales.{i}": sizes[path] for i, path in enumerate(adapted.method.names)}
    assert adapted.method.keeps(2) == expected
    kept = s2a.saved_bytes(adapted, images).shared
    assert {n.removeprefix("method."): size for n, size in kept.items() if n.startswith("method")} == expected
    for scale in adapted.method.scales:
        scale.gamma.requires_grad_(False)
    assert not any(n.startswith("method") for n in s2a.saved_bytes(adapted, images).shared)


def test_autocast_passes_a_layers_own_type_on() -> None:
    """In float32 the next layer would keep twice the bytes; gamma itself is not rounded to bfloat16."""
    scale, x = ScaleShift(4, -1, 0.0), torch.full((2, 4), 256.0, dtype=torch.bfloat16)
    nn.init.constant_(scale.gamma, 1 + 2**-7 + 2**-9)  # Half of the way to the next bfloat16 is 2^-8 ...
    nn.init.constant_(scale.beta, 0.75)  # ... and 256 gamma + beta, 259.25, lies nearer to 260 than to 258.
    with torch.autocast("cpu", torch.bfloat16):
        y = scale(x)
    assert y.dtype == torch.bfloat16
    assert bool((y == 260).all())
    y.float().sum().backward()
    assert scale.gamma.grad is not None and scale.gamma.grad.dtype == torch.float32


@given(st.integers(1, 5), st.lists(st.integers(1, 4), max_size=3), st.booleans())
def test_any_number_of_positions(channels: int, positions: list[int], first: bool) -> None:
    """On axis 1 of maps and the last one of tokens, also for pooled features ``(B, C)``."""
    scale = ScaleShift(channels, 1 if first else -1, 0.5).double()
    shape = (2, channels, *positions) if first else (2, *positions, channels)
    x = torch.randn(shape, dtype=torch.float64)
    equation = "bc...,c->bc..." if first else "...c,c->...c"
    ones = torch.ones_like(x)
    expected = torch.einsum(equation, x, scale.gamma) + torch.einsum(equation, ones, scale.beta)
    torch.testing.assert_close(scale(x), expected)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 3), (2, 5, 6)),
        (nn.Conv2d(6, 3, 1), (2, 6, 4, 5)),
        (nn.BatchNorm2d(3), (2, 3, 4, 5)),
        (nn.GroupNorm(1, 3), (2, 3, 4, 5)),
        (nn.LayerNorm(3), (2, 4, 5, 3)),
        (LayerNorm(3), (2, 5, 3)),
        (LayerNorm2d(3), (2, 3, 4, 5)),
        (LayerNorm2dFp32(3), (2, 3, 4, 5)),
        (LayerNormAct2d(3), (2, 3, 4, 5)),
    ],
)
def test_the_axis_of_the_channels(layer: nn.Module, shape: tuple[int, ...]) -> None:
    assert layer(torch.randn(shape)).shape[channel_axis(layer)] == 3


# Layers that do not fit


class Elsewhere(nn.LayerNorm):
    """A norm whose channels come out where nobody would look."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).transpose(1, 2)


class Undone(nn.Sequential):
    """``Elsewhere``, put right for the rest of the model."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).transpose(1, 2)


class Tuple(nn.Linear):
    """A layer that does not return a tensor."""

    def forward(self, input: Tensor) -> Any:
        return super().forward(input), None


class First(nn.Sequential):
    """Takes the tensor out of a ``Tuple``."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input)[0]


def _without_biases() -> Any:
    model: Any = tiny.vit()
    for module in model.modules():
        if getattr(module, "bias", None) is not None:
            module.bias = None
    return model


def _elsewhere() -> Any:
    model: Any = tiny.vit()
    model.blocks[1].norm2 = Undone(Elsewhere(64))
    return model


@pytest.mark.parametrize(
    ("make_model", "message"),
    [
        (_without_biases, "No linear, convolution or normalisation layer of this vit has a bias"),
        (_elsewhere, "blocks.1.norm2.0 (Elsewhere) outputs (1, 64, 65), not 64 channels on axis -1"),
    ],
)
def test_a_model_that_does_not_fit_stays_as_it_is(make_model: Callable[[], Any], message: str) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.UnsupportedModel, match=re.escape(message)):
        s2a.attach(model, SSFConfig(), tiny.CLASSES)
    assert not differences(before, snapshot(model))


def test_layers_that_are_not_called_with_tensors_are_left_out() -> None:
    model: Any = tiny.vit()
    model.blocks[0].mlp.fc1 = First(Tuple(64, 256))
    model.unused = nn.Linear(3, 3)
    adapted: Any = s2a.attach(model, SSFConfig(), tiny.CLASSES).eval()
    assert set(adapted.method.names) == SITES["vit"] - {"blocks.0.mlp.fc1"}
    assert bool(adapted(torch.randn(2, 3, 32, 32)).isfinite().all())


@pytest.mark.parametrize("std", [-0.1, float("inf"), float("nan"), True, "0.02", None])
def test_bad_spreads_are_refused(std: Any) -> None:
    with pytest.raises(s2a.S2AError, match=re.escape(f"std={std!r} must be a finite number of at least 0")):
        SSFConfig(std=std)
