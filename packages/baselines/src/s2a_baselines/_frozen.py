"""A backbone that is a fixed function of the image: evaluation mode, no gradient, nothing of it kept.

Shared by the methods that only read it (linear probing and side networks).
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
    """Puts all of ``model`` into evaluation mode, and keeps it there whatever mode is asked for later."""
    for module in model.modules():
        edits.override(module, "training", False)
    edits.override(model, "train", _stay_in_evaluation)


class Tap(nn.Module):
    """A hook that hands one tensor of a forward pass out: ``before`` a module's input, ``after`` its output.

    It listens only inside ``run_frozen``, and holds nothing afterwards.

    Args:
        place: What is tapped, for messages.
    """

    def __init__(self, place: str) -> None:
        super().__init__()
        self.place = place
        self._listens = False
        self._held: Tensor | None = None

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook."""
        if self._listens:
            self._held = args[0]

    def after(self, module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
        """Forward hook."""
        if self._listens:
            self._held = output

    def open(self) -> None:
        """Listens from now on."""
        self._listens, self._held = True, None

    def close(self) -> Tensor | None:
        """What was held, and holds it no more."""
        held, self._listens, self._held = self._held, False, None
        return held


def run_frozen(model: nn.Module, images: Tensor, taps: Sequence[Tap] = ()) -> tuple[Tensor, list[Tensor]]:
    """Runs a backbone without gradient.

    Args:
        model: The backbone, in evaluation mode (``keep_in_evaluation``).
        images: ``(B, 3, H, W)``.
        taps: Hooked into ``model`` already.

    Returns:
        Pooled features ``(B, C)``, and what every tap caught, in the layout of its place. No tensor has a gradient.

    Raises:
        S2AError: A tapped module did not run.
    """
    for tap in taps:
        tap.open()
    try:
        with torch.no_grad():
            features = pooled_features(model, images)
    finally:
        caught = [tap.close() for tap in taps]
    maps = [held for held in caught if held is not None]
    if len(maps) < len(taps):
        missing = ", ".join(tap.place for tap, held in zip(taps, caught, strict=True) if held is None)
        raise S2AError(f"{missing} did not run in the backbone's forward pass; there is nothing to tap.")
    return features, maps
