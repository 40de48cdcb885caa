"""Host memory for what is kept between forward and backward pass: codes are copied out, and back before they are used.

Autograd functions give what they keep to ``save`` and take it from ``load``. Within ``offloading`` it lies in host
memory in between, as saved tensors of the function: it is freed with the graph, and hooks from outside see it. In a
region with hooks of its own (gradient checkpointing, ``save_on_cpu``), and under ``torch.compile``, everything stays on
the device. What is on the device, of calls i of such functions in one pass:

    forward    codes of call i while they are copied out, until call i + 1 has its own, or the pass ends
    backward   codes of call i while they are used, and those of call i - 1, whose copy was started before

On CUDA copies run on a stream of their own. On a CPU they are made at the same places, at once: nothing is saved
there, but a simulation counts what a card would hold (copies that were sent out lie elsewhere for it).
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _autograd
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import TensorWeakRef

from s2a.ops.loops import running_simulation

cuda: Any = torch.cuda

_streams: dict[torch.device, Any] = {}
"""Card -> the stream that copies."""

_sent: dict[int, weakref.ref[Any]] = {}
"""Storages in host memory: their C++ objects, and weak references that take them out."""


class _Local(threading.local):
    def __init__(self) -> None:
        self.run: _Pass | None = None
        self.paused = False


_local = _Local()


@contextlib.contextmanager
def offloading() -> Iterator[None]:
    """Within the block, a forward pass on this thread, what ``save`` gets goes to host memory."""
    if _local.paused or _local.run is not None:
        yield
        return
    run = _local.run = _Pass()
    try:
        yield
    finally:
        _local.run = None
        run.settle()


@contextlib.contextmanager
def paused() -> Iterator[None]:
    """Within the block nothing goes to host memory, whatever ``offloading`` says."""
    before = _local.run, _local.paused
    _local.run, _local.paused = None, True
    try:
        yield
    finally:
        _local.run, _local.paused = before


def save(ctx: Any, tensors: Sequence[Tensor | None], kept: Sequence[Tensor]) -> None:
    """``ctx.save_for_backward(*tensors, *kept)``, where ``kept`` may go to host memory.

    Args:
        ctx: Of an autograd function.
        tensors: Parameters and what else stays where it is.
        kept: New tensors that nobody else holds.
    """
    ctx.sent = None
    if not torch.compiler.is_compiling() and kept and any(ctx.needs_input_grad):
        run = _local.run
        if run is not None and run.hooks == _hooks():
            kept, ctx.sent = run.send(kept)
    ctx.save_for_backward(*tensors, *kept)


def load(ctx: Any) -> tuple[Any, ...]:
    """``ctx.saved_tensors`` of a function that called ``save``, all on the device.

    To be called once in a backward pass: under gradient checkpointing every look unpacks anew.
    """
    saved: tuple[Any, ...] = ctx.saved_tensors
    call: _Call | None = ctx.sent
    if call is None:
        return saved
    first = len(saved) - len(call.hosts)
    return *saved[:first], *call.fetch(saved[first:])


def is_in_host(storage: torch.UntypedStorage) -> bool:
    """Whether a storage is that of such a copy in host memory."""
    return storage._cdata in _sent


class _Copies:
    """Copies under way between two memories.

    Attributes:
        tensors: Those on the device, sources or results.
        done: Event of the stream that copies; ``None``: they are complete.
    """

    def __init__(self, tensors: Sequence[Tensor], done: Any = None) -> None:
        self.tensors = tensors
        self.done = done

    def wait(self) -> Sequence[Tensor]:
        """The tensors; what is queued from now on comes after the copies."""
        if self.done is not None:
            cuda.current_stream(self.tensors[0].device).wait_event(self.done)
            self.done = None
        return self.tensors

    def __del__(self) -> None:
        # Their bytes are reused in the order of the stream that computes: not before the copies are complete.
        # ``record_stream`` would hold them until the host sees that, and it runs far ahead.
        self.wait()


class _Pass:
    """One forward pass.

    Attributes:
        hooks: The hooks on saved tensors at its start.
        last: The latest call.
    """

    def __init__(self) -> None:
        self.hooks = _hooks()
        self.last: _Call | None = None

    def settle(self) -> None:
        """What the latest call has sent is let go on the device."""
        if self.last is not None:
            self.last.leaving = None

    def send(self, kept: Sequence[Tensor]) -> tuple[list[Tensor], _Call]:
        """Copies in host memory, and what knows how they come back."""
        self.settle()
        hosts, done = _copy_out(kept)
        for host in hosts:
            _note(host)
        self.last = _Call(hosts, kept[0].device, _Copies(kept, done), self.last)
        return hosts, self.last


class _Call:
    """One call whose codes are in host memory.

    Attributes:
        hosts: The copies there, which the graph holds.
        device: Where they go back to.
        leaving: The tensors on the device that are still being copied out.
        before: The call before it in the forward pass: the next one in the backward pass.
        early: Copies on the device that were started before they were asked for.
    """

    def __init__(self, hosts: Sequence[Tensor], device: torch.device, leaving: _Copies, before: _Call | None) -> None:
        self.hosts = [TensorWeakRef(host) for host in hosts]
        self.device = device
        self.leaving: _Copies | None = leaving
        self.before = before
        self.early: _Copies | None = None

    def fetch(self, hosts: Sequence[Tensor]) -> Sequence[Tensor]:
        """The codes on the device; those of the call before are started on their way."""
        self.leaving = None
        early, self.early = self.early, None
        found = _copy_back(hosts, self.device) if early is None else early.wait()
        before = self.before
        while before is not None and not before._start():
            before = before.before
        return found

    def _start(self) -> bool:
        """Starts the copies to the device, if they are not started yet; ``False``: their graph is gone."""
        held = [reference() for reference in self.hosts]
        hosts = [host for host in held if host is not None]
        if len(hosts) < len(held):
            return False
        if self.early is None:
            self.leaving = None
            self.early = _start_back(hosts, self.device)
        return True


def _hooks() -> Any:
    """The innermost hooks on saved tensors."""
    return _autograd._top_saved_tensors_default_hooks(True)


def _note(host: Tensor) -> None:
    storage = host.untyped_storage()
    key = storage._cdata
    _sent[key] = weakref.ref(storage, lambda _: _sent.pop(key, None))


def _is_asynchronous(tensor: Tensor, device: torch.device) -> bool:
    return device.type == "cuda" and not isinstance(tensor, FakeTensor)


def _stream_behind(compute: Any, device: torch.device) -> Any:
    """The stream that copies, after what a stream that computes has queued so far."""
    if device not in _streams:
        _streams[device] = cuda.Stream(device)
    stream = _streams[device]
    stream.wait_event(compute.record_event())
    return stream


def _copy_out(tensors: Sequence[Tensor]) -> tuple[list[Tensor], Any]:
    """Copies in host memory, and the event at which they are complete; ``None``: they are."""
    device = tensors[0].device
    simulation = running_simulation()
    if simulation is not None:
        return [simulation.copy_out(tensor) for tensor in tensors], None
    if not _is_asynchronous(tensors[0], device):
        if device.type == "cpu" or isinstance(tensors[0], FakeTensor):
            return [tensor.clone(memory_format=torch.contiguous_format) for tensor in tensors], None
        return [tensor.cpu() for tensor in tensors], None
    hosts = [_pinned(tensor) for tensor in tensors]
    stream = _stream_behind(cuda.current_stream(device), device)
    with cuda.stream(stream):
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        return hosts, stream.record_event()


def _pinned(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)


def _copy_back(hosts: Sequence[Tensor], device: torch.device) -> list[Tensor]:
    """Copies on the device, in the order of the stream that computes."""
    simulation = running_simulation()
    if simulation is not None:
        return [simulation.copy_back(host) for host in hosts]
    return [host.clone() if host.device == device else host.to(device, non_blocking=True) for host in hosts]


def _start_back(hosts: Sequence[Tensor], device: torch.device) -> _Copies:
    """The same, on a stream of its own."""
    if not _is_asynchronous(hosts[0], device):
        return _Copies(_copy_back(hosts, device))
    # The bytes come from the pool of the stream that computes: the copy waits for what that has queued on them.
    compute = cuda.current_stream(device)
    tensors = [torch.empty(host.shape, dtype=host.dtype, device=device) for host in hosts]
    stream = _stream_behind(compute, device)
    with cuda.stream(stream):
        for tensor, host in zip(tensors, hosts, strict=True):
            tensor.copy_(host, non_blocking=True)
        return _Copies(tensors, stream.record_event())
