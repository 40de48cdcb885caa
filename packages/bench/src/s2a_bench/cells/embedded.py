"""The mini backbones with their embedded weights, as other packages find them: entry points of ``s2a.backbones``."""

from __future__ import annotations

from typing import Any

from s2a import weights
from torch import nn

from s2a_bench.assets import data_file
from s2a_bench.cells.backbones import build_mini
from s2a_bench.errors import InputError


def mini_vit(**arguments: Any) -> nn.Module:
    """``mini_vit``; arguments are ``timm.create_model``'s, over the table's."""
    return _with_weights("mini_vit", arguments)


def mini_swin(**arguments: Any) -> nn.Module:
    """``mini_swin``, likewise."""
    return _with_weights("mini_swin", arguments)


def mini_convnext(**arguments: Any) -> nn.Module:
    """``mini_convnext``, likewise."""
    return _with_weights("mini_convnext", arguments)


def _with_weights(name: str, arguments: dict[str, Any]) -> nn.Module:
    path = data_file(f"backbones/{name}.safetensors")
    if not path.is_file():
        raise InputError(f"The embedded weights of {name} are missing ({path}); install s2a-bench again.")
    model = build_mini(name, 10, **arguments)
    weights.load_file(model, path, name)
    return model
