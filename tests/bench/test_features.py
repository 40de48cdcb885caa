"""Features of a frozen backbone: the same training as on images, one file for all who need it, never a wrong one."""

from __future__ import annotations

import dataclasses
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import s2a
import torch
from s2a.registry import entry_for
from s2a_bench.cells import backbones, features, run
from s2a_bench.cells.outputs import Keep, clean_up, features_folder
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.data import loading as data

IDENTITY = {"data_id": "d", "list": "train"}


def cell(backbone: str = "mini_vit", method: str = "linear", **changes) -> CellConfig:
    return CellConfig(
        data=DataConfig(dataset="digits", limit_train=48, limit_test=40),
        backbone=BackboneConfig(backbone),
        method=MethodConfig(method),
        train=TrainConfig(epochs=3, warmup_epochs=1, batch_size=20, lr=0.05),
        threads=1,
        **changes,
    )


@pytest.fixture
def linear():
    """An adapted mini backbone and a few images for it."""
    model, expected = backbones.create(BackboneConfig("mini_vit"))
    torch.manual_seed(0)
    adapted = s2a.attach(model, s2a.method_config("linear"), 10)
    loaded = data.load_data(
        DataConfig(dataset="digits", limit_train=30, limit_test=20),
        size=expected.size,
        mean=expected.mean,
        std=expected.std,
    )
    return adapted, loaded.train


def files(output) -> list[str]:
    return sorted(path.name for path in features_folder(output).iterdir())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("backbone", ["mini_vit", "mini_swin", "mini_convnext"])
def test_a_cell_is_the_same_with_and_without(tmp_path, backbone, precision):
    # Curve, accuracy and trained head must agree with the run that sends every image through the backbone.
    asked = cell(backbone)
    asked = dataclasses.replace(asked, train=dataclasses.replace(asked.train, precision=precision))
    quick = run.run(asked, keep=Keep(tmp_path / "a", adapters=True))
    plain = run.run(asked, keep=Keep(tmp_path / "b", adapters=True, features=False))
    assert (quick.status, plain.status) == ("done", "done"), (quick.error, plain.error)
    assert (quick.feature_cache, plain.feature_cache) == (True, False)
    assert quick.cell_id == plain.cell_id
    near = {"fp32": 1e-4, "bf16": 2e-2}[precision]
    assert [m["loss"] for m in quick.curve] == pytest.approx([m["loss"] for m in plain.curve], rel=near)
    assert [m["lr"] for m in quick.curve] == [m["lr"] for m in plain.curve]
    assert quick.curve[-1]["loss"] < quick.curve[0]["loss"]
    assert quick.accuracy == pytest.approx(plain.accuracy, abs=0 if precision == "fp32" else 2.5)
    heads = [s2a_head(tmp_path / side, quick.cell_id) for side in "ab"]
    torch.testing.assert_close(*heads, rtol=near, atol=near)
    # Memory is that of the real step, whatever the loop did.
    for name in ("params_trainable", "weights_mb", "saved_mb", "measured_mb", "theoretical_mb"):
        assert getattr(quick, name) == getattr(plain, name), name
    assert quick.images_per_second is not None and quick.images_per_second > 0


def s2a_head(output, cell_id) -> torch.Tensor:
    from safetensors.torch import load_file

    return load_file(output / "adapters" / f"{cell_id}.safetensors")["head.weight"]


def test_the_speed_recorded_is_that_of_real_steps(tmp_path):
    record: Any = run.run(cell(), keep=Keep(tmp_path))
    head_alone = record.train_images * record.epochs / record.seconds
    assert record.images_per_second < head_alone / 3  # a backbone of 6 blocks against a product of 96 x 10


@pytest.mark.parametrize("method", ["s2a", "bias", "full", "unipt"])
def test_methods_whose_features_change_keep_their_images(tmp_path, method):
    record = run.run(dataclasses.replace(cell(method=method)), keep=Keep(tmp_path))
    assert record.status == "done" and not record.feature_cache
    assert not features_folder(tmp_path).exists()


