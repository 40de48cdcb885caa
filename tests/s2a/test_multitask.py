"""``s2a.MultiTask``: every task answers as its own adapted model, from one set of frozen weights."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from pathlib import Path
from typing import Any

import pytest
import s2a
import tiny
import torch
from hypothesis import given
from hypothesis import strategies as st
from multitask_models import FAMILIES, backbone, close, images, make, trained
from s2a import registry
from s2a.multitask import forms
from s2a.multitask.share import storages
from s2a.registry import Method
from torch import Tensor, nn


@dataclasses.dataclass(frozen=True)
class LooksConfig:
    """Of a method that looks at values, which no batching rule can."""


class Looks(Method):
    """Adds a vector to the features, more of it where they are large."""

    def __init__(self, config: LooksConfig, backbone: Any, edits: Any) -> None:
        super().__init__(config, backbone, edits)
        self.shift = nn.Parameter(torch.zeros(self.feature_dim))

    def forward(self, model: nn.Module, images: Tensor) -> Tensor:
        """Features ``(B, C)``."""
        features = super().forward(model, images)
        return features + self.shift * (2 if features.abs().max().item() > 3 else 1)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The method, registered for one test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    registry.register_method("looks", LooksConfig)(Looks)


pytestmark = pytest.mark.filterwarnings("ignore:There is a performance drop")


@pytest.mark.parametrize("family", FAMILIES)
def test_every_task_answers_as_its_own_model(family: str) -> None:
    multi, own, model = make(FAMILIES[family], family)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = [*own, *reversed(own), next(iter(own))]  # Tasks with two and three images, not side by side.
    batch = images(len(names), family)
    with torch.no_grad():
        wanted = [own[name](image[None])[0] for name, image in zip(names, batch, strict=True)]
    mixed = multi(batch, names)
    assert all(close(found, other) for found, other in zip(mixed, wanted, strict=True))
    assert {len(found) for found in mixed} == set(range(3, 3 + len(own)))
    for name in own:
        with torch.no_grad():
            assert close(multi(batch, name), own[name](batch))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(found.requires_grad for found in mixed)


@pytest.mark.parametrize("family", FAMILIES)
def test_two_tasks_of_each_form_are_one_pass(family: str) -> None:
    model = backbone(family)
    multi, own = s2a.MultiTask(model), {}
    for method in FAMILIES[family]:
        for i in range(2):
            own[f"{method}{i}"] = trained(model, method, 3, family)
            multi.add(f"{method}{i}", own[f"{method}{i}"])
    batch = images(len(own), family)
    with torch.no_grad():
        wanted = [own[name](batch[i : i + 1])[0] for i, name in enumerate(own)]
        assert all(close(a, b) for a, b in zip(multi(batch, list(own)), wanted, strict=True))
        for method in FAMILIES[family]:
            one, other = (multi.tasks[f"{method}{i}"] for i in range(2))
            assert one._form is other._form, method
            assert not one._tensors or one._form.mixes, method
        # Where formats meet, vmap is left alone.
        with torch.autocast("cpu", torch.bfloat16):
            found = multi(batch, list(own))
            wanted = [own[name](batch[i : i + 1])[0] for i, name in enumerate(own)]
    assert all((a - b).abs().max() < 0.05 * b.abs().max() + 0.02 for a, b in zip(found, wanted, strict=True))


def test_a_form_that_no_task_has_is_let_go() -> None:
    multi, _, _ = make(["s2a", "lora"])
    multi(images(2), ["s2a", "lora"])
    held = [
        weakref.ref(multi.tasks["lora"]._form),
        weakref.ref(multi.tasks["lora"]._tensors["method.updates.0.a.weight"]),
    ]
    multi.remove("lora")
    gc.collect()
    assert [ref() for ref in held] == [None, None]
    multi.add("other", trained(backbone(), "bias", 3))
    assert len(multi._forms) == 2, "and its place in the table with the next one that comes"


def test_a_batch_is_one_pass_per_form(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tasks of one method share a pass, in which products with frozen weights have the rows of all images."""
    model = backbone()
    multi = s2a.MultiTask(model)
    for method, count in (("bias", 3), ("lora", 2), ("linear", 2), ("ssf", 1)):
        for i in range(count):
            multi.add(f"{method}{i}", trained(model, method, 3 + i))
    passes: list[tuple[int, ...]] = []
    call = torch.func.functional_call

    def counted(module: Any, tensors: Any, given: Any) -> Tensor:
        passes.append(tuple(given[0].shape))
        return call(module, tensors, given)

    names = ["bias0", "lora1", "bias1", "bias2", "lora0", "linear1", "linear0", "ssf0", "ssf0"]
    multi(images(len(names)), names)  # Which finds out what can be mixed.
    monkeypatch.setattr(forms, "functional_call", counted)
    multi(images(len(names)), names)
    # Under vmap a pass sees a run of images: one here, as every task but the last has one.
    assert [shape[0] for shape in passes] == [1, 1, 2, 2]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=12))
