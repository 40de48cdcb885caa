"""Pooling that keeps no map: the place of each maximum in its window, and nothing for averages.

Max-pool: y_o = max over window o of x, so dx has dy_o at the maximum's place and 0 elsewhere. For a window of k_h x k_w
places the place is a code, row * k_w + column, of 2, 4 or 8 bits; with the window's first row and column it gives the
index in the map. Storage of a chunk of images: codes ``(images * C, bytes of one output map)``. PyTorch's own layer
keeps its input and an int64 index for every output.

Average pool: y is linear in x, so dx depends on dy and on the shape of x alone.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s2a.lean.linear import image_chunks
from s2a.lean.registry import register_lean_forward
from s2a.ops.keeping import keeps_for_backward
from s2a.ops.offload import load, save
from s2a.ops.rows import pack_rows, unpack_rows

LARGEST_WINDOW = 256
"""Places in a window that a code can tell apart."""


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (int(value[0]), int(value[1]))


class _MaxPool(torch.autograd.Function):
    """The stock layer, keeping 2, 4 or 8 bits of each output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, options: dict[str, Any]) -> Tensor:
        outs, kept, parts = [], [], list(image_chunks(len(x), x[:1].numel()))
        across, ctx.bits = options["kernel_size"][1], _bits(options)
        for part in parts:
            # PyTorch's index into the flat map, as a place in the window.
            out, index = F.max_pool2d(x[part], **options, return_indices=True)
            rows, columns = index // x.shape[3], index % x.shape[3]
            (top, left), (high, wide) = _corners(out.shape, options, x.device), options["dilation"]
            place = (rows - top.view(-1, 1)) // high * across + (columns - left) // wide
            kept.append(pack_rows(place.to(torch.uint8).reshape(-1, out.shape[2] * out.shape[3]), ctx.bits))
            outs.append(out)
        ctx.options, ctx.parts, ctx.input_like = options, parts, (x.shape, x.dtype)
        save(ctx, (), kept)
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        kept, options = load(ctx), ctx.options
        across = options["kernel_size"][1]
        (top, left), (high, wide) = _corners(grad.shape, options, grad.device), options["dilation"]
        shape, dtype = ctx.input_like
        out = torch.zeros(shape, dtype=dtype, device=grad.device)
        for codes, part in zip(kept, ctx.parts, strict=True):
            # Back from the code to the index in the map; overlapping windows add up.
            some = grad[part]
            place = unpack_rows(codes, some.shape[2] * some.shape[3], ctx.bits, torch.int64).view(some.shape)
            rows = top.view(-1, 1) + place // across * high
            index = rows * shape[3] + left + place % across * wide
            out[part].flatten(2).scatter_add_(2, index.flatten(2), some.to(dtype).flatten(2))
        return out, None


def _bits(options: dict[str, Any]) -> int:
    """Bits that tell the places of a window apart."""
    rows, columns = options["kernel_size"]
    return 2 if rows * columns <= 4 else 4 if rows * columns <= 16 else 8


def _corners(shape: torch.Size, options: dict[str, Any], device: torch.device) -> tuple[Tensor, Tensor]:
    """First row and first column of every window."""
    (down, across), (high, wide) = options["stride"], options["padding"]
    rows, columns = (torch.arange(count, device=device) for count in shape[2:])
    return rows * down - high, columns * across - wide


@register_lean_forward(nn.MaxPool2d)
def max_pool_forward(self: Any, x: Tensor) -> Any:
    """A max-pool that keeps the place of every maximum in its window."""
    options = {key: _pair(getattr(self, key)) for key in ("kernel_size", "stride", "padding", "dilation")}
    rows, columns = options["kernel_size"]
    if not _takes(x) or self.return_indices or rows * columns > LARGEST_WINDOW:
        return type(self).forward(self, x)
    return _MaxPool.apply(x, {**options, "ceil_mode": self.ceil_mode})


class _AveragePool(torch.autograd.Function):
    """The stock layer, keeping nothing: the layer is linear, so its gradient at zeros is that at x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, module: Any) -> Tensor:
        ctx.module, ctx.input_like = module, (x.shape, x.dtype)
        return type(module).forward(module, x)  # type: ignore[no-any-return]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:  # type: ignore[override]
        with torch.enable_grad():
            leaf = torch.zeros(ctx.input_like[0], dtype=ctx.input_like[1], device=grad.device, requires_grad=True)
            (found,) = torch.autograd.grad(type(ctx.module).forward(ctx.module, leaf), leaf, grad)
        return found, None


@register_lean_forward(nn.AvgPool2d)
def average_pool_forward(self: Any, x: Tensor) -> Any:
    """An average pool that keeps nothing."""
    return _AveragePool.apply(x, self) if _takes(x) else type(self).forward(self, x)


def _takes(x: Tensor) -> bool:
    """Whether a gradient is asked for, of maps; compilers trace the stock layer."""
    return x.dim() == 4 and x.requires_grad and keeps_for_backward() and not torch.compiler.is_compiling()
