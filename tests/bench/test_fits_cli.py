"""``s2a-bench fits`` from its arguments to its words, and the batch and plan that a cell gets under a budget."""

from __future__ import annotations

import json
import shlex

import pytest
import s2a
from bench.command_line import refused
from s2a_bench.cells.fits import choose, fit_row
from s2a_bench.cells.measure import blank, memory_row, simulated
from s2a_bench.cli.main import main
from s2a_bench.config import BackboneConfig, CellConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError

pytestmark = pytest.mark.usefixtures("elsewhere")

KEYS = "backbone method image_size budget_mb batch_size at_least peak_mb step_gflops relative_step_flops plan answer"


def test_fits_prints_what_scripts_rely_on(capsys):
    assert main(["fits", "--budget", "100MB", "--method", "linear", "s2a:activations=lean", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["method"] for row in rows] == ["linear", "s2a:activations=lean"]
    for row in rows:
        assert {*KEYS.split(), "smallest_plan", "smallest_budget_mb", "precision", "checkpointing"} <= row.keys()
        assert row["batch_size"] >= 1 and row["peak_mb"] <= row["budget_mb"] == 100
        assert row["smallest_budget_mb"] is None
    assert rows[0]["smallest_plan"] is None
    planned = rows[1]["smallest_plan"]
    assert planned["batch_size"] >= 1 and planned["peak_mb"] <= 100 and "mlp" in planned["plan"]
    assert "as it comes" in rows[1]["answer"]


def test_fits_prints_a_table(capsys):
    assert main(["fits", "--budget", "1MB", "--method", "linear", "--image-size", "32"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "within 1 MB" in out and "none" in out and "smallest budget that would do" in out


@pytest.mark.parametrize(
    ("backbone", "method", "options", "train"),
    [
        pytest.param(
            *("mini_vit", "lora", {"activations": "lean"}, TrainConfig(precision="bf16", frozen="bf16")),
            marks=pytest.mark.full,
        ),
        pytest.param("mini_convnext", "full", {}, TrainConfig(checkpointing=True), marks=pytest.mark.full),
        ("mini_vit", "linear", {}, TrainConfig()),
    ],
)
def test_fits_agrees_with_memory(backbone, method, options, train):
    """The batch that fits has the peak that ``memory`` says, and one image more is above the budget."""
    from dataclasses import replace

    budget = 64 * 10**6
    row = fit_row(backbone, method, budget, options, train)
    at, above = (
        memory_row(backbone, method, options, replace(train, batch_size=row["batch_size"] + n), simulate=True)
        for n in (0, 1)
    )
    assert at["simulated_mb"] == row["peak_mb"] <= 64 < above["simulated_mb"]
    if train.checkpointing:
        assert 1.1 < row["relative_step_flops"] < 1.5


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["--budget", "lots"], "8GiB"),
        (["--budget", "0"], "at least 1 byte"),
        (["--budget", "1GiB", "--backbone", "vit_of_nobody"], "vit_of_nobody"),
        (["--budget", "1GiB", "--method", "nothing"], "nothing"),
        (["--budget", "1GiB", "--set", "train.epochs=3"], "train.epochs"),
        (["--budget", "1GiB", "--set", "train.batch_size=3"], "train.batch_size"),
        (["--budget", "1GiB", "--set", "method.peak_budget=1GiB"], "--budget"),
        (["--budget", "1GiB", "--method", "s2a:activations=lean,saved_budget_mb=9"], "--budget"),
        (["--budget", "1GiB", "--image-size", "0"], "--image-size"),
        (["--budget", "1GiB", "--set", "train.frozen=bf16"], "precision=bf16"),
    ],
)
def test_fits_refuses_bad_input(capsys, arguments, word):
    assert word in refused(capsys, "fits", *arguments)


# What a cell is trained with under a budget


def cell(method="s2a", batch=32, **options):
    return CellConfig(
        backbone=BackboneConfig("mini_vit"), method=MethodConfig(method, options), train=TrainConfig(batch_size=batch)
    )


def peak_of(config, batch, options):
    adapted, _ = blank(config.backbone.name, config.method.name, options, train=TrainConfig(batch_size=batch))
    return simulated(adapted, TrainConfig(batch_size=batch))["simulated_mb"] * 1e6


def test_a_batch_that_fits_stays():
    config = cell(activations="lean")
    assert choose(config, 10**9) == (32, {"activations": "lean"})


@pytest.mark.full
def test_a_plan_makes_room_for_the_batch():
    """Between what fits as it comes and with the smallest plan: the batch stays, the plan meets the budget."""
    budget = 128 * 10**6
    row = fit_row("mini_vit", "s2a", budget, {"activations": "lean"})
    between = (row["batch_size"] + row["smallest_plan"]["batch_size"]) // 2
    assert row["batch_size"] < between
    config = cell(batch=between)
    batch, options = choose(config, budget)
    assert batch == between and options == {"activations": "lean", "peak_budget": f"{budget}B"}
    assert peak_of(config, batch, options) <= budget


def test_fewer_images_where_no_plan_is_enough():
    config = cell("linear", batch=512)
    batch, options = choose(config, 60 * 10**6)
    assert options == {} and 1 <= batch < 512
    assert peak_of(config, batch, options) <= 60 * 10**6 < peak_of(config, batch + 1, options)


def test_a_budget_that_nothing_meets_names_the_smallest():
    with pytest.raises(InputError, match="smallest that would do is") as found:
        choose(cell(activations="lean"), 10**5)
    least = float(str(found.value).split("would do is ")[1].split(" MB")[0].replace(",", ""))
    batch, _ = choose(cell(activations="lean"), int(least * 1e6))
    assert batch >= 1
    with pytest.raises(InputError, match="two limits"):
        choose(cell(activations="lean", peak_budget="1GiB"), 10**9)
    assert issubclass(InputError, ValueError) and issubclass(s2a.S2AError, ValueError)


def test_the_next_command_is_for_the_settings_that_were_computed(capsys):
    words = ["--budget", "64MB", "--backbone", "mini_vit", "--method", "bias", "--set", "train.precision=bf16"]
    assert main(["fits", *words, "--image-size", "64"]) == 0
    last = shlex.split(capsys.readouterr().out.splitlines()[-1].partition("images: ")[2])
    assert last[:3] == ["s2a-bench", "finetune", "DIR"]
    assert " ".join(last).endswith("--memory-budget 64MB --image-size 64 --set train.precision=bf16")
