"""Quantised activations of whole models."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import timm.layers
import tiny
import torch
import torch.nn.functional as F
from s2a.activations import release_frozen_inputs
from s2a.activations.quantize import ACTIVATIONS
from s2a.backbones.edits import Edits
from s2a.ops.pack import BITS, packed_bytes
from s2a.ops.pointwise import LEVEL_KINDS
from s2a.testing import differences, snapshot
from torch import Tensor, nn


def unfused(model: Any) -> Any:
    """The model with timm's own attention of separate products."""
    for module in model.modules():
        if hasattr(module, "fused_attn"):
            setattr(module, "fused_attn", False)  # noqa: B010
    return model


def gradients(model: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Gradients of every parameter, by a loss that weighs logits differently."""
    model.zero_grad()
    (model(images) * torch.arange(1.0, 6.0)).square().sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("name", tiny.MODELS)
@pytest.mark.parametrize("bits", [1, 4])
def test_forward_is_timms_bit_for_bit(name: str, bits: int) -> None:
    make_model, size = tiny.MODELS[name]
    model = make_model()
    images = torch.randn(3, 3, size, size)
    for mode in (True, False):
        torch.manual_seed(1)  # Swin drops paths in training.
        expected = unfused(copy.deepcopy(model)).train(mode)(images)
        quantised = copy.deepcopy(model).train(mode)
        s2a.quantize_activations(quantised, bits)
        torch.manual_seed(1)
        assert torch.equal(quantised(images), expected)


@pytest.mark.parametrize("name", tiny.MODELS)
def test_undoing_restores_everything(name: str) -> None:
    model = tiny.MODELS[name][0]()
    before = snapshot(model)
    s2a.quantize_activations(model).undo()
    assert not differences(before, snapshot(model))


@pytest.mark.parametrize("name", ["vit", "eva", "swin", "convnext", "resnet"])
@pytest.mark.parametrize("levels", LEVEL_KINDS)
def test_gradients_come_near_with_bits(name: str, levels: str) -> None:
    make_model, size = tiny.MODELS[name]
    model, images = make_model().eval(), torch.randn(2, 3, size, size)
    exact = gradients(unfused(copy.deepcopy(model)), images)
    errors = []
    for bits in (2, 8):
        quantised = copy.deepcopy(model)
        s2a.quantize_activations(quantised, bits, levels)
        found = gradients(quantised, images)
        assert found.keys() == exact.keys()
        total = sum(float((found[n] - exact[n]).square().sum()) for n in exact)
        errors.append((total / sum(float(g.square().sum()) for g in exact.values())) ** 0.5)
    assert errors[1] <= errors[0] < 1
    assert errors[1] < (0.01 if levels == "derivative" else 0.1)  # The sine itself is off by up to 0.09.
    if name == "resnet":
        assert errors == [0.0, 0.0]  # ReLU's one bit is exact.


@pytest.mark.parametrize("kind", ACTIVATIONS, ids=lambda kind: f"{kind.__module__}.{kind.__name__}")
def test_every_activation_keeps_its_forward(kind: type[nn.Module]) -> None:
    module = kind()
    x = (4 * torch.randn(3, 7)).requires_grad_()
    expected = module(x.clone())
    edits = s2a.quantize_activations(module)
    found = module(x)
    assert torch.equal(found, expected)
    (grad,) = torch.autograd.grad(found.sum(), x)
    (stock,) = torch.autograd.grad(expected.sum(), x)
    assert float((grad - stock).abs().max()) < 0.3
    edits.undo()
    assert "Coded" not in type(module(x).grad_fn).__name__


def test_settings_of_activations_are_kept() -> None:
    x = torch.randn(50, requires_grad=True)
    for module in (nn.GELU(approximate="tanh"), nn.LeakyReLU(0.3), nn.ReLU(inplace=True), timm.layers.GELUTanh()):
        expected = copy.deepcopy(module)(x.clone())
        s2a.quantize_activations(module)
        found = module(x)
        assert torch.equal(found, expected)
    (slope,) = torch.autograd.grad(_quantised(nn.LeakyReLU(0.3))(x).sum(), x)
    assert set(slope.tolist()) == {torch.tensor(0.3).item(), 1.0}


def _quantised(module: nn.Module) -> nn.Module:
    s2a.quantize_activations(module)
    return module


@pytest.mark.parametrize("dim", [0, 1, -1, -2, None])
@pytest.mark.parametrize("shape", [(6,), (4, 6), (4, 6, 5)])
@pytest.mark.filterwarnings("ignore:Implicit dimension choice")
def test_softmax_modules(dim: int | None, shape: tuple[int, ...]) -> None:
    if dim is not None and not -len(shape) <= dim < len(shape):
        shape = (*shape, 3)
    x = torch.randn(shape, requires_grad=True)
    module, stock = _quantised(nn.Softmax(dim)), nn.Softmax(dim)
    assert torch.equal(module(x), stock(x))
    weight = torch.randn(shape)
    (found,) = torch.autograd.grad((module(x) * weight).sum(), x)
    (expected,) = torch.autograd.grad((stock(x) * weight).sum(), x)
    assert float((found - expected).norm() / expected.norm()) < 0.2


def test_softmax_can_be_left_alone() -> None:
    model = tiny.vit()
    s2a.quantize_activations(model, softmax=False)
    assert "s2a_bits" not in model.blocks[0].attn.__dict__
    assert "s2a_bits" in model.blocks[0].mlp.act.__dict__


@pytest.mark.parametrize("bits", BITS)
def test_blocks_keep_the_analytic_bytes(bits: int) -> None:
    """A ViT whose biases train: codes, one projection, and what LayerNorm needs; nothing else in a block."""
    batch, tokens, width, heads = 2, 65, 64, 2
    adapted = s2a.attach(tiny.vit(), s2a.S2AConfig(activations="paper", bits=bits), 5)
    kept = s2a.saved_bytes(adapted, torch.randn(batch, 3, 32, 32))
    rows = batch * heads * tokens
    for i in range(2):
        block = f"backbone.blocks.{i}"
        assert kept[f"{block}.mlp.act"] == packed_bytes(batch * tokens * 4 * width, bits)
        assert kept[f"{block}.attn"] == (4 * batch * tokens * 3 * width + packed_bytes(rows * tokens, bits) + 2 * rows)
        for norm in ("norm1", "norm2"):
            assert kept[f"{block}.{norm}"] == 4 * batch * tokens * (width + 2)
        inside = {n for n in kept if n.startswith(block)}
        assert inside == {f"{block}.{part}" for part in ("mlp.act", "attn", "norm1", "norm2")}
    assert not [n for n in kept if n.startswith("method.prompts")]
    assert not [n for n in kept if n in ("method", "method.branch", "backbone.patch_embed.proj")]


def test_any_method_can_be_quantised() -> None:
    adapted = s2a.attach(tiny.swin(), s2a.method_config("full"), 5).train()
    images = torch.randn(2, 3, 64, 64)
    exact = s2a.saved_bytes(adapted, images).total
    s2a.quantize_activations(adapted, 4)
    assert s2a.saved_bytes(adapted, images).total < exact
    table = "backbone.layers.0.blocks.0.attn.relative_position_bias_table"
    assert bool(gradients(adapted, images)[table].any())  # Gradients reach additive masks, too.


def test_frozen_convolutions_are_released_and_restored() -> None:
    model = tiny.convnext_conv()
    before = snapshot(model)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    model.stem[0].bias.requires_grad_(True)
    images = torch.randn(2, 3, 64, 64)
    expected, stock = model(images), s2a.saved_bytes(model, images)
    edits = Edits()
    release_frozen_inputs(model, edits)
    assert torch.equal(model(images), expected)
    kept = s2a.saved_bytes(model, images)
    convolutions = {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d)}
    assert convolutions & stock.keys()
    assert not convolutions & kept.keys()
    edits.undo()
    for parameter in model.parameters():
        parameter.requires_grad_(True)
    assert not differences(before, snapshot(model))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: s2a.quantize_activations(m, 5), "bits=5 .* 1, 2, 3, 4, 8"),
        (lambda m: s2a.quantize_activations(m, 4, "exact"), "levels='exact' .* 'paper', 'derivative'"),
        (lambda m: (s2a.quantize_activations(m), s2a.quantize_activations(m)), "quantised already"),
    ],
)
def test_bad_input_is_refused(call: Callable[[nn.Module], object], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        call(tiny.vit())


class Functional(nn.Module):
    """A model that calls everything as a function."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(16, 48)
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 16)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).chunk(3, -1)
        x = x + F.scaled_dot_product_attention(q, k, v)
        x = F.relu(F.silu(F.gelu(self.fc1(x), approximate="tanh")))
        return self.fc2(F.hardswish(x).relu())


