"""ViT, DeiT, and DINOv2 with and without registers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from timm.layers.pos_embed import resample_abs_pos_embed
from torch import Tensor

from s2a.weights.huggingface.names import (
    ATTENTION,
    check_activation,
    check_value,
    drop,
    grid_of,
    join,
    rename,
    set_epsilon,
)

_NAMES = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.distillation_token$", "dist_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^(?:encoder\.layer|layers)\.(\d+)\.", r"blocks.\1."),
    *ATTENTION,
    (r"\blayer_scale([12])\.lambda1$", r"ls\1.gamma"),
    (r"\bmlp\.weights_in\.", "mlp.fc1."),
    (r"\bmlp\.(?:weights_out|down_proj)\.", "mlp.fc2."),
    (r"^layernorm\.", "norm."),
    (r"^(?:cls_)?classifier\.", "head."),
    (r"^distillation_classifier\.", "head_dist."),
)

_UNUSED = r"pooler\.|embeddings\.mask_token$|decoder\."
"""Of pretraining; no feature depends on them."""


def convert(tensors: dict[str, Tensor], config: Mapping[str, Any], model: Any) -> dict[str, Tensor]:
    """Tensors of a ViT by timm's names, with position embeddings of the model's grid.

    Args:
        tensors: Without prefix.
        config: Of ``config.json``; empty where there is none.
        model: The timm model.
    """
    found = rename(drop(tensors, _UNUSED), _NAMES)
    found = join(found, ("attn.query", "attn.key", "attn.value"), "attn.qkv")
    # SwiGLU: silu of the first half times the second, in timm's packed form too.
    found = join(found, ("mlp.gate_proj", "mlp.up_proj"), "mlp.fc1")
    positions = found.get("pos_embed")
    if positions is None or getattr(model, "pos_embed", None) is None:
        return found
    others = model.num_prefix_tokens
    if model.no_embed_class:
        # timm's model adds positions to patches alone: that of the class token becomes part of the token.
        found["cls_token"] = found["cls_token"] + positions[:, :1]
        positions, others = positions[:, 1:], 0
    if positions.shape[1] != model.pos_embed.shape[1]:
        positions = resample_abs_pos_embed(
            positions,
            new_size=model.patch_embed.grid_size,
            old_size=grid_of(config, positions.shape[1] - others),  # type: ignore[arg-type]
            num_prefix_tokens=others,
        )
    found["pos_embed"] = positions
    return found


def configure(config: Mapping[str, Any], model: Any) -> None:
    """Epsilon of the norms is applied; heads and activation, which no shape shows, must be the model's."""
    check_value(config, "num_attention_heads", model.blocks[0].attn.num_heads)
    if not config.get("use_swiglu_ffn"):
        check_activation(model.blocks[0].mlp.act, config.get("hidden_act"))
    set_epsilon(model.modules(), config.get("layer_norm_eps"))
