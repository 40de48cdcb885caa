"""The AdaptFormer baseline against its equation, written out without layers."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
import torch.nn.functional as F
from method_contract import IN_BOTH_RINGS
from s2a.backbones import calls
from s2a.backbones.view import describe, pooled_features
from s2a.testing import check_method, differences, snapshot
from s2a_baselines.adaptformer import AdaptFormer, AdaptFormerConfig
from timm.layers.norm import LayerNorm2d
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn

NAMES = [name for name in tiny.MODELS if name != "resnet"]
PLAIN = AdaptFormerConfig(width=5, scale=0.7, dropout=0.0)


def attached(name: str, config: AdaptFormerConfig, dtype: torch.dtype = torch.float64) -> tuple[Any, Any, Tensor]:
    """A plain tiny model in evaluation mode, an adapted copy with all weights away from zero, and images."""
    make_model, size = tiny.MODELS[name]
    model = make_model().eval().to(dtype)
    adapted = s2a.attach(copy.deepcopy(model), config, tiny.CLASSES, image_size=size)
    for parameter in adapted.method.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model, adapted, torch.randn(2, 3, size, size, dtype=dtype)


class DenseBlock(nn.Module):
    """A block's norm and MLP with the equation around them, position by position; stands in the norm's place.

    What it returns goes through ``Nothing``, which stands in the MLP's.
    """

    def __init__(self, norm: Any, mlp: Any, scale: float, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.norm, self.mlp, self.scale, self.weights = norm, mlp, scale, weights

    def forward(self, x: Tensor) -> Tensor:
        first = isinstance(self.norm, LayerNorm2d)
        rows = (x.movedim(1, -1) if first else x).flatten(0, -2)
        w_down, b_down, w_up, b_up = (self.weights[k] for k in ("down.weight", "down.bias", "up.weight", "up.bias"))
        added = []
        for row in rows:
            z = (w_down.flatten(1) * row).sum(1) + b_down
            z = torch.where(z > 0, z, torch.zeros_like(z))
            added.append(self.scale * ((w_up.flatten(1) * z).sum(1) + b_up))
        shape = x.movedim(1, -1).shape if first else x.shape
        total = torch.stack(added).view(shape)
        return self.mlp(self.norm(x)) + (total.movedim(-1, 1) if first else total)


class Nothing(nn.Module):
    """What is left of an MLP that ran before."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize("name", NAMES)
def test_outputs_and_gradients_are_the_equation(name: str) -> None:
    model, adapted, images = attached(name, PLAIN)
    method, blocks = adapted.method, describe(model, images.shape[-1]).blocks
    assert type(method) is AdaptFormer
    assert len(method.adapters) == len(blocks)
    for module in (*model.modules(), *adapted.modules()):  # Layer scale of 1e-6 would hide what is added.
        gamma = getattr(module, "gamma", None)
        if isinstance(gamma, nn.Parameter):
            nn.init.constant_(gamma, 0.5)
    leaves: dict[str, Tensor] = {}
    for i, (block, adapter) in enumerate(zip(blocks, method.adapters, strict=True)):
        own = {k: p.detach().clone().requires_grad_() for k, p in adapter.named_parameters()}
        assert own["down.weight"].flatten(1).shape == (5, block.channels)
        leaves |= {f"{i}.{k}": p for k, p in own.items()}
        norm, mlp = (model.get_submodule(block.parts[part]) for part in ("mlp_norm", "mlp"))
        parent = model.get_submodule(block.name)
        setattr(parent, block.parts["mlp_norm"].rpartition(".")[2], DenseBlock(norm, mlp, 0.7, own))
        parent.mlp = Nothing()
    expected, found = pooled_features(model, images), method(adapted.backbone, images)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert len(leaves) == 4 * len(blocks)
    for key, leaf in leaves.items():
        assert leaf.grad is not None and bool(leaf.grad.any())
        grad = method.adapters.get_parameter(key).grad
        torch.testing.assert_close(grad, leaf.grad, msg=lambda m, n=key: f"{n}: {m}")


@pytest.mark.parametrize("name", NAMES)
def test_the_start_is_the_backbone(name: str) -> None:
    """``up`` and the biases are zero, ``down`` is uniform; Kaiming's bound for a = sqrt(5) is 1 / sqrt(C)."""
    make_model, size = tiny.MODELS[name]
    model, images = make_model().eval(), torch.randn(2, 3, size, size)
    adapted: Any = s2a.attach(copy.deepcopy(model), AdaptFormerConfig(), tiny.CLASSES, image_size=size)
    assert torch.equal(adapted.method(adapted.backbone, images), pooled_features(model, images))
    for adapter, block in zip(adapted.method.adapters, describe(model, size).blocks, strict=True):
        assert not bool(adapter.up.weight.any() | adapter.up.bias.any() | adapter.down.bias.any())
        bound, found = block.channels**-0.5, adapter.down.weight.detach()
        assert 0.95 * bound < float(found.abs().max()) <= bound
        assert abs(float(found.std()) / (bound / math.sqrt(3)) - 1) < 0.1


