"""Adapted models under what training loops do to them: compilation, checkpointing, autocast, accumulation."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s2a
import tiny
import torch
import torch.nn.functional as F
from s2a.testing import differences, snapshot
from test_selection import split_rings
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn


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
    "paper": s2a.S2AConfig(levels="paper"),
    "derivative": s2a.S2AConfig(levels="derivative", bits=3),
    "exact": s2a.S2AConfig(activations="exact"),
}


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("mode", split_rings(list(CONFIGS), fast=["paper"]))
def test_a_compiled_model_has_the_same_logits_and_gradients(mode: str) -> None:
    """One graph without a break: neither the interception of attention nor the taps fall back to Python."""
    adapted, images = adapted_model("vit", CONFIGS[mode])
    eager = gradients(adapted, images)
    compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), adapted(images))
    found = gradients(adapted, images, compiled)
    assert found.keys() == eager.keys()
    for name, grad in eager.items():
        torch.testing.assert_close(found[name], grad, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.each_value
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


@pytest.mark.each_value
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_autocast(name: str, mode: str, dtype: torch.dtype) -> None:
    adapted, images = adapted_model(name, CONFIGS[mode])
    adapted.eval()  # No dropped paths, no batch statistics of four images.
    expected = gradients(adapted, images)

    def call(images: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype):
            logits = adapted(images)
        assert logits.dtype == dtype
        return logits.float()

    found = gradients(adapted, images, call)
    one, other = (torch.cat([g[n].flatten() for n in expected]) for g in (found, expected))
    assert one.dtype == torch.float32
    assert float(F.cosine_similarity(one, other, dim=0)) > 0.95


@pytest.mark.skipif(not hasattr(torch.amp, "GradScaler"), reason="torch.amp has no GradScaler yet")
@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("name", ["vit", "convnext"])
def test_scaled_losses_in_half_precision(name: str, mode: str) -> None:
    """A step is the unscaled gradients'; an overflow in the backward pass is seen, and that step skipped."""
    adapted, images = adapted_model(name, CONFIGS[mode])
    adapted.eval()
    expected = gradients(adapted, images)
    trainable = s2a.trainable_parameters(adapted)
    start = {n: p.detach().clone() for n, p in trainable.items()}
    optimizer = torch.optim.SGD(trainable.values(), lr=1.0)
    for scale, overflows in ((2.0**40, True), (2.0**10, False)):
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.float16):
            loss = F.cross_entropy(adapted(images), torch.arange(4) % tiny.CLASSES)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert (scaler.get_scale() < scale) is overflows
        assert all(torch.equal(start[n], p) for n, p in trainable.items()) is overflows
    inside = [n for n in start if not n.startswith("head.")]
    steps = torch.cat([(start[n] - trainable[n].detach()).flatten() for n in inside])
    whole = torch.cat([expected[n].flatten() for n in inside])
    assert float((steps - whole).norm() / whole.norm()) < 0.02


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


def averaged(kind: str, adapted: nn.Module) -> tuple[Any, Callable[[nn.Module], None]]:
    """A running mean of a model's weights with a decay of 0.75, by PyTorch's class or timm's, and its update."""
    if kind == "torch":
        mean: Any = AveragedModel(adapted, multi_avg_fn=get_ema_multi_avg_fn(0.75))
        return mean, mean.update_parameters
    mean = ModelEmaV3(adapted, decay=0.75)
    return mean, mean.update


@pytest.mark.each_value
@pytest.mark.parametrize("kind", ["torch", "timm"])
@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("name", ["vit", "swin"])
def test_averaged_weights(name: str, mode: str, kind: str, tmp_path: Path) -> None:
    """The mean follows its recursion, leaves what is frozen, and can be saved, loaded and detached by itself."""
    make_model, size = tiny.MODELS[name]
    model, images = make_model(), torch.randn(4, 3, size, size)
    adapted = s2a.attach(copy.deepcopy(model), CONFIGS[mode], tiny.CLASSES, image_size=size).train()
    mean, update = averaged(kind, adapted)
    update(adapted)  # PyTorch's first update is a copy.
    trainable = s2a.trainable_parameters(adapted)
    optimizer = torch.optim.SGD(trainable.values(), lr=0.1)
    expected = {n: p.detach().clone() for n, p in adapted.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(adapted(images), torch.arange(4) % tiny.CLASSES).backward()
        optimizer.step()
        update(adapted)
        for n, p in trainable.items():
            expected[n] = 0.75 * expected[n] + 0.25 * p.detach()
    for n, p in mean.module.named_parameters():
        torch.testing.assert_close(p.detach(), expected[n], rtol=1e-5, atol=1e-7 if n in trainable else 0)
    other = copy.deepcopy(adapted)
    other.load_state_dict(expected, strict=False)
    mean.requires_grad_(False)  # Means are often frozen; they are to be saved all the same.
    with torch.no_grad():
        logits = mean.eval()(images)
        torch.testing.assert_close(logits, other.eval()(images))
        s2a.save(mean.module, tmp_path / "mean.safetensors")
        assert torch.equal(s2a.load(copy.deepcopy(model), tmp_path / "mean.safetensors").eval()(images), logits)
    assert not differences(snapshot(model), snapshot(s2a.detach(mean.module).train()))


@pytest.mark.parametrize("mode", CONFIGS)
@pytest.mark.parametrize("name", tiny.MODELS)
def test_evaluation_is_the_same_with_and_without_gradient(name: str, mode: str) -> None:
    """Bit for bit, and without gradient nothing is even offered to be kept."""
    adapted, images = adapted_model(name, CONFIGS[mode])
    adapted.eval()
    expected, offered = adapted(images), []
    for context in (torch.no_grad(), torch.inference_mode()):
        with context, saved_tensors_hooks(offered.append, lambda x: x):
            assert torch.equal(adapted(images), expected)
    assert not offered


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
