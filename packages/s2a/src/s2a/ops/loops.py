"""Loops over the chunks of a tensor, whose turns all do the same: a simulation of memory need not run every one."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from typing import Protocol, TypeVar

import torch

T = TypeVar("T")


class Shortener(Protocol):
    """What a simulation does with such a loop."""

    def shorten(self, parts: Sequence[T]) -> Sequence[T]:
        """The parts to run; what the others would have kept is accounted for while they are iterated over."""
        ...


_active: dict[int, Shortener] = {}
"""Thread -> the simulation that runs in it."""


def alike(parts: Sequence[T]) -> Sequence[T]:
    """The parts of a loop: all of them, but under a simulation some of many.

    To be put around the parts of a loop whose turns do the same but for the last, which may be smaller. What a turn
    makes is either gone by the end of the next one or stays for as long as what the other turns made; no result's
    *shape* may depend on how many turns there were.

    Args:
        parts: One per turn.
    """
    if not _active or torch.compiler.is_compiling():
        return parts
    simulation = _active.get(threading.get_ident())
    return parts if simulation is None else simulation.shorten(parts)


@contextlib.contextmanager
def shortened_by(simulation: Shortener) -> Iterator[None]:
    """Within the block this thread's loops are shortened."""
    thread = threading.get_ident()
    before = _active.get(thread)
    _active[thread] = simulation
    try:
        yield
    finally:
        if before is None:
            del _active[thread]
        else:
            _active[thread] = before
