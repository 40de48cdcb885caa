"""A forward pass is a function of its call: threads, calls inside of calls, errors, parts, copies."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import s2a
import tiny
import torch
from lean_models import gradients
from pass_models import CASES, MODES, adapted_model
from s2a.backbones import calls, describe, pooled_features
from test_selection import split_rings
from torch import Tensor

FAST = [("vit", "s2a", mode) for mode in MODES] + [("vit", "adaptformer", "exact"), ("vit", "adaptformer", "lean")]
FAST += [("swin", "s2a", "lean"), ("vit", "unipt", "as it is"), ("vit", "lst", "as it is")]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize(("family", "method", "mode"), split_rings(CASES, fast=FAST))
def test_threads_do_not_disturb_each_other(family: str, method: str, mode: str) -> None:
    """Logits and gradients of single images on four threads at once: those of one thread, bit for bit."""
    adapted, images = adapted_model(family, method, mode)
    single = list(images.split(1))

    def logits(x: Tensor) -> Tensor:
        with torch.inference_mode():
            return adapted(x)

    expected, expected_steps = [logits(x) for x in single], [gradients(adapted, x) for x in single]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(logits, single * 4))
        steps = list(pool.map(lambda x: gradients(adapted, x), single * 2))
    assert all(torch.equal(a, b) for a, b in zip(found, expected * 4, strict=True))
    assert all(same(a, b) for a, b in zip(steps, expected_steps * 2, strict=True))


NESTED: list[tuple[str, str, str]] = [
    ("vit", "s2a", "lean"),
    ("swin", "s2a", "exact"),
    ("vit", "unipt", "as it is"),
    ("convnext", "adaptformer", "lean"),
]
INNER: dict[str, Callable[[Any, Tensor], Any]] = {
    "the model itself": lambda adapted, x: adapted(x),
    "its backbone": lambda adapted, x: adapted.backbone(x),
    "its pooled features": lambda adapted, x: pooled_features(adapted.backbone, x),
    "its method": lambda adapted, x: adapted.method(adapted.backbone, x),
    "forward_features": lambda adapted, x: adapted.backbone.forward_features(x),
    "forward_intermediates": lambda adapted, x: adapted.backbone.forward_intermediates(x),
}


@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize(("family", "method", "mode"), NESTED)
def test_a_call_from_a_hook_changes_nothing(family: str, method: str, mode: str, inner: str) -> None:
    """From in front of the last block and from inside of it."""
    adapted, images = adapted_model(family, method, mode)
    other, images = images[:2], images[2:4]
    expected, grads, alone = adapted(images), gradients(adapted, images), INNER[inner](adapted, other)
    last = adapted.backbone.get_submodule(describe(tiny.MODELS[family][0]()).blocks[-1].name)
    norm = last.norm2 if hasattr(last, "norm2") else last.norm
    for register in (last.register_forward_pre_hook, norm.register_forward_pre_hook):
        inside: list[Any] = []

        def call(*_: Any, inside: list[Any] = inside) -> None:
            if not inside:
                inside.append(None)  # The inner call meets this hook too.
                inside[0] = INNER[inner](adapted, other)

        handle = register(call)
        assert torch.equal(adapted(images), expected)
        handle.remove()
        if isinstance(alone, Tensor):
            torch.testing.assert_close(inside[0], alone)
        assert same(gradients(adapted, images), grads)
    assert not calls._stack.entries


@pytest.mark.each_value
@pytest.mark.filterwarnings("ignore:Block")  # Changed after attach: a hook is.
@pytest.mark.parametrize(("family", "method", "mode"), [*NESTED, ("vit", "lst", "as it is"), ("swin", "s2a", "lean")])
def test_a_pass_that_fails_leaves_nothing(family: str, method: str, mode: str) -> None:
    """Whichever module raises: the next call is right, and no tensor of the failed one is alive."""
    adapted, images = adapted_model(family, method, mode)
    expected = gradients(adapted, images)
    inside = [m for name, m in adapted.backbone.named_modules() if name and not list(m.children())]
    for module in inside[:: max(1, len(inside) // 6)]:
        seen: list[Any] = []

        def fail(module: Any, args: Any, output: Tensor, seen: list[Any] = seen) -> None:
            seen.append(weakref.ref(output))
            raise MemoryError

        handle = module.register_forward_hook(fail)
        try:
            adapted(images)
        except MemoryError:
            pass
        handle.remove()
        gc.collect()
        assert not calls._stack.entries
        assert all(reference() is None for reference in seen)
    assert same(gradients(adapted, images), expected)


@pytest.mark.parametrize("mode", ["exact", "paper", "lean"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_nothing_lives_longer_than_the_graph(family: str, mode: str) -> None:
    """Every block's input is gone after the backward pass, and at once where there is none."""
    adapted, images = adapted_model(family, "s2a", mode)
    seen: list[Any] = []
    for block in describe(tiny.MODELS[family][0]()).blocks:
        adapted.backbone.get_submodule(block.name).register_forward_pre_hook(
            lambda module, args: seen.append(weakref.ref(args[0]))
        )
    adapted(images).sum().backward()
    with torch.no_grad():
        adapted(images)
    gc.collect()
    assert seen
    assert all(reference() is None for reference in seen)


