"""Quantised activations under methods that know nothing of them: LoRA and Adapter."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import s2a
import tiny
import torch
import torch.nn.functional as F
from s2a.backbones.view import describe
from s2a.ops.pack import packed_bytes
from s2a.ops.pointwise import LEVEL_KINDS
from torch import Tensor, nn

BATCH = 2
METHODS = {"lora": {"convnext": {"targets": ("fc1", "fc2")}}, "adapter": {}}

pytestmark = [
    pytest.mark.parametrize("method", METHODS),
    pytest.mark.parametrize("name", ["vit", "swin", "convnext"]),
]


def adapted_model(name: str, method: str) -> tuple[Any, Tensor]:
    """A tiny model under a method with every trainable value away from its start, and images."""
    make_model, size = tiny.MODELS[name]
    config = s2a.method_config(method, **METHODS[method].get(name, {}))
    adapted = s2a.attach(make_model(), config, tiny.CLASSES, image_size=size).eval()
    for parameter in s2a.trainable_parameters(adapted).values():
        nn.init.normal_(parameter, std=0.1)
    return adapted, torch.randn(BATCH, 3, size, size)


def gradients(adapted: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Gradients of the method's own parameters; the head's do not pass through a quantised layer."""
    adapted.zero_grad()
    F.cross_entropy(adapted(images), torch.arange(len(images))).backward()
    trainable = s2a.trainable_parameters(adapted).items()
    return {n: p.grad.clone() for n, p in trainable if p.grad is not None and n.startswith("method.")}


@pytest.mark.parametrize("bits", [2, 4])
def test_the_forward_pass_is_that_of_unfused_attention(name: str, method: str, bits: int) -> None:
    adapted, images = adapted_model(name, method)
    stock = copy.deepcopy(adapted)
    for module in stock.modules():
        if hasattr(module, "fused_attn"):
            module.fused_attn = False
    s2a.quantize_activations(adapted, bits)
    assert torch.equal(adapted(images), stock(images))


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_bytes_are_those_of_the_codes_and_nothing_else_changes(name: str, method: str, bits: int) -> None:
    """Four bytes of every activation's input become a code; of an attention map, a code, and two bytes of each row."""
    adapted, images = adapted_model(name, method)
    before = s2a.saved_bytes(adapted, images)
    expected = {n: size for n, size in before.items() if not n.endswith("attn.softmax")}
    for n, size in before.items():
        if n.endswith(".act"):
            expected[n] = packed_bytes(size // 4, bits)
    for block in describe(adapted.backbone, images.shape[-1]).blocks:
        attention = f"backbone.{block.name}.attn"
        if attention in before:
            tokens = BATCH * block.tokens
            rows = tokens * adapted.get_submodule(attention).num_heads
            width = math.prod(block.window) if block.window else block.tokens
            expected[attention] = 4 * tokens * 3 * block.channels + packed_bytes(rows * width, bits) + 2 * rows
    s2a.quantize_activations(adapted, bits)
    after = s2a.saved_bytes(adapted, images)
    assert after == expected
    acts = [n for n in before if n.endswith(".act")]
    assert len(acts) >= 2
    assert after.total < before.total


@pytest.mark.parametrize("levels", LEVEL_KINDS)
def test_eight_bits_are_near_the_exact_gradient(name: str, method: str, levels: str) -> None:
    """Cosine above 0.9999 with fitted levels, above 0.99 with equation 12's, which is off by up to 0.09 itself."""
    adapted, images = adapted_model(name, method)
    exact = gradients(adapted, images)
    s2a.quantize_activations(adapted, 8, levels)
    found = gradients(adapted, images)
    assert found.keys() == exact.keys()
    one, other = (torch.cat([g[n].flatten().double() for n in exact]) for g in (found, exact))
    assert float(F.cosine_similarity(one, other, dim=0)) > (0.9999 if levels == "derivative" else 0.99)
    assert not torch.equal(one, other)


def test_undoing_restores_gradients_and_bytes(name: str, method: str) -> None:
    adapted, images = adapted_model(name, method)
    expected, kept = gradients(adapted, images), s2a.saved_bytes(adapted, images)
    edits = s2a.quantize_activations(adapted, 2)
    assert s2a.saved_bytes(adapted, images) != kept
    edits.undo()
    found = gradients(adapted, images)
    assert all(torch.equal(found[n], grad) for n, grad in expected.items())
    assert s2a.saved_bytes(adapted, images) == kept
