"""Which source files checkpoints and cached features depend on."""

from __future__ import annotations

import ast
import importlib
import shutil
from pathlib import Path

import pytest
import s2a
import s2a_baselines
import s2a_bench
from s2a_bench.cells import source_code

FOLDERS = {module.__name__: Path(str(module.__file__)).parent for module in (s2a, s2a_baselines, s2a_bench)}


@pytest.fixture(scope="module")
def copied(tmp_path_factory) -> dict[str, Path]:
    """The three packages, to be edited."""
    root = tmp_path_factory.mktemp("packages")
    return {
        name: Path(shutil.copytree(folder, root / name, ignore=shutil.ignore_patterns("*.pyc", "_data")))
        for name, folder in FOLDERS.items()
    }


def changes(copied: dict[str, Path], package: str, name: str) -> bool:
    """Whether a comment at the end of a file changes the identity."""
    path = copied[package] / name
    text, before = path.read_text(), source_code.source_id(copied)
    path.write_text(text + "# a comment\n")
    try:
        return source_code.source_id(copied) != before
    finally:
        path.write_text(text)


@pytest.mark.parametrize(
    ("package", "name"),
    [
        ("s2a", "s2a_method.py"),
        ("s2a", "lean/attention.py"),
        ("s2a_baselines", "lora.py"),
        ("s2a_bench", "config.py"),
        ("s2a_bench", "cells/train.py"),
        ("s2a_bench", "cells/features.py"),
        ("s2a_bench", "cells/backbones.py"),
        ("s2a_bench", "data/loading.py"),
        ("s2a_bench", "data/mini/render.py"),
    ],
)
def test_what_decides_a_training_changes_the_identity(copied, package, name):
    assert changes(copied, package, name)


@pytest.mark.parametrize(
    "name",
    [
        "reports/html.py",
        "reports/figures/scatter.py",
        "cli/main.py",
        "tracking/runs.py",
        "sweeps/plan.py",
        "sweeps/ray/pool.py",
        "audit/epochs.py",
        "cells/estimate.py",
        "data/http.py",
        "failures.py",
    ],
)
def test_what_only_shows_or_passes_on_does_not(copied, name):
    assert not changes(copied, "s2a_bench", name)


def test_a_new_name_and_a_missing_file_change_it(copied):
    before, path = source_code.source_id(copied), copied["s2a_bench"] / "cells" / "train.py"
    path.rename(path.with_name("training.py"))
    try:
        assert source_code.source_id(copied) != before
    finally:
        path.with_name("training.py").rename(path)
    assert source_code.source_id(copied) == before == source_code.source_id(FOLDERS)


def imported(path: Path) -> set[str]:
    """Modules of ``s2a_bench`` that a file imports anywhere in it, as paths in the package."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    parts = [Path(*name.split(".")[1:]) for name in names if name.startswith("s2a_bench.")]
    paths = [path for part in parts for path in (part.with_suffix(".py"), part / "__init__.py")]
    return {path.as_posix() for path in paths if (FOLDERS["s2a_bench"] / path).is_file()}


def test_nothing_that_a_cell_runs_through_is_left_out():
    """Everything below ``cells`` and ``data`` that ``cells.run`` imports, directly or not, is in the identity."""
    waiting, seen = ["cells/run.py"], set()
    while waiting:
        name = waiting.pop()
        if name not in seen:
            seen.add(name)
            waiting += imported(FOLDERS["s2a_bench"] / name)
    assert {"cells/train.py", "cells/backbones.py", "data/loading.py", "data/table/rows.py", "config.py"} <= seen
    inside = {name for name in seen if name == "config.py" or name.startswith(("cells/", "data/"))}
    assert all(source_code.decides_training("s2a_bench", name) for name in inside)
    assert {name.partition("/")[0] for name in seen - inside} <= {
        "failures.py",
        "files",
        "errors.py",
        "assets.py",
    }


def test_every_file_left_out_exists():
    for name in source_code._BENCH_LEFT_OUT:
        assert (FOLDERS["s2a_bench"] / name).exists(), name


def test_the_code_of_a_method_from_elsewhere_counts(tmp_path, monkeypatch):
    (tmp_path / "their_method.py").write_text("x = 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    importlib.import_module("their_method")
    source_code.code_id.cache_clear()
    first = source_code.code_id("their_method")
    (tmp_path / "their_method.py").write_text("x = 2\n")
    source_code.code_id.cache_clear()
    assert len({first, source_code.code_id("their_method"), source_code.code_id("s2a_baselines.bias")}) == 3
