"""Why a model is refused, and the way out: wrappers around a supported model, other libraries, quantised weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from s2a.errors import UnsupportedModel

QUANTISED_MODULES = (
    "auto_gptq.",
    "awq.",
    "bitsandbytes.",
    "gptqmodel.",
    "hqq.",
    "optimum.quanto.",
    "quanto.",
    "torch.ao.nn.",
    "torch.nn.quantized.",
    "torchao.",
)
"""Packages whose modules hold quantised weights."""

PLAIN_DTYPES = (torch.bool, torch.int16, torch.int32, torch.int64)
"""Dtypes of indices, counters and masks; others that are not floating point are those of quantised values."""

_WRAPPED = {
    "OptimizedModule": "compile the adapted model: torch.compile(s2a.attach({inside}, ...))",
    "DataParallel": "wrap the adapted model",
    "DistributedDataParallel": "wrap the adapted model",
    "FullyShardedDataParallel": "wrap the adapted model",
}
"""Class of a wrapper -> what to do after attaching to the model inside."""


def full_name(cls: type) -> str:
    """Module and name of a class, as it is imported."""
    return f"{cls.__module__}.{cls.__qualname__}"


def path_inside(model: nn.Module, wanted: Callable[[nn.Module], bool]) -> str | None:
    """Path of the first module inside ``model`` that is wanted; the outermost, as modules come before their own."""
    return next((name for name, module in model.named_modules() if name and wanted(module)), None)


def refusal_sentence(model: nn.Module, supported: Sequence[tuple[type, str]]) -> str:
    """Why a model of no supported class is refused, and what to do instead.

    Args:
        model: The model.
        supported: Classes and the names of their families.
    """
    cls = type(model)
    kinds = tuple(kind for kind, _ in supported)
    first = f"{full_name(cls)} is not a supported backbone"
    # 1. A wrapper: the supported model is inside.
    if full_name(cls).startswith("timm.models._features"):
        return (
            f"{first}: it returns feature maps (features_only=True), which no classifier reads; create the model "
            "without features_only."
        )
    inside = path_inside(model, lambda module: isinstance(module, kinds))
    if inside is not None:
        found = f"model.{inside}"
        then = _WRAPPED.get(cls.__name__, "put the adapted model where the wrapper needs it").format(inside=found)
        return (
            f"{first} itself, but a {full_name(type(model.get_submodule(inside)))} inside of it is: attach to {found}, "
            f"then {then}."
        )
    # 2. A traced program: its layers are gone.
    if isinstance(model, torch.jit.ScriptModule | torch.fx.GraphModule):
        return f"{first}: it is a traced program without timm's layers; attach to the timm model that it was made from."
    names = ", ".join(f"{kind.__name__} ({family})" for kind, family in supported)
    # 3. A class of the same name from elsewhere, torchvision's ResNet for example.
    same = next((kind for kind in kinds if kind.__name__ == cls.__name__), None)
    if same is not None:
        return (
            f"{first}: it only has the name of {full_name(same)}; supported are these classes of timm alone: {names}. "
            "Create the model with timm.create_model."
        )
    return (
        f"{first}; supported timm classes: {names}. First module that does not fit: {_first_misfit(model, kinds)}. "
        "To add a family, add an entry to s2a.backbones.families.FAMILIES."
    )


def _first_misfit(model: nn.Module, kinds: Sequence[type]) -> str:
    """Path and class of the first module that is neither a layer nor part of a supported model."""
    supported = {kind.__module__ for kind in kinds}

    def fits(cls: type) -> bool:
        return cls.__module__ in supported or cls.__module__.startswith(("torch.", "timm.layers."))

    found = ((name, type(m)) for name, m in model.named_modules() if name and not fits(type(m)))
    name, cls = next(found, ("the model itself", type(model)))
    return f"{name} ({cls.__name__})"


def refuse_quantised(model: nn.Module) -> None:
    """Refuses a backbone whose weights are not plain floating-point tensors.

    Such weights train nowhere, some have no gradient for their input either, and saving, merging and lean activations
    read values that they do not give.

    Raises:
        UnsupportedModel: The first such module, parameter or buffer.
    """
    for path, module in model.named_modules():
        name = path or "the model itself"
        if f"{type(module).__module__}.".startswith(QUANTISED_MODULES):
            raise UnsupportedModel(f"{name} is a {full_name(type(module))}: {_QUANTISED}")
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None or isinstance(tensor, FakeTensor):
                continue
            what = f"{path}.{leaf}" if path else leaf
            if _acts_itself(type(tensor)) or _acts_itself(type(tensor.data)):
                raise UnsupportedModel(f"{what} is a {full_name(type(tensor))}, not a plain tensor: {_QUANTISED}")
            if not tensor.dtype.is_floating_point and tensor.dtype not in PLAIN_DTYPES:
                raise UnsupportedModel(f"{what} holds {tensor.dtype} values: {_QUANTISED}")
            if tensor.dtype.is_floating_point and tensor.dtype.itemsize < 2:
                raise UnsupportedModel(f"{what} holds {tensor.dtype} values: {_QUANTISED}")


_QUANTISED = (
    "methods are attached to float models only, not to quantised or sharded ones; attach to the model as it was before "
    "(model.to(torch.bfloat16) or s2a.cast_frozen halve its frozen weights; shard the adapted model)."
)


def _acts_itself(cls: type[Any]) -> bool:
    """Whether a tensor class changes what operators do: quantised weights and distributed tensors do."""
    own = cls.__mro__[: cls.__mro__.index(nn.Parameter if issubclass(cls, nn.Parameter) else Tensor)]
    return any({"__torch_function__", "__torch_dispatch__"} & kind.__dict__.keys() for kind in own)
