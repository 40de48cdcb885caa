"""What a file says about the model in it: class names, image format, and how timm builds the backbone."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

import timm

from s2a.adapted import Adapted
from s2a.backbones.view import input_channels
from s2a.errors import S2AError
from s2a.pretrained.backbone import describe_backbone

_NOT_STRUCTURE = ("num_classes", "drop_rate", "drop_path_rate")
"""Arguments of ``timm.create_model`` that the trained head decides, or that evaluation does not see."""


def labels_of(adapted: Adapted) -> list[str] | None:
    """The class names that came with the adapter, if any.

    Raises:
        S2AError: Another number than the model has classes.
    """
    labels = adapted.labels
    if labels is None:
        return None
    if len(labels) != adapted.num_classes:
        raise S2AError(
            f"The adapted model has {len(labels)} labels and {adapted.num_classes} classes; set adapted.labels to the "
            "names of its classes, or to None."
        )
    return [str(label) for label in labels]


def image_format(adapted: Adapted) -> dict[str, Any] | None:
    """Fields of ``s2a.image_transform.ImageTransform``; ``None`` for a model that does not take RGB images."""
    if input_channels(adapted.backbone) != 3:
        return None
    return dataclasses.asdict(adapted.transform())


def input_shape(adapted: Adapted) -> tuple[int, int, int]:
    """Channels, height and width of an image as the model takes it."""
    channels = input_channels(adapted.backbone)
    height, width = adapted.transform().sides if channels == 3 else adapted.image_size
    return channels, height, width


def facts_of(adapted: Adapted) -> dict[str, str]:
    """Metadata of an ONNX file or a program: every value is JSON."""
    return {
        "labels": json.dumps(labels_of(adapted)),
        "image": json.dumps(image_format(adapted)),
        "method": json.dumps(adapted.name),
    }


def first_line(error: BaseException) -> str:
    """The beginning of another library's error, with its type."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:200]}" if text else type(error).__name__


def architecture_of(adapted: Adapted, given: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The name that timm has for the backbone, and the arguments that build one of its form.

    Taken from the first of: ``given``; the backbone's attribute ``built_as`` (name and arguments, of models that go by
    a name of their own); the adapter's card; timm's own notes on the model.

    Args:
        adapted: The model.
        given: ``{"name": ..., "args": {...}}``.

    Raises:
        S2AError: timm knows no model of that name, or it makes another one.
    """
    built_as: Any = getattr(adapted.backbone, "built_as", None)
    if given is None and built_as is not None:
        given = {"name": built_as[0], "args": dict(built_as[1])}
    if given is None and adapted.card is not None:
        given = adapted.card["backbone"]
    found = describe_backbone(adapted, given)
    name = str(found["name"])
    if not timm.is_model(name):
        raise S2AError(
            f"timm knows no model {name!r}, so that nobody could load its checkpoint; pass backbone={{'name': timm's "
            "NAME, 'args': {...}}, or choose format 'onnx' or 'torch'."
        )
    arguments = {key: value for key, value in found["args"].items() if key not in _NOT_STRUCTURE}
    return name.partition(".")[0], arguments
