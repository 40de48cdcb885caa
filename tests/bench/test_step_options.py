"""Precision and gradient checkpointing: options of the recipe that combine with every method."""

from __future__ import annotations

import contextlib
import io
import json
from typing import Any

import pytest
import s2a
import timm
import torch
from rich.console import Console
from s2a.memory import strip_data, tensors_without_data
from s2a_bench.cells import identity, measure, run
from s2a_bench.cells.backbones import create
from s2a_bench.cells.scores import accuracy
from s2a_bench.cells.train import attach, train
from s2a_bench.cli import memory as commands_memory
from s2a_bench.config import BackboneConfig, CellConfig, MethodConfig, TrainConfig, identifying
from s2a_bench.errors import InputError
from s2a_bench.sweeps import gpu_memory as shares
from torch import Tensor

BATCH, SIDE = 8, 32
BLOCK_INPUT = 4 * BATCH * 65 * 96  # mini_vit: 65 tokens of width 96


class Noise:
    """Images that the loop can take."""

    def __init__(self, count: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.images = torch.randn(count, 3, SIDE, SIDE, generator=generator)
        self.labels = torch.arange(count) % 4

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self.images[indices]


def adapted(method: str) -> s2a.Adapted:
    torch.manual_seed(0)
    model, expected = create(BackboneConfig("mini_vit"))
    return s2a.attach(model, s2a.method_config(method), 4, image_size=expected.size)


def losses(method: str, **options: Any) -> tuple[list[float], s2a.Adapted]:
    config = TrainConfig(epochs=2, warmup_epochs=0, batch_size=BATCH, lr=1e-3, **options)
    model, data = adapted(method), Noise(2 * BATCH)
    measure.memory(model, data.images[:BATCH], config)  # as a cell does: it switches checkpointing
    return [row["loss"] for row in train(model, data, config, seed=0)], model


@pytest.mark.parametrize("method", ["full", "lora", "s2a"])
def test_checkpointing_trains_the_same(method: str) -> None:
    plain, _ = losses(method)
    again, _ = losses(method, checkpointing=True)
    assert again == pytest.approx(plain, rel=1e-4)


def test_bf16_trains_close_by_and_leaves_weights_in_fp32() -> None:
    plain, _ = losses("s2a")
    half, model = losses("s2a", precision="bf16")
    assert half != plain
    assert half == pytest.approx(plain, rel=0.02)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert 0 <= accuracy(model, Noise(BATCH), TrainConfig(precision="bf16")) <= 100


@pytest.mark.parametrize("method", ["full", "lora"])
def test_checkpointing_keeps_the_inputs_of_the_blocks(method: str) -> None:
    model = adapted(method).train()
    images = torch.randn(BATCH, 3, SIDE, SIDE)
    model.backbone.set_grad_checkpointing(True)  # type: ignore[operator]
    kept = s2a.saved_bytes(model, images)
    assert not [name for name in kept if name.startswith(("backbone.blocks.", "method."))]
    assert kept["method"] == 6 * BLOCK_INPUT  # The innermost module that runs: timm's loop over blocks is no module.
    model.backbone.set_grad_checkpointing(False)  # type: ignore[operator]
    assert kept.total < 0.2 * s2a.saved_bytes(model, images).total


def test_memory_takes_the_options() -> None:
    def saved(*settings: str) -> float:
        stream = io.StringIO()
        assert commands_memory.memory(["mini_vit"], ["full"], BATCH, settings, None, True, Console(file=stream)) == 0
        return json.loads(stream.getvalue())["saved_mb"]

    plain = saved()
    assert saved("train.checkpointing=true") < 0.2 * plain
    assert saved("train.precision=bf16") < 0.8 * plain


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp16"}, "train.precision='fp16' is unknown; choose fp32 or bf16"),
        ({"checkpointing": 1}, "train.checkpointing=1 is no switch; give true or false"),
        ({"frozen": "disk"}, "train.frozen='disk' is unknown; choose fp32, bf16, paged or paged-bf16"),
        ({"frozen": "paged-bf16"}, "train.frozen=paged-bf16 needs train.precision=bf16"),
    ],
)
def test_bad_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TrainConfig(**options)


def test_memory_refuses_what_only_training_reads() -> None:
    with pytest.raises(InputError, match=r"train\.lr has no place here; train\.precision, train\.checkpointing and"):
        commands_memory.memory(["mini_vit"], ["full"], BATCH, ("train.lr=1e-3",), None, False, Console(quiet=True))


