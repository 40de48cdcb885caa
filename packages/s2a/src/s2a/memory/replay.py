"""Operators on tensors without data, whose results are remembered by the shapes of what they were given.

PyTorch's own memory of them (``FakeTensorMode``) takes most of a simulation's time: it tells apart much that cannot
differ here. What is remembered: shape, strides and dtype of new tensors, which argument a view is of, or which argument
comes back. Of what is not remembered yet, the most frequent operators (``ON_META``) run on the meta device, which says
the same as ``FakeTensorMode`` in a tenth of its time. Everything else runs as it is.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, in_kernel_invocation_manager

MISS = object()
"""Nothing is remembered of a call."""

MOST = 50_000
"""Calls that are remembered; then all are forgotten."""

_DEVICE = torch.ops.prim.device.default
_aten = torch.ops.aten
ON_META: frozenset[Any] = frozenset(
    {
        # Views.
        _aten.view.default,
        _aten._unsafe_view.default,
        _aten.slice.Tensor,
        _aten.select.int,
        _aten.permute.default,
        _aten.transpose.int,
        _aten.t.default,
        _aten.expand.default,
        _aten.unbind.int,
        _aten.unsqueeze.default,
        _aten.squeeze.dim,
        _aten.detach.default,
        # Elementwise operators, copies and draws.
        *(getattr(_aten, name).Tensor for name in ("add", "add_", "mul", "mul_", "sub", "div", "div_")),
        _aten.copy_.default,
        _aten.clone.default,
        _aten.roll.default,
        _aten.bernoulli_.float,
        _aten.new_empty.default,
        _aten.gelu_backward.default,
        # Products, sums, softmax.
        _aten.mm.default,
        _aten.addmm.default,
        _aten.bmm.default,
        _aten.sum.dim_IntList,
        _aten.mean.dim,
        _aten._softmax.default,
        _aten._softmax_backward_data.default,
    }
)
"""Operators whose results the meta device describes as ``FakeTensorMode`` does, where all tensors are on one device.

The stride of a dimension of one element may differ, on which no storage depends. Own operators run there too.
"""

_NAMESPACES = ("aten", "s2a")
_PLAIN = (int, float, bool, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)

_results: dict[Any, Any] = {}
_attributes: dict[torch.device, dict[str, Any]] = {}
"""Device -> what a tensor without data carries beside its mode, as the first of that device was made with."""


class _Result(NamedTuple):
    """One tensor that an operator returned: new (``of`` is -1), a view of an argument, or the argument (``same``)."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int | torch.SymInt
    dtype: torch.dtype
    device: torch.device
    of: int = -1
    same: bool = False


class NotRemembered(Exception):
    """Of a call with such arguments, or such a result, nothing is remembered."""


def run(func: Any, args: Any, kwargs: Any, mode: FakeTensorMode) -> Any:
    """An operator's result: made from memory, or by running it."""
    if func is _DEVICE and isinstance(args[0], FakeTensor):
        return args[0].device  # Autograd asks twice per operator.
    key = key_of(func, args, kwargs)
    out = MISS if key is None else recall(key, mode, args)
    if out is MISS and key is not None and (device := _device_on_meta(func, args, kwargs)):
        with in_kernel_invocation_manager(mode):
            meta = func(*args, **(kwargs or {}))
        remember(key, args, meta, device)
        out = recall(key, mode, args)
    if out is MISS:
        out = func(*args, **(kwargs or {}))
        if key is not None:
            remember(key, args, out)
    return out


def key_of(func: Any, args: Any, kwargs: Any) -> Any:
    """What decides the shapes of a call's results; ``None`` if it is none of those that are remembered."""
    if getattr(func, "namespace", None) not in _NAMESPACES or _changes_shapes(func):
        return None
    if kwargs and any(isinstance(value, Tensor) for value in kwargs.values()):
        return None  # ``out=``: what comes back is that tensor.
    try:
        return func, key_of_values(args), key_of_values(tuple(kwargs.items())) if kwargs else ()
    except NotRemembered:
        return None


def recall(key: Any, mode: FakeTensorMode, args: Any) -> Any:
    """The result of a call with such a key, or ``MISS``."""
    found = _results.get(key, MISS)
    if found is MISS:
        return MISS
    if found is None or isinstance(found, _Result):
        return None if found is None else made(found, mode, args)
    return type(found)(None if each is None else made(each, mode, args) for each in found)


