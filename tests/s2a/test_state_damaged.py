"""Damaged, edited and foreign files: always an S2AError, and the user's backbone stays as it was, bit for bit."""

from __future__ import annotations

import copy
import functools
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import s2a
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a import saved_file
from s2a.testing import differences, snapshot
from safetensors import safe_open
from safetensors.torch import save_file


@functools.cache
def written(method: str = "s2a", model: str = "vit", options: tuple[tuple[str, Any], ...] = ()) -> tuple[Any, bytes]:
    """A backbone, and the file of a state that was trained on it."""
    make, size = tiny.MODELS[model]
    plain = make()
    adapted = s2a.attach(copy.deepcopy(plain), s2a.method_config(method, **dict(options)), 5, image_size=size).train()
    adapted(torch.randn(4, 3, size, size)).square().mean().backward()
    torch.optim.SGD(s2a.trainable_parameters(adapted).values(), lr=0.1).step()
    with tempfile.TemporaryDirectory() as folder:
        s2a.save(adapted, Path(folder) / "state")
        return plain, (Path(folder) / "state").read_bytes()


def parts(path: Path) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    with safe_open(path, framework="pt") as file:
        return dict(file.metadata()), {name: file.get_tensor(name) for name in file.keys()}


def refused(plain: Any, path: Path, message: str | None = None, *, overridden: bool = True) -> None:
    """Loading ends with a sentence, with and without the check of the backbone, and leaves no trace."""
    model = copy.deepcopy(plain)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = snapshot(model)
    for check in (True, False) if overridden else (True,):
        with pytest.raises(s2a.S2AError, match=message) as caught:
            s2a.load(model, path, check_backbone=check)
        assert str(caught.value).strip() and str(caught.value)[-1] in ".)"
        assert not differences(before, snapshot(model))


def rewritten(path: Path, header: dict[str, Any], tensors: dict[str, torch.Tensor], *, summed: bool = True) -> None:
    """Writes a file, with a checksum that fits: a check of the content must find what is wrong by itself."""
    if summed and "checksum" in header:
        header["checksum"] = saved_file.checksum(header, tensors)
    save_file(tensors, path, metadata=header)


@pytest.mark.parametrize("check", [True, False])
def test_the_unchanged_file_loads(tmp_path: Path, check: bool) -> None:
    plain, content = written()
    (tmp_path / "state").write_bytes(content)
    header, tensors = parts(tmp_path / "state")
    rewritten(tmp_path / "state", header, tensors)
    loaded = s2a.load(copy.deepcopy(plain), tmp_path / "state", check_backbone=check)
    found = loaded.state_dict()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


@settings(max_examples=60)
@given(st.data())
def test_any_changed_byte_is_noticed(data: st.DataObject) -> None:
    """One flipped bit anywhere: in the length, the header, a name, a value."""
    plain, content = written()
    places = st.integers(0, 4000) | st.integers(0, len(content) - 1)
    place, bit = data.draw(places), data.draw(st.integers(0, 7))
    damaged = bytearray(content)
    damaged[place] ^= 1 << bit
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        path.write_bytes(damaged)
        before = snapshot(model := copy.deepcopy(plain))
        try:
            s2a.load(model, path)
        except s2a.S2AError:
            assert not differences(before, snapshot(model))
        else:  # What no logit comes from: words about the checkpoint, digests in other number formats.
            header = content[: 8 + int.from_bytes(content[:8], "little")]
            assert place < len(header)
            assert header.index(b'"backbone":') < place or b'"architecture"' not in header[place : place + 40]


@settings(max_examples=25)
@given(st.integers(0, 200_000), st.binary(max_size=20))
def test_any_truncation_is_noticed(kept: int, added: bytes) -> None:
    plain, content = written()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state"
        path.write_bytes(content[: kept % len(content)] + added)
        refused(plain, path, overridden=False)


HEADER_KEYS = ("format", "method", "config", "num_classes", "image_size", "head", "changed", "checksum")
HEADER_VALUES: dict[str, str | None] = {
    **{text: text for text in ("", "x", "null", "[]", "{}", "-1", "0", "1e9", "NaN", "99999999999999")},
    "missing": None,
    "deep list": "[" * 100_000,
    "deep object": '{"a":' * 50_000,
}


