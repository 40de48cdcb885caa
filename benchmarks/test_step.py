"""Time of one training step of every registered method on the mini ViT, random weights."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import torch
import torch.nn.functional as F
from s2a_bench.cells.backbones import create
from s2a_bench.config import BackboneConfig


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("method", s2a.list_methods())
def test_training_step(benchmark, method):
    model, expected = create(BackboneConfig("mini_vit", random_weights=True))
    adapted = s2a.attach(model, s2a.method_config(method), 10, image_size=expected.size).train()
    optimiser = torch.optim.AdamW(s2a.trainable_parameters(adapted).values(), lr=1e-3)
    images, labels = torch.randn(8, 3, expected.size, expected.size), torch.arange(8)
    benchmark.extra_info["saved_bytes"] = s2a.saved_bytes(adapted, images).total

    def step() -> None:
        optimiser.zero_grad(set_to_none=True)
        F.cross_entropy(adapted(images), labels).backward()
        optimiser.step()

    benchmark(step)


@pytest.mark.benchmark(group="codes")
@pytest.mark.parametrize("name", ["vit_base_patch16_224", "swin_base_patch4_window7_224", "convnext_base"])
def test_step_with_codes_beside_an_exact_one(benchmark, name):
    """Alternates exact and 4-bit steps, so that both meet the same machine; the ratio of the least times is printed."""
    steps = {activations: _step(name, activations) for activations in ("exact", "paper")}
    exact: list[float] = []

    def exact_step() -> None:
        started = time.perf_counter()
        steps["exact"]()
        exact.append(time.perf_counter() - started)

    exact_step()
    steps["paper"]()
    exact.clear()  # The first pass of each pays for memory.
    benchmark.pedantic(steps["paper"], setup=exact_step, rounds=6)
    ratio = benchmark.stats.stats.min / min(exact)
    benchmark.extra_info.update(exact_seconds=min(exact), ratio=ratio)
    print(f"\n{name}: exact {min(exact):.3f} s, 4 bits {benchmark.stats.stats.min:.3f} s, ratio {ratio:.3f}")


def _step(name: str, activations: Any) -> Callable[[], None]:
    """One forward and backward pass of a base model under S2A, batch 4."""
    torch.manual_seed(0)
    model, expected = create(BackboneConfig(name, random_weights=True))
    adapted = s2a.attach(model, s2a.S2AConfig(activations=activations), 100, image_size=expected.size).train()
    images, labels = torch.randn(4, 3, expected.size, expected.size), torch.arange(4)

    def step() -> None:
        F.cross_entropy(adapted(images), labels).backward()
        adapted.zero_grad(set_to_none=True)

    return step
