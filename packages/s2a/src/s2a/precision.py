"""Frozen weights in half the bytes."""

from __future__ import annotations

import torch
from torch import nn

from s2a.attach import Adapted
from s2a.errors import S2AError


def cast_frozen(adapted: Adapted, dtype: torch.dtype = torch.bfloat16) -> int:
    """Rounds the frozen weights of a backbone's linear and convolution layers to ``dtype``, in place.

    Trainable parameters, biases and norms stay as they are, so an optimiser works in full precision; the forward pass
    belongs under ``torch.autocast`` of the same dtype, whose copies of weights it saves. ``s2a.detach`` gives the
    rounded weights back: what was rounded off is gone.

    Args:
        adapted: What ``s2a.attach`` returned.
        dtype: ``torch.bfloat16`` or ``torch.float16``.

    Returns:
        Bytes saved.

    Raises:
        S2AError: Another dtype, or no adapted model.
    """
    if not isinstance(adapted, Adapted):
        raise S2AError(f"cast_frozen takes what s2a.attach returned, not {type(adapted).__name__}.")
    if dtype not in (torch.bfloat16, torch.float16):
        raise S2AError(
            f"dtype={dtype} saves nothing or is no number format for weights; give torch.bfloat16 or float16."
        )
    saved = 0
    for module in adapted.backbone.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and weight is not None and not weight.requires_grad:
            saved += weight.numel() * (weight.element_size() - dtype.itemsize)
            weight.data = weight.data.to(dtype)
    adapted._dtype = next(adapted.backbone.parameters()).dtype
    return saved
