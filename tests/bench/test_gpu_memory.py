"""Which share of a card a cell gets: the prediction against what is measured, the rounding, and the way through Ray."""

from __future__ import annotations

import dataclasses
import fractions
import os
from importlib.util import find_spec

import pytest
import s2a
import torch
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import backbones, record
from s2a_bench.cells.outputs import Keep
from s2a_bench.cells.record import Record
from s2a_bench.config import BackboneConfig, CellConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps import gpu_memory as shares
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.events import Listener
from s2a_bench.sweeps.plan import identify, plan
from s2a_bench.sweeps.ray import pool
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.resources import Placement, ResourceRequest, place
from s2a_bench.sweeps.workers import Workers


def cell(method: str = "s2a", backbone: str = "mini_vit", **train) -> CellConfig:
    return CellConfig(
        backbone=BackboneConfig(backbone, random_weights=True), method=MethodConfig(method), train=TrainConfig(**train)
    )


@pytest.mark.parametrize("method", s2a.list_methods())
@pytest.mark.parametrize("backbone", ["mini_vit", "mini_convnext"])
def test_the_kept_bytes_of_a_large_batch_follow_from_two_small_ones(method, backbone):
    model, expected = backbones.create(BackboneConfig(backbone, random_weights=True))
    adapted = s2a.attach(model, s2a.method_config(method), 10, image_size=expected.size).train()
    measured = s2a.saved_bytes(adapted, torch.zeros(12, 3, expected.size, expected.size)).total
    need = shares.predict(cell(method, backbone, batch_size=12))
    # A convolution chooses its workspace by the batch; a tenth of the margin is enough for it.
    assert need.saved == pytest.approx(measured, rel=0.1 * (shares.MARGIN - 1), abs=4096)
    assert need.weights == sum(t.numel() * t.element_size() for t in (*adapted.parameters(), *adapted.buffers()))
    assert need.trained == 12 * sum(p.numel() for p in adapted.parameters() if p.requires_grad)


def test_the_prediction_knows_the_recipe_and_draws_no_random_number():
    before = torch.random.get_rng_state()
    small, large = (shares.predict(cell("full", batch_size=size)) for size in (8, 64))
    checkpointed = shares.predict(cell("full", batch_size=64, checkpointing=True))
    linear = shares.predict(cell("linear", batch_size=64))
    assert small.gigabytes < large.gigabytes
    assert checkpointed.saved < large.saved / 2
    assert linear.saved < checkpointed.saved and linear.trained < large.trained
    assert large.gigabytes > shares.CONTEXT_GB + (large.weights + large.trained + large.saved) / 1e9
    assert torch.equal(torch.random.get_rng_state(), before)


def test_scoring_counts_where_training_keeps_little():
    small, large = (shares.predict(cell("linear", batch_size=size)) for size in (1, 8))
    assert small.gigabytes == pytest.approx(large.gigabytes, rel=1e-3), "both are scored in the same batches"


@given(st.floats(0.001, 500), st.floats(1, 200))
def test_a_share_is_the_least_percent_that_holds_the_need(need, card):
    share = shares.fraction(need, card)
    percent = round(share * 100)
    assert share == percent / 100 and 1 <= percent <= 100
    if percent < 100:
        assert fractions.Fraction(need) <= fractions.Fraction(percent, 100) * fractions.Fraction(card) + 1e-5
    if percent > 1:
        assert fractions.Fraction(need) > fractions.Fraction(percent - 1, 100) * fractions.Fraction(card) - 1e-5


@given(st.floats(0.01, 1), st.integers(1, 256), st.integers(1, 8))
def test_cells_that_fill_a_card_find_cores(share, cpus, cards):
    share = round(share, 2)
    each = shares.cores(share, cpus, cards)
    assert each >= 1
    if each > 1:
        assert int(1 / share) * each * cards <= cpus + 1e-6, "as many as fit the cards fit the cores"


