"""Trains and runs an adapted model under ``torch.compile``.

    python examples/compile_model.py [--backend inductor] [--output adapter.safetensors]

``inductor`` needs a C++ compiler on a CPU; ``aot_eager`` needs none and shows that the model can be traced.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import s2a
import timm
import torch
from torch.nn.functional import cross_entropy


def main(
    backend: str = "inductor", steps: int = 10, images: int = 24, output: str | Path = "adapter.safetensors"
) -> tuple[list[float], float]:
    """Gives the loss of each step, and how far logits of the compiled model are from those of the other."""
    torch.manual_seed(0)
    labels = torch.arange(images) % 3
    pixels = 0.3 * torch.randn(images, 3, 32, 32)
    pixels[torch.arange(images), labels] += 1  # a class is a colour

    # With real weights: timm.create_model("vit_base_patch16_224", pretrained=True)
    backbone = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=48, depth=2, num_heads=3)
    model = s2a.attach(backbone, s2a.S2AConfig(), num_classes=3)
    optimizer = torch.optim.AdamW(s2a.trainable_parameters(model).values(), lr=1e-2)
    compiled = torch.compile(model, backend=backend)  # shares its parameters with ``model``

    losses = []
    model.train()
    for _ in range(steps):
        loss = cross_entropy(compiled(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    print(f"loss {losses[0]:.3f} -> {losses[-1]:.3f}")

    model.eval()
    with torch.no_grad():
        difference = (compiled(pixels) - model(pixels)).abs().max().item()
    print(f"largest difference of logits, compiled and not: {difference:.1e}")
    s2a.save(model, output)  # the adapted model, not what torch.compile returned
    return losses, difference


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--backend", default="inductor")
    parser.add_argument("--output", default="adapter.safetensors")
    given = parser.parse_args()
    main(given.backend, output=given.output)
