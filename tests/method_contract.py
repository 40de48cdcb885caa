"""The checks of ``s2a.testing``, for tests that run them on a method: the quick ones in both rings, all in the full."""

from __future__ import annotations

import pytest
from s2a import testing

QUICK = tuple(check for check in testing.CHECKS if check not in testing.SLOW_CHECKS)

IN_BOTH_RINGS = pytest.mark.parametrize(
    "checks",
    [
        pytest.param(QUICK, id="quick"),
        pytest.param(testing.SLOW_CHECKS, id="compile and learning", marks=pytest.mark.full),
    ],
)
"""For options of a method whose default config ``test_conformance`` compiles and trains in both rings."""
