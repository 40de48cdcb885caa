"""What autograd really holds for the backward pass."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from s2a.ops.offload import is_in_host


class SavedBytes(dict[str, int]):
    """Module name -> bytes; the module is the innermost one that was running when the storage was first saved.

    Attributes:
        shared: Module name -> bytes, where a storage counts for every module that saves it, once for each.
        within: Module name -> bytes of all that was first saved while it ran, by itself or by what it called.
        host: Bytes that lie in host memory instead (``LeanOptions.offload``); they are in none of the others.
    """

    shared: dict[str, int]
    within: dict[str, int]
    host: int = 0

    @property
    def total(self) -> int:
        """All modules together, in bytes."""
        return sum(self.values())


class _Held:
    """Wraps a saved tensor in the graph: freed with the graph, so a weak reference tells what is still held."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # A saved output refers to its own node: the two would keep each other alive.


def _zeros_cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def saved_bytes(adapted: nn.Module, images: Tensor, loss_fn: Callable[[Tensor], Tensor] | None = None) -> SavedBytes:
    """Bytes that autograd holds between forward and backward pass, by module.

    Every storage counts once and whole, wherever views of it are saved; parameters and buffers do not count. What is
    saved and let go before the loss is there does not count either, nor what was sent to host memory. Works on any
    device; changes no state of the model (but batch-norm statistics, in training mode) nor of the random numbers.

    Args:
        adapted: Any module from images to logits, in the mode it is in.
        images: ``(B, 3, H, W)``.
        loss_fn: Logits to a scalar; ``None``: cross-entropy against class 0.

    Returns:
        Module name -> bytes, largest first; ``.total`` is the sum. The loss's own tensors are under ``"loss"``.
    """
    # Parameters and buffers do not count; what autograd saves is found by hooks, the module by a stack of running ones.
    own = {t.untyped_storage()._cdata for t in (*adapted.parameters(), *adapted.buffers())}
    names = {id(module): name or "model" for name, module in adapted.named_modules()}
    stack: list[str] = []
    held: list[tuple[tuple[str, ...], weakref.ref[_Held]]] = []

    def enter(module: nn.Module, args: Any) -> None:
        stack.append(names.get(id(module), stack[-1] if stack else "model"))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        stack.pop()

    def keep(tensor: Tensor) -> _Held:
        entry = _Held(tensor)
        held.append((tuple(stack) or ("loss",), weakref.ref(entry)))
        return entry

    handles = [
        nn.modules.module.register_module_forward_pre_hook(enter),
        nn.modules.module.register_module_forward_hook(leave, always_call=True),
    ]
    try:
        devices = [images.device] if images.device.type == "cuda" else []
        with torch.random.fork_rng(devices), saved_tensors_hooks(keep, lambda entry: entry.tensor):
            loss = (loss_fn or _zeros_cross_entropy)(adapted(images))
    finally:
        for handle in handles:
            handle.remove()
    # What is still referred to by the graph, each storage once, under the module that saved it first.
    found: dict[str, int] = {}
    shared: dict[str, dict[int, int]] = {}
    within: dict[str, int] = {}
    seen = set(own)
    host = 0
    for running, reference in held:
        name, entry = running[-1], reference()
        if entry is None:
            continue
        storage = entry.tensor.untyped_storage()
        if is_in_host(storage):
            host += storage.nbytes()
            continue
        place = storage._cdata  # Not its address: tensors without data, on the meta device, have none.
        if place not in own:
            shared.setdefault(name, {})[place] = storage.nbytes()
        if place not in seen:
            seen.add(place)
            found[name] = found.get(name, 0) + storage.nbytes()
            for each in set(running):
                within[each] = within.get(each, 0) + storage.nbytes()
    del loss
    result = SavedBytes(sorted(found.items(), key=lambda item: -item[1]))
    result.within, result.host = within, host
    result.shared = {name: sum(sizes.values()) for name, sizes in shared.items()}
    return result
