"""Saved bytes of LoRA and Adapter with and without the 4-bit codes: the codes combine with other tuning methods.

python benchmarks/combine.py
"""

from __future__ import annotations

import s2a
import timm
import torch

BACKBONES = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")


def main() -> None:
    """Prints one Markdown row for every backbone and method, batch 4 at 224, MB of 1e6 bytes."""
    print("| backbone | method | saved MB | with 4 bits | less |\n|---|---|---|---|---|")
    for backbone in BACKBONES:
        for method in ("lora", "adapter"):
            torch.manual_seed(0)
            adapted = s2a.attach(timm.create_model(backbone), s2a.method_config(method), 100).train()
            images = torch.randn(4, 3, 224, 224)
            exact = s2a.saved_bytes(adapted, images).total / 1e6
            s2a.quantize_activations(adapted, 4)
            codes = s2a.saved_bytes(adapted, images).total / 1e6
            print(f"| {backbone} | {method} | {exact:.1f} | {codes:.1f} | {1 - codes / exact:.0%} |", flush=True)


if __name__ == "__main__":
    main()
