"""Bias tuning: every additive bias of the backbone trains, and nothing else of it."""

from __future__ import annotations

from torch import nn

_SEPARATE = ("q_bias", "k_bias", "v_bias")
"""Attention biases that some models keep outside their linear layer (Swin v2, EVA)."""


def additive_biases(model: nn.Module) -> dict[str, nn.Parameter]:
    """Name -> bias of every linear, convolution and normalisation layer of a model.

    Swin's ``relative_position_bias_table`` is added to attention logits, not to a layer's output; it does not count.
    """
    found = {}
    for name, parameter in model.named_parameters():
        leaf = name.rpartition(".")[2]
        if leaf == "bias" or leaf in _SEPARATE:
            found[name] = parameter
    return found
