"""Tiny models under every method in every mode, as tests of forward passes want them."""

from __future__ import annotations

from typing import Any

import lean_models
import s2a
import tiny
import torch
from torch import Tensor

SIDE: dict[str, tuple[str, dict[str, Any]]] = {"linear": ("linear", {}), "unipt": ("unipt", {}), "lst": ("lst", {})}
METHODS = {**{n: lean_models.METHODS[n] for n in lean_models.METHODS if n != "lora_dropped"}, **SIDE}
MODES: dict[str, dict[str, Any]] = {
    "exact": {"activations": "exact"},
    "paper": {"activations": "paper"},
    "lean": {"activations": "lean"},
    "budget": {"activations": "lean", "memory_budget_mb": 2.0, "budget_batch": 2},
}
CASES = [("vit", m, mode) for m in METHODS for mode in ("exact", "lean") if m not in SIDE]
CASES += [("vit", m, "as it is") for m in SIDE] + [("vit", "s2a", "paper"), ("vit", "s2a", "budget")]
CASES += [(family, "s2a", mode) for family in tiny.MODELS if family != "vit" for mode in ("exact", "paper", "lean")]
CASES += [(f, m, "lean") for f in ("swin", "convnext") for m in ("adaptformer", "vpt")]
CASES += [(f, m, "as it is") for f in ("swin", "convnext", "resnet") for m in ("unipt", "lst")]
"""Family, method and mode: every method on a ViT, S2A on every family, and pairs with code of their own."""


def adapted_model(family: str, method: str, mode: str) -> tuple[Any, Tensor]:
    """A tiny model whose parameters are not as at the start, in evaluation mode, and six images for it."""
    make_model, size = tiny.MODELS[family]
    name, options = METHODS[method]
    config = s2a.method_config(name, **options, **MODES.get(mode, {}))
    adapted = s2a.attach(make_model(), config, tiny.CLASSES, image_size=size).eval()
    with torch.no_grad():
        for parameter in adapted.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return adapted, torch.randn(6, 3, size, size)
