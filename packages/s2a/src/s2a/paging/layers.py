"""Linear layers and convolutions that compute with a copy of their frozen weight, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from s2a.errors import S2AError
from s2a.ops.keeping import keeps_for_backward
from s2a.paging.homes import in_temporary_file, pinned
from s2a.paging.pager import Page

_PAGEABLE = (nn.Linear, nn.Conv2d)
"""Classes whose own forward reads the weight through one function alone."""

_not_compiled: Any = torch.compiler.disable  # the type PyTorch gives it takes no methods


class _PagedLinear(torch.autograd.Function):
    """y = x W^T + b, dx = g W, db = sum of g over rows. Keeps the page and the weight's home, no copy."""

    @staticmethod
    def forward(ctx: Any, page: Page, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.page, ctx.dtype, ctx.weight = page, dtype, weight
        return F.linear(x, page.fetch(weight, x.device, dtype), bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        rows = grad.reshape(-1, grad.shape[-1])
        moved = None
        if ctx.needs_input_grad[2]:
            moved = (rows @ ctx.page.fetch(ctx.weight, grad.device, ctx.dtype)).view(*grad.shape[:-1], -1)
        return None, None, moved, None, rows.sum(0) if ctx.needs_input_grad[4] else None


class _PagedConv2d(torch.autograd.Function):
    """A convolution: dx = conv_transpose(g, W), db = sum of g. Keeps the page and the weight's home, no copy."""

    @staticmethod
    def forward(
        ctx: Any, page: Page, dtype: torch.dtype, x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Any
    ) -> Tensor:
        ctx.page, ctx.dtype, ctx.weight, ctx.shape, ctx.geometry = page, dtype, weight, x.shape, geometry
        return F.conv2d(x, page.fetch(weight, x.device, dtype), bias, *geometry)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        moved = None
        if ctx.needs_input_grad[2]:
            stride, padding, dilation, groups = ctx.geometry
            stand_in = grad.new_empty(1).expand(ctx.shape)  # Only the input's shape is read.
            weight = ctx.page.fetch(ctx.weight, grad.device, ctx.dtype)
            moved, _, _ = torch.ops.aten.convolution_backward(
                grad, stand_in, weight, None, stride, padding, dilation, False, [0, 0], groups, [True, False, False]
            )
        return None, None, moved, None, grad.sum((0, 2, 3)) if ctx.needs_input_grad[4] else None, None


def is_plain(layer: nn.Module) -> bool:
    """Whether a layer computes what these functions do, by a forward of its class or of ``s2a.activations``."""
    if type(layer) not in _PAGEABLE:
        return False
    own = layer.__dict__.get("forward")
    if own is not None and not getattr(getattr(own, "func", None), "__module__", "").startswith("s2a.activations"):
        return False
    return not isinstance(layer, nn.Conv2d) or (isinstance(layer.padding, tuple) and layer.padding_mode == "zeros")


def paged_forward(self: Any, x: Tensor) -> Tensor:
    """The forward of a layer with a paged weight.

    Raises:
        S2AError: The weight was switched to train.
    """
    refuse_trained(self)
    if torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[attr-defined]
        return type(self).forward(self, x)  # A program holds the weight itself.
    return _eager(self, x)


@_not_compiled
def _eager(layer: Any, x: Tensor) -> Tensor:
    page, weight, bias, device = layer.s2a_page, layer.weight, layer.bias, x.device.type
    dtype = weight.dtype
    if torch.is_autocast_enabled(device) and torch.float64 not in (x.dtype, dtype):
        dtype = torch.get_autocast_dtype(device)
        x, bias = x.to(dtype), None if bias is None else bias.to(dtype)
    linear = isinstance(layer, nn.Linear)
    geometry = None if linear else (layer.stride, layer.padding, layer.dilation, layer.groups)
    with torch.autocast(device, enabled=False):
        if not keeps_for_backward():
            copy = page.fetch(weight, x.device, dtype)
            return F.linear(x, copy, bias) if linear else F.conv2d(x, copy, bias, *geometry)  # type: ignore[misc]
        if linear:
            return _PagedLinear.apply(page, dtype, x, weight, bias)  # type: ignore[no-any-return]
        batch = x if x.dim() == 4 else x.unsqueeze(0)
        out: Any = _PagedConv2d.apply(page, dtype, batch, weight, bias, geometry)
        return out if batch is x else out.squeeze(0)  # type: ignore[no-any-return]


def refuse_trained(layer: Any) -> None:
    """Checks that a paged weight does not train.

    Raises:
        S2AError: It does.
    """
    if layer.weight.requires_grad:
        raise S2AError(
            f"{layer.s2a_page.name} was switched to train, but its values lie in host memory (s2a.page_frozen), where "
            "no gradient reaches them; freeze it again, or call s2a.unpage_frozen first."
        )


def paged_apply(self: Any, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
    """``_apply`` of such a layer (``model.to(...)``): its weight follows changes of dtype, and stays in its home."""
    weight = self._parameters["weight"]
    asked = fn(weight.detach().new_empty(0))  # A device that the weight itself is not to be moved to.
    if asked.is_meta and not weight.is_meta:
        return type(self)._apply(self, fn, recurse)  # Its values are given up.
    self._parameters["weight"] = None
    try:
        type(self)._apply(self, fn, recurse)
    finally:
        self._parameters["weight"] = weight
    # Where a model goes to a card, its weights go to memory that the card reads by itself.
    pins = self.s2a_page.pager.pins_for(asked.device) and not _has_no_data(weight)
    if asked.dtype != weight.dtype or (pins and not weight.is_pinned()):
        set_home(weight, weight.detach().to(asked.dtype), pins)
    return self


def set_home(weight: nn.Parameter, values: Tensor, pins: bool = False) -> None:
    """Gives a paged weight other values: in pinned memory, as before or as ``pins`` says, or in a temporary file."""
    if _has_no_data(weight):
        weight.data = values
    else:
        weight.data = pinned(values) if pins or weight.is_pinned() else in_temporary_file(values)


def _has_no_data(weight: Tensor) -> bool:
    return isinstance(weight, FakeTensor) or weight.is_meta
