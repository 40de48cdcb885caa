"""Gradients of lean activations: with nothing rounded they are exact, and what is kept is what the planner counts."""

from __future__ import annotations

import functools
import sys
from typing import Any

import lean_models
import pytest
import s2a
import torch
import torch.nn.functional as F
from lean_models import assert_same, cosines, error, flat, gradients, images_for, keep_all, pair
from s2a.lean import SavedBits
from s2a.lean import linear as layers
from s2a.lean.attention import attention
from s2a.lean.class_token import class_attention
from s2a.lean.mlp import mlp
from s2a.lean.norm import batch_norm, layer_norm
from s2a.lean.spec import BranchOptions
from s2a.ops.reference import FORWARDS
from test_selection import split_rings
from timm.models.swin_transformer import WindowAttention
from torch import Tensor, nn

EXACT = SavedBits(32, 0)


def tensors(width: int, inner: int, last: int, rank: int) -> list[Tensor | None]:
    """Weight and bias of a norm, then W, b, A, U of two layers, in float64."""

    def random(*size: int) -> Tensor:
        return (0.5 * torch.randn(size, dtype=torch.float64)).requires_grad_()

    found: list[Tensor | None] = [random(width), random(width)]
    for out, into in ((inner, width), (width, last)):
        found += [random(out, into), random(out)]
        found += [random(rank, into), random(out, rank)] if rank else [None, None]
    return found


def stock(x: Tensor, weights: list[Any], scales: tuple[float, float], between: Any) -> Tensor:
    """Norm, layer, what is between, layer, with the layers' updates written out."""
    width = len(weights[0])
    x = F.layer_norm(x, (width,), weights[0], weights[1], 1e-6)
    for i, scale in enumerate(scales):
        w, b, a, u = weights[2 + 4 * i : 6 + 4 * i]
        update = 0 if a is None else scale * (x @ a.T) @ u.T
        x = F.linear(x, w, b) + update
        x = between(x) if i == 0 else x
    return x


def compare(found: Tensor, expected: Tensor, inputs: list[Any]) -> None:
    """Values and all gradients, the loss being a random linear one."""
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    compare_gradients(found, expected, inputs)


