"""The registry of lean forwards, as a package with a method of its own uses it."""

from __future__ import annotations

import copy
import dataclasses
import io
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
import torch.nn.functional as F
from s2a import registry, testing
from s2a.backbones import Backbone, Edits, pooled_features
from s2a.lean import LeanOptions, recompute_from_codes, recompute_map_forward, recompute_tokens_forward
from s2a.lean import registry as lean_registry
from s2a.ops.rows import kept_bytes
from timm.layers.mlp import SwiGLU, SwiGLUPacked
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

WIDTH, SIDE = 8, 8


class Mixer(nn.Module):
    """A side-branch block that the library has never heard of."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv2d(WIDTH, 4 * WIDTH, 1)
        self.outer = nn.Conv2d(4 * WIDTH, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(x)).square())


class TokenMixer(nn.Module):
    """The same on tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.outer(torch.tanh(self.inner(x)).square())


class Shift(nn.Module):
    """Adds a learned vector to the stream, over it where it may."""

    s2a_in_place = False

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.value = nn.Parameter(torch.zeros(channels))

    def before(self, module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        return (x.add_(self.value) if self.s2a_in_place and x.requires_grad and not x.is_leaf else x + self.value,)


@dataclasses.dataclass(frozen=True)
class SideConfig(LeanOptions):
    """Config of ``Side``."""


class Side(s2a.Method):
    """A third-party method: blocks of two classes of its own on the channels' means, beside a shifted backbone."""

    identity_at_start = True

    def __init__(self, config: SideConfig, backbone: Backbone, edits: Edits) -> None:
        super().__init__(config, backbone, edits)
        self.feature_dim += WIDTH
        self.maps, self.tokens = Mixer(), TokenMixer()
        shifts = [Shift(block.channels) for block in backbone.blocks]
        for block, shift in zip(backbone.blocks, shifts, strict=True):
            edits.before(backbone.module(block.name), shift.before)
        self.shifts = nn.ModuleList(shifts)
        edits.before(backbone.module(backbone.blocks[-1].name), self.tap)
        self.tapped: Any = None

    def tap(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        self.tapped = args[0][:, 1:].unflatten(2, (WIDTH, -1)).mean(3)

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        features = pooled_features(model, images)
        tokens, self.tapped = self.tapped, None
        grid = self.maps(tokens.transpose(1, 2).unflatten(2, (SIDE, SIDE)))
        return torch.cat([features, self.tokens(grid.flatten(2).transpose(1, 2)).mean(1)], 1)


@pytest.fixture(autouse=True)
def own_registries(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test registers is gone after it."""
    s2a.list_methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    monkeypatch.setattr(lean_registry, "_LEAN_FORWARDS", dict(lean_registry._LEAN_FORWARDS))
    s2a.register_method("side", SideConfig)(Side)


def attached(model: Any = None, **options: Any) -> Any:
    """The method on a tiny ViT; the same weights whatever the options."""
    torch.manual_seed(0)
    model = tiny.vit() if model is None else model
    torch.manual_seed(1)
    adapted = s2a.attach(model, SideConfig(**options), tiny.CLASSES)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    return adapted.train()


def images(batch: int = 4) -> Tensor:
    return torch.randn(batch, 3, 32, 32)


def register() -> None:
    """The one line for each block that a third party writes."""
    s2a.register_lean_forward(Mixer)(recompute_map_forward)
    s2a.register_lean_forward(TokenMixer)(recompute_tokens_forward)


def of_blocks(saved: dict[str, int]) -> int:
    """Bytes under the two blocks' paths."""
    return sum(size for name, size in saved.items() if name.startswith(("method.maps", "method.tokens")))


def test_a_registered_block_keeps_the_codes_of_its_input_and_nothing_else() -> None:
    batch = images()
    before = of_blocks(s2a.saved_bytes(attached(activations="lean"), batch))
    register()
    after = of_blocks(s2a.saved_bytes(attached(activations="lean"), batch))
    codes = 2 * kept_bytes(len(batch) * SIDE * SIDE, WIDTH, 8)
    # By hand: input, tanh's output and its square, of 1, 4 and 4 times WIDTH channels, in fp32, in both blocks.
    assert before >= 2 * 4 * len(batch) * SIDE * SIDE * WIDTH * 9
    assert after == codes < before / 10
    assert of_blocks(s2a.saved_bytes(attached(activations="exact"), batch)) == before


def test_the_logits_are_the_same_and_gradients_those_at_the_coded_input() -> None:
    """Against the formula: gradients of the stock block at an input that was rounded to 256 levels of each row."""
    register()
    adapted = attached(activations="lean")
    block = adapted.method.maps
    x, grad = torch.randn(2, WIDTH, SIDE, SIDE, requires_grad=True), torch.randn(2, WIDTH, SIDE, SIDE)
    out = block(x)
    assert torch.equal(out, Mixer.forward(block, x))
    parameters = [x, *block.parameters()]
    found = torch.autograd.grad(out, parameters, grad)
    low, high = x.detach().amin(1, keepdim=True), x.detach().amax(1, keepdim=True)
    step = (high - low) / 255
    rounded = (low + ((x.detach() - low) / step).round() * step).requires_grad_()
    expected = torch.autograd.grad(Mixer.forward(block, rounded), [rounded, *block.parameters()], grad)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_gradients_of_the_whole_model_are_close_to_exact_ones() -> None:
    register()
    batch = images()
    exact, lean = attached(activations="exact"), attached(activations="lean")
    torch.testing.assert_close(lean(batch), exact(batch), rtol=1e-4, atol=1e-4)
    expected = lean_models.gradients(exact, batch)
    assert min(lean_models.cosines(lean_models.gradients(lean, batch), expected).values()) > 0.999
    lean_models.keep_all(lean)  # The bits are the only difference: with all 32 of them there is none.
    assert lean.method.maps.s2a_lean_bits == lean.method.tokens.s2a_lean_bits == 32
    lean_models.assert_same(lean_models.gradients(lean, batch), expected, 1e-4)


def test_detaching_restores_the_backbone_and_the_modules() -> None:
    register()
    model = tiny.vit()
    before = testing.snapshot(model)
    adapted = attached(model, activations="lean", in_place=True)
    maps, shift = adapted.method.maps, adapted.method.shifts[0]
    assert "forward" in maps.__dict__ and shift.s2a_in_place
    lean_models.loss_of(adapted(images())).backward()
    s2a.detach(adapted)
    assert not testing.differences(before, testing.snapshot(model))
    assert not {"forward", "s2a_lean_bits"} & maps.__dict__.keys()
    assert not shift.s2a_in_place


def test_modules_that_can_write_in_place_do_and_gradients_stay() -> None:
    batch = images()
    plain, over = attached(activations="lean"), attached(activations="lean", in_place=True)
    assert all(shift.s2a_in_place for shift in over.method.shifts)
    assert not any(shift.s2a_in_place for shift in plain.method.shifts)
    lean_models.assert_same(lean_models.gradients(over, batch), lean_models.gradients(plain, batch), 1e-5)


def test_copies_and_pickles_have_their_own_lean_blocks() -> None:
    register()
    lean, batch = attached(activations="lean"), images()
    expected = lean_models.gradients(lean, batch)
    stream = io.BytesIO()
    torch.save(lean, stream)
    stream.seek(0)
    for other in (copy.deepcopy(lean), torch.load(stream, weights_only=False)):
        kept = other.method.maps.forward.args[0]
        assert kept is other.method.maps
        for name, grad in lean_models.gradients(other, batch).items():
            assert torch.equal(grad, expected[name]), name


def test_only_the_exact_class_is_matched() -> None:
    class Wider(Mixer):
        pass

    register()
    assert lean_registry.lean_forward_of(Mixer()) is not None
    assert lean_registry.lean_forward_of(Wider()) is None


def test_bits_follow_whether_the_own_weight_trains() -> None:
    s2a.register_lean_forward(nn.Conv1d, bits=12, frozen_bits=2)(recompute_map_forward)
    layer = nn.Conv1d(2, 2, 1)
    entry = lean_registry.lean_forward_of(layer)
    assert entry is not None and entry.bits_for(layer) == 12
    layer.weight.requires_grad_(False)
    assert entry.bits_for(layer) == 2


@pytest.mark.parametrize("kind", [nn.Dropout(0.5), nn.BatchNorm2d(WIDTH)])
def test_what_a_second_run_would_change_runs_once(kind: nn.Module) -> None:
    """A block that draws or counts: its gradients are autograd's own, its statistics move once."""
    block = nn.Sequential(nn.Conv2d(WIDTH, WIDTH, 1), kind).train()
    reference = copy.deepcopy(block)
    x = torch.randn(2, WIDTH, 4, 4)
    grads = []
    for module, run in (
        (block, lambda m: recompute_from_codes(type(m).forward, m, x, 8, 1)),
        (reference, lambda m: m(x)),
    ):
        torch.manual_seed(0)
        grads.append(torch.autograd.grad(run(module).square().sum(), list(module.parameters())))
    for one, other in zip(*grads, strict=True):
        assert torch.equal(one, other)
    for one, other in zip(block.buffers(), reference.buffers(), strict=True):
        assert torch.equal(one, other)


def test_nothing_is_kept_without_a_gradient() -> None:
    block = Mixer().requires_grad_(False)
    x = torch.randn(2, WIDTH, 4, 4)
    out = recompute_from_codes(Mixer.forward, block, x, 8, 1)
    assert not out.requires_grad and torch.equal(out, block(x))
    with torch.no_grad():
        assert recompute_from_codes(Mixer.forward, block, x.requires_grad_(), 8, 1).grad_fn is None


def test_under_autocast_the_second_run_has_the_format_of_the_first() -> None:
    block, x = Mixer(), torch.randn(2, WIDTH, 4, 4, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = recompute_from_codes(Mixer.forward, block, x, 32, 1)
        expected = block(x)
    assert out.dtype == expected.dtype and torch.equal(out, expected)
    wanted = [x, *block.parameters()]
    found = torch.autograd.grad(out.float().sum(), wanted)
    for one, other in zip(found, torch.autograd.grad(expected.float().sum(), wanted), strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)


def other_forward(self: Any, x: Tensor) -> Tensor:
    return F.relu(x)


def test_what_cannot_be_registered_is_refused() -> None:
    register()
    with pytest.raises(s2a.S2AError, match=r"Mixer already has the lean forward s2a.lean.recompute.recompute_map_forw"):
        s2a.register_lean_forward(Mixer)(other_forward)
    with pytest.raises(s2a.S2AError, match=r"takes nn.Module classes, not 3"):
        s2a.register_lean_forward(3)  # type: ignore[arg-type]
    with pytest.raises(s2a.S2AError, match=r"takes nn.Module classes, not Mixer"):
        s2a.register_lean_forward(Mixer())  # type: ignore[arg-type]
    with pytest.raises(s2a.S2AError, match="got no class"):
        s2a.register_lean_forward()
    register()  # A module that is imported anew registers the same forward again.
    assert lean_registry.lean_forward_of(Mixer()).forward is recompute_map_forward  # type: ignore[union-attr]


def test_a_refused_registration_changes_nothing() -> None:
    class First(nn.Module):
        pass

    register()
    with pytest.raises(s2a.S2AError):
        s2a.register_lean_forward(First, Mixer)(other_forward)
    assert lean_registry.lean_forward_of(First()) is None


def test_the_method_keeps_every_promise() -> None:
    register()
    for check in (testing.check_output, testing.check_training, testing.check_inference, testing.check_autocast):
        check(testing.Case(SideConfig(activations="lean"), tiny.vit(), tiny.CLASSES, images()))


@pytest.mark.parametrize("method", ["bias", "full", "lora"])
@pytest.mark.parametrize("layer", [SwiGLUPacked, SwiGLU])
def test_gated_mlps_keep_codes_of_their_input(layer: Any, method: str) -> None:
    model = VisionTransformer(
        img_size=32, patch_size=8, embed_dim=64, depth=2, num_heads=2, num_classes=5, mlp_layer=layer
    )
    config = {"rank": 4, "targets": ("qkv",)} if method == "lora" else {}
    exact, lean = (
        s2a.attach(copy.deepcopy(model), s2a.method_config(method, **config, activations=activations), 5)
        for activations in ("exact", "lean")
    )
    torch.nn.init.normal_(exact.get_parameter("head.weight"))
    lean.load_state_dict(exact.state_dict())
    images = torch.randn(3, 3, 32, 32)
    kept = s2a.saved_bytes(lean, images)
    tokens = 17
    assert kept.within["backbone.blocks.1.mlp"] == kept_bytes(3 * tokens, 64, 8)
    lean_models.keep_all(lean)
    expected, found = lean_models.gradients(exact, images), lean_models.gradients(lean, images)
    assert lean_models.error(found, expected) < 1e-5
