"""A journal of live storages: which tensors' memory exists when, on real or fake tensors."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BLOCK = 512
"""The CUDA caching allocator's smallest unit: what a tensor takes is a multiple of it."""


def rounded(nbytes: int) -> int:
    """Bytes that the allocator counts for ``nbytes``."""
    return -(-nbytes // BLOCK) * BLOCK


@dataclasses.dataclass(eq=False)
class Storage:
    """One storage.

    Attributes:
        nbytes: As the allocator counts it, a multiple of ``BLOCK``.
        requested: As the tensors need it.
        kind: Category; ``""`` until somebody knows better.
        operator: What made it.
        module: Where: the innermost module that ran, or in a backward pass the autograd node.
        live: Whether it still exists.
    """

    nbytes: int
    requested: int
    kind: str
    operator: str
    module: str
    live: bool = True


class Journal(TorchDispatchMode):
    """Inside it every operator's new storages are noted, once each, and when they die.

    Views and in-place operators make no storage. What an operator needs while it runs (workspaces, the temporaries of a
    custom operator) is not seen.

    Args:
        model: Names the places.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.events: list[tuple[Storage, int]] = []
        self._known: dict[int, Storage] = {}
        self._names = {id(module): name or "model" for name, module in model.named_modules()}
        self._modules: list[str] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Any:
        module = nn.modules.module
        self._handles = [
            module.register_module_forward_pre_hook(self._enter_module),
            module.register_module_forward_hook(self._leave_module, always_call=True),
        ]
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        for handle in self._handles:
            handle.remove()
        super().__exit__(*error)

    def _enter_module(self, module: nn.Module, args: Any) -> None:
        self._modules.append(self._names.get(id(module), self._modules[-1] if self._modules else "model"))

    def _leave_module(self, module: nn.Module, args: Any, output: Any) -> None:
        self._modules.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs the operator and notes what it made."""
        out = func(*args, **(kwargs or {}))
        for leaf in (out,) if isinstance(out, Tensor) else tree_leaves(out):
            if isinstance(leaf, Tensor):
                self._note(leaf, func)
        return out

    def _note(self, tensor: Tensor, func: Any) -> None:
        storage = tensor.untyped_storage()
        if storage._cdata in self._known:
            return
        if self._modules:
            place = self._modules[-1]
        else:
            node = torch._C._current_autograd_node()
            place = "" if node is None else node.name()
        self._add(storage, "", func.name().removeprefix("aten::"), place)

    def _add(self, storage: torch.UntypedStorage, kind: str, operator: str, place: str) -> Storage:
        size = storage.nbytes()
        found = Storage(rounded(size), size, kind, operator, place)
        self._known[storage._cdata] = found
        self.events.append((found, 1))
        weakref.finalize(storage, self._die, storage._cdata, found).atexit = False
        return found

    def _die(self, key: int, found: Storage) -> None:
        # The number of a dead storage may be used again.
        if self._known.get(key) is found:
            del self._known[key]
        found.live = False
        self.events.append((found, -1))

    def label(self, tensors: Iterable[Tensor | None], kind: str) -> None:
        """Says what some tensors are; they are added where they were not known."""
        for tensor in tensors:
            if tensor is None:
                continue
            storage = tensor.untyped_storage()
            found = self._known.get(storage._cdata)
            if found is None:
                self._add(storage, kind, kind, "")
            else:
                found.kind = kind

    def live(self) -> Iterator[Storage]:
        """Every storage that exists now."""
        return iter(tuple(self._known.values()))


def peak_of(events: list[tuple[Storage, int]], start: int, stop: int) -> tuple[int, int, int]:
    """The highest total between two events.

    Args:
        events: A journal's.
        start: Number of events before the stretch.
        stop: Number of events at its end.

    Returns:
        Bytes as the allocator counts them, bytes as requested at that moment, and the number of events up to it.
    """
    total = requested = 0
    best = (-1, 0, 0)
    for i, (storage, sign) in enumerate(events[:stop], start=1):
        total += sign * storage.nbytes
        requested += sign * storage.requested
        if i >= start and total > best[0]:
            best = (total, requested, i)
    return best


def live_after(events: list[tuple[Storage, int]], count: int) -> list[Storage]:
    """The storages that exist after ``count`` events, oldest first."""
    found: dict[int, Storage] = {}
    for storage, sign in events[:count]:
        if sign > 0:
            found[id(storage)] = storage
        else:
            found.pop(id(storage), None)
    return list(found.values())
