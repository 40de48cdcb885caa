"""Linear layers inside a fused branch: forward with low-rank updates, and gradients summed over chunks of images."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from s2a.lean.spec import BranchOptions

CHUNK = 5 << 19
"""Elements of the widest matrix that a chunk of images makes, at most: 10 MB in float32."""


def image_chunks(items: int, width: int, multiple: int = 1) -> Iterator[slice]:
    """Even chunks of a batch.

    Args:
        items: Images (or windows) of the batch.
        width: Elements of the widest matrix that one of them makes.
        multiple: A chunk holds a multiple of that many items.
    """
    # As few chunks as ``CHUNK`` allows, all of the same size but for the last.
    groups = -(-items // multiple)
    count = -(-groups // max(1, CHUNK // max(width * multiple, 1)))
    size = -(-groups // max(count, 1)) * multiple
    for start in range(0, items, max(size, 1)):
        yield slice(start, min(start + size, items))


@dataclasses.dataclass
class Layer:
    """A linear layer y = x W^T + b + s (x A^T) U^T, by its tensors, and the gradients asked for.

    The update U A is LoRA's (https://arxiv.org/abs/2106.09685; paper equation 15). For the gradient g of y (paper
    equation 2):

        dx = g W + s (g U) A,   dW = g^T x,   db = sum of g over rows,   dA = s (g U)^T x,   dU = s g^T (x A^T)

    Only dW, dA and dU need x. Sums over chunks are held in float32 (float64 for doubles).

    Attributes:
        weight: W ``(out, in)``.
        bias: b ``(out,)``.
        a: A ``(r, in)`` of a low-rank update.
        u: U ``(out, r)`` of it.
        scale: s, its factor.
        needs: Whether each of W, b, A, U wants a gradient.
    """

    weight: Tensor
    bias: Tensor | None
    a: Tensor | None
    u: Tensor | None
    scale: float
    needs: tuple[bool, ...] = (False,) * 4
    _dtypes: tuple[Any, ...] = ()
    _narrow: tuple[Tensor, Tensor | None] | None = None

    def __post_init__(self) -> None:
        # Sums in float32 at least: many chunks are added up.
        tensors = (self.weight, self.bias, self.a, self.u)
        self._dtypes = tuple(None if t is None else t.dtype for t in tensors)
        self._sums: list[Tensor | None] = [
            torch.zeros(t.shape, dtype=torch.promote_types(t.dtype, torch.float32), device=t.device)
            if needed and t is not None
            else None
            for needed, t in zip(self.needs, tensors, strict=True)
        ]

    def to(self, dtype: torch.dtype) -> Layer:
        """The same layer with its tensors in the dtype that the product runs in; gradients keep their own."""
        if self.weight.dtype != dtype or (self.bias is not None and self.bias.dtype != dtype):
            self.weight = self.weight.to(dtype)
            self.bias = None if self.bias is None else self.bias.to(dtype)
        if self.a is not None and self.u is not None:
            self.a, self.u = self.a.to(dtype), self.u.to(dtype)
        return self

    def __call__(self, x: Tensor) -> Tensor:
        """``(R, in)`` to ``(R, out)``."""
        out = F.linear(x, self.weight, self.bias)
        if self.a is not None and self.u is not None:
            out.addmm_(x @ self.a.t(), self.u.t(), alpha=self.scale)
        return out

    def recompute(self, x: Tensor, dtype: torch.dtype | None) -> Tensor:
        """The output once more for the backward pass, its large product in ``dtype``; ``None``: as in the forward pass.

        Args:
            x: ``(R, in)``, what the forward pass had or the codes of it give back.
            dtype: Narrower than that of ``x``, if any.
        """
        if dtype is None or dtype == x.dtype:
            return self(x)
        # x W^T in the narrow format; the low-rank update, few products, as in the forward pass.
        if self._narrow is None:  # Once for all chunks.
            self._narrow = self.weight.to(dtype), None if self.bias is None else self.bias.to(dtype)
        out = F.linear(x.to(dtype), *self._narrow).to(x.dtype)
        if self.a is not None and self.u is not None:
            out.addmm_(x @ self.a.t(), self.u.t(), alpha=self.scale)
        return out

    @property
    def reads_input(self) -> bool:
        """Whether a gradient needs the layer's input."""
        return self.needs[0] or self.needs[2] or self.needs[3]

    def add_gradients(self, grad: Tensor, x: Tensor | None, bias: Tensor | None = None) -> None:
        """Adds one chunk's share to dW, db, dA, dU (equations of the class), those that are asked for.

        Args:
            grad: Of the output, ``(R, out)``.
            x: The input, ``(R, in)``, where ``reads_input``.
            bias: db of the chunk, where a kernel has summed the columns of ``grad`` already.
        """
        weight_sum, bias_sum, a_sum, u_sum = self._sums
        # db = column sums of g, which needs no x.
        if bias_sum is not None:
            bias_sum += grad.sum(0, dtype=bias_sum.dtype) if bias is None else bias
        if x is None:
            return
        if weight_sum is not None:
            _add_product(weight_sum, grad, x, 1.0)
        # The update's factors: dA = s (g U)^T x and dU = s g^T (x A^T), each by its narrow product first.
        if a_sum is not None and self.u is not None:
            _add_product(a_sum, grad @ self.u, x, self.scale)
        if u_sum is not None and self.a is not None:
            _add_product(u_sum, grad, x @ self.a.t(), self.scale)

    def input_grad(self, grad: Tensor) -> Tensor:
        """Gradient of the input ``(R, in)`` for that of the output ``(R, out)``."""
        out = grad @ self.weight
        if self.a is not None and self.u is not None:
            out.addmm_(grad @ self.u, self.a, alpha=self.scale)
        return out

    def gradients(self) -> list[Tensor | None]:
        """The sums over all chunks: dW, db, dA, dU, each in the dtype of its tensor."""
        return [
            None if total is None else total.to(dtype) for total, dtype in zip(self._sums, self._dtypes, strict=True)
        ]