@pytest.mark.each_value
@pytest.mark.parametrize("key", HEADER_KEYS)
@pytest.mark.parametrize("value", HEADER_VALUES)
def test_missing_and_damaged_header_keys(key: str, value: str, tmp_path: Path) -> None:
    plain, content = written()
    path = tmp_path / "state"
    path.write_bytes(content)
    header, tensors = parts(path)
    if HEADER_VALUES[value] is None:
        del header[key]
    else:
        header[key] = str(HEADER_VALUES[value])
    if (key, value) in {("changed", "{}"), ("config", "{}")}:
        header["checksum"] = "0" * 32
    rewritten(path, header, tensors, summed=key != "checksum" and header.get("checksum") != "0" * 32)
    refused(plain, path)


@pytest.mark.parametrize("key", ["architecture", "backbone_id", "backbone"])
@pytest.mark.parametrize("value", [None, "", "[" * 100_000, '{"layout": 3}'], ids=["missing", "empty", "deep", "other"])
def test_damaged_keys_of_the_backbone(key: str, value: str | None, tmp_path: Path) -> None:
    plain, content = written()
    path = tmp_path / "state"
    path.write_bytes(content)
    header, tensors = parts(path)
    header.pop(key)
    if value is not None:
        header[key] = value
    rewritten(path, header, tensors)
    refused(plain, path, overridden=False)


@pytest.mark.parametrize(
    "config",
    [
        '{"lrp_rank": "4"}',
        '{"lrp_rank": 1e30}',
        '{"lrp_rank": [4]}',
        '{"lrp_rank": null}',
        '{"sites": [[0]]}',
        '{"sites": {"0": 1}}',
        '{"lrp_std": NaN}',
        '{"activations": ["lean"]}',
        '{"bits": -3}',
        '{"self": 1}',
        '{"": 1}',
    ],
)
def test_configs_of_wrong_types(config: str, tmp_path: Path) -> None:
    plain, content = written()
    path = tmp_path / "state"
    path.write_bytes(content)
    header, tensors = parts(path)
    rewritten(path, {**header, "config": config}, tensors)
    refused(plain, path)


@pytest.mark.parametrize(
    ("method", "model", "options", "name"),
    [
        ("lora", "vit", (("train_a", False),), ""),
        ("bias", "resnet", (), "backbone.bn1.running_mean"),
        ("bias", "resnet", (), "backbone.layer1.0.bn1.num_batches_tracked"),
        ("bias", "resnet", (), "backbone.bn1.bias"),
        ("s2a", "vit", (), "head.bias"),
        ("vpt", "vit", (), ""),
        ("unipt", "swin", (), ""),
        ("lst", "vit", (), ""),
        ("ssf", "vit", (), ""),
        ("adapter", "convnext", (), ""),
        ("full", "resnet", (), "backbone.conv1.0.weight"),
    ],
)
def test_every_tensor_is_needed(
    method: str, model: str, options: tuple[tuple[str, Any], ...], name: str, tmp_path: Path
) -> None:
    """One by one: without it, the file is refused and the tensor named."""
    plain, content = written(method, model, options)
    path = tmp_path / "state"
    path.write_bytes(content)
    header, tensors = parts(path)
    frozen = {n for n in tensors if n.startswith("method.")} if method == "lora" else set()
    chosen = sorted(frozen)[:4] or [name or sorted(tensors)[0], sorted(tensors)[-1]]
    assert set(chosen) <= tensors.keys()
    for lost in chosen:
        rewritten(path, dict(header), {n: t for n, t in tensors.items() if n != lost})
        refused(plain, path, lost.replace(".", r"\."))


@pytest.mark.parametrize("model", ["vit", "resnet"])
def test_nothing_else_is_taken(model: str, tmp_path: Path) -> None:
    """A frozen weight, a buffer that the header does not name, the backbone's classifier, an unknown name."""
    plain, content = written("linear", model)
    path = tmp_path / "state"
    path.write_bytes(content)
    header, tensors = parts(path)
    state = {f"backbone.{n}": t + 1 for n, t in plain.state_dict().items()}
    for name in [*sorted(state)[:3], *sorted(state)[-3:]]:
        rewritten(path, dict(header), {**tensors, name: state[name]})
        refused(plain, path, "unknown or of another shape")
    for name in ("backbone.nothing", "head.more", "", "method"):
        rewritten(path, dict(header), {**tensors, name: torch.zeros(2)})
        refused(plain, path)
        rewritten(path, {**header, "changed": json.dumps({name: True})}, {**tensors, name: torch.zeros(2)})
        refused(plain, path)


