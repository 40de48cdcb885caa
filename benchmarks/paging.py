"""The simulated peak of a step, with and without paged weights, beside the private memory that a process takes.

    python benchmarks/paging.py [--backbone vit_small_patch16_224] [--batch-size 8] [--method s2a]

Linux only. Every figure is of a process of its own, in MB of 1e6 bytes. Measured: the largest ``RssAnon`` (private
memory, to which pages of a mapped file do not belong) of two steps with AdamW, as a thread that looks every half
millisecond finds it, less what the process holds before them, weights and buffers on the device apart. A block of the
same sizes has been trained before that, so that libraries have their work space.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

MODES = [("exact", False), ("exact", True), ("lean", False), ("lean", True)]
"""Activations, and whether weights are paged."""


def private() -> int:
    """Bytes of this process's private memory."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))


class Watch(threading.Thread):
    """Looks at the private memory all the time; ``most`` is the largest so far."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.most = 0

    def run(self) -> None:
        while True:
            self.most = max(self.most, private())
            time.sleep(0.0005)


def measure(backbone: str, method: str, batch: int, activations: str, paged: bool) -> None:
    """Prints simulated and measured MB of one configuration."""
    import s2a
    import timm
    import torch
    import torch.nn.functional as F

    torch.manual_seed(0)

    def make(**sizes: Any) -> s2a.Adapted:
        config = s2a.method_config(method, activations=activations)
        adapted = s2a.attach(timm.create_model(backbone, **sizes), config, 100).train()
        if paged:
            s2a.page_frozen(adapted)
        return adapted

    def steps(adapted: s2a.Adapted, images: torch.Tensor) -> int:
        optimiser = torch.optim.AdamW([p for p in adapted.parameters() if p.requires_grad], foreach=True)
        watch.most = 0
        for _ in range(2):
            F.cross_entropy(adapted(images), torch.zeros(len(images), dtype=torch.long)).backward()
            optimiser.step()
            optimiser.zero_grad()
        return watch.most

    watch = Watch()
    watch.start()
    images = torch.randn(batch, 3, 224, 224)
    steps(make(depth=2), images)  # Of one block lean attention computes a single row.
    adapted = make()
    simulated = s2a.simulated_peak(adapted, batch)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    # The images are there already; the simulation counts them too.
    resident = simulated.categories["weights"] + images.nbytes
    before = private()
    measured = steps(adapted, images) - before + resident
    print(f"{s2a.host_bytes(adapted) / 1e6:.1f} {simulated.total / 1e6:.1f} {measured / 1e6:.1f}")


def main() -> None:
    """Prints a Markdown table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="vit_small_patch16_224", help="a ViT of timm's")
    parser.add_argument("--method", default="s2a")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    request = parser.parse_args()
    if request.one:
        activations, paged = request.one
        return measure(request.backbone, request.method, request.batch_size, activations, paged == "paged")
    print("| activations | weights | in host memory | simulated | measured | ratio |\n|---|---|---|---|---|---|")
    # Large blocks go back to the system at once, so that the peak is the program's and not the allocator's.
    settings = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    for activations, paged in MODES:
        words = "paged" if paged else "resident"
        command = [sys.executable, __file__, *sys.argv[1:], "--one", activations, words]
        done = subprocess.run(command, env=settings, check=True, capture_output=True, text=True)
        host, simulated, measured = map(float, done.stdout.split())
        print(
            f"| {activations} | {words} | {host} | {simulated} | {measured} | {measured / simulated:.3f} |", flush=True
        )


if __name__ == "__main__":
    main()
