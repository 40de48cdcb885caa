"""Adapted models in other libraries' wrappers: the same logits and gradients."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import s2a
import torch
from lean_models import assert_same, cosines, gradients, loss_of
from pass_models import adapted_model


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", ["whole", "block by block"])
@pytest.mark.parametrize("mode", ["exact", pytest.param("lean", marks=pytest.mark.full)])
def test_compiled_in_place(mode: str, how: str) -> None:
    """``adapted.compile()``, and single blocks, whose hooks then feed a pass that is not compiled."""
    adapted, images = adapted_model("vit", "s2a", mode)
    expected, other = gradients(adapted, images), copy.deepcopy(adapted)
    torch._dynamo.reset()
    try:
        for module in [other] if how == "whole" else other.backbone.blocks:
            module.compile(backend="aot_eager")
        for _ in range(2):
            assert_same(gradients(other, images), expected, 1e-3)
    finally:
        torch._dynamo.reset()


@pytest.mark.parametrize(("method", "mode"), [("s2a", "exact"), ("s2a", "lean"), ("unipt", "as it is")])
def test_accelerate_in_bf16(method: str, mode: str) -> None:
    accelerate: Any = pytest.importorskip("accelerate")
    adapted, images = adapted_model("vit", method, mode)
    expected = gradients(adapted, images)
    accelerator = accelerate.Accelerator(cpu=True, mixed_precision="bf16")
    try:
        optimizer = torch.optim.SGD(s2a.trainable_parameters(adapted).values(), lr=0.1)
        model, optimizer = accelerator.prepare(adapted, optimizer)
        accelerator.backward(loss_of(model(images)))
        assert accelerator.unwrap_model(model) is adapted
        found = {n: p.grad for n, p in s2a.trainable_parameters(adapted).items() if p.grad is not None}
    finally:
        accelerate.state.AcceleratorState._reset_state(True)
    assert {grad.dtype for grad in found.values()} == {torch.float32}
    assert min(cosines(found, expected).values()) > 0.99
