"""The lean forward of any module with one input tensor: keep the input in codes, run the module again for gradients.

For y = f(x; p) the forward pass keeps the codes of x alone, 8 bits per element, instead of everything that autograd
saves inside f. The backward pass turns them back into x' (``s2a.ops.rows``), runs f(x'; p) with gradient, and
differentiates that: gradient checkpointing (https://arxiv.org/abs/1604.06174) whose checkpoint is coded.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from s2a.lean.again import without_hooks
from s2a.ops import custom_ops as ops
from s2a.ops.keeping import keeps_for_backward
from s2a.ops.offload import load, save


class _RecomputeFromCodes(torch.autograd.Function):
    """Storage: codes ``(rows, bytes)`` and minimum and step of each row, a row being one position's channels."""

    @staticmethod
    def forward(
        ctx: Any,
        forward: Callable[[Any, Tensor], Tensor],
        module: nn.Module,
        bits: int,
        channel_axis: int,
        x: Tensor,
        *parameters: Tensor,
    ) -> Tensor:
        # One row per position: its channels share a minimum and a step.
        rows = x.movedim(channel_axis, -1)
        ctx.forward, ctx.module, ctx.bits, ctx.channel_axis = forward, module, bits, channel_axis
        ctx.shape, ctx.dtype = rows.shape, x.dtype
        ctx.autocast = torch.is_autocast_enabled(x.device.type), torch.get_autocast_dtype(x.device.type)
        save(ctx, (), ops.rows_pack(rows.reshape(-1, rows.shape[-1]), bits))
        return forward(module, x)  # Without gradient: a Function's forward pass records nothing.

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        # x' from its codes.
        rows = ops.rows_unpack(*load(ctx), ctx.shape[-1], ctx.bits, ctx.dtype)
        enabled, dtype = ctx.autocast
        # f(x'; p) once more, in the number format of the forward pass.
        with torch.enable_grad(), torch.autocast(grad.device.type, dtype, enabled=enabled):
            leaf = rows.view(ctx.shape).movedim(-1, ctx.channel_axis).requires_grad_()
            parameters = list(ctx.module.parameters())
            wanted = [leaf, *(p for p in parameters if p.requires_grad)]
            with without_hooks(wanted[1:]):  # They run on what this function returns.
                found = torch.autograd.grad(ctx.forward(ctx.module, leaf), wanted, grad, allow_unused=True)
        # One gradient per argument of ``apply``, None for frozen parameters.
        rest = iter(found[1:])
        return None, None, None, None, found[0], *(next(rest) if p.requires_grad else None for p in parameters)


def recompute_from_codes(
    forward: Callable[[Any, Tensor], Tensor], module: nn.Module, x: Tensor, bits: int, channel_axis: int = -1
) -> Tensor:
    """``forward(module, x)``, keeping ``x`` in ``bits`` bits and nothing else.

    The function runs twice and must compute the same both times: it draws no random numbers and changes no buffer. A
    module in training mode with dropout, dropped paths or a batch norm inside therefore runs as it is and keeps what
    autograd keeps, and so does one that nothing asks a gradient of, and one under ``torch.compile``.

    Args:
        forward: Of the module's parameters and ``x`` alone; returns one tensor.
        module: Whose parameters get gradients.
        x: Floating point; every position along all other axes is coded with a minimum and a step of its own.
        bits: One of ``s2a.ops.rows.WIDTHS``.
        channel_axis: Axis of the channels: 1 for maps ``(B, C, H, W)``, -1 for tokens ``(B, N, C)``.
    """
    parameters = list(module.parameters())
    wanted = x.requires_grad or any(p.requires_grad for p in parameters)
    plain = x.is_floating_point() and x.dim() > 1
    if not (wanted and plain and keeps_for_backward()) or torch.compiler.is_compiling() or _differs(module):
        return forward(module, x)
    return _RecomputeFromCodes.apply(  # type: ignore[no-any-return]
        forward, module, bits, channel_axis, x, *parameters
    )


def _differs(module: nn.Module) -> bool:
    """Whether a second run of the module would give other values, or change its buffers again."""
    for part in module.modules():
        if part.training and isinstance(part, _BatchNorm):
            return True
        if part.training and isinstance(part, _DropoutNd) and part.p > 0:
            return True
        if part.training and isinstance(part, DropPath) and part.drop_prob:
            return True
    return False


def recompute_map_forward(self: Any, x: Tensor) -> Tensor:
    """A lean forward for any module from one map ``(B, C, H, W)`` to one tensor; see ``recompute_from_codes``."""
    return recompute_from_codes(type(self).forward, self, x, self.s2a_lean_bits, 1)


def recompute_tokens_forward(self: Any, x: Tensor) -> Tensor:
    """A lean forward for any module from one tensor ``(B, ..., C)`` to one tensor; see ``recompute_from_codes``."""
    return recompute_from_codes(type(self).forward, self, x, self.s2a_lean_bits, -1)
