"""What was saved can be loaded, whatever happened to the adapted model between attach and save; detach is exact."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s2a
import tiny
import torch
from s2a.identity import identify
from s2a.state import backbone_id
from s2a.testing import differences, snapshot
from safetensors import safe_open
from safetensors.torch import save_file
from timm.utils.model_ema import ModelEmaV2, ModelEmaV3
from torch import nn
from torch.optim.swa_utils import AveragedModel

CONFIGS: dict[str, Callable[[], Any]] = {
    "s2a": lambda: s2a.S2AConfig(lrp_rank=4),
    "lean": lambda: s2a.S2AConfig(lrp_rank=4, activations="lean"),
    "lora": lambda: s2a.method_config("lora"),
    "bias": lambda: s2a.method_config("bias"),
    "full": lambda: s2a.method_config("full"),
}


def images(model: str = "vit") -> torch.Tensor:
    size = tiny.MODELS[model][1]
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(1))


def train(adapted: nn.Module, x: torch.Tensor, steps: int = 2, lr: float = 0.05) -> None:
    adapted.train()
    optimizer = torch.optim.SGD([p for p in adapted.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        adapted(x).square().mean().backward()
        optimizer.step()
    adapted.eval()


def attached(method: str, model: str = "vit") -> tuple[Any, Any]:
    """An untouched backbone, and a copy of it under a method, trained."""
    make, size = tiny.MODELS[model]
    plain = make()
    adapted = s2a.attach(copy.deepcopy(plain), CONFIGS[method](), 5, image_size=size)
    train(adapted, images(model))
    return plain, adapted


def drifting_mean(adapted: nn.Module) -> nn.Module:
    """An average p d + (1 - d) p, which moves frozen values in their last bits."""
    mean = AveragedModel(adapted, avg_fn=lambda mean, new, count: 0.9998 * mean + (1 - 0.9998) * new)
    for _ in range(60):
        mean.update_parameters(adapted)
    return mean.module


def timm_mean(adapted: nn.Module) -> nn.Module:
    mean = ModelEmaV2(adapted, decay=0.9998)
    for _ in range(60):
        mean.update(adapted)
    return mean.module


def timm_mean_v3(adapted: nn.Module) -> nn.Module:
    mean = ModelEmaV3(adapted, decay=0.9998)
    for _ in range(20):
        mean.update(adapted)
    return mean.module


def pickled(adapted: nn.Module) -> nn.Module:
    stream = io.BytesIO()
    torch.save(adapted, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


def cast_frozen(adapted: Any) -> Any:
    s2a.cast_frozen(adapted)
    return adapted


def assigned(adapted: Any) -> Any:
    state = {name: value.clone() for name, value in adapted.state_dict().items()}
    adapted.load_state_dict(state, assign=True)
    return adapted


CHANGES: dict[str, Callable[[Any], Any]] = {
    "drifting mean": drifting_mean,
    "ModelEmaV2": timm_mean,
    "ModelEmaV3": timm_mean_v3,
    "cast_frozen": cast_frozen,
    "to bfloat16": lambda adapted: adapted.to(torch.bfloat16),
    "to float64": lambda adapted: adapted.to(torch.float64),
    "half and back": lambda adapted: adapted.half().float(),
    "deepcopy": copy.deepcopy,
    "pickle": pickled,
    "assign": assigned,
    "frozen": lambda adapted: adapted.requires_grad_(False),
}


@pytest.mark.each_value
@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("change", CHANGES)
def test_what_was_saved_can_be_loaded(change: str, method: str, tmp_path: Path) -> None:
    """Logits are the same up to the number format, and the file holds no frozen weights."""
    plain, adapted = attached(method)
    names = s2a.trainable_parameters(adapted).keys()
    changed = CHANGES[change](adapted).eval()
    s2a.save(changed, tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        assert names <= set(file.keys())
        assert not {n for n in set(file.keys()) - names if n.startswith("backbone.")}
    loaded = s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()
    dtype = next(changed.head.parameters()).dtype
    narrow = {"to bfloat16": 0.1, "half and back": 2e-3}.get(change, 1e-4)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=change == "cast_frozen"):
        expected = changed(images().to(dtype)).float()
        torch.testing.assert_close(loaded(images()).float(), expected, rtol=narrow, atol=narrow)


@pytest.mark.parametrize("model", tiny.MODELS)
def test_an_identity_is_independent_of_the_number_format(model: str) -> None:
    plain = tiny.MODELS[model][0]()
    found = identify(plain)
    assert found.id == backbone_id(copy.deepcopy(plain).to(torch.bfloat16)) == backbone_id(plain.to(torch.float64))
    assert {"float64"} == {p.dtype for p in identify(plain).tensors.values() if "float" in p.dtype}


@pytest.mark.parametrize("dtypes", [("float32", "float16"), ("float16", "float32"), ("bfloat16", "float32")])
def test_a_copy_in_another_number_format_is_the_same_backbone(
    dtypes: tuple[str, str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And the log says that it was rounded."""
    plain = tiny.vit()
    for dtype in dtypes:
        model = copy.deepcopy(plain).to(getattr(torch, dtype))
        if dtype == dtypes[0]:
            s2a.save(s2a.attach(model, s2a.method_config("bias"), 5), tmp_path / "state")
            continue
        with caplog.at_level(logging.WARNING, "s2a"):
            s2a.load(model, tmp_path / "state")
        assert f"trained on {dtypes[0]} weights, these are {dtypes[1]}" in caplog.text


