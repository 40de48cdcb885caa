"""Adapter folders that are damaged, foreign, newer or hostile: always one sentence, and nothing in them is run."""

from __future__ import annotations

import functools
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s2a
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from s2a.pretrained.config import is_plain_name, read_config
from s2a.pretrained.folder import check_target
from safetensors.torch import save_file

CONFIG, STATE = "adapter_config.json", "adapter_model.safetensors"


@functools.cache
def written(seed: int = 0) -> tuple[dict[str, bytes], bytes]:
    """The files of an adapter folder, and those of its backbone's weights."""
    torch.manual_seed(seed)
    model = timm.create_model("test_vit", img_size=32)
    with tempfile.TemporaryDirectory() as temporary:
        save_file(model.state_dict(), Path(temporary) / "weights.safetensors")
        adapted: Any = s2a.attach(model, s2a.method_config("bias"), 2)
        torch.nn.init.normal_(adapted.head.weight)
        folder = s2a.save_pretrained(adapted, Path(temporary) / "adapter", labels=["a", "b"])
        files = {path.name: path.read_bytes() for path in folder.iterdir()}
        return files, (Path(temporary) / "weights.safetensors").read_bytes()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "adapter").mkdir()
    for name, data in written()[0].items():
        (tmp_path / "adapter" / name).write_bytes(data)
    return tmp_path / "adapter"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    (tmp_path / "weights.safetensors").write_bytes(written()[1])
    return tmp_path / "weights.safetensors"


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    config = json.loads((folder / CONFIG).read_text())
    change(config)
    (folder / CONFIG).write_text(json.dumps(config))


def refused(folder: Any, message: str, **options: Any) -> None:
    with pytest.raises(s2a.S2AError, match=message) as caught:
        s2a.from_pretrained(folder, **options)
    assert str(caught.value)[-1] in ".)"
    assert "\n" not in str(caught.value)


def test_the_folder_itself_loads(folder: Path, weights: Path) -> None:
    assert s2a.from_pretrained(str(folder), weights=str(weights), device="cpu").labels == ["a", "b"]


def test_a_device_without_values_is_refused(folder: Path, weights: Path) -> None:
    refused(folder, "device 'meta' cannot be used here", weights=weights, device="meta")


def test_places_that_are_no_adapter(folder: Path, weights: Path, tmp_path: Path) -> None:
    refused(tmp_path / "nothing" / "at" / "all", "no folder .*no hub id")
    refused("nothing", "no folder nothing")
    refused(None, "not NoneType")
    refused(tmp_path, f"has no {CONFIG}")
    refused(folder / STATE, r"is a file.*s2a\.load\(model, path\)")
    refused(folder, "no weights file at", weights=tmp_path / "no.safetensors")
    refused(folder, "path of a file, not int", weights=3)
    refused(folder, "revision='v1' is for the hub", revision="v1")
    for device in ("cuda:99", "nonsense", "vulkan"):
        refused(folder, f"device '{device}' cannot be used here", weights=weights, device=device)
    old = tmp_path / "old.safetensors"
    model = timm.create_model("test_vit", img_size=32)
    s2a.save(s2a.attach(model, s2a.method_config("bias"), 2), old)
    refused(old, r"s2a\.load\(model, path\)")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b"[]", "not written by s2a.save_pretrained"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"{}", "no library 's2a'"),
        (b'{"peft_type": "LORA", "r": 8}', "one of PEFT's, of type LORA"),
        (b'{"library": "s2a", "schema": 2}', "schema 2, this version of s2a reads up to 1; upgrade"),
        (b'{"library": "s2a", "schema": true}', "damaged: schema True"),
        (b'{"library": "s2a"}', "damaged: schema None"),
        (b'{"library": "s2a", "schema": 1}', "damaged: method None must be of type str"),
    ],
)
def test_configs_of_other_content(data: bytes, message: str, folder: Path, weights: Path) -> None:
    (folder / CONFIG).write_bytes(data)
    refused(folder, message, weights=weights)


