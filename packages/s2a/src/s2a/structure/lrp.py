"""Low-Rank Prompt: y = x + AB (paper equation 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from s2a.backbones import Block
from s2a.errors import S2AError


def max_rank(block: Block, window: int = 0) -> int:
    """min(N, C): the largest rank that AB can have at a block's input.

    Raises:
        S2AError: Windows that do not tile the map.
    """
    height, width = block.grid
    if window and (block.prefix or height % window or width % window):
        raise S2AError(
            f"lrp_window={window} does not tile the {height} x {width} map of {block.name}; "
            "choose a divisor of both sides, or 0 for a prompt of the whole map."
        )
    return min(window * window if window else block.tokens, block.channels)


class LowRankPrompt(nn.Module):
    """A learned low-rank matrix added to a block's input, the same for every image.

    ``A`` ``(N, r)`` starts at zero and ``B`` ``(r, C)`` from a normal distribution, so the start is the identity. The
    backward pass needs A and B alone (equation 4): no activation is kept.

    Args:
        block: The block whose input is prompted.
        rank: r; at most ``max_rank(block, window)``.
        std: Standard deviation of B at the start.
        window: Side of a square prompt shared by all windows of the map; 0 prompts every position by its own.
    """

    def __init__(self, block: Block, rank: int, std: float = 0.02, window: int = 0) -> None:
        super().__init__()
        tokens = window * window if window else block.tokens
        self.a = nn.Parameter(torch.zeros(tokens, rank))
        self.b = nn.Parameter(torch.randn(rank, block.channels) * std)
        self.grid, self.window, self.layout = block.grid, window, block.layout

    def prompt(self) -> Tensor:
        """AB in the layout of the block's input, without the batch axis."""
        full = self.a @ self.b
        if self.layout == "NLC":
            return full
        (height, width), w = self.grid, self.window
        maps = full.view(w, w, -1).repeat(height // w, width // w, 1) if w else full.view(height, width, -1)
        return maps if self.layout == "NHWC" else maps.permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The prompted input, shape and dtype of ``x``."""
        return x + self.prompt().to(x.dtype)

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of a block."""
        return (self(args[0]), *args[1:])
