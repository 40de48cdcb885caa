"""``estimate --measured``: times that were taken on another machine."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from s2a_bench.cli.main import main


def measured(folder: Path, **changes: Any) -> str:
    row = {
        "backbone": "mini_vit",
        "name": "bias",
        "method": "bias",
        "options": {},
        "train": {"batch_size": 32, "precision": "fp32"},
        "images": 1000,
        "epoch_seconds": 4.0,
        "scoring_seconds": 1.0,
        "peak_mb": 812.0,
        **changes,
    }
    path = folder / "device.json"
    path.write_text(json.dumps({"hardware": {"device": "cuda", "gpu": "a card", "threads": 1}, "epochs": [row]}))
    return str(path)


NARROW = ("estimate", "--backbones", "mini_vit", "--methods", "bias", "s2a", "--seeds", "0")


def test_hours_are_made_of_the_times_in_the_file(tmp_path: Path, capsys: Any) -> None:
    assert main([*NARROW, "--measured", measured(tmp_path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    rows = {row["method"]: row for row in found["rows"]}
    assert rows["bias"]["step_ms"] == pytest.approx(4.0) and rows["bias"]["score_ms"] == pytest.approx(1.0)
    assert not rows["bias"]["extrapolated"] and rows["s2a"]["hours"] is None
    assert found["hardware"]["gpu"] == "a card" and found["load"] is None
    # Twice the time of an epoch and of scoring: twice the hours.
    assert main([*NARROW, "--measured", measured(tmp_path, epoch_seconds=8.0, scoring_seconds=2.0), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["hours"] == pytest.approx(2 * found["hours"])


def test_the_page_says_whose_times_they_are(tmp_path: Path, capsys: Any) -> None:
    assert main([*NARROW, "--measured", measured(tmp_path)]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Hardware: a card, 1 threads." in said and "1 rows unknown and not counted" in said


def test_another_batch_is_that_of_the_same_config(tmp_path: Path, capsys: Any) -> None:
    """Not the middle of all configs of the method."""
    path = Path(measured(tmp_path, name="s2a", method="s2a", epoch_seconds=3.0))
    content = json.loads(path.read_text())
    for seconds, options in ((5.0, {"activations": "lean"}), (7.0, {"preset": "plus"})):
        content["epochs"].append({**content["epochs"][0], "options": options, "epoch_seconds": seconds})
    path.write_text(json.dumps(content))
    assert main([*NARROW, "--batch-size", "64", "--measured", str(path), "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["s2a"]["step_ms"] == pytest.approx(3.0) and rows["s2a"]["extrapolated"]


def test_another_batch_is_extrapolated(tmp_path: Path, capsys: Any) -> None:
    path = measured(tmp_path, train={"batch_size": 64, "precision": "fp32"})
    assert main([*NARROW, "--measured", path, "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["bias"]["extrapolated"] and rows["bias"]["step_ms"] == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not a file that benchmarks/device.py wrote"),
        ("[]", "is not a file that benchmarks/device.py wrote"),
        ('{"hardware": {}}', "is not a file that benchmarks/device.py wrote (KeyError('cpu'))"),
        ('{"hardware": {"cpu": "x", "threads": 1}}', "wrote (KeyError('epochs'))"),
        ('{"hardware": {"cpu": "x", "threads": 1}, "epochs": []}', "has no measured epoch"),
        ("[" * 100_000, "is not a file that benchmarks/device.py wrote"),
        ('{"hardware": {}, "epochs": [{"method": "nobody"}]}', "is not a file that benchmarks/device.py wrote"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, capsys: Any, content: str, sentence: str) -> None:
    path = tmp_path / "device.json"
    path.write_text(content)
    assert main([*NARROW, "--measured", str(path)]) == 2
    assert sentence in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(
    "changes",
    [
        {"epoch_seconds": 0.0},
        {"images": 0},
        {"epoch_seconds": float("nan")},
        {"epoch_seconds": 10**400},
        {"train": None},
        {"train": []},
        {"peak_mb": "much"},
        {"method": "nobody"},
        {"options": {"width": "wide"}},
    ],
)
def test_times_that_are_none(tmp_path: Path, capsys: Any, changes: dict[str, Any]) -> None:
    assert main([*NARROW, "--measured", measured(tmp_path, **changes)]) == 2
    assert "is not a file that benchmarks/device.py wrote" in " ".join(capsys.readouterr().err.split())


def test_all_mistakes_at_once(tmp_path: Path, capsys: Any) -> None:
    wrong = ["--measured", str(tmp_path / "none.json"), "--seconds", "3", "--device", "cuda"]
    assert main([*NARROW, *wrong, "--records", str(tmp_path)]) == 2
    said = " ".join(capsys.readouterr().err.split())
    for part in (
        "--records and --measured both say",
        "--seconds 3 has no effect",
        "--device cuda has no effect",
        "none.json is not a file",
    ):
        assert part in said
