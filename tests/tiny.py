"""Tiny timm models, one for every way in which families differ; large enough for every method's default config."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import timm

CLASSES = 5


def vit(**kwargs: Any) -> Any:
    """A ViT of width 64, 2 blocks, a class token and 8 x 8 patches."""
    return timm.create_model("vit_tiny_patch16_224", **{**_VIT, **kwargs})


def vit_registers() -> Any:
    """The same with four register tokens and layer scale (DINOv2); as after pretraining, its scales are not near 0."""
    return timm.create_model("vit_base_patch14_reg4_dinov2", **_VIT, init_values=0.5)


def eva() -> Any:
    """An EVA: biases of q and v apart from their layer."""
    return timm.create_model("eva_giant_patch14_224", **_VIT)


def swin(**kwargs: Any) -> Any:
    """A Swin of widths 32, 64, 128; its first stage has shifted windows."""
    sizes: dict[str, Any] = {"img_size": 64, "patch_size": 4, "window_size": 8, "embed_dim": 32, "num_classes": CLASSES}
    sizes |= {"depths": (2, 2, 1), "num_heads": (1, 2, 4)}
    return timm.create_model("swin_tiny_patch4_window7_224", **{**sizes, **kwargs})


def convnext() -> Any:
    """A ConvNeXt with linear layers in its MLPs."""
    return timm.create_model("convnext_tiny", **_CONVNEXT)


def convnext_conv() -> Any:
    """A ConvNeXt with 1 x 1 convolutions in its MLPs."""
    return timm.create_model("convnext_atto", **_CONVNEXT)


def resnet() -> Any:
    """A ResNet with basic and bottleneck blocks; as after pretraining, no zero weight switches one off."""
    return timm.create_model("test_resnet", num_classes=CLASSES, zero_init_last=False)


_VIT: dict[str, Any] = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}
_VIT["num_classes"] = CLASSES
_CONVNEXT: dict[str, Any] = {"depths": (1, 1, 2, 1), "dims": (32, 32, 64, 128), "patch_size": 2, "num_classes": CLASSES}

MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "vit": (vit, 32),
    "vit_registers": (vit_registers, 32),
    "eva": (eva, 32),
    "swin": (swin, 64),
    "convnext": (convnext, 64),
    "convnext_conv": (convnext_conv, 64),
    "resnet": (resnet, 64),
}
"""Name -> how to make the model, and the side of its images."""
