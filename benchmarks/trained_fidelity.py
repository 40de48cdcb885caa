"""Gradients under codes against exact ones, on trained weights and real images.

    python benchmarks/trained_fidelity.py --weights FILE --images FOLDER [--sizes 112 224] [--backbone NAME]

For biases, prompts (LRP) and side branch (LSB): cosine, and in brackets |g' - g| / |g|; with the MB that a batch keeps.
Prompts and branch start at zero and would hide each other's gradients: they are drawn from N(0, 0.02). ``fidelity.py``
and ``lean.py`` do the same on random weights, which are kinder.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import s2a
import torch
import torch.nn.functional as F
from fidelity import group_of
from PIL import Image
from s2a.lean import SavedBits
from s2a.memory import saved_bytes
from s2a.weights.loading import create_with_weights
from torch import Tensor

GROUPS = ("bias", "LRP", "LSB")


def keep(attention: SavedBits, mlp: SavedBits) -> Callable[[Any], None]:
    """Lets all attention and all MLP branches keep the same, and the last norm 8 bits."""

    def change(adapted: Any) -> None:
        for branch in adapted._branches:
            branch.saved_bits = attention if branch.role == "attn" else mlp
        adapted.backbone.norm.s2a_lean_bits = 8

    return change


SETTINGS: dict[str, tuple[dict[str, Any], Callable[[Any], None] | None]] = {
    "paper, fitted levels": ({"activations": "paper", "levels": "derivative"}, None),
    "paper, equation 12's levels": ({"activations": "paper", "levels": "paper"}, None),
    "lean, default": ({"activations": "lean"}, None),
    "lean, last norm 8 bits, MLPs' activations again from 8 bits": (
        {"activations": "lean"},
        keep(SavedBits(10, 0), SavedBits(8, 0)),
    ),
    "lean, last norm 8 bits, all again from 10 bits": (
        {"activations": "lean"},
        keep(SavedBits(10, 0), SavedBits(10, 0)),
    ),
}


def gradients(
    request: argparse.Namespace, size: int, options: dict[str, Any], change: Callable[[Any], None] | None
) -> tuple[dict[str, Tensor], float]:
    """Gradients by group, flat, in float64; and the MB that the batch keeps."""
    torch.manual_seed(0)
    model = create_with_weights(request.backbone, request.weights, img_size=size)
    adapted = s2a.attach(model, s2a.S2AConfig(**options), 100).train()
    if change is not None:
        change(adapted)
    trainable = s2a.trainable_parameters(adapted)
    with torch.no_grad():
        for name, parameter in trainable.items():
            if group_of(name) in ("LRP", "LSB") and not parameter.any():
                parameter.normal_(std=0.02)
    files = sorted(file for end in ("jpg", "png") for file in request.images.rglob(f"*.{end}"))
    chosen = random.Random(0).sample(files, request.batch)
    images = torch.stack([adapted.transform()(Image.open(file)) for file in chosen])
    F.cross_entropy(adapted(images), torch.arange(len(images)) * 7 % 100).backward()
    found: dict[str, list[Tensor]] = {}
    for name, parameter in trainable.items():
        if parameter.grad is not None:
            found.setdefault(group_of(name), []).append(parameter.grad.flatten().double())
    kept = sum(saved_bytes(adapted, images).values()) / 1e6
    return {group: torch.cat(parts) for group, parts in found.items()}, kept


def main() -> None:
    """Prints one Markdown row for every size and setting."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2.lvd142m")
    parser.add_argument("--sizes", nargs="+", type=int, default=[112, 224])
    parser.add_argument("--batch", type=int, default=8)
    request = parser.parse_args()
    print("| pixels | kept | bias | LRP | LSB | saved MB |\n|---|---|---|---|---|---|")
    for size in request.sizes:
        exact, _ = gradients(request, size, {"activations": "exact"}, None)
        for name, (options, change) in SETTINGS.items():
            found, kept = gradients(request, size, options, change)
            cells = []
            for group in GROUPS:
                cosine = F.cosine_similarity(exact[group], found[group], 0).item()
                relative = ((found[group] - exact[group]).norm() / exact[group].norm()).item()
                cells.append(f"{cosine:.4f} ({relative:.3f})")
            print(f"| {size} | {name} | {' | '.join(cells)} | {kept:.2f} |", flush=True)


if __name__ == "__main__":
    main()
