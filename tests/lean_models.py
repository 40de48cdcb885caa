"""Tiny models with exact and with lean activations that share every weight, and what tests ask of them."""

from __future__ import annotations

import copy
import dataclasses
import functools
import math
from typing import Any

import s2a
import tiny
import torch
import torch.nn.functional as F
from s2a.lean import SavedBits
from torch import Tensor, nn

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "s2a": ("s2a", {}),
    "bias": ("bias", {}),
    "full": ("full", {}),
    "lora": ("lora", {"rank": 4}),
    "lora_two": ("lora", {"rank": 4, "alpha": 8.0, "targets": ("qkv", "fc1")}),
    "lora_mlp": ("lora", {"rank": 4, "targets": ("fc1", "fc2")}),
    "lora_dropped": ("lora", {"rank": 4, "dropout": 0.2}),
    "lora_fa": ("lora", {"rank": 4, "train_a": False}),
    "adapter": ("adapter", {}),
    "adaptformer": ("adaptformer", {"dropout": 0.0}),
    "ssf": ("ssf", {}),
    "vpt": ("vpt", {"prompts": 3}),
}
"""Name -> method and its options."""

FUSED = ("vit", "vit_registers", "swin", "convnext", "convnext_conv")
"""Families whose blocks have fused branches."""

_UNSUPPORTED = {
    "eva": ("lora", "lora_two", "lora_dropped", "lora_fa"),
    "convnext": ("lora_two",),
    "convnext_conv": ("lora_two",),
    "resnet": ("lora_two", "lora_mlp", "adapter", "adaptformer", "vpt"),
}
PAIRS = [(family, name) for family in tiny.MODELS for name in METHODS if name not in _UNSUPPORTED.get(family, ())]
"""Family and method, where they go together."""

CORE = [(family, "s2a") for family in tiny.MODELS] + [("vit", name) for name in METHODS if name != "s2a"]
CORE += [("swin", "lora_two"), ("swin", "vpt"), ("convnext", "vpt"), ("convnext_conv", "full"), ("resnet", "ssf")]
"""Every family, every method, and pairs with code of their own: what the fast ring runs where it does not run all."""


def pair(family: str, method: str, model: Any = None, **options: Any) -> tuple[Any, Any]:
    """A tiny model under a method with exact activations, and a copy with lean ones; no value as at the start."""
    make_model, size = tiny.MODELS[family]
    name, own = METHODS[method]
    model = copy.deepcopy(make_model() if model is None else model)
    with torch.no_grad():  # Before attach: frozen values that change afterwards could not be detached.
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    found = []
    for activations in ("exact", "lean"):
        config = s2a.method_config(name, **own, **(options if activations == "lean" else {}), activations=activations)
        found.append(s2a.attach(copy.deepcopy(model), config, tiny.CLASSES, image_size=size))
    exact, lean = found
    with torch.no_grad():
        for path, parameter in exact.named_parameters():
            if parameter.requires_grad or path.startswith("method."):
                parameter.add_(torch.randn_like(parameter), alpha=0.05)
    lean.load_state_dict(exact.state_dict())
    return exact, lean


def images_for(family: str, batch: int = 3) -> Tensor:
    """Noise of the size that a tiny model takes."""
    size = tiny.MODELS[family][1]
    return torch.randn(batch, 3, size, size)


def keep_all(adapted: Any, inner: int = 0) -> None:
    """Everything that lean activations keep is kept as it is: what is left is the order of sums."""
    for branch in adapted._branches:
        branch.recompute = "same"
        branch.saved_bits = SavedBits(32, inner if branch.role == "attn" and not branch.spec.fixed else 0)
    for module in adapted.modules():
        for name in ("s2a_lean_bits", "s2a_qkv_bits"):
            if name in module.__dict__:
                setattr(module, name, 32)
        if "s2a_code" in module.__dict__:  # An activation in no fused branch: its derivative has a code of few bits.
            module.forward = functools.partial(type(module).forward, module)


def loss_of(logits: Tensor) -> Tensor:
    """A loss with a gradient of about one image's in every image."""
    return F.cross_entropy(logits, torch.arange(len(logits)) % logits.shape[1], reduction="sum")


def gradients(adapted: Any, images: Tensor, called: Any = None) -> dict[str, Tensor]:
    """Gradient of every trainable parameter."""
    trainable = s2a.trainable_parameters(adapted)
    loss = loss_of((adapted if called is None else called)(images).float())
    return dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True))


def double(*models: nn.Module) -> None:
    """To float64."""
    for model in models:
        model.double()


def flat(grads: dict[str, Tensor]) -> Tensor:
    """All of them as one vector in float64."""
    return torch.cat([grad.flatten().double() for grad in grads.values()])


def error(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """Length of the difference over that of what is expected."""
    return float((flat(found) - flat(expected)).norm() / flat(expected).norm())


def group_of(name: str) -> str:
    """Which of a method's groups a parameter is in."""
    parts = name.split(".")
    return ".".join(parts[:2]) if parts[0] == "method" else parts[0]


def cosines(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Cosine of every group."""
    groups: dict[str, list[str]] = {}
    for name in expected:
        groups.setdefault(group_of(name), []).append(name)
    return {
        group: F.cosine_similarity(flat({n: found[n] for n in names}), flat({n: expected[n] for n in names}), 0).item()
        for group, names in groups.items()
    }


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every gradient is the expected one, up to a part of its own length (or of all, where its own is nought)."""
    assert found.keys() == expected.keys()
    whole = flat(expected).norm() / math.sqrt(len(expected))
    for name, own in expected.items():
        assert found[name].dtype == own.dtype, name
        away = (found[name].double() - own.double()).norm()
        assert away <= tolerance * max(own.double().norm(), whole), f"{name}: {float(away / own.double().norm())}"


def options_of(adapted: Any, **changes: Any) -> Any:
    """The adapted model's config with some options changed."""
    return dataclasses.replace(adapted.config, **changes)
