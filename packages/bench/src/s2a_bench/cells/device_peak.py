"""The third number: the CUDA allocator's peak over one training step, in a process of its own.

A process that has measured before holds caches, workspaces and settings; so every configuration gets a fresh one,
which warms up, then measures one whole step: ``python -m s2a_bench.cells.device_peak`` takes a request in JSON on its
standard input; the answer is the last line of its standard output, in JSON.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from s2a.errors import S2AError

from s2a_bench.cells.measure import MB, blank
from s2a_bench.cells.provenance import hardware
from s2a_bench.cells.train import parameter_groups, set_checkpointing, training_step
from s2a_bench.config import TrainConfig, from_dict
from s2a_bench.errors import InputError

WARM_UP = 3
"""Steps before the one that counts: AdamW's state, workspaces, kernels chosen and compiled."""

_COMMAND = (sys.executable, "-m", "s2a_bench.cells.device_peak")
_BAD_INPUT = 2


@dataclasses.dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        backbone: Mini backbone or timm model.
        method: Registered name.
        options: Of the method's config.
        batch_size: Images per step.
        precision: As in the recipe.
        checkpointing: Likewise.
        frozen: Likewise.
        device: A CUDA device.
    """

    backbone: str
    method: str
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    batch_size: int = 32
    precision: str = "fp32"
    checkpointing: bool = False
    frozen: str = "fp32"
    device: str = "cuda"


def check_device(name: str) -> torch.device:
    """The CUDA device of that name.

    Raises:
        InputError: None, or none here.
    """
    try:
        device = torch.device(name)
    except RuntimeError:
        raise InputError(f"Unknown device {name!r}: write cuda or cuda:0.") from None
    if device.type != "cuda":
        raise InputError(f"--device {name} has no allocator that keeps a peak; give cuda, or leave --device out.")
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (device.index or 0) >= count:
        have = f"finds {count} CUDA devices" if count else "finds no CUDA device"
        raise InputError(
            f"--device {name} was asked for but torch {torch.__version__} {have} here; leave --device out."
        )
    return device


def device_peak(request: Request, command: Sequence[str] = _COMMAND, timeout: float = 1800) -> dict[str, Any]:
    """Measures in a fresh process.

    Args:
        request: What.
        command: The process.
        timeout: Seconds that it may take.

    Returns:
        See ``peak_numbers``; and ``device``, ``gpu``, ``torch``, ``matmul_precision``, ``conv_precision``.

    Raises:
        InputError: What the process refused, or how it ended without an answer.
    """
    what = f"{request.method} on {request.backbone} at batch size {request.batch_size}"
    try:
        done = subprocess.run(
            command, input=json.dumps(dataclasses.asdict(request)), capture_output=True, text=True, timeout=timeout
        )
    except subprocess.TimeoutExpired:
        raise InputError(f"Measuring {what} took more than {timeout:g} s; give a smaller batch or model.") from None
    try:
        answer = json.loads(done.stdout.splitlines()[-1])
    except (IndexError, ValueError):
        answer = None
    if not isinstance(answer, dict) or done.returncode not in (os.EX_OK, _BAD_INPUT):
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise InputError(f"The process that measured {what} ended with code {done.returncode}: {last}")
    if "error" in answer:
        raise InputError(answer["error"])
    return answer


def measure_here(request: Request) -> dict[str, Any]:
    """Measures in this process, which should do nothing else before or after.

    Raises:
        InputError: A device that is not there, bad input, or a step that does not fit it.
        S2AError: Options that do not fit the model.
    """
    device = check_device(request.device)
    train: TrainConfig = from_dict(
        TrainConfig,
        {name: getattr(request, name) for name in ("batch_size", "precision", "checkpointing", "frozen")},
    )
    options = {k: tuple(v) if isinstance(v, list) else v for k, v in request.options.items()}  # JSON has no tuples.
    adapted, side = blank(request.backbone, request.method, options, train=train)
    set_checkpointing(adapted.backbone, train)
    try:
        adapted.to(device).train()
        optimiser = torch.optim.AdamW(parameter_groups(adapted, train), lr=train.lr)
        images = torch.randn(train.batch_size, 3, side, side, device=device)  # Held all along, as the simulation does.
        labels = torch.zeros(train.batch_size, dtype=torch.long, device=device)
        for _ in range(WARM_UP):
            training_step(adapted, images, labels, optimiser, train)
        gc.collect()
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        training_step(adapted, images, labels, optimiser, train)
        torch.cuda.synchronize(device)
    except torch.cuda.OutOfMemoryError as error:
        raise InputError(f"The step does not fit {torch.cuda.get_device_name(device)}: {error}") from None
    found = peak_numbers(torch.cuda.memory_stats(device))
    gpu = hardware(request.device)["gpu"]
    return found | {"device": request.device, "gpu": gpu, "torch": torch.__version__, **_precisions()}


def peak_numbers(stats: Mapping[str, Any]) -> dict[str, float]:
    """What counts of ``torch.cuda.memory_stats``, in MB.

    Returns:
        ``device_mb``: the peak of allocated bytes, the number that the others are compared with;
        ``device_requested_mb``: of what was asked for, before rounding; ``device_reserved_mb``: of what the allocator
        took from the driver, fragmentation included. None of them has the CUDA context in it.
    """
    names = {"device_mb": "allocated", "device_requested_mb": "requested", "device_reserved_mb": "reserved"}
    return {ours: stats[f"{theirs}_bytes.all.peak"] / MB for ours, theirs in names.items()}


def _precisions() -> dict[str, Any]:
    """What fp32 products run in: ``"tf32"`` or ``"ieee"``, and ``"none"`` for torch's default."""
    cudnn: Any = torch.backends.cudnn
    found = {"matmul_precision": torch.backends.cuda.matmul.fp32_precision, "conv_precision": cudnn.conv.fp32_precision}
    return {name: str(value) for name, value in found.items()}


def main() -> int:
    """The process: one request in, one answer out."""
    try:
        answer = measure_here(from_dict(Request, json.loads(sys.stdin.read())))
    except (InputError, S2AError) as error:
        print(json.dumps({"error": str(error)}))
        return _BAD_INPUT
    print(json.dumps(answer))
    return os.EX_OK


if __name__ == "__main__":
    sys.exit(main())