# Published counts: 2 * 64 * SC + 64 * blocks + SC, SC the sum of widths over blocks.
WIDTHS = (128, 256, 512, 1024)
STAGES = {
    "vit_base_patch16_224": ((768,), (12,)),
    "swin_base_patch4_window7_224": (WIDTHS, (2, 2, 18, 2)),
    "convnext_base": (WIDTHS, (3, 3, 27, 3)),
}


@pytest.mark.parametrize(
    ("name", "published"),
    [("vit_base_patch16_224", 1_189_632), ("swin_base_patch4_window7_224", 1_553_664), ("convnext_base", 2_330_496)],
)
def test_published_counts(name: str, published: int) -> None:
    widths, depths = STAGES[name]
    total = sum(c * n for c, n in zip(widths, depths, strict=True))
    assert 2 * 64 * total + 64 * sum(depths) + total == published
    adapted = s2a.attach(timm.create_model(name), AdaptFormerConfig(), 100)
    assert sum(p.numel() for p in adapted.method.parameters()) == published
    trained = s2a.trainable_parameters(adapted)
    assert trained.keys() - {"head.weight", "head.bias"} == {
        f"method.{n}" for n, _ in adapted.method.named_parameters()
    }


# Memory


@pytest.mark.parametrize("dropout", [0.0, 0.1])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_exact(name: str, training: bool, dropout: float) -> None:
    """Per block x, (N, C), the ReLU's output and the input of ``up``, (N, w); dropout's factors in training."""
    _, adapted, images = attached(name, AdaptFormerConfig(width=3, dropout=dropout), torch.float32)
    adapted.train(training)
    expected: dict[str, int] = {}
    for i, block in enumerate(describe(copy.deepcopy(tiny.MODELS[name][0]()), images.shape[-1]).blocks):
        positions = 2 * (math.prod(block.grid) + block.prefix)
        expected[f"adapters.{i}.down"] = 4 * positions * block.channels
        expected |= dict.fromkeys((f"adapters.{i}.act", f"adapters.{i}.up"), 4 * positions * 3)
        if training and dropout:
            expected[f"adapters.{i}.dropout"] = 4 * positions * 3
    assert adapted.method.keeps(2) == expected
    kept = s2a.saved_bytes(adapted, images).shared
    assert {n.removeprefix("method."): size for n, size in kept.items() if n.startswith("method")} == expected


@pytest.mark.parametrize("name", NAMES)
def test_the_stream_is_the_one_that_the_norm_keeps(name: str) -> None:
    """One storage, saved twice; not in the first block, where nothing in front of the norm trains and it keeps none."""
    _, adapted, images = attached(name, PLAIN, torch.float32)
    kept = s2a.saved_bytes(adapted, images)
    assert [path for path in kept if path.endswith(".down")] == ["method.adapters.0.down"]
    assert sum(path.endswith(".down") for path in kept.shared) == len(adapted.method.adapters)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_nothing_is_held_after_a_pass(name: str, checkpointing: bool) -> None:
    """Neither after the forward pass nor after the backward pass, in which a checkpointed block runs again."""
    _, adapted, images = attached(name, PLAIN)
    adapted.train().backbone.set_grad_checkpointing(checkpointing)
    loss = adapted(images).sum()
    assert not calls._stack.entries
    loss.backward()
    assert not calls._stack.entries
    copy.deepcopy(adapted)  # A stored tensor that needs a gradient could not be copied.


@pytest.mark.parametrize("name", NAMES)
def test_checkpointing_gives_the_same_gradients(name: str) -> None:
    """The same values are dropped again when a block runs again."""
    _, adapted, images = attached(name, AdaptFormerConfig(width=5, dropout=0.5))
    adapted.train()
    found = []
    for enable in (False, True):
        adapted.zero_grad()
        adapted.backbone.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        F.cross_entropy(adapted(images), torch.arange(2)).backward()
        found.append({n: p.grad.clone() for n, p in s2a.trainable_parameters(adapted).items() if p.grad is not None})
    assert found[0].keys() == found[1].keys()
    for key in found[0]:
        torch.testing.assert_close(found[0][key], found[1][key], msg=lambda m, n=key: f"{n}: {m}")


class Fails(nn.Module):
    """An MLP that runs out of memory."""

    def forward(self, x: Tensor) -> Tensor:
        raise MemoryError


