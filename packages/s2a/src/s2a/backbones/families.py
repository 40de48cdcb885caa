"""The one table of backbone families: where blocks, norms and linear layers are.

A family is one entry of ``FAMILIES``; ``backbones`` sees a model through it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

from timm.models.convnext import ConvNeXt, ConvNeXtBlock
from timm.models.eva import Eva
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer, SwinTransformerBlock
from timm.models.vision_transformer import Block as ViTBlock
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from s2a.backbones.refusals import refusal_sentence
from s2a.errors import UnsupportedModel

Layout = Literal["NLC", "NHWC", "NCHW"]


@dataclasses.dataclass(frozen=True)
class Family:
    """What is common to all models of one class.

    Attributes:
        name: Short name, used in presets and messages.
        cls: timm's model class.
        stages: Model -> names of its residual blocks, stage by stage.
        layout: Of a block's input: ``NLC`` tokens, ``NHWC`` or ``NCHW`` maps.
        linears: Role -> path of the frozen linear inside a block; a block may lack some.
        parts: Role (``attn_norm``, ``attn``, ``mlp_norm``, ``mlp``) -> path of the module inside a block; a block may
            lack some.
        steps: Model -> what ``forward_features`` calls one after the other, blocks apart from their containers.
        plain: timm's classes of blocks whose attention and MLP get what their norm returns and nothing else reads it.
        final_norm: Path of the last normalisation layer, in front of pooling or classifier; empty if there is none.
        windowed: Attention runs in windows of each block's ``window_size``.
    """

    name: str
    cls: type[nn.Module]
    stages: Callable[[Any], list[list[str]]]
    layout: Layout
    linears: dict[str, str]
    parts: dict[str, str]
    final_norm: str
    windowed: bool = False
    plain: tuple[type[nn.Module], ...] = ()
    steps: Callable[[Any], list[Callable[[Tensor], Tensor]]] | None = None


def _flat(attribute: str, model: Any) -> list[list[str]]:
    return [[f"{attribute}.{i}" for i in range(len(getattr(model, attribute)))]]


def _nested(attribute: str, model: Any) -> list[list[str]]:
    return [
        [f"{attribute}.{s}.blocks.{i}" for i in range(len(stage.blocks))]
        for s, stage in enumerate(getattr(model, attribute))
    ]


def _resnet_stages(model: Any) -> list[list[str]]:
    return [[f"layer{s}.{i}" for i in range(len(getattr(model, f"layer{s}")))] for s in range(1, 5)]


def _vit_steps(model: Any) -> list[Callable[[Tensor], Tensor]]:
    return [model.patch_embed, model._pos_embed, model.patch_drop, model.norm_pre, *model.blocks, model.norm]


def _stage_steps(first: str, stages: str, last: str, model: Any) -> list[Callable[[Tensor], Tensor]]:
    parts = [part for stage in getattr(model, stages) for part in (stage.downsample, *stage.blocks)]
    return [getattr(model, first), *parts, getattr(model, last)]


_MLP = {"fc1": "mlp.fc1", "fc2": "mlp.fc2"}
_LINEARS = {"qkv": "attn.qkv", "proj": "attn.proj", **_MLP}
_PARTS = {"attn_norm": "norm1", "attn": "attn", "mlp_norm": "norm2", "mlp": "mlp"}

FAMILIES: tuple[Family, ...] = (
    Family(
        "vit",
        VisionTransformer,
        partial(_flat, "blocks"),
        "NLC",
        _LINEARS,
        _PARTS,
        "norm",
        plain=(ViTBlock,),
        steps=_vit_steps,
    ),
    Family("vit", Eva, partial(_flat, "blocks"), "NLC", _LINEARS, _PARTS, "norm"),
    Family(
        "swin",
        SwinTransformer,
        partial(_nested, "layers"),
        "NHWC",
        _LINEARS,
        _PARTS,
        "norm",
        windowed=True,
        plain=(SwinTransformerBlock,),
        steps=partial(_stage_steps, "patch_embed", "layers", "norm"),
    ),
    Family(
        "convnext",
        ConvNeXt,
        partial(_nested, "stages"),
        "NCHW",
        _MLP,
        {"mlp_norm": "norm", "mlp": "mlp"},
        "head.norm",
        plain=(ConvNeXtBlock,),
        steps=partial(_stage_steps, "stem", "stages", "norm_pre"),
    ),
    Family("resnet", ResNet, _resnet_stages, "NCHW", {f"conv{i}": f"conv{i}" for i in (1, 2, 3)}, {}, ""),
)


def family_of(model: nn.Module) -> Family:
    """The table entry of a model.

    Raises:
        UnsupportedModel: Its class is in no entry.
    """
    for family in FAMILIES:
        if isinstance(model, family.cls):
            return family
    raise UnsupportedModel(refusal_sentence(model, [(family.cls, family.name) for family in FAMILIES]))
