"""Visual prompts against forward passes put together by hand, from the equations."""

from __future__ import annotations

import copy
import math
import re
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a.backbones.view import describe, pooled_features
from s2a.testing import differences, snapshot
from s2a_baselines.vpt import RingPrompts, TokenPrompts, VPTConfig
from torch import Tensor, nn
from vpt_by_hand import (
    MODELS,
    attached,
    convolutional_by_hand,
    leaves_of,
    ring_by_hand,
    sequence_by_hand,
    sites_of,
    swin_by_hand,
)

SEQUENCES = ("vit", "vit_registers", "eva", "eva_rotary")
RINGS = ("convnext", "convnext_conv")
DEEP_AND_SHALLOW = pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])


def compare(adapted: Any, images: Tensor, leaves: list[Tensor], expected: Tensor) -> None:
    """Features, and the gradient of every prompt."""
    found = adapted.method(adapted.backbone, images)
    torch.testing.assert_close(found, expected)
    weight = torch.randn_like(expected)
    (expected * weight).sum().backward()
    (found * weight).sum().backward()
    assert len(leaves) == len(sites_of(adapted)) > 0
    for site, leaf in zip(sites_of(adapted), leaves, strict=True):
        assert leaf.grad is not None
        assert bool(leaf.grad.any())
        torch.testing.assert_close(site.prompts.grad, leaf.grad)


# Sequences


@DEEP_AND_SHALLOW
@pytest.mark.parametrize("name", SEQUENCES)
def test_a_sequence_is_concatenated(name: str, deep: bool) -> None:
    model, adapted, images = attached(name, deep=deep)
    assert adapted.method.names == (["blocks.0", "blocks.1"] if deep else ["blocks.0"])
    leaves = leaves_of(adapted)
    compare(adapted, images, leaves, sequence_by_hand(model, images, leaves, deep))


def test_rotary_positions_start_behind_the_prompts() -> None:
    model, adapted, _ = attached("eva_rotary")
    assert [b.attn.num_prefix_tokens for b in adapted.backbone.blocks] == [4, 4]
    assert [b.attn.num_prefix_tokens for b in s2a.detach(adapted).blocks] == [1, 1]  # type: ignore[union-attr]
    assert model.rope is not None


def test_grids_need_not_be_square() -> None:
    model, adapted, images = attached("vit", (16, 32), batch=3)
    leaves = leaves_of(adapted)
    compare(adapted, images, leaves, sequence_by_hand(model, images, leaves, True))


# Windows


