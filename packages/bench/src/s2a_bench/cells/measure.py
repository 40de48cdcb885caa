"""Parameters and memory of a cell: theoretical, measured, simulated, and the peak of the device."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import s2a
import torch
from s2a.memory import strip_data, tensors_without_data
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily

from s2a_bench.cells.backbones import create
from s2a_bench.cells.train import attach, precision, set_checkpointing
from s2a_bench.config import BackboneConfig, TrainConfig

MB = 1e6
"""One MB, as in the paper: 1e6 bytes."""


def memory(adapted: s2a.Adapted, images: Tensor, train: TrainConfig | None = None) -> dict[str, float]:
    """Parameters and memory of one training step on ``images`` ``(B, 3, H, W)``.

    Args:
        adapted: What ``s2a.attach`` returned; afterwards checkpointing is as the recipe says.
        images: One batch.
        train: The recipe, of which precision and checkpointing matter to what is measured; ``None``: the default.

    Returns:
        ``params_total`` (everything the model holds), ``params_backbone`` (without any head), ``params_trainable``,
        ``params_percent`` (trainable over backbone: the paper's definition), ``weights_mb``, ``theoretical_mb``,
        ``saved_mb``, ``measured_mb`` = weights + saved; ``host_mb``: weights in host memory (``frozen="paged"``) and
        saved tensors that go there (``method.offload=true``), which are in none of the others.
    """
    train = train or TrainConfig()
    set_checkpointing(adapted.backbone, train)
    training = adapted.training
    adapted.train()
    try:
        with precision(train, images.device):
            saved = s2a.saved_bytes(adapted, images)
            theory = s2a.theoretical_memory(adapted, len(images)).total
    finally:
        adapted.train(training)
    total = sum(p.numel() for p in adapted.parameters())
    backbone = sum(p.numel() for p in adapted.backbone.parameters())
    trainable = sum(p.numel() for p in s2a.trainable_parameters(adapted).values())
    host = s2a.host_bytes(adapted)
    weights = sum(p.numel() * p.element_size() for p in adapted.parameters()) - host
    return {
        "params_total": total,
        "params_backbone": backbone,
        "params_trainable": trainable,
        "params_percent": 100 * trainable / backbone,
        "weights_mb": weights / MB,
        "theoretical_mb": theory / MB,
        "saved_mb": saved.total / MB,
        "measured_mb": (weights + saved.total) / MB,
        "host_mb": (host + saved.host) / MB,
    }


def blank(
    backbone: str,
    method: str,
    options: Mapping[str, Any] | None = None,
    num_classes: int = 100,
    train: TrainConfig | None = None,
    *,
    without_data: bool = False,
    image_size: int | None = None,
) -> tuple[s2a.Adapted, int]:
    """A method on a backbone of random weights, and the side of its images: all that memory depends on, no data.

    Args:
        backbone: Mini backbone or timm model.
        method: Registered name.
        options: Of the method's config.
        num_classes: Of the head; the paper's percentages belong to 100.
        train: The recipe, whose number format frozen weights have; ``None``: the default.
        without_data: Make tensors without data; the call is within ``s2a.memory.tensors_without_data`` then.
        image_size: Side in pixels; ``None``: the backbone's own.
    """
    config = s2a.method_config(method, **(options or {}))
    with contextlib.ExitStack() as stack:
        if without_data:  # built outside that block: timm reads values of its own meanwhile
            stack.enter_context(unset_fake_temporarily())
            stack.enter_context(torch.device("meta"))
        model, expected = create(BackboneConfig(backbone, random_weights=True, image_size=image_size))
    if without_data:
        strip_data(model)
    return attach(model, config, num_classes, expected.size, train or TrainConfig()), expected.size


def memory_row(
    backbone: str,
    method: str,
    options: dict[str, Any] | None = None,
    train: TrainConfig | None = None,
    num_classes: int = 100,
    simulate: bool = False,
) -> dict[str, Any]:
    """One row of ``s2a-bench memory``, computed on tensors without data: nothing of the model's size is allocated.

    Args:
        backbone: As for ``blank``.
        method: Likewise.
        options: Likewise.
        train: Batch size, precision and checkpointing of the step; ``None``: the default recipe's.
        num_classes: As for ``blank``.
        simulate: Also ``simulated``, which takes seconds for a large model.

    Returns:
        What ``memory`` and ``simulated`` say, and with lean activations the ``plan`` as text.
    """
    train = train or TrainConfig()
    with tensors_without_data():
        adapted, side = blank(backbone, method, options, num_classes, train, without_data=True)
        images = torch.empty(train.batch_size, 3, side, side)
        row = {"backbone": backbone, "method": method, "batch_size": train.batch_size, **memory(adapted, images, train)}
        with precision(train, images.device):
            row |= {} if adapted.plan is None else {"plan": str(adapted.plan)}
        return row | simulated(adapted, train) if simulate else row


def simulated(adapted: s2a.Adapted, train: TrainConfig) -> dict[str, Any]:
    """The simulated peak of one of the recipe's steps.

    Args:
        adapted: What ``s2a.attach`` returned; afterwards checkpointing is as the recipe says.
        train: The recipe.

    Returns:
        ``simulated_mb``; ``simulated_phase``, in which the peak is; ``simulated_parts_mb``, what it is made of.
    """
    set_checkpointing(adapted.backbone, train)
    autocast = torch.bfloat16 if train.precision == "bf16" else None
    found = s2a.simulated_peak(adapted, train.batch_size, autocast=autocast)
    parts = {name: size / MB for name, size in found.categories.items()}
    return {"simulated_mb": found.total / MB, "simulated_phase": found.phase, "simulated_parts_mb": parts}


@contextlib.contextmanager
def peak(device: str) -> Iterator[dict[str, float]]:
    """Measures the peak memory of the block: fills ``peak_mb`` of the yielded dictionary at its end.

    On CUDA the allocator's peak; on Linux CPUs the process's peak resident size (Python and libraries included);
    elsewhere nothing is filled in.
    """
    found: dict[str, float] = {}
    if device.startswith("cuda"):
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        torch.cuda.synchronize(device)
        found["peak_mb"] = torch.cuda.max_memory_allocated(device) / MB
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    yield found
    if (resident := peak_so_far(device)) is not None:
        found["peak_mb"] = resident


def peak_so_far(device: str) -> float | None:
    """The peak memory since ``peak`` was entered, in MB, as it says; ``None`` where that cannot be told."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated(device) / MB
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        kilobytes = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return int(kilobytes) * 1024 / MB
    return None
