"""How a device is written; ``sweeps.resources.check_device`` asks torch whether it is here."""

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
    if not isinstance(device, str) or not _SPELLING.fullmatch(device):
        raise InputError(f"Unknown device {device!r}: write cpu, cuda or cuda:0.")
