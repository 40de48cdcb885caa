"""UniPT in use: sizes and bytes, what it taps, what it refuses."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import s2a
import tiny
import torch
from method_contract import IN_BOTH_RINGS
from s2a.backbones import calls
from s2a.backbones.view import describe
from s2a.testing import check_method, differences, snapshot
from s2a_baselines.unipt import UniPTConfig


def attached(name: str) -> Any:
    """A tiny model under the default config."""
    make_model, size = tiny.MODELS[name]
    return s2a.attach(make_model(), UniPTConfig(), tiny.CLASSES, image_size=size)


# Sizes and bytes


def token_count(c: int, m: int, k: int) -> int:
    """Parameters of the token version with ``k`` taps, the anchor included."""
    return k * (c * m + 3 * m) + (m * m + 3 * m) + (m * c + c) + m + 1


def map_count(widths: tuple[int, ...], m: int) -> int:
    """Parameters of the map version on stages of these widths."""
    *rest, last = widths
    projections, likeness = sum(c * m + 3 * m for c in widths), sum(last * c + c for c in rest)
    return projections + likeness + (m * m + 3 * m) + (m * last + last) + m + 1


def test_equations_give_the_published_counts() -> None:
    assert token_count(768, 384, 7) == 2_517_121
    assert map_count((256, 512, 1024), 128) == 1_166_721
    assert map_count((128, 256, 512, 1024), 128) == 1_314_689


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("vit", token_count(64, 32, 3)),
        ("eva", token_count(64, 32, 3)),
        ("swin", map_count((32, 64, 128), 16)),
        ("convnext", map_count((32, 32, 64, 128), 16)),
        ("convnext_conv", map_count((32, 32, 64, 128), 16)),
    ],
)
def test_counts_are_the_equations(name: str, count: int) -> None:
    adapted = attached(name)
    assert sum(p.numel() for p in adapted.method.parameters()) == count
    assert adapted.method.feature_dim == adapted.head.in_features == (64 if name in ("vit", "eva") else 128)


ROWS = {  # Name: backbone's values, the method's, features, the paper's per cent and MB, bytes of R9 in one image.
    "vit_base_patch16_224": (85_798_656, token_count(768, 384, 7), 768, 2.96, 1472),
    "swin_base_patch4_window7_224": (86_743_224, map_count((256, 512, 1024), 128), 1024, 1.47, 2068),
    "convnext_base": (87_566_464, map_count((128, 256, 512, 1024), 128), 1024, 1.63, 2783),
}


@pytest.mark.parametrize("name", ROWS)
def test_the_paper_rows(name: str) -> None:
    """Counts exactly by the equations; per cent and MB within 3 % of the paper's, and MB by an independent sum."""
    import timm

    backbone, own, features, percent, megabytes = ROWS[name]
    adapted = s2a.attach(timm.create_model(name), s2a.method_config("unipt"), 100)
    head = 100 * features + 100
    assert sum(p.numel() for p in s2a.trainable_parameters(adapted).values()) == own + head
    assert abs(100 * (own + head) / backbone / percent - 1) < 0.03
    theory = s2a.theoretical_memory(adapted, 32)
    assert abs(theory.total / 1e6 / megabytes - 1) < 0.03
    # Inputs of layers and norms, floats of one image.
    if name.startswith("vit"):
        m = 384
        own_inputs = 7 * 197 * (768 + m) + 6 * m + 3 * 197 * m
        final, gelu = 768, 12 * 197 * 4 * 768
    else:
        m, p = 128, 49
        stages = [(p * q * q, c) for q, c in ((8, 128), (4, 256), (2, 512), (1, 1024))]
        depths = (2, 2, 18, 2) if name.startswith("swin") else (3, 3, 27, 3)
        gelu = sum(d * n * 4 * c for d, (n, c) in zip(depths, stages, strict=True))
        if name.startswith("swin"):  # Every position of stages 2 to 4 is projected.
            stages = stages[1:]
            own_inputs, final = sum(n * (c + m) for n, c in stages), p * 1024
        else:
            own_inputs, final = sum(p * (c + m) for _, c in stages), 1024
        own_inputs += (len(stages) - 1) * (p * 1024 + m) + 3 * p * m
    assert theory.honest == 4 * (backbone + own + head + 32 * (own_inputs + features + final))
    assert theory.rules["R9"] == theory.total - theory.honest == 4 * 32 * gelu


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("vit", {"taps": "all"}),
        ("vit", {"taps": (0,)}),
        ("swin", {"project": "after"}),
        ("swin", {"taps": (2,)}),
        ("convnext", {"project": "before"}),
        ("resnet", {"taps": [2, 3], "reduction": 4}),
    ],
)
def test_bytes_are_declared_exactly(name: str, options: dict[str, Any]) -> None:
    make_model, size = tiny.MODELS[name]
    adapted = s2a.attach(make_model(), UniPTConfig(**options), 5, image_size=size).train()
    kept = s2a.saved_bytes(adapted, torch.randn(3, 3, size, size))
    own = {n.removeprefix("method."): v for n, v in kept.shared.items() if n.startswith("method")}
    assert own == adapted.method.keeps(3)
    assert not any(n.startswith("backbone") for n in kept)


# Taps


def vit_of(depth: int) -> Any:
    return tiny.vit(depth=depth)


