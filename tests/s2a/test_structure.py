"""Bias, Low-Rank Prompt and Lite Side Branch against their equations."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any

import oracles
import pytest
import s2a
import timm.layers.config
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a import testing
from s2a.backbones.view import Block, describe, pooled_features
from s2a.structure.bias import additive_biases
from s2a.structure.low_rank_prompt import LowRankPrompt, max_rank
from s2a.structure.side_branch import LiteSideBranch, SideBlock, Transition, channel_average_pool
from torch import Tensor, nn


def block(
    channels: int = 8, grid: tuple[int, int] = (4, 6), prefix: int = 0, layout: Any = "NLC", stage: int = 0
) -> Block:
    return Block("block", stage, channels, grid, grid, prefix, layout, None, 0, {}, {})


def block_input(of: Block, batch: int = 2) -> Tensor:
    height, width = of.grid
    shapes = {
        "NLC": (batch, of.tokens, of.channels),
        "NHWC": (batch, height, width, of.channels),
        "NCHW": (batch, of.channels, height, width),
    }
    return torch.randn(shapes[of.layout])


class Apply(nn.Module):
    """A module of an input that needs a gradient, in front of which nothing is kept."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(()))
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        return self.module(x + self.shift)


# Bias


@pytest.mark.parametrize("name", tiny.MODELS)
def test_biases_are_what_layers_add(name: str) -> None:
    model = tiny.MODELS[name][0]()
    expected = set()
    for path, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.LayerNorm | nn.BatchNorm2d) and module.bias is not None:
            expected.add(f"{path}.bias")
        expected |= {f"{path}.{n}" for n in ("q_bias", "v_bias") if isinstance(getattr(module, n, None), nn.Parameter)}
    found = additive_biases(model)
    assert set(found) == expected
    assert all(found[n] is dict(model.named_parameters())[n] for n in found)


# Low-Rank Prompt


@pytest.mark.parametrize("layout", ["NLC", "NHWC", "NCHW"])
@pytest.mark.parametrize("window", [0, 2])
def test_prompt_is_the_dense_sum(layout: str, window: int) -> None:
    of = block(prefix=1 if layout == "NLC" and not window else 0, layout=layout)
    if window and layout == "NLC":
        of = dataclasses.replace(of, layout="NHWC")
    prompt = LowRankPrompt(of, 3, window=(window, window) if window else None)
    nn.init.normal_(prompt.a)
    x = block_input(of)
    dense = torch.stack([torch.outer(prompt.a[:, i], prompt.b[i]) for i in range(3)]).sum(0)
    expected = x.clone()
    width = of.grid[1]
    for n in range(of.tokens):
        if of.layout == "NLC":
            expected[:, n] += dense[n]
            continue
        i, j = n // width, n % width
        row = dense[(i % window) * window + j % window] if window else dense[n]
        if of.layout == "NHWC":
            expected[:, i, j] += row
        else:
            expected[:, :, i, j] += row
    torch.testing.assert_close(prompt(x), expected)


@pytest.mark.parametrize("layout", ["NLC", "NHWC", "NCHW"])
def test_prompt_starts_as_the_identity_and_can_learn(layout: str) -> None:
    of = block(layout=layout)
    prompt = LowRankPrompt(of, 3)
    x = block_input(of)
    assert torch.equal(prompt(x), x)
    assert bool(prompt.b.any())
    grad_a, grad_b = torch.autograd.grad(prompt(x).square().sum(), (prompt.a, prompt.b))
    assert bool(grad_a.any())
    assert not bool(grad_b.any())  # A is zero: B waits one step.


@given(rank=st.integers(1, 4), prefix=st.integers(0, 2))
def test_prompt_keeps_no_activation(rank: int, prefix: int) -> None:
    of = block(prefix=prefix)
    assert s2a.saved_bytes(Apply(LowRankPrompt(of, rank)), block_input(of), torch.sum).total == 0


def test_prompt_follows_the_inputs_dtype() -> None:
    of = block()
    assert LowRankPrompt(of, 2)(block_input(of).bfloat16()).dtype == torch.bfloat16


