"""Time of one training step of every registered method on the mini ViT, random weights."""

from __future__ import annotations

import pytest
import s2a
import torch
import torch.nn.functional as F
from s2a_bench.backbones import create
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
