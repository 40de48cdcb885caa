"""The ViTs, Swins, ConvNeXts and ResNets that people fine-tune, shrunken: S2A fits, and its codes change no output."""

from __future__ import annotations

from typing import Any

import pytest
import s2a
import timm
import torch
from s2a.errors import UnsupportedModel
from torch import Tensor, nn

VIT = {"depth": 2, "embed_dim": 48, "num_heads": 3, "img_size": 56}
VIT8 = {**VIT, "patch_size": 8}
CONVNEXT = {"depths": (1, 1, 2, 1), "dims": (16, 32, 48, 64)}
SWIN = {"img_size": 56, "embed_dim": 32, "num_heads": (1, 2, 4)}

ZOO: dict[str, dict[str, Any]] = {
    "vit_base_patch16_224": VIT8,
    "vit_large_patch16_224": VIT8,
    "deit_small_patch16_224": VIT8,
    "deit3_small_patch16_224": VIT8,  # layer scale
    "vit_small_patch14_dinov2": VIT,
    "vit_small_patch14_reg4_dinov2": VIT,  # registers
    "vit_giant_patch14_dinov2": VIT,  # SwiGLU
    "vit_small_patch16_dinov3": VIT8,  # rotary positions
    "vit_7b_patch16_dinov3": VIT8,
    "vit_base_patch16_clip_224": VIT8,
    "vit_base_patch16_siglip_224": VIT8,  # attention-pool head
    "vit_base_patch16_siglip_gap_224": VIT8,  # no class token
    "vit_so400m_patch14_siglip_gap_224": VIT,
    "vit_medium_patch16_reg4_gap_256": VIT8,
    "vit_base_patch16_xp_224": VIT8,  # parallel scaling blocks with qk-norm
    "vit_pe_core_tiny_patch16_384": VIT8,
    "eva02_tiny_patch14_224": VIT,
    "eva_giant_patch14_224": VIT,
    "swin_tiny_patch4_window7_224": {**SWIN, "depths": (2, 2, 2)},
    "swin_small_patch4_window7_224": {**SWIN, "depths": (1, 1, 3)},
    "convnext_tiny": CONVNEXT,
    "convnext_large": CONVNEXT,
    "convnextv2_tiny": CONVNEXT,  # GRN
    "resnet18": {},
    "resnet50": {},
    "resnet50d": {},
    "seresnet50": {},
}
GATED = {"vit_giant_patch14_dinov2", "eva02_tiny_patch14_224", "vit_7b_patch16_dinov3"}
"""Their product of two halves keeps the gate's input whatever the gate does."""


def adapted(name: str, activations: str) -> tuple[nn.Module, Tensor]:
    """The shrunken model under S2A with prompts that are not zero, and an image pair."""
    torch.manual_seed(0)
    model = timm.create_model(name, **ZOO[name])
    for module in model.modules():
        if "fused_attn" in module.__dict__:
            module.__dict__["fused_attn"] = False
    size = ZOO[name].get("img_size", 64)
    config = s2a.S2AConfig(lrp_rank=2, lsb_reduction=4, activations=activations)  # type: ignore[arg-type]
    out = s2a.attach(model, config, 5, image_size=size)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(out).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return out.eval(), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("name", ZOO)
def test_every_model_of_the_families_takes_s2a(name: str) -> None:
    exact, images = adapted(name, "exact")
    quantised, _ = adapted(name, "paper")
    logits = quantised(images)
    assert torch.equal(exact(images), logits)
    logits.sum().backward()
    assert [n for n, p in s2a.trainable_parameters(quantised).items() if p.grad is None] == []
    if name not in GATED:
        assert s2a.saved_bytes(quantised, images).total < s2a.saved_bytes(exact, images).total


@pytest.mark.parametrize(
    ("name", "misfit"),
    [
        ("swinv2_cr_tiny_ns_224", "patch_embed (PatchEmbed)"),
        ("swinv2_tiny_window8_256", "layers.0 (SwinTransformerV2Stage)"),
        ("beit_base_patch16_224", "blocks.0 (Block)"),
        ("efficientnet_b0", "blocks.0.0 (DepthwiseSeparableConv)"),
        ("deit_tiny_distilled_patch16_224", "no single classifier module"),
    ],
)
def test_other_models_are_refused_in_one_sentence_that_names_what_does_not_fit(name: str, misfit: str) -> None:
    with pytest.raises(UnsupportedModel) as error:
        s2a.attach(timm.create_model(name), s2a.S2AConfig(), 5)
    assert misfit in str(error.value)