def put(*path: Any) -> Callable[[dict[str, Any]], None]:
    *keys, last, value = path

    def change(config: dict[str, Any]) -> None:
        for key in keys:
            config = config[key]
        config[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (put("labels", "ab"), "labels 'ab' must be a list"),
        (put("labels", ["a"]), "1 labels do not fit a head of 2 classes"),
        (put("labels", ["a", 3]), "has 3;"),
        (put("num_classes", 3), "2 labels do not fit a head of 3"),
        (put("num_classes", -1), "below 0"),
        (put("num_classes", 2.0), "must be of type int"),
        (put("method", ["bias"]), "must be of type str"),
        (put("method", "lora"), "not of one save"),
        (put("checksum", "0" * 32), "not of one save"),
        (put("image", []), "image is a mapping of .*, not list"),
        (put("image", "size", "224"), "image size '224'"),
        (put("image", "size", 10**9), "image size 1000000000"),
        (put("image", "mean", [0, 0]), "image mean"),
        (put("image", "std", [0, 1, 1]), "image std"),
        (put("image", "interpolation", "eval"), "interpolation 'eval' must be one of"),
        (put("image", "resize", 1), "resize 1"),
        (put("metrics", 3), "metrics 3"),
        (put("backbone", None), "backbone None"),
        (put("backbone", "name", 7), "backbone name 7"),
        (put("backbone", "name", "hf-hub:evil/model"), "backbone name 'hf-hub:evil/model'"),
        (put("backbone", "name", "local-dir:/tmp"), "backbone name 'local-dir:/tmp'"),
        (put("backbone", "name", "../../etc/passwd"), "backbone name"),
        (put("backbone", "name", "no_such_model"), "known neither to timm .* nor to an installed package"),
        (put("backbone", "name", "test_convnext"), "cannot be made with the arguments"),
        (put("backbone", "args", [1]), "args are a mapping"),
        (put("backbone", "args", {"depth": 10**7}), "depth=10000000 must be a number below 100,000"),
        (put("backbone", "args", {"img_size": 64}), "other tensors than the one that was adapted"),
        (put("backbone", "args", {"no_such": 64}), "cannot be made with the arguments"),
        (put("backbone", "args", {"checkpoint_path": "/tmp/x"}), "'checkpoint_path' is not allowed"),
        (put("backbone", "args", {"pretrained_cfg_overlay": "x"}), "not allowed"),
        (put("backbone", "args", {"pretrained": True}), "not allowed"),
        (put("backbone", "args", {"cache_dir": "/tmp"}), "not allowed"),
        (put("backbone", "args", {"__class__": 1}), "no name of an argument"),
        (put("backbone", "args", {"act_layer": {"a": 1}}), "must be a number"),
        (put("backbone", "weights", ["x"]), "backbone weights: a mapping"),
        (put("backbone", "weights", {"hub": "a/b/c"}), "no hub id"),
        (put("backbone", "weights", {"hub": "../x"}), "no hub id"),
        (put("backbone", "weights", {"hub": "a/b", "revision": "../main"}), "no revision"),
        (put("backbone", "weights", {"sha256": "abc"}), "64 hex digits"),
        (put("backbone", "weights", {"file": "../weights.safetensors"}), "more than a file's name"),
        (put("backbone", "weights", {"file": "/etc/passwd"}), "more than a file's name"),
        (put("backbone", "weights", {"file": "C:\\weights"}), "more than a file's name"),
        (put("backbone", "frozen_dtype", "float8"), "frozen_dtype"),
        (put("backbone", "licence", 3), "licence 3"),
        (put("backbone", "id", "0" * 16), "not of one save"),
    ],
)
def test_configs_with_wrong_values(
    change: Callable[[dict[str, Any]], None], message: str, folder: Path, weights: Path
) -> None:
    edit(folder, change)
    refused(folder, message, weights=weights)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@given(data=st.data())
def test_any_value_in_the_place_of_another_is_read_or_refused(data: st.DataObject) -> None:
    config = json.loads(written()[0][CONFIG])
    places = [(config, key) for key in config]
    places += [(config[part], key) for part in ("backbone", "image", "memory", "versions") for key in config[part]]
    for _ in range(data.draw(st.integers(1, 3))):
        where, key = data.draw(st.sampled_from(places))
        where[key] = data.draw(json_values)
    with tempfile.TemporaryDirectory() as temporary:
        path = Path(temporary) / CONFIG
        path.write_text(json.dumps(config))
        try:
            read = read_config(path)
        except s2a.S2AError as error:
            assert str(error)[-1] in ".)"
        else:
            assert read["library"] == "s2a"
            assert read["labels"] is None or len(read["labels"]) == read["num_classes"]


