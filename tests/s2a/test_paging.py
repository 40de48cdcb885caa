"""Paged weights: the same gradients, the same values wherever they are read, and less memory by so many bytes."""

from __future__ import annotations

import copy
import functools
import io
import os
import sys
import threading
from pathlib import Path
from typing import Any

import lean_models
import pytest
import s2a
import tiny
import torch
from s2a.errors import NothingToPage
from s2a.paging import homes, layers, page_of, paged_weights, pager_of
from s2a.paging.homes import are_mapped
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.checkpoint import checkpoint

CASES = [
    *((family, "s2a", act) for family in ("vit", "swin", "convnext", "convnext_conv") for act in ("paper", "lean")),
    *(("vit", method, act) for method in ("bias", "lora", "adapter") for act in ("exact", "lean")),
    pytest.param(*("swin", "lora", "lean"), marks=pytest.mark.full),
    pytest.param(*("convnext", "lora", "exact"), marks=pytest.mark.full),
    pytest.param(*("vit", "vpt", "lean"), marks=pytest.mark.full),
    pytest.param(*("resnet", "s2a", "lean"), marks=pytest.mark.full),
    ("eva", "s2a", "lean"),
]


def make(family: str = "vit", method: str = "s2a", activations: str = "lean", **changes: Any) -> s2a.Adapted:
    """A tiny model under a method, no trained value as at the start."""
    torch.manual_seed(0)
    name, options = lean_models.METHODS[method]
    model, size = tiny.MODELS[family]
    config = s2a.method_config(name, **options, activations=activations, **changes)
    adapted = s2a.attach(model(), config, tiny.CLASSES, image_size=size)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.05)
    return adapted.train()


def page(adapted: s2a.Adapted, **options: Any) -> s2a.Adapted:
    s2a.page_frozen(adapted, least_bytes=0, **options)
    return adapted


def gradients(adapted: Any, images: Tensor, called: Any = None) -> dict[str, Tensor]:
    """Of one step; dropped paths and dropout are the same in every call."""
    torch.manual_seed(1)
    for module in adapted.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
    return lean_models.gradients(adapted, images, called)


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(found[name], expected[name])] == []


@pytest.fixture
def images() -> Tensor:
    torch.manual_seed(2)
    return lean_models.images_for("vit")


@pytest.mark.parametrize(("family", "method", "activations"), CASES)
def test_gradients_are_those_of_the_model_on_the_device(family: str, method: str, activations: str) -> None:
    adapted, batch = make(family, method, activations), lean_models.images_for(family)
    expected = gradients(adapted, batch)
    page(adapted, prefetch=True)
    for _ in range(2):  # In the second step copies come early.
        assert_equal(gradients(adapted, batch), expected)
    s2a.unpage_frozen(adapted)
    assert_equal(gradients(adapted, batch), expected)
    assert not any(page_of(module) for module in adapted.modules())


