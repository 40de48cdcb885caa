"""How many cells run at once on this machine, and what each of them is given."""

from __future__ import annotations

import dataclasses
import os

from s2a_bench.errors import InputError

WORKER_BYTES = 2_000_000_000
"""Memory set aside for a worker when their number is chosen: Python, torch, a mini backbone and its data."""


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many cells run at once, and what each is given.

    Attributes:
        count: Cells at once.
        cpus: Cores of each.
        gpus: Share of a card of each.
        cards: Cards of the machine; ``None``: as many as ``count`` such shares make.
    """

    count: int
    cpus: int
    gpus: float = 0.0
    cards: int | None = None


def check_max_concurrent(count: int | None) -> None:
    """Checks how many cells may run at once.

    Raises:
        InputError: Fewer than one.
    """
    if count is not None and count < 1:
        raise InputError(f"--max-concurrent {count} is too small; it must be at least 1.")


def choose_workers(cells: int, device: str, concurrent: int | None = None, *, small: bool = True) -> Workers:
    """Workers for a number of cells on this machine.

    Args:
        cells: How many are to run.
        device: torch device of the cells.
        concurrent: The user's wish; ``None`` chooses.
        small: The cells are small enough for one core each; others get the machine to themselves.

    Raises:
        InputError: Fewer than one worker.
    """
    check_max_concurrent(concurrent)
    cpus = len(os.sched_getaffinity(0))
    cuda = device.startswith("cuda")
    devices = _cuda_devices() if cuda else 0
    if concurrent is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        concurrent = max(1, min(cpus, memory // WORKER_BYTES)) if small else 1
        concurrent = devices if cuda else concurrent
    count = max(1, min(concurrent, cells))
    return Workers(count, max(1, cpus // count), min(1.0, devices / count), devices if cuda else None)


def _cuda_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())