def small_swin(monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of 4 x 4, small enough for loops; the first stage has shifted ones."""

    def make(**kwargs: Any) -> Any:
        return tiny.swin(**{"window_size": 4, "img_size": 32, **kwargs})

    monkeypatch.setitem(MODELS, "swin", (make, 32))


@pytest.mark.parametrize(
    ("options", "sites"),
    [
        ({}, ["1.blocks.0"]),
        ({"sites": "all"}, ["0.blocks.0", "0.blocks.1", "1.blocks.0", "1.blocks.1", "2.blocks.0"]),
        ({"deep": False}, ["1.blocks.0"]),
        ({"sites": "all", "deep": False}, ["0.blocks.0"]),
    ],
)
@pytest.mark.parametrize("fused", [True, False])
def test_prompts_join_windows_inside_attention(
    options: dict[str, Any], sites: list[str], fused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_swin(monkeypatch)
    model, adapted, images = attached("swin", **options)
    if not options:
        sites = ["1.blocks.0", "1.blocks.1", "2.blocks.0"]
    assert adapted.method.names == [f"layers.{site}.attn" for site in sites]
    for module in adapted.backbone.modules():
        if "fused_attn" in module.__dict__:
            module.fused_attn = fused
    leaves = leaves_of(adapted)
    expected = swin_by_hand(model, images, dict(zip(adapted.method.names, leaves, strict=True)))
    compare(adapted, images, leaves, expected)


def test_windows_of_a_map_that_is_not_square(monkeypatch: pytest.MonkeyPatch) -> None:
    small_swin(monkeypatch)
    model, adapted, images = attached("swin", (32, 64), batch=1, sites="all")
    leaves = leaves_of(adapted)
    expected = swin_by_hand(model, images, dict(zip(adapted.method.names, leaves, strict=True)))
    compare(adapted, images, leaves, expected)


def test_masks_made_on_the_fly_are_padded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    small_swin(monkeypatch)
    _, adapted, images = attached("swin", sites="all")
    make_model, _ = MODELS["swin"]
    monkeypatch.setitem(MODELS, "swin", (lambda: make_model(strict_img_size=False), 32))
    _, dynamic, _ = attached("swin", sites="all")
    assert dynamic.backbone.layers[0].blocks[1].attn_mask is None
    dynamic.load_state_dict(adapted.state_dict(), strict=False)
    for own, other in zip(dynamic.parameters(), adapted.parameters(), strict=True):
        own.data.copy_(other)
    torch.testing.assert_close(dynamic(images), adapted(images))


# Rings


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("name", [*RINGS, "resnet"])
def test_a_ring_goes_through_the_block(name: str, width: int) -> None:
    sites = "all" if name == "resnet" else "preset"
    model, adapted, images = attached(name, ring=width, sites=sites)
    leaves = leaves_of(adapted)
    prompts = dict(zip(adapted.method.names, leaves, strict=True))
    compare(adapted, images, leaves, convolutional_by_hand(model, images, prompts, width))


def test_a_ring_around_a_map_that_is_not_square() -> None:
    model, adapted, images = attached("convnext", (64, 96))
    leaves = leaves_of(adapted)
    prompts = dict(zip(adapted.method.names, leaves, strict=True))
    compare(adapted, images, leaves, convolutional_by_hand(model, images, prompts, 1))


@pytest.mark.parametrize("name", [*RINGS, "resnet"])
def test_a_shallow_ring_frames_the_image(name: str) -> None:
    """In pixels, normalised as the images are."""
    model, adapted, images = attached(name, deep=False, ring=4)
    (leaf,) = leaves = leaves_of(adapted)
    mean, std = (torch.tensor(model.pretrained_cfg[k]) for k in ("mean", "std"))
    expected = pooled_features(model, ring_by_hand(images, (leaf - mean[:, None]) / std[:, None], 4))
    compare(adapted, images, leaves, expected)


def test_strided_blocks_and_the_first_stage_have_no_ring() -> None:
    _, adapted, _ = attached("convnext")
    assert adapted.method.names == [f"stages.{b}" for b in ("1.blocks.0", "2.blocks.0", "2.blocks.1", "3.blocks.0")]
    _, adapted, _ = attached("resnet", sites="all")
    plain = describe(MODELS["resnet"][0](), 64)
    assert adapted.method.names == [b.name for b in plain.blocks if b.grid == b.grid_out]
    assert 0 < len(adapted.method.names) < len(plain.blocks)


@given(st.tuples(st.integers(1, 6), st.integers(1, 6)), st.integers(1, 3), st.integers(1, 4), st.integers(0, 3))
def test_a_ring_has_the_positions_that_a_map_grows_by(grid: tuple[int, int], p: int, c: int, batch: int) -> None:
    ring, x = RingPrompts(c, grid, p, 0.0), torch.randn(batch, c, *grid)
    padded = ring.pad(x)
    assert padded.shape == (batch, c, grid[0] + 2 * p, grid[1] + 2 * p)
    assert ring.prompts.numel() == ((grid[0] + 2 * p) * (grid[1] + 2 * p) - grid[0] * grid[1]) * c
    assert torch.equal(ring.crop(padded), x)


@given(st.integers(1, 5), st.integers(0, 3), st.integers(0, 4), st.integers(0, 3))
def test_stripping_undoes_inserting(count: int, prefix: int, tokens: int, batch: int) -> None:
    site, x = TokenPrompts(count, 2, prefix, 1.0, 0.0), torch.randn(batch, prefix + tokens, 2)
    longer = site.insert(x)
    assert longer.shape == (batch, prefix + count + tokens, 2)
    assert torch.equal(site.strip(longer), x)


# The start


def test_zeros_keep_the_function_where_one_convolution_mixes_positions() -> None:
    """Truthful: promised where it holds, on a model with biases and statistics as after training."""
    for name, promised in (("convnext", True), ("convnext_conv", True), ("resnet", False)):
        make_model, size = MODELS[name]
        model, images = make_model().train(), torch.randn(4, 3, size, size)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
            for _ in range(5):
                model(images)
        model = model.eval().double()
        adapted = s2a.attach(copy.deepcopy(model), VPTConfig(sites="all"), 5, image_size=size)
        expected = pooled_features(model, images.double())
        found = adapted.method(adapted.backbone, images.double())
        assert adapted.method.identity_at_start is promised
        assert torch.allclose(found, expected, 1e-9, 1e-9) is promised


def test_a_norm_over_the_map_is_no_identity() -> None:
    """ConvNeXt V2 divides by a mean over positions, which the ring's belong to."""
    kwargs: dict[str, Any] = {"depths": (1, 1, 1, 1), "dims": (8, 8, 8, 8), "num_classes": 5}
    model = timm.create_model("convnextv2_atto", **kwargs).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert not s2a.attach(model, VPTConfig(), 5, image_size=64).method.identity_at_start


@pytest.mark.parametrize(("name", "width", "patch"), [("vit", 64, 4), ("eva", 64, 4), ("swin", 32, 4)])
def test_tokens_start_uniform(name: str, width: int, patch: int) -> None:
    """In [-v, v], v = sqrt(6 / (3 patch^2 + C)), C of the first stage."""
    make_model, size = MODELS[name]
    adapted = s2a.attach(make_model(), VPTConfig(), 5, image_size=size)
    bound = math.sqrt(6 / (3 * patch * patch + width))
    for site in sites_of(adapted):
        assert 0.95 * bound < float(site.prompts.detach().abs().max()) <= bound
        assert abs(float(site.prompts.detach().std()) - bound / math.sqrt(3)) < 0.05 * bound
    assert not adapted.method.identity_at_start


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prompts": 0}, "prompts=0 is not a size; give an integer of 1 or more"),
        ({"prompts": 2.0}, "prompts=2.0"),
        ({"prompts": True}, "prompts=True"),
        ({"ring": 0}, "ring=0 is not a size"),
        ({"ring": -1}, "ring=-1"),
        ({"deep": 1}, "deep=1 must be True or False"),
        ({"sites": "some"}, "sites='some' is unknown; choose 'preset' or 'all'"),
        ({"dropout": 1.0}, "dropout=1.0 is out of range; give a probability in [0, 1)"),
        ({"dropout": float("nan")}, "dropout=nan"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        VPTConfig(**options)


def test_what_cannot_have_a_ring_is_left_alone() -> None:
    model = tiny.resnet()  # One block in a stage: behind the first stage all are strided.
    before = snapshot(model)
    with pytest.raises(s2a.UnsupportedModel, match=r"keeps the size of its map.*try sites='all', or deep=False"):
        s2a.attach(model, VPTConfig(), 5, image_size=64)
    assert not differences(before, snapshot(model))


class Unmixed(nn.Module):
    """No attention at all."""

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Nothing."""
        return x


def test_windows_without_positions_are_refused() -> None:
    model = tiny.swin()
    model.layers[1].blocks[0].attn = Unmixed()
    before = snapshot(model)
    with pytest.raises(s2a.UnsupportedModel, match=r"Block layers\.1\.blocks\.0 .* no windowed attention"):
        s2a.attach(model, VPTConfig(), 5, image_size=64)
    assert not differences(before, snapshot(model))


def test_a_ring_wants_the_size_that_it_was_made_for() -> None:
    adapted = s2a.attach(tiny.convnext(), VPTConfig(), 5, image_size=64)
    with pytest.raises(s2a.S2AError, match="made for 8 x 8 positions and gets 12 x 12; give images of the size"):
        adapted(torch.randn(1, 3, 96, 96))
