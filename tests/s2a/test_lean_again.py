"""A block computed again from codes of its input."""

from __future__ import annotations

import functools
import math
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
import torch.nn.functional as F
from s2a.lean import SavedBits, linear
from s2a.lean.again import block_again
from s2a.memory import saved_bytes
from s2a.ops.rows import kept_bytes
from s2a.paging import Pager
from timm.layers.drop import DropPath
from torch import Tensor, nn

BLOCKS = ("vit", "vit_registers", "swin")
"""Families whose blocks have an attention and an MLP."""
PAIRS = [(family, method) for family, method in lean_models.PAIRS if family in BLOCKS]
FAST = [pair for pair in lean_models.CORE if pair in PAIRS]


def keep_inputs(adapted: Any, bits: int) -> None:
    """Every block keeps its input, but those that compute one row alone; all else is kept as it is."""
    lean_models.keep_all(adapted)
    for branch in adapted._branches:
        if "s2a_backbone" not in branch.block_module.__dict__:
            branch.saved_bits = SavedBits(32, 0, bits)


@pytest.mark.parametrize(
    "family, method", [pytest.param(*p, marks=() if p in FAST else pytest.mark.full) for p in PAIRS]
)
def test_gradients_from_exact_inputs_are_those_of_autograd(
    family: str, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear, "CHUNK", 1)  # One image in a chunk.
    exact, lean = (model.double() for model in lean_models.pair(family, method))
    keep_inputs(lean, 32)
    images = lean_models.images_for(family).double()
    exact.eval()
    lean.eval()
    torch.testing.assert_close(lean(images), exact(images))
    expected, found = lean_models.gradients(exact, images), lean_models.gradients(lean, images)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-7, atol=1e-9, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("family", BLOCKS)
def test_a_block_keeps_the_codes_of_its_input_and_nothing_else(family: str) -> None:
    _, lean = lean_models.pair(family, "bias")
    keep_inputs(lean.eval(), 10)
    images = lean_models.images_for(family, 4)
    kept = saved_bytes(lean, images)
    again = {branch.block.name: branch for branch in lean._branches if branch.saved_bits.block}
    assert again
    for name, branch in again.items():
        inside = sum(size for path, size in kept.items() if path == f"backbone.{name}")
        below = sum(size for path, size in kept.items() if path.startswith(f"backbone.{name}."))
        assert inside == kept_bytes(4 * branch.block.tokens, branch.block.channels, 10) and below == 0


def test_a_second_run_drops_what_the_first_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "CHUNK", 1)
    _, lean = lean_models.pair("swin", "s2a")
    for block in (branch.block_module for branch in lean._branches):
        block.drop_path1 = block.drop_path2 = DropPath(0.5)
    lean.double().train()
    keep_inputs(lean, 32)
    images = lean_models.images_for("swin", 4).double()
    name, prompt = next((n, p) for n, p in lean.named_parameters() if "prompts" in n and p.requires_grad)

    def loss() -> Tensor:
        torch.manual_seed(3)
        return F.cross_entropy(lean(images), torch.arange(4) % tiny.CLASSES)

    loss().backward()
    assert prompt.grad is not None
    place = int(prompt.grad.abs().argmax())
    values = []
    for step in (1e-6, -2e-6):  # Central differences of the loss, with the same paths dropped.
        with torch.no_grad():
            prompt.view(-1)[place] += step
        values.append(loss().item())
    slope = (values[0] - values[1]) / 2e-6
    assert math.isclose(slope, float(prompt.grad.view(-1)[place]), rel_tol=1e-5), name


def test_random_numbers_go_on_after_a_second_run() -> None:
    x = torch.randn(4, 3, 8, requires_grad=True)
    after = []
    for bits in (0, 32):
        torch.manual_seed(5)
        run = nn.Dropout(0.5)
        out = block_again(run, x, bits, 8) if bits else run(x)
        out.sum().backward()
        after.append(torch.rand(3))
    assert torch.equal(*after)


def test_twelve_bits_are_closer_than_eight() -> None:
    exact, lean = lean_models.pair("vit", "s2a")
    images = lean_models.images_for("vit", 4)
    expected = lean_models.gradients(exact, images)
    errors = []
    for bits in (8, 10, 12):
        keep_inputs(lean, bits)
        found = lean_models.gradients(lean, images)
        errors.append(lean_models.error(found, expected))
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0


