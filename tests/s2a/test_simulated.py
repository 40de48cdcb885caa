"""The simulated peak against peaks by hand, autograd's account, the CPU allocator and another simulation's figures."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
import torch.nn.functional as F
from s2a import testing
from test_selection import split_rings
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

SCALARS = 4096
"""Bytes of what the sums by hand leave out: loss, its gradient and step counts, 512 each."""

# By hand


@pytest.mark.parametrize("layers", [3, 8])
def test_a_chain_of_frozen_layers(layers: int) -> None:
    """Frozen linear layers keep nothing: logits, and one layer's two gradients, whatever the depth."""
    width, batch = 256, 64
    model = nn.Sequential(*(nn.Linear(width, width) for _ in range(layers))).requires_grad_(False)
    model[0].bias.requires_grad_(True)
    weights, state = 4 * layers * (width * width + width), 2 * 4 * width
    activation = 4 * batch * width
    peak = s2a.simulated_peak(model, batch, input_shape=(width,), loss_fn=torch.sum)
    assert peak.phase == "backward"
    assert 0 <= peak.total - (weights + state + activation + 3 * activation) <= SCALARS
    assert 0 <= peak.phases["forward"] - (weights + state + activation + 2 * activation) <= SCALARS
    assert 0 <= peak.held - activation <= SCALARS  # The logits, which the loop holds.


@pytest.mark.parametrize("optimizer", ["foreach", "single", "fused"])
def test_the_optimisers_temporaries(optimizer: Any) -> None:
    """Roots of all matrices' moments at once; of one, its quotient and, in the loop's local, the one before; none."""
    width, batch = 256, 4
    model = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
    weights, activation = 4 * 2 * (width * width + width), 4 * batch * width
    temporary = {"foreach": 2 * 4 * width * width, "single": 3 * 4 * width * width, "fused": 0}[optimizer]
    peak = s2a.simulated_peak(model, batch, input_shape=(width,), loss_fn=torch.sum, optimizer=optimizer)
    step = 4 * weights + 2 * activation + temporary  # Input and logits outlive the backward pass.
    assert 0 <= peak.phases["optimizer"] - step <= SCALARS
    assert peak.phase == "optimizer" or optimizer == "fused"
    if optimizer == "foreach":
        assert peak.categories["weights"] == peak.categories["gradients"] == weights
        assert 0 <= peak.categories["optimiser state"] - 2 * weights <= SCALARS
        assert 0 <= peak.categories["transient"] - temporary <= SCALARS


def test_the_first_step_has_no_state_yet() -> None:
    model = nn.Linear(256, 256)
    first, second = (s2a.simulated_peak(model, 2, input_shape=(256,), steps=n) for n in (1, 2))
    state = 2 * 4 * (256 * 256 + 256)
    assert 0 <= second.phases["forward"] - first.phases["forward"] - state <= SCALARS


class Blocks(nn.Module):
    """A trained scale, then frozen MLPs, checkpointed or not."""

    def __init__(self, count: int, width: int, again: bool) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)) for _ in range(count)
        ).requires_grad_(False)
        self.again = again

    def forward(self, x: Tensor) -> Tensor:
        x = x * self.scale
        for block in self.blocks:
            x = checkpoint(block, x, use_reentrant=False) if self.again else block(x)
        return x


def test_checkpointing_keeps_inputs_of_blocks() -> None:
    count, width, batch = 6, 64, 64
    activation = 4 * batch * width
    plain, again = (
        s2a.simulated_peak(Blocks(count, width, switch), batch, input_shape=(width,), loss_fn=torch.sum)
        for switch in (False, True)
    )
    assert 0 <= plain.held - (4 * count * activation + activation) <= SCALARS
    assert 0 <= again.held - (count * activation + activation) <= 2 * SCALARS
    # Of what is computed again, GELU's input, its output's gradient and its own are there together.
    assert again.held + 3 * 4 * activation - SCALARS <= again.total - again.categories["weights"] < plain.total


def test_a_view_is_no_storage_and_a_variable_holds_one() -> None:
    class Local(nn.Module):
        def __init__(self, let_go: bool) -> None:
            super().__init__()
            self.scale, self.let_go = nn.Parameter(torch.ones(1)), let_go

        def forward(self, x: Tensor) -> Tensor:
            large = x.repeat(1, 64)
            some = large[:, :8].view(8, -1).clone()
            if self.let_go:
                del large
            return (x.repeat(1, 64).sum() + some.sum()) * self.scale

    held, gone = (s2a.simulated_peak(Local(b), 8, input_shape=(256,), loss_fn=torch.sum) for b in (False, True))
    assert held.total - gone.total == 4 * 8 * 256 * 64


