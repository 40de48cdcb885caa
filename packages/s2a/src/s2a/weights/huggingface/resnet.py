"""ResNet."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from s2a.weights.huggingface.names import check_activation, check_value, rename

_NAMES = (
    (r"^embedder\.embedder\.convolution\.", "conv1."),
    (r"^embedder\.embedder\.normalization\.", "bn1."),
    (r"\.shortcut\.convolution\.", ".downsample.0."),
    (r"\.shortcut\.normalization\.", ".downsample.1."),
    (r"^classifier\.1\.", "fc."),
)


def convert(tensors: dict[str, Tensor], config: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Tensors of a ResNet by timm's names: its stages and the layers of a block are counted from 1.

    Args:
        tensors: Without prefix.
        config: Of ``config.json``; not needed.
        model: The timm model.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in rename(tensors, _NAMES).items():
        name = re.sub(r"^encoder\.stages\.(\d+)\.layers\.", lambda m: f"layer{int(m[1]) + 1}.", name)
        name = re.sub(r"\.layer\.(\d+)\.convolution\.", lambda m: f".conv{int(m[1]) + 1}.", name)
        name = re.sub(r"\.layer\.(\d+)\.normalization\.", lambda m: f".bn{int(m[1]) + 1}.", name)
        found[name] = tensor
        if name.endswith(".running_mean"):  # A count of batches that some files leave out.
            found.setdefault(name.replace("running_mean", "num_batches_tracked"), torch.tensor(0))
    return found


def configure(config: Mapping[str, Any], model: Any) -> None:
    """Activation and where stages reduce the resolution, which no shape shows, must be the model's."""
    check_activation(model.act1, config.get("hidden_act"))
    check_value(config, "downsample_in_first_stage", False)
    check_value(config, "downsample_in_bottleneck", False)
