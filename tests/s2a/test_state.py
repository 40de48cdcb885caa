"""Saved states: what they hold, where they fit."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s2a
import timm
import tiny
import torch
from s2a import saved_file
from s2a.state import backbone_id
from s2a.testing import differences, snapshot
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn


def trained(model: nn.Module, config: Any, size: int = 32) -> s2a.Adapted:
    """The model under a method, two steps on noise later, in evaluation mode."""
    adapted = s2a.attach(model, config, 5, image_size=size).train()
    optimizer = torch.optim.SGD(s2a.trainable_parameters(adapted).values(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        adapted(torch.randn(4, 3, size, size)).square().sum().backward()
        optimizer.step()
    return adapted.eval()


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Any, Any, Path]:
    """An untouched backbone, an adapted and trained copy of it, and the file of its state."""
    model = tiny.vit()
    adapted = trained(copy.deepcopy(model), s2a.S2AConfig(lrp_rank=4))
    s2a.save(adapted, tmp_path / "state.safetensors")
    return model, adapted, tmp_path / "state.safetensors"


def test_only_what_trains_is_written(saved: tuple[Any, Any, Path]) -> None:
    _, adapted, path = saved
    with safe_open(path, framework="pt") as file:
        header, names = file.metadata(), set(file.keys())
    assert names == s2a.trainable_parameters(adapted).keys()
    assert header["method"] == "s2a"
    assert json.loads(header["config"])["lrp_rank"] == 4
    assert (header["num_classes"], header["architecture"]) == ("5", "vit_tiny_patch16_224")
    trainable = sum(p.numel() for p in s2a.trainable_parameters(adapted).values())
    assert path.stat().st_size < 4 * trainable + 10_000
    assert [p.name for p in path.parent.iterdir()] == [path.name]  # No temporary file is left.


def test_configs_with_tuples_come_back(tmp_path: Path) -> None:
    model = tiny.vit()
    for config in (s2a.S2AConfig(sites=(1,)), s2a.method_config("lora", targets=("proj", "fc1"), alpha=3.0)):
        adapted = trained(copy.deepcopy(model), config)
        s2a.save(adapted, tmp_path / "state")
        loaded = s2a.load(copy.deepcopy(model), tmp_path / "state")
        assert loaded.config == config
        images = torch.randn(2, 3, 32, 32)
        assert torch.equal(loaded.eval()(images), adapted(images))


def test_another_classifier_does_not_matter(saved: tuple[Any, Any, Path]) -> None:
    model, adapted, path = saved
    images = torch.randn(2, 3, 32, 32)
    model.reset_classifier(11)
    assert torch.equal(s2a.load(model, path).eval()(images), adapted(images))


def test_saving_does_not_disturb_training(saved: tuple[Any, Any, Path]) -> None:
    _, adapted, path = saved
    before = snapshot(adapted)
    s2a.save(adapted, path)
    assert not differences(before, snapshot(adapted))


def test_norm_statistics_travel(tmp_path: Path) -> None:
    model = tiny.resnet()
    images = torch.randn(4, 3, 64, 64)
    adapted = trained(copy.deepcopy(model), s2a.method_config("bias"), 64)
    s2a.save(adapted, tmp_path / "state")
    assert torch.equal(s2a.load(model, tmp_path / "state").eval()(images), adapted(images))


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_norm_statistics_travel_after_a_move(tmp_path: Path, dtype: torch.dtype) -> None:
    """A moved model has new buffer tensors; the changed statistics must still be seen."""
    model = tiny.resnet()
    images = torch.randn(4, 3, 64, 64, dtype=dtype)
    adapted = s2a.attach(copy.deepcopy(model), s2a.method_config("bias"), 5, image_size=64).to(dtype).train()
    adapted(images)
    s2a.save(adapted, tmp_path / "state")
    # What trains is float32 again, until the whole model is moved as the saved one was.
    loaded = s2a.load(model.to(dtype), tmp_path / "state").to(dtype)
    assert torch.equal(loaded.eval()(images), adapted.eval()(images))


def test_an_id_is_that_of_weights_and_buffers(tmp_path: Path) -> None:
    model = tiny.resnet()
    first = backbone_id(model)
    assert first == backbone_id(copy.deepcopy(model))
    for change in ("fc.weight", "layer1.0.bn1.running_mean", "layer1.0.conv1.weight", "bn1.bias"):
        other = copy.deepcopy(model)
        with torch.no_grad():
            dict([*other.named_parameters(), *other.named_buffers()])[change].view(-1)[0] += 1
        assert (backbone_id(other) == first) is (change == "fc.weight")  # The classifier is not part of it.
    adapted = trained(copy.deepcopy(model), s2a.method_config("full"), 64)
    s2a.save(adapted, tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        assert file.metadata()["backbone_id"] == first  # All of it trained, and it is still the one that was attached.


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _foreign(path: Path) -> None:
    save_file({"weight": torch.zeros(2)}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "cannot be read as a saved method"),
        (_truncate, "cannot be read as a saved method"),
        (lambda path: path.write_bytes(b""), "cannot be read as a saved method"),
        (lambda path: path.write_text("not a state"), "cannot be read as a saved method"),
        (_foreign, r"not written by s2a.save \(format None"),
    ],
)
def test_bad_files_leave_the_model_alone(
    saved: tuple[Any, Any, Path], spoil: Callable[[Path], object], message: str
) -> None:
    model, _, path = saved
    before = snapshot(model)
    spoil(path)
    with pytest.raises(s2a.S2AError, match=message):
        s2a.load(model, path)
    assert not differences(before, snapshot(model))


def test_folders_are_no_files(saved: tuple[Any, Any, Path], tmp_path: Path) -> None:
    model, adapted, _ = saved
    with pytest.raises(s2a.S2AError, match="cannot be read"):
        s2a.load(model, tmp_path)
    with pytest.raises(s2a.S2AError, match="is not a folder"):
        s2a.save(adapted, tmp_path / "missing" / "state")
    with pytest.raises(s2a.S2AError, match="save takes what"):
        s2a.save(model, tmp_path / "state")


def test_a_failed_save_leaves_no_trace(saved: tuple[Any, Any, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _, adapted, path = saved
    old = path.read_bytes()

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(saved_file, "save_file", fail)
    with pytest.raises(OSError, match="No space"):
        s2a.save(adapted, path)
    assert [p.name for p in path.parent.iterdir()] == [path.name]
    assert path.read_bytes() == old


def test_another_backbone_is_refused(saved: tuple[Any, Any, Path]) -> None:
    _, adapted, path = saved
    for other, message in (
        (tiny.swin(), "belongs to vit_tiny_patch16_224, not to swin"),
        (tiny.vit(), "create the model with the checkpoint it was trained from"),
        (tiny.vit(depth=3), "checkpoint"),
    ):
        before = snapshot(other)
        with pytest.raises(s2a.StateMismatch, match=message):
            s2a.load(other, path)
        assert not differences(before, snapshot(other))
    for twice in (adapted, adapted.backbone):
        with pytest.raises(s2a.S2AError, match="already adapted"):
            s2a.load(twice, path)


def _rewritten(path: Path, drop: str = "", add: str = "", **header: str) -> None:
    with safe_open(path, framework="pt") as file:
        metadata = {**file.metadata(), **header}
        tensors = {n: file.get_tensor(n) for n in file.keys() if n != drop}
    if add:
        tensors[add] = torch.zeros(1)
    save_file(tensors, path, metadata=metadata)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"drop": "head.weight"}, r"missing \['head.weight'\]"),
        ({"add": "method.extra"}, "unknown or of another shape .*method.extra"),
        ({"method": "s2c"}, "Unknown method 's2c': did you mean 's2a'"),
        ({"format": "9"}, "format '9', expected '1'"),
        ({"config": '{"colour": 1}'}, "no option 'colour'"),
        ({"num_classes": "6"}, r"another shape \['head.bias', 'head.weight'\]"),
    ],
)
def test_edited_files_leave_the_model_alone(saved: tuple[Any, Any, Path], change: dict[str, str], message: str) -> None:
    model, _, path = saved
    before = snapshot(model)
    _rewritten(path, **change)
    with pytest.raises(s2a.S2AError, match=message):
        s2a.load(model, path)
    assert not differences(before, snapshot(model))


def test_what_was_frozen_after_training_is_written(saved: tuple[Any, Any, Path]) -> None:
    model, adapted, path = saved
    images = torch.randn(2, 3, 32, 32)
    names = s2a.trainable_parameters(adapted).keys()
    adapted.requires_grad_(False)
    s2a.save(adapted, path)
    with safe_open(path, framework="pt") as file:
        assert set(file.keys()) == names
    assert torch.equal(s2a.load(model, path).eval()(images), adapted(images))


def test_a_real_backbones_state_is_its_trained_values(tmp_path: Path) -> None:
    """ViT-B/16 under S2A and 100 classes: 771,820 values by the paper's formulas, 3.1 MB, and the same logits."""
    biases, prompts, head = 102_912, 12 * 30 * (197 + 768), 100 * (768 + 96) + 100
    branch = 12 * (2 * (96 * 96 + 96) + 10 * 96)
    model = timm.create_model("vit_base_patch16_224")
    adapted = s2a.attach(copy.deepcopy(model), s2a.S2AConfig(), 100).eval()
    for parameter in s2a.trainable_parameters(adapted).values():
        nn.init.normal_(parameter, std=0.02)
    s2a.save(adapted, tmp_path / "state")
    with safe_open(tmp_path / "state", framework="pt") as file:
        tensors = len(file.keys())
    content = 4 * (biases + prompts + branch + head)
    header = (tmp_path / "state").stat().st_size - content
    assert 0 < header < 200 * tensors  # Names, shapes and offsets; 3.1 MB in all.
    with torch.no_grad():
        images = torch.randn(1, 3, 224, 224)
        assert torch.equal(s2a.load(model, tmp_path / "state").eval()(images), adapted(images))
    other = timm.create_model("vit_small_patch16_224")
    with pytest.raises(s2a.StateMismatch, match="belongs to vit_base_patch16_224, not to vit_small_patch16_224"):
        s2a.load(other, tmp_path / "state")