def remember(key: Any, args: Any, out: Any, device: torch.device | None = None) -> None:
    """Notes a call's result, if it can be made again from the arguments; one on the meta device is for ``device``."""
    try:
        result: Any = None
        if isinstance(out, Tensor):
            result = described(out, args, device)
        elif type(out) in (tuple, list):
            result = type(out)(None if each is None else described(each, args, device) for each in out)
            refuse_shared(out, result)
        elif out is not None:
            return
    except NotRemembered:
        return
    if len(_results) >= MOST:
        _results.clear()
    _results[key] = result


@functools.cache
def _changes_shapes(func: Any) -> bool:
    """Whether an operator changes the shape or the storage of a tensor that it is given."""
    return torch.Tag.inplace_view in func.tags or func._schema.name in ("aten::resize_", "aten::set_")


def key_of_values(value: Any) -> Any:
    """The part of a key that arguments make."""
    if isinstance(value, FakeTensor):
        if value.constant is not None or value.is_sparse:
            raise NotRemembered
        return value.shape, value.stride(), value.storage_offset(), value.dtype, value.fake_device
    if isinstance(value, tuple | list):
        return type(value), *map(key_of_values, value)
    if isinstance(value, _PLAIN):
        return type(value), value
    raise NotRemembered


def _device_on_meta(func: Any, args: Any, kwargs: Any) -> torch.device | None:
    """The one device of a call's tensors, if the call may run on the meta device instead."""
    if (func not in ON_META and func.namespace != "s2a") or (kwargs and "device" in kwargs):
        return None
    devices = {each.fake_device for each in args if isinstance(each, FakeTensor)}
    return devices.pop() if len(devices) == 1 else None


def described(out: Any, args: Any, device: torch.device | None = None) -> _Result:
    """One tensor that a call returned, as it can be made again; ``device``: for one on the meta device."""
    if isinstance(out, FakeTensor):
        if out.constant is not None:
            raise NotRemembered
        device = out.fake_device
    if device is None or out.is_sparse or out.is_conj() or out.is_neg():
        raise NotRemembered
    what = tuple(out.shape), out.stride(), out.storage_offset(), out.dtype, device
    storage = out.untyped_storage()
    for i, argument in enumerate(args):
        if argument is out:
            return _Result(*what, of=i, same=True)
        if isinstance(argument, FakeTensor) and argument.untyped_storage()._cdata == storage._cdata:
            return _Result(*what, of=i)
    # A new tensor: its storage is as large as an empty tensor's of that shape.
    least = 1 + sum((n - 1) * step for n, step in zip(out.shape, out.stride(), strict=True)) if out.numel() else 0
    if out.storage_offset() or storage.nbytes() != least * out.element_size() or _is_among(storage, args):
        raise NotRemembered
    return _Result(*what)


def _is_among(storage: Any, values: Any) -> bool:
    """Whether a storage is that of a tensor in a list among the arguments."""
    tensors = (t for value in values if isinstance(value, tuple | list) for t in value if isinstance(t, Tensor))
    return any(t.untyped_storage()._cdata == storage._cdata for t in tensors)


def refuse_shared(outs: Any, results: Any) -> None:
    """New tensors that share a storage with each other cannot be made one by one."""
    new = [t.untyped_storage()._cdata for t, result in zip(outs, results, strict=True) if result and result.of < 0]
    if len(set(new)) < len(new):
        raise NotRemembered


def made(result: _Result, mode: FakeTensorMode, args: Any) -> Any:
    """Such a tensor, of other arguments."""
    if result.same:
        return args[result.of]
    with torch._C._DisableTorchDispatch():
        if result.of < 0:
            meta = torch.empty_strided(result.shape, result.stride, dtype=result.dtype, device="meta")
        else:
            meta = torch.empty((), dtype=result.dtype, device="meta")
            meta.set_(args[result.of].untyped_storage(), result.offset, result.shape, result.stride)
    return _without_data(meta, mode, result.device)


def _without_data(meta: Tensor, mode: FakeTensorMode, device: torch.device) -> FakeTensor:
    """What ``FakeTensor(mode, meta, device)`` makes, in a third of the time."""
    attributes = _attributes.get(device)
    if attributes is None:
        made = FakeTensor(mode, meta, device)
        _attributes[device] = {name: value for name, value in vars(made).items() if name != "fake_mode"}
        return made
    made = Tensor._make_subclass(FakeTensor, meta, False, dispatch_device=True, device_for_backend_keys=device)
    torch._C._set_throw_on_mutable_data_ptr(made)
    vars(made).update(attributes, fake_mode=mode)
    return made
