"""Low-Rank Prompt: y = x + AB (paper equation 3)."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from s2a.backbones import Block
from s2a.errors import S2AError
from s2a.lean.residual_stream import writable

Window = tuple[int, int]


def max_rank(block: Block, window: Window | None = None) -> int:
    """min(N, C): the largest rank that AB can have at a block's input."""
    return min(math.prod(window) if window else block.tokens, block.channels)


class LowRankPrompt(nn.Module):
    """A learned low-rank matrix added to a block's input, the same for every image.

    ``A`` ``(N, r)`` starts at zero and ``B`` ``(r, C)`` from a normal distribution, so the start is the identity. The
    backward pass is dx = dy, dA = dy B^T, dB = A^T dy (equation 4, dy summed over images): it needs A and B alone, no
    activation is kept.

    Args:
        block: The block whose input is prompted.
        rank: r; at most ``max_rank(block, window)``.
        std: Standard deviation of B at the start.
        window: Height and width of a prompt shared by all windows of the map, which start at its upper left corner and
            are cut off at the other edges, as where attention pads the map; ``None`` prompts every position by its own.

    Attributes:
        s2a_in_place: Writes the prompted input over the input, in a training step (``s2a.lean.WritesInPlace``).
    """

    s2a_in_place: bool = False

    def __init__(self, block: Block, rank: int, std: float = 0.02, window: Window | None = None) -> None:
        super().__init__()
        tokens = math.prod(window) if window else block.tokens
        self.a = nn.Parameter(torch.zeros(tokens, rank))
        self.b = nn.Parameter(torch.randn(rank, block.channels) * std)
        self.grid, self.window, self.layout = block.grid, window, block.layout
        maps = {"NLC": (block.tokens,), "NHWC": block.grid, "NCHW": block.grid}[block.layout]
        self.shape = (block.channels, *maps) if block.layout == "NCHW" else (*maps, block.channels)

    def prompt(self) -> Tensor:
        """AB in the layout of the block's input, without the batch axis."""
        full = self.a @ self.b
        if self.layout == "NLC":
            return full
        (height, width), window = self.grid, self.window
        if window:  # The window's prompt repeated over the map, cut off at its right and lower edges.
            copies = (-(-height // window[0]), -(-width // window[1]), 1)
            maps = full.view(*window, -1).repeat(copies)[:height, :width]
        else:
            maps = full.view(height, width, -1)
        return maps if self.layout == "NHWC" else maps.permute(2, 0, 1)

    def forward(self, x: Tensor) -> Tensor:
        """The prompted input, shape and dtype of ``x``.

        Raises:
            S2AError: Images of another size than the model was adapted for.
        """
        if x.shape[1:] != self.shape:
            raise S2AError(
                f"A block's input of shape {tuple(x.shape[1:])} meets a prompt of {tuple(self.shape)}: the images have "
                "another size than the model was adapted for; give attach their image_size."
            )
        prompt = self.prompt().to(x.dtype)
        if self.s2a_in_place and writable(x):
            return x.add_(prompt)
        return x + prompt

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        """Forward pre-hook of a block."""
        return (self(args[0]), *args[1:])
