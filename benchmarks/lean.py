"""Lean activations on the real architectures: gradients by bits, and step time beside simulated peak of all methods.

    python benchmarks/lean.py fidelity [backbone ...]
    python benchmarks/lean.py pareto [--batch 4] [--rounds 3] [--only NAME ...] [--output FILE] [backbone ...]

``fidelity`` prints the cosine between lean and exact gradients of S2A's trainable groups, as ``fidelity.py`` does for
codes alone, and what the paper's structure then takes at batch 32. ``pareto`` runs forward and backward pass of every
configuration in turn, so that all meet the same machine, and prints the least time of each.
"""

from __future__ import annotations

import argparse
import functools
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fidelity
import s2a
import timm
import torch
import torch.nn.functional as F
from s2a.lean import SavedBits
from s2a_bench.cells.provenance import hardware
from torch import Tensor

BUDGETS = {"vit_base_patch16_224": 640, "swin_base_patch4_window7_224": 745, "convnext_base": 741}
KEEPS: dict[str, tuple[SavedBits, SavedBits] | None] = {
    "the default: norms in 10 and 8 bits": None,
    "norms in 8 bits": (SavedBits(8, 0), SavedBits(8, 0)),
    "blocks again from 10 bits": (SavedBits(10, 0, 10), SavedBits(10, 0, 10)),
    "blocks again from 8 bits": (SavedBits(10, 0, 8), SavedBits(10, 0, 8)),
    "activation in 4-bit codes, norm in 4": (SavedBits(10, 0), SavedBits(4, 4)),
    "activation in 3-bit codes, norm in 3": (SavedBits(10, 0), SavedBits(3, 3)),
}


def set_keeps(adapted: Any, keeps: tuple[SavedBits, SavedBits]) -> None:
    """Lets all attention and all MLP branches keep the same."""
    for branch in adapted._branches:
        branch.saved_bits = keeps[0 if branch.role == "attn" else 1]


def curve(backbone: str) -> None:
    """Cosine by group for several widths, and the budget of the paper's claim."""
    exact = fidelity.gradients(backbone, activations="exact")
    for name, keeps in KEEPS.items():
        if keeps and keeps[0].block and backbone.startswith("convnext"):
            continue  # Its blocks have one branch, whose norm's codes are as small.
        change = functools.partial(set_keeps, keeps=keeps) if keeps else None
        found = fidelity.gradients(backbone, change=change, recompute="same", **LEAN)
        _row(backbone, name, exact, found)
    _row(backbone, "the default, again in bf16", exact, fidelity.gradients(backbone, recompute="bf16", **LEAN))
    budget = BUDGETS[backbone]
    _row(backbone, f"budget {budget} MB", exact, fidelity.gradients(backbone, saved_budget_mb=budget, **LEAN))


LEAN: dict[str, Any] = {"activations": "lean"}


def _row(backbone: str, name: str, exact: dict[str, Tensor], found: dict[str, Tensor]) -> None:
    cosines = [F.cosine_similarity(exact[group], found[group], 0).item() for group in ("bias", "LRP", "LSB")]
    print(f"| {backbone} | {name} | " + " | ".join(f"{c:.4f}" for c in cosines) + " |", flush=True)


PAGED = ("s2a lean, paged", "lora lean, paged", "s2a exact, paged")
"""Configurations whose frozen weights are paged."""


def configurations(backbone: str) -> dict[str, tuple[str, dict[str, Any], bool, int]]:
    """Name -> method, options, checkpointing, micro-batches of one step."""
    budget, planned = BUDGETS[backbone], {**LEAN, "budget_batch": 32}  # Plans of 32 images, timed on fewer.
    found: dict[str, tuple[str, dict[str, Any], bool, int]] = {
        "full": ("full", {}, False, 1),
        "bias": ("bias", {}, False, 1),
        "bias, 4 micro-batches": ("bias", {}, False, 4),
        "lora": ("lora", {}, False, 1),
        "lora + checkpointing": ("lora", {}, True, 1),
        "lora lean": ("lora", LEAN, False, 1),
        "adapter": ("adapter", {}, False, 1),
        "vpt": ("vpt", {}, False, 1),
        "unipt": ("unipt", {}, False, 1),
        "lst": ("lst", {}, False, 1),
        "s2a exact": ("s2a", {"activations": "exact"}, False, 1),
        "s2a paper": ("s2a", {"activations": "paper"}, False, 1),
        "s2a lean": ("s2a", LEAN, False, 1),
        "s2a lean, paged": ("s2a", LEAN, False, 1),
        "lora lean, paged": ("lora", LEAN, False, 1),
        "s2a exact, paged": ("s2a", {"activations": "exact"}, False, 1),
        "s2a lean, again in float32": ("s2a", {**LEAN, "recompute": "same"}, False, 1),
        "s2a lean, the paper's figure": ("s2a", {**planned, "peak_budget": f"{budget}MB"}, False, 1),
        "s2a lean, half of it": ("s2a", {**planned, "peak_budget": f"{budget // 2}MB"}, False, 1),
        "lora lean, half of it": ("lora", {**planned, "peak_budget": f"{budget // 2}MB"}, False, 1),
    }
    return found