def claiming() -> list[str]:
    return [name for name in s2a.list_methods() if entry_for(s2a.method_config(name)).method.fixed_features]


@pytest.mark.parametrize("method", claiming())
def test_a_method_that_claims_fixed_features_has_them(method):
    model, _ = backbones.create(BackboneConfig("mini_vit"))
    adapted = s2a.attach(model, s2a.method_config(method), 10)
    assert {name.partition(".")[0] for name in s2a.trainable_parameters(adapted)} == {"head"}
    images = torch.randn(4, 3, 32, 32)
    adapted.train()
    first, second = (adapted.method(adapted.backbone, images) for _ in range(2))
    adapted.eval()
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, adapted.method(adapted.backbone, images), rtol=0, atol=0)


def test_augmented_or_too_many_images_are_not_cached(linear, monkeypatch):
    adapted, _ = linear
    assert features.usable(adapted, {"size": 32}, 1000)
    assert not features.usable(adapted, {"size": 32, "augment": "random crop and mirror"}, 1000)
    monkeypatch.setattr(features, "FILE_LIMIT", 1000 * 96 * 4)
    assert features.usable(adapted, {}, 1000) and not features.usable(adapted, {}, 1001)


def test_features_are_those_of_each_image(linear):
    adapted, images = linear
    found = features.compute(adapted, images, TrainConfig(), IDENTITY, None)
    adapted.eval()
    pick = torch.tensor([29, 3, 3])
    with torch.no_grad():
        expected = adapted.method(adapted.backbone, images.batch(pick))
    torch.testing.assert_close(found.batch(pick), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.labels, images.labels) and len(found) == 30


def test_seeds_and_recipes_share_the_files_and_random_weights_do_not(tmp_path):
    keep = Keep(tmp_path)
    first = run.run(cell(), keep=keep)
    made = files(tmp_path)
    assert len(made) == 2  # training and scored
    stamps = [(features_folder(tmp_path) / name).stat().st_ino for name in made]
    other = dataclasses.replace(cell(seed=1), train=TrainConfig(epochs=1, warmup_epochs=0, lr=0.01))
    run.run(other, keep=keep)
    assert files(tmp_path) == made
    assert [(features_folder(tmp_path) / name).stat().st_ino for name in made] == stamps
    random = [
        dataclasses.replace(cell(seed=seed), backbone=BackboneConfig("mini_vit", random_weights=True))
        for seed in (0, 1)
    ]
    for asked in random:
        run.run(asked, keep=keep)
    assert len(files(tmp_path)) == 6
    again = run.run(cell(), keep=keep)
    assert [m["loss"] for m in again.curve] == [m["loss"] for m in first.curve]
    assert again.accuracy == first.accuracy


def test_everything_that_decides_features_decides_the_file():
    facts: dict[str, Any] = {
        name: name for name in ("suite", "dataset", "data_id", "split_id", "evaluate", "backbone", "method")
    }
    facts |= {"limits": [None, None], "format": {"size": 32}, "method_config": {}, "checkpoint_id": "abc", "seed": 0}
    facts["train"] = {"precision": "fp32", "lr": 0.1}

    def name(**changes) -> str:
        return features._name(features.key(facts | changes, "cpu"))

    different = [name(**{key: "other"}) for key in ("data_id", "split_id", "evaluate", "backbone", "checkpoint_id")]
    different += [name(limits=[5, None]), name(format={"size": 48}), name(train={"precision": "bf16"})]
    different += [name(checkpoint_id="random", seed=seed) for seed in (0, 1)]
    assert len({name(), *different}) == 1 + len(different)
    assert name(seed=1) == name(train={"precision": "fp32", "lr": 0.2}) == name()