@pytest.mark.parametrize(
    ("depth", "taps"),
    [
        (1, [0]),
        (2, [0, 1]),
        (6, [0, 1, 2, 3, 4, 5]),
        (7, [0, 1, 2, 3, 4, 5]),
        (12, [0, 2, 4, 6, 8, 10]),
        (24, [0, 4, 8, 12, 16, 20]),
    ],
)
def test_a_vit_of_any_depth_is_tapped_at_equal_spacing(depth: int, taps: list[int]) -> None:
    adapted = s2a.attach(vit_of(depth), UniPTConfig(), 5, image_size=32)
    expected = ["blocks.0" if tap == 0 else f"blocks.{tap - 1}" for tap in [*taps, depth]]
    assert [tap.place for tap in adapted.method.taps] == expected  # type: ignore[union-attr]
    if depth == 1:
        return
    plain = s2a.attach(vit_of(depth), UniPTConfig(taps=tuple(taps)), 5, image_size=32)
    assert [tap.place for tap in plain.method.taps] == expected  # type: ignore[union-attr]


def test_stages_of_the_presets() -> None:
    four = tiny.swin(img_size=128, depths=(1, 1, 1, 1), num_heads=(1, 2, 4, 8))
    for model, size, stages in (
        (four, 128, [1, 2, 3]),
        (tiny.swin(), 64, [0, 1, 2]),
        (tiny.convnext(), 64, [0, 1, 2, 3]),
    ):
        adapted = s2a.attach(model, UniPTConfig(), 5, image_size=size)
        last = {b.stage: b.name for b in describe(adapted.backbone, size).blocks}
        assert [tap.place for tap in adapted.method.taps] == [last[s] for s in stages]  # type: ignore[union-attr]


def test_nothing_is_held_after_a_forward_pass() -> None:
    adapted = attached("vit").double()
    images = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    adapted(images)
    adapted.backbone(images)  # On its own: nobody listens.
    assert not calls._stack.entries
    with pytest.raises(AssertionError):
        adapted(torch.randn(2, 3, 16, 16, dtype=torch.float64))
    assert not calls._stack.entries


def test_the_backbone_stays_in_evaluation() -> None:
    adapted = attached("resnet").train()
    before = {name: buffer.clone() for name, buffer in adapted.backbone.named_buffers()}
    assert adapted.training and adapted.method.training
    assert not any(m.training for m in adapted.backbone.modules())
    adapted(torch.randn(2, 3, 64, 64)).sum().backward()
    assert before
    assert all(torch.equal(buffer, adapted.backbone.get_buffer(name)) for name, buffer in before.items())


# Bad input


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction": -1}, "reduction=-1 is not a size; give an integer of 1 or more, or 0"),
        ({"reduction": 2.0}, "reduction=2.0"),
        ({"reduction": True}, "reduction=True"),
        ({"project": "never"}, "project='never' is unknown; choose 'preset', 'before' or 'after'"),
        ({"taps": "some"}, "taps='some' must be ascending numbers from 0"),
        ({"taps": ()}, r"taps=\(\) must be"),
        ({"taps": (2, 1)}, r"taps=\(2, 1\)"),
        ({"taps": (1, 1)}, "without repeats"),
        ({"taps": (-1,)}, r"taps=\(-1,\)"),
        ({"taps": (1.0,)}, r"taps=\(1.0,\)"),
        ({"taps": 3}, "taps=3"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(s2a.S2AError, match=message):
        UniPTConfig(**options)


def test_taps_may_be_a_list() -> None:
    assert s2a.method_config("unipt", taps=[0, 1]) == UniPTConfig(taps=(0, 1))


@pytest.mark.parametrize(
    ("make_model", "size", "options", "message"),
    [
        (tiny.vit, 32, {"reduction": 7}, "reduction=7 does not divide the 64 channels of blocks.1"),
        (tiny.vit, 32, {"taps": (2,)}, "taps=(2,) does not fit this vit; choose from 0 to 1"),
        (tiny.vit, 32, {"project": "before"}, "project='before' is for maps"),
        (tiny.swin, 64, {"taps": (0, 1)}, "taps=(0, 1) does not fit this swin; choose from 1 to 2"),
        (tiny.convnext, 64, {"taps": (1, 4)}, "choose from 1 to 3"),
        (lambda: tiny.swin(depths=(2,), num_heads=(1,)), 64, {}, "has one stage; UniPT needs maps of two"),
    ],
)
def test_what_does_not_fit_leaves_the_model_alone(
    make_model: Callable[[], Any], size: int, options: dict[str, Any], message: str
) -> None:
    model = make_model()
    before = snapshot(model)
    with pytest.raises(s2a.S2AError, match=re.escape(message)):
        s2a.attach(model, UniPTConfig(**options), 5, image_size=size)
    assert not differences(before, snapshot(model))


def test_one_position_of_one_image_is_no_batch() -> None:
    adapted = s2a.attach(tiny.convnext(), UniPTConfig(), 5, image_size=32)
    image = torch.randn(1, 3, 32, 32)
    with pytest.raises(s2a.S2AError, match="give batches of 2 or more"):
        adapted.train()(image)
    assert adapted.eval()(image).shape == (1, 5)


@pytest.mark.parametrize(
    ("name", "side", "options"), [("convnext", 84, {"project": "before"}), ("swin", 64, {"taps": (2,)})]
)
@IN_BOTH_RINGS
def test_elsewhere_it_keeps_its_promises(name: str, side: int, options: dict[str, Any], checks: Any) -> None:
    check_method(UniPTConfig(**options), tiny.MODELS[name][0], tiny.CLASSES, image_size=side, checks=checks)
