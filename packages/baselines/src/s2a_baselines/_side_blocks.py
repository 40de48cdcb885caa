"""Blocks and downsampling layers of a narrow network beside a backbone, for ladder side-tuning.

The method ``keeps`` of every module gives the bytes that autograd saves for the backward pass of a training step in
fp32, by the path of the submodule that saves them ("" is the module itself).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Grid = tuple[int, int]


def norm_bytes(batch: int, positions: int, width: int) -> int:
    """Bytes that a layer norm saves: its input, and the mean and the inverse deviation per position."""
    return 4 * batch * positions * (width + 2)


def init_weights(module: nn.Module) -> None:
    """Initialises a new block: Xavier for linear layers (as ViT; timm's "jax"), He for plain convolutions.

    timm's usual standard deviation of 0.02 suits widths near a thousand; at an eighth of that width the outputs of a
    side block's branches would be close to zero. A depthwise convolution keeps 0.02: the norm after it restores the
    scale.
    """
    if isinstance(module, nn.Linear):
        nn.init.xavier_uniform_(module.weight)
    elif isinstance(module, nn.Conv2d) and module.groups > 1 and module.groups == module.out_channels:
        nn.init.trunc_normal_(module.weight, std=0.02)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
        nn.init.zeros_(module.bias)


class Attention(nn.Module):
    """Multi-head self-attention, softmax(q k^T / sqrt(d) + P) v with d = c / heads, projected back to c channels.

    q, k and v come from one layer, its ``3 c`` outputs in this order and by heads within each. P is a learned bias per
    head and relative position in windows (Swin, https://arxiv.org/abs/2103.14030, equation 4), and 0 without windows.

    Args:
        width: c.
        heads: Must divide c.
        window: Height and width of the windows that the tokens fill; ``None``: no relative positions.
    """

    places: Tensor

    def __init__(self, width: int, heads: int, window: Grid | None = None) -> None:
        super().__init__()
        self.num_heads = heads
        self.fused_attn = window is None  # The fused kernel cannot train a bias of the scores.
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.apply(init_weights)
        if window is not None:
            self.relative_position_bias_table = nn.Parameter(torch.empty(_offsets(window), heads))
            nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
            self.register_buffer("places", _places(window), persistent=False)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attention among the tokens of ``x`` ``(B, N, c)``.

        Args:
            x: Tokens; of all windows of an image in turn, where there are windows.
            mask: ``(W, N, N)``, 0 or -inf, added to the scores of the W windows of every image.
        """
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
        if self.fused_attn:
            out = F.scaled_dot_product_attention(*qkv.unbind())
        else:
            # Contiguous first: the matrix products would otherwise save a copy of each of q, k and v.
            q, k, v = qkv.contiguous().unbind()
            scores = q @ k.transpose(-2, -1) * (width // self.num_heads) ** -0.5
            scores = scores + self.relative_position_bias_table[self.places].permute(2, 0, 1)
            if mask is not None:
                # (B * W, heads, N, N) -> (B, W, heads, N, N): the mask of a window is the same for images and heads.
                scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
            out = scores.softmax(-1) @ v
        return self.proj(out.transpose(1, 2).reshape(batch, tokens, width))

    def keeps(self, batch: int, tokens: int) -> dict[str, int]:
        """Bytes by path for ``batch`` sequences of ``tokens``: inputs of both layers, q, k, v and the softmax output.

        The fused kernel computes the softmax output again, from its own output and one sum per row.
        """
        width, rows = self.proj.in_features, batch * tokens
        rest = width + self.num_heads if self.fused_attn else self.num_heads * tokens
        return {"": 4 * rows * (3 * width + rest), "qkv": 4 * rows * width, "proj": 4 * rows * width}


def _offsets(window: Grid) -> int:
    """Number of relative positions in a window of h x w: (2 h - 1) (2 w - 1)."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def _places(window: Grid) -> Tensor:
    """Row of the bias table for every pair of positions of a window, ``(N, N)``.

    With differences dy in -(h - 1) ... h - 1 and dx in -(w - 1) ... w - 1 it is (dy + h - 1) (2 w - 1) + dx + w - 1,
    the order of Swin's own table.
    """
    y = torch.arange(window[0]).repeat_interleave(window[1])
    x = torch.arange(window[1]).repeat(window[0])
    dy = y[:, None] - y + window[0] - 1
    dx = x[:, None] - x + window[1] - 1
    return dy * (2 * window[1] - 1) + dx


class TransformerBlock(nn.Module):
    """A pre-norm transformer block: x + Attention(LN x), then x + MLP(LN x); attention global or in shifted windows.

    Args:
        width: c.
        heads: Attention heads.
        hidden: Width of the MLP.
        positions: Tokens, or height and width of the map.
        window: Side of the windows; 0: attention is global, and the input ``(B, N, c)``, else ``(B, H, W, c)``.
        shifted: Windows are moved by half a side, where the map is larger than one of them.
        eps: Of both norms.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        positions: int | Grid,
        window: int = 0,
        shifted: bool = False,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.grid = (positions, 1) if isinstance(positions, int) else positions
        self.window = (min(window, self.grid[0]), min(window, self.grid[1])) if window else None
        self.norm1 = nn.LayerNorm(width, eps)
        self.attn = Attention(width, heads, self.window)
        self.norm2 = nn.LayerNorm(width, eps)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        for layer in (self.fc1, self.fc2):
            init_weights(layer)
        self.shift, self.padded = (0, 0), self.grid
        mask = None
        if self.window:
            sides = tuple(zip(self.grid, self.window, strict=True))
            self.padded = (_round_up(*sides[0]), _round_up(*sides[1]))
            if shifted:
                moves = [side // 2 if length > side else 0 for length, side in sides]
                self.shift = (moves[0], moves[1])
                mask = _shift_mask(self.padded, self.window, self.shift) if any(moves) else None
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, of the shape of ``x``."""
        x = x + self._mix(self.norm1(x))
        return x + self.fc2(self.act(self.fc1(self.norm2(x))))

    def _mix(self, x: Tensor) -> Tensor:
        if self.window is None:
            return self.attn(x)
        (height, width), (rows, columns) = self.grid, self.padded
        shifts = any(self.shift)
        # Shift the map, pad it to whole windows, attend inside the windows, then undo all three.
        if shifts:
            x = x.roll((-self.shift[0], -self.shift[1]), (1, 2))
        if self.padded != self.grid:
            x = F.pad(x, (0, 0, 0, columns - width, 0, rows - height))
        x = self.attn(_to_windows(x, self.window), self.mask)
        x = _from_windows(x, self.window, self.padded)[:, :height, :width]
        return x.roll(self.shift, (1, 2)) if shifts else x

    def keeps(self, batch: int) -> dict[str, int]:
        """Bytes by path."""
        positions, width, hidden = math.prod(self.grid), self.fc1.in_features, self.fc1.out_features
        windows = math.prod(self.padded) // math.prod(self.window) if self.window else 1
        tokens = math.prod(self.window) if self.window else positions
        attention = self.attn.keeps(batch * windows, tokens)
        kept = {f"attn.{path}" if path else "attn": size for path, size in attention.items()}
        kept |= dict.fromkeys(("norm1", "norm2"), norm_bytes(batch, positions, width))
        kept |= dict.fromkeys(("act", "fc2"), 4 * batch * positions * hidden)
        return kept | {"fc1": 4 * batch * positions * width}


def _round_up(length: int, side: int) -> int:
    return -(-length // side) * side


def _to_windows(x: Tensor, window: Grid) -> Tensor:
    """A map ``(B, H, W, c)`` as the tokens of its windows, ``(B * windows, N, c)``."""
    x = x.unflatten(2, (-1, window[1])).unflatten(1, (-1, window[0]))
    return x.transpose(2, 3).flatten(3, 4).flatten(0, 2)


def _from_windows(x: Tensor, window: Grid, grid: Grid) -> Tensor:
    """The inverse of ``_to_windows``."""
    x = x.view(-1, grid[0] // window[0], grid[1] // window[1], *window, x.shape[-1])
    return x.transpose(2, 3).flatten(3, 4).flatten(1, 2)


def _shift_mask(grid: Grid, window: Grid, shift: Grid) -> Tensor:
    """Mask ``(W, N, N)`` of shifted windows: 0 for pairs of one region of the map, -inf for pairs across its edge.

    Rolling the map moves its first rows and columns to the end. It is cut into three bands a side, at ``side`` and at
    ``move`` from the end; two positions of a window may attend to each other where they lie in the same piece.
    """
    rows, columns = (
        (torch.arange(length) >= length - side).int() + (torch.arange(length) >= length - move).int()
        for length, side, move in zip(grid, window, shift, strict=True)
    )
    piece = _to_windows((3 * rows[:, None] + columns)[None, :, :, None], window)[..., 0]
    apart = piece[:, :, None] != piece[:, None, :]
    return torch.zeros(apart.shape).masked_fill_(apart, -math.inf)


class ConvNeXtBlock(nn.Module):
    """x + gamma * MLP(LN(depthwise convolution of x)) on maps ``(B, c, H, W)``.

    gamma starts at 1: with timm's 1e-6, chosen for deep networks and long training, the block would add almost nothing
    for most of a fine-tuning run.

    Args:
        width: c.
        hidden: Width of the MLP.
        kernel: Side of the depthwise convolution's kernel, odd.
        grid: Height and width of the map.
        eps: Of the norm.
    """

    def __init__(self, width: int, hidden: int, kernel: int, grid: Grid, eps: float = 1e-6) -> None:
        super().__init__()
        self.grid = grid
        self.conv_dw = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=width)
        self.norm = nn.LayerNorm(width, eps)
        self.fc1 = nn.Linear(width, hidden)
        self.act = nn.GELU()
        self.fc2 = nn.Linear(hidden, width)
        self.gamma = nn.Parameter(torch.ones(width))
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, of the shape of ``x``."""
        y = self.norm(self.conv_dw(x).permute(0, 2, 3, 1))
        y = self.fc2(self.act(self.fc1(y))) * self.gamma
        return x + y.permute(0, 3, 1, 2)

    def keeps(self, batch: int) -> dict[str, int]:
        """Bytes by path."""
        positions, width, hidden = math.prod(self.grid), self.fc1.in_features, self.fc1.out_features
        kept: dict[str, int] = dict.fromkeys(("", "conv_dw", "fc1"), 4 * batch * positions * width)
        kept |= dict.fromkeys(("act", "fc2"), 4 * batch * positions * hidden)
        return kept | {"norm": norm_bytes(batch, positions, width)}


class ConvBlock(nn.Module):
    """A residual chain of convolutions with batch norms, ReLU(x + f(x)); ReLU also between the convolutions of f.

    Args:
        width: c of input and output.
        layers: Output channels, kernel side and groups of every convolution; the last one has c channels.
        grid: Height and width of the map.
    """

    def __init__(self, width: int, layers: list[tuple[int, int, int]], grid: Grid) -> None:
        super().__init__()
        self.grid = grid
        widths = [width, *(channels for channels, _, _ in layers)]
        self.convs = nn.ModuleList(
            nn.Conv2d(widths[i], channels, kernel, padding=kernel // 2, groups=groups, bias=False)
            for i, (channels, kernel, groups) in enumerate(layers)
        )
        self.norms = nn.ModuleList(nn.BatchNorm2d(channels) for channels in widths[1:])
        self.acts = nn.ModuleList(nn.ReLU() for _ in layers)
        self.widths = widths
        self.apply(init_weights)

    def forward(self, x: Tensor) -> Tensor:
        """The block's output, of the shape of ``x``."""
        y = x
        for i, (conv, norm, act) in enumerate(zip(self.convs, self.norms, self.acts, strict=True)):
            y = norm(conv(y))
            y = act(x + y if i == len(self.convs) - 1 else y)
        return y

    def keeps(self, batch: int) -> dict[str, int]:
        """Bytes by path; a batch norm saves its input and two statistics per channel."""
        rows, kept = batch * math.prod(self.grid), {}
        for i, (before, after) in enumerate(zip(self.widths, self.widths[1:], strict=False)):
            kept |= {f"convs.{i}": 4 * rows * before, f"acts.{i}": 4 * rows * after}
            kept[f"norms.{i}"] = 4 * (rows + 2) * after
        return kept


class Merging(nn.Module):
    """Swin's patch merging on ``(B, H, W, c)``: joins the channels of a patch, normalises and projects them."""

    def __init__(self, width: int, width_out: int, grid: Grid, factor: Grid) -> None:
        super().__init__()
        self.grid, self.factor = (_round_up(grid[0], factor[0]), _round_up(grid[1], factor[1])), factor
        self.padding = (0, 0, 0, self.grid[1] - grid[1], 0, self.grid[0] - grid[0])
        self.norm = nn.LayerNorm(width * math.prod(factor))
        self.reduction = nn.Linear(width * math.prod(factor), width_out, bias=False)
        init_weights(self.reduction)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, H / factor, W / factor, c_out)``."""
        if any(self.padding):
            x = F.pad(x, self.padding)
        x = x.unflatten(2, (-1, self.factor[1])).unflatten(1, (-1, self.factor[0]))
        return self.reduction(self.norm(x.permute(0, 1, 3, 4, 2, 5).flatten(3)))

    def keeps(self, batch: int) -> dict[str, int]:
        """Bytes by path."""
        positions, joined = math.prod(self.grid) // math.prod(self.factor), self.reduction.in_features
        return {"norm": norm_bytes(batch, positions, joined), "reduction": 4 * batch * positions * joined}


class Downsample(nn.Module):
    """ConvNeXt's downsampling: layer norm over channels, and a convolution with kernel = stride."""

    def __init__(self, width: int, width_out: int, grid: Grid, factor: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.conv = nn.Conv2d(width, width_out, factor, factor)
        nn.init.trunc_normal_(self.conv.weight, std=0.02)
        nn.init.zeros_(self.conv.bias)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        """``(B, c, H, W)`` to ``(B, c_out, H / factor, W / factor)``."""
        return self.conv(self.norm(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2))

    def keeps(self, batch: int) -> dict[str, int]:
        """Bytes by path."""
        positions, width = math.prod(self.grid), self.conv.in_channels
        return {"norm": norm_bytes(batch, positions, width), "conv": 4 * batch * positions * width}


class Projection(nn.Module):
    """ResNet's downsampling, as in its shortcuts: a 1 x 1 convolution with a stride, and batch norm."""

    def __init__(self, width: int, width_out: int, grid: Grid, factor: Grid) -> None:
        super().__init__()
        self.grid = grid
        self.positions_out = -(-grid[0] // factor[0]) * -(-grid[1] // factor[1])
        self.conv = nn.Conv2d(width, width_out, 1, factor, bias=False)
        self.norm = nn.BatchNorm2d(width_out)
        init_weights(self.conv)

    def forward(self, x: Tensor) -> Tensor:
        """``(B, c, H, W)`` to ``(B, c_out, H / factor, W / factor)``."""
        return self.norm(self.conv(x))

    def keeps(self, batch: int) -> dict[str, int]:
        """Bytes by path."""
        kept = {"conv": 4 * batch * math.prod(self.grid) * self.conv.in_channels}
        return kept | {"norm": 4 * (batch * self.positions_out + 2) * self.conv.out_channels}
