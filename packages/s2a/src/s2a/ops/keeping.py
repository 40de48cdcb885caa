"""Whether a forward pass keeps codes for its backward pass."""

from __future__ import annotations

import torch
from torch.utils import checkpoint
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

_SELECTIVE = (checkpoint._CachingTorchDispatchMode, checkpoint._CachedTorchDispatchMode)


def keeps_for_backward() -> bool:
    """Whether gradients are on, and the pass is no export of a program.

    An exported program (``torch.export``, ``torch.onnx.export``, ``torch.jit.trace``) has a forward pass alone,
    whatever the gradient mode in which it is made, and runs where this library may not be: it is to hold PyTorch's own
    operators and nothing else.
    """
    return torch.is_grad_enabled() and not (
        torch.compiler.is_exporting() or torch.jit.is_tracing()  # type: ignore[attr-defined]
    )


def in_selective_checkpoint() -> bool:
    """Whether selective checkpointing keeps here, operator by operator, what its policy says.

    It refuses to keep what is written over, as the products inside of a fused branch are.
    """
    if torch.compiler.is_compiling() or not torch._C._len_torch_dispatch_stack():
        return False
    return any(isinstance(mode, _SELECTIVE) for mode in _get_current_dispatch_mode_stack())
