"""The table of the embedded mini backbones; ``backbones`` builds them. Torch-free: names are checked before torch."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class MiniBackbone:
    """A small timm model with weights of our own.

    Attributes:
        architecture: timm model name.
        kwargs: Its sizes.
        description: One sentence for the card.
        drops_patches: Pretrained on random halves of the patches first.
        image_size: Side in pixels.
        mean: Of the input's normalisation, per channel in [0, 1].
        std: The same.
    """

    architecture: str
    kwargs: dict[str, Any]
    description: str
    drops_patches: bool = False
    image_size: int = 32
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)


MINI_BACKBONES: dict[str, MiniBackbone] = {
    "mini_vit": MiniBackbone(
        "vit_tiny_patch16_224",
        {"img_size": 32, "patch_size": 4, "embed_dim": 96, "depth": 6, "num_heads": 3},
        "A plain ViT of width 96, 6 blocks, 3 heads, 4-pixel patches (64 tokens and a class token).",
        drops_patches=True,
    ),
    "mini_swin": MiniBackbone(
        "swin_tiny_patch4_window7_224",
        {
            "img_size": 32,
            "patch_size": 2,
            "window_size": 8,
            "embed_dim": 32,
            "depths": (2, 2, 2),
            "num_heads": (1, 2, 4),
        },
        "A Swin of widths 32, 64, 128, depths 2, 2, 2, windows of 8 x 8 tokens, 2-pixel patches.",
    ),
    "mini_convnext": MiniBackbone(
        "convnext_atto",
        {"depths": (2, 2, 4, 1), "dims": (32, 64, 96, 128), "patch_size": 2, "ls_init_value": 0.1},
        # timm's ConvNeXt reaches stride 4 in its first stage whatever the stem: 32 pixels would leave 4 x 4 sites.
        "A ConvNeXt of widths 32, 64, 96, 128, depths 2, 2, 4, 1, at 48 pixels (12, 6, 3 and 1 positions a side).",
        image_size=48,
    ),
}
