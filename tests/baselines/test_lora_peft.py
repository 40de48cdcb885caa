"""LoRA against Hugging Face's peft: the same timm model, the same A and B, the same logits and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import s2a
import tiny
import torch
from s2a_baselines.lora import LoRAConfig
from torch import Tensor, nn


def injected(model: nn.Module, rank: int, alpha: float, targets: tuple[str, ...]) -> dict[str, Any]:
    """Puts peft's LoRA on a model in place; path of every updated layer -> peft's layer."""
    # Here, not above: peft imports transformers, which every other test would otherwise wait for.
    from peft import LoraConfig, inject_adapter_in_model
    from peft.tuners.lora import LoraLayer

    # By the ends of paths: "proj" alone would be the patch embedding's too.
    ends = ["attn.proj" if target == "proj" else target for target in targets]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=ends), model)  # type: ignore[arg-type]
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLayer)}


def both(name: str, config: LoRAConfig) -> tuple[Any, nn.Module, dict[str, tuple[Any, Any]], Tensor]:
    """A float64 model under our LoRA, a copy under peft's, layer by layer what we and peft put there, and images."""
    make_model, size = tiny.MODELS[name]
    theirs = make_model().eval().double()
    ours = s2a.attach(copy.deepcopy(theirs), config, image_size=size)
    layers = injected(theirs, config.rank, config.rank * config.scale(config.rank), tuple(config.targets))
    method: Any = ours.method
    assert layers.keys() == set(method.names)
    pairs = {}
    for path, update in zip(method.names, method.updates, strict=True):
        peft_a, peft_b = (getattr(layers[path], key)["default"] for key in ("lora_A", "lora_B"))
        nn.init.normal_(update.b.weight, std=0.1)
        with torch.no_grad():
            for mine, other in ((update.a, peft_a), (update.b, peft_b)):
                assert mine.weight.shape == other.weight.shape
                other.weight.copy_(mine.weight)
        pairs[path] = update, (peft_a, peft_b)
    return ours, theirs, pairs, torch.randn(2, 3, size, size, dtype=torch.float64)


CASES = [
    ("vit", ("qkv",), 6.0),
    ("vit", ("qkv", "proj", "fc1", "fc2"), 3.0),
    ("swin", ("qkv",), 6.0),
    ("resnet", ("conv2",), 6.0),
    ("convnext", ("fc1", "fc2"), 6.0),
    ("convnext_conv", ("fc1", "fc2"), 6.0),
]


@pytest.mark.parametrize("train_a", [True, False])
@pytest.mark.parametrize(("name", "targets", "alpha"), CASES)
def test_logits_and_gradients_are_pefts(name: str, targets: tuple[str, ...], alpha: float, train_a: bool) -> None:
    """With A frozen (LoRA-FA) the function and B's gradient stay what they are, and A gets none."""
    config = LoRAConfig(rank=3, targets=targets, alpha=alpha, train_a=train_a)
    ours, theirs, pairs, images = both(name, config)
    expected, found = theirs(images), ours(images)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    for path, (update, (peft_a, peft_b)) in pairs.items():
        assert bool(peft_a.weight.grad.any()) and bool(peft_b.weight.grad.any()), path
        torch.testing.assert_close(update.b.weight.grad, peft_b.weight.grad, rtol=1e-6, atol=1e-6)
        if train_a:
            torch.testing.assert_close(update.a.weight.grad, peft_a.weight.grad, rtol=1e-6, atol=1e-6)
        else:
            assert update.a.weight.grad is None and not update.a.weight.requires_grad


@pytest.mark.parametrize(("name", "targets", "alpha"), CASES)
def test_merged_weights_are_pefts(name: str, targets: tuple[str, ...], alpha: float) -> None:
    ours, theirs, pairs, _ = both(name, LoRAConfig(rank=3, targets=targets, alpha=alpha))
    merged: Any = s2a.merge(ours)
    for path in pairs:
        layer: Any = theirs.get_submodule(path)
        before = layer.base_layer.weight.detach().clone()
        layer.merge()
        assert not torch.equal(layer.base_layer.weight, before)
        torch.testing.assert_close(merged.get_submodule(path).weight, layer.base_layer.weight, rtol=1e-6, atol=1e-6)


def test_the_start_is_drawn_like_pefts() -> None:
    """A uniform between the same bounds, B zero."""
    make_model, size = tiny.MODELS["vit"]
    model = make_model()
    layers = injected(copy.deepcopy(model), 3, 3.0, ("qkv",))
    ours: Any = s2a.attach(model, LoRAConfig(rank=3, targets="qkv"), image_size=size)
    for path, update in zip(ours.method.names, ours.method.updates, strict=True):
        bound = layers[path].lora_A["default"].weight.detach().abs().max()
        assert abs(float(update.a.weight.detach().abs().max() / bound) - 1) < 0.05
        assert not bool(layers[path].lora_B["default"].weight.any() | update.b.weight.any())