def test_what_differs_is_said_and_can_be_overridden(tmp_path: Path) -> None:
    plain, adapted = attached("lora")
    s2a.save(adapted, tmp_path / "state")
    other = copy.deepcopy(plain)
    with torch.no_grad():
        other.blocks[1].mlp.fc1.weight[0, 0] += 0.01
    with pytest.raises(s2a.StateMismatch, match=r"1 of 30 tensors differ \(blocks.1.mlp.fc1.weight\)") as caught:
        s2a.load(other, tmp_path / "state")
    for word in ("tag augreg_in21k_ft_in1k", "hf_hub_id timm/", f"id {backbone_id(plain)}", "check_backbone=False"):
        assert word in str(caught.value)
    loaded = s2a.load(other, tmp_path / "state", check_backbone=False)
    for name, value in s2a.trainable_parameters(adapted).items():
        assert torch.equal(dict(loaded.named_parameters())[name], value), name
    renamed = copy.deepcopy(plain)
    renamed.pretrained_cfg = {**renamed.pretrained_cfg, "architecture": "my_vit"}
    with pytest.raises(s2a.StateMismatch, match="belongs to vit_tiny_patch16_224, not to my_vit"):
        s2a.load(renamed, tmp_path / "state")
    x = images()
    assert torch.equal(s2a.load(renamed, tmp_path / "state", check_backbone=False).eval()(x), adapted(x))
    with pytest.raises(s2a.StateMismatch, match=r"other sizes \(30 tensors, this one has 42\)"):
        s2a.load(tiny.vit(depth=3), tmp_path / "state")
    before = snapshot(deeper := tiny.vit(depth=3))
    with pytest.raises(s2a.StateMismatch, match="does not fit 'lora'"):
        s2a.load(deeper, tmp_path / "state", check_backbone=False)
    assert not differences(before, snapshot(deeper))


@pytest.mark.parametrize("frozen_again", [False, True])
@pytest.mark.parametrize("averaged", [False, True])
def test_a_layer_unfrozen_after_attach_travels(averaged: bool, frozen_again: bool, tmp_path: Path) -> None:
    """Its values are in the file, it trains again after loading, and detaching gives the backbone's own back."""
    plain, adapted = attached("lora")
    layer = adapted.backbone.blocks[1].norm1.requires_grad_(True)
    train(adapted, images(), lr=1e-3)
    if averaged:
        adapted = ModelEmaV3(adapted, decay=0.5).module
    if frozen_again:
        adapted.backbone.requires_grad_(False)
    s2a.save(adapted, tmp_path / "state")
    loaded: Any = s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()
    assert torch.equal(loaded(images()), adapted(images()))
    assert torch.equal(loaded.backbone.blocks[1].norm1.weight, layer.weight)
    assert loaded.backbone.blocks[1].norm1.weight.requires_grad
    s2a.save(loaded, tmp_path / "again")
    assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "again").eval()(images()), adapted(images()))
    assert not differences(snapshot(plain), snapshot(s2a.detach(loaded.train())))