def trained_and_measured(method: MethodConfig, recipe: TrainConfig) -> tuple[list[Any], dict[str, Any], dict[str, Any]]:
    """Losses of a short training, memory measured on the model, and the row of ``memory``, which agrees with it."""
    torch.manual_seed(0)
    model, _ = identity.adapt(CellConfig(method=method, train=recipe))
    model.head = torch.nn.Linear(model.num_features, 4)
    images = Noise(2 * BATCH)
    numbers = measure.memory(model, images.images[:BATCH], recipe)
    row = measure.memory_row("mini_vit", "s2a", dict(method.options), recipe, num_classes=4, simulate=True)
    assert {key: row[key] for key in numbers} == pytest.approx(numbers)  # With data and without.
    return [each["loss"] for each in train(model, images, recipe, seed=0)], numbers, row


def test_paged_weights_train_the_same_and_are_counted_apart() -> None:
    method = MethodConfig("s2a", {"activations": "lean"})
    found = {}
    for frozen in ("fp32", "paged"):
        recipe = TrainConfig(epochs=1, warmup_epochs=0, batch_size=BATCH, frozen=frozen)
        found[frozen] = trained_and_measured(method, recipe)
    (losses, usual, row), (paged_losses, paged, paged_row) = found.values()
    assert paged_losses == losses
    assert usual["host_mb"] == 0 < paged["host_mb"]
    assert paged["weights_mb"] + paged["host_mb"] == pytest.approx(usual["weights_mb"])
    assert paged["saved_mb"] == usual["saved_mb"] and paged["params_total"] == usual["params_total"]
    less = row["simulated_mb"] - paged_row["simulated_mb"]
    assert 0 < less <= paged["host_mb"] * 1.01


def test_offloaded_codes_train_the_same_and_are_counted_apart() -> None:
    found = []
    for offload in (False, True):
        method = MethodConfig("s2a", {"activations": "lean", "offload": offload})
        recipe = TrainConfig(epochs=1, warmup_epochs=0, batch_size=BATCH)
        found.append(trained_and_measured(method, recipe))
    (losses, kept, row), (offloaded_losses, sent, offloaded_row) = found
    assert offloaded_losses == losses
    assert kept["host_mb"] == 0 < sent["host_mb"] == pytest.approx(kept["saved_mb"] - sent["saved_mb"])
    assert sent["weights_mb"] == kept["weights_mb"] and offloaded_row["simulated_mb"] < row["simulated_mb"]


@pytest.mark.parametrize(("frozen", "size"), [("paged", 4), ("paged-bf16", 2)])
def test_paged_are_large_weights_in_their_format(frozen: str, size: int) -> None:
    recipe = TrainConfig(precision="bf16", frozen=frozen)  # type: ignore[arg-type]
    width, mlp = 96, 4 * 96
    weights = [3 * width * width, width * width, width * mlp, width * mlp]  # qkv, proj, fc1, fc2 of each of 6 blocks
    expected = 6 * sum(size * count for count in weights if size * count >= 1 << 16)
    assert measure.memory_row("mini_vit", "bias", None, recipe)["host_mb"] == expected / 1e6


@pytest.mark.parametrize("frozen", ["paged", "paged-bf16"])
def test_where_everything_trains_nothing_is_paged(frozen: str) -> None:
    found = []
    for each in (frozen, "fp32"):
        recipe = TrainConfig(epochs=1, warmup_epochs=0, batch_size=BATCH, precision="bf16", frozen=each)  # type: ignore[arg-type]
        torch.manual_seed(0)
        model, _ = identity.adapt(CellConfig(method=MethodConfig("full"), train=recipe))
        model.head = torch.nn.Linear(model.num_features, 4)
        numbers = measure.memory_row("mini_vit", "full", None, recipe, num_classes=4)
        found.append((numbers, [row["loss"] for row in train(model, Noise(BATCH), recipe, seed=0)]))
    assert found[0] == found[1] and found[0][0]["host_mb"] == 0


