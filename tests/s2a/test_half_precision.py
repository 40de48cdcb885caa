"""Backbones in half precision: what trains is float32, the rest stays as it is, and detach gives every bit back."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import s2a
import tiny
import torch
import torch.nn.functional as F
from s2a.testing import differences, snapshot

LABELS = torch.arange(4)
HALVES = [torch.bfloat16, torch.float16]
METHODS = ["s2a", "bias", "lora", "full", "adapter", "linear", "vpt", "lst"]


def adapted_in(dtype: torch.dtype, name: str, method: str, **options: Any) -> tuple[s2a.Adapted, torch.Tensor]:
    make_model, size = tiny.MODELS[name]
    model = make_model().to(dtype)
    adapted = s2a.attach(model, s2a.method_config(method, **options), tiny.CLASSES, image_size=size).train()
    return adapted, torch.randn(4, 3, size, size)


def trained_dtypes(adapted: s2a.Adapted) -> set[torch.dtype]:
    return {p.dtype for p in s2a.trainable_parameters(adapted).values()}


def test_a_small_step_moves_every_bias() -> None:
    """In bfloat16 a step of 1e-4 from a value of 1 is rounded away; AdamW's first step has the size of its rate."""
    adapted, images = adapted_in(torch.bfloat16, "vit", "bias")
    before = {name: p.detach().clone() for name, p in s2a.trainable_parameters(adapted).items()}
    optimiser = torch.optim.AdamW(s2a.trainable_parameters(adapted).values(), lr=1e-4, weight_decay=0)
    F.cross_entropy(adapted(images.bfloat16()), LABELS).backward()
    optimiser.step()
    for name, p in s2a.trainable_parameters(adapted).items():
        assert p.grad is not None
        moved, wanted = p.detach() - before[name], p.grad.abs() > 1e-5
        torch.testing.assert_close(moved[wanted].abs(), torch.full_like(moved[wanted], 1e-4), rtol=0.02, atol=2e-7)


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
@pytest.mark.parametrize("method", METHODS)
def test_what_trains_is_float32_and_detach_gives_the_backbone_back(method: str, name: str, dtype: torch.dtype) -> None:
    make_model, size = tiny.MODELS[name]
    model = make_model().to(dtype)
    before = snapshot(model)
    adapted = s2a.attach(model, s2a.method_config(method), tiny.CLASSES, image_size=size).train()
    assert trained_dtypes(adapted) == {torch.float32}
    images = torch.randn(4, 3, size, size)
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    optimiser = torch.optim.AdamW(s2a.trainable_parameters(adapted).values())
    for given in (images, images.to(dtype)):  # The images may be in either format.
        scaler.scale(F.cross_entropy(adapted(given), LABELS)).backward()
    scaler.unscale_(optimiser)
    assert {p.grad.dtype for p in s2a.trainable_parameters(adapted).values() if p.grad is not None} == {torch.float32}
    s2a.detach(adapted)
    assert not differences(before, snapshot(model))


@pytest.mark.parametrize("activations", ["exact", "paper", "lean"])
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_gradients_are_as_close_as_those_of_mixed_precision(name: str, activations: str) -> None:
    """Against float32, beside the same weights in float32 under autocast (https://arxiv.org/abs/1710.03740)."""
    half, images = adapted_in(torch.bfloat16, name, "s2a", activations=activations)
    model = s2a.detach(copy.deepcopy(half)).float()
    wide = s2a.attach(model, half.config, tiny.CLASSES, image_size=images.shape[-1]).train()
    wide.load_state_dict({key: value.float() for key, value in half.state_dict().items()})
    found = []
    for adapted, mixed in ((half, False), (wide, True), (wide, False)):
        adapted.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            loss = F.cross_entropy(adapted(images).float(), LABELS)
        loss.backward()
        grads = (p.grad for p in s2a.trainable_parameters(adapted).values() if p.grad is not None)
        found.append(torch.cat([grad.flatten().clone() for grad in grads]))
    mine, others = (1 - float(F.cosine_similarity(grad, found[2], dim=0)) for grad in found[:2])
    assert mine < 2 * others + 0.005
    assert float(found[0].norm() / found[2].norm()) == pytest.approx(1, abs=0.1)


def test_frozen_weights_stay_in_half_precision() -> None:
    adapted, _ = adapted_in(torch.bfloat16, "vit", "bias")
    frozen = {name: p for name, p in adapted.named_parameters() if not p.requires_grad}
    assert {p.dtype for name, p in frozen.items() if "norm" not in name} == {torch.bfloat16}


def test_half_precision_is_there_for_the_asking() -> None:
    images = torch.randn(2, 3, 32, 32).bfloat16()
    asked = s2a.attach(tiny.vit().bfloat16(), s2a.S2AConfig(), 5, trainable_dtype=torch.bfloat16)
    moved = s2a.attach(tiny.vit().bfloat16(), s2a.S2AConfig(), 5).to(torch.bfloat16)
    for adapted in (asked, moved):
        assert {p.dtype for p in adapted.parameters()} == {torch.bfloat16}
        adapted(images).float().sum().backward()
    with pytest.raises(s2a.S2AError, match=r"trainable_dtype=torch.float16 does not fit a backbone in torch.bfloat16"):
        s2a.attach(tiny.vit().bfloat16(), s2a.S2AConfig(), 5, trainable_dtype=torch.float16)
    assert trained_dtypes(s2a.attach(tiny.vit().double(), s2a.S2AConfig(), 5)) == {torch.float64}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_detach_follows_a_move_to_another_format(dtype: torch.dtype) -> None:
    model = tiny.resnet().bfloat16()
    expected = copy.deepcopy(model).to(dtype)
    adapted = s2a.attach(model, s2a.method_config("bias"), 5, image_size=64).to(dtype)
    adapted(torch.randn(4, 3, 64, 64, dtype=dtype)).sum().backward()
    back = s2a.detach(adapted).state_dict()
    assert back.keys() == expected.state_dict().keys()
    for key, value in expected.state_dict().items():
        assert back[key].dtype == value.dtype and torch.equal(back[key], value), key


@pytest.mark.parametrize("method", ["bias", "lora", "full"])
def test_a_merged_model_is_in_the_backbones_own_format(method: str) -> None:
    adapted, images = adapted_in(torch.bfloat16, "vit", method)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(0.02 * torch.randn_like(parameter))
    merged = s2a.merge(adapted.eval())
    assert {p.dtype for p in merged.parameters()} == {torch.bfloat16}
    expected = adapted(images.bfloat16())
    torch.testing.assert_close(merged(images.bfloat16()).float(), expected, rtol=0.05, atol=0.03)


def test_calculators_take_half_precision() -> None:
    adapted, images = adapted_in(torch.bfloat16, "vit", "bias")
    wide, _ = adapted_in(torch.float32, "vit", "bias")
    assert s2a.saved_bytes(adapted, images).total < s2a.saved_bytes(wide, images).total
    assert s2a.simulated_peak(adapted, 4).categories["weights"] < s2a.simulated_peak(wide, 4).categories["weights"]
    assert s2a.theoretical_memory(adapted, 4).total > 0
    assert adapted_in(torch.bfloat16, "vit", "s2a", activations="lean")[0].plan is not None


def test_cast_frozen_runs_without_an_autocast_around_it() -> None:
    adapted, images = adapted_in(torch.float32, "vit", "bias")
    s2a.cast_frozen(adapted)
    with torch.autocast("cpu", torch.bfloat16):
        expected = adapted(images).float()
    torch.testing.assert_close(adapted(images), expected, rtol=0.02, atol=0.02)
