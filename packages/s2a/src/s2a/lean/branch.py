"""What one residual branch of a block, a norm with the attention or MLP behind it, keeps and is made of."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor


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
