"""A ledger of storages: what an allocator would have to hold at every moment, read off as operators run.

Events are numbered: a storage is born at one and dies at another, and the bytes held after event t are the sum over
storages with born <= t < died. The peak of a phase is the largest such sum within it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from s2a.memory import repeats, replay
from s2a.ops.offload import is_in_host

T = TypeVar("T")

_aten = torch.ops.aten
FLOPS: dict[Any, Any] = {
    _aten._scaled_dot_product_flash_attention_for_cpu: flop_registry[_aten._scaled_dot_product_flash_attention],
    _aten._scaled_dot_product_flash_attention_for_cpu_backward: flop_registry[
        _aten._scaled_dot_product_flash_attention_backward
    ],
    **flop_registry,
}
"""Operator -> its count of operations; older versions of torch leave out a CPU's attention."""

BLOCK = 512
"""Bytes in which the CUDA caching allocator rounds every request up."""


@dataclasses.dataclass(eq=False)
class Entry:
    """One storage.

    Attributes:
        bytes: Its size, rounded up to ``BLOCK``.
        shape: Of the tensor that it was first seen under.
        dtype: Likewise.
        operator: What made it, as text or as the operator itself: its text takes time.
        module: The innermost module that was running, or the node of the graph whose backward pass was.
        phase: Of the step in which it was made.
        born: Number of the event with which it came.
        died: Number of the event with which it went; ``None``: it has not.
        category: What it is, once that is known.
        copies: How many such storages there are.
        twins: Those of turns of a loop that were left out (``Ledger.shorten``); they go when it goes.
    """

    bytes: int
    shape: tuple[int, ...]
    dtype: torch.dtype
    operator: Any
    module: str
    phase: str
    born: int
    died: int | None = None
    category: str = ""
    copies: int = 1
    twins: list[Entry] = dataclasses.field(default_factory=list)

    def lives_at(self, event: int) -> bool:
        """Whether it is there right after an event."""
        return self.born <= event and (self.died is None or self.died > event)


