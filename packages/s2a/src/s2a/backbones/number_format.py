"""Number formats of an adapted model: what trains is float32, also on a backbone in half precision.

Half-precision formats round small steps away: bfloat16 has 8 bits of precision, so a value of 1 does not move by 0.001,
and float16 loses small gradients. As in mixed-precision training (https://arxiv.org/abs/1710.03740) the trained values
are therefore float32, products run in the backbone's own format, and each product casts what it needs.
"""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from s2a.backbones.edits import Edits
from s2a.errors import S2AError

HALVES = (torch.float16, torch.bfloat16)
"""The formats of half precision."""


def trained_dtype(model: nn.Module, asked: torch.dtype | None) -> torch.dtype:
    """The dtype of what trains on a model: float32 where the model has less, else the model's own.

    Args:
        model: The backbone.
        asked: ``None``: that rule. float32, or the model's own dtype: that one.

    Raises:
        S2AError: Another dtype.
    """
    own = next(p.dtype for p in model.parameters() if p.is_floating_point())
    usual = torch.promote_types(own, torch.float32)
    if asked is None:
        return usual
    if asked not in (own, usual):
        allowed = " or ".join(dict.fromkeys(map(str, (usual, own))))
        raise S2AError(f"trainable_dtype={asked!r} does not fit a backbone in {own}; give {allowed}, or leave it out.")
    return asked


def widen_trained(model: nn.Module, edits: Edits, dtype: torch.dtype) -> None:
    """Casts what trains in a model from half precision to ``dtype``, undoably; frozen weights stay as they are.

    A norm or another layer of few values is cast as a whole, so that its values have one dtype; linear and convolution
    layers cast their weight and bias to one format themselves (``compute_format``).
    """
    for module in model.modules():
        if not any(p is not None and p.requires_grad and p.dtype in HALVES for p in module._parameters.values()):
            continue
        alone = isinstance(module, nn.Linear | _ConvNd)
        for name, parameter in module._parameters.items():
            if parameter is not None and parameter.dtype in HALVES and (parameter.requires_grad or not alone):
                edits.cast(module, name, dtype)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.dtype in HALVES and not alone:
                edits.cast(module, name, dtype)


def frozen_dtype(model: nn.Module, edits: Edits) -> torch.dtype:
    """The dtype of an adapted backbone: that of its first weight which ``widen_trained`` has not cast, if there is one.

    It changes where the whole adapted model is moved to another dtype.
    """
    floats = [p for p in model.parameters() if p.is_floating_point()]
    return next((p.dtype for p in floats if not edits.was_cast(p)), edits.original(floats[0]).dtype)


def compute_format(backbone: nn.Module, head: nn.Module, images: Tensor) -> contextlib.AbstractContextManager[object]:
    """The context in which a forward pass runs: autocast to half precision, where formats would meet otherwise.

    That is where the backbone's weights, or the images, are in half precision and what trains is not. An autocast that
    is there already stays as it is.
    """
    device = images.device.type
    weight = next(head.parameters(), None)
    if weight is None or weight.dtype not in HALVES:
        for tensor in (*backbone.parameters(), images):
            if tensor.dtype in HALVES:
                free = torch.amp.is_autocast_available(device) and not torch.is_autocast_enabled(device)
                return torch.autocast(device, tensor.dtype) if free else contextlib.nullcontext()
    return contextlib.nullcontext()


_MULTIPLIES_BF16: dict[str, bool] = {}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether products in bfloat16 are faster than in float32 on a device: it has instructions for them.

    CPUs with AVX-512 BF16 or AMX, NVIDIA's devices from compute capability 8.0 on. Found out once per kind of device.
    """
    known = _MULTIPLIES_BF16.get(device.type)
    if known is None:
        known = _MULTIPLIES_BF16[device.type] = _has_bf16(device)
    return known


def _has_bf16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.is_available() and torch.cuda.get_device_capability(device)[0] >= 8
    if device.type != "cpu":
        return False
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