# Against autograd's own account

PAIRS = [("vit", name) for name in ("bias", "full", "lora", "vpt", "unipt", "s2a:exact", "s2a:paper", "s2a:lean")]
PAIRS += [(model, name) for model in ("swin", "convnext") for name in ("full", "s2a:exact", "s2a:lean")]
FEW = [("vit", "full"), ("vit", "vpt"), ("vit", "unipt"), ("vit", "s2a:paper"), ("swin", "s2a:lean")]
FEW += [("convnext", "s2a:exact")]


def adapt(model: str, method: str, **options: Any) -> tuple[s2a.Adapted, int]:
    make_model, size = tiny.MODELS[model]
    name, _, activations = method.partition(":")
    options |= {"activations": activations} if activations else {}
    return s2a.attach(make_model(), s2a.method_config(name, **options), 5, image_size=size).train(), size


@pytest.mark.parametrize(("model", "method"), split_rings(PAIRS, fast=FEW))
def test_what_is_held_is_what_autograd_saves(model: str, method: str) -> None:
    """After the forward pass: weights, buffers, batch, what ``saved_bytes`` finds, the logits; up to rounding."""
    adapted, size = adapt(model, method)
    before, state = testing.snapshot(adapted), torch.get_rng_state()
    peak = s2a.simulated_peak(adapted, 4)
    assert not testing.differences(before, testing.snapshot(adapted))
    assert torch.equal(state, torch.get_rng_state())
    images = torch.randn(4, 3, size, size)
    saved = s2a.saved_bytes(adapted, images).total
    own = sum(t.numel() * t.element_size() for t in (*adapted.parameters(), *adapted.buffers()))
    if method == "full":  # The patch embedding keeps the images: they count with the batch.
        saved -= images.numel() * 4
    held = peak.after_forward - peak.categories["optimiser state"] - peak.categories["input"]
    roundings = 512 * (sum(1 for _ in adapted.parameters()) + sum(1 for _ in adapted.buffers()) + 60 + saved // 4096)
    assert 0 <= held - (own + saved) <= roundings
    assert 0 <= peak.held - saved <= roundings
    assert sum(peak.categories.values()) == peak.total == max(peak.phases.values())
    assert peak.total > peak.after_forward or peak.phase == "forward"


@pytest.mark.full
@pytest.mark.parametrize("method", ["bias", "s2a:lean"])
def test_more_images_take_more(method: str) -> None:
    adapted, _ = adapt("vit", method)
    totals = [s2a.simulated_peak(adapted, n).total for n in (2, 4, 8)]
    assert totals[0] < totals[1] < totals[2]
    assert s2a.simulated_peak(adapted, 8, image_size=32).total == totals[2]


def test_half_precision_takes_less() -> None:
    adapted, _ = adapt("vit", "bias")
    exact = s2a.simulated_peak(adapted, 8)
    assert s2a.simulated_peak(adapted, 8, autocast=torch.bfloat16).held < exact.held
    assert s2a.simulated_peak(adapted.to(torch.bfloat16), 8).total < 0.6 * exact.total


# Against the CPU's allocator


def allocated(model: nn.Module, images: Tensor) -> int:
    """Most bytes that PyTorch's CPU allocator held in a second real step, by its own reports to the profiler."""
    labels = torch.zeros(len(images), dtype=torch.long)
    optimiser = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], foreach=True)

    def step() -> None:
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)

    step()
    gc.collect()
    gc.disable()
    try:
        state = [v for values in optimiser.state.values() for v in values.values()]
        present = {t.untyped_storage() for t in (*model.parameters(), *model.buffers(), images, labels, *state)}
        sizes = {storage._cdata: storage.nbytes() for storage in present}
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
            step()
    finally:
        gc.enable()
    live = most = 0
    profiler: Any = profile.profiler
    reports = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    for report in sorted(reports, key=lambda event: event.start_ns()):
        live += report.nbytes()
        most = max(most, live)
    return sum(sizes.values()) + most


