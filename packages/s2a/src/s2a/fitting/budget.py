"""A memory budget as a number of bytes."""

from __future__ import annotations

import re

import torch

from s2a.errors import S2AError
from s2a.lean.options import parse_size

FREE = "free"
"""Stands for what is free on the current CUDA device."""

MARGIN = 0.05
"""Share of a device's free memory that ``FREE`` leaves alone: for kernels' workspaces and fragmentation."""


def budget_bytes(budget: str | int, name: str = "budget") -> int:
    """Bytes of a budget.

    Args:
        budget: ``"8GiB"``, ``"8GB"``, ``"320MB"``; a number of bytes, also as text; ``"free"``: what is free on the
            current CUDA device, less ``MARGIN`` of it.
        name: What an error calls it.

    Raises:
        S2AError: Anything else, or ``"free"`` without a CUDA device.
    """
    if isinstance(budget, str) and re.fullmatch(r"\s*[0-9]+\s*", budget):
        budget = int(budget)
    if type(budget) is int:
        if budget < 1:
            raise S2AError(f"{name}={budget} must be at least 1 byte, as in 8GiB.")
        return budget
    if budget == FREE:
        if not torch.cuda.is_available():
            raise S2AError(
                f"{name}='free' asks what a CUDA device has free, and there is none; give a size as in 8GiB."
            )
        return int(torch.cuda.mem_get_info()[0] * (1 - MARGIN))
    return parse_size(budget, name)
