"""Whole models with lean activations: the same function, less kept, everything that can be done to a model can be."""

from __future__ import annotations

import copy
import io
from pathlib import Path
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
from lean_models import assert_same, gradients, images_for, keep_all, pair
from s2a import testing
from s2a.backbones.view import pooled_features
from s2a.lean import SavedBits
from s2a.lean import linear as layers
from test_selection import split_rings
from torch import Tensor

FEW = [(family, "s2a") for family in tiny.MODELS] + [("vit", m) for m in lean_models.METHODS if m != "s2a"]
"""Every family, and every method."""

SLOW = (testing.check_learning, testing.check_compile)
"""Checks that other tests here do in less time."""


@pytest.mark.parametrize(("family", "method"), split_rings(lean_models.PAIRS, fast=lean_models.CORE))
def test_the_same_logits_from_less_memory(family: str, method: str) -> None:
    exact, lean = (model.train() for model in pair(family, method))
    images, found = images_for(family), []
    for model in (exact, lean):
        torch.manual_seed(1)
        found.append(model(images))
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)
    assert s2a.saved_bytes(lean, images).total < s2a.saved_bytes(exact, images).total
    with torch.no_grad():
        assert not s2a.saved_bytes(lean, images)
        lean.load_state_dict(exact.state_dict())  # Batch statistics moved once more.
        torch.testing.assert_close(lean.eval()(images), exact.eval()(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("family", "method"), FEW)
def test_training_reduces_the_loss(family: str, method: str) -> None:
    lean = pair(family, method)[1].train()
    images = images_for(family, 5)
    optimizer = torch.optim.AdamW(s2a.trainable_parameters(lean).values(), lr=4e-3, weight_decay=0.0)
    losses = []
    for _ in range(10):
        loss = lean_models.loss_of(lean(images))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize(("family", "method"), FEW)
def test_detaching_restores_every_bit(family: str, method: str) -> None:
    make_model, size = tiny.MODELS[family]
    name, options = lean_models.METHODS[method]
    model = make_model()
    before = testing.snapshot(model)
    for training in (False, True):
        adapted = s2a.attach(
            model, s2a.method_config(name, **options, activations="lean"), tiny.CLASSES, image_size=size
        )
        if training:
            optimizer = torch.optim.SGD(s2a.trainable_parameters(adapted).values(), lr=0.1)
            lean_models.loss_of(adapted(images_for(family))).backward()
            optimizer.step()
        s2a.detach(adapted)
        assert not testing.differences(before, testing.snapshot(model))


@pytest.mark.parametrize(("family", "method"), FEW)
def test_copies_are_the_same_and_independent(family: str, method: str, tmp_path: Path) -> None:
    """Deep copies and pickles have the same bits and gradients; what one does, the other's branches do not see."""
    lean = pair(family, method)[1].eval()
    for branch in lean._branches:
        branch.saved_bits = SavedBits(8, 0)
    images = images_for(family)
    expected = gradients(lean, images)
    stream = io.BytesIO()
    torch.save(lean, stream)
    stream.seek(0)
    for other in (copy.deepcopy(lean), torch.load(stream, weights_only=False)):
        assert [b.saved_bits for b in other._branches] == [b.saved_bits for b in lean._branches]
        assert not {id(m) for m in other.modules()} & {
            id(m) for b in lean._branches for m in (b.norm, b.body, b.block_module)
        }
        for name, grad in gradients(other, images).items():
            assert torch.equal(grad, expected[name]), name
        with torch.no_grad():
            assert torch.equal(other(images), lean(images))
        kept = s2a.saved_bytes(other, images).total
        s2a.detach(other)
        assert s2a.saved_bytes(lean, images).total == kept
    s2a.save(lean, tmp_path / "state.safetensors")
    frozen = copy.deepcopy(s2a.detach(copy.deepcopy(lean)))
    loaded = s2a.load(frozen, tmp_path / "state.safetensors").eval()
    assert loaded.config == lean.config
    with torch.no_grad():
        assert torch.equal(loaded(images), lean(images))


@pytest.mark.parametrize("method", ["bias", "lora_two", "full", "ssf"])
def test_merging_gives_the_plain_model(method: str) -> None:
    lean = pair("vit", method)[1].eval()
    merged: Any = s2a.merge(lean).eval()
    assert not any("s2a_branch" in m.__dict__ or "forward" in m.__dict__ for m in merged.modules())
    images = images_for("vit")
    with torch.no_grad():
        torch.testing.assert_close(merged(images), lean(images), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("check", [check for check in testing.CHECKS if check not in SLOW])
@pytest.mark.parametrize(("family", "method"), [("vit", "lora"), ("convnext", "s2a")])
def test_every_promise_of_a_method_holds(family: str, method: str, check: Any) -> None:
    make_model, size = tiny.MODELS[family]
    config = s2a.method_config(method, activations="lean")
    check(testing.Case(config, make_model(), tiny.CLASSES, torch.randn(4, 3, size, size)))


# The class token's row


def spied(lean: Any) -> list[tuple[int, ...]]:
    """Shapes that the last block's dropped-path module gets, seen without a hook."""
    shapes: list[tuple[int, ...]] = []
    module = lean.backbone.blocks[-1].drop_path2
    stock = module.forward

    def forward(x: Tensor) -> Tensor:
        shapes.append(tuple(x.shape))
        return stock(x)

    module.forward = forward
    return shapes


@pytest.mark.parametrize("family", ["vit", "vit_registers"])
def test_the_last_block_computes_one_row_where_no_more_is_read(family: str) -> None:
    lean = pair(family, "bias")[1].train()
    images, shapes = images_for(family), spied(lean)
    lean(images)
    assert shapes.pop() == (3, 1, 64)
    tokens = lean._branches[-1].block.tokens
    assert lean.backbone.forward_features(images).shape == (3, tokens, 64)  # A user's own call gets them all.
    assert shapes.pop() == (3, tokens, 64)
    lean(images)
    assert shapes.pop() == (3, 1, 64)
    with torch.no_grad():
        lean(images)
    assert shapes.pop() == (3, tokens, 64)


@pytest.mark.parametrize(
    "where", ["norm", "blocks.1", "blocks.1.ls2", "blocks.1.ls1", "blocks.1.attn", "blocks.1.norm2"]
)
def test_who_looks_at_the_last_block_sees_all_tokens(where: str) -> None:
    exact, lean = (model.train() for model in pair("vit", "bias"))
    images, seen = images_for("vit"), []
    for model in (exact, lean):
        model.backbone.get_submodule(where).register_forward_hook(lambda m, args, out: seen.append(out.detach()))
    expected = gradients(exact, images)
    keep_all(lean)
    if where in ("blocks.1.attn", "blocks.1.norm2"):
        with pytest.warns(UserWarning, match=r"Block blocks.1 was changed .*has a hook"):
            assert_same(gradients(lean, images), expected, 1e-4)
    else:
        assert_same(gradients(lean, images), expected, 1e-4)
    torch.testing.assert_close(seen[1], seen[0], rtol=1e-4, atol=1e-4)


def test_a_pool_over_all_tokens_gets_all() -> None:
    exact, lean = (model.train() for model in pair("vit", "bias", tiny.vit(global_pool="avg")))
    shapes, images = spied(lean), images_for("vit")
    keep_all(lean)
    assert_same(gradients(lean, images), gradients(exact, images), 1e-4)
    assert shapes == [(3, 65, 64)]


def test_features_without_a_method_are_all_there() -> None:
    """``pooled_features`` of a model that was never made lean knows nothing of a switch."""
    model = tiny.vit().eval()
    images = images_for("vit")
    with torch.no_grad():
        torch.testing.assert_close(pooled_features(model, images), model.forward_features(images)[:, 0])


# Sizes of batches


@pytest.mark.parametrize("batch", [1, 2, 7])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext_conv", "resnet"])
def test_chunks_change_nothing(family: str, batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    lean = pair(family, "s2a")[1].eval()
    images = images_for(family, batch)
    expected = gradients(lean, images)
    kept = s2a.saved_bytes(lean, images).total
    monkeypatch.setattr(layers, "CHUNK", 50_000)
    assert_same(gradients(lean, images), expected, 1e-4)
    assert s2a.saved_bytes(lean, images).total == kept


@pytest.mark.parametrize("family", tiny.MODELS)
def test_gradients_of_parts_add_up(family: str) -> None:
    lean = pair(family, "bias")[1].eval()  # Batch statistics would be those of the parts.
    keep_all(lean)
    images = images_for(family, 5)
    whole = gradients(lean, images)
    labels = torch.arange(5) % tiny.CLASSES
    for part in (slice(0, 2), slice(2, 5)):
        torch.nn.functional.cross_entropy(lean(images[part]), labels[part], reduction="sum").backward()
    added = {name: p.grad for name, p in s2a.trainable_parameters(lean).items() if p.grad is not None}
    assert_same(added, whole, 1e-4)


@pytest.mark.parametrize("family", ["convnext", "convnext_conv", "resnet", "vit"])
def test_channels_last_images(family: str) -> None:
    exact, lean = (model.eval() for model in pair(family, "bias"))
    keep_all(lean)
    images = images_for(family)
    last = images.to(memory_format=torch.channels_last)
    expected = gradients(exact, images)
    assert_same(gradients(lean, last), expected, 1e-4)
    assert_same(gradients(lean.to(memory_format=torch.channels_last), last), expected, 1e-4)
