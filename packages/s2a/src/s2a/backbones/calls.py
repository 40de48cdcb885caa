"""What one forward pass has to remember between its modules: kept with the call, never on a module.

Methods read a backbone by hooks, and a hook sees one module alone. What one hook leaves for another (a tapped tensor, a
norm that was skipped) belongs to the call that runs: two threads may be inside of one model at once, a hook may call
the model that it is called from, and a block under gradient checkpointing runs again when its model's pass has ended.

Every thread has a stack of entries (owner, state). Whoever runs something pushes an entry and takes it off in a
``finally``; hooks ask for the newest entry of their owner. Run again by checkpointing, maybe on a thread of autograd's,
or called by itself, a module finds no entry, and does what it does without one.

A ``threading.local`` and no ``contextvars.ContextVar``: a forward pass awaits nothing, so that the two are the same
here, and ``torch.compile`` traces the former alone.
"""

from __future__ import annotations

import dataclasses
import functools
import threading
from typing import Any

import torch
from torch import nn
from torch._C import _autograd

from s2a.backbones.edits import Edits
from s2a.errors import S2AError


class _Stack(threading.local):
    def __init__(self) -> None:
        self.entries: list[tuple[Any, Any]] = []


_stack = _Stack()


class running:
    """Context: ``state`` is what ``state_of(owner)`` finds on this thread, until the context ends.

    Args:
        owner: Compared by identity. ``None`` hides all older entries.
        state: Anything; ``None`` hides older states of the owner.
    """

    def __init__(self, owner: Any, state: Any = None) -> None:
        self.entry = (owner, state)

    def __enter__(self) -> None:
        _stack.entries.append(self.entry)

    def __exit__(self, *error: object) -> None:
        _stack.entries.pop()


def state_of(owner: Any) -> Any:
    """The state of the newest entry of ``owner`` on this thread; ``None`` where nothing of it runs."""
    for i in range(len(_stack.entries) - 1, -1, -1):
        other, state = _stack.entries[i]
        if other is owner:
            return state
        if other is None:
            return None
    return None


@dataclasses.dataclass(eq=False)
class Pass:
    """One forward pass of a backbone, for pooled features.

    Attributes:
        saves: Whether gradients were on at its start.
        hooks: The hooks on saved tensors at its start.
        entered: The backbone's ``forward_features`` has begun.
    """

    saves: bool
    hooks: Any
    entered: bool = False

    def in_a_region(self) -> bool:
        """Whether something between its start and here treats saved tensors in its own way: checkpoints, offloads.

        What is done here may then be done again in the backward pass, without what the pass knows.
        """
        return not torch.compiler.is_compiling() and _saved_tensors_hooks() != self.hooks


def new_pass() -> Pass:
    """A pass that begins now, on this thread."""
    return Pass(torch.is_grad_enabled(), None if torch.compiler.is_compiling() else _saved_tensors_hooks())


def _saved_tensors_hooks() -> Any:
    return _autograd._top_saved_tensors_default_hooks(True)


def in_checkpoint() -> bool:
    """Whether gradient checkpointing without reentrance records here what to compute again, or computes it again."""
    if torch.compiler.is_compiling():
        return False
    hooks = _saved_tensors_hooks()
    return hooks is not None and getattr(hooks[0], "__module__", "") == "torch.utils.checkpoint"


class BlockRun:
    """One run of a block: the state of the entry that the block owns. Its parts leave values for each other."""

    def __init__(self) -> None:
        self._left: list[tuple[Any, Any]] = []

    def leave(self, owner: Any, value: Any) -> None:
        """Keeps a value until its owner takes it, or the block ends."""
        self._left = [entry for entry in self._left if entry[0] is not owner]
        self._left.append((owner, value))

    def take(self, owner: Any) -> Any:
        """The value that was left for an owner, which is let go; ``None`` if there is none."""
        found = [value for other, value in self._left if other is owner]
        self._left = [entry for entry in self._left if entry[0] is not owner]
        return found[0] if found else None


def run_block(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A block's own forward, during which its parts can leave values for each other (``BlockRun``)."""
    with running(self, BlockRun()):
        return type(self).forward(self, *args, **kwargs)


ENTRIES = ("forward_features", "forward_intermediates")
"""Methods of a model that call its blocks."""


def separate_passes(model: nn.Module, edits: Edits) -> None:
    """Lets a call of a part of ``model`` know nothing of a pass that it is called in, by a hook for example."""
    for name in ENTRIES:
        if hasattr(model, name):
            edits.override(model, name, functools.partial(_enter, model, name, model.__dict__.get(name)))


def _enter(self: Any, name: str, inner: Any, *args: Any, **kwargs: Any) -> Any:
    call = functools.partial(getattr(type(self), name), self) if inner is None else inner
    found = state_of(self)
    if isinstance(found, Pass) and not found.entered and name == "forward_features":
        found.entered = True
        return call(*args, **kwargs)
    with running(None):
        return call(*args, **kwargs)


def refuse_cut_gradients(backbone: Any, edits: Edits) -> None:
    """Lets every block notice reentrant checkpointing that would leave what trains in it without a gradient.

    Its first layer looks too: a block whose ``forward`` alone is checkpointed has its hooks outside of the checkpoint.
    """
    for block in backbone.blocks:
        module, check = backbone.module(block.name), functools.partial(_check_gradient, backbone.model, block.name)
        edits.before(module, check)
        first = block.parts.get("attn_norm") or block.linears.get("conv1")
        layers = [part for part in module.modules() if isinstance(part, nn.Conv2d)]
        if first is not None:
            layers = [backbone.module(first)]
        for layer in layers[:1]:
            edits.before(layer, check)


def _check_gradient(model: nn.Module, name: str, module: nn.Module, args: tuple[Any, ...]) -> None:
    """Forward pre-hook of a block and of its first layer.

    Reentrant checkpointing runs a block without gradient, and again with one in the backward pass. That backward pass
    comes only if an argument of the block has a gradient.

    Raises:
        S2AError: None has.
    """
    if torch.is_grad_enabled():
        return
    found = state_of(model)
    if isinstance(found, Pass) and found.saves and not any(getattr(arg, "requires_grad", False) for arg in args):
        raise S2AError(
            f"Block {name} runs under reentrant gradient checkpointing on an input without gradient: nothing in it "
            "would train; use checkpoint(..., use_reentrant=False), or timm.layers.set_reentrant_ckpt(False)."
        )
