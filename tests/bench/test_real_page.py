"""docs/real.md says what its records say."""

from __future__ import annotations

import collections
import gzip
import json
import runpy
import statistics
from pathlib import Path
from typing import Any

DOCS = Path(__file__).resolve().parents[2] / "docs"
TASKS = ["caltech101", "cifar10_1k", "scene_count", "scene_location", "scene_orientation"]


def test_the_tables_are_those_of_the_script():
    module = runpy.run_path(str(DOCS / "reference/write_real.py"))
    page = (DOCS / "real.md").read_text()
    assert page == module["fill"](page), "run python docs/reference/write_real.py"


def test_every_row_is_that_of_one_method_in_the_records():
    """Means and deviations over the seeds, computed from the lines of the file alone."""
    found: dict[str, dict[str, list[float]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    unlearned = set()
    with gzip.open(DOCS / "records/real.jsonl.gz", "rt") as lines:
        for record in map(json.loads, lines):
            if record["data_config"]["size"] == 112:
                form = record["method"] + json.dumps(record["method_config"], sort_keys=True)
                found[form][record["dataset"]].append(record["accuracy"])
                if record["did_not_learn"]:
                    unlearned.add((form, record["dataset"]))
    expected = [
        [_text(accuracies[task]) + " †" * ((form, task) in unlearned) for task in TASKS]
        for form, accuracies in found.items()
    ]
    rows = _rows((DOCS / "real.md").read_text(), "accuracies")
    assert sorted([row[task] for task in TASKS] for row in rows) == sorted(expected)
    for row in rows:
        if not row["mean of 5 tasks"].startswith("—"):
            mean = statistics.mean(_number(row[task]) for task in TASKS)
            assert abs(mean - _number(row["mean of 5 tasks"])) <= 0.1


def test_a_difference_is_that_of_two_means():
    page = (DOCS / "real.md").read_text()
    means = {row["method"]: row["mean of 5 tasks"] for row in _rows(page, "accuracies")}
    for row in _rows(page, "differences"):
        if not means[row["method"]].startswith("—"):
            between = _number(means[row["method"]]) - _number(means["s2a, plus"])
            assert abs(between - _number(row["minus s2a, plus"])) <= 0.1 + 1e-9


def _rows(page: str, name: str) -> list[dict[str, Any]]:
    table = page.split(f"<!-- {name}:")[1].split(f"<!-- end of {name}")[0].replace("\\", "")
    head, _, *rows = [line.strip("| ").split(" | ") for line in table.splitlines() if line[:2] == "| "]
    return [dict(zip(head, row + [""] * (len(head) - len(row)), strict=True)) for row in rows]


def _text(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}" if values else "—"


def _number(text: str) -> float:
    return float(text.split()[0])