def test_runs_waste_little(counts: list[int]) -> None:
    n = forms.run_length(counts)
    runs = sum(-(-count // n) for count in counts)
    assert runs * n < 2 * sum(counts), "less than as much again"
    # Never dearer than a pass of each image by itself, nor than filling all up to the longest power of two.
    assert runs * (n + forms._RUN_COST) <= sum(counts) * (1 + forms._RUN_COST)
    assert n & (n - 1) == 0 and n <= max(counts)


@pytest.mark.parametrize(("counts", "n"), [([1] * 9, 1), ([8, 8], 8), ([4, 4, 4], 4), ([1], 1), ([16, 1, 1], 1)])
def test_length_of_runs(counts: list[int], n: int) -> None:
    if counts == [16, 1, 1]:
        # 18 runs of 1 cost 27, 9 + 1 + 1 = 10 of 2 cost 25, 4 + 2 = 6 of 4 cost 27.
        n = 2
    assert forms.run_length(counts) == n


@pytest.mark.parametrize("counts", [(3, 1), (5, 2), (1, 6)])
def test_tasks_with_unequal_numbers_of_images(counts: tuple[int, int]) -> None:
    model = backbone()
    multi, own = s2a.MultiTask(model), {}
    for name in "ab":
        own[name] = trained(model, "s2a", 4)
        multi.add(name, own[name])
    names = [name for name, count in zip("ab", counts, strict=True) for _ in range(count)]
    batch = images(len(names))
    with torch.no_grad():
        wanted = [own[name](image[None])[0] for name, image in zip(names, batch, strict=True)]
    assert all(close(a, b) for a, b in zip(multi(batch, names), wanted, strict=True))


def test_bytes_are_those_of_what_was_trained() -> None:
    model = backbone()
    multi = s2a.MultiTask(model)
    for method in ("bias", "linear", "lora", "adapter", "ssf"):
        adapted = trained(model, method, 7)
        task = multi.add(method, adapted)
        assert task.bytes == 4 * sum(p.numel() for p in s2a.trainable_parameters(adapted).values())
    # What was never trained but belongs to the method counts too: LoRA-FA's A.
    adapted = trained(model, "lora_fa", 7)
    added = sum(p.numel() for p in (*adapted.method.parameters(), *adapted.head.parameters()))
    assert multi.add("fa", adapted).bytes == 4 * added


def test_frozen_values_lie_in_memory_once() -> None:
    multi, own, model = make(["s2a", "lora"])
    held = storages(model)
    assert storages(model) == held
    for name, task in multi.tasks.items():
        adapted: Any = task._form._template.adapted
        layer = adapted.backbone.get_submodule("blocks.0.attn.qkv")
        assert layer.weight.data_ptr() == model.blocks[0].attn.qkv.weight.data_ptr()
        assert not {tensor.untyped_storage().data_ptr() for tensor in task._tensors.values()} & held.keys()
        trains = {n for n in s2a.trainable_parameters(own[name]) if not n.startswith("head.")}
        assert trains <= task._tensors.keys()


def test_a_folder_brings_labels_and_transform(tmp_path: Path) -> None:
    model = backbone()
    adapted = trained(model, "s2a", 4, activations="lean", update_rank=2)
    made = {"name": "vit_tiny_patch16_224", "args": tiny._VIT}
    s2a.save_pretrained(adapted, tmp_path / "a", labels=["a", "b", "c", "d"], backbone=made)
    s2a.save(adapted, tmp_path / "b.safetensors")
    multi = s2a.MultiTask(model)
    task = multi.add("folder", tmp_path / "a")
    assert task.labels == ("a", "b", "c", "d") and task.num_classes == 4 and task.method == "s2a"
    assert task.config == adapted.config, "as it was trained, though a task keeps nothing"
    assert task.transform is not None and task.image_size == (32, 32)
    assert multi.add("file", str(tmp_path / "b.safetensors")).labels is None
    batch = images(2)
    with torch.no_grad():
        assert all(close(multi(batch, name), adapted(batch)) for name in ("folder", "file"))


def test_a_trained_model_is_copied() -> None:
    multi, own, _ = make(["lora"])
    batch = images(2)
    before = multi(batch, "lora")
    with torch.no_grad():
        for parameter in own["lora"].parameters():
            parameter.zero_()
    assert torch.equal(multi(batch, "lora"), before)


def test_a_head_of_its_own() -> None:
    model = backbone()
    adapted = trained(model, "bias", 3)
    adapted.head = nn.Sequential(nn.Linear(64, 8), nn.GELU(), nn.Linear(8, 6)).eval()
    multi = s2a.MultiTask(model)
    assert multi.add("own", adapted).num_classes == 6
    multi.add("other", trained(model, "s2a", 3))
    with torch.no_grad():
        assert close(multi(images(2), ["own", "other"])[0], adapted(images(2))[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_backbone_in_half_precision(dtype: torch.dtype) -> None:
    """Trained values are float32 under autocast, which passes that take turns must not switch off for each other."""
    model = backbone().to(dtype)
    multi, own = s2a.MultiTask(model), {}
    for method in ("s2a", "lora", "bias"):
        own[method] = trained(model, method, 3)
        multi.add(method, own[method])
    batch = images(3).to(dtype)
    with torch.no_grad():
        wanted = [own[name](batch[i : i + 1])[0] for i, name in enumerate(own)]
    for found, other in zip(multi(batch, list(own)), wanted, strict=True):
        assert found.dtype == other.dtype
        assert (found - other).abs().max() < 0.05 * other.abs().max() + 0.02
    assert not torch.is_autocast_enabled("cpu")


def test_autocast_of_the_caller_holds_in_every_pass() -> None:
    multi, own, _ = make(["s2a", "lora", "bias"])
    batch = images(3)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        found = multi(batch, list(own))
        wanted = [own[name](batch[i : i + 1])[0] for i, name in enumerate(own)]
    assert all(a.dtype == b.dtype == torch.bfloat16 for a, b in zip(found, wanted, strict=True))
    assert all((a - b).abs().max() < 0.05 * b.abs().max() + 0.02 for a, b in zip(found, wanted, strict=True))


@pytest.mark.usefixtures("looks")
def test_a_method_that_vmap_does_not_know(caplog: Any) -> None:
    """Its tasks run one after the other, and a sentence says so, once."""
    model = backbone()
    multi, own = s2a.MultiTask(model), {}
    for name in "abc":
        own[name] = trained(model, "looks", 3)
        multi.add(name, own[name])
    batch = images(3)
    with torch.no_grad():
        wanted = [own[name](batch[i : i + 1])[0] for i, name in enumerate("abc")]
    for _ in range(2):
        assert all(close(a, b) for a, b in zip(multi(batch, list("abc")), wanted, strict=True))
    assert len([r for r in caplog.records if "cannot be mixed in one pass" in r.message]) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_that_are_no_tensors_belong_to_their_task(dtype: torch.dtype) -> None:
    """The scale of updates is a number in Python: an adapter with another one has a form of its own."""
    model = backbone().to(dtype)
    multi, own = s2a.MultiTask(model), {}
    for name, factor in (("a", 1.0), ("b", 3.0), ("c", 1.0), ("d", 3.0)):
        adapted = trained(model, "s2a", 3, update_rank=2)
        state = adapted.state_dict()
        for key, bits in state.items():
            if key.endswith("scale_bits"):
                state[key] = (factor * bits.view(torch.float64)).view(torch.int64)
        adapted.load_state_dict(state)
        own[name] = adapted
        multi.add(name, adapted)
    batch = images(4).to(dtype)
    with torch.no_grad():
        wanted = [own[name](batch[i : i + 1])[0] for i, name in enumerate("abcd")]
    unit = torch.finfo(dtype).eps
    found = multi(batch, list("abcd"))
    assert all((a - b).abs().max() < 10 * unit * b.abs().max() for a, b in zip(found, wanted, strict=True))
    tasks = multi.tasks
    assert tasks["a"]._form is tasks["c"]._form is not tasks["b"]._form is tasks["d"]._form