@pytest.mark.parametrize("damage", ["flip", "short", "empty", "other"])
def test_a_damaged_file_is_made_again(tmp_path, linear, damage):
    adapted, images = linear
    good = features.compute(adapted, images, TrainConfig(), IDENTITY, tmp_path)
    (path,) = tmp_path.glob("*.f32")
    content = path.read_bytes()
    if damage == "flip":
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    elif damage == "other":  # whole, but of another list
        features.compute(adapted, images, TrainConfig(), {"list": "another"}, tmp_path / "x")
        (strange,) = (tmp_path / "x").glob("*.f32")
        path.write_bytes(strange.read_bytes())
    else:
        path.write_bytes(content[: 1000 if damage == "short" else 0])
    again = features.compute(adapted, images, TrainConfig(), IDENTITY, tmp_path)
    assert not again.from_file
    assert torch.equal(again.batch(torch.arange(30)), good.batch(torch.arange(30)))
    assert path.read_bytes() == content
    assert features.compute(adapted, images, TrainConfig(), IDENTITY, tmp_path).from_file


def test_a_folder_that_cannot_be_written_costs_only_the_file(tmp_path):
    (tmp_path / "cache").write_text("a file where the folder should be")
    record = run.run(cell(), keep=Keep(tmp_path))
    assert record.status == "done" and record.feature_cache


def test_the_folder_is_bounded_and_the_oldest_go_first(tmp_path, linear, monkeypatch):
    adapted, images = linear
    size = 30 * 96 * 4 + 32
    monkeypatch.setattr(features, "FOLDER_LIMIT", 2 * size + 100)
    for index in range(2):
        features.compute(adapted, images, TrainConfig(), {"list": index}, tmp_path)
        os.utime(tmp_path / f"{features._name({'list': index})}.f32", (1000 + index, 1000 + index))
    assert features.compute(adapted, images, TrainConfig(), {"list": 0}, tmp_path).from_file  # used: the younger now
    features.compute(adapted, images, TrainConfig(), {"list": 2}, tmp_path)
    left = {path.stem for path in tmp_path.glob("*.f32")}
    assert left == {features._name({"list": index}) for index in (0, 2)}


def test_half_written_files_go_when_the_next_sweep_begins(tmp_path):
    folder = features_folder(tmp_path)
    folder.mkdir(parents=True)
    (folder / ".x.f32.123.tmp").write_bytes(b"half")
    (folder / "x.f32").write_bytes(b"whole")
    clean_up(tmp_path)
    assert files(tmp_path) == ["x.f32"]


def test_writers_at_once_leave_one_whole_file(tmp_path):
    # What processes share is the file system, and so do threads; a reader sees nothing or everything.
    array = np.random.default_rng(0).normal(size=(300, 64)).astype(np.float32)
    path = tmp_path / "x.f32"
    stop = threading.Event()

    def read() -> list[bool]:
        seen = []
        while not stop.is_set():
            found = features._open(path, IDENTITY, 300, 64)
            seen.append(found is not None and bool((found == array).all()))
        return seen

    features._write(path, IDENTITY, array)
    with ThreadPoolExecutor(5) as threads:
        reader = threads.submit(read)
        for writer in [threads.submit(features._write, path, IDENTITY, array) for _ in range(40)]:
            writer.result()
        stop.set()
        seen = reader.result()
    first = seen.index(True)
    assert all(seen[first:])  # once there, never gone or half
    assert [entry.name for entry in tmp_path.iterdir()] == ["x.f32"]
    assert (features._open(path, IDENTITY, 300, 64) == array).all()


def test_measuring_steps_changes_nothing(linear):
    adapted, images = linear
    before = {name: tensor.clone() for name, tensor in adapted.state_dict().items()}
    ticks = iter(range(100))
    adapted.train()
    speed = features.step_speed(adapted, images, TrainConfig(lr=100.0), seconds=3, clock=lambda: next(ticks))
    assert speed > 0 and np.isfinite(speed) and next(ticks) == 4  # began, then three steps
    assert adapted.training and adapted.head.weight.grad is None
    assert all(torch.equal(tensor, before[name]) for name, tensor in adapted.state_dict().items())
