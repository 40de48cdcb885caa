"""What of the tests the fast ring runs; the full one (``--full``) runs everything."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest


def outside_the_fast_ring(items: Sequence[Any]) -> list[Any]:
    """Tests marked ``full``, and the combinations of an ``each_value`` test that show no new value of a parameter.

    The combinations that stay are chosen greedily: always the first of those with the most values not shown yet.

    Args:
        items: Collected tests, as pytest gives them.
    """
    outside: list[Any] = []
    sampled: dict[str, list[Any]] = {}
    for item in items:
        if item.get_closest_marker("full") is not None:
            outside.append(item)
        elif item.get_closest_marker("each_value") is not None:
            sampled.setdefault(item.nodeid.partition("[")[0], []).append(item)
    for combinations in sampled.values():
        values = {item: set(item.callspec.indices.items()) for item in combinations}
        missing = set[tuple[str, int]]().union(*values.values())
        while missing:
            best = max(values, key=lambda item: len(values[item] & missing))
            missing -= values.pop(best)
        outside += values
    return outside


def split_rings(values: Sequence[Any], *, fast: Sequence[Any]) -> list[Any]:
    """Values for ``parametrize``; those that are not in ``fast`` run in the full ring alone."""
    assert all(value in values for value in fast)
    return [
        pytest.param(
            *(value if isinstance(value, tuple) else (value,)), marks=[] if value in fast else [pytest.mark.full]
        )
        for value in values
    ]