def test_a_frozen_layer_with_other_values_travels(tmp_path: Path) -> None:
    """Trained after attach by other means than requires_grad, or written by hand."""
    plain, adapted = attached("lora")
    with torch.no_grad():
        adapted.backbone.blocks[0].mlp.fc2.weight.mul_(1.5)
    s2a.save(adapted, tmp_path / "state")
    loaded = s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()
    assert torch.equal(loaded(images()), adapted(images()))
    assert not differences(snapshot(plain), snapshot(s2a.detach(loaded.train())))


def restored(state: Any, how: str) -> Any:
    """A state dict after its way through a file, or as plain values without torch's metadata."""
    if how == "plain":
        return {name: value.clone() for name, value in state.items()}
    stream = io.BytesIO()
    torch.save(state, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=True)


@pytest.mark.each_value
@pytest.mark.parametrize("how", ["file", "plain"])
@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("method", CONFIGS)
@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_a_resume_into_an_untrained_model(model: str, method: str, assign: bool, how: str, tmp_path: Path) -> None:
    """What is saved after it belongs to the pretrained backbone; detaching the hybrid is refused, or exact."""
    plain, adapted = attached(method, model)
    x = images(model)
    untrained = tiny.MODELS[model][0]()
    before = snapshot(untrained)
    resumed = s2a.attach(untrained, CONFIGS[method](), 5, image_size=x.shape[-1])
    resumed.load_state_dict(restored(adapted.state_dict(), how), assign=assign)
    s2a.save(resumed.eval(), tmp_path / "state")
    assert (tmp_path / "state").stat().st_size < 2 * 4 * sum(p.numel() for p in adapted.parameters())
    loaded = s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()
    assert torch.equal(loaded(x), adapted(x))
    if assign or method == "full":  # The objects that were attached hold the first values still, or their copies do.
        back = s2a.detach(resumed.train())
        assert not differences(before, snapshot(back.train()))
        return
    with pytest.raises(s2a.S2AError, match="cannot be given back: its frozen weights were changed"):
        s2a.detach(resumed)
    assert torch.equal(resumed(x), adapted(x))  # The adapted model goes on as it was.


def test_a_resume_on_the_same_weights_detaches(tmp_path: Path) -> None:
    plain, adapted = attached("s2a")
    resumed = s2a.attach(copy.deepcopy(plain), CONFIGS["s2a"](), 5)
    resumed.load_state_dict(adapted.state_dict())
    s2a.save(resumed, tmp_path / "state")
    assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()(images()), adapted(images()))
    assert not differences(snapshot(plain), snapshot(s2a.detach(resumed.train())))


def test_weights_loaded_into_the_backbone_under_a_method(tmp_path: Path) -> None:
    """Pretrained weights that come after attach are those the state belongs to."""
    plain = tiny.vit()
    adapted = s2a.attach(tiny.vit(), CONFIGS["lora"](), 5)
    state = {n: v for n, v in plain.state_dict().items() if not n.startswith("head.")}
    adapted.backbone.load_state_dict(state, strict=False)
    train(adapted, images())
    s2a.save(adapted, tmp_path / "state")
    assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()(images()), adapted(images()))
    with pytest.raises(s2a.S2AError, match="cannot be given back"):
        s2a.detach(adapted)


