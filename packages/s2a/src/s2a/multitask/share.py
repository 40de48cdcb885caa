"""Copies of a backbone that share its values: modules of their own, which methods can edit, and tensors in common."""

from __future__ import annotations

import copy
from collections.abc import Collection
from typing import TypeVar

from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def share_copy(model: M) -> M:
    """A copy of a model whose parameters and buffers hold the model's own memory.

    Each copy has parameter objects of its own, frozen, so that what is done to them (``requires_grad``, another dtype)
    concerns the copy alone. Whoever writes into one writes into the model: see ``own_values``.
    """
    known: dict[int, object] = {}
    for parameter in model.parameters():
        known[id(parameter)] = nn.Parameter(parameter.detach(), requires_grad=False)
    for buffer in model.buffers():
        known[id(buffer)] = buffer.detach()
    return copy.deepcopy(model, known)


def own_values(model: nn.Module, names: Collection[str]) -> None:
    """Gives a copy its own values of some tensors, and of whatever trains in it, before anything is written there.

    Args:
        model: What ``share_copy`` returned, a method on it perhaps.
        names: Of parameters and buffers.
    """
    for name, parameter in model.named_parameters():
        if parameter.requires_grad or name in names:
            parameter.data = parameter.data.clone()
    for path, module in model.named_modules():
        for leaf, buffer in module._buffers.items():
            if buffer is not None and f"{path}.{leaf}".lstrip(".") in names:
                module._buffers[leaf] = buffer.clone()


def storages(*modules: nn.Module) -> dict[int, int]:
    """Address of every block of memory that tensors of some modules lie in -> its bytes."""
    found: dict[int, int] = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            note(found, tensor)
    return found


def note(found: dict[int, int], tensor: Tensor) -> None:
    """Adds a tensor's memory to a table of ``storages``."""
    storage = tensor.untyped_storage()
    found[storage.data_ptr()] = storage.nbytes()