@pytest.mark.parametrize("without_data", [False, True])
def test_where_all_weights_are_small_nothing_is_paged(without_data: bool) -> None:
    recipe = TrainConfig(batch_size=BATCH, frozen="paged")
    with tensors_without_data() if without_data else contextlib.nullcontext():
        sizes: dict[str, Any] = {"embed_dim": 32, "depth": 1, "num_heads": 2, "patch_size": 8, "img_size": SIDE}
        model = timm.create_model("vit_tiny_patch16_224", **sizes)
        if without_data:
            strip_data(model)
        assert all(p.nbytes < 1 << 16 for n, p in model.named_parameters() if "head" not in n)
        model = attach(model, s2a.method_config("bias", activations="lean"), 4, SIDE, recipe)
    assert s2a.host_bytes(model) == 0
    # Another reason is said as ever.
    tied: Any = timm.create_model("vit_tiny_patch16_224", depth=2, img_size=SIDE)
    tied.blocks[1].mlp.fc1.weight = tied.blocks[0].mlp.fc1.weight
    with pytest.raises(s2a.S2AError, match="is shared with another module"):
        attach(tied, s2a.method_config("bias"), 4, SIDE, recipe)


def test_a_budget_is_for_the_weights_as_they_will_lie() -> None:
    """A budget that float32 weights meet only in host memory is met by frozen weights in half the bytes as they are."""

    def cell(budget: float | None, **train: Any) -> CellConfig:
        method = MethodConfig("s2a", {"activations": "lean", "saved_budget_mb": budget, "budget_batch": BATCH})
        return CellConfig(method=method, train=TrainConfig(batch_size=BATCH, **train))

    halved: dict[str, Any] = {"precision": "bf16", "frozen": "bf16"}
    with pytest.raises(s2a.S2AError, match="cannot be met"):
        run.identify(cell(0.1))
    whole = identity.adapt(cell(None))[0].plan
    assert whole is not None
    budget = whole.smallest / 1e6 - 0.3
    found = [identity.adapt(cell(budget, **train))[0].plan for train in ({}, halved)]
    assert [plan is not None and plan.paged > 0 for plan in found] == [True, False]
    small = cell(budget, **halved)
    assert run.identify(small) != run.identify(cell(budget + 0.1, **halved))
    assert shares.predict(small).weights < shares.predict(cell(budget + 1)).weights
    row = measure.memory_row("mini_vit", "s2a", dict(small.method.options), small.train)
    assert row["measured_mb"] <= budget and row["host_mb"] == 0


def test_a_budget_is_for_the_recipes_batch() -> None:
    def cell(batch: int, **options: Any) -> CellConfig:
        method = MethodConfig("bias", {"activations": "lean", "saved_budget_mb": 6, **options})
        return CellConfig(method=method, train=TrainConfig(batch_size=batch))

    adapted, _ = identity.adapt(cell(24))
    assert adapted.plan is not None and adapted.plan.images == adapted.config.budget_batch == 24
    found = measure.memory(adapted, torch.zeros(24, 3, SIDE, SIDE), cell(24).train)
    assert found["measured_mb"] <= 6 * 1.005
    assert run.identify(cell(24)) == run.identify(cell(24, budget_batch=24))
    with pytest.raises(InputError, match=r"method\.budget_batch=32 is not train\.batch_size=24"):
        run.identify(cell(24, budget_batch=32))
    with pytest.raises(s2a.S2AError, match="cannot be met with 4096 images"):
        run.identify(cell(4096))


def test_cells_of_before_keep_their_ids() -> None:
    """A field that came later is no part of a cell that has its default."""
    assert "frozen" not in identifying(TrainConfig())
    assert identifying(TrainConfig(precision="bf16", frozen="bf16"))["frozen"] == "bf16"
    assert identifying(TrainConfig(frozen="paged"))["frozen"] == "paged"
    assert "budget_batch" not in identifying(s2a.method_config("bias", budget_batch=32))  # Its default of before.
    assert identifying(s2a.method_config("bias", budget_batch=64))["budget_batch"] == 64
    later = {
        "activations",
        "saved_budget_mb",
        "peak_budget",
        "memory_budget_mb",
        "memory_budget",
        "budget_batch",
        "in_place",
        "offload",
        "recompute",
    }
    assert not later & identifying(s2a.method_config("bias")).keys()
    lean = identifying(s2a.method_config("bias", activations="lean"))
    assert lean["activations"] == "lean"
    assert lean["recompute"] == "auto"  # Results are not those of before, under the default of before.
    assert "recompute" not in identifying(s2a.method_config("bias", activations="lean", recompute="same"))
    assert identifying(s2a.method_config("bias", activations="lean", offload=True))["offload"] is True
