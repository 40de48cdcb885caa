"""The device peak: what a card's allocator held at most during one training step, in a fresh process.

A fresh process per configuration, because caches, workspaces and tuned kernels of an earlier one would be counted.
Three steps warm up (AdamW's state, autotuning, workspaces); the fourth counts, optimiser and ``zero_grad`` included.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
from typing import Any

import s2a
import torch
import torch.nn.functional as F

from s2a_bench.backbones import create
from s2a_bench.config import BackboneConfig, TrainConfig, from_dict
from s2a_bench.errors import InputError
from s2a_bench.measure import MB, hardware
from s2a_bench.train import attach, precision, set_checkpointing

WARM_UP = 3
"""Steps before the one that counts."""


def device_peak(
    backbone: str,
    method: str,
    options: dict[str, Any],
    train: TrainConfig,
    num_classes: int = 100,
    device: str = "cuda",
) -> dict[str, Any]:
    """Runs a few training steps on a card in a process of their own.

    Args:
        backbone: Mini backbone or timm model; random weights.
        method: Registered name.
        options: Of the method's config.
        train: Batch size, precision and checkpointing.
        num_classes: Of the head.
        device: ``"cuda"`` or ``"cuda:1"``.

    Returns:
        ``device_peak_mb`` (allocated), ``device_requested_mb`` (before rounding), ``device_reserved_mb``, ``gpu``,
        ``tf32`` and ``torch``.

    Raises:
        InputError: No such device, or the step failed; the child's last line.
    """
    if not torch.cuda.is_available():
        raise InputError(
            f"--device {device} needs a CUDA card, and PyTorch {torch.__version__} sees none here; leave --device out "
            "for saved bytes and the simulated peak, which need no card."
        )
    request = {"backbone": backbone, "method": method, "options": options, "train": dataclasses.asdict(train)}
    request |= {"num_classes": num_classes, "device": device}
    child = subprocess.run(
        [sys.executable, "-m", "s2a_bench.device_peak"], input=json.dumps(request), capture_output=True, text=True
    )
    return parse(child.stdout, child.stderr, child.returncode)


def parse(output: str, errors: str, code: int) -> dict[str, Any]:
    """What a child reported.

    Raises:
        InputError: It failed.
    """
    lines = output.strip().splitlines()
    if code or not lines:
        last = (errors.strip().splitlines() or ["no message"])[-1]
        raise InputError(f"The step on the card failed: {last}")
    return json.loads(lines[-1])


def measure_here(request: dict[str, Any]) -> dict[str, Any]:
    """Runs the steps in this process."""
    train, device = from_dict(TrainConfig, request["train"]), torch.device(request["device"])
    model, expected = create(BackboneConfig(request["backbone"], random_weights=True))
    config = s2a.method_config(request["method"], **request["options"])
    adapted = attach(model, config, request["num_classes"], expected.size, train).to(device).train()
    set_checkpointing(adapted.backbone, train)
    optimiser = torch.optim.AdamW(s2a.trainable_parameters(adapted).values(), lr=1e-4)
    images = torch.randn(train.batch_size, 3, expected.size, expected.size, device=device)
    labels = torch.zeros(train.batch_size, dtype=torch.long, device=device)

    def step() -> None:
        with precision(train, device):
            loss = F.cross_entropy(adapted(images), labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    for _ in range(WARM_UP):
        step()
    gc.collect()
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    step()
    torch.cuda.synchronize(device)
    return {
        "device_peak_mb": torch.cuda.max_memory_allocated(device) / MB,
        "device_requested_mb": torch.cuda.memory_stats(device).get("requested_bytes.all.peak", 0) / MB,
        "device_reserved_mb": torch.cuda.max_memory_reserved(device) / MB,
        "gpu": hardware(str(device)).get("gpu"),
        "tf32": torch.backends.cuda.matmul.allow_tf32,
        "torch": torch.__version__,
    }


if __name__ == "__main__":
    print(json.dumps(measure_here(json.loads(sys.stdin.read()))))
