"""Swaps what a model's non-parametric layers keep for the backward pass, in place and undoable.

Works on any model and under any method: activations are found by module type, attention by timm's ``fused_attn``
switch, and what a model calls as a function, activation or ``scaled_dot_product_attention``, while it runs. What stays
exact: ``nn.MultiheadAttention`` and softmax called as a function, whose map the product with V keeps anyway.
"""

from __future__ import annotations

import functools
from typing import Any

import timm.layers
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2a.activations.attention import QuantizedAttentionMode, quantized_softmax
from s2a.activations.frozen import fixed_batch_norm, frozen_conv2d
from s2a.backbones import Edits
from s2a.errors import S2AError
from s2a.ops.pack import BITS
from s2a.ops.pointwise import LEVEL_KINDS, activation_code, coded

ACTIVATIONS: dict[type[nn.Module], tuple[str, Any]] = {
    nn.GELU: ("gelu", lambda m, x: F.gelu(x, approximate=m.approximate)),
    timm.layers.GELU: ("gelu", lambda m, x: F.gelu(x)),
    timm.layers.GELUTanh: ("gelu", lambda m, x: F.gelu(x, approximate="tanh")),
    timm.layers.QuickGELU: ("quick_gelu", lambda m, x: x * (1.702 * x).sigmoid()),
    nn.SiLU: ("silu", lambda m, x: F.silu(x)),
    timm.layers.Swish: ("silu", lambda m, x: x * x.sigmoid()),
    nn.Hardswish: ("hardswish", lambda m, x: F.hardswish(x)),
    timm.layers.HardSwish: ("hardswish", lambda m, x: x * F.relu6(x + 3.0).div_(6.0)),
    nn.ReLU: ("relu", lambda m, x: F.relu(x)),
    nn.ReLU6: ("relu6", lambda m, x: F.relu6(x)),
    nn.LeakyReLU: ("leaky_relu", lambda m, x: F.leaky_relu(x, m.negative_slope)),
}
"""Activation module -> name of its code, and its exact forward."""

_FUNCTIONS: dict[Any, str] = {F.gelu: "gelu", F.silu: "silu", F.hardswish: "hardswish", F.relu6: "relu6"}
_FUNCTIONS |= dict.fromkeys((F.relu, torch.relu, Tensor.relu), "relu")
"""Activation called as a function -> name of its code."""


class QuantizedFunctions(QuantizedAttentionMode):
    """Inside it, activations called as functions keep codes, and ``scaled_dot_product_attention`` as in the base."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Swaps the known functions, in-place calls apart; passes the rest on."""
        name = _FUNCTIONS.get(func)
        if name is None or len(args) != 1 or (kwargs or {}).get("inplace"):
            return super().__torch_function__(func, types, args, kwargs)
        code = activation_code(name, self.bits, self.levels)
        return coded(args[0], functools.partial(func, **(kwargs or {})), code)


def _activation_forward(self: Any, x: Tensor) -> Tensor:
    return coded(x, self.s2a_function, self.s2a_code)


def _attention_forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
    with QuantizedAttentionMode(self.s2a_bits, self.s2a_levels):
        return type(self).forward(self, *args, **kwargs)


def _model_forward(self: Any, *args: Any, **kwargs: Any) -> Any:
    with QuantizedFunctions(self.s2a_bits, self.s2a_levels):
        return type(self).forward(self, *args, **kwargs)


def _softmax_forward(self: Any, x: Tensor) -> Tensor:
    implicit = 0 if x.dim() in (0, 1, 3) else 1  # PyTorch's own choice for ``nn.Softmax()``.
    return quantized_softmax(x, self.s2a_bits, implicit if self.dim is None else self.dim, self.s2a_levels)


def _conv_forward(self: Any, x: Tensor) -> Tensor:
    return frozen_conv2d(self, x)


def _batch_norm_forward(self: Any, x: Tensor) -> Tensor:
    return fixed_batch_norm(self, x)


_RELEASED: dict[type[nn.Module], Any] = {nn.Conv2d: _conv_forward, nn.BatchNorm2d: _batch_norm_forward}


class _Exact:
    """An activation's stock function, bound to its module's settings; plain data for copies and pickles."""

    def __init__(self, module: nn.Module) -> None:
        self.kind = type(module)
        self.approximate = getattr(module, "approximate", "none")
        self.negative_slope = getattr(module, "negative_slope", 0.01)

    def __call__(self, x: Tensor) -> Tensor:
        return ACTIVATIONS[self.kind][1](self, x)


def release_frozen_inputs(model: nn.Module, edits: Edits) -> None:
    """Lets convolutions, and batch norms in evaluation mode, keep nothing of their input while their weight is frozen.

    Exact. In training mode a batch norm's statistics depend on its input, which it keeps.
    """
    for module in model.modules():
        forward = _RELEASED.get(type(module))
        if forward is not None and "forward" not in module.__dict__:
            edits.override(module, "forward", forward)


def quantize_activations(
    model: nn.Module, bits: int = 4, levels: str = "derivative", *, softmax: bool = True, edits: Edits | None = None
) -> Edits:
    """Keeps activation inputs and attention maps of ``model`` in ``bits`` bits (paper section 3.2), in place.

    The forward pass does not change, but that attention runs unfused (bit-identical to timm's own unfused path).

    Args:
        model: Any module; what trains in it does not matter.
        bits: 1, 2, 3, 4 or 8. ReLU, ReLU6 and LeakyReLU take 1 bit and stay exact.
        levels: ``"derivative"``: cells fitted to the activation's derivative; of attention rows the largest value, the
            others at squares of a uniform grid. ``"paper"``: equation 12 on a uniform grid over [-2, 2], and uniform
            attention levels.
        softmax: Also attention maps and ``nn.Softmax``; codes and one or two numbers for each row.
        edits: Log to add the edits to; ``None`` starts one, and covers what ``model`` calls as functions too.

    Returns:
        The log: ``.undo()`` takes everything back.

    Raises:
        S2AError: Bits or levels that do not exist, or a model that is quantised already.
    """
    if type(bits) is not int or bits not in BITS:
        raise S2AError(f"bits={bits!r} must be one of {', '.join(map(str, BITS))}.")
    if levels not in LEVEL_KINDS:
        raise S2AError(f"levels={levels!r} is unknown; choose one of {', '.join(map(repr, LEVEL_KINDS))}.")
    if any("s2a_bits" in m.__dict__ for m in model.modules()):
        raise S2AError("The model's activations are quantised already; undo the earlier edits first.")
    alone, edits = edits is None, edits or Edits()
    for module in model.modules():
        kind = type(module)
        if kind in ACTIVATIONS:
            code = activation_code(ACTIVATIONS[kind][0], bits, levels, getattr(module, "negative_slope", 0.01))
            edits.override(module, "s2a_bits", code.bits)
            edits.override(module, "s2a_code", code)
            edits.override(module, "s2a_function", _Exact(module))
            edits.override(module, "forward", _activation_forward)
        elif softmax and "fused_attn" in module.__dict__:
            edits.override(module, "s2a_bits", bits)
            edits.override(module, "s2a_levels", levels)
            edits.override(module, "fused_attn", True)
            edits.override(module, "forward", _attention_forward)
        elif softmax and kind is nn.Softmax:
            edits.override(module, "s2a_bits", bits)
            edits.override(module, "s2a_levels", levels)
            edits.override(module, "forward", _softmax_forward)
    if alone and softmax and "s2a_bits" not in model.__dict__:
        edits.override(model, "s2a_bits", bits)
        edits.override(model, "s2a_levels", levels)
        edits.override(model, "forward", _model_forward)
    return edits
