"""Adapter folders: what is saved comes back as the same function, with names, images and card."""

from __future__ import annotations

import copy
import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import s2a
import timm
import tiny
import torch
from PIL import Image
from s2a.pretrained import backbone as backbones
from safetensors.torch import save_file
from timm.data.config import resolve_model_data_config

LABELS = ["a", "b / c", "d | `e`", "---", "🐈‍⬛"]
FILES = {"README.md", "adapter_config.json", "adapter_model.safetensors"}


class Point:
    """An entry point of ``s2a.backbones`` as an installed package has it."""

    dist = SimpleNamespace(name="some-package")

    def __init__(self, make: Callable[..., Any]) -> None:
        self.make = make

    def load(self) -> Callable[..., Any]:
        return self.make


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, Callable[..., Any]], None]:
    """Puts a backbone into the entry-point group for one test."""
    known: dict[str, Callable[..., Any]] = {}
    monkeypatch.setattr(
        backbones, "entry_points", lambda group, name: [Point(known[name])] if name in known else [], raising=True
    )
    return known.__setitem__


def trained(model: Any, config: Any = None, classes: int = 5, size: int = 32) -> tuple[Any, torch.Tensor]:
    """An adapted model after one step, and images."""
    adapted = s2a.attach(model, config or s2a.S2AConfig(lrp_rank=2), classes, image_size=size).train()
    images = torch.randn(3, 3, size, size)
    adapted(images).square().mean().backward()
    torch.optim.SGD(s2a.trainable_parameters(adapted).values(), lr=0.1).step()
    return adapted.eval(), images


@pytest.fixture
def weights(tmp_path: Path) -> Callable[[Any], Path]:
    """Writes a model's weights to a file."""

    def write(model: Any) -> Path:
        path = tmp_path / "weights.safetensors"
        save_file({name: t.contiguous() for name, t in model.state_dict().items()}, path)
        return path

    return write


@pytest.mark.parametrize("family", ["vit", "swin", "convnext"])
@pytest.mark.parametrize("method", s2a.list_methods())
def test_every_method_comes_back(method: str, family: str, register: Any, tmp_path: Path) -> None:
    make, size = tiny.MODELS[family]
    plain = make()
    try:
        adapted, images = trained(copy.deepcopy(plain), s2a.method_config(method), size=size)
    except s2a.UnsupportedModel:
        return
    register("tiny_one", lambda **args: copy.deepcopy(plain))
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", labels=LABELS, backbone={"name": "tiny_one"})
    assert {path.name for path in folder.iterdir()} == FILES
    loaded = s2a.from_pretrained(folder)
    assert torch.equal(loaded(images), adapted(images))
    assert not any(module.training for module in loaded.modules())
    assert loaded.labels == LABELS
    assert loaded.config == adapted.config
    assert loaded.card is not None
    assert loaded.card["method"] == method


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("test_vit", {}),
        ("test_vit", {"img_size": 64, "num_classes": 7}),
        ("test_vit", {"img_size": 64, "global_pool": "avg", "class_token": True}),
        ("test_convnext", {}),
    ],
)
def test_a_timm_model_describes_itself(
    name: str, args: dict[str, Any], weights: Callable[[Any], Path], tmp_path: Path
) -> None:
    model = timm.create_model(name, **args)
    file = weights(model)
    size = args.get("img_size", 160)
    adapted, images = trained(model, s2a.method_config("bias"), size=size)
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter")
    described = json.loads((folder / "adapter_config.json").read_text())["backbone"]
    assert described["name"].startswith(name)
    assert described["weights"]["hub"] == f"timm/{described['name']}"
    loaded = s2a.from_pretrained(folder, weights=file)
    assert torch.equal(loaded(images), adapted(images))
    assert loaded.labels is None
    own = resolve_model_data_config(adapted.backbone)
    assert loaded.transform().mean == own["mean"]
    assert loaded.transform()(Image.new("RGB", (50, 40))).shape == (3, size, size)


def test_arguments_that_do_not_make_the_model_are_found(tmp_path: Path) -> None:
    model: Any = timm.create_model("test_vit", img_size=64, global_pool="avg")
    adapted, _ = trained(model, s2a.method_config("bias"), size=64)
    for args, message in (
        ({"img_size": 64}, r"fc_norm\.bias is missing there.*pass backbone="),
        ({"img_size": 160, "global_pool": "avg"}, r"pos_embed has shape \(1, 17, 64\), there \(1, 101, 64\)"),
        ({"img_size": 64, "global_pool": "avgmax"}, r"global_pool is 'avg', there 'avgmax'"),
        ({"img_size": 64, "nonsense": 1}, r"cannot be made with the arguments"),
        ({"img_size": 64, "pretrained_cfg": "x"}, r"'pretrained_cfg' is not allowed"),
    ):
        with pytest.raises(s2a.S2AError, match=message):
            s2a.save_pretrained(adapted, tmp_path / "adapter", backbone={"name": "test_vit", "args": args})
    for name in ("no_such_model", "hf-hub:a/b", "test_vit.no_such_tag", "../x", ""):
        with pytest.raises(s2a.S2AError, match=r"known neither|is neither|cannot be made"):
            s2a.save_pretrained(adapted, tmp_path / "adapter", backbone={"name": name})
    assert not list(tmp_path.iterdir())
    model.pretrained_cfg["architecture"] = "my_own"
    with pytest.raises(s2a.S2AError, match="timm does not know the model's backbone, my_own"):
        s2a.save_pretrained(adapted, tmp_path / "adapter")


