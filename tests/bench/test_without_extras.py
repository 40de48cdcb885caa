"""What runs without extras: a cell, a sweep, the report. ``nox -s bare`` runs this file where no extra is installed."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

pytestmark = pytest.mark.full  # `nox -s bare`, which CI runs too, runs this file where it counts

EXTRAS = {"ray": "ray", "mlflow": "mlflow", "h5py": "data", "pyarrow": "data", "gdown": "data"}
"""Library -> the extra that brings it."""

BARE = os.environ.get("S2A_BENCH_BARE") == "1"
only_bare = pytest.mark.skipif(not BARE, reason="the extras are installed here; nox -s bare runs it")


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A command of this environment."""
    return subprocess.run([sys.executable, "-m", *arguments], capture_output=True, text=True, check=False)


@only_bare
def test_no_extra_is_installed_here() -> None:
    assert [name for name in EXTRAS if find_spec(name) is not None] == []


def test_a_cell_runs_by_itself(tmp_path: Path) -> None:
    cell = {"data": {"dataset": "digits", "limit_train": 64, "limit_test": 50}, "train": {"epochs": 1}}
    cell["train"]["warmup_epochs"] = 0
    (tmp_path / "cell.json").write_text(json.dumps(cell), encoding="utf-8")
    done = run("s2a_bench.run", str(tmp_path / "cell.json"), str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    (path,) = (tmp_path / "out" / "records").glob("*.json")
    record = json.loads(path.read_text(encoding="utf-8"))
    assert (record["status"], record["method"], record["scored_images"]) == ("done", "s2a", 50)


def test_a_sweep_runs_and_reports(tmp_path: Path) -> None:
    small = ("--datasets", "digits", "--limit-train", "64", "--limit-test", "50", "--epochs", "1")
    output = ("--output", str(tmp_path))
    settings = ("--set", "train.warmup_epochs=0", "--serial")
    done = run("s2a_bench", "sweep", *small, *output, *settings, "--methods", "linear", "bias")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "records").glob("*.json"))) == 2
    assert (tmp_path / "report.html").is_file()
    if BARE:
        assert "pip install 's2a-bench[mlflow]'" in " ".join(done.stdout.split())
    assert run("s2a_bench", "report", *output).returncode == 0


@only_bare
def test_without_ray_cells_run_one_after_the_other(tmp_path: Path) -> None:
    small = ("--datasets", "digits", "--limit-train", "64", "--limit-test", "50", "--epochs", "1")
    done = run(
        *("s2a_bench", "sweep", *small, "--output", str(tmp_path), "--methods", "linear"),
        *("--set", "train.warmup_epochs=0"),
    )
    assert done.returncode == 0, done.stderr
    assert "pip install 's2a-bench[ray]'" in " ".join(done.stdout.split())


@only_bare
@pytest.mark.parametrize(
    ("arguments", "extra"),
    [
        (("sweep", "--ray-address", "127.0.0.1:6379"), "ray"),
        (("sweep", "--search", "2", "--search-scheduler", "asha"), "ray"),
        (("track",), "mlflow"),
        (("data", "prepare", "patch_camelyon", "--synthetic"), "data"),
    ],
)
def test_what_needs_an_extra_names_it(arguments: tuple[str, ...], extra: str, tmp_path: Path) -> None:
    where = ("--data-dir", str(tmp_path)) if arguments[0] == "data" else ("--output", str(tmp_path))
    done = run("s2a_bench", *arguments, *where)
    assert done.returncode in (1, 2), done.stdout
    assert f"pip install 's2a-bench[{extra}]'" in done.stderr
    assert "Traceback" not in done.stderr
