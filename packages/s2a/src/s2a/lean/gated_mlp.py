"""MLPs with a gate (SwiGLU, https://arxiv.org/abs/2002.05202) that keep codes of their input and run again.

For h = norm(x) and y = (act(h Wg^T + bg) * (h Wx^T + bx)) W2^T + b2 autograd keeps both factors of the product and the
activation's input, 12 columns for one of h where the width is four times as large. The codes of h alone, in 8 bits,
give all of them back (``again.block_again``, in chunks of images), exactly computed from h'.
"""

from __future__ import annotations

import functools
from typing import Any

from timm.layers.mlp import GluMlp, SwiGLU
from torch import Tensor, nn

from s2a.activations.quantize import ACTIVATIONS
from s2a.lean.again import block_again, can_run_again
from s2a.lean.registry import register_lean_forward
from s2a.ops.keeping import in_selective_checkpoint, keeps_for_backward


def _gated(self: Any, x: Tensor) -> Tensor:
    """The module's forward, with the activation as it is: codes of its derivative would be kept in its place."""
    if isinstance(self, SwiGLU):
        gate, x = self.fc1_g(x), self.fc1_x(x)
    else:
        first, second = self.fc1(x).chunk(2, dim=-1)
        gate, x = (second, first) if self.gate_last else (first, second)
    x = ACTIVATIONS[type(self.act)][1](self.act, gate) * x
    return self.drop2(self.fc2(self.norm(self.drop1(x))))  # type: ignore[no-any-return]


@register_lean_forward(GluMlp, SwiGLU)
def gated_mlp_forward(self: Any, x: Tensor) -> Tensor:
    """A gated MLP on tokens ``(B, ..., C)`` that keeps the codes of its input, where a gradient is asked for."""
    wanted = x.requires_grad or any(p.requires_grad for p in self.parameters())
    plain = x.dim() > 2 and len(x) > 0 and getattr(self, "chunk_dim", -1) == -1 and type(self.act) in ACTIVATIONS
    watched = any(hooks for hooks in (self.act._forward_hooks, self.act._forward_pre_hooks))
    if not (wanted and plain) or watched or not keeps_for_backward() or in_selective_checkpoint():
        return type(self).forward(self, x)
    if not can_run_again(self):
        return type(self).forward(self, x)
    layers = [layer for layer in self.children() if isinstance(layer, nn.Linear)]
    width = sum(len(layer.weight) for layer in layers[:-1])
    return block_again(functools.partial(_gated, self), x, self.s2a_lean_bits, width)
