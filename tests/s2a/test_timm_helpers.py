"""An adapted model among timm's helpers: they see what they would see of the model itself, and the head is its own."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from s2a.testing import differences, snapshot
from timm.data.config import resolve_model_data_config
from timm.models import load_checkpoint, resume_checkpoint
from timm.models._manipulate import group_parameters
from timm.optim._optim_factory import create_optimizer_v2
from timm.utils.checkpoint_saver import CheckpointSaver
from timm.utils.model import get_state_dict, unwrap_model
from timm.utils.model_ema import ModelEmaV3
from torch import nn


def adapted_model(name: str = "vit", method: str = "bias", classes: int | None = 7, **options: Any) -> tuple[Any, Any]:
    """The plain model, and a copy of it under a method."""
    make, size = tiny.MODELS[name]
    plain = make()
    return plain, s2a.attach(copy.deepcopy(plain), s2a.method_config(method, **options), classes, image_size=size)


def images(name: str = "vit") -> torch.Tensor:
    size = tiny.MODELS[name][1]
    return torch.randn(2, 3, size, size)


def rates(model: nn.Module, **options: Any) -> dict[str, tuple[float, float]]:
    """Name of each parameter -> weight decay and layer scale that timm's factory gives it."""
    optimizer = create_optimizer_v2(model, "adamw", lr=1.0, weight_decay=0.05, **options)
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        names[id(p)]: (group["weight_decay"], group.get("lr_scale", 1.0))
        for group in optimizer.param_groups
        for p in group["params"]
    }


@pytest.mark.parametrize("name", tiny.MODELS)
def test_data_config_and_attributes_are_the_backbones(name: str) -> None:
    plain, adapted = adapted_model(name)
    assert resolve_model_data_config(adapted) == resolve_model_data_config(plain)
    assert adapted.pretrained_cfg is adapted.backbone.pretrained_cfg and adapted.default_cfg == plain.default_cfg
    assert (adapted.num_classes, adapted.get_classifier()) == (7, adapted.head)
    assert adapted.num_features == adapted.head_hidden_size == plain.num_features == adapted.head.in_features
    for attribute in ("embed_dim", "patch_embed", "stages", "layers", "feature_info", "global_pool", "drop_rate"):
        assert hasattr(adapted, attribute) == hasattr(plain, attribute), attribute
    with pytest.raises(AttributeError, match="no_such_thing"):
        adapted.no_such_thing  # noqa: B018


def test_a_real_checkpoints_normalisation() -> None:
    plain = timm.create_model("vit_tiny_patch16_224", img_size=32, patch_size=4, embed_dim=64, depth=1, num_heads=2)
    adapted = s2a.attach(plain, s2a.S2AConfig(lrp_rank=4), 7)
    assert resolve_model_data_config(adapted)["mean"] == (0.5, 0.5, 0.5)


@pytest.mark.each_value
@pytest.mark.parametrize("layer_decay", [None, 0.75])
@pytest.mark.parametrize("name", tiny.MODELS)
def test_optimiser_groups_are_those_of_the_plain_model(name: str, layer_decay: float | None) -> None:
    plain, adapted = adapted_model(name, "full")
    expected, found = rates(plain, layer_decay=layer_decay), rates(adapted, layer_decay=layer_decay)
    classifier = plain.pretrained_cfg["classifier"]
    for parameter, values in expected.items():
        own = f"backbone.{parameter}"
        if parameter.startswith(f"{classifier}."):
            own = f"head.{parameter.rpartition('.')[2]}"
        assert found.pop(own) == pytest.approx(values), own
    assert not found
    for coarse in (False, True):
        groups = group_parameters(adapted, adapted.group_matcher(coarse), reverse=True)
        layers = group_parameters(plain, plain.group_matcher(coarse), reverse=True)
        below = {n.removeprefix("backbone."): i for n, i in groups.items() if n.startswith("backbone.")}
        assert below == {n: layers[n] for n in below}


