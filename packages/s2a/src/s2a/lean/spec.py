"""One fused branch as data: a norm with the attention or MLP behind it, its sizes, its options, what it keeps."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from s2a.ops.rows import CODED, kept_bytes, row_bytes
from s2a.paging import Page


@dataclasses.dataclass(frozen=True)
class SavedBits:
    """Bits per element in which a branch keeps its activations for the backward pass.

    Attributes:
        norm: Of the norm's normalised input, one of ``rows.WIDTHS``.
        inner: Of the activation's input (its derivative's code: 1, 2, 3, 4 or 8; 32: the input as it is), or of q, k,
            v (one of ``rows.WIDTHS``). 0: recomputed from the norm's codes.
        block: Of the block's input, one of ``rows.WIDTHS``, from which the whole block is computed again; all branches
            of a block say the same. 0: every branch keeps its own.
    """

    norm: int = 8
    inner: int = 0
    block: int = 0


@dataclasses.dataclass(frozen=True)
class BranchSpec:
    """Sizes of one branch for one image, and what restricts its choices: what the planner works with.

    Attributes:
        name: The block's path.
        role: ``"attn"`` or ``"mlp"``.
        tokens: Rows of the norm's input.
        channels: Its columns.
        inner: Columns of the first linear layer's output.
        inner_tokens: Rows of it: fewer where the head reads a class token alone.
        bits: Of the activation's code where that is fixed (ReLU's 1); 0: free.
        reads_first: The first linear layer's input is needed for gradients: it must not be too coarse.
        reads_last: The last layer's input is needed for gradients: it is recomputed, from a fine norm.
        fixed: q, k, v cannot be kept.
        block_saves: Bytes that go beside those of the branches when the whole block is computed again, as a constant
            and per image; ``None``: it cannot be.
        narrow: What is computed again is multiplied in bfloat16.
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
    block_saves: tuple[int, int] | None = None
    narrow: bool = False

    @property
    def work(self) -> float:
        """Multiply-adds of the branch's linear layers, forward, one image."""
        last = self.inner // 3 if self.role == "attn" else self.inner
        return self.tokens * self.channels * (self.inner + last)

    def nbytes(self, saved_bits: SavedBits, images: int) -> int:
        """Bytes that the branch keeps of a batch."""
        rows = self.tokens if self.role == "attn" else self.inner_tokens
        if saved_bits.block:  # Kept once for the block; it is entered with the attention.
            if self.role != "attn":
                return 0
            constant, each = self.block_saves or (0, 0)
            return kept_bytes(images * rows, self.channels, saved_bits.block) - constant - each * images
        # Codes of the normalised input with their numbers, and rstd of every row in float32.
        total = kept_bytes(images * rows, self.channels, saved_bits.norm) + 4 * images * rows
        if not saved_bits.inner:
            return total
        if self.role == "attn":
            return total + kept_bytes(3 * images * rows, self.inner // 3, saved_bits.inner)
        if saved_bits.inner > CODED:
            return total + kept_bytes(images * rows, self.inner, saved_bits.inner)
        return total + images * rows * row_bytes(self.inner, self.bits or saved_bits.inner)

    def recomputed_work(self, saved_bits: SavedBits) -> float:
        """Multiply-adds of the forward pass that the backward pass repeats, one image."""
        if saved_bits.block:
            return self.work
        rows = self.tokens if self.role == "attn" else self.inner_tokens
        return 0.0 if saved_bits.inner else rows * self.channels * self.inner


@dataclasses.dataclass(frozen=True)
class BranchOptions:
    """What a fused branch's autograd function takes beside tensors; plain values.

    Attributes:
        saved_bits: Of the activations kept.
        eps: Of the norm.
        channels_first: Maps ``(B, C, H, W)`` instead of ``(B, ..., C)``.
        activation: Key of ``reference.FORWARDS`` (MLP).
        levels: Kind of the activation's levels (MLP).
        heads: Attention heads.
        scale: Factor of attention's scores.
        scales: Factors of the low-rank updates of the first and the second linear layer.
        dtype: In which the products run.
        recompute_dtype: In which the backward pass recomputes products of the forward pass; ``None``: ``dtype``.
        again: The forward pass is itself a second one, for gradients: ``recompute_dtype`` is that of its products.
        pages: Of the linear layers whose weights are paged (``s2a.paging``). They say where a weight comes from, and
            nothing of what is computed.
    """

    saved_bits: SavedBits
    eps: float
    channels_first: bool = False
    activation: str = "gelu"
    levels: str = "derivative"
    heads: int = 0
    scale: float = 1.0
    scales: tuple[float, float] = (1.0, 1.0)
    dtype: torch.dtype = torch.float32
    recompute_dtype: torch.dtype | None = None
    again: bool = False
    pages: tuple[Page | None, Page | None] = dataclasses.field(default=(None, None), compare=False)

    @property
    def forward_dtype(self) -> torch.dtype | None:
        """In which the forward pass's products run; ``None``: ``dtype``."""
        return self.recompute_dtype if self.again else None


def to_rows(x: Tensor, part: slice, channels_first: bool) -> Tensor:
    """Some images of a batch as a matrix of one row per token."""
    some = x[part]
    if channels_first:
        some = some.movedim(1, -1)
    return some.reshape(-1, some.shape[-1])


def write_rows(out: Tensor, part: slice, rows: Tensor, channels_first: bool) -> None:
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


def add_to(sums: Tensor | None, more: Tensor, wanted: bool) -> Tensor | None:
    """Running sum over chunks of a gradient that may not be asked for."""
    if not wanted:
        return None
    return more if sums is None else sums + more


def cast_like(tensor: Tensor | None, grad: Tensor | None) -> Tensor | None:
    """A gradient in its tensor's dtype."""
    return None if grad is None or tensor is None else grad.to(tensor.dtype)
