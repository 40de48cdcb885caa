"""``benchmarks/device.py``: what it plans, how it keeps to its time, what it writes; a dry run of all of it."""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def script() -> Iterator[Any]:
    """The script; what it imports is found as if it ran."""
    before = list(sys.path)
    sys.path.insert(0, str(ROOT / "benchmarks"))
    yield importlib.import_module("device")
    sys.path[:] = before


@pytest.fixture(scope="module")
def parts(script: Any) -> Any:
    return importlib.import_module("device_parts")


def test_everything_is_planned_for_every_backbone(script: Any, parts: Any) -> None:
    assert [kind for kind, _ in script.plan(False)] == ["tests", *["steps"] * 3, *["epochs"] * 3, "profile", "kernels"]
    assert set(script.SHARES) == {kind for kind, _ in script.plan(False)} and sum(script.SHARES.values()) == 1
    assert [name for kind, name in script.plan(False) if kind == "steps"] == list(parts.BUDGETS)
    # Half of the paper's figures: 640, 745 and 741 MB; docs and issues round 372.5 and 370.5 down.
    assert [int(budget.removesuffix("MB")) for budget in parts.BUDGETS.values()] == [640 // 2, 745 // 2, 741 // 2]
    pairs = parts.planned("convnext_base")
    assert len(pairs) == len(set(pairs)) == 2 * len(parts.CONFIGURATIONS)
    # Exact gradients come before those that are compared with them.
    for frozen, name in pairs:
        exact = parts.CONFIGURATIONS[name].exact
        assert not exact or pairs.index((frozen, exact)) <= pairs.index((frozen, name))
    dry = [pair for name in parts.MINIATURES for pair in parts.planned(name)]
    assert {name for _, name in dry} == set(parts.CONFIGURATIONS) and {frozen for frozen, _ in dry} == set(
        parts.FORMATS
    )


def test_every_configuration_is_a_config_with_a_recipe(parts: Any) -> None:
    request = parts.Request("cpu", 32, 1, 0.0)
    for name, chosen in parts.CONFIGURATIONS.items():
        for number in parts.FORMATS:
            config, train = parts.settings(request, "vit_base_patch16_224", "320MB", name, number)
            assert getattr(config, "peak_budget", None) == ("320MB" if chosen.half else None)
            assert (train.precision, train.checkpointing) == (number, "checkpointing" in name)
            assert train.frozen == (number if name != "full" else "fp32")


def test_files_that_tests_name_are_there(script: Any) -> None:
    for test in script.TESTS:
        path, _, name = test.partition("::")
        assert name in (ROOT / path).read_text()


def test_parts_share_what_earlier_ones_left(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    clock = script.Clock(600 + script.GRACE)
    assert clock.share("tests") == pytest.approx(90)
    now[0] += 90
    assert clock.share("steps", 3) == pytest.approx(100)
    now[0] += 40  # The first backbone took less than its time: the other two have more.
    assert clock.share("steps", 2) == pytest.approx(470 * 0.5 / 0.85 / 2)
    now[0] += 440
    assert clock.share("kernels") == pytest.approx(30)
    now[0] += 100
    assert clock.share("kernels") == 0


def test_what_no_longer_fits_is_named(parts: Any) -> None:
    """A part whose time is over measures nothing more and says so; what it had is written."""
    written: list[dict[str, Any]] = []
    request = parts.Request("cpu", 2, 1, time.monotonic() - 1)
    parts.measure_backbone("mini_vit", "6MB", request, written.append)
    assert written[-1]["steps"] == []
    assert len(written[-1]["skipped"]) == len(parts.planned("mini_vit"))
    assert {row["why"] for row in written[-1]["skipped"]} == {"no time left"}


def test_a_process_that_hangs_or_breaks_costs_only_its_part(script: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    code, said = script.in_time([sys.executable, "-c", "import time; print('on', flush=True); time.sleep(60)"], 1)
    assert code is None and said == "on\n"
    monkeypatch.setattr(script, "in_time", lambda command, seconds: (-9, "first\nkilled by the driver\n"))
    request = argparse.Namespace(batch=2, rounds=1, weights={}, dry_run=False)
    found = script.run_part(request, "steps", "convnext_base", 10)
    assert found == {
        "skipped": [{"what": "the rest of steps convnext_base", "why": "it ended with code -9: killed by the driver"}]
    }


def test_groups_of_trained_parameters(parts: Any) -> None:
    names = {
        "method.updates.0.a.weight": "LoRA A",
        "method.updates.0.b.weight": "LoRA B",
        "method.prompts.3.b": "LRP",
        "method.branch.down.weight": "LSB",
        "backbone.blocks.0.attn.qkv.bias": "bias",
        "head.weight": "head",
    }
    assert {name: parts.group_of(name) for name in names} == names


def test_agreement_is_cosine_and_relative_error(parts: Any) -> None:
    exact = {"bias": torch.tensor([3.0, 4.0]), "LRP": torch.tensor([1.0, 0.0])}
    found = parts.agreement({"bias": torch.tensor([6.0, 8.0]), "LRP": torch.tensor([0.0, 1.0])}, exact)
    assert found["bias"] == {"cosine": pytest.approx(1), "relative": pytest.approx(1)}
    assert found["LRP"] == {"cosine": pytest.approx(0), "relative": pytest.approx(2**0.5)}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["table"], "table FILE.json"),
        (["table", "nowhere.json"], "is not there"),
        (["--weights", "vit_base_patch16_224"], "BACKBONE=FILE"),
        (["--output", "no/such/folder/x.json"], "no such folder"),
    ],
)
def test_bad_input_is_refused(script: Any, arguments: list[str], sentence: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        script.parse(arguments)
    assert error.value.code == 2 and sentence in capsys.readouterr().err


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
def test_without_a_card_it_says_so(script: Any, tmp_path: Path, capsys: Any) -> None:
    assert script.main(["--output", str(tmp_path / "x.json")]) == 1
    assert "--dry-run" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_the_table_says_what_was_measured_and_what_not(script: Any) -> None:
    from device_table import markdown  # type: ignore[import-not-found]

    def row(name: str, precision: str, **more: Any) -> dict[str, Any]:
        both = {"cosine": 0.9991, "relative": 0.042}
        row = {"backbone": "vit", "configuration": name, "precision": precision, "simulated_mb": 600.4, **more}
        return {**row, "to_exact": {"bias": both}, "to_exact_fp32": {"bias": both}}

    found = {
        "hardware": {"cpu": "a processor", "gpu": "a card"},
        "versions": {"torch": "2.11.0", "timm": "1.0.26"},
        "settings": {"batch": 32, "rounds": 10},
        "date": "2030-01-01",
        "dry_run": False,
        "tests": {"summary": "86 passed in 9s"},
        "weights": {"files": {"vit": "trained.safetensors"}, "note": "Others are random."},
        "steps": [
            row("s2a exact", "fp32", seconds=0.1, device_mb=1234.5),
            row("s2a lean", "fp32", seconds=0.105, device_mb=610.0),
            row("s2a lean", "bf16", seconds=0.05, device_mb=430.0),
        ],
        "epochs": [
            {"backbone": "vit", "name": "bias", "images": 1000, "epoch_seconds": 4.5, "scoring_seconds": 1.5,
             "peak_mb": 2345.6},
        ],
        "kernels": [
            {"operator": "norm_pack", "dtype": "fp32", "shape": [8, 768], "by": "Triton", "seconds": 2e-5,
             "copy_seconds": 1e-5, "reference_seconds": 4e-5}
        ],
        "profile": [
            {"backbone": "vit", "configuration": "s2a lean", "precision": "fp32", "microseconds": 2000.0,
             "kernels": [{"name": "sgemm|x", "calls": 7, "microseconds": 500.0}]}
        ],
        "skipped": [{"what": "vit, s2a half, fp32", "why": "A peak_budget cannot be met."}],
    }  # fmt: skip
    lines = markdown(found).splitlines()
    assert lines[0].startswith("a card, torch 2.11.0, timm 1.0.26, batch 32, median of 10 steps")
    assert "| vit | s2a lean | 610 (600) | 430 (600) | 105.0 (1.05) | - | 50.0 |" in lines
    assert "| vit | s2a lean | fp32 | exact, the same precision | bias 0.9991 (0.042) |" in lines
    assert "Trained weights: vit: trained.safetensors. Others are random." in lines
    assert "| vit | bias | 4.50 | 1.50 | 2,346 |" in lines
    assert "| norm_pack | fp32 | 768 | Triton | 20 | 40 | 50% |" in lines
    assert "| `sgemm/x` | 7 | 0.50 | 25.0% |" in lines
    assert "- not measured: vit, s2a half, fp32 (A peak_budget cannot be met)" in lines
    columns = {
        line.count("|") for line in lines if line.startswith(("| backbone | method | peak", "| vit | s2a", "|---" * 7))
    }
    assert columns <= {6, 8}


def test_epochs_are_of_the_methods_that_table_1_has(script: Any) -> None:
    import s2a
    from s2a_bench.cli.estimate import Asked, cells_of

    epochs = importlib.import_module("device_epochs")
    measured = {(method, s2a.method_config(method, **options)) for method, options in epochs.METHODS.values()}
    wanted = {
        (c.method.name, s2a.method_config(c.method.name, **c.method.options)) for c in cells_of(Asked(seeds=(0,)))
    }
    assert wanted <= measured


@pytest.mark.full
def test_a_dry_run_runs_every_part(tmp_path: Path, parts: Any) -> None:
    output = tmp_path / "dry.json"
    command = [sys.executable, str(ROOT / "benchmarks" / "device.py")]
    done = subprocess.run(
        [*command, "--dry-run", "--output", output], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(output.read_text())
    assert found["dry_run"] and found["hardware"]["device"] == "cpu" and found["seconds"] < 600
    assert found["tests"]["exit_code"] == 0 and "tests collected" in found["tests"]["summary"]
    # Everything that was planned is there, but for the budget that is too small.
    measured = {(row["backbone"], row["precision"], row["configuration"]) for row in found["steps"]}
    wanted = {
        (backbone, number, name)
        for backbone in parts.MINIATURES
        for frozen, name in parts.planned(backbone)
        for number in parts.FORMATS[frozen]
    }
    refused = {(backbone, number, name) for backbone, number, name in wanted - measured}
    assert measured <= wanted and refused == {("mini_swin", "fp32", "s2a half"), ("mini_swin", "tf32", "s2a half")}
    assert [row["what"] for row in found["skipped"]] == ["mini_swin, s2a half, fp32"]
    assert "cannot be met" in found["skipped"][0]["why"]
    for row in found["steps"]:
        assert row["seconds"] > 0 and row["simulated_mb"] > 0 and "device_mb" not in row
        # On a CPU there is no TF32: the same step gives the same gradients.
        if row["configuration"] == "s2a exact" and row["precision"] == "tf32":
            assert all(value["relative"] < 1e-5 for value in row["to_exact_fp32"].values())
        if row["configuration"] == "s2a exact":
            assert set(row["to_exact_fp32"]) == {"bias", "LRP", "LSB"}
        if row["configuration"] == "lora lean":
            assert set(row["to_exact"]) == {"LoRA A", "LoRA B"}
    epochs = importlib.import_module("device_epochs")
    assert {(row["backbone"], row["name"]) for row in found["epochs"]} == {
        (backbone, name) for backbone in parts.MINIATURES for name in epochs.METHODS
    }
    assert all(row["epoch_seconds"] > 0 < row["scoring_seconds"] and row["images"] == 6 for row in found["epochs"])
    assert len(found["profile"]) == 3 and all(0 < len(profile["kernels"]) <= 15 for profile in found["profile"])
    assert {"norm_pack, 10 bits", "act_pack, 4 bits, derivative"} <= {row["operator"] for row in found["kernels"]}
    shown = subprocess.run([*command, "table", output], capture_output=True, text=True, check=True).stdout
    assert "(a dry run: nothing of a GPU)" in shown and "| mini_vit | s2a half |" in shown
