"""ConvNeXt and ConvNeXt V2."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from s2a.weights.huggingface.names import check_activation, rename, set_epsilon

_NAMES = (
    (r"^embeddings\.patch_embeddings\.", "stem.0."),
    (r"^embeddings\.layernorm\.", "stem.1."),
    (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
    (r"^encoder\.stages\.(\d+)\.layers\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.dwconv\.", ".conv_dw."),
    (r"\.layernorm\.", ".norm."),
    (r"\.pwconv([12])\.", r".mlp.fc\1."),
    (r"\.layer_scale_parameter$", ".gamma"),
    (r"\.grn\.", ".mlp.grn."),
    (r"^layernorm\.", "head.norm."),
    (r"^classifier\.", "head.fc."),
)

_INNER_EPSILON = 1e-6
"""Of all norms but the last: written in the code of ``transformers``, not in its config."""


def convert(tensors: dict[str, Tensor], config: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Tensors of a ConvNeXt by timm's names.

    Args:
        tensors: Without prefix.
        config: Of ``config.json``; not needed.
        model: The timm model.
    """
    found = rename(tensors, _NAMES)
    own = model.state_dict()
    for name, tensor in found.items():
        # Pointwise layers are linear layers or convolutions, the response normalisation is (1, 1, 1, C) or (C,).
        wanted = own[name].shape if name in own else tensor.shape
        if [n for n in wanted if n != 1] == [n for n in tensor.shape if n != 1]:
            found[name] = tensor.reshape(wanted)
    return found


def configure(config: Mapping[str, Any], model: Any) -> None:
    """Epsilon of the last norm is applied; the activation must be the model's."""
    check_activation(model.stages[0].blocks[0].mlp.act, config.get("hidden_act"))
    last = model.head.norm
    set_epsilon((m for m in model.modules() if isinstance(m, nn.LayerNorm) and m is not last), _INNER_EPSILON)
    set_epsilon([last], config.get("layer_norm_eps"))