def stepper(
    backbone: str, batch: int, method: str, options: dict[str, Any], again: bool, parts: int, paged: bool
) -> tuple[Any, Any]:
    """An adapted model and one forward and backward pass of it."""
    torch.manual_seed(0)
    adapted: Any = s2a.attach(timm.create_model(backbone), s2a.method_config(method, **options), 100).train()
    if paged:
        s2a.page_frozen(adapted)
    if again:
        adapted.backbone.set_grad_checkpointing(True)
    images, labels = torch.randn(batch, 3, 224, 224), torch.arange(batch)

    def step() -> None:
        for some, own in zip(images.chunk(parts), labels.chunk(parts), strict=True):
            (F.cross_entropy(adapted(some), own) / parts).backward()
        adapted.zero_grad(set_to_none=True)

    return adapted, step


def pareto(backbone: str, batch: int, rounds: int, only: list[str] | None) -> list[dict[str, Any]]:
    """Least step time of every configuration, and its simulated peak at this batch and at 32; what was printed."""
    times: dict[str, list[float]] = {}
    peaks: dict[str, tuple[float, float]] = {}
    steps: dict[str, Callable[[], None]] = {}
    for name, (method, options, again, parts) in configurations(backbone).items():
        if only and name not in only:
            continue
        try:
            adapted, steps[name] = stepper(backbone, batch, method, options, again, parts, name in PAGED)
        except s2a.S2AError as error:
            print(f"{name}: {error}")
            continue
        small, large = (s2a.simulated_peak(adapted, size // parts).total / 1e6 for size in (batch, 32))
        peaks[name] = small, large
        times[name] = []
        steps[name]()  # The first pass pays for memory.
    for _ in range(rounds):
        for name, step in steps.items():
            began = time.perf_counter()
            step()
            times[name].append(time.perf_counter() - began)
    base = min(times.get("s2a exact", [float("nan")]))
    print(f"\n| {backbone} | s / step, batch {batch} | of s2a exact | peak MB, batch {batch} | peak MB, batch 32 |")
    print("|---|---|---|---|---|")
    rows = []
    for name, found in times.items():
        least = min(found)
        small, large = peaks[name]
        print(f"| {name} | {least:.3f} | {least / base:.2f} | {small:,.0f} | {large:,.0f} |", flush=True)
        rows.append(
            {
                "backbone": backbone,
                "name": name,
                "batch": batch,
                "seconds": found,
                "peak_mb": small,
                "peak_mb_32": large,
            }
        )
    return rows


def main() -> None:
    """Prints Markdown tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("fidelity", "pareto"))
    parser.add_argument("backbones", nargs="*", default=list(BUDGETS))
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+")
    parser.add_argument("--output", type=Path, help="a JSON file for all step times (docs/figures/lean_pareto.py)")
    request = parser.parse_intermixed_args()
    if unknown := sorted(set(request.backbones) - BUDGETS.keys()):
        parser.error(f"backbone {unknown[0]} has no figure in the paper; choose among {', '.join(BUDGETS)}")
    if request.what == "fidelity":
        print("| backbone | lean keeps | bias | LRP | LSB |\n|---|---|---|---|---|")
        for backbone in request.backbones:
            curve(backbone)
        return
    found = hardware("cpu")
    print(f"{found['cpu']}, {torch.get_num_threads()} threads, torch {torch.__version__}, fp32")
    rows: list[dict[str, Any]] = []
    for backbone in request.backbones:
        rows += pareto(backbone, request.batch, request.rounds, request.only)
        if request.output:
            about = {**found, "torch": torch.__version__, "threads": torch.get_num_threads(), "rows": rows}
            request.output.write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
