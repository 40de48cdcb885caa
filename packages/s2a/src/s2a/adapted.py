"""The adapted model: a backbone, the method on it and the head; what trains, and the format of frozen weights."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from s2a.backbones import Backbone, Edits
from s2a.backbones.number_format import HALVES, compute_format, frozen_dtype
from s2a.errors import S2AError
from s2a.lean import FusedBranch
from s2a.lean.plan import Plan
from s2a.registry import Method


class Adapted(nn.Module):
    """A backbone under a method: images ``(B, 3, H, W)`` to logits ``(B, K)``.

    Attributes:
        backbone: The timm model that was given, edited in place; its own classifier is set aside.
        method: The method's module, holding every parameter it added.
        head: The classifier, always trained.
        name: The method's registered name.
        config: The method's config.
    """

    def __init__(
        self,
        view: Backbone,
        config: Any,
        name: str,
        method: Method,
        head: nn.Linear,
        edits: Edits,
        branches: tuple[FusedBranch, ...] = (),
        make_plan: Callable[[Adapted], Plan] | None = None,
    ) -> None:
        super().__init__()
        self.backbone = view.model
        self.method = method
        self.head = head
        self.name = name
        self.config = config
        self.image_size = view.image_size
        self._branches = branches
        self._plan: Plan | None = None
        # The planner needs this class, so it is handed in. Pickles refer to it by name: no lambda, no closure.
        self._make_plan = make_plan
        self._edits = edits
        # An average of the weights is often frozen before it is saved: what trains is noted here.
        self._trained = tuple(trainable_parameters(self))
        self._dtype = frozen_dtype(view.model, edits)

    def forward(self, images: Tensor) -> Tensor:
        """Logits of a batch."""
        with compute_format(self.backbone, self.head, images):
            features = self.method(self.backbone, images)
        if features.dtype in HALVES and not torch.is_autocast_enabled(images.device.type):
            features = features.to(self.head.weight.dtype)  # Logits, and the loss made of them, in the head's dtype.
        return self.head(features)

    @property
    def plan(self) -> Plan | None:
        """What lean activations keep, block by block, and what it comes to; ``None`` without them.

        Made when it is first asked for: that takes two forward passes of few images.
        """
        if self._plan is None and self._make_plan is not None:
            self._plan = self._make_plan(self)
        return self._plan

    def extra_repr(self) -> str:
        """The config, for ``print(adapted)``."""
        return repr(self.config)


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> parameter of everything that trains."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


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
        raise S2AError(f"dtype={dtype} must be torch.bfloat16 or torch.float16, which halve the frozen weights.")
    saved = 0
    for module in adapted.backbone.modules():
        weight = getattr(module, "weight", None)
        if isinstance(module, nn.Linear | nn.Conv2d) and weight is not None and not weight.requires_grad:
            saved += weight.numel() * (weight.element_size() - dtype.itemsize)
            weight.data = weight.data.to(dtype)
    adapted._dtype = frozen_dtype(adapted.backbone, adapted._edits)
    return saved