def test_largest_rank_is_that_of_the_product() -> None:
    of = block(channels=8, grid=(4, 6), prefix=1)
    assert max_rank(of) == 8
    assert max_rank(dataclasses.replace(of, channels=100)) == 25
    assert max_rank(block(channels=100, grid=(4, 6), layout="NHWC"), (2, 3)) == 6


@pytest.mark.parametrize(("grid", "window"), [((4, 6), (3, 3)), ((5, 7), (2, 3)), ((3, 7), (3, 4))])
def test_window_prompts_are_cut_where_windows_are(grid: tuple[int, int], window: tuple[int, int]) -> None:
    """Attention pads a map on the right and below: every window starts with the prompt's first position."""
    prompt = LowRankPrompt(block(grid=grid, layout="NHWC"), 2, window=window)
    nn.init.normal_(prompt.a)
    full, own = prompt.prompt(), (prompt.a @ prompt.b).view(*window, -1)
    for i in range(grid[0]):
        for j in range(grid[1]):
            assert torch.equal(full[i, j], own[i % window[0], j % window[1]])


@pytest.mark.parametrize("layout", ["NLC", "NHWC", "NCHW"])
def test_images_of_another_size_are_refused(layout: str) -> None:
    prompt = LowRankPrompt(block(grid=(1, 1), layout=layout), 1)
    with pytest.raises(s2a.S2AError, match="another size than the model was adapted for; give attach their image_size"):
        prompt(block_input(block(grid=(2, 2), layout=layout)))


# Lite Side Branch


@given(
    groups=st.integers(1, 4),
    reduction=st.integers(1, 5),
    batch=st.integers(0, 2),
    layout=st.sampled_from(["last", "first"]),
)
def test_pooling_is_a_dense_average(groups: int, reduction: int, batch: int, layout: str) -> None:
    x = torch.randn(
        batch, 3, 2, groups * reduction, generator=torch.Generator().manual_seed(groups), dtype=torch.float64
    )
    expected = oracles.average_channels(x, reduction)
    if layout == "last":
        torch.testing.assert_close(channel_average_pool(x, reduction, -1), expected)
    else:
        found = channel_average_pool(x.permute(0, 3, 1, 2), reduction, 1)
        torch.testing.assert_close(found, expected.permute(0, 3, 1, 2))


def test_pooling_keeps_nothing() -> None:
    class Pool(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return channel_average_pool(x, 4, -1)

    assert s2a.saved_bytes(Apply(Pool()), torch.randn(2, 5, 8), torch.sum).total == 0


@pytest.mark.parametrize("activation", ["gelu", "none"])
@pytest.mark.parametrize("prefix", [0, 1, 3])
def test_branch_is_the_recurrence(activation: str, prefix: int) -> None:
    of = block(channels=16, grid=(4, 4), prefix=prefix)
    branch = LiteSideBranch([of, of, of], 4, activation)
    for parameter in branch.parameters():
        nn.init.normal_(parameter, std=0.5)
    inputs = [block_input(of) for _ in range(3)]
    run = branch.new_run()
    for i, x in enumerate(inputs):
        run.tap(i, x)
    torch.testing.assert_close(run.finish(), oracles.side_branch(branch, inputs, prefix), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "resnet"])
