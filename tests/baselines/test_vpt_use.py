"""Visual prompts in use: counts, memory, dropout, checkpointing, quantised activations."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from method_contract import QUICK
from s2a import testing
from s2a.testing import check_method, differences, snapshot
from s2a_baselines.vpt import VPTConfig
from vpt_by_hand import MODELS, attached, sites_of

DEEP_AND_SHALLOW = pytest.mark.parametrize("deep", [True, False], ids=["deep", "shallow"])


# Counts and memory


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("vit", 2 * 50 * 64),
        ("swin", 50 * (2 * 64 + 128)),
        ("convnext", sum((4 * e + 4) * c for e, c in [(8, 32), (4, 64), (4, 64), (2, 128)])),
    ],
)
def test_counts_are_the_equations(name: str, values: int) -> None:
    make_model, size = MODELS[name]
    adapted = s2a.attach(make_model(), VPTConfig(), 5, image_size=size)
    names = s2a.trainable_parameters(adapted)
    assert names.keys() == {f"method.{n}" for n, _ in adapted.method.named_parameters()} | {"head.weight", "head.bias"}
    assert sum(p.numel() for p in adapted.method.parameters()) == values


PAPER = {
    "vit_base_patch16_224": (12 * 50 * 768, 768, 0.63, 2453),
    "swin_base_patch4_window7_224": (50 * (2 * 256 + 18 * 512 + 2 * 1024), 1024, 0.79, 3952),
    "convnext_base": (3 * 116 * 256 + 27 * 60 * 512 + 3 * 32 * 1024, 1024, 1.28, 3265),
}


@pytest.mark.parametrize("name", PAPER)
def test_the_papers_rows(name: str) -> None:
    """Counts exactly, percentages within 1 %, theoretical memory within 3 % of Table 1."""
    values, channels, percent, megabytes = PAPER[name]
    model = timm.create_model(name, num_classes=0)
    backbone = sum(p.numel() for p in model.parameters())
    adapted = s2a.attach(model, VPTConfig(), 100)
    trainable = sum(p.numel() for p in s2a.trainable_parameters(adapted).values())
    assert trainable == values + 100 * channels + 100
    assert 100 * trainable / backbone == pytest.approx(percent, rel=0.01)
    assert s2a.theoretical_memory(adapted, 32).total / 1e6 == pytest.approx(megabytes, rel=0.03)


def theory_of_a_vit(hidden: int, tokens: int, mapped: int) -> dict[str, int]:
    """Rules R2 and R3 of the tiny ViT for one image: two blocks, two heads."""
    return {"R2": 4 * 2 * hidden * tokens, "R3": 4 * 2 * 2 * mapped**2}


def test_theory_counts_prompts_in_attention_not_in_the_mlp() -> None:
    adapted = s2a.attach(tiny.vit(), VPTConfig(prompts=7), 5)
    rules = s2a.theoretical_memory(adapted, 1).rules
    assert {k: rules[k] for k in ("R2", "R3")} == theory_of_a_vit(256, 65, 65 + 7)


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
@DEEP_AND_SHALLOW
def test_only_masks_are_kept(name: str, deep: bool) -> None:
    make_model, size = MODELS[name]
    for dropout in (0.0, 0.5):
        config = VPTConfig(prompts=3, dropout=dropout, deep=deep)
        adapted = s2a.attach(make_model(), config, 5, image_size=size).train()
        kept = s2a.saved_bytes(adapted, torch.randn(4, 3, size, size)).shared
        copies = 1 if name == "swin" else 4  # One mask for all images where there are windows.
        expected = {
            f"method.sites.{i}.dropout": 4 * copies * site.prompts.numel()
            for i, site in enumerate(sites_of(adapted))
            if dropout
        }
        assert {k: v for k, v in kept.items() if k.startswith("method")} == expected
        assert {f"method.{k}": v for k, v in adapted.method.keeps(4).items()} == expected


# What else must hold


@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
@DEEP_AND_SHALLOW
def test_dropout_acts_in_training_only(name: str, deep: bool) -> None:
    _, adapted, images = attached(name, dropout=0.5, deep=deep)
    plain = s2a.attach(
        s2a.detach(copy.deepcopy(adapted)), VPTConfig(prompts=3, deep=deep), 5, image_size=images.shape[-1]
    )
    plain.load_state_dict(adapted.state_dict())
    adapted.eval()
    assert torch.equal(adapted(images), plain.eval()(images))
    adapted.train()
    assert not torch.equal(adapted(images), adapted(images))


@pytest.mark.parametrize("name", [n for n in MODELS if n != "resnet"])
def test_batches_of_any_size(name: str) -> None:
    _, adapted, images = attached(name, batch=3)
    together = adapted(images)
    for i in range(3):
        torch.testing.assert_close(adapted(images[i : i + 1]), together[i : i + 1])


@pytest.mark.parametrize("name", ["vit", "eva_rotary", "swin", "convnext"])
@DEEP_AND_SHALLOW
def test_checkpointing_changes_nothing(name: str, deep: bool) -> None:
    _, adapted, images = attached(name, deep=deep, sites="all", dropout=0.3)
    adapted.train()
    gradients = []
    for enable in (False, True):
        adapted.backbone.set_grad_checkpointing(enable)
        torch.manual_seed(1)
        adapted.zero_grad()
        adapted(images).square().sum().backward()
        gradients.append([p.grad for p in s2a.trainable_parameters(adapted).values()])
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("name", ["vit", "eva_rotary", "swin"])
@DEEP_AND_SHALLOW
def test_quantised_attention_sees_the_prompts(name: str, deep: bool) -> None:
    """The forward pass is exact; at 8 bits the gradients are close to the exact ones."""
    _, adapted, images = attached(name, deep=deep, sites="all")
    expected = adapted(images)
    expected.square().sum().backward()
    exact = [site.prompts.grad.clone() for site in sites_of(adapted)]
    adapted.zero_grad()
    log = s2a.quantize_activations(adapted, 8, "derivative")
    found = adapted(images)
    torch.testing.assert_close(found, expected)
    found.square().sum().backward()
    for site, grad in zip(sites_of(adapted), exact, strict=True):
        assert float((site.prompts.grad - grad).norm() / grad.norm()) < 0.05
    log.undo()
    assert torch.equal(adapted(images), expected)


@pytest.mark.parametrize("name", ["vit", "eva_rotary", "swin", "convnext_conv", "resnet"])
def test_the_shallow_form_leaves_nothing_behind(name: str) -> None:
    make_model, size = MODELS[name]
    model = make_model()
    before = snapshot(model)
    for config in (VPTConfig(deep=False, sites="all", dropout=0.1), VPTConfig(sites="all", ring=2)):
        adapted = s2a.attach(model, config, 5, image_size=size)
        adapted(torch.randn(2, 3, size, size)).sum().backward()
        s2a.detach(adapted)
        assert not differences(before, snapshot(model))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("vit", VPTConfig(deep=False)),
        ("eva_rotary", VPTConfig()),
        ("swin", VPTConfig(deep=False)),
        ("convnext", VPTConfig(deep=False)),
        ("resnet", VPTConfig(sites="all")),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    "checks",
    # How fast prompts learn on a random backbone is asked of the default config alone.
    [pytest.param(QUICK, id="quick"), pytest.param((testing.check_compile,), id="compile", marks=pytest.mark.full)],
)
def test_other_options_keep_the_promises(name: str, config: VPTConfig, checks: Any) -> None:
    make_model, size = MODELS[name]
    check_method(config, make_model, 5, image_size=size, checks=checks)
