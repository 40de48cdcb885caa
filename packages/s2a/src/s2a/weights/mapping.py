"""A model's tensors become the memory of a weights file that was mapped or read, instead of copies of it.

Safetensors files are mapped copy-on-write. Values that nobody writes are the file's own pages, which processes share
and which the system may drop and read again; a training step that changes a weight in place gets private pages of it
and leaves the file as it is. Meanwhile the file may be deleted or replaced (another one renamed to its name), but not
written to. Torch files are read: their tensors are ordinary memory.
"""

from __future__ import annotations

import collections
import contextlib
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

_Model = TypeVar("_Model", bound=nn.Module)

ALIGNMENT = 64
"""Bytes: torch's own memory begins at multiples of it."""
LARGE = 1 << 19
"""Bytes from which on a tensor may begin elsewhere.

A safetensors file aligns nothing to more than 8 bytes. Some kernels for single vectors and small convolutions add in
another order there, and the last bit of a result would depend on the length of a file's header.
"""


class AssignFrom(TorchFunctionMode):
    """Inside it, loading a state into a model assigns the state's memory to the model's tensors.

    ``load_state_dict`` copies value by value, ``tensor.copy_(value)``. Here the model's tensor stays the same object
    (tied weights stay tied, ``requires_grad`` stays), but refers to the value's memory from then on; its own is freed.
    What is not one whole tensor of ``state`` is copied as ever: another number format, device or order of memory, a
    part of a tensor, what a filter has computed, a value that another tensor of the model has taken already, and what
    is small and not aligned. ``deepcopy`` of a tensor of ``state`` gives the tensor itself: timm copies its configs,
    and a state is handed to it in one.

    Args:
        state: Tensors by name, or such mappings deeper in. The model takes their memory over: change it no more.
    """

    def __init__(self, state: Mapping[str, Any]) -> None:
        super().__init__()
        self._known = collections.Counter(_place(tensor) for tensor in _tensors(state))
        # Memory under two names stays nobody's: training one of the two would change the other.
        self._free = {place for place, uses in self._known.items() if uses == 1}
        self._loaded: dict[int, tuple[Tensor, Tensor]] = {}  # By id of a tensor without memory: it, and its value.

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        if func is Tensor.copy_ and len(args) == 2 and not kwargs and self._assign(*args):
            return args[0]
        if func is Tensor.__deepcopy__ and _is_plain(args[0]) and _place(args[0]) in self._known:
            return args[0]
        return func(*args, **(kwargs or {}))

    def _assign(self, target: Any, value: Any) -> bool:
        """Lets ``target`` refer to the memory of ``value``, if that is all the same to the model."""
        if not isinstance(target, Tensor) or not _is_plain(value) or target.shape != value.shape:
            return False
        whole = (
            (target.dtype, target.stride()) == (value.dtype, value.stride())
            and value.untyped_storage().nbytes() == value.nbytes
            and (value.nbytes >= LARGE or _is_aligned(value))
            and _place(value) in self._free
        )
        if whole and target.device.type in ("cpu", "meta"):
            self._free.remove(_place(value))
        if target.is_meta:
            copied = torch.empty_strided(target.shape, target.stride(), dtype=target.dtype, device="cpu")
            self._loaded[id(target)] = target, value if whole else copied.copy_(value)
        elif whole and target.device.type == "cpu":
            target.data = value
        else:
            return False
        return True

    def fill(self, model: nn.Module) -> bool:
        """Puts what was loaded into a model that was made without values.

        Buffers that no file has are computed by the modules that they belong to, as timm lets them.

        Returns:
            Whether the model has all its values.
        """
        for module in model.modules():
            for name, parameter in module._parameters.items():
                if parameter is not None and parameter.is_meta:
                    if id(parameter) not in self._loaded or type(parameter) is not nn.Parameter:
                        return False
                    module._parameters[name] = self._parameter(parameter)
        for module in model.modules():
            lacking = [name for name, buffer in module._buffers.items() if buffer is not None and buffer.is_meta]
            for name in lacking:
                buffer: Any = module._buffers[name]
                _, value = self._loaded.get(id(buffer), (buffer, None))
                if value is None and name not in module._non_persistent_buffers_set:
                    return False
                module._buffers[name] = torch.empty_like(buffer, device="cpu") if value is None else value
            if any(name in module._non_persistent_buffers_set for name in lacking):
                compute: Any = getattr(module, "init_non_persistent_buffers", None)
                if compute is None:
                    return False
                compute()
        held = (value for module in model.modules() for value in vars(module).values())
        return not any(isinstance(value, Tensor) and value.is_meta for value in held)

    def _parameter(self, empty: nn.Parameter) -> nn.Parameter:
        """The parameter in place of one without values, the same wherever that one is."""
        _, value = self._loaded[id(empty)]
        if not isinstance(value, nn.Parameter):
            value = nn.Parameter(value, requires_grad=empty.requires_grad)
            self._loaded[id(empty)] = empty, value
        return value


def make_with(state: Mapping[str, Any], make: Callable[[], _Model]) -> _Model:
    """A model that is made and loaded by ``make``, without memory for values that ``state`` brings.

    It is made without values first (torch's device ``meta``), which takes neither memory nor the time of random
    numbers. If the state does not hold all of them, or the model cannot be made that way, it is made as ever, and what
    the state holds takes the place of the model's own values.

    Args:
        state: See ``AssignFrom``.
        make: Makes a model on the CPU and loads ``state`` into it; may be called twice.
    """
    model = _make_empty(state, make) if state else None  # Without a state the model reads a file of its own kind.
    if model is None:
        with AssignFrom(state):
            model = make()
    align_classifier(model)
    return model


def _make_empty(state: Mapping[str, Any], make: Callable[[], _Model]) -> _Model | None:
    """The model, made without values and filled; ``None`` if that cannot be, for whatever reason."""
    with warnings.catch_warnings(action="ignore"), contextlib.suppress(Exception):
        with torch.device("meta"), AssignFrom(state) as loading:
            model = make()
        if loading.fill(model):
            return model
    return None


def align_classifier(model: nn.Module) -> None:
    """Gives a classifier memory of its own where the file's is not aligned: one image makes it a product of vectors."""
    names: Any = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    for name, parameter in model.named_parameters():
        if name.startswith(prefixes) and parameter.device.type == "cpu" and not _is_aligned(parameter):
            parameter.data = parameter.detach().clone()


def _tensors(state: Mapping[str, Any]) -> Iterator[Tensor]:
    for value in state.values():
        if isinstance(value, Mapping):
            yield from _tensors(value)
        elif _is_plain(value):
            yield value


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor with memory on the CPU of its own, other than an empty one."""
    return type(value) is Tensor and value.layout is torch.strided and value.device.type == "cpu" and value.numel() > 0


def _is_aligned(tensor: Tensor) -> bool:
    return tensor.data_ptr() % ALIGNMENT == 0


def _place(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
