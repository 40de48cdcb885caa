"""Weights files, mapped or read: whose memory a model's tensors are, that nothing else differs, what files may meet."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from mapped_files import (
    FAMILIES,
    VIT,
    aligned,
    copied,
    linux,
    make,
    mapped,
    mappings,
    results,
    same,
    tensors,
    write,
    write_as,
)
from s2a import S2AError, weights
from s2a.weights.mapping import LARGE, AssignFrom
from torch import Tensor, nn
from torch.utils import serialization


@linux
@pytest.mark.parametrize("key", FAMILIES)
def test_a_model_is_the_files_memory_and_computes_the_same(key: str, tmp_path: Path) -> None:
    name, arguments = FAMILIES[key]
    original = make(name, arguments, seed=1)
    with torch.no_grad():
        for value in original.parameters():
            value.add_(0.01 * torch.rand_like(value))
    path = write(original.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(5)
    before = torch.get_rng_state()
    found: Any = weights.create_with_weights(name, path, **arguments)
    assert torch.equal(torch.get_rng_state(), before), "random values were drawn for nothing"
    assert same(found, original) and same(found, copied(path, name, arguments))
    assert not any(value.is_meta for _, value in tensors(found))
    # What a safetensors file does not align is copied where it is small, and of the classifier.
    large = {n for n, value in tensors(found) if value.nbytes >= LARGE}
    classifier = {n for n, _ in tensors(found) if n.startswith(tuple(found.pretrained_cfg["classifier"].split()))}
    held = original.state_dict().keys()
    assert mapped(found, path) == held & ((large - classifier) | aligned(path))
    for n, value in tensors(found):
        assert value.untyped_storage().nbytes() == value.nbytes, n
    side = arguments.get("img_size", 64)
    images = torch.randn(2, 3, side, side)
    for some in (images, images[:1]):
        ours, theirs = results(found, some), results(copied(path, name, arguments), some)
        assert len(ours) == len(theirs)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@linux
@pytest.mark.parametrize("begin", [0, 8, 16, 56])
def test_the_length_of_the_header_changes_no_bit(begin: int, tmp_path: Path) -> None:
    """Kernels add in another order where memory is not aligned: what is small, and the classifier, is copied then."""
    name, arguments = VIT
    path = write(make(name, arguments).state_dict(), tmp_path / "w.safetensors", begin)
    found: Any = weights.create_with_weights(name, path, **arguments)
    expected = copied(path, name, arguments)
    held = mapped(found, path)
    large = {n for n, p in found.named_parameters() if p.nbytes >= LARGE}
    assert "head.weight" in large and "blocks.0.mlp.fc1.weight" in large
    assert held == large - {"head.weight"} | aligned(path)
    for count in (1, 2, 5):
        images = torch.randn(count, 3, 32, 32)
        pairs = zip(results(found, images), results(expected, images), strict=True)
        assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


@linux
@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
def test_every_tensor_read_has_a_storage_of_its_own(name: str, tmp_path: Path) -> None:
    state = {"a": torch.randn(3, 5), "b": torch.randn(1000), "c": torch.ones(3, dtype=torch.uint8), "d": torch.ones(())}
    path = write_as(name, state, tmp_path)
    found = weights.read_weights(path)
    places = mappings(path)
    for key, value in state.items():
        storage = found[key].untyped_storage()
        assert torch.equal(found[key], value) and (storage.nbytes(), found[key].storage_offset()) == (value.nbytes, 0)
        assert any(storage.data_ptr() in place for place in places) == (path.suffix == ".safetensors")
    # One tensor saved is one tensor's bytes, and a copy of it is nobody's but its own.
    stream = io.BytesIO()
    torch.save(found["a"], stream)
    assert len(stream.getvalue()) < 2000
    before = path.read_bytes()
    for value in found.values():
        value.zero_()
    assert path.read_bytes() == before


@linux
@pytest.mark.parametrize("what", ["stored", "deflated", "shared", "legacy"])
def test_torch_files_are_read(what: str, tmp_path: Path) -> None:
    state, path = {"w": torch.arange(5000.0)}, tmp_path / "w.pth"
    torch.save(state, path, _use_new_zipfile_serialization=what != "legacy")
    if what == "deflated":
        with zipfile.ZipFile(path) as archive:
            parts = {entry: archive.read(entry) for entry in archive.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            for entry, content in parts.items():
                archive.writestr(entry, content)
    # A process may have asked torch to map files, and to write to them.
    options: Any = serialization.config
    with options.patch({"load.mmap": what == "shared"}):
        assert torch.equal(weights.read_weights(path)["w"], state["w"])
    assert not mappings(path)


def test_what_is_read_of_a_torch_file_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, arguments = VIT
    path = write_as("w.pth", make(name, arguments).state_dict(), tmp_path)
    read: dict[str, Tensor] = {}
    load = torch.load
    monkeypatch.setattr(torch, "load", lambda *given, **options: read.update(load(*given, **options)) or read)
    found: Any = weights.create_with_weights(name, path, **arguments)
    held = {n: value.data_ptr() for n, value in tensors(found)}
    assert read.keys() == held.keys() and held == {n: value.data_ptr() for n, value in read.items()}
    assert same(found, copied(path, name, arguments))


def test_where_nothing_can_be_mapped_files_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = make(*VIT)
    path = write_as("w.safetensors", original.state_dict(), tmp_path)

    def refuse(*given: Any, **options: Any) -> Any:
        raise RuntimeError("unable to mmap")

    monkeypatch.setattr(safetensors.torch, "load_file", refuse)
    assert same(weights.create_with_weights(VIT[0], path, **VIT[1]), original)


@pytest.mark.parametrize("damage", ["overlap", "short", "header", "dtype", "hole"])
def test_damaged_files_are_one_sentence(damage: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file({"a": torch.ones(4), "b": torch.ones(4)}, path)
    content = path.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    if damage == "overlap":
        header["b"]["data_offsets"] = [8, 24]
    elif damage == "short":
        body = body[:-1]
    elif damage == "dtype":
        header["a"]["dtype"] = "F17"
    elif damage == "hole":
        header["b"]["data_offsets"] = [20, 36]
    text = json.dumps(header).encode()
    if damage == "header":
        text = b"{" + text
    path.write_bytes(len(text).to_bytes(8, "little") + text + body)
    with pytest.raises(S2AError, match=r"w\.safetensors cannot be read as weights"):
        weights.read_weights(path)


@linux
def test_what_the_file_does_not_hold_is_as_random_as_ever(tmp_path: Path) -> None:
    name, arguments = VIT
    path = write(make(name, arguments).state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(3)
    found: Any = weights.create_with_weights(name, path, num_classes=7, **arguments)
    drawn = torch.get_rng_state()
    torch.manual_seed(3)
    expected = copied(path, name, {**arguments, "num_classes": 7})
    assert same(found, expected) and torch.equal(drawn, torch.get_rng_state())
    assert found.head.weight.any()
    assert "head.weight" not in mapped(found, path) and "blocks.0.attn.qkv.weight" in mapped(found, path)


@linux
@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_other_number_formats_are_converted(dtype: torch.dtype, tmp_path: Path) -> None:
    name, arguments = VIT
    original = make(name, arguments)
    path = write({n: value.to(dtype) for n, value in original.state_dict().items()}, tmp_path / "w.safetensors")
    found: Any = weights.create_with_weights(name, path, **arguments)
    assert all(p.dtype == torch.float32 for p in found.parameters()) and not mapped(found, path)
    assert same(found, copied(path, name, arguments))


@linux
def test_position_embeddings_of_another_size_are_resampled_as_ever(tmp_path: Path) -> None:
    name, arguments = VIT
    path = write(make(name, arguments).state_dict(), tmp_path / "w.safetensors")
    other = {**arguments, "img_size": 64}
    found = weights.create_with_weights(name, path, **other)
    assert same(found, copied(path, name, other))
    assert "pos_embed" not in mapped(found, path) and "blocks.0.attn.qkv.weight" in mapped(found, path)


def test_a_value_in_two_places_of_a_file_is_two_values_in_the_model(tmp_path: Path) -> None:
    """Only what the model ties itself stays tied."""
    shared = torch.randn(8, 8)
    path = tmp_path / "w.pth"
    torch.save({"0.weight": shared, "1.weight": shared, "2.weight": shared}, path)
    model: Any = nn.Sequential(*(nn.Linear(8, 8, bias=False) for _ in range(3)))
    model[2].weight = model[1].weight
    parameters = list(model.parameters())
    weights.load_file(model, path, "three layers")
    assert [id(p) for p in model.parameters()] == [id(p) for p in parameters]
    assert model[2].weight is model[1].weight and torch.equal(model[0].weight, shared)
    with torch.no_grad():
        model[0].weight.zero_()
    assert torch.equal(model[1].weight, shared)


def test_one_value_for_two_tensors_of_a_model_is_copied_once() -> None:
    value = torch.randn(LARGE // 4)
    first, second = nn.Parameter(torch.zeros_like(value)), nn.Parameter(torch.zeros_like(value))
    with torch.no_grad(), AssignFrom({"nested": {"w": value}}):
        first.copy_(value)
        second.copy_(value)
    assert first.data_ptr() == value.data_ptr() != second.data_ptr() and torch.equal(second, value)


@pytest.mark.parametrize("part", ["rows", "transposed", "strange"])
def test_parts_of_a_tensor_are_copied(part: str) -> None:
    value = torch.randn(8, 8)
    given = {"rows": value[:4], "transposed": value.t(), "strange": torch.randn(8, 8)}[part]
    target = nn.Parameter(torch.zeros(given.shape))
    with torch.no_grad(), AssignFrom({"w": value}):
        target.copy_(given)
    assert torch.equal(target, given)
    assert target.untyped_storage().data_ptr() != given.untyped_storage().data_ptr() and target.is_contiguous()
