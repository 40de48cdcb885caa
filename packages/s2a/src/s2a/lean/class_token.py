"""The last block of a ViT whose head reads the class token alone: only that token's row is computed.

Exact. Keys and values still come from all tokens; the query, the projection, the MLP and everything behind belong to
one token of many, which saves most of a block in both passes:

    h = norm(x),   q = h_0 Wq^T,   [k v] = h Wkv^T,   p = softmax(scale q k^T)  (one row per head),   y_0 = (p v) W2^T

Kept: the codes of the normalised input of all tokens, as in ``attention``. dh has a contribution of every token through
k and v, and one more in row 0 through q.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from s2a.backbones import Pass, state_of
from s2a.lean.linear import Layer, fetch_weights, image_chunks
from s2a.lean.spec import BranchOptions, add_to, cast_like
from s2a.ops import custom_ops as ops
from s2a.ops.loops import alike
from s2a.ops.offload import load, save


class _ClassAttention(torch.autograd.Function):
    """The first token's row of proj(attention(qkv(norm(x)))): ``(B, N, C)`` to ``(B, 1, C)``."""

    @staticmethod
    def forward(ctx: Any, options: BranchOptions, x: Tensor, *tensors: Tensor | None) -> Tensor:
        query, others, last = _layers(options, fetch_weights(options, tensors, x.device, False), (False,) * 10)
        images, tokens, columns = x.shape
        out = torch.empty(images, 1, len(last.weight), dtype=options.dtype, device=x.device)
        kept: list[Tensor] = []
        parts = alike(list(image_chunks(images, tokens * len(others.weight))))
        for part in parts:
            # The norm of all tokens; k and v of all, q of the first.
            h, *codes = ops.norm_pack(x[part].reshape(-1, columns), *tensors[:2], options.eps, options.saved_bits.norm)
            kept += codes
            q, k, v = _project(query, others, h.to(options.dtype), tokens, options.heads)
            del h
            mixed = F.scaled_dot_product_attention(q, k, v, scale=options.scale)
            out[part] = last(mixed.transpose(1, 2).reshape(mixed.shape[0], -1)).unsqueeze(1)
        ctx.options, ctx.parts, ctx.input_like = options, parts, (x.shape, x.dtype)
        save(ctx, tensors, kept)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        options: BranchOptions = ctx.options
        saved = load(ctx)
        tensors, kept = saved[:10], list(saved[10:])
        needs = ctx.needs_input_grad[2:]
        norm_weight, norm_bias = tensors[:2]
        query, others, last = _layers(options, fetch_weights(options, tensors, grad.device, True), needs)
        tokens, columns = ctx.input_like[0][1:]
        out = torch.empty(ctx.input_like[0], dtype=ctx.input_like[1], device=grad.device)
        weight_sum = bias_sum = None
        for i, part in enumerate(ctx.parts):
            codes, numbers, rstd = kept[3 * i : 3 * i + 3]
            h = ops.norm_rebuild(
                codes, numbers, norm_weight, norm_bias, columns, options.saved_bits.norm, options.dtype
            )
            g = grad[part].reshape(-1, grad.shape[-1])
            # 1. q, k, v from h, which comes from its codes.
            q, k, v = _project(query, others, h, tokens, options.heads, options.recompute_dtype)
            # 2. Through the output projection and one row of attention.
            mixed, dq, dkv = _backward(q, k, v, last.input_grad(g), options.scale)
            del q, k, v
            # 3. Gradients of the weights, where they are asked for: of Wq from row 0 of h alone.
            last.add_gradients(g, mixed if last.reads_input else None)
            others.add_gradients(dkv, h if others.reads_input else None)
            first = h.view(-1, tokens, columns)[:, 0]
            query.add_gradients(dq, first if query.reads_input else None)
            # 4. dh = d[k v] Wkv for all tokens, + dq Wq in row 0; then through the norm.
            dh = others.input_grad(dkv)
            del dkv, h, first
            dh.view(-1, tokens, columns)[:, 0] += query.input_grad(dq)
            own = ops.norm_backward(
                dh, codes, numbers, rstd, norm_weight, options.saved_bits.norm, needs[0], out[part].view(-1, columns)
            )
            weight_sum, bias_sum = add_to(weight_sum, own[0], needs[0]), add_to(bias_sum, own[1], needs[1])
        norm = (cast_like(norm_weight, weight_sum), cast_like(norm_bias, bias_sum))
        moved = out if ctx.needs_input_grad[1] else None
        return None, moved, *norm, *_joined(query.gradients(), others.gradients()), *last.gradients()