def test_what_a_method_adds_trains_at_the_full_rate() -> None:
    _, adapted = adapted_model("vit", "s2a", lrp_rank=4)
    found = rates(adapted, layer_decay=0.5)
    assert found.keys() == s2a.trainable_parameters(adapted).keys()
    assert {scale for name, (_, scale) in found.items() if name.startswith(("method.", "head."))} == {1.0}
    assert min(scale for _, scale in found.values()) < 1


def test_checkpointing_reaches_the_backbone() -> None:
    _, adapted = adapted_model()
    x = images()
    expected = adapted(x)
    adapted.set_grad_checkpointing(True)
    assert adapted.backbone.grad_checkpointing and adapted.grad_checkpointing
    torch.testing.assert_close(adapted(x), expected)
    adapted.set_grad_checkpointing(False)
    assert not adapted.grad_checkpointing


@pytest.mark.parametrize("method", ["s2a", "lora", "lst", "linear", "vpt"])
def test_features_then_head_are_the_logits(method: str) -> None:
    _, adapted = adapted_model("vit", method)
    adapted.eval()
    features = adapted.forward_features(x := images())
    assert features.shape == (2, adapted.num_features)
    assert torch.equal(adapted.forward_head(features, pre_logits=True), features)
    assert torch.equal(adapted.forward_head(features), adapted(x))


@pytest.mark.parametrize("method", ["s2a", "lora", "lst"])
@pytest.mark.parametrize("name", ["vit", "swin", "convnext"])
def test_another_number_of_classes(name: str, method: str, tmp_path: Path) -> None:
    plain, adapted = adapted_model(name, method)
    adapted.reset_classifier(3)
    assert adapted.num_classes == 3 and adapted.head.weight.requires_grad
    assert adapted(x := images(name)).shape == (2, 3)
    s2a.save(adapted.eval(), tmp_path / "state")
    loaded = s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()
    assert torch.equal(loaded(x), adapted(x)) and loaded.num_classes == 3
    adapted.reset_classifier(0)
    assert adapted.num_classes == 0 and torch.equal(adapted(x), adapted.forward_features(x))
    s2a.save(adapted, tmp_path / "state")
    assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()(x), adapted(x))
    assert not differences(snapshot(plain), snapshot(s2a.detach(adapted.train())))
    for bad in (-1, 2.0, True, None):
        with pytest.raises(s2a.S2AError, match="num_classes"):
            loaded.reset_classifier(bad)  # type: ignore[arg-type]


def test_what_a_method_was_made_for_cannot_be_changed_below_it() -> None:
    plain, adapted = adapted_model()
    with pytest.raises(s2a.S2AError, match="call reset_classifier on what"):
        adapted.backbone.reset_classifier(3)
    with pytest.raises(s2a.S2AError, match="global_pool='avg' is not the backbone's 'token'"):
        adapted.reset_classifier(3, "avg")
    with pytest.raises(s2a.S2AError, match="input size"):
        adapted.set_input_size(64)
    with pytest.raises(s2a.S2AError, match="all blocks"):
        adapted.prune_intermediate_layers(1)
    adapted.reset_classifier(3, "token")
    back: Any = s2a.detach(adapted)
    assert not differences(snapshot(plain), snapshot(back))
    back.reset_classifier(9)
    assert back(images()).shape == (2, 9)


HEADS: dict[str, Callable[[int], nn.Module]] = {
    "no bias": lambda width: nn.Linear(width, 7, bias=False),
    "sequential": lambda width: nn.Sequential(nn.LayerNorm(width), nn.Dropout(0.1), nn.Linear(width, 7)),
    "batch norm": lambda width: nn.Sequential(nn.BatchNorm1d(width), nn.Linear(width, 7, bias=False)),
    "no layer": lambda width: nn.LayerNorm(width),
    "none": lambda width: nn.Identity(),
}


