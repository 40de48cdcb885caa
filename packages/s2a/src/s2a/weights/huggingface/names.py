"""What the layouts share: names by patterns, joined projections, settings that a config states."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2a.errors import S2AError

ATTENTION = (
    (r"\battention\.(?:attention|self)\.(query|key|value)\.", r"attn.\1."),
    (r"\battention\.output\.dense\.", "attn.proj."),
    (r"\bintermediate\.dense\.", "mlp.fc1."),
    (r"\boutput\.dense\.", "mlp.fc2."),
    (r"\blayernorm_before\.", "norm1."),
    (r"\blayernorm_after\.", "norm2."),
    # What version 5 of transformers calls them in memory; it saves the names above.
    (r"\battention\.q_proj\.", "attn.query."),
    (r"\battention\.k_proj\.", "attn.key."),
    (r"\battention\.v_proj\.", "attn.value."),
    (r"\battention\.o_proj\.", "attn.proj."),
)
"""Patterns of a transformer's block, and timm's names for what they match."""

_ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "gelu_python": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "quick_gelu": lambda x: x * torch.sigmoid(1.702 * x),
    "relu": F.relu,
    "silu": F.silu,
    "swish": F.silu,
}
"""What ``hidden_act`` of a config means."""


def rename(tensors: Mapping[str, Tensor], patterns: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
    """Tensors by new names.

    Args:
        tensors: By their old names.
        patterns: Regular expressions and replacements, applied to each name in this order.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = name
        for pattern, replacement in patterns:
            new = re.sub(pattern, replacement, new, count=1)
        found[new] = tensor
    return found


def drop(tensors: Mapping[str, Tensor], pattern: str) -> dict[str, Tensor]:
    """Tensors whose name does not begin with the pattern."""
    return {name: tensor for name, tensor in tensors.items() if not re.match(pattern, name)}


def join(tensors: Mapping[str, Tensor], parts: tuple[str, ...], whole: str) -> dict[str, Tensor]:
    """Layers side by side (``attn.query``, ``attn.key``, ``attn.value``) as one (``attn.qkv``), rows one after another.

    A layer of which a part is missing stays as it is: it then fits no name of the model.
    """
    found = dict(tensors)
    for name in tensors:
        if f".{parts[0]}." not in name:
            continue
        names = [name.replace(f".{parts[0]}.", f".{part}.") for part in parts]
        if all(other in tensors for other in names):
            found[name.replace(f".{parts[0]}.", f".{whole}.")] = torch.cat([found.pop(other) for other in names])
    return found


def set_epsilon(modules: Iterable[nn.Module], epsilon: Any) -> None:
    """Gives norms the epsilon that a config states; ``None`` leaves the model's."""
    if epsilon is None:
        return
    if isinstance(epsilon, bool) or not isinstance(epsilon, int | float) or not 0 <= epsilon < 1:
        raise S2AError(f"its layer_norm_eps is {epsilon!r}, a number from 0 to 1 is expected")
    for module in modules:
        if isinstance(module, nn.LayerNorm):
            module.eps = float(epsilon)


def check_activation(activation: nn.Module, wanted: Any) -> None:
    """Refuses a config whose ``hidden_act`` is not what the model computes.

    Raises:
        S2AError: Another function, or one that is not known here.
    """
    if wanted is None:
        return
    points = torch.linspace(-4, 4, 33)
    function = _ACTIVATIONS.get(wanted) if isinstance(wanted, str) else None
    if function is None or not torch.allclose(activation(points.clone()), function(points), atol=1e-5):
        raise S2AError(f"its hidden_act is {wanted!r}, the model computes {type(activation).__name__}")


def check_value(config: Mapping[str, Any], key: str, own: Any) -> None:
    """Refuses a config that states another value than the model's, where shapes do not show it.

    Raises:
        S2AError: Another value.
    """
    wanted = config.get(key, own)
    if isinstance(wanted, list | tuple):
        wanted, own = list(wanted), list(own)
    if wanted != own:
        raise S2AError(f"its {key} is {wanted!r}, the model's {own!r}")


def grid_of(config: Mapping[str, Any], tokens: int) -> tuple[int, int] | None:
    """Rows and columns of the grid of patches that a config states; ``None`` if that does not come to ``tokens``."""
    sizes: list[Any] = []
    for key in ("image_size", "patch_size"):
        value = config.get(key)
        sizes.append(value if isinstance(value, list) else [value, value])
    if any(len(size) != 2 or not all(isinstance(v, int) and v > 0 for v in size) for size in sizes):
        return None
    (height, width), (rows, columns) = sizes
    grid = height // rows, width // columns
    return grid if grid[0] * grid[1] == tokens else None
