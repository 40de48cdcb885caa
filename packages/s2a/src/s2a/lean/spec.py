"""What one residual branch of a block, a norm with the attention or MLP behind it, keeps and is made of."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from s2a.ops.rows import kept_bytes, row_bytes


@dataclasses.dataclass(frozen=True)
class Keep:
    """Bits that a branch keeps per element.

    Attributes:
        norm: Of the norm's normalised input, one of ``rows.WIDTHS``.
        inner: Of the activation's input (its derivative's code: 1, 2, 3, 4 or 8), or of q, k, v (one of
            ``rows.WIDTHS``). 0: computed again from the norm's codes.
    """

    norm: int = 8
    inner: int = 0


@dataclasses.dataclass(frozen=True)
class Site:
    """One branch, as the planner sees it; sizes for one image.

    Attributes:
        name: The block's path.
        role: ``"attn"`` or ``"mlp"``.
        tokens: Rows of the norm's input.
        channels: Its columns.
        inner: Columns of the first linear layer's output.
        inner_tokens: Rows of it: fewer where the head reads a class token alone.
        bits: Of the activation's code where that is fixed (ReLU's 1); 0: free.
        reads_first: The first linear layer's input is needed for gradients: it must not be too coarse.
        reads_last: The last layer's input is needed: it is made again, from a fine norm.
        fixed: q, k, v cannot be kept.
    """

    name: str
    role: str
    tokens: int
    channels: int
    inner: int
    inner_tokens: int
    bits: int = 0
    reads_first: bool = False
    reads_last: bool = False
    fixed: bool = False

    @property
    def work(self) -> float:
        """Multiply-adds of the branch's linear layers, forward, one image."""
        last = self.inner // 3 if self.role == "attn" else self.inner
        return self.tokens * self.channels * (self.inner + last)

    def nbytes(self, keep: Keep, images: int) -> int:
        """Bytes that the branch keeps of a batch."""
        rows = self.tokens if self.role == "attn" else self.inner_tokens
        total = kept_bytes(images * rows, self.channels, keep.norm) + 4 * images * rows
        if not keep.inner:
            return total
        if self.role == "attn":
            return total + kept_bytes(3 * images * rows, self.inner // 3, keep.inner)
        return total + images * rows * row_bytes(self.inner, self.bits or keep.inner)

    def again(self, keep: Keep) -> float:
        """Multiply-adds that the backward pass does again, one image."""
        rows = self.tokens if self.role == "attn" else self.inner_tokens
        return 0.0 if keep.inner else rows * self.channels * self.inner


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a fused branch has to know beside its tensors; plain values.

    Attributes:
        keep: Bits.
        eps: Of the norm.
        channels_first: Maps ``(B, C, H, W)`` instead of ``(B, ..., C)``.
        activation: Key of ``reference.FORWARDS`` (MLP).
        levels: Kind of the activation's levels (MLP).
        heads: Attention heads.
        scale: Factor of attention's scores.
        scales: Factors of the low-rank updates of the first and the second linear layer.
        dtype: In which the products run.
        again: In which those of the forward pass run once more in the backward pass; ``None``: the same.
    """

    keep: Keep
    eps: float
    channels_first: bool = False
    activation: str = "gelu"
    levels: str = "derivative"
    heads: int = 0
    scale: float = 1.0
    scales: tuple[float, float] = (1.0, 1.0)
    dtype: torch.dtype = torch.float32
    again: torch.dtype | None = None


def rows_of(x: Tensor, part: slice, channels_first: bool) -> Tensor:
    """Some images of a batch as a matrix of one row per token."""
    some = x[part]
    if channels_first:
        some = some.movedim(1, -1)
    return some.reshape(-1, some.shape[-1])


def put_rows(out: Tensor, part: slice, rows: Tensor, channels_first: bool) -> None:
    """Writes such a matrix into its images of a batch."""
    some = out[part]
    if channels_first:
        some.copy_(rows.view(len(some), *some.shape[2:], some.shape[1]).movedim(-1, 1))
    else:
        some.copy_(rows.view(some.shape))


def compute_dtype(x: Tensor, weight: Tensor) -> torch.dtype:
    """The dtype in which a linear layer behind a norm of ``x`` runs, autocast included."""
    device = x.device.type
    if torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return weight.dtype if weight.dtype == x.dtype else torch.promote_types(x.dtype, weight.dtype)


def total(sums: Tensor | None, more: Tensor, wanted: bool) -> Tensor | None:
    """Running sum over chunks of a gradient that may not be asked for."""
    if not wanted:
        return None
    return more if sums is None else sums + more


def like(tensor: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """A gradient in its tensor's dtype."""
    return None if grad is None or tensor is None else grad.to(tensor.dtype)
