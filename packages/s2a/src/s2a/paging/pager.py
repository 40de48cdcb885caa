"""Copies paged weights to the device: when they are used, or one layer earlier.

A paged weight's parameter is its home: it lies in host memory or in a mapped file, and everything that reads a model's
values (``state_dict``, fingerprints, merging) reads it there. What computes with it asks for a copy, uses it and lets
it go; nothing keeps a copy for the backward pass, which asks again. Copies are made on a CPU too, so that what a
simulation counts there is what a card would hold.

Prefetching. Layers run in the same order step after step, but in another one forward and backward. The order is learned
as pairs: (backward?, layer before, layer now) -> layer next. When a layer asks for its copy, that of the next one is
started, on a stream of its own: at most one copy more is held. A guess that was wrong is dropped.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor


@dataclasses.dataclass(eq=False)
class _Early:
    """A copy that was started before it was asked for.

    Attributes:
        index: Of the layer.
        copy: The copy.
        done: Event of the stream that copies; ``None``: it is there.
    """

    index: int
    copy: Tensor
    done: Any = None

    def wait(self) -> Tensor:
        """The copy, from now on complete for what is queued on the current stream."""
        if self.done is not None:
            cuda.current_stream(self.copy.device).wait_event(self.done)
            self.done = None
        return self.copy

    def __del__(self) -> None:
        # Its bytes are reused in the order of the stream that computes; that must not be before they are written.
        if self.done is not None:
            self.wait()


class _Chain:
    """The layers that asked, in one direction on one thread."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.previous = self.current = -1
        self.early: _Early | None = None


class _Local(threading.local):
    def __init__(self) -> None:
        self.chains: dict[bool, _Chain] = {}
        self.streams: dict[torch.device, Any] = {}
        self.held: dict[Any, Tensor] | None = None


cuda: Any = torch.cuda

_not_compiled: Any = torch.compiler.disable  # the type PyTorch gives it takes no methods


class Pager:
    """Fetches the paged weights of one model.

    Attributes:
        prefetch: Whether the next copy is made early; ``None``: on CUDA.
        pins: Whether homes are pinned where the model is on a card; else they are in a file.
        layers: The layers whose weights are paged, in the order of a forward pass.
    """

    def __init__(self, prefetch: bool | None, pins: bool) -> None:
        self.prefetch = prefetch
        self.pins = pins
        self.layers: list[nn.Module] = []
        self._order: dict[tuple[bool, int, int], int] = {}
        self._passes = 0
        self._local = _Local()

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles: without what belongs to a running pass."""
        return {**self.__dict__, "_local": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _local=_Local())

    def prefetches(self, device: torch.device) -> bool:
        """Whether copies for that device are made early."""
        return device.type == "cuda" if self.prefetch is None else self.prefetch

    def pins_for(self, device: torch.device) -> bool:
        """Whether homes are pinned where the model is on that device."""
        return self.pins and device.type == "cuda"

    def begin(self, module: nn.Module, args: Any) -> None:
        """Forward pre-hook of the whole model: what was learned does not go from the end of one pass to the next."""
        self._passes += 1
        self._local.chains.pop(False, None)

    @contextlib.contextmanager
    def holding(self) -> Iterator[None]:
        """Within it, on this thread, a copy that was made is there for whoever asks for it again: for chunks."""
        if self._local.held is not None:
            yield
            return
        self._local.held = {}
        try:
            yield
        finally:
            self._local.held = None

    def fetch(self, index: int, weight: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """As ``copy``, or what was copied before within ``holding``."""
        held = self._local.held
        if held is None:
            return self.copy(index, weight, device, dtype)
        key = index, tuple(weight.shape), device, dtype
        if key not in held:
            held[key] = self.copy(index, weight, device, dtype)
        return held[key]

    def copy(self, index: int, weight: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """A copy of a layer's weight for whoever asks, who lets it go after use.

        Args:
            index: Of the layer.
            weight: Its weight, or a view of it.
            device: Where to.
            dtype: Of the copy.
        """
        if not self.prefetches(device):
            return _copied(weight, device).to(dtype)
        backward = torch._C._current_autograd_node() is not None
        chain = self._local.chains.get(backward)
        if chain is None or (backward and chain.number != self._passes):  # Backward passes do not say when they begin.
            chain = self._local.chains[backward] = _Chain(self._passes)
        # 1. The copy that was started early, if it is this one; else a new one.
        early, chain.early = chain.early, None
        copy = early.wait() if early is not None and early.index == index else _copied(weight, device)
        del early
        # 2. That this layer comes after the two before is learned; the one that came next the last time is started.
        if chain.current >= 0:
            self._order[backward, chain.previous, chain.current] = index
        chain.previous, chain.current = chain.current, index
        following = self._order.get((backward, chain.previous, chain.current))
        if following is not None:
            home: Any = self.layers[following].weight
            chain.early = self._start(following, home.detach(), device)
        return copy.view(weight.shape).to(dtype)

    def _start(self, index: int, home: Tensor, device: torch.device) -> _Early:
        if not _is_asynchronous(home, device):
            return _Early(index, _copied(home, device))
        stream = self._local.streams.get(device)
        if stream is None:
            stream = self._local.streams[device] = cuda.Stream(device)
        # The bytes come from the pool of the stream that computes, which frees and reuses them in its own order. What
        # it has queued so far may still use them: the copy waits for that. ``record_stream`` is not needed, as whoever
        # takes or drops the copy waits for it; it would keep the bytes longer.
        compute = cuda.current_stream(device)
        copy = torch.empty(home.shape, dtype=home.dtype, device=device)
        stream.wait_event(compute.record_event())
        with cuda.stream(stream):
            copy.copy_(home, non_blocking=True)
            done = stream.record_event()
        return _Early(index, copy, done)


def _is_asynchronous(home: Tensor, device: torch.device) -> bool:
    return device.type == "cuda" and home.device != device and not isinstance(home, FakeTensor)


def _copied(weight: Tensor, device: torch.device) -> Tensor:
    """A new tensor with the weight's values and dtype on a device; a cast comes after it, on the device."""
    weight = weight.detach()
    if weight.device == device:
        return weight.clone(memory_format=torch.contiguous_format)
    return weight.contiguous().to(device, non_blocking=True)


@dataclasses.dataclass(eq=False)
class Page:
    """What a layer with a paged weight knows of it.

    Attributes:
        pager: Of the model.
        index: Of the layer.
        name: Of the weight in the backbone.
    """

    pager: Pager
    index: int
    name: str

    @_not_compiled
    def fetch(self, weight: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
        """See ``Pager.fetch``."""
        return self.pager.fetch(self.index, weight, device, dtype)


def page_of(layer: nn.Module) -> Page | None:
    """The page of a layer whose weight is paged."""
    return layer.__dict__.get("s2a_page")


def paged_weights(model: nn.Module) -> Iterator[nn.Parameter]:
    """The weights of a model that are paged."""
    for module in model.modules():
        weight = module._parameters.get("weight")
        if weight is not None and page_of(module) is not None:
            yield weight


def host_bytes(model: nn.Module) -> int:
    """Bytes of a model's weights that lie in host memory or in a file, and not on the device."""
    return sum(weight.numel() * weight.element_size() for weight in paged_weights(model))


def pager_of(model: nn.Module) -> Pager | None:
    """The pager of a model, if it has paged weights."""
    return next((page.pager for page in map(page_of, model.modules()) if page is not None), None)
