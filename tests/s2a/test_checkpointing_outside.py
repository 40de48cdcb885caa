"""Gradient checkpointing that others put on an adapted model: the same gradients, or a sentence."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import tiny
import torch
from lean_models import assert_same, loss_of
from pass_models import adapted_model
from s2a.backbones import describe
from test_selection import split_rings
from torch import Tensor
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import (
    CheckpointImpl,
    apply_activation_checkpointing,
    checkpoint_wrapper,
)
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts


def gradients(adapted: Any, images: Tensor) -> dict[str, Tensor]:
    """By ``backward``: reentrant checkpoints take no other way. Without the names that wrappers add."""
    adapted.zero_grad()
    loss_of(adapted(images)).backward()
    trainable = s2a.trainable_parameters(adapted)
    return {n.replace("_checkpoint_wrapped_module.", ""): p.grad for n, p in trainable.items() if p.grad is not None}


def blocks_of(family: str, adapted: Any) -> list[Any]:
    return [adapted.backbone.get_submodule(b.name) for b in describe(tiny.MODELS[family][0]()).blocks]


def wrapped(family: str, adapted: Any, how: CheckpointImpl) -> None:
    """As Lightning and FSDP policies do."""
    blocks = set(map(id, blocks_of(family, adapted)))
    wrap = functools.partial(checkpoint_wrapper, checkpoint_impl=how)
    apply_activation_checkpointing(adapted, checkpoint_wrapper_fn=wrap, check_fn=lambda m: id(m) in blocks)


def patched(family: str, adapted: Any, **options: Any) -> None:
    """``forward`` alone: the blocks' hooks stay outside."""
    for block in blocks_of(family, adapted):
        block.forward = functools.partial(checkpoint, block.forward, **options)


def _products(ctx: Any, op: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    own = op in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default)
    return CheckpointPolicy.MUST_SAVE if own else CheckpointPolicy.PREFER_RECOMPUTE


_SELECTIVE = functools.partial(create_selective_checkpoint_contexts, _products)
WAYS: dict[str, Callable[[str, Any], None]] = {
    "wrapped": functools.partial(wrapped, how=CheckpointImpl.NO_REENTRANT),
    "wrapped, reentrant": functools.partial(wrapped, how=CheckpointImpl.REENTRANT),
    "patched": functools.partial(patched, use_reentrant=False),
    "patched, reentrant": functools.partial(patched, use_reentrant=True),
    "selective": functools.partial(patched, use_reentrant=False, context_fn=_SELECTIVE),
}
PAIRS = [(f, "s2a", m) for f in ("vit", "swin", "convnext", "resnet") for m in ("exact", "paper", "lean")]
PAIRS += [("vit", n, m) for n in ("bias", "lora", "adapter", "adaptformer", "vpt", "ssf") for m in ("exact", "lean")]
FAST = [("vit", "s2a", "lean"), ("swin", "s2a", "lean"), ("convnext", "s2a", "lean"), ("vit", "lora", "exact")]


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("family", "method", "mode"), split_rings(PAIRS, fast=FAST))
def test_gradients_are_the_plain_ones(family: str, method: str, mode: str, way: str) -> None:
    adapted, images = adapted_model(family, method, mode)
    adapted.train()
    torch.manual_seed(1)
    expected = copy.deepcopy(gradients(adapted, images))
    other = copy.deepcopy(adapted)
    WAYS[way](family, other)
    torch.manual_seed(1)
    try:
        found = gradients(other, images)
    except s2a.S2AError as error:
        assert "reentrant" in way
        assert "use_reentrant=False" in str(error)
        return
    # Under a selective checkpoint lean branches run layer by layer, which rounds otherwise.
    assert_same(found, expected, 0.2 if way == "selective" and mode == "lean" else 1e-5)


@pytest.mark.parametrize("way", ["wrapped", "patched", "patched, reentrant"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_a_checkpointed_input_is_not_written_over(family: str, way: str) -> None:
    """``in_place``: the second run of a block starts from the input that the first one had."""
    make_model, size = tiny.MODELS[family]
    adapted = s2a.attach(make_model(), s2a.S2AConfig(activations="lean", in_place=True), 5, image_size=size)
    images = torch.randn(3, 3, size, size)
    expected = copy.deepcopy(gradients(adapted.eval(), images))
    other = copy.deepcopy(adapted)
    WAYS[way](family, other)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = gradients(other, images)
    assert_same(found, expected, 1e-5)


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_a_checkpointed_container_stays_one(family: str) -> None:
    """Lean activations call a stage's blocks one by one, but not around a checkpoint of the whole stage."""
    adapted, images = adapted_model(family, "bias", "lean")
    name = {"vit": "blocks", "swin": "layers.0", "convnext": "stages.0"}[family]
    container, other = adapted.backbone.get_submodule(name), copy.deepcopy(adapted)
    apply_activation_checkpointing(other, check_fn=lambda m: type(m) is type(container))
    kept = s2a.saved_bytes(other, images)
    assert not any(path.startswith(f"backbone.{name}.") for path in kept)  # The stage's input alone is kept.
    assert_same(gradients(other, images), copy.deepcopy(gradients(adapted, images)), 1e-5)
