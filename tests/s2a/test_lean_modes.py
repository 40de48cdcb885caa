"""Lean activations under autocast, in bf16, checkpointed, compiled, and on several processes."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
from lean_models import assert_same, cosines, gradients, images_for, keep_all, pair
from s2a.testing import differences, snapshot
from torch import Tensor
from torch.utils.checkpoint import checkpoint

FAMILIES = [*lean_models.FUSED, "resnet"]


def under_autocast(model: Any, images: Tensor, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Gradients of a step whose forward pass and loss run under autocast, with the same random numbers each time."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype):
        loss = lean_models.loss_of(model(images))
    trainable = s2a.trainable_parameters(model)
    return dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True))


@pytest.mark.each_value
@pytest.mark.parametrize("method", ["s2a", "lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_autocast_is_as_near_as_exact_autocast_is(family: str, method: str) -> None:
    exact, lean = (model.train() for model in pair(family, method))
    keep_all(lean)
    images = images_for(family, 6)
    found, expected = under_autocast(lean, images), under_autocast(exact, images)
    assert all(found[n].dtype == p.dtype for n, p in s2a.trainable_parameters(lean).items())
    assert all(bool(grad.isfinite().all()) for grad in found.values())
    torch.manual_seed(1)
    true = gradients(exact, images)
    ours, theirs = cosines(found, true), cosines(expected, true)
    for group, cosine in ours.items():
        assert 1 - cosine <= 2 * (1 - theirs[group]) + 2e-3, group


def test_another_type_of_autocast_is_kept_for_the_backward_pass() -> None:
    """The side branch runs again in the backward pass: in the type that it ran in, not in autocast's default."""
    exact, lean = (model.eval() for model in pair("vit", "s2a"))
    images = images_for("vit")
    found, expected = (under_autocast(model, images, torch.float16) for model in (lean, exact))
    for group, cosine in cosines(found, expected).items():
        assert cosine > 0.97, group


@pytest.mark.each_value
@pytest.mark.parametrize("method", ["bias", "lora", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_in_bf16(family: str, method: str) -> None:
    exact, lean = (model.eval() for model in pair(family, method))
    images = images_for(family, 6)
    true = gradients(exact, images)
    exact, lean, images = exact.bfloat16(), lean.bfloat16(), images.bfloat16()
    found, expected = gradients(lean, images), gradients(exact, images)
    assert {grad.dtype for grad in found.values()} == {torch.bfloat16}
    ours, theirs = cosines(found, true), cosines(expected, true)
    for group, cosine in ours.items():
        assert 1 - cosine <= 2 * (1 - theirs[group]) + 0.02, group


def test_frozen_weights_in_bf16_under_trained_ones_in_full_precision() -> None:
    """What keeps a third of the memory: the frozen part in half precision, codes as before."""
    exact, lean = (model.eval() for model in pair("vit", "lora"))
    images = images_for("vit")
    true = gradients(exact, images)
    for parameter in lean.backbone.parameters():
        parameter.data = parameter.data.bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        loss = lean_models.loss_of(lean(images))
    trainable = s2a.trainable_parameters(lean)
    found = dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True))
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    assert min(cosines(found, true).values()) > 0.95


# Checkpointing


