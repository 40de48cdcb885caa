"""The scripts of ``examples/`` run, offline, and print what they promise."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
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
    out = run("train_yourself.py")
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