@pytest.mark.parametrize(("family", "method", "mode"), NESTED)
def test_copies_run_by_themselves(family: str, method: str, mode: str) -> None:
    """Shallow, deep and pickled ones, while the original runs on another thread."""
    adapted, images = adapted_model(family, method, mode)
    with torch.no_grad():
        expected = adapted(images)
    for other in (copy.copy(adapted), copy.deepcopy(adapted), pickle.loads(pickle.dumps(adapted))):
        with ThreadPoolExecutor(2) as pool, torch.no_grad():
            found = list(pool.map(lambda model: model(images), (adapted, other) * 3))
        for logits in found:
            torch.testing.assert_close(logits, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("mode", ["exact", "lean"])
@pytest.mark.parametrize("family", ["vit", "swin", "convnext", "resnet"])
def test_parts_of_a_backbone_are_right(family: str, mode: str) -> None:
    """All features between two calls of the whole; ``forward_features`` by itself gives every position."""
    adapted, images = adapted_model(family, "bias", mode)
    model, expected = adapted.backbone, adapted(images)
    features = model.forward_features(images)
    pooled = model.forward_head(features, pre_logits=True)
    torch.testing.assert_close(adapted.head(pooled), expected, rtol=1e-4, atol=1e-5)
    assert len(model.forward_intermediates(images, intermediates_only=True)) >= 2
    with torch.no_grad():
        torch.testing.assert_close(model.forward_features(images), features.detach(), rtol=1e-4, atol=1e-5)


def test_the_mlp_of_adaptformer_by_itself_is_refused() -> None:
    adapted, _ = adapted_model("vit", "adaptformer", "exact")
    with pytest.raises(s2a.S2AError, match="call or checkpoint the whole block, not its MLP alone"):
        adapted.backbone.blocks[0].mlp(torch.randn(1, 65, 64))


def test_states_between_the_blocks_of_shallow_vpt_are_refused() -> None:
    """They have prompts among them, which timm would reshape into the map."""
    deep: Any
    shallow: Any
    deep, shallow = (
        s2a.attach(tiny.vit(), s2a.method_config("vpt", prompts=3, deep=deep), 5).eval() for deep in (True, False)
    )
    images = torch.randn(2, 3, 32, 32)
    assert all(m.shape == (2, 64, 8, 8) for m in deep.backbone.forward_intermediates(images, intermediates_only=True))
    for call in (shallow.backbone.forward_intermediates, shallow.backbone.get_intermediate_layers):
        with pytest.raises(s2a.S2AError, match="Between the blocks of shallow VPT there are prompts"):
            call(images)
    assert shallow.backbone.forward_features(images).shape == (2, 65, 64)