@pytest.mark.each_value
@pytest.mark.parametrize("method", ["s2a", "lora_two", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_blocks_give_the_same_gradients(family: str, method: str) -> None:
    """Timm's own checkpointing, block by block, with dropped paths drawn again."""
    if (family, method) not in lean_models.PAIRS:
        pytest.skip("no such layers")
    lean = pair(family, method, recompute="same")[1].train()
    images, found = images_for(family), []
    for enable in (False, True):
        lean.backbone.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        found.append(gradients(lean, images))
    assert_same(found[1], found[0], 1e-4)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_checkpointed_forward_pass_gives_the_same_gradients(family: str) -> None:
    lean = pair(family, "s2a")[1].train()
    images = images_for(family)
    torch.manual_seed(1)
    expected = gradients(lean, images)
    torch.manual_seed(1)
    found = gradients(lean, images, lambda x: checkpoint(lean, x, use_reentrant=False))
    assert_same(found, expected, 1e-4)


def test_checkpointing_keeps_block_inputs_alone() -> None:
    lean = pair("vit", "bias")[1].train()
    lean.backbone.set_grad_checkpointing(True)
    kept = s2a.saved_bytes(lean, images_for("vit", 3))
    assert not any(name.startswith("backbone.blocks.") and ".attn" in name for name in kept)


# Compiling


@pytest.mark.compile
@pytest.mark.parametrize(
    ("family", "method"), [("vit", "lora"), pytest.param("convnext_conv", "bias", marks=pytest.mark.full)]
)
def test_a_compiled_model_has_the_same_gradients(family: str, method: str) -> None:
    lean = pair(family, method)[1].eval()
    images = images_for(family)
    expected = gradients(lean, images)
    torch._dynamo.reset()
    try:
        compiled = torch.compile(lean, backend="aot_eager", fullgraph=True)
        assert_same(gradients(lean, images, compiled), expected, 1e-3)
    finally:
        torch._dynamo.reset()


@pytest.mark.compile
def test_a_changed_block_is_right_when_compiled() -> None:
    """A hook that came after ``attach`` and before compiling is no hook that compiling may forget."""
    exact, lean = (model.eval() for model in pair("vit", "bias"))
    keep_all(lean)
    for model in (exact, lean):
        model.backbone.blocks[0].attn.qkv.register_forward_hook(lambda module, args, out: out / 2)
    images = images_for("vit")
    expected = gradients(exact, images)
    torch._dynamo.reset()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert_same(gradients(lean, images, torch.compile(lean, backend="aot_eager")), expected, 1e-3)
    finally:
        torch._dynamo.reset()


# Sums over the stream


@pytest.mark.parametrize("family", ["vit", "swin"])
def test_recomputation_in_bf16_is_an_option_of_the_whole_model(family: str) -> None:
    """The same logits; gradients near; and a model in half precision computes again as it computed."""
    make_model, size = tiny.MODELS[family]
    configs = [s2a.S2AConfig(activations="lean", recompute=how) for how in ("same", "bf16")]
    model, images = make_model(), images_for(family)
    same, narrow = (s2a.attach(copy.deepcopy(model), config, 3, image_size=size).eval() for config in configs)
    narrow.load_state_dict(same.state_dict())
    assert torch.equal(same(images), narrow(images))
    near, found = gradients(same, images), gradients(narrow, images)
    assert any(not torch.equal(found[name], grad) for name, grad in near.items())
    for group, cosine in cosines(found, near).items():
        assert cosine > 0.99, group
    same, narrow, images = same.bfloat16(), narrow.bfloat16(), images.bfloat16()
    assert_same(gradients(same, images), gradients(narrow, images), 0)


READS_STREAM = [("vit", "adaptformer"), ("swin", "adaptformer"), ("convnext", "full"), ("convnext_conv", "full")]
"""Whose backward pass reads a block's input: AdaptFormer's bottleneck, a depthwise convolution that trains."""


@pytest.mark.parametrize(("family", "method"), [("vit", "s2a"), ("vit", "vpt"), ("swin", "s2a"), ("convnext", "bias")])
def test_sums_over_the_stream_change_no_gradient(family: str, method: str) -> None:
    make_model, size = tiny.MODELS[family]
    name, own = lean_models.METHODS[method]
    model, images = make_model(), torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(2))
    configs = (s2a.method_config(name, **own, activations="lean", in_place=it) for it in (False, True))
    new, over = (s2a.attach(copy.deepcopy(model), config, 3, image_size=size) for config in configs)
    over.load_state_dict(new.state_dict())
    torch.manual_seed(0)  # Paths are dropped.
    found = gradients(over.train(), images)
    torch.manual_seed(0)
    assert_same(found, gradients(new.train(), images), 0)


@pytest.mark.parametrize(("family", "method"), READS_STREAM)
def test_a_stream_that_is_read_again_is_not_written_over(family: str, method: str) -> None:
    make_model, size = tiny.MODELS[family]
    name, own = lean_models.METHODS[method]
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.S2AError, match="in_place=True writes over the residual stream"):
        s2a.attach(model, s2a.method_config(name, **own, activations="lean", in_place=True), 3, image_size=size)
    assert not differences(before, snapshot(model))
