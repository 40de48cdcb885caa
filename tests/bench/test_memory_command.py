"""``s2a-bench memory`` from its arguments to its words."""

from __future__ import annotations

import json
import time

import pytest
import s2a
import torch
from bench.command_line import refused
from s2a_bench.cells import measure
from s2a_bench.cli import memory as commands_memory
from s2a_bench.cli.main import main
from s2a_bench.config import TrainConfig

pytestmark = pytest.mark.usefixtures("elsewhere")


def test_memory_prints_what_scripts_rely_on(capsys):
    assert (
        main(
            ["memory", "--method", "s2a:activations=exact", "--set", "method.lrp_rank=4", "--batch-size", "2", "--json"]
        )
        == 0
    )
    row = json.loads(capsys.readouterr().out)
    names = "backbone method batch_size params_total params_trainable params_percent weights_mb theoretical_mb saved_mb"
    assert {*names.split(), "measured_mb"} <= row.keys()
    assert row["measured_mb"] == pytest.approx(row["weights_mb"] + row["saved_mb"])
    assert row["simulated_mb"] == pytest.approx(sum(row["simulated_parts_mb"].values()))
    assert row["simulated_mb"] > row["measured_mb"]  # It has the batch, the logits and AdamW's state on top.
    assert main(["memory", "--batch-size", "2"]) == 0
    assert "theoretical_mb" in capsys.readouterr().out


@pytest.mark.full
def test_memory_of_several_is_a_table(capsys):
    pairs = ["--backbone", "mini_vit", "mini_convnext", "--method", "linear", "bias", "--batch-size", "2"]
    assert main(["memory", *pairs, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [(row["backbone"], row["method"]) for row in rows] == [
        (backbone, method) for backbone in ("mini_vit", "mini_convnext") for method in ("linear", "bias")
    ]
    assert all(row["simulated_mb"] > 0 for row in rows)
    assert main(["memory", *pairs]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("mini_convnext", "linear", "simulated", "2 images"))


def test_memory_of_all_says_what_a_backbone_cannot_take(capsys, monkeypatch):
    """Of all methods, those that are registered; one that was named is an error, one of all a line."""

    def row(backbone, method, *args, **kwargs):
        if method == "adapter":
            raise s2a.S2AError("It has no place for one.")
        numbers = dict.fromkeys(("params_percent", "saved_mb", "measured_mb", "simulated_mb"), 1.0)
        return {"backbone": backbone, "method": method, "batch_size": 2, "simulated_phase": "forward", **numbers}

    monkeypatch.setattr(measure, "memory_row", row)
    assert main(["memory", "--method", "all", "s2a:bits=2", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)}
    assert {*s2a.list_methods(), "s2a:bits=2"} == rows.keys()
    assert rows["adapter"]["refused"] == "It has no place for one."
    assert main(["memory", "--method", "all"]) == 0
    assert "It has no place for one." in " ".join(capsys.readouterr().out.split())
    assert "It has no place for one." in refused(capsys, "memory", "--method", "bias", "adapter")


def test_memory_says_what_takes_long(capsys, monkeypatch):
    monkeypatch.setattr(commands_memory, "PATIENCE", 0.01)
    monkeypatch.setattr(measure, "memory_row", lambda *args, **kwargs: time.sleep(0.5) or {"batch_size": 2})
    assert main(["memory", "--method", "bias"]) == 0
    assert "mini_vit, bias (1 of 1)" in capsys.readouterr().err


@pytest.mark.full
@pytest.mark.parametrize("method", ["full", "s2a:activations=lean"])
def test_memory_is_measured_without_data(method):
    """The numbers are those of real tensors, to the byte."""
    name, _, activations = method.partition(":activations=")
    options = {"activations": activations} if activations else {}
    train = TrainConfig(batch_size=3)
    adapted, side = measure.blank("mini_vit", name, options, train=train)
    real = measure.memory(adapted, torch.randn(3, 3, side, side), train)
    row = measure.memory_row("mini_vit", name, options, train, simulate=True)
    assert {key: row[key] for key in real} == real
    assert row["simulated_mb"] == measure.simulated(adapted, train)["simulated_mb"]


def test_memory_allocates_nothing_of_the_batchs_size():
    """Ten million images would keep terabytes, which no allocator gives."""
    row = measure.memory_row("mini_vit", "bias", {}, TrainConfig(batch_size=10**7), simulate=True)
    assert row["simulated_mb"] > row["saved_mb"] > 1e7


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--batch-size", "0"], "--batch-size 0"),
        (["--backbone", "vit_bass_patch16_224"], "vit_base_patch16_224"),
        (["--set", "train.lr=1"], "train.lr"),
        (["--method", "s2a:lrp_rank=5000"], "lrp_rank=5000"),
        (["--device", "cpu"], "--device cpu"),
        (["--method", "all", "--set", "method.speed=1"], "method.speed"),
    ],
)
def test_memory_refuses_bad_input(capsys, arguments, word):
    assert word in refused(capsys, "memory", *arguments)
