"""How a device is written, and whether it is here."""

from __future__ import annotations

import re

from s2a_bench.errors import InputError

_SPELLING = re.compile(
    "(cpu|cuda|ipu|xpu|mkldnn|opengl|opencl|ideep|hip|ve|fpga|maia|xla|lazy|vulkan|mps|meta|hpu|mtia|privateuseone)"
    "(:[0-9]+)?"
)
"""Of torch's devices."""


def check_device_name(device: str) -> None:
    """Checks how a device is written, without torch.

    Raises:
        InputError: torch has no device of that form.
    """
    if not _SPELLING.fullmatch(device):
        raise InputError(f"Unknown device {device!r}: write cpu, cuda or cuda:0.")


def check_device(device: str) -> None:
    """Checks that a device is known and, of CUDA's, that there is one on this machine. Imports torch.

    Raises:
        InputError: It is not.
    """
    check_device_name(device)
    if not device.startswith("cuda"):
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(f"Device {device!r} was asked for but torch finds no CUDA device here; use --device cpu.")