def compare_gradients(found: Tensor, expected: Tensor, inputs: list[Any]) -> None:
    """All gradients, the loss being a random linear one."""
    given = [t for t in inputs if t is not None and t.requires_grad]
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(found, given, direction)
    for one, other in zip(ours, torch.autograd.grad(expected, given, direction, retain_graph=True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def leaf(*size: int) -> Tensor:
    """Noise in float64 that wants a gradient."""
    return torch.randn(size, dtype=torch.float64, requires_grad=True)


def softmax_attention(heads: int, scale: float, added: Tensor | None) -> Any:
    """From rows of q, k, v to rows of mixed values, by einsum."""

    def mix(qkv: Tensor) -> Tensor:
        images, tokens, _ = qkv.shape
        q, k, v = qkv.view(images, tokens, 3, heads, -1).unbind(2)
        scores = torch.einsum("bnhd,bmhd->bhnm", q, k) * scale
        if added is not None:
            scores = scores + added.repeat(images // len(added), 1, 1, 1)
        return torch.einsum("bhnm,bmhd->bnhd", scores.softmax(-1), v).reshape(images, tokens, -1)

    return mix


@pytest.mark.parametrize("tokens", [1, 5, 40], ids=["one", "map smaller than the projection", "larger"])
@pytest.mark.parametrize("windows", [0, 1, 2], ids=["plain", "bias", "bias and mask"])
@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("inner", [0, 32], ids=["q, k, v again", "q, k, v kept"])
def test_attention_is_attention(
    tokens: int, windows: int, rank: int, inner: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(layers, "CHUNK", 4 * 24 * tokens)
    # Windows of a chunk go in pieces of two: with masks those of one image.
    monkeypatch.setattr(sys.modules["s2a.lean.attention"], "CPU_PIECE", 2 * 24 * tokens)
    x, weights = leaf(6, tokens, 8), tensors(8, 24, 8, rank)
    bias = leaf(1, 2, tokens, tokens) if windows else None
    mask = torch.where(torch.rand(2, tokens, tokens) < 0.3, -9.0, 0.0).double() if windows == 2 else None
    scales = (1.5, 0.5) if rank else (1.0, 1.0)
    shape = BranchOptions(SavedBits(32, inner), 1e-6, heads=2, scale=0.7, scales=scales, dtype=torch.float64)
    added = None if bias is None else bias if mask is None else bias + mask.unsqueeze(1)
    expected = stock(x, weights, scales, softmax_attention(2, 0.7, added))
    compare(attention(shape, x, bias, mask, tuple(weights)), expected, [x, bias, *weights])


@pytest.mark.parametrize("rank", [0, 2])
def test_the_class_token_row_is_that_row(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "CHUNK", 2 * 24 * 7)
    x, weights = leaf(5, 7, 8), tensors(8, 24, 8, rank)
    shape = BranchOptions(EXACT, 1e-6, heads=2, scale=0.7, scales=(1.5, 0.5), dtype=torch.float64)
    expected = stock(x, weights, (1.5, 0.5), softmax_attention(2, 0.7, None))[:, :1]
    compare(class_attention(shape, x, tuple(weights)), expected, [x, *weights])


@pytest.mark.parametrize("activation", FORWARDS)
@pytest.mark.parametrize("maps", [False, True])
@pytest.mark.parametrize("rank", [0, 2])
def test_the_mlp_is_the_mlp(activation: str, maps: bool, rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "CHUNK", 2 * 16 * 12)
    x, weights = leaf(5, 3, 4, 6), tensors(6, 16, 16, rank)
    shape = BranchOptions(EXACT, 1e-6, maps, activation, scales=(1.5, 0.5), dtype=torch.float64)
    expected = stock(x, weights, (1.5, 0.5), FORWARDS[activation][1])
    given = x.permute(0, 3, 1, 2) if maps else x
    found = mlp(shape, given, tuple(weights))
    compare(found.permute(0, 2, 3, 1) if maps else found, expected, [x, *weights])


def rounded(between: Any, into: Tensor, weights: list[Any], columns: slice = slice(None)) -> Any:
    """``between`` on the first layer's output as a bf16 product gives it, with the exact product's gradient."""

    def run(y: Tensor) -> Tensor:
        h = F.layer_norm(into, (into.shape[-1],), weights[0], weights[1], 1e-6)
        w, b, a, u = weights[2:6]
        low = F.linear(h.bfloat16(), w.bfloat16(), b.bfloat16()).double()
        if a is not None:
            low = low + 1.5 * (h @ a.T) @ u.T
        moved = torch.zeros_like(y)
        moved[..., columns] = (low - y)[..., columns]
        assert 1e-4 < moved.abs().max() < 0.2  # It does make a difference.
        return between(y + moved.detach())

    return run


@pytest.mark.parametrize("rank", [0, 2])
@pytest.mark.parametrize("kind", ["attention of windows", "attention", "class token", "mlp"])
def test_products_computed_again_in_bf16(kind: str, rank: int) -> None:
    """Gradients are those at the rounded q, k, v, or input of the activation; the output is the exact one."""
    tokens = 40 if kind == "attention" else 7
    x, weights = leaf(5, tokens, 8), tensors(8, 24, 24 if kind == "mlp" else 8, rank)
    common = {"scales": (1.5, 0.5), "dtype": torch.float64, "recompute_dtype": torch.bfloat16}
    shape = BranchOptions(EXACT, 1e-6, heads=2, scale=0.7, **common)
    if kind == "mlp":
        between, columns, found = F.gelu, slice(None), mlp(shape, x, tuple(weights))
    else:
        between = softmax_attention(2, 0.7, None)
        columns = slice(8 if kind == "class token" else 0, None)  # The one query's product is small, and stays exact.
        found = (
            class_attention(shape, x, tuple(weights))
            if kind == "class token"
            else attention(shape, x, None, None, tuple(weights))
        )
    exact, again = (
        stock(x, weights, (1.5, 0.5), run)[:, : found.shape[1]]
        for run in (between, rounded(between, x, weights, columns))
    )
    torch.testing.assert_close(found, exact, rtol=1e-10, atol=1e-11)
    compare_gradients(found, again, [x, *weights])


@pytest.mark.parametrize("wanted", range(11))
def test_each_gradient_alone(wanted: int) -> None:
    """What one tensor asks for must not depend on what others ask for."""
    x, weights = leaf(3, 5, 8), tensors(8, 24, 8, 2)
    inputs = [x, *weights]
    for i, tensor in enumerate(inputs):
        tensor.requires_grad_(i == wanted)  # type: ignore[union-attr]
    shape = BranchOptions(EXACT, 1e-6, heads=2, scale=0.7, dtype=torch.float64)
    expected = stock(x, weights, (1.0, 1.0), softmax_attention(2, 0.7, None))
    compare(attention(shape, x, None, None, tuple(weights)), expected, inputs)
    compare(class_attention(shape, x, tuple(weights)), expected[:, :1], inputs)
    weights[6], weights[8] = leaf(8, 24).requires_grad_(wanted == 7), leaf(2, 24).requires_grad_(wanted == 9)
    compare(mlp(shape, x, tuple(weights)), stock(x, weights, (1.0, 1.0), F.gelu), [x, *weights])


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("maps", [False, True])
def test_the_norm_is_the_norm(affine: bool, maps: bool) -> None:
    x = leaf(3, 2, 5, 6)
    weight, bias = (leaf(6), leaf(6)) if affine else (None, None)
    found = layer_norm(x.permute(0, 3, 1, 2) if maps else x, weight, bias, 1e-6, 32, maps)
    expected = F.layer_norm(x, (6,), weight, bias, 1e-6)
    compare(found.permute(0, 2, 3, 1) if maps else found, expected, [x, weight, bias])


@pytest.mark.parametrize(("family", "method"), lean_models.PAIRS)
def test_with_nothing_rounded_gradients_are_exact(family: str, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every family under every method, in float64, in chunks of an image or two, training weights included."""
    monkeypatch.setattr(layers, "CHUNK", 30_000)
    exact, lean = (model.double().train() for model in pair(family, method))
    keep_all(lean, inner=32 if method == "bias" else 0)
    found, images = [], images_for(family).double()
    for model in (exact, lean):
        torch.manual_seed(1)
        found.append(gradients(model, images))
    assert_same(found[1], found[0], 1e-10)
    for (name, one), (_, other) in zip(exact.named_buffers(), lean.named_buffers(), strict=True):
        torch.testing.assert_close(one, other, msg=name)  # Batch statistics moved alike.


@pytest.mark.parametrize("keeps", ["as set up", "q, k, v kept", "all made again"])
@pytest.mark.parametrize("method", ["bias", "lora", "full"])
@pytest.mark.parametrize("family", lean_models.FUSED)
def test_a_branch_keeps_what_the_planner_counts(family: str, method: str, keeps: str) -> None:
    """To the byte, module by module; beside it, attention on windows keeps the bias that it was given."""
    if keeps == "q, k, v kept" and family.startswith("convnext"):
        pytest.skip("no attention")
    lean = pair(family, method)[1].train()
    assert lean._branches or (family, method) == ("convnext_conv", "lora")
    for branch in lean._branches:
        if keeps == "q, k, v kept" and branch.role == "attn" and not branch.spec.fixed:
            branch.saved_bits = SavedBits(3, 8)
        if keeps == "all made again":
            branch.saved_bits = SavedBits(12, 0)
    kept = s2a.saved_bytes(lean, images_for(family, 3))
    names = {module: name for name, module in lean.named_modules()}
    for branch in lean._branches:
        size = branch.spec.nbytes(branch.saved_bits, 3)
        if isinstance(branch.body, WindowAttention):
            size += 4 * branch.body.num_heads * branch.body.window_area**2
        assert kept[names[branch.body]] == size
        assert names[branch.norm] not in kept


@pytest.mark.parametrize(("family", "method"), split_rings(lean_models.PAIRS, fast=lean_models.CORE))
def test_gradients_point_where_exact_ones_do(family: str, method: str) -> None:
    exact, lean = (model.train() for model in pair(family, method))
    found, images = [], images_for(family, 8)
    for model in (exact, lean):
        torch.manual_seed(1)
        found.append(gradients(model, images))
    assert F.cosine_similarity(flat(found[1]), flat(found[0]), 0) >= 0.99
    for group, cosine in cosines(found[1], found[0]).items():
        assert cosine >= 0.975, group  # Of so few channels a code's error does not average out.


@pytest.mark.parametrize("family", lean_models.FUSED)
@pytest.mark.parametrize("varied", ["norm", "inner"])
def test_more_bits_are_closer(family: str, varied: str) -> None:
    exact, lean = (model.eval() for model in pair(family, "bias"))  # Nothing is dropped.
    keep_all(lean)
    images, errors = images_for(family), []
    expected = gradients(exact, images)
    for bits in (2, 4, 8, 12) if varied == "norm" else (2, 4, 8):
        for branch in lean._branches:
            inner = 0 if branch.spec.fixed or branch.role == "attn" else 8
            branch.saved_bits = (
                SavedBits(bits, inner) if varied == "norm" else SavedBits(12, bits if branch.role == "mlp" else 0)
            )
        errors.append(error(gradients(lean, images), expected))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.1 * errors[0]


def test_an_update_of_every_width_is_scaled() -> None:
    """Alpha / r in both passes: doubling alpha and halving U is the same function."""
    grads = []
    for alpha, factor in ((4.0, 1.0), (8.0, 0.5)):
        torch.manual_seed(0)
        _, lean = pair("vit", "lora", alpha=alpha)
        for update in lean.method.updates:
            update.b.weight.data.mul_(factor)
        torch.manual_seed(1)
        grads.append(gradients(lean.train(), images_for("vit")))
    for name, own in grads[0].items():
        scaled = grads[1][name] / (2 if name.endswith("b.weight") else 1)
        torch.testing.assert_close(scaled, own, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("family", ["vit", "swin", "resnet"])
def test_a_second_derivative_is_refused(family: str) -> None:
    lean = pair(family, "bias")[1].train()
    parameter = next(iter(s2a.trainable_parameters(lean).values()))
    (grad,) = torch.autograd.grad(lean(images_for(family)).sum(), parameter, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        grad.sum().backward()


# Batch norms


def test_a_batch_norm_in_training_mode_is_the_stock_one() -> None:
    stock, lean = (nn.BatchNorm2d(6, momentum=0.3).double() for _ in range(2))
    x = (3 + 2 * torch.randn(4, 6, 5, 7, dtype=torch.float64)).requires_grad_()
    for norm in (stock, lean):
        torch.manual_seed(1)
        nn.init.normal_(norm.weight)
    for _ in range(2):  # Statistics move twice.
        found, expected = batch_norm(lean, x, 32), stock(x)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
        direction = torch.randn_like(x)
        ours = torch.autograd.grad(found, [x, *lean.parameters()], direction)
        theirs = torch.autograd.grad(expected, [x, *stock.parameters()], direction)
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)
        for name, buffer in stock.named_buffers():
            assert torch.equal(lean.get_buffer(name), buffer)


@pytest.mark.parametrize("training", [True, False])
def test_a_resnet_keeps_codes_and_masks_alone(training: bool) -> None:
    """Biases alone train: convolutions and fixed batch norms keep no input, ReLU a bit of each element."""
    exact, lean = (model.train(training) for model in pair("resnet", "bias"))
    images = images_for("resnet")
    kept = s2a.saved_bytes(lean, images)
    sizes: dict[str, int] = {}

    def note(name: str, module: nn.Module, args: tuple[Tensor, ...]) -> None:
        sizes[name] = args[0].numel()

    handles = [
        module.register_forward_pre_hook(functools.partial(note, name))
        for name, module in lean.named_modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d | nn.ReLU)
    ]
    with torch.no_grad():
        lean(images)
    for handle in handles:
        handle.remove()
    for name, module in lean.named_modules():
        if isinstance(module, nn.Conv2d):
            assert name not in kept
        if isinstance(module, nn.ReLU):
            assert kept[name] <= sizes[name] / 8 + 8
        if isinstance(module, nn.BatchNorm2d):
            numbers = 4 * module.num_features  # A map has a minimum and a step.
            assert kept.get(name, 0) == (sizes[name] + 2 * 3 * numbers + numbers if training else numbers)
    assert kept.total < s2a.saved_bytes(exact, images).total


def test_sites_say_what_layers_read() -> None:
    """What the planner must know of a method: whose inputs gradients are made of."""
    for method, expected in (("bias", (False, False)), ("lora", (True, False)), ("full", (True, False))):
        site = pair("vit", method)[1]._branches[0].spec
        assert (site.reads_first, site.reads_last) == expected
    assert pair("vit", "full")[1]._branches[1].spec.reads_last
