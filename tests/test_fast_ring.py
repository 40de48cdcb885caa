"""The fast ring shows every value of every parameter; tests that need no torch start without it."""

from __future__ import annotations

import dataclasses
import itertools
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from test_selection import outside_the_fast_ring

HERE = Path(__file__).parent
TORCH_FREE = [
    "test_datasets",
    "test_download",
    "test_download_faults",
    "test_download_hub",
    "test_mini_tasks",
    "test_paired_differences",
    "test_predict_paths",
    "test_prepare",
    "test_prepare_killed",
    "test_records_file",
    "test_report",
    "test_report_compare",
    "test_report_sweeps",
    "test_report_terminal",
    "test_report_variants",
    "test_runtime",
    "test_search_views",
    "test_serving_body",
    "test_serving_catalogue",
    "test_serving_request",
    "test_source_arrays",
    "test_source_arrays_broken",
    "test_source_clevr",
    "test_source_folders",
    "test_source_folders_listed",
    "test_source_hub",
    "test_source_listed",
    "test_source_retinopathy",
    "test_source_tfds",
    "test_source_tfds_broken",
    "test_source_tfrecord",
    "test_splits",
    "test_stats",
    "test_tfds_order",
    "test_tree",
]
"""Of ``tests/bench``: tables, readers, splits, records, reports."""


@dataclasses.dataclass(eq=False)
class Item:
    """What the choice asks of a collected test."""

    nodeid: str
    marks: tuple[str, ...]
    callspec: Any

    def get_closest_marker(self, name: str) -> object | None:
        return name if name in self.marks else None


def grid(name: str, sizes: list[int], *marks: str) -> list[Item]:
    parameters = itertools.product(*map(range, sizes))
    return [
        Item(f"{name}[{i}]", marks, SimpleNamespace(indices=dict(enumerate(indices))))
        for i, indices in enumerate(parameters)
    ]


@given(st.lists(st.integers(1, 6), min_size=1, max_size=3), st.randoms())
def test_every_value_is_shown_by_few_combinations(sizes, random):
    items = grid("sampled", sizes, "each_value")
    random.shuffle(items)
    others = [*grid("whole", [3]), *grid("big", [2, 2], "full"), *grid("both", [2, 2], "each_value", "full")]
    outside = outside_the_fast_ring([*others, *items])
    left = [item for item in items if item not in outside]
    for parameter, size in enumerate(sizes):
        assert {item.callspec.indices[parameter] for item in left} == set(range(size))
    assert max(sizes) <= len(left) <= sum(sizes)
    assert {item.nodeid for item in outside if item not in items} == {i.nodeid for i in others if "full" in i.marks}


def collected(*arguments: str) -> tuple[list[str], list[str]]:
    """What pytest collects in a process of its own, and which large libraries that imports."""
    code = (
        "import pytest, sys\n"
        "class Seen:\n"
        "    def pytest_collection_finish(self, session):\n"
        "        print(*(item.nodeid for item in session.items), sep='\\n')\n"
        "code = pytest.main(['-q', '-p', 'no:cacheprovider', '--collect-only', *sys.argv[1:]], [Seen()])\n"
        "print('imported', *({'torch', 'timm', 'torchvision', 'ray', 'mlflow'} & sys.modules.keys()))\n"
        "sys.exit(code)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    environment = {name: value for name, value in environment.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, cwd=HERE.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    return [line for line in lines if "::" in line], lines[-1].split()[1:]


def test_tests_of_tables_readers_and_reports_start_without_torch():
    tests, imported = collected(*(str(HERE / "bench" / f"{name}.py") for name in TORCH_FREE))
    assert not imported
    assert {Path(test.partition("::")[0]).stem for test in tests} == set(TORCH_FREE)