@pytest.mark.parametrize("activations", ["exact", "lean"])
@pytest.mark.parametrize("method", ["s2a", "lora"])
def test_autocast(images: Tensor, method: str, activations: str) -> None:
    adapted = make("vit", method, activations)

    def step() -> dict[str, Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            return gradients(adapted, images)

    expected = step()
    page(adapted)
    assert_equal(step(), expected)
    s2a.cast_frozen(adapted)  # Paged weights are rounded in their homes.
    assert {p.dtype for p in paged_weights(adapted)} == {torch.bfloat16}
    assert all(are_mapped(list(paged_weights(adapted))))
    assert_equal(step(), expected)


@pytest.mark.parametrize("activations", ["exact", "lean"])
@pytest.mark.parametrize("reentrant", [True, False])
def test_checkpointing_and_accumulation(images: Tensor, activations: str, reentrant: bool) -> None:
    plain = make(activations=activations)
    paged = page(copy.deepcopy(plain), prefetch=True)

    def step(adapted: Any) -> dict[str, Tensor]:
        adapted.zero_grad()
        for part in images.clone().requires_grad_().split(1):  # Else reentrant checkpoints have no gradient.
            lean_models.loss_of(adapted(part)).backward()
        return {n: p.grad.clone() for n, p in s2a.trainable_parameters(adapted).items() if p.grad is not None}

    for adapted in (plain, paged):
        for block in adapted.backbone.blocks:  # type: ignore[union-attr]
            block.forward = functools.partial(checkpoint, block.forward, use_reentrant=reentrant)
    expected = step(plain)
    for _ in range(2):
        assert_equal(step(paged), expected)


def test_evaluation_and_readers_of_values(images: Tensor, tmp_path: Path) -> None:
    adapted = make("vit", "lora")
    plain, state = copy.deepcopy(adapted), {n: v.clone() for n, v in adapted.state_dict().items()}
    expected = adapted.eval()(images)
    page(adapted)
    assert torch.equal(adapted(images), expected)
    assert list(adapted.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in adapted.state_dict().items())
    # A state, a pickle, a deep copy.
    buffer = io.BytesIO()
    torch.save(adapted.state_dict(), buffer)
    buffer.seek(0)
    adapted.load_state_dict(torch.load(buffer))
    adapted.load_state_dict(plain.state_dict(), assign=True)
    assert torch.equal(adapted(images), expected)
    buffer = io.BytesIO()
    torch.save(adapted, buffer)
    buffer.seek(0)
    for copied in (copy.deepcopy(adapted), torch.load(buffer, weights_only=False)):
        assert s2a.host_bytes(copied) == s2a.host_bytes(adapted) > 0
        assert torch.equal(copied(images), expected)
        assert pager_of(copied) is not pager_of(adapted)
        assert all(page.pager is pager_of(copied) for page in map(page_of, copied.modules()) if page)
    # Files, merging, export.
    s2a.save(adapted, tmp_path / "a.safetensors")
    torch.manual_seed(0)
    loaded = s2a.load(tiny.vit(), tmp_path / "a.safetensors").eval()
    assert torch.equal(loaded(images), expected)
    merged = s2a.merge(adapted)
    assert torch.allclose(merged(images), expected, atol=1e-5)
    assert s2a.export(adapted, tmp_path / "a.pt2", "torch").largest_difference < 1e-4
    assert s2a.host_bytes(adapted) > 0


def test_detach_gives_the_backbone_back(images: Tensor) -> None:
    torch.manual_seed(0)
    plain = tiny.vit()
    adapted = page(s2a.attach(copy.deepcopy(plain), s2a.S2AConfig(activations="lean"), 3, image_size=32).train())
    gradients(adapted, images)
    model = s2a.detach(adapted)
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in plain.state_dict().items())
    assert not any(are_mapped(list(model.parameters())))
    assert not any({"s2a_page", "forward", "_apply"} & module.__dict__.keys() for module in model.modules())
    assert torch.equal(model.eval()(images), plain.eval()(images))


def test_dtypes_follow_and_places_stay(images: Tensor) -> None:
    adapted = make("vit", "bias", "exact")
    doubled = copy.deepcopy(adapted).double()
    expected = gradients(doubled, images.double())
    names = list(adapted.state_dict())
    page(adapted).double()
    assert all(are_mapped(list(paged_weights(adapted))))
    assert list(adapted.state_dict()) == names
    assert_equal(gradients(adapted, images.double()), expected)
    places = [weight.data_ptr() for weight in paged_weights(adapted)]
    adapted._apply(lambda tensor: tensor.clone())  # As a move to another device does.
    assert [weight.data_ptr() for weight in paged_weights(adapted)] == places


