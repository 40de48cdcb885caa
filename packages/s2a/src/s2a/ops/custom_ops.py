"""The operators of lean activations as PyTorch custom operators: with shapes for compilers and simulations.

On CUDA, Triton kernels run where Triton is there (``launch``); everything else runs ``reference``. A matrix has one row
for each token: R tokens of C channels. Names of arguments that are changed in place end the operator's own list. What
does not go together is refused (``checks``).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.library import custom_op

from s2a.ops import checks, reference
from s2a.ops.rows import row_bytes

HAS_TRITON = importlib.util.find_spec("triton") is not None


@custom_op("s2a::rows_pack", mutates_args=())
def rows_pack(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """``(R, C)`` to codes and numbers (``rows.quantize_rows``)."""
    checks.rows_pack(x, bits)
    return reference.rows_pack(x, bits)


@rows_pack.register_fake
def _(x: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    checks.rows_pack(x, bits)
    return reference.empty_codes(x, bits)


@custom_op("s2a::rows_unpack", mutates_args=())
def rows_unpack(codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype) -> Tensor:
    """Codes and numbers back to ``(R, columns)`` of ``dtype``."""
    checks.rows_unpack(codes, numbers, columns, bits, dtype)
    return reference.rows_unpack(codes, numbers, columns, bits, dtype)


@rows_unpack.register_fake
def _(codes: Tensor, numbers: Tensor, columns: int, bits: int, dtype: torch.dtype) -> Tensor:
    checks.rows_unpack(codes, numbers, columns, bits, dtype)
    return codes.new_empty((len(codes), columns), dtype=dtype)


@custom_op("s2a::norm_pack", mutates_args=())
def norm_pack(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Layer normalisation over the rows of ``x`` ``(R, C)``, and what its backward pass needs.

    Returns:
        The output ``(R, C)`` in the dtype of ``x``; codes and numbers of the normalised input, before weight and bias
        (``rows.quantize_rows``); the reciprocal standard deviation ``(R, 1)``.
    """
    checks.norm_pack(x, weight, bias, eps, bits)
    return reference.norm_pack(x, weight, bias, eps, bits)


@norm_pack.register_fake
def _(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, bits: int
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks.norm_pack(x, weight, bias, eps, bits)
    work = torch.promote_types(x.dtype, torch.float32)
    return x.new_empty(x.shape), *reference.empty_codes(x, bits), x.new_empty((len(x), 1), dtype=work)


@custom_op("s2a::norm_rebuild", mutates_args=())
def norm_rebuild(
    codes: Tensor,
    numbers: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    columns: int,
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    """A normalisation's output ``(R, columns)`` from the codes of its normalised input: x^ weight + bias."""
    checks.norm_rebuild(codes, numbers, weight, bias, columns, bits, dtype)
    return reference.norm_rebuild(codes, numbers, weight, bias, columns, bits, dtype)


@norm_rebuild.register_fake
def _(
    codes: Tensor,
    numbers: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    columns: int,
    bits: int,
    dtype: torch.dtype,
) -> Tensor:
    checks.norm_rebuild(codes, numbers, weight, bias, columns, bits, dtype)
    return codes.new_empty((len(codes), columns), dtype=dtype)


@custom_op("s2a::norm_backward", mutates_args=("out",))
def norm_backward(
    grad: Tensor,
    codes: Tensor,
    numbers: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bits: int,
    want_weight: bool,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    """Layer normalisation's backward pass from codes, written into ``out``.

    dx = rstd (g w - mean(g w) - x^ mean(g w x^)) over each row, dw = sum of g x^ and db = sum of g over rows.

    Args:
        grad: Of the output, ``(R, C)``.
        codes: As ``norm_pack`` returned them.
        numbers: Likewise.
        rstd: Likewise.
        weight: Of the normalisation, ``(C,)``.
        bits: As given to ``norm_pack``.
        want_weight: Whether the weight's gradient is asked for.
        out: ``(R, C)``; gets the gradient of the normalisation's input.

    Returns:
        Gradients of weight (of no elements, if not asked for) and bias, ``(C,)``, in float32 (float64 for doubles).
    """
    checks.norm_backward(grad, codes, numbers, rstd, weight, bits, want_weight, out)
    return reference.norm_backward(grad, codes, numbers, rstd, weight, bits, want_weight, out)


@norm_backward.register_fake
def _(
    grad: Tensor,
    codes: Tensor,
    numbers: Tensor,
    rstd: Tensor,
    weight: Tensor | None,
    bits: int,
    want_weight: bool,
    out: Tensor,
) -> tuple[Tensor, Tensor]:
    checks.norm_backward(grad, codes, numbers, rstd, weight, bits, want_weight, out)
    work, columns = torch.promote_types(grad.dtype, torch.float32), grad.shape[1]
    return grad.new_empty(columns if want_weight else 0, dtype=work), grad.new_empty(columns, dtype=work)


@custom_op("s2a::act_pack", mutates_args=("u",))
def act_pack(u: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    """Applies an activation to ``u`` ``(R, C)`` in place; returns the codes of its derivative, ``(R, bytes)`` uint8.

    Args:
        u: Contiguous.
        activation: A key of ``reference.FORWARDS``.
        bits: 1, 2, 3, 4 or 8.
        levels: As in ``s2a.ops.pointwise.activation_code``.
    """
    checks.act_pack(u, activation, bits, levels)
    return reference.act_pack(u, activation, bits, levels)


@act_pack.register_fake
def _(u: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    checks.act_pack(u, activation, bits, levels)
    width = row_bytes(u.shape[1], reference.code_bits(activation, bits))
    return u.new_empty((len(u), width), dtype=torch.uint8)


@custom_op("s2a::act_backward", mutates_args=("grad",))
def act_backward(grad: Tensor, codes: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    """Multiplies ``grad`` ``(R, C)`` in place by the derivative of every code; returns the columns' sums of the result.

    The sums, in float32 (float64 for doubles), are the gradient of a bias in front of the activation.
    """
    checks.act_backward(grad, codes, activation, bits, levels)
    return reference.act_backward(grad, codes, activation, bits, levels)


@act_backward.register_fake
def _(grad: Tensor, codes: Tensor, activation: str, bits: int, levels: str) -> Tensor:
    checks.act_backward(grad, codes, activation, bits, levels)
    return grad.new_empty(grad.shape[1], dtype=torch.promote_types(grad.dtype, torch.float32))


def _on_cuda(name: str) -> Callable[..., Any]:
    def run(*arguments: Any) -> Any:
        from s2a.ops import triton_launch as launch  # Not before a tensor is on a device: importing Triton takes time.

        getattr(checks, name)(*arguments)
        return getattr(launch, name)(*arguments)

    return run


OPERATORS = {
    "rows_pack": rows_pack,
    "rows_unpack": rows_unpack,
    "norm_pack": norm_pack,
    "norm_rebuild": norm_rebuild,
    "norm_backward": norm_backward,
    "act_pack": act_pack,
    "act_backward": act_backward,
}
"""All of them, by name."""

if HAS_TRITON:
    for _name, _operator in OPERATORS.items():
        _operator.register_kernel("cuda")(_on_cuda(_name))
