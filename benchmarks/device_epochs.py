"""Part of ``device.py``: seconds of an epoch and of scoring, by backbone and method; what ``estimate`` reckons with.

Images are noise on the CPU, so that the copies to the device count and the loading of files does not.
"""

from __future__ import annotations

import copy
import functools
import time
from typing import Any

import device_parts as parts
import s2a
import torch
from s2a_bench.cells import measure
from s2a_bench.cells.scores import accuracy
from s2a_bench.cells.train import attach, parameter_groups, set_checkpointing, training_step
from s2a_bench.config import TrainConfig

IMAGES = 1000
"""Of an epoch: VTAB-1k's training images."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in ("s2a", "full", "linear", "bias", "vpt", "adapter", "lora", "lst", "unipt")},
    "s2a lean": ("s2a", {"activations": "lean"}),
    "s2a plus": ("s2a", {"preset": "plus"}),
}
"""Name -> method and options: those of the paper's Table 1, and S2A as we would run it."""


class Noise:
    """As many images as an epoch has, made of one batch."""

    def __init__(self, count: int, batch: int, side: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.arange(count) * 7 % parts.CLASSES
        self._images = torch.randn(batch, 3, side, side, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: torch.Tensor, generator: torch.Generator | None = None) -> torch.Tensor:
        """Images ``(B, 3, H, W)`` on the CPU."""
        return self._images[indices % len(self._images)]


def time_epochs(backbone: str, request: parts.Request, write: parts.Write) -> None:
    """A row for each method on one backbone, in fp32 and the harness's batch."""
    works = [
        (f"an epoch of {name} on {backbone}", functools.partial(time_epoch, backbone, name, request))
        for name in METHODS
    ]
    parts.measure_in_time("epochs", works, request, write)


def time_epoch(backbone: str, name: str, request: parts.Request) -> list[dict[str, Any]]:
    """A row: seconds of one epoch after two steps to warm up, its peak, and seconds of scoring as many images."""
    method, options = METHODS[name]
    config = s2a.method_config(method, **options)
    train = TrainConfig(batch_size=request.batch)
    model, side = parts.backbone_of(backbone, request.weights.get(backbone))
    torch.manual_seed(0)
    adapted = attach(copy.deepcopy(model), config, parts.CLASSES, side, train)
    set_checkpointing(adapted.backbone, train)
    adapted.to(request.device).train()
    count = IMAGES if request.device == "cuda" else 3 * request.batch
    images = Noise(count, request.batch, side)
    optimiser = torch.optim.AdamW(parameter_groups(adapted, train), lr=1e-6)

    def step(indices: torch.Tensor) -> None:
        batch, labels = images.batch(indices), images.labels[indices]
        training_step(adapted, batch.to(request.device), labels.to(request.device), optimiser, train)

    order = torch.arange(count).split(request.batch)
    for indices in order[: parts.WARM_UP]:
        step(indices)
    with measure.peak(request.device) as peak:
        seconds = clock(request.device, lambda: [step(indices) for indices in order])
    scoring = clock(request.device, lambda: accuracy(adapted, images, train))  # type: ignore[arg-type]
    row = {
        "backbone": backbone,
        "name": name,
        "method": method,
        "options": options,
        "train": {"batch_size": train.batch_size, "precision": train.precision},
        "images": count,
        "epoch_seconds": seconds,
        "scoring_seconds": scoring,
        "peak_mb": peak.get("peak_mb") if request.device == "cuda" else None,
    }
    return [row]


def clock(device: str, work: Any) -> float:
    """Seconds until the device has done it all."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began
