"""docs/real.md says what its records say."""

from __future__ import annotations

import collections
import gzip
import json
from pathlib import Path

DOCS = Path(__file__).resolve().parents[2] / "docs"
TASKS = ["caltech101", "cifar10_1k", "scene_count", "scene_location", "scene_orientation"]


def test_every_row_is_that_of_one_method_in_the_records():
    accuracies: dict[str, dict[str, str]] = collections.defaultdict(dict)
    with gzip.open(DOCS / "records/real.jsonl.gz", "rt") as lines:
        for record in map(json.loads, lines):
            form = record["method"] + json.dumps(record["method_config"], sort_keys=True)
            accuracies[form][record["dataset"]] = f"{record['accuracy']:.1f}"
    rows = [line.strip("| ").split(" | ") for line in (DOCS / "real.md").read_text().splitlines() if line[:2] == "| "]
    head = [name.replace("\\", "") for name in rows[0]]
    found = [dict(zip(head, row, strict=True)) for row in rows[2:]]
    wanted = [{task: row[task] for task in TASKS if row[task] != "—"} for row in found]
    assert sorted(map(str, wanted)) == sorted(str({t: a[t] for t in TASKS if t in a}) for a in accuracies.values())
    for row in found:
        if not row["mean of 5 tasks"].startswith("—"):
            mean = sum(float(row[task]) for task in TASKS) / 5
            assert abs(mean - float(row["mean of 5 tasks"])) <= 0.1
