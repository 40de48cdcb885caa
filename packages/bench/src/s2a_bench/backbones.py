from __future__ import annotations
import dataclasses
from typing import Any
import timm
from torch import nn

@dataclasses.dataclass(frozen=True)
class MiniBackbone:
    architecture: str
    kwargs: dict[str, Any]
    description: str
    drops_patches: bool = False
    input_size: int = 32
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)

MINI_BACKBONES: dict[str, MiniBackbone] = {
    "mini_vit": MiniBackbone("vit_tiny_patch16_224", dict(img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3),
        "A plain ViT of width 96, 6 blocks, 3 heads, 4-pixel patches (64 tokens and a class token).", drops_patches=True),
    "mini_swin": MiniBackbone("swin_tiny_patch4_window7_224", dict(img_size=32, patch_size=2, window_size=4, embed_dim=32, depths=(2, 2, 4), num_heads=(1, 2, 4)),
        "A Swin of widths 32, 64, 128, depths 2, 2, 4, windows of 4 x 4 tokens, 2-pixel patches."),
    "mini_convnext": MiniBackbone("convnext_atto", dict(depths=(2, 2, 4), dims=(32, 64, 128), patch_size=2),
        "A ConvNeXt of widths 32, 64, 128, depths 2, 2, 4, 2-pixel stem."),
}

def build_mini(name: str, num_classes: int, **kw) -> nn.Module:
    spec = MINI_BACKBONES[name]
    return timm.create_model(spec.architecture, pretrained=False, num_classes=num_classes, **{**spec.kwargs, **kw})
