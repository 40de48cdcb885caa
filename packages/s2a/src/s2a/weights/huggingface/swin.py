"""Swin."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

from timm.layers.pos_embed_rel import resize_rel_pos_bias_table
from torch import Tensor

from s2a.weights.huggingface.names import ATTENTION, check_activation, check_value, drop, join, rename, set_epsilon

_NAMES = (
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^embeddings\.norm\.", "patch_embed.norm."),
    (r"^encoder\.layers\.", "layers."),
    *ATTENTION,
    (
        r"\battention\.(?:self|relative_position_bias)\.relative_position_bias_table$",
        "attn.relative_position_bias_table",
    ),
    (r"^layernorm\.", "norm."),
    (r"^classifier\.", "head.fc."),
)

_UNUSED = r"pooler\.|embeddings\.mask_token$|decoder\.|.*\brelative_position_index$"
"""Of pretraining, or made again by the model."""


def convert(tensors: dict[str, Tensor], config: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Tensors of a Swin by timm's names, with tables of relative positions of the model's windows.

    Args:
        tensors: Without prefix.
        config: Of ``config.json``; not needed.
        model: The timm model.
    """
    found: dict[str, Tensor] = {}
    for name, tensor in rename(drop(tensors, _UNUSED), _NAMES).items():
        # Hugging Face's stages end with a downsampling, timm's begin with it.
        stage, dot, rest = name.removeprefix("layers.").partition(".")
        if dot and rest.startswith("downsample.") and stage.isdigit():
            name = f"layers.{int(stage) + 1}.{rest}"
        found[name] = tensor
    found = join(found, ("attn.query", "attn.key", "attn.value"), "attn.qkv")
    for name, module in model.named_modules():
        table = found.get(f"{name}.relative_position_bias_table")
        if table is not None:
            wanted = module.relative_position_bias_table.shape
            if table.shape != wanted and table.shape[-1] == wanted[-1]:
                with warnings.catch_warnings(action="ignore"):  # torch's, about how timm calls it
                    table = resize_rel_pos_bias_table(table, new_window_size=module.window_size, new_bias_shape=wanted)
                found[f"{name}.relative_position_bias_table"] = table
    return found


def configure(config: Mapping[str, Any], model: Any) -> None:
    """Epsilon of the blocks' norms and the last one is applied; heads and activation must be the model's."""
    blocks = [block for stage in model.layers for block in stage.blocks]
    check_value(config, "num_heads", [stage.blocks[0].attn.num_heads for stage in model.layers])
    check_activation(blocks[0].mlp.act, config.get("hidden_act"))
    norms = [norm for block in blocks for norm in (block.norm1, block.norm2)]
    set_epsilon([*norms, model.norm], config.get("layer_norm_eps"))
