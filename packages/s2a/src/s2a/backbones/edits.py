"""Edits of a model that can be taken back, kept as data so that a deep copy of the model carries its own."""

from __future__ import annotations

import dataclasses
import functools
import types
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Undoable(Protocol):
    """One edit; plain data, so that a deep copy of it refers to the copied model."""

    def undo(self) -> None:
        """Takes it back."""


@dataclasses.dataclass
class _Hooked:
    handle: RemovableHandle

    def undo(self) -> None:
        self.handle.remove()


@dataclasses.dataclass
class _Replaced:
    parent: nn.Module
    name: str
    original: nn.Module

    def undo(self) -> None:
        setattr(self.parent, self.name, self.original)


@dataclasses.dataclass
class _Overridden:
    module: nn.Module
    name: str
    had: bool
    original: Any

    def undo(self) -> None:
        if self.had:
            setattr(self.module, self.name, self.original)
        else:
            delattr(self.module, self.name)


@dataclasses.dataclass
class _Trained:
    """``requires_grad`` of one parameter, and its value if it is about to be trained."""

    parameter: nn.Parameter
    required_grad: bool
    value: Tensor | None

    def undo(self) -> None:
        if self.value is not None:
            self.parameter.data.copy_(self.value)
        self.parameter.requires_grad_(self.required_grad)
        self.parameter.grad = None


@dataclasses.dataclass
class _Preserved:
    """A buffer by its place: moving a model to another device or dtype gives it new buffer tensors."""

    module: nn.Module
    name: str
    value: Tensor

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.name)

    def undo(self) -> None:
        self.tensor.copy_(self.value)


@dataclasses.dataclass
class _Placed:
    """A parameter of the model before the edits, by its place, and the gradient it had."""

    module: nn.Module
    name: str
    parameter: nn.Parameter
    grad: Tensor | None

    def put_back(self) -> None:
        current = self.module._parameters.get(self.name)
        if current is self.parameter or current is None:
            return
        if self.parameter.is_meta:
            return  # There are no values to go back to.
        self.parameter.data = self.parameter.data.to(current.device)
        self.module._parameters[self.name] = self.parameter

    def put_gradient_back(self) -> None:
        grad, p = self.grad, self.parameter
        if grad is not None and (grad.shape, grad.dtype, grad.device) == (p.shape, p.dtype, p.device):
            p.grad = grad


@dataclasses.dataclass
class _Cast:
    """The dtype of a parameter or buffer, by its place; a parameter stays the same object."""

    module: nn.Module
    name: str
    original: torch.dtype
    dtype: torch.dtype

    @property
    def tensor(self) -> Tensor:
        return getattr(self.module, self.name)

    def set_dtype(self, dtype: torch.dtype) -> None:
        tensor = self.tensor
        if isinstance(tensor, nn.Parameter):
            tensor.grad = None
            tensor.data = tensor.data.to(dtype)
        else:
            setattr(self.module, self.name, tensor.to(dtype))

    def undo(self) -> None:
        if self.tensor.dtype == self.dtype:  # Else the whole model was moved to another dtype since.
            self.set_dtype(self.original)


