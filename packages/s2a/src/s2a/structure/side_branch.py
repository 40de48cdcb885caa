"""Lite Side Branch: pooled features of the backbone through small convolutions (paper equations 5 and 6)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2a.backbones import Block, new_pass, split_tokens, state_of
from s2a.errors import S2AError
from s2a.lean.recompute import recompute_from_codes, recompute_map_forward
from s2a.lean.registry import register_lean_forward


def channel_average_pool(x: Tensor, reduction: int, dim: int) -> Tensor:
    """Means of ``reduction`` neighbouring channels: y_k = 1/r sum_j x_{kr + j} (equation 5).

    The gradient is dy_k / r for each of the r channels: nothing is kept for the backward pass.

    Args:
        x: Any tensor with C channels on axis ``dim``.
        reduction: r, a divisor of C.
        dim: The channel axis.
    """
    return x.unflatten(dim, (-1, reduction)).mean(dim + 1 if dim >= 0 else dim)


class SideBlock(nn.Module):
    """1x1, depthwise 3x3 and 1x1 convolutions on c channels: y_i = PW(DW(PW(x_d + y_{i-1}))) (equation 6).

    Prefix tokens have no place on the grid: they pass the two 1x1 convolutions alone.

    Args:
        channels: c.
        activation: ``"gelu"`` puts a GELU after the depthwise convolution; ``"none"`` is equation 6 to the letter.
    """

    def __init__(self, channels: int, activation: str) -> None:
        super().__init__()
        self.pw1 = nn.Conv2d(channels, channels, 1)
        self.dw = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.act = nn.GELU() if activation == "gelu" else nn.Identity()
        self.pw2 = nn.Conv2d(channels, channels, 1)
        for conv in (self.pw1, self.dw, self.pw2):
            # Variance-preserving: the branch is as deep as the backbone and has no normalisation.
            nn.init.normal_(conv.weight, std=conv.weight[0].numel() ** -0.5)
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, grid: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """``grid`` ``(B, c, H, W)`` and ``prefix`` ``(B, P, c)`` to the same shapes."""
        return self.map(grid), None if prefix is None else self.tokens(prefix)

    def map(self, grid: Tensor) -> Tensor:
        """Equation 6 on ``grid`` ``(B, c, H, W)``."""
        return self.pw2(self.act(self.dw(self.pw1(grid))))

    def tokens(self, prefix: Tensor) -> Tensor:
        """The two 1x1 convolutions on ``prefix`` ``(B, P, c)``."""
        # The prefix is a slice of all tokens, which a view of it would hold.
        hidden = F.linear(prefix.contiguous(), self.pw1.weight.flatten(1), self.pw1.bias)
        return F.linear(self.act(hidden), self.pw2.weight.flatten(1), self.pw2.bias)


@register_lean_forward(SideBlock)
def _lean_side_block(self: Any, grid: Tensor, prefix: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """Keeps codes of the input map and computes the convolutions again; the few prefix tokens stay exact."""
    out = recompute_from_codes(SideBlock.map, self, grid, self.s2a_lean_bits, channel_axis=1)
    return out, None if prefix is None else self.tokens(prefix)


class Transition(nn.Module):
    """Carries the branch over a stage boundary: LayerNorm over channels, then a 2 x 2 convolution of stride 2.

    Args:
        channels: c before.
        channels_out: c after.
        grid: Height and width before.
        grid_out: Height and width after.
    """

    def __init__(self, channels: int, channels_out: int, grid: tuple[int, int], grid_out: tuple[int, int]) -> None:
        super().__init__()
        factor = tuple(max(1, round(a / b)) for a, b in zip(grid, grid_out, strict=True))
        # Zeros on the right and below, where a backbone rounds an odd side up.
        self.missing = [max(0, b * f - a) for a, b, f in zip(grid, grid_out, factor, strict=True)]
        self.norm = nn.LayerNorm(channels)
        self.conv = nn.Conv2d(channels, channels_out, factor, stride=factor)  # type: ignore[arg-type]

    def forward(self, grid: Tensor) -> Tensor:
        """``(B, c, *grid)`` to ``(B, c_out, *grid_out)``."""
        normed = self.norm(grid.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        if any(self.missing):
            normed = F.pad(normed, (0, self.missing[1], 0, self.missing[0]))
        return self.conv(normed)


register_lean_forward(Transition)(recompute_map_forward)


class LiteSideBranch(nn.Module):
    """The side branch of a whole backbone.

    Block inputs are tapped by hooks, pooled over channels at once (the backbone's own tensor is not held), and the
    branch runs after the backbone (``SideRun``): ``s_i = SideBlock_i(CAP(x_i) + s_{i-1})`` with ``s_0 = 0``.

    Args:
        blocks: The tapped blocks, in forward order.
        reduction: r of channel average pooling; must divide every block's C.
        activation: See ``SideBlock``.

    Raises:
        S2AError: A reduction that does not divide the channels.
    """

    def __init__(self, blocks: Sequence[Block], reduction: int, activation: str) -> None:
        super().__init__()
        for block in blocks:
            if reduction < 1 or block.channels % reduction:
                raise S2AError(
                    f"lsb_reduction={reduction} does not divide the {block.channels} channels of {block.name}; "
                    f"choose a divisor of {block.channels}, or 0 to switch the side branch off."
                )
        self.blocks = tuple(blocks)
        self.reduction = reduction
        widths = [b.channels // reduction for b in blocks]
        self.width = widths[-1]
        self.sites = nn.ModuleList(SideBlock(c, activation) for c in widths)
        self.transitions = nn.ModuleDict()
        for i in range(1, len(blocks)):
            if blocks[i].grid != blocks[i - 1].grid or widths[i] != widths[i - 1]:
                self.transitions[str(i)] = Transition(widths[i - 1], widths[i], blocks[i - 1].grid, blocks[i].grid)

    def new_run(self, at_once: bool = False) -> SideRun:
        """The branch's part of a forward pass that begins now.

        Args:
            at_once: Every site runs as soon as its block is tapped, so that no more than one tap is held. Not inside of
                a checkpoint, which would run the site again with its block.
        """
        return SideRun(self, at_once)

    def keeps(self, batch_size: int, activation_bytes: Callable[[int], int]) -> dict[str, int]:
        """Bytes that the branch holds for the backward pass in fp32, by module.

        Args:
            batch_size: B.
            activation_bytes: What an activation function keeps for an input of that many elements.
        """
        kept: dict[str, int] = {}
        for i, block in enumerate(self.blocks):
            c, positions = block.channels // self.reduction, block.grid[0] * block.grid[1]
            grid, prefix = 4 * batch_size * positions * c, 4 * batch_size * block.prefix * c
            # The first site reads views of the pooled map; later ones read sums, each a tensor of its own.
            whole = grid + prefix if i == 0 else 0
            kept |= {f"sites.{i}.pw1": whole or grid, f"sites.{i}.dw": grid, f"sites.{i}.pw2": grid}
            if prefix:
                kept[f"sites.{i}"] = 2 * prefix
            if not isinstance(self.sites[i].act, nn.Identity):
                kept[f"sites.{i}.act"] = activation_bytes(grid // 4) + activation_bytes(prefix // 4)
            if str(i) in self.transitions:
                transition: Any = self.transitions[str(i)]
                before = self.blocks[i - 1].grid[0] * self.blocks[i - 1].grid[1]
                padded = [a + b for a, b in zip(self.blocks[i - 1].grid, transition.missing, strict=True)]
                width = self.blocks[i - 1].channels // self.reduction
                kept[f"transitions.{i}.norm"] = 4 * batch_size * before * (width + 2)  # mean and deviation too
                kept[f"transitions.{i}.conv"] = 4 * batch_size * padded[0] * padded[1] * width
        return kept

    def readout(self, grid: Tensor, prefix: Tensor | None) -> Tensor:
        """Pooled output of the branch, ``(B, width)``."""
        if prefix is None:
            return grid.mean((2, 3))
        return (grid.sum((2, 3)) + prefix.sum(1)) / (grid.shape[2] * grid.shape[3] + prefix.shape[1])


class SideRun:
    """One forward pass of a branch: what was tapped, and how far the sites have come.

    ``pooled_features(model, images, [(branch, run)])`` feeds it through the taps; ``finish`` gives the branch's output.
    Nothing of it is on a module: other threads, and calls inside of this one, have runs of their own.

    Args:
        branch: Whose sites run.
        at_once: See ``LiteSideBranch.new_run``.
    """

    def __init__(self, branch: LiteSideBranch, at_once: bool = False) -> None:
        self.branch, self.at_once = branch, at_once
        self.start = new_pass()
        self.taps: list[Tensor | None] = [None] * len(branch.blocks)
        self.state: tuple[Tensor | None, Tensor | None] = (None, None)
        self.done = 0

    def tap(self, index: int, x: Tensor) -> None:
        """Keeps the pooled input of tapped block ``index``; a block's second run changes nothing.

        Raises:
            S2AError: A block that runs without gradient inside of a training step.
        """
        if self.taps[index] is not None or index < self.done:
            return
        block = self.branch.blocks[index]
        if self.start.saves and not torch.is_grad_enabled():
            raise S2AError(
                f"Block {block.name} runs without gradient in a training step (reentrant gradient checkpointing): the "
                "side branch would be cut off; use timm.layers.set_reentrant_ckpt(False), or "
                "checkpoint(..., use_reentrant=False)."
            )
        # Pooling keeps nothing for the backward pass, so that a checkpoint around the block does not miss it.
        self.taps[index] = channel_average_pool(x, self.branch.reduction, 1 if block.layout == "NCHW" else -1)
        if self.at_once and not self.start.in_a_region():
            self._advance(index + 1)

    def _advance(self, stop: int) -> None:
        """Runs the sites up to ``stop`` that have not run, and lets their taps go."""
        branch = self.branch
        for i in range(self.done, stop):
            pooled, self.taps[i] = self.taps[i], None
            if pooled is None:
                raise S2AError(
                    f"Block {branch.blocks[i].name} did not run in the backbone's forward pass; nothing to tap."
                )
            # x_d + y_{i-1}, on the grid and for prefix tokens; over a stage boundary y passes the transition first.
            grid_state, prefix_state = self.state
            prefix, grid = split_tokens(pooled, branch.blocks[i])
            del pooled
            if grid_state is not None:
                if str(i) in branch.transitions:
                    grid_state, prefix_state = branch.transitions[str(i)](grid_state), None
                grid = grid + grid_state  # type: ignore[operator]
                prefix = prefix + prefix_state if prefix is not None and prefix_state is not None else prefix
            self.state = branch.sites[i](grid, prefix)
            self.done = i + 1

    def finish(self) -> Tensor:
        """Runs the branch on the taps: mean over the grid of the last site's output, ``(B, width)``."""
        self._advance(len(self.branch.blocks))
        grid_state, prefix_state = self.state
        assert grid_state is not None
        return self.branch.readout(grid_state, prefix_state)


class Tap(nn.Module):
    """The hook of one tapped block. Holds the branch in a tuple: it is not the branch's parent."""

    def __init__(self, branch: LiteSideBranch, index: int) -> None:
        super().__init__()
        self._branch = (branch,)
        self.index = index

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        """Forward pre-hook of a block: feeds the run of this call, if the block is not called by itself."""
        run: SideRun | None = state_of(self._branch[0])
        if run is not None:
            run.tap(self.index, args[0])
