"""Where a record comes from: versions of the libraries, the commit of the checkout, the hardware."""

from __future__ import annotations

import contextlib
import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

_DISTRIBUTIONS = ("s2a", "s2a-baselines", "s2a-bench", "torch", "torchvision", "timm", "numpy", "pillow")


def versions() -> dict[str, str]:
    """Versions of Python and of the installed distributions that decide results."""
    return dict(_versions())


@functools.cache
def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in _DISTRIBUTIONS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def hardware(device: str, threads: int | None = None) -> dict[str, Any]:
    """Name of the processor, number of cores and torch's threads; on CUDA the name of the card too.

    Args:
        device: torch device.
        threads: Of another process on this machine; ``None``: those of this one.
    """
    import torch

    found: dict[str, Any] = {
        "device": device,
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "threads": threads or torch.get_num_threads(),
    }
    if device.startswith("cuda") and torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name(device)
    return found


@functools.cache
def _processor() -> str:
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return platform.processor() or platform.machine()


@functools.cache
def git_state(folder: Path) -> tuple[str, bool | None]:
    """Commit of the checkout that ``folder`` lies in, and whether it has changes; ``("", None)`` outside of one.

    Asked once per process: the code that runs is what was there when the process began.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        return git("rev-parse", "HEAD"), bool(git("status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", None
