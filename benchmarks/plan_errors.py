"""Gradient errors of what a lean branch can keep, on trained weights: the planner's table, and how well it predicts.

    python benchmarks/plan_errors.py table --weights FILE --images FOLDER [--size 112] [--backbone NAME]
    python benchmarks/plan_errors.py check --weights FILE --images FOLDER [--plans 20] [--seed 0]

The error of a set of gradients is one minus their cosine to the exact ones, as half the squared relative error, the
mean of the trained groups of the backbone (biases, prompts). ``table`` lets all branches of one role keep the same, the
others as good as everything (12 bits), and subtracts what remains without it; then all blocks keep their inputs; then
what is computed again is multiplied in bfloat16. ``check`` draws plans at random, block by block, and prints what the
planner predicts beside what is measured, with products as ``--recompute`` says.

Without --weights: random ones, qkv times 4 and layer scales 0.5 (see ``fidelity.py``), and random images.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import s2a
import timm
import torch
import torch.nn.functional as F
from fidelity import group_of, sharpen
from PIL import Image
from s2a.lean import SavedBits
from s2a.planning import knapsack
from s2a.weights.loading import create_with_weights
from torch import Tensor

GROUPS = ("bias", "LRP")
FINE = SavedBits(12, 0)
KEEPS = {
    "attn": [SavedBits(b, 0) for b in (8, 10, 12)] + [SavedBits(b, 12) for b in (2, 3, 4, 8)]
    + [SavedBits(10, b) for b in (8, 10, 12)],
    "mlp": [SavedBits(b, 0) for b in (8, 10, 12)] + [SavedBits(b, 8) for b in (2, 3, 4)]
    + [SavedBits(12, b) for b in (2, 3, 4, 8)],
}  # fmt: skip


def load_images(folder: Path, size: int, count: int, seed: int = 0) -> Tensor:
    """``(count, 3, size, size)``: images drawn from a folder, their centre, normalised as ImageNet's."""
    files = sorted(file for end in ("jpg", "jpeg", "png") for file in folder.rglob(f"*.{end}"))
    random.Random(seed).shuffle(files)
    found = []
    for file in files[:count]:
        image = Image.open(file).convert("RGB")
        scale = size / min(image.size)
        image = image.resize([max(size, round(side * scale)) for side in image.size], Image.Resampling.BICUBIC)
        left, top = ((side - size) // 2 for side in image.size)
        values = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
        found.append(torch.from_numpy(values).permute(2, 0, 1))
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    return (torch.stack(found) - mean) / std


class Gradients:
    """Gradients of S2A on one backbone and one batch, whatever its branches keep."""

    def __init__(self, request: argparse.Namespace) -> None:
        self._request = request
        if request.images:
            self._images = load_images(request.images, request.size, request.batch)
        else:
            self._images = torch.randn(request.batch, 3, request.size, request.size)
        self.exact = self._run("exact", lambda adapted: None)

    def error(self, change: Callable[[Any], None]) -> float:
        """Mean over the groups of half the squared relative error of lean gradients."""
        found = self._run("lean", change)
        each = [(found[g] - self.exact[g]).norm() / self.exact[g].norm() for g in GROUPS if g in found]
        return sum(float(relative) ** 2 / 2 for relative in each) / len(each)

    def adapt(self, activations: Any) -> Any:
        """A new adapted model; the same weights and prompts every time."""
        torch.manual_seed(0)
        request = self._request
        arguments = {"img_size": request.size} if "vit" in request.backbone or "swin" in request.backbone else {}
        if request.weights:
            model = create_with_weights(request.backbone, request.weights, **arguments)
        else:
            model = timm.create_model(request.backbone, **arguments)
            sharpen(model)
        adapted = s2a.attach(model, s2a.S2AConfig(activations=activations), 100).train()
        with torch.no_grad():
            for name, parameter in s2a.trainable_parameters(adapted).items():
                if group_of(name) in ("LRP", "LSB") and not parameter.any():
                    parameter.normal_(std=0.02)
        return adapted

    def _run(self, activations: str, change: Callable[[Any], None]) -> dict[str, Tensor]:
        adapted = self.adapt(activations)
        change(adapted)
        F.cross_entropy(adapted(self._images), torch.arange(len(self._images)) * 7 % 100).backward()
        found: dict[str, list[Tensor]] = {}
        for name, parameter in s2a.trainable_parameters(adapted).items():
            if parameter.grad is not None:
                found.setdefault(group_of(name), []).append(parameter.grad.flatten().double())
        return {group: torch.cat(parts) for group, parts in found.items()}


def print_table(gradients: Gradients) -> None:
    """One row for each role and what it keeps."""

    def keep(role: str | None, bits: SavedBits, narrow: tuple[str, ...] = ()) -> Callable[[Any], None]:
        def change(adapted: Any) -> None:
            last = {branch.block.name for branch in adapted._branches if branch.spec.fixed}
            for branch in adapted._branches:
                wanted = bits if role in (branch.role, "block") else FINE
                # The class token's attention computes q, k, v again whatever it is told.
                fixed = (branch.spec.fixed and wanted.inner) or (branch.block.name in last and wanted.block)
                branch.saved_bits = FINE if fixed else wanted
                branch.recompute = "bf16" if branch.role in narrow else "same"

        return change

    floor = gradients.error(keep(None, FINE))
    print(
        f"all branches in 12 bits, nothing else kept: {floor:.1e}\n\n| role | norm | inner | error |\n|---|---|---|---|"
    )
    for role, several in KEEPS.items():
        for bits in several:
            error = gradients.error(keep(role, bits)) - (floor if bits != FINE else 0)
            print(f"| {role} | {bits.norm} | {bits.inner or 'again'} | {error:.1e} |", flush=True)
    print("\n| block's input | again | error |\n|---|---|---|")
    for bits in knapsack.BLOCK_ERRORS:
        for narrow in ((), ("attn", "mlp")):
            error = gradients.error(keep("block", SavedBits(12, 0, bits), narrow)) - floor
            print(f"| {bits} | {'bf16' if narrow else 'same'} | {error:.1e} |", flush=True)
    print("\n| computed again in bf16 | error |\n|---|---|")
    for role in KEEPS:
        print(f"| {role} | {gradients.error(keep(None, FINE, (role,))) - floor:.1e} |", flush=True)


def check_plans(gradients: Gradients, count: int, seed: int, recompute: str) -> None:
    """Plans drawn at random beside their predicted error."""
    draw = random.Random(seed)
    branches = gradients.adapt("lean")._branches
    for branch in branches:
        branch.recompute = recompute
    specs = [branch.spec for branch in branches]
    last = {spec.name for spec in specs if spec.fixed}
    print("| plan | predicted | measured | measured / predicted, as relative errors |\n|---|---|---|---|")
    ratios = []
    for number in range(count):
        # A plan takes few different choices: drawn for every block from two or three of each role.
        choices = {role: [] for role in KEEPS}
        for spec in specs:
            choices[spec.role] = choices[spec.role] or draw.sample(knapsack.choices_of(spec), draw.choice((1, 2, 3)))
        # In a third of the plans about half of the blocks keep their inputs.
        blocks = (
            {spec.name: draw.choice((0, 8, 10, 12)) * draw.randint(0, 1) for spec in specs} if number % 3 == 0 else {}
        )
        keeps = []
        for spec in specs:
            if blocks.get(spec.name) and spec.name not in last:
                keeps.append(SavedBits(10, 0, blocks[spec.name]))
                continue
            own = knapsack.choices_of(spec)
            keeps.append(draw.choice([bits for bits in choices[spec.role] if bits in own] or own))

        def change(adapted: Any, keeps: list[SavedBits] = keeps) -> None:
            for branch, bits in zip(adapted._branches, keeps, strict=True):
                branch.saved_bits, branch.recompute = bits, recompute

        predicted, measured = knapsack.plan_error(specs, keeps), gradients.error(change)
        ratios.append((measured / predicted) ** 0.5)
        print(f"| {number} | {predicted:.1e} | {measured:.1e} | {ratios[-1]:.2f} |", flush=True)
    inside = sum(1 / 1.5 <= ratio <= 1.5 for ratio in ratios)
    print(f"\n{inside} of {count} within a factor of 1.5; least {min(ratios):.2f}, most {max(ratios):.2f}")


def main() -> None:
    """Prints the table or the check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("table", "check"))
    parser.add_argument("--backbone", default="vit_small_patch14_dinov2.lvd142m")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--size", type=int, default=112)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--plans", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--recompute", choices=("auto", "same", "bf16"), default="same")
    request = parser.parse_args()
    gradients = Gradients(request)
    if request.what == "table":
        print_table(gradients)
    else:
        check_plans(gradients, request.plans, request.seed, request.recompute)


if __name__ == "__main__":
    main()
