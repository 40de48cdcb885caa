"""Rivals at lean memory: what LoRA adds to bias tuning, and which way its gradients point, on a full-size ViT-B/16."""

from __future__ import annotations

from typing import Any

import lean_models
import pytest
import s2a
import timm
import torch
import torch.nn.functional as F
from lean_models import cosines, flat, gradients, images_for, pair
from s2a.backbones.view import describe
from s2a.lean import SavedBits
from s2a.planning.knapsack import choices_of
from torch import Tensor, nn

VIT = "vit_base_patch16_224"
TWO: dict[str, Any] = {"targets": ("qkv", "fc1"), "rank": 8}


def test_lora_on_qkv_and_fc1_costs_no_more_than_biases() -> None:
    """Both take their inputs from codes that norms keep anyway: at most 3 % above bias tuning, on the full model."""
    model = timm.create_model(VIT)
    kept = {}
    for method, options in (("bias", {}), ("lora", TWO)):
        adapted = s2a.attach(model, s2a.method_config(method, activations="lean", **options), 100).train()
        kept[method] = s2a.saved_bytes(adapted, torch.randn(2, 3, 224, 224)).total
        s2a.detach(adapted)
    assert kept["lora"] <= 1.03 * kept["bias"]


def test_updates_keep_nothing_of_their_own() -> None:
    """Where the branch is fused: A x is made again, and x is the norm's."""
    for family, method in (("vit", "lora_two"), ("swin", "lora_two"), ("convnext", "lora_mlp")):
        lean = pair(family, method)[1].train()
        kept = s2a.saved_bytes(lean, images_for(family))
        assert not [name for name in kept if name.startswith("method.updates")]


def sharpened() -> nn.Module:
    """A random ViT-B/16 of three blocks whose attention has peaks, as a trained one's has."""
    model = timm.create_model(VIT, depth=3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("qkv.weight"):
                parameter.mul_(4)
    return model


def test_gradients_of_both_factors_are_near_the_exact_ones() -> None:
    """Full width, three blocks, attention sharpened: A and B each at a cosine of 0.995."""
    torch.manual_seed(0)
    model = sharpened()
    images, labels = torch.randn(2, 3, 224, 224), torch.tensor([3, 14])
    found: dict[str, dict[str, Tensor]] = {}
    start: dict[str, Tensor] = {}
    for activations in ("exact", "lean"):
        adapted = s2a.attach(model, s2a.method_config("lora", activations=activations, **TWO), 100).train()
        if not start:
            with torch.no_grad():
                for update in adapted.method.updates:  # type: ignore
                    update.b.weight.normal_(std=0.02)
            start = {name: value.clone() for name, value in adapted.state_dict().items()}
        adapted.load_state_dict(start)
        F.cross_entropy(adapted(images), labels).backward()
        trainable = s2a.trainable_parameters(adapted).items()
        found[activations] = {n: p.grad.clone() for n, p in trainable if p.grad is not None}
        s2a.detach(adapted)
    for factor in (".a.weight", ".b.weight"):
        vectors = [flat({n: g for n, g in grads.items() if n.endswith(factor)}) for grads in found.values()]
        assert F.cosine_similarity(*vectors, 0) >= 0.995  # type: ignore


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_a_frozen_a_gets_no_gradient_and_b_the_same(family: str) -> None:
    """LoRA-FA is LoRA without A's gradient: under lean activations too."""
    lean = [pair(family, method)[1].eval() for method in ("lora", "lora_fa")]
    lean[1].load_state_dict(lean[0].state_dict())
    images = images_for(family)
    full, half = (gradients(model, images) for model in lean)
    assert [name for name in half if name.endswith("a.weight")] == []
    for name, grad in half.items():
        torch.testing.assert_close(full[name], grad)


def test_dropout_in_updates_leaves_the_branch_to_its_layers() -> None:
    """Dropped inputs differ from the norm's codes: those branches are not fused, in any mode, and nobody is warned."""
    lean = pair("vit", "lora_dropped")[1]
    assert {branch.role for branch in lean._branches} == {"mlp"}
    for training in (True, False):
        gradients(lean.train(training), images_for("vit"))


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
def test_updates_of_the_last_layer_make_their_input_again(family: str) -> None:
    """fc2's update needs the activation's output: its branch takes a finer norm and keeps no code of it."""
    lean = pair(family, "lora_mlp")[1]
    mlps = [branch for branch in lean._branches if branch.role == "mlp"]
    assert mlps
    for branch in mlps:
        assert branch.saved_bits.inner == 0
        assert branch.spec.reads_last
        assert all(keep.inner in (0, 32) for keep in choices_of(branch.spec))
        branch.saved_bits = SavedBits(4, 4)
        assert branch.why_not_fusable() is not None


@pytest.mark.parametrize("method", ["linear", "lst", "unipt"])
def test_methods_with_nothing_to_gain_have_no_such_option(method: str) -> None:
    with pytest.raises(s2a.S2AError, match="activations"):
        s2a.method_config(method, activations="lean")


@pytest.mark.parametrize("method", ["adapter", "adaptformer", "ssf", "vpt"])
def test_other_rivals_keep_less_too_and_point_the_same_way(method: str) -> None:
    for family in ("vit", "swin"):
        exact, lean = (model.eval() for model in pair(family, method))
        images = images_for(family, 6)
        share = 0.7 if method == "ssf" else 0.6  # SSF's gammas keep the outputs of all layers, exactly.
        assert s2a.saved_bytes(lean, images).total < share * s2a.saved_bytes(exact, images).total
        assert min(cosines(gradients(lean, images), gradients(exact, images)).values()) > 0.98


def test_blocks_are_those_of_the_backbone() -> None:
    """In forward order, attention before the MLP; every fused branch has a site of its own."""
    for family in lean_models.FUSED:
        lean = pair(family, "bias")[1]
        names = [(branch.block.name, branch.role) for branch in lean._branches]
        assert len(set(names)) == len(names)
        order = [block.name for block in describe(lean_models.tiny.MODELS[family][0]()).blocks]
        assert [name for name, _ in names] == sorted((name for name, _ in names), key=order.index)
