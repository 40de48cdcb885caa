"""Adapted models under what training loops do to them: compilation, checkpointing, autocast, accumulation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import tiny
import torch
import torch.nn.functional as F
from torch import Tensor, nn


def gradients(adapted: nn.Module, images: Tensor, call: Callable[[Tensor], Tensor] | None = None) -> dict[str, Tensor]:
    """Gradients of everything trainable."""
    adapted.zero_grad()
    logits = adapted(images) if call is None else call(images)
    F.cross_entropy(logits, torch.arange(len(images)) % tiny.CLASSES).backward()
    return {n: p.grad.clone() for n, p in s2a.trainable_parameters(adapted).items() if p.grad is not None}


def adapted_model(name: str, config: Any, dtype: torch.dtype = torch.float32) -> tuple[s2a.Adapted, Tensor]:
    """A tiny model under a method whose zero-initialised parts are switched on, and a batch for it."""
    make_model, size = tiny.MODELS[name]
    adapted = s2a.attach(make_model(), config, tiny.CLASSES, image_size=size).to(dtype)
    for parameter in s2a.trainable_parameters(adapted).values():
        if not bool(parameter.any()):
            nn.init.normal_(parameter, std=0.02)
    return adapted.train(), torch.randn(4, 3, size, size, dtype=dtype)


CONFIGS = {
    "paper": s2a.S2AConfig(),
    "derivative": s2a.S2AConfig(levels="derivative", bits=3),
    "exact": s2a.S2AConfig(activations="exact"),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", ["paper", "exact"])
def test_a_compiled_model_has_the_same_gradients(mode: str) -> None:
    """One graph without a break: neither the interception of attention nor the taps fall back to Python."""
    adapted, images = adapted_model("vit", CONFIGS[mode])
    eager = gradients(adapted, images)
    compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True)
    found = gradients(adapted, images, compiled)
    assert found.keys() == eager.keys()
    for name, grad in eager.items():
        torch.testing.assert_close(found[name], grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_checkpointing_gives_the_same_gradients(name: str, mode: str) -> None:
    adapted, images = adapted_model(name, CONFIGS[mode])
    other: Any = copy.deepcopy(adapted)
    other.backbone.set_grad_checkpointing(True)
    torch.manual_seed(1)  # Swin drops paths in training.
    expected = gradients(adapted, images)
    torch.manual_seed(1)
    found = gradients(other, images)
    assert found.keys() == expected.keys()
    for key, grad in expected.items():
        torch.testing.assert_close(found[key], grad, msg=lambda m, n=key: f"{n}: {m}")
    kept, before = (s2a.saved_bytes(m, images).total for m in (other, adapted))
    assert kept < before


@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_autocast(name: str, mode: str) -> None:
    adapted, images = adapted_model(name, CONFIGS[mode])
    adapted.eval()  # No dropped paths, no batch statistics of four images.
    expected = gradients(adapted, images)

    def call(images: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = adapted(images)
        assert logits.dtype == torch.bfloat16
        return logits.float()

    found = gradients(adapted, images, call)
    one, other = (torch.cat([g[n].flatten() for n in expected]) for g in (found, expected))
    assert one.dtype == torch.float32
    assert float(F.cosine_similarity(one, other, dim=0)) > 0.95


@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_half_batches_add_up(name: str, mode: str) -> None:
    adapted, images = adapted_model(name, CONFIGS[mode], torch.float64)
    expected = gradients(adapted, images)
    adapted.zero_grad()
    for i in (0, 2):
        (F.cross_entropy(adapted(images[i : i + 2]), torch.arange(i, i + 2)) / 2).backward()
    for key, grad in expected.items():
        torch.testing.assert_close(adapted.get_parameter(key).grad, grad, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize("mode", CONFIGS)
def test_an_empty_batch_passes(mode: str) -> None:
    adapted, _ = adapted_model("vit", CONFIGS[mode])
    logits = adapted(torch.randn(0, 3, 32, 32))
    assert logits.shape == (0, tiny.CLASSES)
    logits.sum().backward()


@pytest.mark.parametrize("mode", ["paper", "derivative"])
def test_exact_mode_is_autograds(mode: str) -> None:
    """Eight bits come near the gradient of full precision; full precision is autograd's own."""
    adapted, images = adapted_model("vit", CONFIGS["exact"])
    expected = gradients(adapted, images)
    s2a.quantize_activations(adapted, 8, mode)
    found = gradients(adapted, images)
    one, other = (torch.cat([g[n].flatten() for n in expected]) for g in (found, expected))
    assert float((one - other).norm() / other.norm()) < (0.1 if mode == "paper" else 0.02)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_a_small_set_is_learned(name: str) -> None:
    """Sixteen noise images by heart: the loss falls by far more than chance."""
    make_model, size = tiny.MODELS[name]
    adapted = s2a.attach(make_model(), s2a.S2AConfig(), tiny.CLASSES, image_size=size).eval()
    images, labels = torch.randn(16, 3, size, size), torch.arange(16) % tiny.CLASSES
    optimizer = torch.optim.AdamW(s2a.trainable_parameters(adapted).values(), lr=1e-2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = F.cross_entropy(adapted(images), labels)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]
