"""Whether a forward pass keeps anything for a backward pass."""

from __future__ import annotations

import torch


def keeps_for_backward() -> bool:
    """Whether gradients are on, and the pass is no export of a program.

    An exported program (``torch.export``, ``torch.onnx.export``, ``torch.jit.trace``) has a forward pass alone,
    whatever the gradient mode in which it is made, and runs where this library may not be: it is to hold PyTorch's own
    operators and nothing else.
    """
    return torch.is_grad_enabled() and not (torch.compiler.is_exporting() or torch.jit.is_tracing())