def test_a_drifted_mean_is_not_given_back_but_merges(tmp_path: Path) -> None:
    plain, adapted = attached("lora")
    mean: Any = timm_mean(adapted)
    with pytest.raises(s2a.S2AError, match="an average of weights"):
        s2a.detach(mean)
    torch.testing.assert_close(s2a.merge(mean)(images()), mean(images()), rtol=1e-3, atol=1e-3)
    assert not differences(snapshot(plain), snapshot(s2a.detach(adapted).train()))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_a_cast_model_detaches(dtype: torch.dtype) -> None:
    plain, adapted = attached("bias")
    back = s2a.detach(adapted.to(dtype).float().to(dtype))
    for name, value in plain.to(dtype).named_parameters():
        assert torch.equal(dict(back.named_parameters())[name], value), name


def test_a_model_on_the_meta_device(tmp_path: Path) -> None:
    """Attached without values, filled by a state: it saves what loads; there is nothing to give back."""
    plain, adapted = attached("bias")
    with torch.device("meta"):
        empty = tiny.vit()
        shell = s2a.attach(empty, CONFIGS["bias"](), 5)
    with pytest.raises(s2a.S2AError, match="no values"):
        s2a.save(shell, tmp_path / "state")
    for state in (adapted.state_dict(), dict(adapted.state_dict())):
        shell.load_state_dict(state, assign=True)
        s2a.save(shell.eval(), tmp_path / "state")
        assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()(images()), adapted(images()))
    with pytest.raises(s2a.S2AError, match="cannot be given back"):
        s2a.detach(shell)


def test_an_average_of_states_keeps_its_backbone(tmp_path: Path) -> None:
    """A mean of two states without metadata, loaded into an untrained model."""
    plain, adapted = attached("lora")
    first = {n: v.clone() for n, v in adapted.state_dict().items()}
    train(adapted, images())
    mean = {n: (v + first[n]) / 2 for n, v in adapted.state_dict().items()}
    other = s2a.attach(tiny.vit(), CONFIGS["lora"](), 5)
    other.load_state_dict(mean)
    s2a.save(other.eval(), tmp_path / "state")
    assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()(images()), other(images()))


def write_format_1(adapted: s2a.Adapted, plain: nn.Module, path: Path, **header: str) -> None:
    """A file as versions before format 2 wrote it: what trains and what the method added, an id of the exact values."""
    digest = hashlib.sha256()
    classifier = plain.pretrained_cfg["classifier"]  # type: ignore[index]
    for name, value in sorted([*plain.named_parameters(), *plain.named_buffers()]):
        if not name.startswith(f"{classifier}."):
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    state = {n: p.detach().clone() for n, p in adapted.named_parameters() if p.requires_grad or n.startswith("method.")}
    before = dict(plain.named_buffers())
    for name, value in adapted.backbone.named_buffers():
        if not torch.equal(value, before[name]):
            state[f"backbone.{name}"] = value.clone()
    known = {
        "format": "1",
        "method": adapted.name,
        "config": json.dumps(dataclasses.asdict(adapted.config)),
        "num_classes": str(adapted.head.out_features),
        "image_size": json.dumps(adapted.image_size),
        "architecture": plain.pretrained_cfg["architecture"],  # type: ignore[index]
        "backbone_id": digest.hexdigest()[:16],
    }
    save_file(state, path, metadata={**known, **header})


@pytest.mark.parametrize("model", ["vit", "swin", "resnet"])
@pytest.mark.parametrize("method", ["bias", "lora", "full"])
def test_files_of_format_1_load(method: str, model: str, tmp_path: Path) -> None:
    plain, adapted = attached(method, model)
    write_format_1(adapted, plain, tmp_path / "state")
    x = images(model)
    assert torch.equal(s2a.load(copy.deepcopy(plain), tmp_path / "state").eval()(x), adapted(x))
    with torch.no_grad():
        next(plain.parameters()).view(-1)[0] += 1
    with pytest.raises(s2a.StateMismatch, match=r"create the model with the checkpoint .* check_backbone=False"):
        s2a.load(plain, tmp_path / "state")
    s2a.load(plain, tmp_path / "state", check_backbone=False)
