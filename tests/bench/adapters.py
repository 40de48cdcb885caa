"""A small adapter folder with its backbone's weights in it, and pictures of all kinds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import s2a
import timm
import torch
from safetensors.torch import save_file

LABELS = ["fox", "bär", "🦊", "a/b", 'the "fifth", one']
SIDE = 32
TINY: dict[str, Any] = {"img_size": SIDE, "patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2}
MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


def write_adapter(folder: Path, method: str = "s2a", labels: list[str] | None = LABELS, **options: Any) -> Any:
    """Writes ``folder`` and returns the adapted model; its head is drawn, so that images differ in their logits."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", **TINY)
    weights = folder.parent / "backbone.safetensors"
    weights.parent.mkdir(parents=True, exist_ok=True)
    save_file(model.state_dict(), weights)
    adapted: Any = s2a.attach(model, s2a.method_config(method, **options), len(LABELS)).eval()
    with torch.no_grad():
        adapted.head.weight.normal_()
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    backbone = {"name": "vit_tiny_patch16_224", "args": TINY, "weights": {"file": weights.name, "sha256": digest}}
    image = {"size": SIDE, "mean": MEAN, "std": STD, "interpolation": "bilinear", "resize": "crop"}
    s2a.save_pretrained(adapted, folder, labels=labels, backbone=backbone, image=image)
    weights.rename(folder / weights.name)  # where from_pretrained finds them
    return adapted
