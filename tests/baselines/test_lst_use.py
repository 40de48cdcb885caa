"""Ladder side-tuning in use: dropped layers, gates, pruned starts, and what is refused."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import tiny
import torch
from lst_by_hand import (
    Leaves,
    attached,
    tapped,
)
from s2a.backbones.view import describe
from s2a.testing import differences, snapshot
from s2a_baselines.lst import LST, Gate, LSTConfig
from torch import Tensor, nn

# Layer dropping, gates, pruning


def test_gates_start_at_one_half_and_follow_the_temperature() -> None:
    gate = Gate(0.1)
    s, h = torch.randn(2, 3, 4), torch.randn(2, 3, 4)
    torch.testing.assert_close(gate(s, h), (s + h) / 2)
    nn.init.constant_(gate.alpha, 0.2)
    mu = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(gate(s, h), mu * s + (1 - mu) * h)


@pytest.mark.parametrize(
    ("keep", "blocks", "transitions", "width"),
    [
        ("all", [0, 1, 2, 3, 4], [0, 0, 1, 0, 1], 16),
        (2, [1, 3], [0, 1], 8),
        ((0,), [0], [0], 4),
        ((1, 4), [1, 4], [0, 2], 16),
    ],
)
def test_dropped_layers_leave_the_stages_connected(
    keep: Any, blocks: list[int], transitions: list[int], width: int
) -> None:
    _, adapted, images = attached("swin", LSTConfig(keep=keep))
    names = [block.name for block in describe(tiny.swin(), 64).blocks]
    assert [tap.place for tap in adapted.method.taps] == [names[0]] + [names[i] for i in blocks]
    assert [len(step.transitions) for step in adapted.method.steps] == transitions
    assert adapted.method.up.in_features == width
    assert adapted(images).shape == (2, tiny.CLASSES)


def top(score: Tensor, count: int) -> list[int]:
    return sorted(sorted(range(len(score)), key=lambda i: -float(score[i]))[:count])


def pruned_transformer(block: Any, columns: list[int] | None, heads: int, r: int) -> tuple[Leaves, list[int]]:
    """A block's pruned weights, row by row, and the rows that its last matrix keeps."""
    width = block.attn.proj.weight.shape[0]
    size, found = width // heads, {}
    if columns is None:
        columns = top(block.attn.qkv.weight.abs().sum(0), width // r)
    found |= {"norm1.weight": block.norm1.weight[columns], "norm1.bias": block.norm1.bias[columns]}
    q, k, v = (block.attn.qkv.weight[i * width : (i + 1) * width][:, columns] for i in range(3))
    rows: list[int] = []
    for h in range(heads):
        score = torch.stack([(q[i] * k[i] * v[i]).abs().sum() for i in range(h * size, (h + 1) * size)])
        rows += [h * size + i for i in top(score, size // r)]
    found["attn.qkv.weight"] = torch.cat([q[rows], k[rows], v[rows]])
    found["attn.qkv.bias"] = torch.cat([block.attn.qkv.bias[i * width : (i + 1) * width][rows] for i in range(3)])
    for new, layer in (("attn.proj", block.attn.proj), ("fc1", block.mlp.fc1), ("fc2", block.mlp.fc2)):
        weight = layer.weight[:, rows]
        rows = top(weight.abs().sum(1), len(weight) // r)
        found |= {f"{new}.weight": weight[rows], f"{new}.bias": layer.bias[rows]}
        if new == "attn.proj":
            found |= {"norm2.weight": block.norm2.weight[rows], "norm2.bias": block.norm2.bias[rows]}
    return found, rows


def pruned_convnext(block: Any, columns: list[int] | None, r: int) -> tuple[Leaves, list[int]]:
    fc1, fc2 = block.mlp.fc1.weight.flatten(1), block.mlp.fc2.weight.flatten(1)
    if columns is None:
        columns = top(fc1.abs().sum(0), fc1.shape[1] // r)
    found = {
        f"{n}.{k}": getattr(getattr(block, n), k)[columns] for n in ("conv_dw", "norm") for k in ("weight", "bias")
    }
    rows = top(fc1[:, columns].abs().sum(1), len(fc1) // r)
    found |= {"fc1.weight": fc1[rows][:, columns], "fc1.bias": block.mlp.fc1.bias[rows]}
    last = top(fc2[:, rows].abs().sum(1), len(fc2) // r)
    found |= {"fc2.weight": fc2[last][:, rows], "fc2.bias": block.mlp.fc2.bias[last], "gamma": block.gamma[last]}
    return found, last


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "convnext_conv"])
def test_pruned_weights_are_the_largest_rows(name: str) -> None:
    model = tiny.MODELS[name][0]()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    adapted = s2a.attach(copy.deepcopy(model), LSTConfig(init="pruned"), 5, image_size=tiny.MODELS[name][1])
    blocks = describe(model, tiny.MODELS[name][1]).blocks
    columns: list[int] | None = None
    for i, block in enumerate(blocks):
        if i and block.stage != blocks[i - 1].stage:
            columns = None
        module: Any = model.get_submodule(block.name)
        if name.startswith("convnext"):
            found, columns = pruned_convnext(module, columns, 8)
        else:
            found, columns = pruned_transformer(module, columns, block.heads, 8)
        if name == "swin":
            found["attn.relative_position_bias_table"] = module.attn.relative_position_bias_table
        state = dict(adapted.method.get_submodule(f"steps.{i}.block").named_parameters())
        assert state.keys() == found.keys()
        for key, value in found.items():
            assert torch.equal(state[key], value), f"{block.name} {key}"


@torch.no_grad()
@pytest.mark.parametrize("name", ["vit", "swin", "convnext", "convnext_conv"])
def test_pruning_nothing_is_the_backbones_own_block(name: str) -> None:
    """With r = 1 every side block is the block that it stands beside, windows, shifts and all."""
    model, adapted, images = attached(name, LSTConfig(reduction=1, init="pruned"))
    start, maps = tapped(model, images)
    compared = 0
    for step, before, after in zip(adapted.method.steps, [start, *maps], maps, strict=False):
        if before.shape == after.shape:  # No downsampling in between.
            torch.testing.assert_close(step.block(before), after)
            compared += 1
    assert compared >= 2


@torch.no_grad()
def test_dropped_blocks_pass_their_rows_on() -> None:
    """Pruning walks all blocks: the second one's weights do not depend on whether the first has a side block."""
    model = tiny.vit()
    both, one = (s2a.attach(copy.deepcopy(model), LSTConfig(init="pruned", keep=keep), 5) for keep in ("all", (1,)))
    state = one.method.get_submodule("steps.0.block").state_dict()
    for key, value in both.method.get_submodule("steps.1.block").state_dict().items():
        assert torch.equal(state[key], value)


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": 0}, "reduction=0 must be an integer of 1 or more"),
        ({"reduction": True}, "reduction=True"),
        ({"reduction": 2.0}, "reduction=2.0"),
        ({"keep": "some"}, "keep='some' names no blocks; give 'all', an integer k"),
        ({"keep": 0}, "keep=0 names no blocks"),
        ({"keep": True}, "keep=True"),
        ({"keep": ()}, "keep=() names no blocks"),
        ({"keep": (1, 0)}, "keep=(1, 0) names no blocks"),
        ({"keep": (1, 1)}, "keep=(1, 1)"),
        ({"keep": (-1,)}, "keep=(-1,)"),
        ({"init": "fisher"}, "init='fisher' is unknown; choose 'random' or 'pruned'"),
        ({"temperature": 0.0}, "temperature=0.0 must be above 0"),
        ({"temperature": math.inf}, "temperature=inf"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        LSTConfig(**options)


def test_blocks_may_be_a_list() -> None:
    assert s2a.method_config("lst", keep=[0, 1]) == LSTConfig(keep=(0, 1))


@pytest.mark.parametrize(
    ("make_model", "size", "options", "message"),
    [
        (tiny.vit, 32, {"reduction": 7}, "reduction=7 does not divide the width 32 of the 2 heads of blocks.0"),
        (tiny.vit, 32, {"reduction": 64}, "choose a divisor of 32"),
        (tiny.convnext, 64, {"reduction": 64}, "reduction=64 does not divide the 32 channels of stages.0.blocks.0"),
        (tiny.vit, 32, {"keep": 3}, "keep=3 does not fit a backbone of 2 blocks; choose 1 to 2, or 'all'"),
        (tiny.vit, 32, {"keep": (0, 2)}, "keep=(0, 2) does not fit a backbone of 2 blocks; choose indices from 0 to 1"),
        (tiny.resnet, 64, {"init": "pruned"}, "init='pruned': block layer1.0 of this resnet lacks the matrices"),
        (tiny.eva, 32, {"init": "pruned"}, "init='pruned': block blocks.0 of this vit lacks the matrices"),
    ],
)
def test_what_does_not_fit_leaves_the_model_alone(
    make_model: Callable[[], Any], size: int, options: dict[str, Any], message: str
) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        s2a.attach(model, LSTConfig(**options), 5, image_size=size)
    assert not differences(before, snapshot(model))


def test_it_is_registered() -> None:
    assert s2a.method_config("lst") == LSTConfig()
    assert not LST.trains_backbone