@pytest.mark.parametrize("method", ["s2a", "lora"])
@pytest.mark.parametrize("form", HEADS)
def test_heads_of_other_forms(form: str, method: str, tmp_path: Path) -> None:
    """They train, merge, are saved with all their tensors, and loaded with the form given where it is no linear one."""
    plain, adapted = adapted_model("vit", method)
    adapted.head = HEADS[form](adapted.num_features)
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=0.1)
    adapted.train()(x := images()).square().sum().backward()
    optimizer.step()
    adapted.eval()
    s2a.save(adapted, tmp_path / "state")
    model, given = copy.deepcopy(plain), None
    if form in ("sequential", "batch norm", "no layer"):
        given = HEADS[form](adapted.num_features)
        before = snapshot(model)
        with pytest.raises(s2a.S2AError, match=r"a head of its own, (Sequential|LayerNorm).*load\(model, path, head="):
            s2a.load(model, tmp_path / "state")
        with pytest.raises(s2a.StateMismatch, match="has a head of tensors"):
            s2a.load(model, tmp_path / "state", head=nn.Sequential(nn.Linear(3, 3)))
        assert not differences(before, snapshot(model))
    loaded = s2a.load(model, tmp_path / "state", head=given).eval()
    assert torch.equal(loaded(x), adapted(x))
    assert loaded.num_classes == adapted.num_classes == (0 if form in ("no layer", "none") else 7)
    if method == "lora":
        merged: Any = s2a.merge(adapted)
        torch.testing.assert_close(merged(x), adapted(x), rtol=1e-3, atol=1e-4)
        assert merged.num_classes == adapted.num_classes
    assert not differences(snapshot(plain), snapshot(s2a.detach(adapted.train())))


def test_a_classifier_put_below_the_method_is_no_part_of_the_file(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, adapted = adapted_model()
    adapted.backbone.head = nn.Linear(64, 3)
    s2a.save(adapted.eval(), tmp_path / "state")
    assert "backbone.head.bias, backbone.head.weight: not saved" in caplog.text
    assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()(x := images()), adapted(x))
    assert not differences(snapshot(plain), snapshot(s2a.detach(adapted.train())))


@pytest.mark.parametrize("name", tiny.MODELS)
def test_a_merged_model_counts_its_classes(name: str) -> None:
    _, adapted = adapted_model(name, classes=3)
    merged: Any = s2a.merge(adapted)
    assert merged.num_classes == merged.get_classifier().out_features == 3
    assert all(p.requires_grad for p in merged.get_classifier().parameters())
    merged.reset_classifier(4)
    assert merged.eval()(images(name)).shape == (2, 4)


def test_timms_checkpoints(tmp_path: Path) -> None:
    """Its saver, its averages and its loaders work on the adapted model."""
    plain, adapted = adapted_model("vit", "lora")
    optimizer = create_optimizer_v2(adapted, "sgd", lr=0.1)
    mean = ModelEmaV3(adapted, decay=0.5)
    adapted(x := images()).square().sum().backward()
    optimizer.step()
    mean.update(adapted)
    saver = CheckpointSaver(
        adapted, optimizer, model_ema=mean, checkpoint_dir=str(tmp_path), recovery_dir=str(tmp_path)
    )
    saver.save_checkpoint(0, metric=1.0)
    assert unwrap_model(adapted) is adapted and get_state_dict(adapted).keys() == adapted.state_dict().keys()
    for use_mean in (False, True):
        other = s2a.attach(copy.deepcopy(plain), s2a.method_config("lora"), 7)
        load_checkpoint(other, str(tmp_path / "last.pth.tar"), use_ema=use_mean, weights_only=False)
        expected: Any = mean.module if use_mean else adapted
        assert torch.equal(other.eval()(x), expected.eval()(x))
    again = s2a.attach(copy.deepcopy(plain), s2a.method_config("lora"), 7)
    try:
        assert resume_checkpoint(again, str(tmp_path / "last.pth.tar"), log_info=False) == 1
    except pickle.UnpicklingError:
        pytest.skip("this timm writes what this torch does not load")
