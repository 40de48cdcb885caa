"""Lean activations under autocast, in bf16, checkpointed, compiled, and on several processes."""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
import torch.distributed as dist
import torch.nn.functional as F
from lean_models import assert_same, cosines, gradients, images_for, keep_all, pair
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

FAMILIES = [*lean_models.FUSED, "resnet"]


def under_autocast(model: Any, images: Tensor, dtype: torch.dtype = torch.bfloat16) -> dict[str, Tensor]:
    """Gradients of a step whose forward pass and loss run under autocast, with the same random numbers each time."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype):
        loss = lean_models.loss_of(model(images))
    trainable = s2a.trainable_parameters(model)
    return dict(zip(trainable, torch.autograd.grad(loss, list(trainable.values())), strict=True))


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


@pytest.mark.parametrize("method", ["s2a", "lora_two", "full"])
@pytest.mark.parametrize("family", FAMILIES)
def test_checkpointed_blocks_give_the_same_gradients(family: str, method: str) -> None:
    """Timm's own checkpointing, block by block, with dropped paths drawn again."""
    if (family, method) not in lean_models.PAIRS:
        pytest.skip("no such layers")
    lean = pair(family, method)[1].train()
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


@pytest.mark.parametrize(("family", "method"), [("vit", "lora"), ("convnext_conv", "bias")])
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


# Several processes


def _model() -> nn.Module:
    torch.manual_seed(0)
    adapted = s2a.attach(tiny.vit(), s2a.S2AConfig(lrp_rank=4, activations="lean"), 3, image_size=32)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return adapted.train()


def _batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(4, 3, 32, 32, generator=generator), torch.tensor([0, 1, 2, 1])


def _steps(model: nn.Module, images: Tensor, labels: Tensor) -> list[dict[str, Tensor]]:
    """Gradients of two steps of gradient descent."""
    adapted = model.module if isinstance(model, DistributedDataParallel) else model
    trainable = s2a.trainable_parameters(adapted)
    optimizer, found = torch.optim.SGD(trainable.values(), lr=0.1), []
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        found.append({n: p.grad.clone() for n, p in trainable.items() if p.grad is not None})
        optimizer.step()
    assert all(step.keys() == trainable.keys() for step in found)
    return found


def _worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    limit = timedelta(seconds=100)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=limit)
    try:
        model = DistributedDataParallel(_model(), find_unused_parameters=False)
        torch.save(_steps(model, *(t[2 * rank : 2 * rank + 2] for t in _batch())), f"{folder}/{rank}.pt")
    finally:
        dist.destroy_process_group()


@pytest.mark.timeout(180)
def test_two_processes_get_the_gradients_of_the_joined_batch(tmp_path: Path) -> None:
    paths = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    processes = [subprocess.Popen([sys.executable, __file__, str(r), str(tmp_path)], env=paths) for r in range(2)]
    try:
        assert [process.wait(timeout=150) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    expected = _steps(_model(), *_batch())
    for rank in range(2):
        for found, own in zip(torch.load(tmp_path / f"{rank}.pt"), expected, strict=True):
            assert_same(found, own, 1e-3)


if __name__ == "__main__":  # This file is also the program of a worker.
    _worker(int(sys.argv[1]), sys.argv[2])