def test_a_block_that_fails_leaves_nothing_behind() -> None:
    _, adapted, images = attached("vit", PLAIN)
    adapted.backbone.blocks[1].mlp.fc1 = Fails()
    with pytest.raises(MemoryError):
        adapted(images)
    assert not calls._stack.entries


@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["vit", pytest.param("convnext_conv", marks=pytest.mark.full)])
def test_it_compiles_into_one_graph(name: str) -> None:
    _, adapted, images = attached(name, PLAIN)
    torch._dynamo.reset()
    compiled = torch.compile(adapted, backend="aot_eager", fullgraph=True)
    found = []
    for call in (adapted, compiled):
        adapted.zero_grad()
        logits = call(images)
        logits.square().sum().backward()
        found.append([logits, *(p.grad for p in s2a.trainable_parameters(adapted).values())])
    torch.testing.assert_close(*found)
    assert not calls._stack.entries


def test_dropout_acts_in_training_alone() -> None:
    _, adapted, images = attached("vit", AdaptFormerConfig(dropout=0.5))
    assert torch.equal(adapted.eval()(images), adapted(images))
    assert not torch.equal(adapted.train()(images), adapted(images))


def test_dropout_drops_hidden_channels_and_keeps_their_mean() -> None:
    _, adapted, _ = attached("vit", AdaptFormerConfig(width=4, scale=1.0, dropout=0.25))
    adapter = adapted.method.adapters[0].train()
    nn.init.zeros_(adapter.down.weight)
    nn.init.ones_(adapter.down.bias)
    nn.init.constant_(adapter.up.weight, 1.0)
    nn.init.zeros_(adapter.up.bias)
    y = adapter(torch.randn(1, 20_000, 64, dtype=torch.float64)).detach()[0, :, 0]
    assert set((y * 0.75).round().tolist()) == {0.0, 1.0, 2.0, 3.0, 4.0}  # How many of four are left, over 0.75.
    assert abs(float(y.mean()) - 4) < 5 * (4 * (1 / 0.75 - 1) / 20_000) ** 0.5


# What does not fit


def test_it_cannot_be_merged() -> None:
    _, adapted, _ = attached("vit", PLAIN)
    before = snapshot(adapted)
    with pytest.raises(s2a.S2AError, match="AdaptFormer cannot be merged"):
        s2a.merge(adapted)
    assert not differences(before, snapshot(adapted))


class Narrow(nn.Module):
    """An MLP that fills up what it does not compute; its own output is as narrow as it says."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(64, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)


def _without_norm() -> Any:
    model: Any = tiny.vit()
    model.blocks[1].norm2 = nn.Identity()
    return model


def _narrow() -> Any:
    model: Any = tiny.vit()
    model.blocks[1].mlp = Narrow()
    return model


def _post_norm() -> Any:
    return tiny.vit(block_fn=ResPostBlock)


@pytest.mark.parametrize(
    ("make_model", "size", "message"),
    [
        (tiny.resnet, 64, "Block layer1.0 of this resnet has no MLP that follows a norm"),
        (_without_norm, 32, "Block blocks.1 of this vit has no MLP that follows a norm"),
        (_post_norm, 32, "Block blocks.0 of this vit has no MLP that follows a norm"),
        (_narrow, 32, "blocks.1.norm2 gets (1, 65, 64) and blocks.1.mlp outputs (1, 65, 1)"),
    ],
)
def test_a_model_that_does_not_fit_stays_as_it_is(make_model: Callable[[], Any], size: int, message: str) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.UnsupportedModel, match=re.escape(message)):
        s2a.attach(model, AdaptFormerConfig(), tiny.CLASSES, image_size=size)
    assert not differences(before, snapshot(model))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 0}, "width=0 is not a size; give an integer of at least 1"),
        ({"width": 2.5}, "width=2.5"),
        ({"width": True}, "width=True"),
        ({"scale": 0.0}, "scale=0.0 must be above 0"),
        ({"scale": -0.1}, "scale=-0.1"),
        ({"scale": float("inf")}, "scale=inf"),
        ({"scale": float("nan")}, "scale=nan"),
        ({"dropout": 1.0}, "dropout=1.0 is out of range; give a probability in [0, 1)"),
        ({"dropout": -0.1}, "dropout=-0.1"),
        ({"dropout": float("nan")}, "dropout=nan"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        AdaptFormerConfig(**options)


@IN_BOTH_RINGS
def test_other_options_keep_the_promises(checks: Any) -> None:
    make_model, size = tiny.MODELS["swin"]
    config = AdaptFormerConfig(width=100, scale=1.0, dropout=0.0)
    check_method(config, make_model, tiny.CLASSES, image_size=size, checks=checks)
