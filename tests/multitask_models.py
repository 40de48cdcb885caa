"""Tiny backbones, adapters of them as after training, and a ``MultiTask`` of these."""

from __future__ import annotations

import copy
from typing import Any

import s2a
import tiny
import torch
from pass_models import METHODS
from torch import Tensor

SHARED = [name for name in METHODS if name != "full"]
FAMILIES = {
    "vit": SHARED,
    "vit_registers": ["s2a", "bias", "lora", "vpt", "linear"],
    "eva": ["s2a", "bias", "linear"],
    "swin": ["s2a", "bias", "lora", "adapter", "vpt", "unipt", "lst"],
    "convnext": ["s2a", "bias", "lora_mlp", "ssf", "vpt", "unipt", "lst"],
    "convnext_conv": ["s2a", "bias", "lora_mlp", "adapter"],
    "resnet": ["s2a", "bias", "ssf", "linear"],
}
"""Family -> methods that share one backbone of it."""


def backbone(family: str = "vit") -> Any:
    """A tiny backbone whose values are not as at the start."""
    torch.manual_seed(0)
    model = tiny.MODELS[family][0]().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return model


def trained(model: Any, method: str, classes: int, family: str = "vit", **options: Any) -> Any:
    """A copy of a backbone under a method, with values as after training."""
    name, own = METHODS.get(method, (method, {}))
    config = s2a.method_config(name, **own, **options)
    adapted = s2a.attach(copy.deepcopy(model), config, classes, image_size=tiny.MODELS[family][1]).eval()
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return adapted


def images(count: int, family: str = "vit", seed: int = 1) -> Tensor:
    size = tiny.MODELS[family][1]
    return torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(seed))


def close(found: Tensor, wanted: Tensor) -> bool:
    return found.shape == wanted.shape and (found - wanted).abs().max().item() < 1e-5 * (1 + wanted.abs().max().item())


def make(methods: list[str], family: str = "vit", **options: Any) -> tuple[s2a.MultiTask, dict[str, Any], Any]:
    """A service with a task for each method, their own models, and the backbone."""
    model = backbone(family)
    multi, own = s2a.MultiTask(model), {}
    for classes, method in enumerate(methods, start=3):
        own[method] = trained(model, method, classes, family, **options)
        multi.add(method, own[method])
    return multi, own, model
