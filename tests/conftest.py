"""Settings of all tests: two rings, one thread, fixed seeds, hypothesis without deadlines (the machine may be busy).

Nothing here imports torch: tests that need none (tables, readers, splits, records, reports) start in a second.
"""

from __future__ import annotations

import sys
from pathlib import Path

import hypothesis
import pytest
from test_selection import outside_the_fast_ring

hypothesis.settings.register_profile("tests", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--full", action="store_true", help="Run the full ring: every test, with all its combinations.")


def pytest_report_header(config: pytest.Config) -> str:
    return "ring: full" if config.getoption("full") else "ring: fast (--full runs everything)"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what only the full ring runs, and puts long tests first: at the end no process waits for the other."""
    if not config.getoption("full"):
        outside = set(outside_the_fast_ring(items))
        config.hook.pytest_deselected(items=[item for item in items if item in outside])
        items[:] = [item for item in items if item not in outside]
    items.sort(key=lambda item: not any(item.get_closest_marker(mark) for mark in ("ray", "long")))


@pytest.fixture(autouse=True)
def _seed() -> None:
    """One thread and a fixed seed for torch, where a test has imported it."""
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)
        torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A temporary folder that all processes of this run share; lock what is written there."""
    own = tmp_path_factory.getbasetemp()
    folder = (own if worker_id == "master" else own.parent) / "shared"
    folder.mkdir(exist_ok=True)
    return folder