class Ledger(TorchDispatchMode):
    """Notes, while it is active, every storage that an operator's output brings, and when it goes.

    A storage counts once, however many views of it there are, from the operator that made it until the last tensor on
    it dies. What operators use inside themselves is not seen.

    Attributes:
        entries: Everything seen so far.
        now: Number of the latest event.
        live: Bytes held now.
        phase: Name that new entries and peaks are put under.
        peaks: Phase -> most bytes held in it, and the event at which it was reached.
        flops: Floating-point operations of products, convolutions and attention so far, as
            ``torch.utils.flop_counter`` counts them: a multiply-add is two.
        modules: Names of the modules that run, the innermost last.
        open: Storages that are there, by their C++ objects: entry, and the weak reference that says when one goes.
        elsewhere: Storages that do not count: they are there all along, in other memory.
    """

    def __init__(self, device: torch.device, mode: FakeTensorMode) -> None:
        super().__init__()
        self.device = device
        self.mode = mode
        self.entries: list[Entry] = []
        self.now = 0
        self.live = 0
        self.phase = ""
        self.peaks: dict[str, tuple[int, int]] = {}
        self.flops = 0
        self.modules: list[str] = []
        self.open: dict[int, tuple[Entry, Any]] = {}
        self.elsewhere: set[int] = set()
        self._notes = True
        self._as_many: dict[int, int] = {}
        self._calls: dict[Any, repeats.Call | None] = {}
        self._flops_of: dict[Any, int] = {}

    def begin(self, phase: str) -> None:
        """From here on, entries and peaks belong to ``phase``; its peak starts anew."""
        self.phase = phase
        self.peaks[phase] = (self.live, self.now)

    def note(self, tensor: Tensor, operator: Any = "", category: str = "") -> None:
        """Enters a tensor's storage, if it is new and lies on the device."""
        # A tensor without data runs an operator to say where it is; its own record of that is faster.
        device = tensor.fake_device if isinstance(tensor, FakeTensor) else tensor.device
        if device.type != self.device.type:
            return
        # Storages are told apart by their C++ object; a view has that of its base.
        storage = tensor.untyped_storage()
        key, size = storage._cdata, -(-storage.nbytes() // BLOCK) * BLOCK
        if not self._notes or key in self.elsewhere or is_in_host(storage):
            return
        if key in self.open:
            found = self.open[key][0]
            self._resized(found, size)
            found.category = found.category or category
            return
        if not size:
            return
        # A new storage: born now, in the running module, or in the node that autograd runs.
        self.now += 1
        place = self.modules[-1] if self.modules else ""
        node = torch._C._current_autograd_node()
        if node is not None and not self.modules:
            place = node.name()
        entry = Entry(size, tuple(tensor.shape), tensor.dtype, operator, place, self.phase, self.now, category=category)
        self.entries.append(entry)
        self.follow(tensor, entry)
        self._held(size)

    def follow(self, tensor: Tensor, entry: Entry) -> None:
        """Notes when a tensor's storage, which an entry is of, goes: its weak reference's callback says so."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        self.open[key] = (entry, weakref.ref(storage, lambda _: self._gone(key)))

    def category(self, tensor: Tensor, name: str) -> None:
        """Says what a tensor's storage is; one that has a category keeps it."""
        found = self.open.get(tensor.untyped_storage()._cdata)
        if found is not None and not found[0].category:
            found[0].category = name

    def there_from_the_start(self, category: str) -> None:
        """Enters what is of a category as if it had been there before everything else."""
        entries = [entry for entry, _ in self.open.values() if entry.category == category]
        more = sum(entry.bytes for entry in entries)
        for entry in entries:
            entry.born = 0
        for phase, (size, event) in self.peaks.items():
            if phase != self.phase:
                self.peaks[phase] = (size + more, event)

    def _held(self, more: int) -> None:
        self.live += more
        if self.live > self.peaks.get(self.phase, (0, 0))[0]:
            self.peaks[self.phase] = (self.live, self.now)

    def _resized(self, entry: Entry, size: int) -> None:
        if size != entry.bytes:  # ``resize_``: the old block goes when the new one is there.
            self.now += 1
            grown = dataclasses.replace(entry, bytes=size, born=self.now)
            self.entries.append(grown)
            entry.died = self.now
            for key, (found, reference) in self.open.items():
                if found is entry:
                    self.open[key] = (grown, reference)
                    break
            self._held(size - entry.bytes)

    def _gone(self, key: int) -> None:
        entry, _ = self.open.pop(key)
        self.now += 1
        gone = [entry]
        for each in gone:
            each.died = self.now
            self.live -= each.bytes * each.copies
            gone += each.twins

    def shorten(self, parts: Sequence[T], keeps: bool) -> Sequence[T]:
        """The parts of a loop whose turns do the same, without most of them (``s2a.ops.loops``)."""
        return parts if len(parts) <= 3 else _Shortened(parts, self)

    def once(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """A call of a function that does the same with like arguments (``s2a.ops.loops``), run for the first alone."""
        if torch.is_grad_enabled():  # Its results would have a graph, which those of a call that is not run cannot.
            return function(*args)
        key = repeats.key_of(self, function, args)
        call = self._calls.get(key)
        if call is not None:
            return repeats.again(self, call, args)  # type: ignore[no-any-return]
        if key is None or key in self._calls:
            return function(*args)
        out, self._calls[key] = repeats.run(self, function, args)
        return out  # type: ignore[no-any-return]

    def copy_out(self, tensor: Tensor) -> Tensor:
        """A copy in memory that does not count (``s2a.ops.offload``)."""
        self._notes = False
        try:
            copy = tensor.clone(memory_format=torch.contiguous_format)
        finally:
            self._notes = True
        # Where turns of a loop were left out, the tensor stands for theirs too.
        found = self.open.get(tensor.untyped_storage()._cdata)
        self._as_many[copy.untyped_storage()._cdata] = _left_out(found[0]) if found else 0
        return copy

    def copy_back(self, tensor: Tensor) -> Tensor:
        """A copy of such a copy, which counts for as much as the tensor did that it was made of."""
        copy = tensor.clone()
        times = self._as_many.get(tensor.untyped_storage()._cdata, 0)
        found = self.open.get(copy.untyped_storage()._cdata)
        if times and found:
            self.repeat([found[0]], times, found[0].born)
            self._held(0)
        return copy

    def repeat(self, entries: Sequence[Entry], times: int, born: int) -> int:
        """Enters what turns of a loop that were left out have made and kept.

        Args:
            entries: What one turn made; what of it is still there was kept.
            times: Turns that were left out.
            born: Event from which on it is there.

        Returns:
            Its bytes.
        """
        more = 0
        for entry in entries:
            if entry.died is None:
                twin = dataclasses.replace(entry, born=born, copies=entry.copies * times, twins=[])
                entry.twins.append(twin)
                self.entries.append(twin)
                more += twin.bytes * twin.copies
        self.live += more
        return more

    def at(self, event: int) -> list[Entry]:
        """What was there right after an event, largest first."""
        return sorted((e for e in self.entries if e.lives_at(event)), key=lambda e: -e.bytes)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and enters what it returns."""
        if func is torch.ops.aten._local_scalar_dense.default and self.phase == "optimizer":
            return 1.0  # The optimiser reads its own step count; no storage depends on it.
        out = replay.run(func, args, kwargs, self.mode)
        count = FLOPS.get(getattr(func, "_overloadpacket", None))
        if count is not None:
            self.flops += self._count(count, func, args, kwargs or {}, out)
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self.note(leaf, func)
        return out

    def _count(self, count: Callable[..., int], func: Any, args: Any, kwargs: Any, out: Any) -> int:
        """Operations of one operator, counted once per shapes of its arguments."""
        key = replay.key_of(func, args, kwargs)
        if key is None or key not in self._flops_of:
            self._flops_of[key] = count(*args, **kwargs, out_val=out)
        return self._flops_of[key]

    @contextlib.contextmanager
    def following(self, model: nn.Module) -> Iterator[None]:
        """Keeps track of the running module of ``model``, through hooks that hold no tensor."""
        names = {id(module): name or "model" for name, module in model.named_modules()}

        def enter(module: nn.Module, args: Any) -> None:
            self.modules.append(names.get(id(module), self.modules[-1] if self.modules else "model"))

        def leave(module: nn.Module, args: Any, output: Any) -> None:
            self.modules.pop()

        handles = [
            nn.modules.module.register_module_forward_pre_hook(enter),
            nn.modules.module.register_module_forward_hook(leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _left_out(entry: Entry) -> int:
    """Storages that stand for those of turns that were left out, and go with an entry's."""
    return sum(twin.copies + _left_out(twin) for twin in entry.twins)


class _Shortened(list[T]):
    """The first two parts of a loop and its last.

    Of a loop of n turns the second that runs stands for the last but one, and for the n - 3 turns before it that are
    left out: what it made and what is still there when the loop ends stays, so each of them left as much behind.
    That is there from the beginning of the second turn.
    """

    def __init__(self, parts: Sequence[T], ledger: Ledger) -> None:
        super().__init__((parts[0], parts[-2], parts[-1]))
        self._ledger, self._left_out = ledger, len(parts) - 3

    def __iter__(self) -> Iterator[T]:
        ledger, phase = self._ledger, self._ledger.phase
        first, second, last = super().__iter__()
        yield first
        # The peak of the turns that run from here on, by itself.
        start, event, flops = len(ledger.entries), ledger.now, ledger.flops
        before, ledger.peaks[phase] = ledger.peaks[phase], (0, event)
        yield second
        end, each = len(ledger.entries), ledger.flops - flops
        yield last
        ledger.flops += self._left_out * each
        more = ledger.repeat(ledger.entries[start:end], self._left_out, event + 1)
        size, event = ledger.peaks[phase]
        ledger.peaks[phase] = max(before, (size + more, event), key=lambda peak: peak[0])