def test_the_same_model_gives_the_same_bytes(tmp_path: Path) -> None:
    adapted, _ = trained(timm.create_model("test_vit", img_size=32))
    more = {"labels": LABELS, "metrics": {"accuracy": 91.25}, "data": {"name": "pets", "counts": {"train": 3}}}
    for name in ("one", "two", "two"):  # Replacing gives the same too.
        s2a.save_pretrained(adapted, tmp_path / name, **more)
    for file in FILES:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two"}


def test_what_a_folder_said_is_kept_when_it_is_saved_again(weights: Callable[[Any], Path], tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=32)
    file = weights(model)
    adapted, images = trained(model)
    image = {"size": 32, "mean": [0.1] * 3, "std": [0.2] * 3, "interpolation": "nearest", "resize": "squash"}
    first = s2a.save_pretrained(
        adapted, tmp_path / "one", labels=LABELS, image=image, licence="cc0-1.0", data={"name": "x"}, metrics={"a": 1}
    )
    loaded = s2a.from_pretrained(first, weights=file)
    second = s2a.save_pretrained(loaded, tmp_path / "two")
    one, two = (json.loads((folder / "adapter_config.json").read_text()) for folder in (first, second))
    for config in (one, two):  # The state says in its header which file the weights came from.
        config["memory"].pop("adapter_bytes")
    assert {**one, "metrics": None} == two
    assert torch.equal(s2a.from_pretrained(second, weights=file)(images), adapted(images))


