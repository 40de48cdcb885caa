"""Adapted models in evaluation mode as exported programs: PyTorch's own operators, any batch size."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from pass_models import CASES, adapted_model
from test_selection import split_rings

FAST = [("vit", "s2a", "lean"), ("vit", "s2a", "paper"), ("vit", "vpt", "exact")]


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("with_gradient", [True, False])
@pytest.mark.parametrize(("family", "method", "mode"), split_rings([c for c in CASES if c[2] != "budget"], fast=FAST))
def test_an_exported_model_has_no_codes(family: str, method: str, mode: str, with_gradient: bool) -> None:
    """The same logits for another batch size, whatever the gradient mode in which the program was made."""
    adapted, images = adapted_model(family, method, mode)
    with torch.set_grad_enabled(with_gradient):
        program = torch.export.export(adapted, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch", max=64)},))
    for module in program.graph_module.modules():
        for node in getattr(getattr(module, "graph", None), "nodes", ()):
            assert "s2a" not in str(node.target) or node.op != "call_function"
            assert "autograd" not in str(node.target)
            value = node.meta.get("val")
            assert not (isinstance(value, torch.Tensor) and value.dtype == torch.uint8)
    with torch.no_grad():
        torch.testing.assert_close(program.module()(images), adapted(images), rtol=1e-4, atol=1e-5)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("family", "method", "mode"), FAST)
def test_a_traced_model_runs_without_the_library(family: str, method: str, mode: str) -> None:
    adapted, images = adapted_model(family, method, mode)
    traced: Any = torch.jit.trace(adapted, images[:2], check_trace=False)
    assert "PythonOp" not in str(traced.inlined_graph)
    with torch.no_grad():
        torch.testing.assert_close(traced(images), adapted(images), rtol=1e-4, atol=1e-5)