def _layers(options: BranchOptions, tensors: tuple[Any, ...], needs: Any) -> tuple[Layer, Layer, Layer]:
    """The projection in two, queries apart from keys and values, and the last layer."""
    weight, bias, a, u = tensors[2:6]
    cut = len(weight) // 3
    halves = []
    for part in (slice(None, cut), slice(cut, None)):
        own = (weight[part], None if bias is None else bias[part], a, None if u is None else u[part])
        halves.append(Layer(*own, scale=options.scales[0], needs=tuple(needs[2:6])).to(options.dtype))
    last = Layer(*tensors[6:10], scale=options.scales[1], needs=tuple(needs[6:10]))
    return halves[0], halves[1], last.to(options.dtype)


def _joined(one: list[Tensor | None], other: list[Tensor | None]) -> list[Tensor | None]:
    """Gradients of the whole projection: rows of W, b, U one after the other, A's added."""
    joined: list[Tensor | None] = []
    for i, (a, b) in enumerate(zip(one, other, strict=True)):
        joined.append(None if a is None or b is None else a + b if i == 2 else torch.cat([a, b]))
    return joined


def _project(
    query: Layer, others: Layer, h: Tensor, tokens: int, heads: int, dtype: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Q ``(B, H, 1, d)`` of the first token; k and v ``(B, H, N, d)``, whose product runs in ``dtype``."""
    q = query(h.view(-1, tokens, h.shape[1])[:, 0])
    width = q.shape[1] // heads
    k, v = others.recompute(h, dtype).view(-1, tokens, 2, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    return q.view(-1, 1, heads, width).transpose(1, 2), k, v


def _backward(q: Tensor, k: Tensor, v: Tensor, grad: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Output row ``(B, C)``, and gradients of the query's rows ``(B, C)`` and of keys' and values' ``(B N, 2 C)``.

    One query's map is one row per head, small enough to be written out: dv = p^T dO, dp = dO v^T,
    ds = scale p * (dp - sum(dp * p)) (equation 7), dq = ds k, dk = ds^T q.
    """
    images, heads, tokens, width = k.shape
    attention = ((q @ k.transpose(-2, -1)) * scale).softmax(-1)
    mixed = (attention @ v).transpose(1, 2).reshape(images, -1)
    dout = grad.view(images, 1, heads, width).transpose(1, 2)
    dv = attention.transpose(-2, -1) @ dout
    moved = dout @ v.transpose(-2, -1)
    dscores = attention * (moved - (moved * attention).sum(-1, keepdim=True)) * scale
    dq = (dscores @ k).transpose(1, 2).reshape(images, -1)
    dk = dscores.transpose(-2, -1) @ q
    return mixed, dq, torch.stack([dk, dv]).permute(1, 3, 0, 2, 4).reshape(images * tokens, -1)


def class_attention(options: BranchOptions, x: Tensor, tensors: tuple[Tensor | None, ...]) -> Tensor:
    """Attention of a block on its norm's input, for the first token alone: ``(B, N, C)`` to ``(B, 1, C)``."""
    with torch.autocast(x.device.type, enabled=False):
        return _ClassAttention.apply(options, x, *tensors)  # type: ignore[no-any-return]


def reads_class_token_alone(model: Any, block: Any) -> bool:
    """Whether nothing reads more of the last block's output, in the pass that runs, than the head does."""
    asked = state_of(model)  # Of a pass for pooled features; whoever calls the block otherwise wants all tokens.
    if type(block) is not Block or not isinstance(asked, Pass):
        return False
    if getattr(model, "grad_checkpointing", False) or asked.in_a_region():
        return False  # A checkpointed block runs again when nobody asks for features any more.
    drops: tuple[Any, ...] = (block.attn.proj_drop, block.mlp.drop2)
    if any(drop.training and getattr(drop, "p", 0) > 0 for drop in drops):
        return False  # Masks of one token would draw other random numbers than those of all.
    behind: tuple[Any, ...] = (
        block.ls1,
        block.ls2,
        block.drop_path1,
        block.drop_path2,
        *drops,
        getattr(model, "norm", block.ls2),
    )
    return not (_watched(block) or any(_watched(m) or m._forward_pre_hooks for m in behind))


def _watched(module: nn.Module) -> bool:
    return bool(module._forward_hooks or module._backward_hooks or module._backward_pre_hooks)
