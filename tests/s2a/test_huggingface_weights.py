"""Weights in the layout of ``transformers``: a timm model computes what the model that they are of computes."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from s2a import weights
from s2a.errors import S2AError
from timm.data.config import resolve_model_data_config
from torch import Tensor, nn

hf: Any = pytest.importorskip("transformers")

WIDTHS = [8, 16, 24, 32]
VIT: dict[str, Any] = dict(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, image_size=32, patch_size=8)
TIMM_VIT: dict[str, Any] = dict(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5)


@dataclasses.dataclass(frozen=True)
class Case:
    """A small model of ``transformers`` and the timm model that it is the same as."""

    model: str
    config: Callable[[], Any]
    name: str
    arguments: dict[str, Any]
    features: bool = False
    """Pooled features are compared, since timm has no classifier of that kind."""


def stages(**options: Any) -> dict[str, Any]:
    return {"hidden_sizes": WIDTHS, "depths": [1, 2, 1, 1], "num_labels": 5, **options}


CASES = {
    "vit": Case(
        "ViTForImageClassification",
        lambda: hf.ViTConfig(**VIT, intermediate_size=48, num_labels=5),
        "vit_tiny_patch16_224",
        {**TIMM_VIT, "mlp_ratio": 2},
    ),
    "deit": Case(
        "DeiTForImageClassificationWithTeacher",
        lambda: hf.DeiTConfig(**VIT, intermediate_size=48, num_labels=5),
        "deit_tiny_distilled_patch16_224",
        {**TIMM_VIT, "mlp_ratio": 2},
    ),
    "dinov2": Case(
        "Dinov2Model",
        lambda: hf.Dinov2Config(**VIT, mlp_ratio=2, layerscale_value=0.5),
        "vit_small_patch14_dinov2",
        {**TIMM_VIT, "mlp_ratio": 2},
        features=True,
    ),
    "dinov2 with a classifier": Case(
        "Dinov2ForImageClassification",
        lambda: hf.Dinov2Config(**VIT, mlp_ratio=2, num_labels=5),
        "vit_small_patch14_dinov2",
        {**TIMM_VIT, "mlp_ratio": 2},
        features=True,
    ),
    "dinov2 with registers": Case(
        "Dinov2WithRegistersModel",
        lambda: hf.Dinov2WithRegistersConfig(**VIT, mlp_ratio=2),
        "vit_small_patch14_reg4_dinov2",
        {**TIMM_VIT, "mlp_ratio": 2},
        features=True,
    ),
    "dinov2 giant": Case(
        "Dinov2Model",
        lambda: hf.Dinov2Config(**VIT, mlp_ratio=4, use_swiglu_ffn=True),
        "vit_giant_patch14_dinov2",
        {**TIMM_VIT, "mlp_ratio": 128 / 24},  # 64 = 24 * 4 * 2 / 3 per half
        features=True,
    ),
    "swin": Case(
        "SwinForImageClassification",
        lambda: hf.SwinConfig(
            image_size=64, patch_size=4, embed_dim=12, depths=[2, 2, 2], num_heads=[1, 2, 4], window_size=4,
            num_labels=5,
        ),
        "swin_tiny_patch4_window7_224",
        dict(img_size=64, embed_dim=12, depths=(2, 2, 2), num_heads=(1, 2, 4), window_size=4, num_classes=5),
    ),
    "convnext": Case(
        "ConvNextForImageClassification",
        lambda: hf.ConvNextConfig(**stages(layer_scale_init_value=0.5)),
        "convnext_tiny",
        dict(dims=WIDTHS, depths=[1, 2, 1, 1], num_classes=5),
    ),
    "convnext of convolutions": Case(
        "ConvNextForImageClassification",
        lambda: hf.ConvNextConfig(**stages(layer_scale_init_value=0.5)),
        "convnext_tiny",
        dict(dims=WIDTHS, depths=[1, 2, 1, 1], num_classes=5, conv_mlp=True),
    ),
    "convnext v2": Case(
        "ConvNextV2ForImageClassification",
        lambda: hf.ConvNextV2Config(**stages()),
        "convnextv2_tiny",
        dict(dims=WIDTHS, depths=[1, 2, 1, 1], num_classes=5),
    ),
    "resnet": Case(
        "ResNetForImageClassification",
        lambda: hf.ResNetConfig(**stages(embedding_size=64, hidden_sizes=[32, 64, 128, 256])),
        "resnet50",
        dict(layers=[1, 2, 1, 1], channels=(8, 16, 32, 64), num_classes=5),
    ),
    "resnet of basic blocks": Case(
        "ResNetForImageClassification",
        lambda: hf.ResNetConfig(**stages(embedding_size=64, hidden_sizes=[64, 16, 24, 32], layer_type="basic")),
        "resnet18",
        dict(layers=[1, 2, 1, 1], channels=(64, 16, 24, 32), num_classes=5),
    ),
}


def make(case: Case, folder: Path, **save: Any) -> nn.Module:
    """The model of ``transformers``, every value of it random, saved as it saves itself."""
    torch.manual_seed(3)
    model = getattr(hf, case.model)(case.config())
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point():
                continue
            if name.endswith("running_var"):
                value.uniform_(0.5, 1.5)
            elif "norm" in name and name.endswith("weight"):
                value.copy_(1 + 0.2 * torch.randn_like(value))
            else:
                value.normal_(std=0.2)
    model.eval().save_pretrained(folder, **save)
    return model


def outputs(model: nn.Module, case: Case, theirs: bool) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    size = case.arguments.get("img_size", 64)
    images = torch.randn(2, 3, size, size, generator=generator)
    with torch.no_grad():
        if theirs:
            found = model(images)
            return found.logits if hasattr(found, "logits") else found.pooler_output
        whole: Any = model.eval()
        return whole.forward_head(whole.forward_features(images), pre_logits=True) if case.features else whole(images)


@pytest.mark.parametrize("key", CASES)
def test_the_same_outputs(key, tmp_path):
    case = CASES[key]
    model = make(case, tmp_path)
    if case.features and hasattr(model, "classifier"):
        model = model.dinov2  # type: ignore[assignment]
    expected = outputs(model, case, theirs=True)
    found = outputs(weights.create_with_weights(case.name, tmp_path, **case.arguments), case, theirs=False)
    scale = expected.abs().max()
    assert scale > 0.1
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, scale.item()))
