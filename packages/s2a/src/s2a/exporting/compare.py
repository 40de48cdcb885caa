"""Compares what was exported with the adapted model."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn

from s2a.adapted import Adapted
from s2a.errors import S2AError
from s2a.exporting.description import input_shape
from s2a.paged_model import unpage_frozen

TOLERANCE = 1e-4
"""Largest difference of a logit, in units of the largest logit, or of 1 where all are smaller."""

BATCH = 8
"""Images that are compared at once, at most."""

SYNTHETIC = 3
"""Images of the batch that is compared where none are given."""


def float32_copy(adapted: Adapted) -> Adapted:
    """The adapted model on the CPU, in evaluation mode and float32, which holds every value of half precision.

    Raises:
        S2AError: It has no values.
    """
    if empty := [name for name, p in adapted.named_parameters() if p.is_meta]:
        raise S2AError(
            f"{empty[0]} has no values (meta device), nor have {len(empty) - 1} others; give the model values first."
        )
    copied = copy.deepcopy(adapted)
    unpage_frozen(copied)
    copied = copied.cpu().float().eval()
    copied.zero_grad(set_to_none=True)
    if getattr(copied.backbone, "grad_checkpointing", False):
        copied.set_grad_checkpointing(False)  # It would be a part of the graph.
    return copied


def images_to_compare(adapted: Adapted, images: Tensor | None) -> Tensor:
    """The images given, in float32 on the CPU, or made-up ones, always the same.

    Raises:
        S2AError: They are not images of the size that the model takes.
    """
    shape = input_shape(adapted)
    if images is None:
        return torch.randn(SYNTHETIC, *shape, generator=torch.Generator().manual_seed(0), device="cpu")
    wanted = f"(N, {', '.join(map(str, shape))})"
    if not isinstance(images, Tensor):
        raise S2AError(f"images takes a tensor {wanted}, not {type(images).__name__}.")
    if images.ndim != 4 or not len(images) or images.shape[1:] != shape or not images.is_floating_point():
        raise S2AError(
            f"images of shape {tuple(images.shape)} ({images.dtype}) do not fit; give at least one, as the model takes "
            f"them: {wanted}, floating point, normalised."
        )
    return images.detach().cpu().float()


def logits_of(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Logits ``(N, K)`` of images ``(N, 3, H, W)``, a few at a time."""
    with torch.no_grad():
        return torch.cat([model(part) for part in images.split(BATCH)])


def largest_difference(adapted: nn.Module, exported: Callable[[Tensor], Tensor], images: Tensor, what: str) -> float:
    """Runs both on the first image alone and on all of them, so that two batch sizes are tried.

    Args:
        adapted: The adapted model.
        exported: What was written, read back.
        images: ``(N, 3, H, W)``.
        what: Its name in the error.

    Returns:
        The largest difference of a logit.

    Raises:
        S2AError: It is above ``TOLERANCE``, or a logit is not finite.
    """
    many = images if len(images) > 1 else images.repeat(2, 1, 1, 1)
    wanted = logits_of(adapted, many)
    if not bool(wanted.isfinite().all()):
        raise S2AError("The adapted model's logits are not finite: training diverged; nothing is exported.")
    found = torch.cat([logits_of(exported, many[:1]), logits_of(exported, many)])
    if found.shape != (len(many) + 1, *wanted.shape[1:]):
        raise S2AError(f"{what} gives logits of shape {tuple(found[1:].shape)}, not {tuple(wanted.shape)}.")
    differences = (found.double() - torch.cat([wanted[:1], wanted]).double()).abs()
    largest, limit = float(differences.max()), TOLERANCE * max(1.0, float(wanted.abs().max()))
    if not largest <= limit:
        raise S2AError(f"{what} differs from the adapted model: a logit by {largest:.2g}, allowed is {limit:.2g}.")
    return largest