@pytest.mark.parametrize("store", ["host", "frozen.safetensors"])
def test_homes_are_pinned_wherever_the_model_is_on_a_card(
    store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a card stands a tensor without data that says it is on one."""
    calls: list[torch.dtype] = []
    monkeypatch.setattr(layers, "pinned", lambda values: (calls.append(values.dtype), values.clone())[1])
    adapted = page(make(), store=store if store == "host" else tmp_path / store)
    paged = list(paged_weights(adapted))
    expected = len(paged) if store == "host" else 0
    s2a.cast_frozen(copy.deepcopy(adapted))
    assert not calls  # It is on a CPU.
    with FakeTensorMode():
        on_card = nn.Parameter(torch.empty(1, device="cuda"))
    # A deep copy, which torch gives ordinary memory, pins its homes when it is sent to the card.
    copied = copy.deepcopy(adapted)
    for module in copied.modules():
        if page_of(module):
            module.bias = None  # type: ignore[assignment]
            module._apply(lambda tensor: on_card.detach().to(tensor.dtype))
    assert calls == [torch.float32] * expected
    # Rounding gives new homes.
    calls.clear()
    name, first = next(adapted.backbone.named_parameters())
    assert not any(first is weight for weight in paged)
    setattr(adapted.backbone, name, on_card)
    s2a.cast_frozen(adapted)
    assert calls == [torch.bfloat16] * expected


def test_threads(images: Tensor) -> None:
    adapted = make()
    expected = gradients(adapted, images)
    page(adapted, prefetch=True)
    found: list[dict[str, Tensor]] = []

    def work() -> None:
        for _ in range(3):
            found.append(lean_models.gradients(adapted, images))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 6
    for each in found:
        assert_equal(each, expected)


def test_stores(images: Tensor, tmp_path: Path) -> None:
    adapted = make("vit", "bias", "exact")
    expected = gradients(adapted, images)
    path = tmp_path / "frozen.safetensors"
    page(adapted, store=path)
    save_file(tiny.vit().state_dict(), tmp_path.parent / f"{tmp_path.name}.safetensors")
    # The file is an ordinary one, and written values never reach it.
    stored = load_file(path)
    places = dict(adapted.backbone.named_parameters())
    assert sum(value.nbytes for value in stored.values()) == s2a.host_bytes(adapted)
    assert all(torch.equal(value, places[name]) for name, value in stored.items())
    assert_equal(gradients(adapted, images), expected)
    before = path.read_bytes()
    with torch.no_grad():
        places["blocks.0.attn.qkv.weight"].add_(1)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["frozen.safetensors"]
    # It serves the same weights again, and no others.
    again = page(make("vit", "bias", "exact"), store=str(path))
    assert_equal(gradients(again, images), expected)
    s2a.unpage_frozen(adapted)
    with pytest.raises(s2a.S2AError, match="holds other weights; give the path of a new file"):
        page(adapted, store=path)
    assert not adapted._paging and s2a.host_bytes(adapted) == 0
    path.write_bytes(b"abc")
    with pytest.raises(s2a.S2AError, match="cannot hold paged weights"):
        page(adapted, store=path)
    # Weights that are mapped already stay where they are.
    model = tiny.vit()
    model.load_state_dict(load_file(tmp_path.parent / f"{tmp_path.name}.safetensors"), assign=True)
    adapted = s2a.attach(model, s2a.method_config("linear"), 3, image_size=32)
    places = {name: p.data_ptr() for name, p in adapted.backbone.named_parameters()}
    page(adapted)
    assert places == {name: p.data_ptr() for name, p in adapted.backbone.named_parameters()}


@pytest.mark.skipif(sys.platform == "win32", reason="permissions of POSIX")
@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_a_store_has_the_permissions_of_an_ordinary_file(mask: int, tmp_path: Path) -> None:
    path = tmp_path / "frozen.safetensors"
    before = os.umask(mask)
    try:
        homes.in_file(path, {"w": torch.ones(3)})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


def test_a_store_holds_the_same_weights_if_their_bits_are(tmp_path: Path) -> None:
    adapted = make("vit", "bias", "exact")
    with torch.no_grad():
        adapted.backbone.blocks[0].mlp.fc1.weight[0, 0] = torch.nan  # type: ignore[index,union-attr]
    page(adapted, store=tmp_path / "frozen.safetensors")
    assert s2a.host_bytes(adapted) > 0
    path = tmp_path / "w.safetensors"
    held = {"w": torch.tensor([[0.0, torch.nan, 1.0]])}
    for _ in range(2):  # It is written, and found.
        found = homes.in_file(path, held)
        assert torch.equal(found["w"].view(torch.int32), held["w"].view(torch.int32))
    others = [held["w"].view(-1), held["w"].to(torch.bfloat16), held["w"].nan_to_num(), held["w"] * -1]
    for tensors in ({}, {"v": held["w"]}, held | {"v": held["w"]}, *({"w": other} for other in others)):
        with pytest.raises(s2a.S2AError, match="holds other weights"):
            homes.in_file(path, tensors)


def test_what_no_home_can_hold_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    odd = torch.ones(4, dtype=torch.complex64)
    with pytest.raises(s2a.S2AError, match=r"^A frozen weight of torch\.complex64 cannot be paged to a file; cast"):
        homes.in_temporary_file(odd)
    with pytest.raises(s2a.S2AError, match=r"^A frozen weight of torch\.complex64 cannot be paged to a file; cast"):
        homes.in_file(tmp_path / "w.safetensors", {"w": odd})
    assert not list(tmp_path.iterdir())
    save_file({"w": torch.ones(4, dtype=torch.int64)}, tmp_path / "ints.safetensors")
    with pytest.raises(s2a.S2AError, match=r"ints\.safetensors cannot hold paged weights \(w is of dtype I64\)"):
        homes.in_file(tmp_path / "ints.safetensors", {"w": torch.ones(4)})
    # Pinned memory comes from the driver, which has reasons of its own.
    empty = torch.empty

    def refuse(*given: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported")
        return empty(*given, **options)

    monkeypatch.setattr(torch, "empty", refuse)
    expected = r"^2\.0 MB of pinned host memory .* cannot be had \(CUDA error: out of memory\); free .* store=PATH\)\.$"
    with pytest.raises(s2a.S2AError, match=expected):
        homes.pinned(torch.zeros(500_000))


@pytest.mark.parametrize("store", [None, 3, "frozen.bin", "/nowhere/at/all.safetensors"])
def test_bad_stores_are_refused(store: Any) -> None:
    with pytest.raises(s2a.S2AError, match=r"store=.* must be 'host'|is not a folder"):
        s2a.page_frozen(make(), store)


def test_what_cannot_be_paged_is_refused(images: Tensor) -> None:
    with pytest.raises(NothingToPage, match=r"Nothing of this model can be paged: under 'full'"):
        page(make(method="full"))
    adapted = page(make())
    with pytest.raises(s2a.S2AError, match="paged already"):
        page(adapted)
    with pytest.raises(s2a.S2AError, match="prefetch=3"):
        page(make(), prefetch=3)
    with pytest.raises(s2a.S2AError, match=r"page_frozen takes what s2a.attach returned"):
        s2a.page_frozen(nn.Linear(2, 2))  # type: ignore[arg-type]
    tied = make()
    tied.backbone.blocks[1].mlp.fc1.weight = tied.backbone.blocks[0].mlp.fc1.weight  # type: ignore[index,union-attr]
    with pytest.raises(s2a.S2AError, match=r"blocks\.0\.mlp\.fc1 is shared"):
        page(tied)
    for module in adapted.backbone.modules():
        if page_of(module):
            module.weight.requires_grad_()  # type: ignore[union-attr,operator]
    for each in (adapted, adapted.eval()):
        with pytest.raises(s2a.S2AError, match=r"was switched to train.*call s2a.unpage_frozen first"):
            each(images)
    s2a.unpage_frozen(adapted)
    gradients(adapted.train(), images)


def test_weights_that_others_read_are_left_alone() -> None:
    adapted = page(make("eva"))  # Its attention multiplies with the weight of qkv itself.
    found = {page.name for page in map(page_of, adapted.modules()) if page}
    assert "blocks.0.mlp.fc1.weight" in found and "blocks.0.attn.qkv.weight" not in found


def test_small_weights_are_left_alone() -> None:
    adapted = make()
    paged = s2a.page_frozen(adapted, least_bytes=1 << 16)
    large = {n for n, p in adapted.backbone.named_parameters() if p.dim() > 1 and p.numel() * 4 >= 1 << 16}
    large -= {"pos_embed"}
    assert {page.name for page in map(page_of, adapted.modules()) if page} == large
    assert paged == s2a.host_bytes(adapted) == sum(64 * 256 * 4 for _ in large)


@pytest.mark.compile
@pytest.mark.full
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch's own looks
@pytest.mark.parametrize("activations", ["exact", "lean"])
def test_compiled(images: Tensor, activations: str) -> None:
    adapted = make(activations=activations)
    expected = gradients(adapted, images)
    page(adapted, prefetch=True)
    compiled = torch.compile(adapted, backend="aot_eager")
    for _ in range(2):
        lean_models.assert_same(gradients(adapted, images, compiled), expected, 1e-4)
