"""Runs a backbone as a fixed function of the image: evaluation mode, no gradient, nothing saved for the backward pass.

Shared by the methods that only read the backbone (linear probing and side networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from s2a.backbones import Edits, pooled_features, state_of
from s2a.errors import S2AError
from torch import Tensor, nn


def _stay_in_evaluation(self: Any, mode: bool = True) -> Any:
    return nn.Module.train(self, False)


def keep_in_evaluation(model: nn.Module, edits: Edits) -> None:
    """Puts all of ``model`` into evaluation mode; later calls of ``train()`` do not change it."""
    for module in model.modules():
        edits.override(module, "training", False)
    edits.override(model, "train", _stay_in_evaluation)


class Tap(nn.Module):
    """A hook that returns one tensor of a forward pass: a module's input (``before``) or its output (``after``).

    It records into the entry that ``run_frozen`` has made for it, and holds no tensor itself.

    Args:
        place: Name of the module, for error messages.
    """

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook."""
        self._record(args[0])

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook."""
        self._record(output)

    def _record(self, tensor: Tensor) -> None:
        found: list[Tensor] | None = state_of(self)
        if found is not None:
            found[:] = [tensor]


def run_frozen(model: nn.Module, images: Tensor, taps: Sequence[Tap] = ()) -> tuple[Tensor, list[Tensor]]:
    """Runs a backbone without gradient.

    Args:
        model: The backbone, in evaluation mode (``keep_in_evaluation``).
        images: ``(B, 3, H, W)``.
        taps: Hooked into ``model`` already.

    Returns:
        Pooled features ``(B, C)``, and the tensor of every tap, in the layout of its module. No tensor has a gradient.

    Raises:
        S2AError: A tapped module did not run.
    """
    recorded: list[list[Tensor]] = [[] for _ in taps]
    with torch.no_grad():
        features = pooled_features(model, images, zip(taps, recorded, strict=True))
    missing = [tap.place for tap, found in zip(taps, recorded, strict=True) if not found]
    if missing:
        raise S2AError(f"{', '.join(missing)} did not run in the backbone's forward pass; there is nothing to tap.")
    return features, [found[0] for found in recorded]