@pytest.mark.parametrize(
    ("model", "method"),
    split_rings(
        [("vit", "bias"), ("vit", "full"), ("vit", "s2a:paper"), ("swin", "s2a:exact"), ("swin", "s2a:lean")],
        fast=[("vit", "full"), ("swin", "s2a:lean")],
    ),
)
def test_a_real_step_holds_as_much(model: str, method: str) -> None:
    """Within 3 %: rounding on one side, what kernels use inside themselves on the other."""
    adapted, size = adapt(model, method)
    real = allocated(adapted, torch.randn(8, 3, size, size))
    assert s2a.simulated_peak(adapted, 8).total == pytest.approx(real, rel=0.03)


# Full size, against figures of an independent simulation (MB, fp32, batch 32, 100 classes)


@pytest.mark.parametrize(
    ("method", "checkpointing", "expected", "within"),
    [
        ("full", False, 4880, 0.01),
        pytest.param("bias", False, 2868, 0.01, marks=pytest.mark.full),
        pytest.param("lora", True, 968, 0.05, marks=pytest.mark.full),
    ],
)
def test_full_size_agrees_with_another_simulation(
    method: str, checkpointing: bool, expected: int, within: float
) -> None:
    model: Any = timm.create_model("vit_base_patch16_224")
    model.set_grad_checkpointing(checkpointing)
    adapted = s2a.attach(model, s2a.method_config(method), 100)
    assert s2a.simulated_peak(adapted).total / 1e6 == pytest.approx(expected, rel=within)


# What must not happen


def test_the_model_stays_as_it_is() -> None:
    adapted, size = adapt("vit", "s2a:lean")
    images = torch.randn(2, 3, size, size)
    adapted(images).sum().backward()
    grads = {name: p.grad.clone() for name, p in s2a.trainable_parameters(adapted).items() if p.grad is not None}
    adapted.eval()
    before = adapted(images)
    s2a.simulated_peak(adapted, 2)
    assert not adapted.training
    assert torch.equal(adapted(images), before)
    assert grads
    assert all(torch.equal(p.grad, grads[name]) for name, p in adapted.named_parameters() if p.grad is not None)
    assert not nn.modules.module._global_forward_hooks
    assert not nn.modules.module._global_forward_pre_hooks
    assert gc.isenabled()


def test_a_model_that_fails_leaves_nothing_behind() -> None:
    with pytest.raises(RuntimeError):
        s2a.simulated_peak(nn.Linear(3, 3), 2, input_shape=(5,))
    assert not nn.modules.module._global_forward_hooks
    assert gc.isenabled()
    assert type(torch.ones(1)) is Tensor


def test_the_largest_say_where_they_come_from() -> None:
    adapted, _ = adapt("vit", "bias")
    peak = s2a.simulated_peak(adapted, 64)
    sizes = [live.bytes for live in peak.largest]
    assert sizes == sorted(sizes, reverse=True)
    places = {live.module for live in peak.largest if live.category == "held activations"}
    assert "backbone.blocks.0.mlp.fc1" in places
    assert "backbone.blocks.0.mlp.fc1" in str(peak)


class Looks(nn.Module):
    """Decides by a value."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale if x.sum() > 0 else x


@pytest.mark.parametrize(
    ("make_model", "options", "word"),
    [
        (Looks, {"input_shape": (2,)}, "decides by values"),
        (nn.Identity, {"input_shape": (2,)}, "Nothing trains"),
        (functools.partial(nn.Linear, 2, 2), {}, "input_shape"),
        (functools.partial(nn.Linear, 2, 2), {"input_shape": (2,), "image_size": 2}, "both"),
        (functools.partial(nn.Linear, 2, 2), {"input_shape": (0,)}, "no elements"),
        (functools.partial(nn.Linear, 2, 2), {"input_shape": (2,), "batch_size": 0}, "batch_size=0"),
        (functools.partial(nn.Linear, 2, 2), {"input_shape": (2,), "batch_size": 2.0}, "batch_size=2.0"),
        (functools.partial(nn.Linear, 2, 2), {"input_shape": (2,), "steps": 0}, "steps=0"),
        (functools.partial(nn.Linear, 2, 2), {"input_shape": (2,), "optimizer": "sgd"}, "'foreach', 'single', 'fused'"),
        (lambda: adapt("vit", "bias")[0], {"image_size": (32, 32, 3)}, "image_size=(32, 32, 3)"),
        (lambda: adapt("vit", "bias")[0], {"image_size": 0}, "no elements"),
    ],
)
def test_bad_input(make_model: Callable[[], nn.Module], options: dict[str, Any], word: str) -> None:
    with pytest.raises(s2a.S2AError) as caught:
        s2a.simulated_peak(make_model(), **options)
    assert word in str(caught.value)
