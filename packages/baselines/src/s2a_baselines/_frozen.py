"""Runs a backbone as a fixed function of the image: evaluation mode, no gradient, nothing saved for the backward pass.

Shared by the methods that only read the backbone (linear probing and side networks).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from s2a.backbones import Edits, pooled_features
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

    It records only inside ``run_frozen`` and holds no tensor afterwards.

    Args:
        place: Name of the module, for error messages.
    """

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self._recording = False
        self._held: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook."""
        if self._recording:
            self._held = args[0]

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook."""
        if self._recording:
            self._held = output

    def open(self) -> None:
        """Starts recording."""
        self._recording, self._held = True, None

    def close(self) -> Tensor | None:
        """Stops recording, and returns and releases the recorded tensor; ``None`` if the module did not run."""
        held, self._recording, self._held = self._held, False, None
        return held


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
    for tap in taps:
        tap.open()
    try:
        with torch.no_grad():
            features = pooled_features(model, images)
    finally:
        held = [tap.close() for tap in taps]
    maps = [tensor for tensor in held if tensor is not None]
    if len(maps) < len(taps):
        missing = ", ".join(tap.place for tap, tensor in zip(taps, held, strict=True) if tensor is None)
        raise S2AError(f"{missing} did not run in the backbone's forward pass; there is nothing to tap.")
    return features, maps
