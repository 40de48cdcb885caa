"""The mini backbones as other packages find them, and adapters on them that load by themselves."""

from __future__ import annotations

import hashlib
import tomllib
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
import s2a
import torch
from s2a.pretrained import backbone as lookup
from s2a_bench.assets import data_file
from s2a_bench.cells import backbones
from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.config import BackboneConfig
from s2a_bench.errors import InputError
from safetensors.torch import save_file

ROOT = Path(__file__).parents[2]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, EntryPoint]:
    """The entry points of this checkout, in the place of those of what is installed."""
    project = tomllib.loads((ROOT / "packages/bench/pyproject.toml").read_text())["project"]
    group = {
        name: EntryPoint(name, where, lookup.GROUP) for name, where in project["entry-points"][lookup.GROUP].items()
    }
    monkeypatch.setattr(lookup, "entry_points", lambda group, name: [points[name]] if name in points else [])
    points = group
    return group


@pytest.mark.parametrize("name", MINI_BACKBONES)
def test_an_entry_point_gives_the_bench_s_backbone(name: str, installed: dict[str, EntryPoint]) -> None:
    assert set(installed) == set(MINI_BACKBONES)
    made = installed[name].load()()
    expected, _ = backbones.create(BackboneConfig(name=name))
    assert made.state_dict().keys() == expected.state_dict().keys()
    assert all(torch.equal(value, expected.state_dict()[key]) for key, value in made.state_dict().items())


@pytest.mark.parametrize("name", MINI_BACKBONES)
def test_an_adapter_on_it_loads_by_itself(name: str, installed: Any, tmp_path: Path) -> None:
    config = BackboneConfig(name=name)
    model, expected = backbones.create(config)
    adapted: Any = s2a.attach(model, s2a.S2AConfig(lrp_rank=4), 3, image_size=expected.size).eval()
    torch.nn.init.normal_(adapted.head.weight)
    images = torch.randn(2, 3, expected.size, expected.size)
    for described in (None, backbones.describe(config)):
        folder = s2a.save_pretrained(adapted, tmp_path / "adapter", labels=["a", "b", "c"], backbone=described)
        loaded = s2a.from_pretrained(folder)
        assert torch.equal(loaded(images), adapted(images))
        assert loaded.transform().size == expected.size
        assert loaded.transform().mean == tuple(expected.mean)


def test_a_description_names_the_weights_file(tmp_path: Path) -> None:
    path = data_file("backbones/mini_vit.safetensors")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    weights = {"hub": None, "revision": None, "file": "mini_vit.safetensors", "sha256": digest}
    assert backbones.describe(BackboneConfig(name="mini_vit")) == {"name": "mini_vit", "args": {}, "weights": weights}
    assert backbones.checkpoint_id(BackboneConfig(name="mini_vit")) == digest[:16]
    (tmp_path / "own.safetensors").write_bytes(b"0")
    given = BackboneConfig(name="test_vit.r160_in1k", weights=str(tmp_path / "own.safetensors"), image_size=32)
    assert backbones.describe(given) == {
        "name": "test_vit.r160_in1k",
        "args": {"img_size": 32},
        "weights": {**weights, "file": "own.safetensors", "sha256": hashlib.sha256(b"0").hexdigest()},
    }
    assert backbones.describe(BackboneConfig(name="test_vit", random_weights=True))["weights"] is None
    with pytest.raises(InputError, match="Unknown backbone"):
        backbones.describe(BackboneConfig(name="no_such"))


def test_weights_of_the_hub_are_described_with_hub_and_revision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = tmp_path / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr(backbones, "_hub_file", lambda name: snapshot / "model.safetensors")
    assert backbones.describe(BackboneConfig(name="test_vit.r160_in1k"))["weights"] == {
        "hub": "timm/test_vit.r160_in1k",
        "revision": "0123abcd",
        "file": "model.safetensors",
        "sha256": hashlib.sha256(b"weights").hexdigest(),
    }


def test_other_weights_than_the_embedded_ones_are_asked_for(installed: Any, tmp_path: Path) -> None:
    file = tmp_path / "mine.safetensors"
    save_file({n: t * 1.5 for n, t in backbones.build_mini("mini_vit", 10).state_dict().items()}, file)
    config = BackboneConfig(name="mini_vit", weights=str(file))
    model, _ = backbones.create(config)
    adapted = s2a.attach(model, s2a.method_config("bias"), 2).eval()
    folder = s2a.save_pretrained(adapted, tmp_path / "adapter", backbone=backbones.describe(config))
    with pytest.raises(s2a.StateMismatch, match=r"belongs to mini_vit \(file mine.safetensors.*pass weights=FILE"):
        s2a.from_pretrained(folder)
    images = torch.randn(1, 3, 32, 32)
    assert torch.equal(s2a.from_pretrained(folder, weights=file)(images), adapted(images))