def test_only_an_adapters_own_folder_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, _ = trained(timm.create_model("test_vit", img_size=32))
    folder = s2a.save_pretrained(adapted, tmp_path / "deep" / "adapter", labels=LABELS)
    (tmp_path / "empty").mkdir()
    s2a.save_pretrained(adapted, tmp_path / "empty")
    # Not with somebody's file in it, nor in the place of another folder or file.
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(s2a.S2AError, match=r"other files \(notes.txt\)"):
        s2a.save_pretrained(adapted, folder)
    (folder / "notes.txt").unlink()
    (tmp_path / "readme").mkdir()
    (tmp_path / "readme" / "README.md").write_text("# mine")
    (tmp_path / "peft").mkdir()
    (tmp_path / "peft" / "adapter_config.json").write_text('{"peft_type": "LORA"}')
    (tmp_path / "file").write_text("mine")
    for name, message in (("readme", "no adapter folder"), ("peft", "one of PEFT's"), ("file", "is a file")):
        with pytest.raises(s2a.S2AError, match=message):
            s2a.save_pretrained(adapted, tmp_path / name)
    assert (tmp_path / "readme" / "README.md").read_text() == "# mine"
    # Whatever fails on the way, the former folder stays, and nothing else is left.
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    for part in ("s2a.pretrained.save.make_card", "s2a.pretrained.save.save", "pathlib.Path.rename"):
        with monkeypatch.context() as patch:
            patch.setattr(part, lambda *args, **kwargs: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                s2a.save_pretrained(adapted, folder)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [path.name for path in folder.parent.iterdir()] == ["adapter"]
    for wrong in (None, 3):
        with pytest.raises(s2a.S2AError, match="path of a folder"):
            s2a.save_pretrained(adapted, wrong)  # type: ignore[arg-type]


def test_heads_of_every_form(weights: Callable[[Any], Path], tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=32)
    file = weights(model)
    adapted, images = trained(model)
    width = adapted.num_features
    for head, classes in (
        (torch.nn.Linear(width, 5, bias=False), 5),
        (torch.nn.Linear(width, 2), 2),
        (torch.nn.Identity(), 0),
    ):
        adapted.head = head
        with pytest.raises(s2a.S2AError, match=f"3 labels do not fit a head of {classes} classes"):
            s2a.save_pretrained(adapted, tmp_path / "adapter", labels=["x", "y", "z"])
        folder = s2a.save_pretrained(adapted, tmp_path / "adapter", labels=list("abcdef")[:classes] or None)
        loaded = s2a.from_pretrained(folder, weights=file)
        assert torch.equal(loaded(images), adapted(images))
        assert loaded.num_classes == classes
    adapted.head = torch.nn.Sequential(torch.nn.Linear(width, 8), torch.nn.Linear(8, 3))
    with pytest.raises(s2a.S2AError, match=r"head is a Sequential.*s2a\.load\(model, path, head"):
        s2a.save_pretrained(adapted, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("way", ["cast after", "cast before", "half"])
def test_number_formats_come_back(way: str, weights: Callable[[Any], Path], tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=32)
    file = weights(model)
    if way == "cast before":
        model = model.to(torch.bfloat16)
    adapted, images = trained(model)
    if way == "cast after":
        s2a.cast_frozen(adapted)
    if way == "half":
        s2a.cast_frozen(adapted, torch.float16)
    loaded = s2a.from_pretrained(s2a.save_pretrained(adapted, tmp_path / "adapter"), weights=file)
    assert torch.equal(loaded(images), adapted(images))
    formats = [{n: p.dtype for n, p in m.named_parameters()} for m in (loaded, adapted)]
    assert formats[0] == formats[1]


@pytest.mark.parametrize("budget", [{"saved_budget_mb": 40.0}, {"peak_budget": "100MB"}])
def test_a_budget_is_kept_but_not_planned_for_prediction(
    budget: dict[str, Any], weights: Callable[[Any], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = timm.create_model("test_vit", img_size=32)
    file = weights(model)
    config = s2a.S2AConfig(lrp_rank=2, activations="lean", budget_batch=4, **budget)
    adapted, images = trained(model, config)
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter")
    # A plan may not be possible where the model is used.
    monkeypatch.setattr(sys.modules["s2a.attach"], "plan_memory", None)
    loaded = s2a.from_pretrained(folder, weights=file)
    assert loaded.config == adapted.config
    assert dataclasses.asdict(loaded.config)[next(iter(budget))] == next(iter(budget.values()))
    assert torch.equal(loaded(images), adapted(images))


def test_labels_and_results_that_cannot_be_written(tmp_path: Path) -> None:
    adapted, _ = trained(timm.create_model("test_vit", img_size=32), classes=2)
    for labels, message in (
        ("ab", "not str"),
        ({0: "a", 1: "b"}, "not dict"),
        (5, "not int"),
        (["a"], "1 labels do not fit a head of 2 classes"),
        (["a", 1], "has 1;"),
        (["a", " "], "not empty"),
        (["a", "\udcff"], "no valid text"),
    ):
        with pytest.raises(s2a.S2AError, match=message):
            s2a.save_pretrained(adapted, tmp_path / "x", labels=labels)  # type: ignore[arg-type]
    cases: list[tuple[dict[str, Any], str]] = [
        ({"metrics": [1]}, "metrics is a mapping"),
        ({"metrics": {"a": object()}}, r"metrics\['a'\] is a object"),
        ({"metrics": {1: 1}}, "keys are text"),
        ({"data": 3}, "data is a mapping"),
        ({"licence": ""}, "licence ''"),
        ({"image": {"size": 32}}, "lacks mean, std"),
        ({"image": {"size": 64, "mean": [0.5] * 3, "std": [0.5] * 3}}, "image size 64 is not that of the model"),
        ({"image": {"size": 32, "mean": [0.5] * 3, "std": [0] * 3}}, "std"),
        ({"image": {"size": 32, "mean": [0.5] * 3, "std": [1] * 3, "crop": 1}}, "keys"),
        ({"backbone": "test_vit"}, "backbone is a mapping"),
    ]
    for arguments, message in cases:
        with pytest.raises(s2a.S2AError, match=message):
            s2a.save_pretrained(adapted, tmp_path / "x", **arguments)
    for wrong in (adapted.backbone, torch.nn.Sequential(adapted)):
        with pytest.raises(s2a.S2AError, match=r"save_pretrained takes what s2a\.attach returned"):
            s2a.save_pretrained(wrong, tmp_path / "x")  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())
    metrics = {"accuracy": np.float32(1.5), "loss": torch.tensor(2.0), "f": float("nan"), "n": np.int64(3), "l": (1, 2)}
    folder = s2a.save_pretrained(adapted, tmp_path / "x", metrics=metrics, labels=("a", "a"))
    written = json.loads((folder / "adapter_config.json").read_text())
    assert written["metrics"] == {"accuracy": 1.5, "loss": 2.0, "f": None, "n": 3, "l": [1, 2]}
    assert written["labels"] == ["a", "a"]


def test_a_model_of_one_channel_has_no_transform(weights: Callable[[Any], Path], tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=32, in_chans=1)
    file = weights(model)
    adapted = s2a.attach(model, s2a.method_config("bias"), 2).eval()
    given = {"name": "test_vit", "args": {"img_size": 32, "in_chans": 1}}
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", backbone=given)
    loaded = s2a.from_pretrained(folder, weights=file)
    assert loaded(torch.zeros(1, 1, 32, 32)).shape == (1, 2)
    with pytest.raises(s2a.S2AError, match="channel"):
        loaded.transform()


def test_an_attached_model_has_a_transform_too() -> None:
    adapted = s2a.attach(timm.create_model("test_vit"), s2a.method_config("linear"), 2)
    assert adapted.transform()(Image.new("L", (300, 200))).shape == (3, 160, 160)
    assert adapted.labels is None
    assert adapted.card is None
