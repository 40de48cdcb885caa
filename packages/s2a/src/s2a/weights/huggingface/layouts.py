"""The layouts that are understood, and which of them a file has."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from timm.models.convnext import ConvNeXt
from timm.models.resnet import ResNet
from timm.models.swin_transformer import SwinTransformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from s2a.weights.huggingface import convnext, resnet, swin, vit


@dataclasses.dataclass(frozen=True)
class Layout:
    """How ``transformers`` names and shapes the tensors of a family, and what else it knows of it.

    Attributes:
        name: For messages.
        model_types: ``model_type`` in ``config.json`` of the models that have it.
        markers: Names, after the prefix, that all its files have and no other layout has together.
        family: timm's class of these models.
        convert: Tensors without prefix, config and model, to tensors by timm's names.
        configure: Applies what the config says to the model, or refuses it with an ``S2AError`` that ends a sentence.
    """

    name: str
    model_types: tuple[str, ...]
    markers: tuple[str, ...]
    family: type[nn.Module]
    convert: Callable[[dict[str, Tensor], Mapping[str, Any], Any], dict[str, Tensor]]
    configure: Callable[[Mapping[str, Any], Any], None]

    def prefix(self, names: Iterable[str]) -> str | None:
        """What stands before the markers (``vit.``, or nothing); ``None`` where they are not all there."""
        names = set(names)
        for name in names:
            if name.endswith(self.markers[0]):
                prefix = name.removesuffix(self.markers[0])
                if (not prefix or prefix.endswith(".")) and all(prefix + other in names for other in self.markers):
                    return prefix
        return None


LAYOUTS = (
    Layout(
        name="ViT",
        model_types=("vit", "deit", "dinov2", "dinov2_with_registers"),
        markers=("embeddings.cls_token", "embeddings.patch_embeddings.projection.weight"),
        family=VisionTransformer,
        convert=vit.convert,
        configure=vit.configure,
    ),
    Layout(
        name="Swin",
        model_types=("swin",),
        markers=("embeddings.norm.weight", "embeddings.patch_embeddings.projection.weight"),
        family=SwinTransformer,
        convert=swin.convert,
        configure=swin.configure,
    ),
    Layout(
        name="ConvNeXt",
        model_types=("convnext", "convnextv2"),
        markers=("embeddings.layernorm.weight", "embeddings.patch_embeddings.weight"),
        family=ConvNeXt,
        convert=convnext.convert,
        configure=convnext.configure,
    ),
    Layout(
        name="ResNet",
        model_types=("resnet",),
        markers=("embedder.embedder.convolution.weight",),
        family=ResNet,
        convert=resnet.convert,
        configure=resnet.configure,
    ),
)

MODEL_TYPES = tuple(kind for layout in LAYOUTS for kind in layout.model_types)


def find_layout(names: Iterable[str]) -> Layout | None:
    """The layout that tensors of these names have; ``None`` if it is none of Hugging Face's."""
    names = set(names)
    return next((layout for layout in LAYOUTS if layout.prefix(names) is not None), None)
