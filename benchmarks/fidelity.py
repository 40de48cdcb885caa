"""Cosine between quantised and exact gradients of S2A's trainable groups on the real architectures.

    python benchmarks/fidelity.py [--bits 4 3 2] [vit_base_patch16_224 ...]

Random weights tell little as they come: attention would be flat and ConvNeXt's blocks scaled to nothing. So qkv weights
are multiplied by 4 (peaked rows), layer scales set to 0.5, and the prompts' zero halves drawn from N(0, 0.02).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable

import s2a
import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BACKBONES = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")
GROUPS = {"prompts": "LRP", "branch": "LSB", "head": "head"}


def group_of(name: str) -> str:
    """LRP, LSB, head or bias, by a parameter's name."""
    return next((group for part, group in GROUPS.items() if part in name.split(".")), "bias")


def sharpen(model: nn.Module) -> None:
    """Makes random weights a little like trained ones: peaked attention, layer scales that let their branch count."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.mul_(4)
            if name.endswith("gamma"):
                parameter.fill_(0.5)


def gradients(backbone: str, change: Callable[..., object] | None = None, **options: object) -> dict[str, Tensor]:
    """Gradient of the loss by group, flat, in float64; batch 4 at 224, the same weights and images for all options.

    ``change`` is called with the adapted model before the step.
    """
    torch.manual_seed(0)
    model = timm.create_model(backbone)
    sharpen(model)
    adapted = s2a.attach(model, s2a.S2AConfig(**options), 100).train()  # type: ignore[arg-type]
    if change is not None:
        change(adapted)
    generator = torch.Generator().manual_seed(1)
    trainable = s2a.trainable_parameters(adapted)
    with torch.no_grad():
        for name, parameter in trainable.items():
            if group_of(name) == "LRP" and not parameter.any():
                parameter.normal_(std=0.02, generator=generator)
    images = torch.randn(4, 3, 224, 224, generator=generator)
    F.cross_entropy(adapted(images), torch.tensor([3, 14, 15, 92])).backward()
    found: dict[str, list[Tensor]] = {}
    for name, parameter in trainable.items():
        if parameter.grad is not None:
            found.setdefault(group_of(name), []).append(parameter.grad.flatten().double())
    return {group: torch.cat(parts) for group, parts in found.items()}


def main() -> None:
    """Prints one Markdown row for every backbone, level kind and width."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=BACKBONES)
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 3, 2])
    request = parser.parse_args()
    print("| backbone | levels | bits | bias | LRP | LSB |\n|---|---|---|---|---|---|")
    for backbone in request.backbones:
        exact = gradients(backbone, activations="exact")
        for levels in ("paper", "derivative"):
            for bits in request.bits:
                found = gradients(backbone, activations="paper", levels=levels, bits=bits)
                cosines = {g: F.cosine_similarity(exact[g], found[g], 0).item() for g in ("bias", "LRP", "LSB")}
                print(f"| {backbone} | {levels} | {bits} | " + " | ".join(f"{c:.4f}" for c in cosines.values()) + " |")


if __name__ == "__main__":
    main()
