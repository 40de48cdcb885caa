"""What the lean operators take: one check for each, with its operator's name and arguments.

Every check raises ``S2AError`` for bits without codes and for tensors that do not go with each other, on real tensors
and on fake ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from s2a.errors import S2AError
from s2a.ops import reference
from s2a.ops.rows import WIDTHS, code_columns, number_shape, row_bytes


def _matrix(x: Tensor) -> None:
    if x.dim() != 2 or not x.shape[1] or not x.is_floating_point():
        raise S2AError(
            f"A lean operator was given {tuple(x.shape)} of {x.dtype}; it takes a matrix of real numbers, tokens by "
            "channels: reshape the tensor to two dimensions."
        )


def _bits(bits: int) -> None:
    if bits not in WIDTHS:
        raise S2AError(f"bits={bits} must be one of {', '.join(map(str, WIDTHS))}.")


def _affine(columns: int, *tensors: Tensor | None) -> None:
    for tensor in tensors:
        if tensor is not None and tensor.shape != (columns,):
            raise S2AError(
                f"A weight or bias of shape {tuple(tensor.shape)} does not go with {columns} channels; "
                f"give ({columns},)."
            )


def rows_pack(x: Tensor, bits: int) -> None:
    """See ``ops.rows_pack``."""
    _matrix(x)
    _bits(bits)


def rows_unpack(codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype) -> None:
    """See ``ops.rows_unpack``."""
    _bits(bits)
    if columns < 1 or not dtype.is_floating_point:
        raise S2AError(f"columns={columns} of {dtype} cannot be unpacked; ask for at least one, of a floating dtype.")
    rows = len(codes) if codes.dim() else 0
    wanted = ((rows, code_columns(columns, bits)), number_shape(rows, columns, bits))
    if (codes.shape, numbers.shape) != wanted:
        raise S2AError(
            f"Codes {tuple(codes.shape)} and numbers {tuple(numbers.shape)} are not those of {columns} columns in "
            f"{bits} bits, {wanted[0]} and {wanted[1]}; give both as they were packed, with the same columns and bits."
        )


def norm_pack(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, bits: int) -> None:
    """See ``ops.norm_pack``."""
    rows_pack(x, bits)
    _affine(x.shape[1], weight, bias)


def norm_rebuild(
    codes: Tensor,
    numbers: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    columns: int,
    bits: int,
    dtype: torch.dtype,
) -> None:
    """See ``ops.norm_rebuild``."""
    rows_unpack(codes, numbers, columns, bits, dtype)
    _affine(columns, weight, bias)


def norm_backward(
    grad: Tensor,
    codes: Tensor,
    numbers: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bits: int,
    want_weight: bool,
    out: Tensor,
) -> None:
    """See ``ops.norm_backward``."""
    _matrix(grad)
    rows, columns = grad.shape
    norm_rebuild(codes, numbers, weight, None, columns, bits, grad.dtype)
    if (len(codes), rstd.shape, out.shape) != (rows, (rows, 1), (rows, columns)):
        raise S2AError(
            f"A gradient {(rows, columns)} does not go with codes of {len(codes)} rows, rstd {tuple(rstd.shape)} and "
            f"out {tuple(out.shape)}; give what norm_pack returned for the same rows, and out of the gradient's shape."
        )


def act_pack(u: Tensor, activation: str, bits: int, levels: str) -> None:
    """See ``ops.act_pack``."""
    _matrix(u)
    if activation not in reference.FORWARDS:
        known = ", ".join(map(repr, reference.FORWARDS))
        raise S2AError(f"No lean form of the activation {activation!r}; choose one of {known}.")
    reference.code_of(activation, bits, levels)


def act_backward(grad: Tensor, codes: Tensor, activation: str, bits: int, levels: str) -> None:
    """See ``ops.act_backward``."""
    act_pack(grad, activation, bits, levels)
    wanted = (len(grad), row_bytes(grad.shape[1], reference.code_of(activation, bits, levels).bits))
    if codes.shape != wanted:
        raise S2AError(
            f"Codes {tuple(codes.shape)} do not go with a gradient {tuple(grad.shape)}, whose codes are {wanted}; give "
            "those of act_pack, with the same bits and levels."
        )