def test_cells_of_different_sizes_get_different_shares_and_one_that_ran_out_a_card():
    found = shares.shares({"a": cell("linear"), "b": cell("full", batch_size=2048), "c": cell()}, 40.0, whole=["c"])
    assert 0 < found["a"] < found["b"] < found["c"] == 1
    text = shares.sentence(found, 40.0)
    assert "40 GB" in text and "1 cell 100%" in text


def test_a_card_too_small_is_taken_whole():
    assert shares.shares({"a": cell("full")}, 0.5) == {"a": 1.0}


@pytest.mark.parametrize("size", [0.0, -1.0, float("nan"), float("inf")])
def test_a_card_without_a_size_is_bad_input(size):
    with pytest.raises(InputError, match="--gpu-memory-gb"):
        ResourceRequest(gpu_memory_gb=size).check("cuda")


def test_a_card_for_cells_on_the_cpu_is_bad_input():
    with pytest.raises(InputError, match="--device is cpu"):
        ResourceRequest(gpu_memory_gb=24).check("cpu")


def test_the_decision_for_a_machine_with_a_card(tmp_path, monkeypatch):
    monkeypatch.setattr("s2a_bench.sweeps.workers._cuda_devices", lambda: 1)
    cells = {"ok": cell("linear"), "broken": cell("bias")}
    error = {"type": "OutOfMemory", "message": "...", "traceback": "..."}
    record.write(make_record(cell_id="broken", status="failed", accuracy=None, error=error), tmp_path)
    found = place(plan(cells, tmp_path), tmp_path, "cuda", ResourceRequest(gpu_memory_gb=80), small=True)
    assert found.shares is not None and found.shares["broken"] == 1 and found.shares["ok"] < 0.05
    assert found.join is None and found.workers.cards == 1
    assert found.workers.count * found.workers.cpus <= max(2, len(os.sched_getaffinity(0)))
    few = place(
        plan(cells, tmp_path), tmp_path, "cuda", ResourceRequest(gpu_memory_gb=80, max_concurrent=1), small=True
    )
    assert few.workers.count == 1


def test_the_decision_for_the_cpu_and_for_a_cluster_whose_cards_nobody_knows(tmp_path):
    cells = plan({"a": cell()}, tmp_path)
    assert place(cells, tmp_path, "cpu", ResourceRequest(), small=True).shares is None
    wish = ResourceRequest(ray_address="10.0.0.1:6379", max_concurrent=3)
    found = place(cells, tmp_path, "cuda", wish, small=False)
    assert found.shares == {"a": 1.0} and "--gpu-memory-gb" in found.sentence
    assert found.join is not None and (found.join.address, found.join.concurrent) == ("10.0.0.1:6379", 3)


class Together(Listener):
    """Remembers which cells ran at once."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.seen: list[set[str]] = []
        self.done: list[str] = []

    def started(self, cell_id: str) -> None:
        self.running.add(cell_id)
        self.seen.append(set(self.running))

    def finished(self, record: Record) -> None:
        self.running.discard(record.cell_id)
        self.done.append(record.status)


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its dependencies
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(900)  # a busy machine starts Ray's processes slowly
def test_small_cells_share_a_card_and_a_large_one_has_it_alone(tmp_path):
    """Ray is told of a card that is not there; the cells run on the CPU."""
    request = Request(
        datasets=("digits",), methods=("bias",), seeds=(0, 1, 2), random_weights=True, limit_train=16, limit_test=16
    )
    recipe = TrainConfig(epochs=40, warmup_epochs=0, batch_size=8)  # Long enough to meet the other one.
    found = identify(dataclasses.replace(c, train=recipe) for c in grid.expand(request))
    small, other, large = found
    given_shares = {small: 0.4, other: 0.5, large: 0.7}
    heard = Together()
    workers = Workers(count=3, cpus=1, gpus=1.0, cards=1)
    pool.run_with_ray(plan(found, tmp_path), [heard], Keep(tmp_path), Placement(workers, given_shares))
    assert heard.done == ["done"] * 3
    assert {small, other} in heard.seen, "two fit the card, and ran at once"
    assert all(sum(given_shares[cell_id] for cell_id in together) <= 1 for together in heard.seen)