def test_branch_reads_the_blocks_own_inputs(name: str) -> None:
    """In a whole model the taps are the inputs of the blocks before the prompt is added."""
    make_model, size = tiny.MODELS[name]
    model, images = make_model().eval(), torch.randn(2, 3, size, size)
    adapted: Any = s2a.attach(model, s2a.S2AConfig(lrp_rank=4), 5, image_size=size).eval()
    branch = adapted.method.branch
    for prompt in adapted.method.prompts:
        nn.init.normal_(prompt.a)
    seen: dict[str, Tensor] = {}

    def record(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen[names[module]] = args[0].detach().clone()

    names = {model.get_submodule(b.name): b.name for b in branch.blocks}
    for module in names:
        module.register_forward_pre_hook(record, prepend=True)
    features = adapted.method(model, images)
    run = branch.new_run()
    for i, of in enumerate(branch.blocks):
        run.tap(i, seen[of.name])
    torch.testing.assert_close(features[:, -branch.width :], run.finish())
    assert torch.equal(features[:, : -branch.width], pooled_features(model, images))


@pytest.mark.parametrize(
    ("before", "after"),
    [((8, 8), (4, 4)), ((9, 9), (4, 4)), ((9, 9), (5, 5)), ((5, 7), (3, 4)), ((3, 3), (2, 2)), ((4, 4), (1, 1))],
)
def test_transitions_reach_the_next_grid(before: tuple[int, int], after: tuple[int, int]) -> None:
    transition = Transition(6, 10, before, after)
    assert transition(torch.randn(2, 6, *before)).shape == (2, 10, *after)


def test_transition_is_layer_norm_and_a_convolution() -> None:
    transition = Transition(6, 10, (4, 4), (2, 2))
    x = torch.randn(2, 6, 4, 4)
    normed = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + transition.norm.eps).sqrt()
    expected = torch.zeros(2, 10, 2, 2)
    for i in range(2):
        for j in range(2):
            patch = normed[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
            expected[:, :, i, j] = torch.einsum("bcij,ocij->bo", patch, transition.conv.weight)
    assert transition.conv.bias is not None
    expected += transition.conv.bias[:, None, None]
    torch.testing.assert_close(transition(x), expected)


@pytest.mark.parametrize(("name", "size"), [("resnet", 72), ("resnet", 40), ("convnext", 72)])
def test_odd_maps(name: str, size: int) -> None:
    model = tiny.MODELS[name][0]()
    adapted = s2a.attach(model, s2a.S2AConfig(lrp_rank=2), 5, image_size=size)
    assert adapted(torch.randn(2, 3, size, size)).shape == (2, 5)


@pytest.mark.parametrize("size", [(56, 56), (64, 64), (60, 60), (56, 112), (48, 80), (24, 64)])
def test_odd_maps_of_windows(size: tuple[int, int]) -> None:
    """Maps that windows of 7 do not tile, and maps smaller than a window along one side."""
    model = tiny.swin(img_size=size, window_size=7)
    adapted = s2a.attach(model, s2a.S2AConfig(lrp_rank=2), 5)
    assert adapted(torch.randn(2, 3, *size)).shape == (2, 5)


@pytest.mark.filterwarnings("ignore:None of the inputs have requires_grad")
def test_a_branch_that_would_be_cut_off_says_so() -> None:
    """Reentrant checkpointing runs blocks without gradient first: what is tapped there has none."""
    model = tiny.vit()
    adapted = s2a.attach(model, s2a.S2AConfig(lrp_rank=2), 5)
    model.set_grad_checkpointing(True)
    timm.layers.config.set_reentrant_ckpt(True)
    try:
        with pytest.raises(s2a.S2AError, match=r"cut off; use timm\.layers\.set_reentrant_ckpt\(False\)"):
            adapted(torch.randn(2, 3, 32, 32))
        with torch.no_grad():
            assert adapted(torch.randn(2, 3, 32, 32)).shape == (2, 5)
    finally:
        timm.layers.config.set_reentrant_ckpt(False)


def test_branch_keeps_small_tensors_alone() -> None:
    of = block(channels=32, grid=(4, 4))
    branch = LiteSideBranch([of, of], 8, "none")

    class Run(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.branch = branch

        def forward(self, x: Tensor) -> Tensor:
            run = branch.new_run()
            run.tap(0, x)
            run.tap(1, x)
            return run.finish()

    kept = s2a.saved_bytes(Apply(Run()), block_input(of), torch.sum)
    small = 4 * 2 * 16 * 4  # One tensor of the branch: float32, batch 2, 16 positions, 32 / 8 channels.
    # Each site keeps the input of its three convolutions.
    assert kept.total == 2 * 3 * small


def test_side_block_preserves_variance() -> None:
    torch.manual_seed(0)
    site = SideBlock(64, "none")
    x = torch.randn(4, 64, 16, 16)
    out, _ = site(x, None)
    assert 0.5 < float((out[:, :, 1:-1, 1:-1].var() / x.var()).detach()) < 2


def test_reduction_must_divide() -> None:
    with pytest.raises(s2a.S2AError, match=r"lsb_reduction=5 does not divide the 16 channels of block"):
        LiteSideBranch([block(channels=16)], 5, "gelu")


def test_a_block_that_does_not_run_is_named() -> None:
    branch = LiteSideBranch([block()], 4, "gelu")
    with pytest.raises(s2a.S2AError, match="block did not run"):
        branch.new_run().finish()


# The method


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lrp_rank": -1}, "lrp_rank=-1"),
        ({"lrp_rank": 2.5}, "lrp_rank=2.5"),
        ({"lsb_reduction": True}, "lsb_reduction=True"),
        ({"train_bias": 1}, "train_bias=1"),
        ({"activations": "8bit"}, "activations='8bit'.*'exact', 'paper'"),
        ({"bits": 5}, "bits=5 .*1, 2, 3, 4, 8"),
        ({"bits": True}, "bits=True"),
        ({"levels": "sine"}, "levels='sine'"),
        ({"lrp_shape": "row"}, "lrp_shape='row'"),
        ({"lsb_activation": "relu"}, "lsb_activation='relu'"),
        ({"sites": "some"}, "sites='some'"),
        ({"sites": ()}, r"sites=\(\)"),
        ({"sites": (1, 0)}, "ascending"),
        ({"lrp_std": 0.0}, "lrp_std=0.0"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        s2a.S2AConfig(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lrp_rank": 65}, r"lrp_rank=65 is larger than min\(N, C\) = 64 .* choose 1 to 64"),
        ({"lsb_reduction": 7}, "lsb_reduction=7 does not divide the 64 channels of blocks.0; choose a divisor of 64"),
        ({"sites": (0, 2)}, "beyond the 2 blocks"),
        ({"sites": (-1, 0)}, "beyond the 2 blocks"),
        ({"lrp_shape": "window"}, "needs windowed attention, which vit lacks"),
    ],
)
def test_options_that_do_not_fit_leave_the_model_alone(options: dict[str, Any], message: str) -> None:
    model = tiny.vit()
    before = testing.snapshot(model)
    with pytest.raises(s2a.S2AError, match=message):
        s2a.attach(model, s2a.S2AConfig(**options), 5)
    assert not testing.differences(before, testing.snapshot(model))
    s2a.attach(model, s2a.method_config("s2a", lrp_rank=64, sites=[0]), 5)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rank", [0, 4])
@pytest.mark.parametrize("reduction", [0, 8])
def test_parts_can_be_switched_off(bias: bool, rank: int, reduction: int) -> None:
    config = s2a.S2AConfig(lrp_rank=rank, lsb_reduction=reduction, train_bias=bias)
    model = tiny.vit()
    backbone = describe(model)
    adapted = s2a.attach(model, config, 5)
    expected = sum(p.numel() for p in additive_biases(model).values()) if bias else 0
    tokens, channels, sites = backbone.blocks[0].tokens, 64, 2
    expected += rank * (tokens + channels) * sites
    small = channels // reduction if reduction else 0
    expected += (2 * (small**2 + small) + 10 * small) * sites
    expected += 5 * (channels + small) + 5
    assert sum(p.numel() for p in s2a.trainable_parameters(adapted).values()) == expected
    assert adapted(torch.randn(2, 3, 32, 32)).shape == (2, 5)


def test_modes_keep_the_same_function() -> None:
    model, images = tiny.vit(), torch.randn(2, 3, 32, 32)
    logits = []
    for activations in ("exact", "paper"):
        torch.manual_seed(1)
        adapted = s2a.attach(copy.deepcopy(model), s2a.S2AConfig(activations=activations), 5).eval()
        logits.append(adapted(images))
    torch.testing.assert_close(*logits)


def test_sites_of_the_paper() -> None:
    plain: Any = s2a.attach(tiny.vit(), s2a.S2AConfig(), 5)
    assert [b.name for b in plain.method.branch.blocks] == ["blocks.0", "blocks.1"]
    staged: Any = s2a.attach(tiny.swin(), s2a.S2AConfig(), 5)
    assert {b.stage for b in staged.method.branch.blocks} == {1, 2}
    every: Any = s2a.attach(tiny.swin(), s2a.S2AConfig(sites="all"), 5)
    assert len(every.method.branch.blocks) == 5
