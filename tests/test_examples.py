"""The scripts of ``examples/`` run, offline, and print what they promise."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import s2a
import torch
from s2a_bench.tracking import store

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
SMALL = ["--epochs", "1", "--images", "32"]


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Runs a script in this process, in an empty folder and without MLflow, and gives what it prints."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "find_spec", lambda name: None)

    def start(name: str, *arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", [name, *SMALL, *arguments])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return start


def test_methods_are_compared_and_nothing_runs_twice(run, tmp_path):
    first = run("compare_methods.py")
    assert first.count("done: ") == 4 and re.search(r"^s2a +[\d.]+ +[\d.]+ +[\d.]+$", first, re.MULTILINE)
    assert (tmp_path / "results" / "report.html").is_file()
    second = run("compare_methods.py")
    assert "done: " not in second and "4 done, nothing to run" in second


def test_the_table_by_rank_has_more_parameters_for_higher_ranks(run):
    lines = run("sweep_rank.py", "--ranks", "8", "2").splitlines()
    rows = [line.replace(",", "").split() for line in lines[1:]]
    assert [row[0] for row in rows] == ["2", "8"]
    assert int(rows[0][1]) < int(rows[1][1])


def test_a_plain_training_loop_saves_an_adapter(run, tmp_path):
    out = run("plain_loop.py")
    assert "epoch 1: loss" in out and "accuracy" in out
    assert 0 < (tmp_path / "adapter.safetensors").stat().st_size < 1_000_000


@pytest.mark.long
def test_a_method_of_ones_own_trains_what_it_says(tmp_path):
    """In a process of its own: it registers a method, which other tests would meet."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    command = [sys.executable, str(EXAMPLES / "own_method.py"), *SMALL]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    both, biases = (
        int(re.search(rf"'weights': {value}.*?([\d,]+) values", done.stdout)[1].replace(",", ""))  # type: ignore[index]
        for value in (True, False)
    )
    head = 96 * 10 + 10
    assert both - head == 2 * (biases - head), "a norm has as many weights as biases"


def script(name: str) -> dict[str, Any]:
    """What a script defines; nothing of it runs."""
    return runpy.run_path(str(EXAMPLES / name))


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_scripts_say_what_they_are_and_stay_short(path):
    lines = path.read_text().splitlines()
    assert lines[0].startswith('"""') and any(path.name in line for line in lines[1:5])
    assert len(lines) <= 95


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_timms_factories_train_a_folder_of_classes():
    losses = script("timm_factories.py")["main"](epochs=3, images=36)
    assert losses[-1] < 0.7 * losses[0]


@pytest.mark.full
def test_lightning_goes_on_from_a_checkpoint_that_holds_what_trains_alone(tmp_path):
    pytest.importorskip("lightning")
    main = script("lightning_module.py")["main"]
    whole = main(epochs=4, output=tmp_path / "whole")
    assert whole.losses[-1] < 0.5 * whole.losses[0]
    main(epochs=2, output=tmp_path / "cut")
    checkpoint = next((tmp_path / "cut" / "checkpoints").glob("*.ckpt"))
    names = set(torch.load(checkpoint, weights_only=True)["state_dict"])
    assert names == {f"model.{name}" for name in s2a.trainable_parameters(whole.model)}, "a ViT has no buffers"
    more = main(epochs=4, output=tmp_path / "cut", resume=str(checkpoint))
    assert more.losses[0] < 0.7 * whole.losses[0]
    ours, theirs = s2a.trainable_parameters(more.model), s2a.trainable_parameters(whole.model)
    assert all(ours[name].shape == value.shape for name, value in theirs.items())
    assert (tmp_path / "cut" / "adapter.safetensors").stat().st_size < 100_000


@pytest.mark.full
def test_trainer_learns_saves_and_goes_on(tmp_path):
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    code = script("hf_trainer.py")
    trainer = code["main"](epochs=2, output=tmp_path)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert float(losses[-1]) < float(losses[0])
    adapted, images = trainer.model.model.eval(), torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        expected = adapted(images)
        for file in (tmp_path / "adapter.safetensors", tmp_path / "checkpoint-6" / "adapter.safetensors"):
            loaded = s2a.load(code["make_backbone"](), file).eval()
            torch.testing.assert_close(loaded(images), expected)
    more = code["main"](epochs=3, output=tmp_path, resume=True)
    assert more.state.global_step == 9 and float(more.state.log_history[-1]["eval_loss"]) < float(losses[0])


@pytest.mark.full
def test_two_processes_end_with_the_same_weights(tmp_path):
    pytest.importorskip("accelerate")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
        "OMP_NUM_THREADS": "1",
    }
    command += [str(EXAMPLES / "accelerate_two_processes.py"), "--output", "adapter.safetensors"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 processes, largest difference of weights 0.0\n" in done.stdout
    losses = [float(loss) for loss in re.findall(r"loss ([\d.]+)", done.stdout)]
    assert len(losses) == 3, "one process prints"
    assert losses[-1] < losses[0]
    assert (tmp_path / "adapter.safetensors").is_file()


@pytest.mark.full
@pytest.mark.compile
@pytest.mark.filterwarnings("ignore")
def test_a_compiled_model_trains_and_computes_the_same(tmp_path):
    torch._dynamo.reset()
    try:
        losses, difference = script("compile_model.py")["main"]("aot_eager", output=tmp_path / "adapter.safetensors")
    finally:
        torch._dynamo.reset()
    assert losses[-1] < 0.5 * losses[0] and difference < 1e-5
    assert (tmp_path / "adapter.safetensors").is_file()
