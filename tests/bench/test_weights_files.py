"""Weights of a file are read without running anything in it, in every form in which they are handed around."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from s2a import weights
from s2a_bench.assets import data_file
from s2a_bench.cells import backbones
from s2a_bench.config import BackboneConfig
from s2a_bench.errors import InputError
from torch import Tensor

NAME = (
    "vit_tiny_patch16_224.augreg_in21k"  # its own weights are in Google's layout: timm marks it for a loader of its own
)


class Evil:
    """What runs code when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self):
        return os.mkdir, (str(self.trace),)


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    torch.manual_seed(7)
    return timm.create_model(NAME)


def load(path: Path) -> dict[str, Tensor]:
    return backbones.create(BackboneConfig(NAME, weights=str(path)))[0].state_dict()


@pytest.mark.parametrize("wrap", [lambda evil: evil, lambda evil: {"state_dict": {"w": torch.ones(2)}, "args": evil}])
@pytest.mark.parametrize("write", ["zip", "legacy", "plain"])
@pytest.mark.parametrize("backbone", [NAME, "mini_vit"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(tmp_path, wrap, write, backbone):
    path, trace = tmp_path / "evil.pth", tmp_path / "ran"
    content = wrap(Evil(trace))
    if write == "plain":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=write == "zip")
    with pytest.raises(InputError, match="could run any code"):
        backbones.create(BackboneConfig(backbone, weights=str(path)))
    assert not trace.exists()


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "weights.pth", "safetensors.bin", "legacy.pt", "training.pth.tar"]
)
def test_the_same_weights_from_every_form_of_file(model, tmp_path, name):
    state, path = model.state_dict(), tmp_path / name
    if "safetensors" in name:
        safetensors.torch.save_file(state, path)
    elif name == "training.pth.tar":
        wrapped = {f"module.{key}": value for key, value in state.items()}
        torch.save({"epoch": 3, "args": argparse.Namespace(lr=1.0), "state_dict": wrapped, "optimizer": {}}, path)
    else:
        torch.save(state, path, _use_new_zipfile_serialization=name != "legacy.pt")
    found = load(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[key], state[key]) for key in state)


@pytest.mark.parametrize("first", [b"\x80", b"PK"])
def test_safetensors_whose_length_looks_like_another_format(tmp_path, first):
    """A file begins with its header's length, whose first bytes may be those of a pickle or a zip."""
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"w": torch.arange(3.0)}, file, metadata={"note": ""})
    bare = int.from_bytes(file.read_bytes()[:8], "little")
    missing = (int.from_bytes(first, "little") - bare) % 256 ** len(first)
    safetensors.torch.save_file({"w": torch.arange(3.0)}, file, metadata={"note": "x" * missing})
    assert file.read_bytes().startswith(first)
    assert weights.read_weights(file)["w"].tolist() == [0, 1, 2]


def test_the_model_does_not_hold_its_weights_twice(model, tmp_path):
    torch.save(model.state_dict(), tmp_path / "w.pth")
    made: Any = backbones.create(BackboneConfig(NAME, weights=str(tmp_path / "w.pth")))[0]
    assert made.pretrained_cfg["state_dict"] is None and made.pretrained_cfg["file"] == str(tmp_path / "w.pth")


def test_arrays_that_would_run_code_are_refused_too(tmp_path):
    path, trace = tmp_path / "evil.npz", tmp_path / "ran"
    arrays: dict[str, Any] = {"embedding/kernel": np.array([Evil(trace)], dtype=object)}
    np.savez(path, **arrays)
    with pytest.raises(InputError, match="does not hold weights"):
        load(path)
    assert not trace.exists()


@pytest.mark.parametrize("content", [b"", b"{", b"no weights at all", b"PK\x03\x04", b"\x80\x02}q\x00."])
@pytest.mark.parametrize("backbone", [NAME, "mini_vit"])
def test_what_is_no_file_of_weights_is_one_sentence(tmp_path, content, backbone):
    path = tmp_path / "weights.pth"
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"weights\.pth"):
        backbones.create(BackboneConfig(backbone, weights=str(path)))


def test_embedded_weights_may_be_given_as_a_file(tmp_path):
    state = safetensors.torch.load_file(data_file("backbones/mini_vit.safetensors"))
    torch.save(state, tmp_path / "w.pth")
    made = backbones.create(BackboneConfig("mini_vit", weights=str(tmp_path / "w.pth")))[0].state_dict()
    assert all(torch.equal(made[key], state[key]) for key in state)


def test_a_folder_or_its_file_are_the_same_weights(model, tmp_path):
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    found = load(tmp_path)
    assert all(torch.equal(found[key], value) for key, value in model.state_dict().items())
    ids = {backbones.checkpoint_id(BackboneConfig(NAME, weights=str(p))) for p in (tmp_path, *tmp_path.iterdir())}
    digest = hashlib.sha256((tmp_path / "model.safetensors").read_bytes()).hexdigest()[:16]
    assert ids == {digest}


@pytest.mark.parametrize("file", ["model-2.safetensors", "config.json", "preprocessor_config.json"])
def test_every_file_of_huggingfaces_layout_is_part_of_the_identity(tmp_path, file):
    """Two parts and the configs, of which the model takes what they state."""
    names = ["vit.embeddings.cls_token", "vit.embeddings.patch_embeddings.projection.weight"]
    parts = {name: f"model-{i}.safetensors" for i, name in enumerate(names, 1)}
    for name, part in parts.items():
        safetensors.torch.save_file({name: torch.ones(1)}, tmp_path / part)
    texts = {
        "model.safetensors.index.json": {"weight_map": parts},
        "config.json": {"model_type": "vit"},
        "preprocessor_config.json": {},
    }
    for name, text in texts.items():
        (tmp_path / name).write_text(json.dumps(text))
    config = BackboneConfig(NAME, weights=str(tmp_path))
    before = backbones.checkpoint_id(config)
    assert before == backbones.checkpoint_id(config)
    if file.endswith(".json"):
        (tmp_path / file).write_text(json.dumps({**texts[file], "layer_norm_eps": 0.5}))
    else:
        safetensors.torch.save_file({names[1]: torch.zeros(2)}, tmp_path / file)
    assert backbones.checkpoint_id(config) != before


def test_a_folder_without_weights_is_one_sentence(tmp_path):
    config = BackboneConfig(NAME, weights=str(tmp_path))
    for use in (backbones.create, backbones.checkpoint_id):
        with pytest.raises(InputError, match="holds no weights"):
            use(config)
    with pytest.raises(InputError, match="No weights file at"):
        backbones.create(BackboneConfig(NAME, weights=str(tmp_path / "none")))
