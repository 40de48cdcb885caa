"""Passes of several adapters over one batch, in step: products with the backbone's own weights are made together.

Every pass runs as a coroutine (``greenlet``) over its own images. Where it comes to a frozen linear layer, convolution
or norm it hands in its input and waits; when all wait, the layer that comes first in the backbone runs once, on the
inputs of all that wait there, and these go on. A pass that skips a layer, or has more tokens than others, holds nobody
up: inputs of one layer are joined by rows (linear layers, norms) or where their maps have one size (convolutions).

What belongs to one adapter alone (its biases, prompts, updates, branches, attention between its tokens) runs in its
pass. Greenlets share their thread, so that autocast, gradient mode and streams are the caller's.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2a.activations import use_plain_forwards
from s2a.backbones import calls

greenlet: Any
try:
    import greenlet
except ImportError:
    greenlet = None

log = logging.getLogger("s2a")

_PLAIN_NORMS = ("torch.nn.modules.normalization", "timm.layers.norm")


class _Now(threading.local):
    meeting: Meeting | None = None


_now = _Now()


@dataclasses.dataclass(frozen=True)
class Meet:
    """What a pass waits for: a layer of the backbone, and the input it has for it.

    Attributes:
        place: Of the layer among those of the backbone.
        layer: The pass's own module of that layer.
        x: Its input.
        shares_bias: Whether the layer's bias is the backbone's too.
    """

    place: int
    layer: Any
    x: Tensor
    shares_bias: bool

    @property
    def form(self) -> tuple[Any, ...]:
        """Inputs of one form can be joined."""
        maps = isinstance(self.layer, nn.Conv2d)
        return self.place, tuple(self.x.shape[1:] if maps else self.x.shape[-1:]), self.x.dtype


class Meeting:
    """Runs passes in step; see the module."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Any, Meet]] = []
        self._calls: dict[Any, list[Any]] = {}

    def run(self, passes: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
        """Results of the passes, in their order; the first error of one of them ends all."""
        results: list[Any] = [None] * len(passes)

        def start(index: int) -> None:
            results[index] = passes[index]()

        workers = [greenlet.greenlet(functools.partial(start, i)) for i in range(len(passes))]
        self._calls = {worker: [] for worker in workers}
        before, _now.meeting = _now.meeting, self
        try:
            for worker in workers:
                self._resume(worker)
            while self._waiting:
                self._make_first()
        finally:
            _now.meeting = before
            self._waiting = []
            for worker in workers:  # After an error: their contexts end.
                if worker and not worker.dead:
                    with calls.exchanged(self._calls[worker]):
                        worker.throw()
        return results

    def meet(self, request: Meet) -> Tensor:
        """Called in a pass: the layer's output for its input, once all have come as far as they can."""
        return greenlet.getcurrent().parent.switch(request)

    def _resume(self, worker: Any, value: Tensor | None = None) -> None:
        """Lets a pass run until it waits or ends."""
        # What a pass keeps for its hooks lies on the thread's stack, which is put aside while others run.
        with calls.exchanged(self._calls[worker]):
            request = worker.switch() if value is None else worker.switch(value)
        if not worker.dead:
            self._waiting.append((worker, request))

    def _make_first(self) -> None:
        """Runs the first of the layers that are waited for, and lets those who waited go on."""
        first = min(self._waiting, key=lambda entry: entry[1].place)[1].form
        together = [entry for entry in self._waiting if entry[1].form == first]
        self._waiting = [entry for entry in self._waiting if entry[1].form != first]
        outputs = joined([request for _, request in together])
        for (worker, _), output in zip(together, outputs, strict=True):
            self._resume(worker, output)


def joined(requests: Sequence[Meet]) -> list[Tensor]:
    """The outputs of one layer for several inputs: one product, and where biases differ each one's own added."""
    if len(requests) == 1:
        request = requests[0]
        return [type(request.layer).forward(request.layer, request.x)]
    layer, inputs = requests[0].layer, [request.x for request in requests]
    same = all(request.shares_bias for request in requests)
    bias = layer.bias if same else None
    if isinstance(layer, nn.Conv2d):
        parts = layer._conv_forward(torch.cat(inputs), layer.weight, bias).split([len(x) for x in inputs])
        return [part if same else part + request.layer.bias[:, None, None] for part, request in _each(parts, requests)]
    rows = torch.cat([x.flatten(0, -2) for x in inputs])
    if isinstance(layer, nn.Linear):
        y = F.linear(rows, layer.weight, bias)
    else:
        y = F.layer_norm(rows, layer.normalized_shape, layer.weight, bias, layer.eps)
    pieces = y.split([x.shape[:-1].numel() for x in inputs])
    parts = [piece.view(*x.shape[:-1], -1) for piece, x in zip(pieces, inputs, strict=True)]
    return [part if same else part + request.layer.bias for part, request in _each(parts, requests)]


def _each(parts: Sequence[Tensor], requests: Sequence[Meet]) -> Any:
    return zip(parts, requests, strict=True)


def install(copied: nn.Module, places: dict[int, int]) -> int:
    """Makes the layers of a shared copy of a backbone meet those of other copies.

    Args:
        copied: Of ``share_copy``, its method attached.
        places: Address of a shared weight -> place of its layer in the backbone.

    Returns:
        How many layers do.
    """
    count = 0
    use_plain_forwards(copied)
    for layer in copied.modules():
        weight = getattr(layer, "weight", None)
        if not isinstance(weight, Tensor) or "forward" in layer.__dict__ or not _joins(layer):
            continue
        place = places.get(weight.data_ptr())
        if place is None:
            continue
        bias: Any = layer.bias
        shares = bias is None or bias.data_ptr() in places
        layer.forward = functools.partial(_forward, layer, place, shares)
        count += 1
    return count


def _joins(layer: nn.Module) -> bool:
    """Whether a layer's output for a row or an image depends on that alone, by the usual rule of weight and bias."""
    if type(layer) is nn.Linear:
        return True
    if type(layer) is nn.Conv2d:
        return layer.padding_mode == "zeros"
    plain = type(layer).__module__ in _PLAIN_NORMS and type(layer).__name__ == "LayerNorm"
    return isinstance(layer, nn.LayerNorm) and plain and len(layer.normalized_shape) == 1


def _forward(layer: Any, place: int, shares_bias: bool, x: Tensor) -> Tensor:
    meeting = _now.meeting
    if meeting is None:
        return type(layer).forward(layer, x)
    return meeting.meet(Meet(place, layer, x, shares_bias))


def run_together(passes: Sequence[Callable[[], Tensor]]) -> list[Tensor]:
    """Results of passes over copies of one backbone; without ``greenlet``, or of one alone, one after the other."""
    if len(passes) == 1:
        return [passes[0]()]
    if greenlet is None:
        _say_once()
        return [run() for run in passes]
    return Meeting().run(passes)


@functools.cache
def _say_once() -> None:
    log.warning(
        "greenlet is not installed: the tasks of a mixed batch run one after the other, each with products of its own. "
        "The logits are the same; pip install greenlet makes it faster."
    )
