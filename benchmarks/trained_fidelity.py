"""Gradients under codes against exact ones, on trained weights and real images.

    python benchmarks/trained_fidelity.py --weights FILE --images FOLDER [--sizes 112 224] [--method lora]

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
from s2a.planning import plan_smallest
from s2a.weights.loading import create_with_weights
from torch import Tensor


def keep(attention: SavedBits, mlp: SavedBits) -> Callable[[Any], None]:
    """Lets all attention and all MLP branches keep the same; the class token's block its norms in 10 bits."""

    def change(adapted: Any) -> None:
        last = {branch.block.name for branch in adapted._branches if branch.spec.fixed}
        for branch in adapted._branches:
            wanted = attention if branch.role == "attn" else mlp
            branch.saved_bits = SavedBits(10, 0) if branch.block.name in last and wanted.block else wanted

    return change


def keep_blocks(bits: int) -> Callable[[Any], None]:
    """Lets all blocks keep their input, but the class token's."""
    return keep(SavedBits(10, 0, bits), SavedBits(10, 0, bits))


def keep_smallest(adapted: Any) -> None:
    """The plan of the fewest bytes."""
    plan_smallest(adapted, 8)


LEAN = {"activations": "lean", "recompute": "same"}
NARROW = {"activations": "lean", "recompute": "bf16"}
SETTINGS: dict[str, tuple[dict[str, Any], Callable[[Any], None] | None]] = {
    "paper, fitted levels": ({"activations": "paper", "levels": "derivative"}, None),
    "paper, equation 12's levels": ({"activations": "paper", "levels": "paper"}, None),
    "lean, default": (LEAN, None),
    "lean, default, again in bf16": (NARROW, None),
    "lean, blocks again from 10 bits": (LEAN, keep_blocks(10)),
    "lean, blocks again from 10 bits, in bf16": (NARROW, keep_blocks(10)),
    "lean, smallest plan": (LEAN, keep_smallest),
    "lean, smallest plan, again in bf16": (NARROW, keep_smallest),
    "lean, activations in 4-bit codes": (LEAN, keep(SavedBits(10, 0), SavedBits(4, 4))),
}


def gradients(
    request: argparse.Namespace, size: int, options: dict[str, Any], change: Callable[[Any], None] | None
) -> tuple[dict[str, Tensor], float]:
    """Gradients by group, flat, in float64; and the MB that the batch keeps."""
    torch.manual_seed(0)
    model = create_with_weights(request.backbone, request.weights, img_size=size)
    adapted = s2a.attach(model, s2a.method_config(request.method, **options), 100).train()
    if change is not None:
        change(adapted)
    trainable = s2a.trainable_parameters(adapted)
    with torch.no_grad():
        for name, parameter in trainable.items():
            if group_of(name) != "bias" and not parameter.any():
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
    parser.add_argument("--method", default="s2a", help="lora, for example")
    request = parser.parse_args()
    print("| pixels | kept | groups | saved MB |\n|---|---|---|---|")
    for size in request.sizes:
        exact, _ = gradients(request, size, {"activations": "exact"}, None)
        for name, (options, change) in SETTINGS.items():
            if options["activations"] == "paper" and request.method != "s2a":
                continue
            found, kept = gradients(request, size, options, change)
            cells = []
            for group in exact:
                if group == "head":
                    continue
                cosine = F.cosine_similarity(exact[group], found[group], 0).item()
                relative = ((found[group] - exact[group]).norm() / exact[group].norm()).item()
                cells.append(f"{group} {cosine:.4f} ({relative:.3f})")
            print(f"| {size} | {name} | {' | '.join(cells)} | {kept:.2f} |", flush=True)


if __name__ == "__main__":
    main()
