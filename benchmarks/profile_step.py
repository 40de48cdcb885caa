"""Where the time of a training step goes: operators by kind, forward and backward pass, exact against lean plans.

    python benchmarks/profile_step.py [--batch 4] [--steps 2] [backbone ...]

One thread. Times are those of the profiler (self CPU time of every operator, which it lengthens a little), as a share
of the whole step with exact activations.
"""

from __future__ import annotations

import argparse
from collections import Counter
from typing import Any

import lean
import torch
from torch.profiler import ProfilerActivity, profile

KINDS = {
    "products": ("mm", "addmm", "bmm", "baddbmm", "linear", "matmul", "convolution", "mkldnn", "conv"),
    "attention": ("scaled_dot_product", "flash_attention", "softmax"),
    "codes": ("s2a::",),
    "activations": ("gelu", "relu", "silu", "sigmoid", "tanh"),
    "norms": ("layer_norm", "batch_norm", "native_layer_norm", "native_batch_norm"),
    "copies and casts": ("copy_", "clone", "to_copy", "contiguous", "cat", "fill_", "zero_", "index", "stack"),
}
"""Kind -> beginnings of the names of its operators (without ``aten::``); what is left is elementwise, or sums."""


def kind_of(name: str) -> str:
    """The kind of an operator."""
    short = name.removeprefix("aten::").removeprefix("_")
    return next((kind for kind, starts in KINDS.items() if short.startswith(starts)), "elementwise and the rest")


def profile_steps(backbone: str, name: str, batch: int, steps: int) -> tuple[Counter[str], Counter[str]]:
    """Seconds per step of one of ``lean.configurations``, by kind, in the forward and in the backward pass."""
    method, options, _, _ = lean.configurations(backbone)[name]
    adapted, step = lean.stepper(backbone, batch, method, options, False, 1, name in lean.PAGED)
    step()
    images, labels = torch.randn(batch, 3, 224, 224), torch.arange(batch)
    totals = []
    for part in ("forward", "backward"):
        found: Counter[str] = Counter()
        for _ in range(steps):
            if part == "forward":
                with _profiler() as seen:
                    loss = torch.nn.functional.cross_entropy(adapted(images), labels)
            else:
                loss = torch.nn.functional.cross_entropy(adapted(images), labels)
                with _profiler() as seen:
                    loss.backward()
            for event in seen.key_averages():
                found[kind_of(event.key)] += event.self_cpu_time_total / 1e6 / steps
            adapted.zero_grad(set_to_none=True)
            del loss
        totals.append(found)
    return totals[0], totals[1]


def _profiler() -> Any:
    return profile(activities=[ProfilerActivity.CPU])


def main() -> None:
    """Prints a table for every backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=["vit_base_patch16_224"])
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--steps", type=int, default=2)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for backbone in args.backbones:
        found = {
            name: profile_steps(backbone, name, args.batch, args.steps)
            for name in ("s2a exact", "s2a lean", "s2a lean, half of it")
        }
        base = sum(sum(part.values()) for part in found["s2a exact"])
        kinds = [*KINDS, "elementwise and the rest"]
        print(f"\n| {backbone} | pass | {' | '.join(kinds)} | all |\n|---|---|" + "---|" * (len(kinds) + 1))
        for name, parts in found.items():
            for word, part in zip(("forward", "backward"), parts, strict=True):
                cells = " | ".join(f"{part[kind] / base:.3f}" for kind in kinds)
                print(f"| {name} | {word} | {cells} | {sum(part.values()) / base:.3f} |")
        print(f"(1.000 is {base:.2f} s)", flush=True)


if __name__ == "__main__":
    main()