class Edits:
    """A log of edits to a model's modules; ``undo`` restores every bit of it in reverse order.

    Hooks and forwards must be bound methods of modules or module-level functions: then a deep copy of model and log
    refers to the copied modules.

    Args:
        model: Its parameters are remembered as objects: ``load_state_dict(assign=True)``, and moving a model to some
            devices, puts others in their place, which ``undo`` takes out again.
    """

    def __init__(self, model: nn.Module | None = None) -> None:
        self._log: list[Undoable] = []
        self._placed = [
            _Placed(module, name, parameter, parameter.grad)
            for module in (model.modules() if model is not None else ())
            for name, parameter in module._parameters.items()
            if parameter is not None
        ]

    def before(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Registers a forward pre-hook, ``hook(module, args) -> new args or None``."""
        self._log.append(_Hooked(module.register_forward_pre_hook(hook)))

    def after(self, module: nn.Module, hook: Callable[..., Any]) -> None:
        """Registers a forward hook, ``hook(module, args, output) -> new output or None``."""
        self._log.append(_Hooked(module.register_forward_hook(hook)))

    def replace(self, model: nn.Module, name: str, new: nn.Module) -> nn.Module:
        """Puts ``new`` at the dotted path ``name`` of ``model`` and returns what was there."""
        path, _, leaf = name.rpartition(".")
        parent = model.get_submodule(path)
        original = getattr(parent, leaf)
        new.train(original.training)
        setattr(parent, leaf, new)
        self._log.append(_Replaced(parent, leaf, original))
        return original

    def override(self, module: nn.Module, name: str, value: Any) -> None:
        """Sets an attribute of the instance; a plain function becomes a method (``forward``, say)."""
        if isinstance(value, types.FunctionType):
            value = functools.partial(value, module)  # A bound method of a function outside the class has no pickle.
        had = name in module.__dict__
        self._log.append(_Overridden(module, name, had, module.__dict__.get(name)))
        setattr(module, name, value)

    def freeze(self, parameter: nn.Parameter) -> None:
        """Switches the gradient of a parameter off."""
        self._log.append(_Trained(parameter, parameter.requires_grad, None))
        parameter.requires_grad_(False)

    def train(self, parameter: nn.Parameter) -> None:
        """Switches the gradient of a parameter on and keeps a copy of its value."""
        self._log.append(_Trained(parameter, parameter.requires_grad, parameter.detach().clone()))
        parameter.requires_grad_(True)

    def preserve(self, module: nn.Module, name: str) -> None:
        """Keeps a copy of a buffer that training may change (batch-norm statistics)."""
        self._log.append(_Preserved(module, name, getattr(module, name).detach().clone()))

    def frozen(self) -> list[tuple[nn.Module, str, nn.Parameter]]:
        """Module, name and object of the model's parameters, without those whose value ``undo`` restores."""
        kept = {id(edit.parameter) for edit in self._log if isinstance(edit, _Trained) and edit.value is not None}
        return [(p.module, p.name, p.parameter) for p in self._placed if id(p.parameter) not in kept]

    def cast(self, module: nn.Module, name: str, dtype: torch.dtype) -> None:
        """Gives a module's own parameter or buffer another dtype."""
        edit = _Cast(module, name, getattr(module, name).dtype, dtype)
        edit.set_dtype(dtype)
        self._log.append(edit)

    def add(self, edit: Undoable) -> None:
        """Adds an edit that was made elsewhere."""
        self._log.append(edit)

    def added_since(self, length: int) -> list[Undoable]:
        """The edits behind the first ``length`` of them (``len(edits)``)."""
        return self._log[length:]

    def __len__(self) -> int:
        return len(self._log)

    def __bool__(self) -> bool:
        return True

    def undo_only(self, edits: Sequence[Undoable]) -> None:
        """Takes some edits back, last one first; nothing may have been built on them since."""
        chosen = {id(edit) for edit in edits}
        self._log = [edit for edit in self._log if id(edit) not in chosen]
        for edit in reversed(edits):
            edit.undo()

    def was_cast(self, tensor: Tensor) -> bool:
        """Whether a parameter or buffer has another dtype than before the edits."""
        return any(isinstance(edit, _Cast) and edit.tensor is tensor for edit in self._log)

    def original(self, tensor: Tensor) -> Tensor:
        """The value a parameter or buffer had before the edits."""
        for edit in self._log:
            if isinstance(edit, _Trained) and edit.parameter is tensor and edit.value is not None:
                return edit.value
            if isinstance(edit, _Preserved) and edit.tensor is tensor:
                return edit.value
            if isinstance(edit, _Cast) and edit.tensor is tensor:
                return tensor.detach().to(edit.original)
        return tensor

    def forget(self) -> None:
        """Lets go of all that ``undo`` would need; the edits stay."""
        self._log.clear()
        self._placed.clear()

    def undo(self) -> None:
        """Takes every edit back, last one first."""
        for placed in self._placed:
            placed.put_back()
        while self._log:
            self._log.pop().undo()
        while self._placed:
            self._placed.pop().put_gradient_back()
