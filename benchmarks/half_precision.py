"""What half precision costs on a pretrained backbone: gradients, and values that a small step does not move.

    python benchmarks/half_precision.py BACKBONE WEIGHTS FOLDER_OF_IMAGES [--size 112] [--batch 8]

One line for each method: the cosine of its trained gradients to those in float32, on a backbone in bfloat16 (what
trains is float32) and, beside it, of a float32 backbone under autocast to bfloat16 (mixed precision); then the share of
trained values, head left out, that ten AdamW steps at 1e-4 left as they were, with what trains in float32 and, as
``trainable_dtype=torch.bfloat16`` asks for, in bfloat16.
"""

from __future__ import annotations

import argparse
import copy
from pathlib import Path
from typing import Any

import s2a
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn

CLASSES, STEPS, RATE = 10, 10, 1e-4


def load_images(model: nn.Module, folder: Path, size: int, count: int) -> Tensor:
    """Images from all over a folder, ``(count, 3, size, size)``, as the checkpoint expects them."""
    config = {**resolve_model_data_config(model), "input_size": (3, size, size)}
    transform: Any = create_transform(**config, is_training=False)
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in (".jpg", ".jpeg", ".png"))
    chosen = [paths[i * len(paths) // count] for i in range(count)]
    return torch.stack([transform(Image.open(path).convert("RGB")) for path in chosen])


def attach(model: nn.Module, method: str, dtype: torch.dtype | None = None) -> s2a.Adapted:
    """A copy of the model under a method, the same start for all; modules that start at zero are moved off it."""
    torch.manual_seed(0)
    adapted = s2a.attach(copy.deepcopy(model), s2a.method_config(method), CLASSES, trainable_dtype=dtype).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapted.method.parameters():
            if parameter.requires_grad and not parameter.any():
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.02)
    return adapted


def gradients(adapted: s2a.Adapted, images: Tensor, labels: Tensor, autocast: bool = False) -> Tensor:
    """All trained gradients of one step, flat, float64."""
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        logits = adapted(images)
    F.cross_entropy(logits.float(), labels).backward()
    trained = s2a.trainable_parameters(adapted).values()
    return torch.cat([p.grad.flatten().double() for p in trained if p.grad is not None])


def share_unmoved(adapted: s2a.Adapted, images: Tensor, labels: Tensor) -> float:
    """Share of trained values, head left out, that are after ``STEPS`` steps of AdamW what they were."""
    trained = {n: p for n, p in s2a.trainable_parameters(adapted).items() if not n.startswith("head.")}
    before = {name: p.detach().clone() for name, p in trained.items()}
    optimiser = torch.optim.AdamW(trained.values(), lr=RATE, weight_decay=0.0)
    for _ in range(STEPS):
        F.cross_entropy(adapted(images).float(), labels).backward()
        optimiser.step()
        optimiser.zero_grad()
    unmoved = sum(int((p == before[name]).sum()) for name, p in trained.items())
    return unmoved / sum(p.numel() for p in trained.values())


def main() -> None:
    """Prints a Markdown row for every method."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbone")
    parser.add_argument("weights")
    parser.add_argument("images", type=Path)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=["bias", "lora", "adapter", "ssf", "vpt", "s2a", "full"])
    given = parser.parse_args()
    model = timm.create_model(
        given.backbone, pretrained=True, pretrained_cfg_overlay={"file": given.weights}, img_size=given.size
    )
    images = load_images(model, given.images, given.size, given.batch)
    labels = torch.arange(given.batch) % CLASSES
    halved = copy.deepcopy(model).to(torch.bfloat16)
    print("| method | cosine, bf16 backbone | cosine, autocast | unmoved, float32 | unmoved, bfloat16 |")
    print("|---|---|---|---|---|")
    for method in given.methods:
        exact = gradients(attach(model, method), images, labels)
        half = gradients(attach(halved, method), images, labels)
        mixed = gradients(attach(model, method), images, labels, autocast=True)
        cosines = [F.cosine_similarity(exact, found, 0).item() for found in (half, mixed)]
        shares = [
            share_unmoved(attach(halved, method), images, labels),
            share_unmoved(attach(halved, method, torch.bfloat16), images.bfloat16(), labels),
        ]
        words = [*(f"{value:.4f}" for value in cosines), *(f"{100 * value:.1f} %" for value in shares)]
        print(f"| {method} | " + " | ".join(words) + " |", flush=True)


if __name__ == "__main__":
    main()