def test_what_a_model_calls_as_a_function_is_coded() -> None:
    model, x = Functional(), torch.randn(4, 30, 16)
    before = s2a.saved_bytes(model, x, torch.sum)
    expected = model(x)
    exact = torch.autograd.grad(expected.square().sum(), list(model.parameters()))
    edits = s2a.quantize_activations(model)
    out = model(x)
    torch.testing.assert_close(out, expected)  # attention is not the fused one
    for one, other in zip(exact, torch.autograd.grad(out.square().sum(), list(model.parameters())), strict=True):
        assert F.cosine_similarity(one.flatten(), other.flatten(), 0) > 0.9
    kept = s2a.saved_bytes(model, x, torch.sum)
    elements = 4 * 30 * 64
    # Inputs of three curved functions in 4 bits, two masks of 1 bit, the map in 4 bits and two bytes a row.
    codes = 3 * elements // 2 + 2 * elements // 8 + 4 * 30 * (30 // 2 + 2)
    assert kept["model"] == codes + 4 * 4 * 30 * 48
    copied = copy.deepcopy(model)
    edits.undo()
    assert s2a.saved_bytes(model, x, torch.sum) == before
    assert s2a.saved_bytes(copied, x, torch.sum) == kept


@pytest.mark.full
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
def test_functions_are_coded_under_compilation() -> None:
    model, x = Functional(), torch.randn(4, 30, 16)
    s2a.quantize_activations(model)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), model(x))