@pytest.mark.parametrize("in_place", [False, True])
def test_leaves_are_found_in_hooks_and_modules(in_place: bool) -> None:
    torch.manual_seed(0)
    layer, outside = nn.Linear(6, 6).double(), nn.Parameter(torch.randn(6, dtype=torch.float64))

    def scaled(module: nn.Module, args: Any, out: Any) -> Tensor:
        return out * outside  # type: ignore[no-any-return]

    layer.register_forward_hook(scaled)
    x = torch.randn(5, 3, 6, dtype=torch.float64, requires_grad=True)

    def run(images: Tensor) -> Tensor:
        return images + layer(images).tanh()

    parameters = [x, layer.weight, layer.bias, outside]
    g = torch.randn(5, 3, 6, dtype=torch.float64)
    expected = torch.autograd.grad(run(x), parameters, g)
    out = block_again(run, x * 1.0, 32, 6, in_place)
    for one, other in zip(torch.autograd.grad(out, parameters, g), expected, strict=True):
        torch.testing.assert_close(one, other)


def test_a_plan_with_blocks_again_is_smaller_than_any_without() -> None:
    _, lean = lean_models.pair("vit", "s2a")
    plan = s2a.plan_memory(lean, batch_size=8)
    tight = s2a.plan_memory(lean, saved_budget_mb=math.ceil(plan.smallest / 1e5) / 10, batch_size=8)
    blocks = {bits.block for bits in tight.saved_bits.values()}
    assert blocks & {8, 10, 12} and "block computed again" in str(tight)


def in_chunks(monkeypatch: pytest.MonkeyPatch, family: str = "vit", method: str = "bias") -> Any:
    """A model whose blocks run again in chunks of one image, and everything is kept as it is."""
    monkeypatch.setattr(linear, "CHUNK", 1)
    _, lean = lean_models.pair(family, method)
    keep_inputs(lean.double().eval(), 32)
    return lean


def doubled(calls: list[str], name: str, grad: Tensor) -> Tensor:
    """Notes the call."""
    calls.append(name)
    return 2 * grad


def test_hooks_on_trained_tensors_run_once_on_the_whole_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = in_chunks(monkeypatch)
    images = lean_models.images_for("vit").double()
    expected = lean_models.gradients(lean, images)
    calls: list[str] = []
    for name, parameter in s2a.trainable_parameters(lean).items():
        parameter.register_hook(functools.partial(doubled, calls, name))
    lean_models.loss_of(lean(images)).backward()
    for name, parameter in s2a.trainable_parameters(lean).items():
        torch.testing.assert_close(parameter.grad, expected[name].mul(2), rtol=1e-5, atol=1e-6)
    assert sorted(calls) == sorted(expected)


def test_what_is_frozen_between_the_passes_gets_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = in_chunks(monkeypatch)
    loss = lean_models.loss_of(lean(lean_models.images_for("vit").double()))
    bias = lean.backbone.blocks[0].attn.qkv.bias
    bias.requires_grad_(False)
    loss.backward()
    assert bias.grad is None and lean.backbone.blocks[0].attn.proj.bias.grad is not None


def test_an_empty_batch_and_the_eyes_of_others(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = in_chunks(monkeypatch)
    assert lean(torch.empty(0, 3, 32, 32, dtype=torch.float64)).shape == (0, tiny.CLASSES)
    seen: list[int] = []
    lean.backbone.blocks[0].ls1.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    lean_models.loss_of(lean(lean_models.images_for("vit", 3).double())).backward()
    assert seen == [3]  # Once, and the whole batch.


def test_paged_weights_are_fetched_once_for_all_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    lean = in_chunks(monkeypatch)
    images = lean_models.images_for("vit").double()
    expected = lean_models.gradients(lean, images)
    s2a.page_frozen(lean, least_bytes=1)
    copies: list[int] = []
    copy = Pager.copy
    monkeypatch.setattr(Pager, "copy", lambda self, index, *rest: copies.append(index) or copy(self, index, *rest))
    found = lean_models.gradients(lean, images)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    assert max(copies.count(index) for index in set(copies)) == 2  # Forward and backward.