def fetch_weights(options: BranchOptions, tensors: tuple[Any, ...], device: torch.device, last_first: bool) -> Any:
    """A branch's tensors with copies of the weights that are paged, for one call, which lets them go at its end.

    Args:
        options: With the layers' pages.
        tensors: As for ``two_layers``.
        device: That computes.
        last_first: The order in which copies are made; a backward pass takes that of the forward pass backwards, so
            that the next copy can be foreseen.
    """
    found = list(tensors)
    layers = list(zip((2, 6), options.pages, strict=True))
    for i, page in reversed(layers) if last_first else layers:
        if page is not None:
            found[i] = page.fetch(tensors[i], device, options.dtype)
    return tuple(found)


def two_layers(options: BranchOptions, tensors: tuple[Any, ...], needs: Any) -> tuple[Layer, Layer]:
    """A branch's first and last linear layer.

    Args:
        options: Scales of their updates, and the dtype that products run in.
        tensors: Two of the norm, then W, b, A, U of both layers.
        needs: Whether each of these wants a gradient.
    """
    first = Layer(*tensors[2:6], scale=options.scales[0], needs=tuple(needs[2:6]))
    last = Layer(*tensors[6:10], scale=options.scales[1], needs=tuple(needs[6:10]))
    return first.to(options.dtype), last.to(options.dtype)


def _add_product(total: Tensor, grad: Tensor, x: Tensor, factor: float) -> None:
    """Total += factor * grad^T x."""
    # In one operation where the dtypes allow; halves are multiplied as halves and added in float32.
    if total.dtype == grad.dtype:
        total.addmm_(grad.t(), x, alpha=factor)
    else:
        total.add_(grad.t() @ x, alpha=factor)
