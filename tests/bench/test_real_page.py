"""docs/real.md says what its records say."""

from __future__ import annotations

import collections
import gzip
import json
import runpy
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
PAGE = (DOCS / "real.md").read_text()
TASKS = ["caltech101", "cifar10_1k", "scene_count", "scene_location", "scene_orientation"]


def test_the_tables_are_those_of_the_script():
    module = runpy.run_path(str(DOCS / "reference/write_real.py"))
    assert module["fill"](PAGE) == PAGE, "run python docs/reference/write_real.py"


def test_every_row_is_that_of_one_method_in_the_records():
    """Means and deviations over the seeds, computed from the lines of the file alone."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    for record in _records(112):
        found[_label(record)][record["dataset"]].append(record)
    rows = {row["method"]: row for row in _rows("accuracies")}
    costs = {row["method"]: row for row in _rows("differences")}
    assert rows.keys() == costs.keys() == found.keys()
    for label, cells in found.items():
        row = rows[label]
        assert {task: row[task.removeprefix("scene_")] for task in TASKS} == {
            task: _text(cells[task]) for task in TASKS
        }
        means = {key: statistics.mean(_mean(cells[task], key) for task in TASKS) for key in ("accuracy", "measured_mb")}
        assert row["mean of 5 tasks"].split()[0] == f"{means['accuracy']:.1f}"
        assert costs[label]["measured MB"] == f"{means['measured_mb']:.1f}"


def test_a_difference_is_that_of_two_means():
    means = {row["method"]: _number(row["mean of 5 tasks"]) for row in _rows("accuracies")}
    rows = {row["method"]: row["minus s2a, plus"] for row in _rows("differences")}
    assert rows.pop("s2a, plus") == "—" and rows.keys() == means.keys() - {"s2a, plus"}
    for method, difference in rows.items():
        between = means[method] - means["s2a, plus"]
        assert abs(between - _number(difference)) <= 0.1 + 1e-9


def test_what_is_said_of_cost_and_of_224_pixels():
    seconds = [record["wall_seconds"] for record in _records()]
    mean = round(statistics.mean(seconds))
    assert f"The {len(seconds)} trainings took {sum(seconds) / 3600:.1f} hours of a core" in PAGE
    assert f"{mean // 60}:{mean % 60:02} each on average" in PAGE
    large = {_label(record): record for record in _records(224)}
    said = [f"{r['accuracy']:.1f} with {r['measured_mb']:,.0f} MB" for r in (large["s2a, plus"], large["lora"])]
    assert f"S2A+ {said[0].removesuffix(' MB')} MB measured, LoRA {said[1]}" in PAGE


def _records(pixels: int | None = None) -> Iterator[dict[str, Any]]:
    with gzip.open(DOCS / "records/real.jsonl.gz", "rt") as lines:
        for record in map(json.loads, lines):
            if pixels in (None, record["data_config"]["size"]):
                yield record


def _label(record: dict[str, Any]) -> str:
    config = record["method_config"]
    if record["method"] != "s2a":
        return str(record["method"])
    if config.get("update_rank"):
        return "s2a, plus"
    if config["levels"] == "paper":
        return "s2a, paper levels"
    return "s2a" if config["activations"] == "paper" else f"s2a, {config['activations']}"


def _rows(name: str) -> list[dict[str, str]]:
    table = PAGE.split(f"<!-- {name}:")[1].split(f"<!-- end of {name}")[0].replace("\\", "")
    head, _, *rows = [
        [cell.strip() for cell in line.strip().strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"
    ]
    return [dict(zip(head, row, strict=True)) for row in rows]


def _mean(records: list[dict[str, Any]], key: str) -> float:
    return statistics.mean(record[key] for record in records)


def _text(records: list[dict[str, Any]]) -> str:
    values = [record["accuracy"] for record in records]
    mark = " †" if any(record["did_not_learn"] for record in records) else ""
    return f"{statistics.mean(values):.1f} ± {statistics.stdev(values):.1f}{mark}"


def _number(text: str) -> float:
    return float(text.split()[0])
