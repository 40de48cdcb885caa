"""The paper's theoretical training memory, by named rules, from the model's own modules.

The paper prints no formula; these rules follow its text and reproduce its tables. MB are 1e6 bytes, fp32.

R0   weights of everything, added modules and head included; no buffers, gradients or optimiser state, nor weights
     that lie in host memory (``s2a.page_frozen``).
R1   the input of every linear, convolution and normalisation layer whose weight trains.
R2   the input of every activation function.
R3   the output of every softmax.
R4   R2 and R3 in ``bits`` bits where they are quantised. Lean attention keeps no softmax at all.
R5   no gradient cut-off: R2 and R3 count in the whole backbone, unless it runs without gradient altogether.
R8   tokens that a method appends (VPT) count in attention, not in the MLP.
R9   UniPT's rows can only be reached by counting R2 in a backbone that runs without gradient, where nothing is kept.
     It has a line of its own, so that the honest figure is the total without it.
R10  the final norm belongs to the head: its input counts, at the positions that the head reads.

Nothing is counted for biases, prompts, pooling, layer scale, q, k, v and frozen normalisation layers: that is the
paper's formula, and why the measured figure of its recipe is larger.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from s2a.activations.quantize import ACTIVATIONS
from s2a.adapted import Adapted, require_adapted
from s2a.backbones import evaluating, family_of, input_channels, reads_class_token
from s2a.paging import paged_weights

_PARAMETRIC = (nn.Linear, _ConvNd, nn.LayerNorm, nn.GroupNorm, _BatchNorm)


@dataclasses.dataclass(frozen=True)
class Theory:
    """Theoretical memory of one training step, in bytes.

    Attributes:
        weights: Rule R0.
        rules: Rule name -> bytes, R0 left out.
    """

    weights: int
    rules: dict[str, int]

    @property
    def total(self) -> int:
        """Weights and kept activations."""
        return self.weights + sum(self.rules.values())

    @property
    def honest(self) -> int:
        """The total without rule R9, which counts what no backward pass reads."""
        return self.total - self.rules.get("R9", 0)


def theoretical_memory(adapted: Adapted, batch_size: int = 32) -> Theory:
    """The paper's memory figure of an adapted model.

    Args:
        adapted: What ``s2a.attach`` returned.
        batch_size: Images per step.

    Raises:
        S2AError: No adapted model.
    """
    adapted = require_adapted("theoretical_memory", adapted)
    kept: Counter[str] = Counter()  # bits for one image
    backbone = {id(m) for m in adapted.backbone.modules()}
    final_norm = _final_norm(adapted.backbone)
    handles = []

    # One forward pass of one image; every module's hook adds the bits that its rule counts.
    def count(module: Any, args: tuple[Any, ...], output: Any) -> None:
        size = args[0].numel()
        inside = id(module) in backbone
        if module is final_norm:
            kept["R10"] += 32 * (args[0].shape[-1] if reads_class_token(adapted.backbone) else size)
        elif isinstance(module, _PARAMETRIC):
            if module.weight is not None and module.weight.requires_grad:
                kept["R1"] += 32 * size
        # R5: a backbone without gradient keeps nothing, but for R9's figure.
        elif inside and not adapted.method.trains_backbone:
            if type(module) in ACTIVATIONS and "R9" in adapted.method.paper_rules:
                kept["R9"] += 32 * size
        else:
            # R2 and R3, in the bits of ``quantize_activations`` where that was there (R4).
            bits = module.__dict__.get("s2a_bits", 32)
            if type(module) in ACTIVATIONS:
                rule, elements = "R2", size
                if inside and "R8" in adapted.method.paper_rules:
                    elements -= adapted.method.appended_tokens * args[0].shape[-1]
            elif "s2a_qkv_bits" in module.__dict__:
                return
            else:
                rule, elements = "R3", _attention_map(module, args[0])
            kept[rule if bits == 32 else f"{rule} in {bits} bits (R4)"] += bits * elements

    for module in adapted.modules():
        if isinstance(module, _PARAMETRIC) or type(module) in ACTIVATIONS or _is_attention(module):
            handles.append(module.register_forward_hook(count))
    reference = next(adapted.parameters())
    shape = (1, input_channels(adapted.backbone), *adapted.image_size)
    try:
        with evaluating(adapted):
            adapted(torch.zeros(shape, device=reference.device, dtype=reference.dtype))
    finally:
        for handle in handles:
            handle.remove()
    weights = 4 * (sum(p.numel() for p in adapted.parameters()) - sum(p.numel() for p in paged_weights(adapted)))
    return Theory(weights, {rule: bits * batch_size // 8 for rule, bits in sorted(kept.items()) if bits})


def _is_attention(module: nn.Module) -> bool:
    return "fused_attn" in module.__dict__ and hasattr(module, "num_heads")


def _attention_map(module: Any, x: torch.Tensor) -> int:
    """Elements of the softmax output of an attention module on ``x`` ``(B, N, C)``."""
    queries = getattr(module, "latent_len", x.shape[1])  # Attention pooling has few of them.
    return x.shape[0] * module.num_heads * queries * x.shape[1]


def _final_norm(model: nn.Module) -> nn.Module | None:
    name = family_of(model).final_norm
    return model.get_submodule(name) if name else None
