"""Layers with a frozen weight that keep nothing of their input.

PyTorch's own convolution keeps its input even when only the bias trains, and so does its batch norm with fixed
statistics, whose backward pass is a product with one number per channel; its linear layer does not.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s2a.ops.keeping import keeps_for_backward


class _FrozenConv2d(torch.autograd.Function):
    """Convolution with a frozen weight (equation 2): dx = conv_transpose(dy, W) and db = sum of dy need no x."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        out = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
        ctx.save_for_backward(weight)
        ctx.shape, ctx.has_bias = x.shape, bias is not None
        ctx.geometry = (list(stride), list(padding), list(dilation), groups)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (weight,) = ctx.saved_tensors
        grad_x = None
        if ctx.needs_input_grad[0]:
            stride, padding, dilation, groups = ctx.geometry
            # Only the input's shape is read; an expanded scalar stands in for it.
            stand_in = grad.new_empty(1).expand(ctx.shape)
            grad_x, _, _ = torch.ops.aten.convolution_backward(
                grad, stand_in, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
            )
        grad_bias = grad.sum((0, 2, 3)) if ctx.has_bias and ctx.needs_input_grad[2] else None
        return grad_x, None, grad_bias, None, None, None, None


def frozen_conv2d(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """What ``conv(x)`` returns, without keeping ``x``; the stock path where the weight trains or pads unusually."""
    unusual = isinstance(conv.padding, str) or conv.padding_mode != "zeros" or x.dim() != 4
    if unusual or conv.weight.requires_grad or not keeps_for_backward():
        return conv._conv_forward(x, conv.weight, conv.bias)
    weight, bias, device = conv.weight, conv.bias, x.device.type
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    with torch.autocast(device, enabled=False):
        return _FrozenConv2d.apply(  # type: ignore[no-any-return]
            x, weight, bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )


class _FixedBatchNorm(torch.autograd.Function):
    """y = (x - mean) rstd w + b with constants mean, rstd, w: dx = dy rstd w, db = sum of dy. Keeps rstd w."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        scale = (variance + eps).rsqrt()
        ctx.save_for_backward(scale if weight is None else scale * weight)
        return F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        (scale,) = ctx.saved_tensors
        grad_x = grad * scale.to(grad.dtype).view(1, -1, 1, 1) if ctx.needs_input_grad[0] else None
        grad_bias = grad.sum((0, 2, 3)).to(scale.dtype) if ctx.needs_input_grad[4] else None
        return grad_x, None, None, None, grad_bias, None


def fixed_batch_norm(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
    """What ``norm(x)`` returns, without keeping ``x`` where statistics and weight are fixed; else the stock path."""
    mean, variance, weight = norm.running_mean, norm.running_var, norm.weight
    trains = weight is not None and weight.requires_grad
    if norm.training or mean is None or variance is None or trains or x.dim() != 4 or not keeps_for_backward():
        return nn.BatchNorm2d.forward(norm, x)
    return _FixedBatchNorm.apply(x, mean, variance, weight, norm.bias, norm.eps)  # type: ignore[no-any-return]
