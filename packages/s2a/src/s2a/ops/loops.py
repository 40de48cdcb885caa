"""What repeats in a training step, turns of a loop and calls of a function: a simulation of memory need not run all."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


class Shortener(Protocol):
    """What a simulation does with such a loop."""

    def shorten(self, parts: Sequence[T], keeps: bool) -> Sequence[T]:
        """The parts to run; what the others would have kept is accounted for while they are iterated over."""
        ...

    def once(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """The result of a call that may be like one before it."""
        ...

    def copy_out(self, tensor: Tensor) -> Tensor:
        """A copy in memory that does not count (``s2a.ops.offload``)."""
        ...

    def copy_back(self, tensor: Tensor) -> Tensor:
        """A copy of such a copy, which counts for as much as the tensor did that it was made of."""
        ...


_active: dict[int, Shortener] = {}
"""Thread -> the simulation that runs in it."""


def running_simulation() -> Shortener | None:
    """The simulation that runs on this thread."""
    return _active.get(threading.get_ident()) if _active else None


def alike(parts: Sequence[T], keeps: bool = True) -> Sequence[T]:
    """The parts of a loop: all of them, but under a simulation some of many.

    To be put around the parts of a loop whose turns do the same but for the last, which may be smaller. What a turn
    makes is either gone by the end of the next one or stays for as long as what the other turns made; no result's
    *shape* may depend on how many turns there were.

    Args:
        parts: One per turn.
        keeps: Whether anything that a turn makes is there when the loop has ended.
    """
    if not _active or torch.compiler.is_compiling():
        return parts
    simulation = running_simulation()
    return parts if simulation is None else simulation.shorten(parts, keeps)


def repeated(function: Callable[..., T]) -> Callable[..., T]:
    """A function that is called many times alike, by every block of a model: a simulation runs such calls once.

    To be put on a function that has nothing but its arguments and returns nothing but tensors and ``None``, in tuples
    and lists. Arguments come by position; the first is hashable and has no tensors, the others are tensors and plain
    values. What a call does may depend on shapes, dtypes and these values alone, it runs no module, and what it makes
    is gone when it ends unless it is returned. Where gradients are on, every call runs: inside of an autograd function
    they are off.
    """

    @functools.wraps(function)
    def call(*args: Any) -> T:
        if not _active or torch.compiler.is_compiling():
            return function(*args)
        simulation = running_simulation()
        return function(*args) if simulation is None else simulation.once(function, args)

    return call


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
