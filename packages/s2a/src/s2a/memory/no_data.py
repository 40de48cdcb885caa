"""Models on tensors without data: shapes, dtypes, storages and devices as usual, but nothing is allocated."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from s2a.memory import replay
from s2a.ops.loops import shortened_by

T = TypeVar("T")


class _ValuesAreUnknown(TorchDispatchMode):
    """Answers 0 where a value is asked for, and so ends what draws again until all values are in a range.

    Results are remembered by shapes (``replay``): most of a model's operators are those of the block before.
    """

    def __init__(self, mode: FakeTensorMode) -> None:
        super().__init__()
        self.mode = mode

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Answers that one question, passes the rest on."""
        if func is torch.ops.aten._local_scalar_dense.default and isinstance(args[0], FakeTensor):
            return _zero(args[0].dtype)
        return replay.run(func, args, kwargs, self.mode)


class _ShortLoops:
    """Leaves out turns of loops that keep nothing: their results have no data anyway."""

    def shorten(self, parts: Sequence[T], keeps: bool) -> Sequence[T]:
        """The first two turns and the last."""
        return parts if keeps or len(parts) <= 3 else (parts[0], parts[1], parts[-1])

    def once(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        """Calls are all run."""
        return function(*args)

    def copy_out(self, tensor: Tensor) -> Tensor:
        """A copy; nothing is accounted for."""
        return tensor.clone(memory_format=torch.contiguous_format)

    def copy_back(self, tensor: Tensor) -> Tensor:
        """Likewise."""
        return tensor.clone()


def _zero(dtype: torch.dtype) -> Any:
    return False if dtype is torch.bool else 0.0 if dtype.is_floating_point else 0


@contextlib.contextmanager
def tensors_without_data() -> Iterator[FakeTensorMode]:
    """Within the block all new tensors are without data; a method can be attached to a model of such tensors.

    Nothing that depends on values can be known: drawn weights are none, and a comparison of values is false.
    """
    with (
        torch.random.fork_rng([]),
        FakeTensorMode(allow_non_fake_inputs=True) as mode,
        _ValuesAreUnknown(mode),
        shortened_by(_ShortLoops()),
    ):
        yield mode


def strip_data(model: nn.Module, device: torch.device | str = "cpu") -> None:
    """Gives every parameter and buffer of a model, one on the meta device for example, a tensor without data.

    Call it within ``tensors_without_data``.

    Args:
        model: Changed in place.
        device: On which the tensors say they are.
    """
    made: dict[Tensor, Tensor] = {}
    for module in model.modules():
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is None:
                    continue
                if tensor not in made:
                    empty = torch.empty(tensor.shape, dtype=tensor.dtype, device=device)
                    is_parameter = isinstance(tensor, nn.Parameter)
                    made[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_parameter else empty
                table[name] = made[tensor]  # type: ignore[assignment]


class _CloneToCopy(TorchFunctionMode):
    """Copies of tensors without data are clones: torch's own copy would ask for their address."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Swaps the one function, passes the rest on."""
        if func is not Tensor.__deepcopy__:
            return func(*args, **(kwargs or {}))
        tensor, memo = args
        if id(tensor) not in memo:
            clone = tensor.detach().clone()
            memo[id(tensor)] = nn.Parameter(clone, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else clone
        return memo[id(tensor)]


def copy_without_data(adapted: nn.Module, mode: FakeTensorMode) -> nn.Module:
    """A copy with the same modules, hooks, flags and shapes, on tensors without data."""
    with _CloneToCopy() if isinstance(next(adapted.parameters()), FakeTensor) else FakeCopyMode(mode):
        model = copy.deepcopy(adapted)
    for parameter in model.parameters():
        parameter.grad = None
    return model.train()