def test_states_that_are_missing_damaged_or_of_another_save(folder: Path, weights: Path) -> None:
    good = (folder / STATE).read_bytes()
    other = dict(written(1)[0])
    (folder / STATE).write_bytes(other[STATE])
    refused(folder, "not of one save", weights=weights)
    for cut in (0, 7, 100, len(good) - 1):
        (folder / STATE).write_bytes(good[:cut])
        refused(folder, "cannot be read as a saved method", weights=weights)
    damaged = bytearray(good)
    damaged[-1] ^= 1
    (folder / STATE).write_bytes(damaged)
    refused(folder, "checksum is not that of its content", weights=weights)
    save_file({"a": torch.zeros(1)}, folder / STATE)
    refused(folder, "not written by s2a.save", weights=weights)
    (folder / STATE).unlink()
    refused(folder, f"has no {STATE}", weights=weights)


def test_weights_of_others(folder: Path, weights: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.safetensors"
    torch.manual_seed(7)
    save_file(timm.create_model("test_vit", img_size=32).state_dict(), other)
    refused(folder, r"tensors differ .*belongs to test_vit.*hub timm/test_vit.*pass weights=FILE", weights=other)
    save_file(timm.create_model("test_convnext").state_dict(), other)
    refused(folder, r"does not hold weights of test_vit.*belongs to test_vit", weights=other)
    other.write_bytes(b"no weights")
    refused(folder, "cannot be read|no weights file|was not read", weights=other)


class Harm:
    """Makes a file when it is unpickled."""

    def __reduce__(self) -> Any:
        return os.mkdir, (os.environ["S2A_TEST_HARM"],)


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pth", "weights.bin"])
def test_nothing_in_a_folder_is_unpickled(
    name: str, folder: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harm = tmp_path / "harm"
    monkeypatch.setenv("S2A_TEST_HARM", str(harm))
    edit(folder, put("backbone", "weights", {"file": name}))
    monkeypatch.setattr(torch, "load", lambda *args, **options: pytest.fail("a pickle was read"))
    (folder / name).write_bytes(pickle.dumps(Harm()))
    refused(folder, "no safetensors file")
    assert not harm.exists()
    # The same file as safetensors is read, and its hash compared where the config has one.
    shutil.copy(weights, folder / name)
    assert s2a.from_pretrained(folder).labels == ["a", "b"]
    edit(folder, put("backbone", "weights", "sha256", "0" * 64))
    refused(folder, "has sha256 .* the adapter's backbone 0000")
    # A file that is given is the user's business.
    assert s2a.from_pretrained(folder, weights=weights).labels == ["a", "b"]


@given(name=st.text(max_size=20))
def test_a_plain_name_stays_in_its_folder(name: str) -> None:
    if is_plain_name(name):
        assert os.path.normpath(f"/a/b/{name}") == f"/a/b/{name}"
        assert "/" not in name
        assert "\\" not in name
        assert ":" not in name


def test_a_method_that_is_not_installed_is_named(folder: Path, weights: Path) -> None:
    from s2a import saved_file
    from safetensors import safe_open

    with safe_open(folder / STATE, framework="pt") as file:
        header, tensors = dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}
    header["method"] = "their_method"
    header["checksum"] = saved_file.checksum(header, tensors)
    save_file(tensors, folder / STATE, metadata=header)
    edit(folder, put("method", "their_method"))
    edit(folder, put("package", "their_package"))
    edit(folder, put("checksum", header["checksum"]))
    refused(folder, "their_method.*their_package", weights=weights)


@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_names_that_no_folder_can_have(name: str) -> None:
    for call in (
        lambda: s2a.from_pretrained(name),
        lambda: s2a.from_pretrained("owner/name", weights=name),
        lambda: check_target(name),
    ):
        with pytest.raises(s2a.S2AError) as refusal:
            call()
        assert len(str(refusal.value)) < 6000 and "Errno" not in str(refusal.value)
