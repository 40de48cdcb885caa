"""Attention and batch norms that keep codes on their own, in any model, outside of fused branches."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from s2a.activations.frozen import fixed_batch_norm
from s2a.lean.norm import batch_norm
from s2a.lean.registry import register_lean_forward
from s2a.ops import custom_ops as ops
from s2a.ops.keeping import keeps_for_backward
from s2a.ops.offload import load, save


class _CodedAttention(torch.autograd.Function):
    """Attention that keeps q, k and v as codes, a row for each head's token; the backward pass recomputes the rest."""

    @staticmethod
    def forward(ctx: Any, bits: int, mask: Tensor | None, options: dict[str, Any], *qkv: Tensor) -> Tensor:
        kept: list[Tensor] = []
        for tensor in qkv:
            kept += ops.rows_pack(tensor.reshape(-1, tensor.shape[-1]), bits)
        ctx.bits, ctx.options = bits, options
        ctx.input_like = [(tensor.shape, tensor.dtype) for tensor in qkv]
        save(ctx, (mask,), kept)
        return F.scaled_dot_product_attention(*qkv, attn_mask=mask, **options)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        mask, *kept = load(ctx)
        with torch.enable_grad():
            # q', k', v' from their codes, then attention once more, differentiated by autograd.
            qkv = []
            for i, (shape, dtype) in enumerate(ctx.input_like):
                rows = ops.rows_unpack(kept[2 * i], kept[2 * i + 1], shape[-1], ctx.bits, dtype)
                qkv.append(rows.view(shape).requires_grad_())
            added = None if mask is None else mask.detach().requires_grad_(ctx.needs_input_grad[1])
            out = F.scaled_dot_product_attention(*qkv, attn_mask=added, **ctx.options)
            wanted = [*qkv, added] if ctx.needs_input_grad[1] else qkv
            found = torch.autograd.grad(out, wanted, grad)
        return None, found[3] if len(found) > 3 else None, None, *found[:3]


class LeanAttentionMode(TorchFunctionMode):
    """Inside it, ``scaled_dot_product_attention`` keeps codes of q, k and v."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Swaps the one function, passes the rest on."""
        if func is F.scaled_dot_product_attention:
            return coded_attention(self.bits, *args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def coded_attention(
    bits: int,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """``scaled_dot_product_attention`` that keeps q, k, v in ``bits`` bits; with dropout it is the stock one."""
    options: dict[str, Any] = {"is_causal": is_causal, "scale": scale}
    if enable_gqa:
        options["enable_gqa"] = True
    qkv, device = [query, key, value], query.device.type
    wanted = any(t is not None and t.requires_grad for t in (*qkv, attn_mask))
    if dropout_p > 0 or not wanted or not keeps_for_backward() or torch.compiler.is_compiling():
        return F.scaled_dot_product_attention(*qkv, attn_mask=attn_mask, dropout_p=dropout_p, **options)
    if torch.is_autocast_enabled(device):
        dtype = torch.get_autocast_dtype(device)
        qkv = [t.to(dtype) for t in qkv]
        attn_mask = attn_mask.to(dtype) if attn_mask is not None and attn_mask.is_floating_point() else attn_mask
    with torch.autocast(device, enabled=False):
        return _CodedAttention.apply(bits, attn_mask, options, *qkv)  # type: ignore[no-any-return]


def attention_forward(self: Any, *args: Any, **kwargs: Any) -> Tensor:
    """The forward of a timm attention module whose ``scaled_dot_product_attention`` keeps codes."""
    with LeanAttentionMode(self.s2a_qkv_bits):
        return type(self).forward(self, *args, **kwargs)


@register_lean_forward(nn.BatchNorm2d)
def batch_norm_forward(self: Any, x: Tensor) -> Tensor:
    """A batch norm that keeps codes in training mode, and one number per channel with fixed statistics."""
    trains = x.requires_grad or any(p.requires_grad for p in self.parameters())
    if self.training and trains and keeps_for_backward() and not torch.compiler.is_compiling():
        return batch_norm(self, x, self.s2a_lean_bits)
    return fixed_batch_norm(self, x)
