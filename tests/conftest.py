"""Settings of all tests: one thread, fixed seeds, hypothesis without deadlines (the machine may be busy)."""

from __future__ import annotations

import hypothesis
import pytest
import torch

torch.set_num_threads(1)
hypothesis.settings.register_profile("tests", deadline=None, max_examples=25, derandomize=True, database=None)
hypothesis.settings.load_profile("tests")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
