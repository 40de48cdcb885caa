"""S2A with low-rank updates: the equation, what is kept, where they go, presets."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any, cast

import pytest
import s2a
import torch
from method_contract import IN_BOTH_RINGS
from s2a import testing
from s2a.s2a_method import UPDATED, S2AConfig
from s2a.structure.low_rank_update import largest_rank
from tiny import CLASSES, MODELS
from torch import Tensor, nn

FAMILIES = ("vit", "swin", "convnext", "convnext_conv")
ALL_PARTS: dict[str, Any] = {"update_rank": 2, "lrp_rank": 2}
UPDATES_ALONE: dict[str, Any] = {"update_rank": 2, "lrp_rank": 0, "lsb_reduction": 0, "train_bias": False}
FORMS: dict[str, dict[str, Any]] = {
    "all parts": ALL_PARTS,
    "all parts, lean": {**ALL_PARTS, "activations": "lean"},
    "updates alone": UPDATES_ALONE,
    "some layers": {"update_rank": 3, "update_targets": ("fc1",), "update_scale": 0.5, "lrp_rank": 2},
}


@IN_BOTH_RINGS
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("family", FAMILIES)
def test_promises_are_kept(family: str, form: str, checks: Any) -> None:
    make_model, size = MODELS[family]
    testing.check_method(S2AConfig(**FORMS[form]), make_model, CLASSES, image_size=size, checks=checks)


def moved(adapted: Any) -> Any:
    """The model with its updates off zero."""
    torch.manual_seed(1)
    for update in adapted.method.updates:
        nn.init.normal_(update.b.weight, std=0.1)
    return adapted


@pytest.mark.parametrize("family", FAMILIES)
def test_an_update_is_a_sum_of_weights(family: str) -> None:
    """A plain model with W + s B A in its layers has the same logits, and the chain rule's gradients.

    With G that of the weight: s B^T G for A and s G A^T for B, s in units of the layer's gain, or of three without
    attention.
    """
    make_model, size = MODELS[family]
    plain, images = make_model().eval().double(), torch.randn(2, 3, size, size, dtype=torch.float64)
    config = S2AConfig(activations="exact", update_scale=0.5, **ALL_PARTS)
    torch.manual_seed(0)
    adapted = moved(s2a.attach(copy.deepcopy(plain), config, CLASSES, image_size=size)).double()
    scales, unit = {}, 3 if family.startswith("convnext") else 1
    for path, update in zip(adapted.method.updates.paths, adapted.method.updates, strict=True):
        weight = plain.get_submodule(path).weight.data
        # Half of the RMS of W x for inputs x whose components are independent, of RMS 1.
        scales[path] = 0.5 * unit * weight.flatten(1).square().sum(1).mean().sqrt().item()
        weight += (scales[path] * (update.b.weight.flatten(1) @ update.a.weight.flatten(1))).view_as(weight).detach()
    without = s2a.attach(plain, dataclasses.replace(config, update_rank=0), CLASSES, image_size=size).double()
    state = {name: value for name, value in adapted.state_dict().items() if ".updates." not in name}
    weights = {f"backbone.{path}.weight" for path in adapted.method.updates.paths}
    without.load_state_dict({**without.state_dict(), **{k: v for k, v in state.items() if k not in weights}})
    layers = [without.backbone.get_submodule(path) for path in adapted.method.updates.paths]
    for layer in layers:
        layer.weight.requires_grad_()
    assert torch.allclose(adapted(images), without(images), rtol=1e-5)
    for model in (adapted, without):
        model(images).square().sum().backward()
    for scale, layer, update in zip(scales.values(), layers, adapted.method.updates, strict=True):
        a, b, whole = update.a.weight, update.b.weight, cast(Any, layer).weight.grad.flatten(1)
        expected = scale * b.flatten(1).T @ whole, scale * whole @ a.flatten(1).T
        for factor, gradient in zip((a, b), expected, strict=True):
            torch.testing.assert_close(factor.grad.flatten(1), gradient, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("family", FAMILIES)
def test_lean_updates_keep_not_one_byte(family: str) -> None:
    make_model, size = MODELS[family]
    images = torch.randn(2, 3, size, size)

    def kept(rank: int) -> int:
        config = S2AConfig(activations="lean", update_rank=rank, lrp_rank=2)
        return s2a.saved_bytes(s2a.attach(make_model(), config, CLASSES, image_size=size), images).total

    assert kept(4) == kept(0)


def test_every_layer_or_those_that_are_named() -> None:
    make_model, size = MODELS["vit"]
    for targets, roles in (("all", UPDATED), ("fc1", ("fc1",)), (("qkv", "fc2"), ("qkv", "fc2"))):
        config = S2AConfig(update_rank=2, update_targets=targets, lrp_rank=2)
        method: Any = s2a.attach(make_model(), config, CLASSES, image_size=size).method
        paths = method.updates.paths
        assert [path.rpartition(".")[2] for path in paths] == list(roles) * 2


def test_one_method_has_one_config() -> None:
    from_a_file: Any = ["qkv", "fc2"]
    assert S2AConfig(update_rank=2, update_targets=("fc2", "qkv")) == S2AConfig(
        update_rank=2, update_targets=from_a_file
    )
    assert S2AConfig(update_rank=2, update_targets=tuple(reversed(UPDATED))) == S2AConfig(update_rank=2)
    assert S2AConfig(update_targets="fc1", update_scale=3.0) == S2AConfig()


def other_weights(config: S2AConfig) -> tuple[Any, Any, Tensor]:
    """The same method moved off zero on a backbone, and on one with larger weights; images."""
    make_model, size = MODELS["vit"]
    first, second = make_model(), make_model()
    with torch.no_grad():
        for weight in second.parameters():
            weight.mul_(1.5)
    adapted = moved(s2a.attach(first, config, CLASSES, image_size=size)).eval()
    return adapted, s2a.attach(second, config, CLASSES, image_size=size).eval(), torch.randn(2, 3, size, size)


@pytest.mark.parametrize("form", ["all parts", "all parts, lean", "updates alone"])
def test_the_scale_is_a_part_of_the_state(form: str, tmp_path: Path) -> None:
    """It came from weights that a state replaces: whoever loads the state needs the scale of its weights."""
    adapted, other, images = other_weights(S2AConfig(**FORMS[form]))
    expected = adapted(images)
    other.load_state_dict(adapted.state_dict())
    assert torch.equal(other(images), expected)
    # A cast and its way back round weights, never the scale.
    scales = [update.scale for update in adapted.method.updates]
    state = copy.deepcopy(other).bfloat16().state_dict()
    other.load_state_dict(state)
    assert [update.scale for update in other.method.updates] == scales
    # Saved after loading, put on the right backbone.
    s2a.save(adapted, tmp_path / "a.safetensors")
    plain = s2a.detach(copy.deepcopy(adapted))
    assert torch.equal(s2a.load(plain, tmp_path / "a.safetensors").eval()(images), expected)


def test_a_model_without_data_takes_the_scale_of_the_state() -> None:
    make_model, size = MODELS["vit"]
    adapted, _, images = other_weights(S2AConfig(**ALL_PARTS))
    with torch.device("meta"):
        empty = s2a.attach(make_model(), S2AConfig(**ALL_PARTS), CLASSES, image_size=size)
    method: Any = empty.method
    assert {update.scale for update in method.updates} == {1.0}
    empty.load_state_dict(adapted.state_dict(), assign=True)
    assert torch.equal(empty.eval()(images), adapted(images))


def test_updates_can_be_indexed_and_sliced() -> None:
    adapted, _, _ = other_weights(S2AConfig(**ALL_PARTS))
    updates: Any = adapted.method.updates
    assert updates[0] is next(iter(updates))
    assert updates[-1] is list(updates)[-1]
    assert updates[1:3] == list(updates)[1:3]


def test_grouped_convolutions_are_refused() -> None:
    with pytest.raises(s2a.UnsupportedModel, match=r"blocks\.0\.fc1 is Conv2d; low-rank updates are for linear layers"):
        largest_rank(nn.Conv2d(8, 8, 1, groups=2), "blocks.0.fc1")


def test_a_layer_smaller_than_the_rank_gets_its_full_rank() -> None:
    make_model, size = MODELS["swin"]
    method: Any = s2a.attach(make_model(), S2AConfig(update_rank=40, lrp_rank=2), CLASSES, image_size=size).method
    assert {update.a.weight.shape[0] for update in method.updates} == {32, 40}


def test_updates_without_prompts_and_branch_merge() -> None:
    make_model, size = MODELS["vit"]
    images = torch.randn(2, 3, size, size)
    adapted = moved(s2a.attach(make_model(), S2AConfig(**UPDATES_ALONE), CLASSES, image_size=size)).eval()
    merged: Any = s2a.merge(adapted).eval()
    torch.testing.assert_close(merged(images), adapted(images), rtol=1e-4, atol=1e-5)
    with pytest.raises(s2a.S2AError, match="prompts or the side branch cannot be merged"):
        s2a.merge(s2a.attach(make_model(), S2AConfig(**ALL_PARTS), CLASSES, image_size=size))


def test_a_preset_is_its_options_and_what_is_given_goes_over_it() -> None:
    plus = S2AConfig(**S2AConfig.presets["plus"])
    assert s2a.method_config("s2a", preset="plus") == plus != S2AConfig()
    assert s2a.method_config("s2a", preset="paper") == S2AConfig()
    assert s2a.method_config("s2a", preset="plus", lrp_rank=7) == dataclasses.replace(plus, lrp_rank=7)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"preset": "pls"}, "no preset 'pls'; choose one of 'paper', 'plus'"),
        ({"preset": 1}, "no preset 1"),
        ({"presett": "plus"}, "no option 'presett': did you mean 'preset'"),
        ({"update_rank": -1}, "update_rank=-1 is not a size"),
        ({"update_rank": True}, "update_rank=True is not a size"),
        ({"update_targets": ()}, "must name each of its layers once"),
        ({"update_targets": "fc3"}, "choose from qkv, proj, fc1, fc2, or 'all'"),
        ({"update_targets": ("fc1", "fc1")}, "must name each of its layers once"),
        ({"update_targets": 5}, "update_targets=5 must name each of its layers once"),
        ({"update_targets": None}, "update_targets=None must name"),
        ({"update_targets": [["fc1"]]}, "must name each of its layers once"),
        ({"update_scale": 0}, "update_scale=0 must be a number above 0"),
        ({"update_scale": True}, "update_scale=True must be a number above 0"),
        ({"update_scale": "x"}, "update_scale='x' must be a number above 0"),
    ],
)
def test_wrong_options_are_said(options: dict[str, Any], words: str) -> None:
    with pytest.raises(s2a.S2AError, match=words):
        s2a.method_config("s2a", **options)


def test_a_method_without_presets_has_no_such_option() -> None:
    with pytest.raises(s2a.S2AError, match="'bias' has no option 'preset'"):
        s2a.method_config("bias", preset="plus")


def test_layers_that_no_block_has_are_refused() -> None:
    make_model, size = MODELS["convnext"]
    with pytest.raises(s2a.UnsupportedModel, match="no block of this convnext has such a layer"):
        s2a.attach(make_model(), S2AConfig(update_rank=2, update_targets="qkv", lrp_rank=2), CLASSES, image_size=size)
