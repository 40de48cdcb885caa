"""Peak resident memory of training steps on the CPU beside the bytes autograd keeps: what codes cost in temporaries.

    python benchmarks/peak_rss.py [vit_base_patch16_224 ...]

Linux only. Every figure is of a process of its own, in MB of 1e6 bytes: the peak of two steps less what was resident
before them. What it holds beyond the saved tensors is the step's own: gradients, and the operands of the operator at
work.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

BACKBONES = ("vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base")


def resident(field: str) -> int:
    """Bytes of this process's ``VmRSS`` (now) or ``VmHWM`` (peak)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def measure(backbone: str, activations: str) -> None:
    """Prints peak and saved MB of one configuration, batch 4 at 224."""
    import s2a
    import timm
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)
    config = s2a.S2AConfig(activations=activations)  # type: ignore[arg-type]
    adapted = s2a.attach(timm.create_model(backbone), config, 100).train()
    images, labels = torch.randn(4, 3, 224, 224), torch.tensor([3, 14, 15, 92])
    Path("/proc/self/clear_refs").write_text("5")  # The peak starts anew.
    before = resident("VmRSS")
    for _ in range(2):
        adapted.zero_grad()
        F.cross_entropy(adapted(images), labels).backward()
    peak = resident("VmHWM") - before
    print(f"{peak / 1e6:.0f} {s2a.saved_bytes(adapted, images).total / 1e6:.0f}")


def main() -> None:
    """Prints one Markdown row for every backbone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("backbones", nargs="*", default=BACKBONES)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    request = parser.parse_args()
    if request.one:
        return measure(request.backbones[0], request.one)
    print("| backbone | exact: peak | saved | 4 bits: peak | saved |\n|---|---|---|---|---|")
    # Large blocks go back to the system at once, so that the peak is the program's and not the allocator's.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_TRIM_THRESHOLD_": "1000000"}
    for backbone in request.backbones:
        cells: list[str] = []
        for mode in ("exact", "paper"):
            command = [sys.executable, __file__, backbone, "--one", mode]
            cells += subprocess.run(command, env=settings, check=True, capture_output=True, text=True).stdout.split()
        print("|", " | ".join([backbone, *cells]), "|", flush=True)


if __name__ == "__main__":
    main()