NOT_A_NUMBER: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "nan": lambda t: torch.full_like(t, torch.nan),
    "one nan": lambda t: t.index_fill(0, torch.tensor([0]), torch.nan),
    "inf": lambda t: torch.full_like(t, -torch.inf),
    "too large": lambda t: torch.full(t.shape, 1e300, dtype=torch.float64),
    "int8": lambda t: t.to(torch.int8),
    "int64": lambda t: t.to(torch.int64),
    "bool": lambda t: t > 0,
    "uint8": lambda t: t.to(torch.uint8),
    "complex": lambda t: t.to(torch.complex64),
    "float8": lambda t: t.to(torch.float8_e4m3fn),
    "flat": lambda t: t.flatten() if t.dim() > 1 else t[None],
    "longer": lambda t: torch.cat([t, t]),
    "empty": lambda t: t[:0],
    "scalar": lambda t: t.flatten()[0],
}


@pytest.mark.each_value
@pytest.mark.parametrize("change", NOT_A_NUMBER)
@pytest.mark.parametrize("name", ["head.weight", "method.prompts.0.left", "backbone.norm.bias"])
def test_values_that_no_training_writes(name: str, change: str, tmp_path: Path) -> None:
    plain, content = written()
    path = tmp_path / "state"
    path.write_bytes(content)
    header, tensors = parts(path)
    name = name if name in tensors else next(n for n in sorted(tensors) if n.startswith("method."))
    try:
        rewritten(path, header, {**tensors, name: NOT_A_NUMBER[change](tensors[name]).contiguous()})
    except (KeyError, ValueError):
        pytest.skip("this safetensors does not write it")
    refused(plain, path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_formats_are_taken(dtype: torch.dtype, tmp_path: Path) -> None:
    plain, content = written()
    path = tmp_path / "state"
    path.write_bytes(content)
    header, tensors = parts(path)
    rewritten(path, header, {n: t.to(dtype) for n, t in tensors.items()})
    loaded = s2a.load(copy.deepcopy(plain), path).state_dict()
    assert all(torch.equal(loaded[name], value.to(dtype).float()) for name, value in tensors.items())


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_what_could_not_be_loaded_is_not_written(value: float, tmp_path: Path) -> None:
    """A diverged model is refused when it is saved, not when it is needed; an older file stays."""
    plain, content = written()
    path = tmp_path / "state"
    path.write_bytes(content)
    adapted: Any = s2a.load(copy.deepcopy(plain), path)
    with torch.no_grad():
        adapted.head.weight[0, 0] = value
    with pytest.raises(s2a.S2AError, match="have values that are not finite: training diverged"):
        s2a.save(adapted, path)
    assert path.read_bytes() == content and len(list(tmp_path.iterdir())) == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    plain, _ = written()
    (tmp_path / "huge").write_bytes((2**62).to_bytes(8, "little") + b"{}")
    (tmp_path / "zip").write_bytes(b"PK\x03\x04" + bytes(100))
    torch.save({"a": torch.zeros(1)}, tmp_path / "torch")
    (tmp_path / "deep").write_bytes((200_000).to_bytes(8, "little") + b'{"a":' * 40_000)
    for name in ("huge", "zip", "torch", "deep", "missing", "."):
        refused(plain, tmp_path / name, "cannot be read as a saved method")
    for path in (None, 3, b"x" * 3, "a\0b", "x" * 10_000):
        refused(plain, path)  # type: ignore[arg-type]
    for model in (torch.nn.Linear(2, 2), None, 3):
        (tmp_path / "state").write_bytes(written()[1])
        with pytest.raises(s2a.S2AError):
            s2a.load(model, tmp_path / "state")  # type: ignore[arg-type]
    adapted = s2a.load(copy.deepcopy(plain), tmp_path / "state")
    with pytest.raises(s2a.S2AError, match="is a folder"):
        s2a.save(adapted, tmp_path)
    s2a.detach(adapted)
    with pytest.raises(s2a.S2AError, match="was detached"):
        s2a.save(adapted, tmp_path / "again")
