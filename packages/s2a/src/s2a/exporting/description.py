"""What a file says about the model in it: class names, image format, and how timm builds the backbone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import timm
from timm.data.config import resolve_model_data_config
from torch import nn

from s2a.adapted import Adapted
from s2a.errors import S2AError

_NOT_STRUCTURE = ("num_classes", "drop_rate", "drop_path_rate", "device", "dtype", "pretrained_model_args")
"""Arguments of ``timm.create_model`` that the checkpoint decides, or that evaluation does not see."""


def labels_of(adapted: Adapted) -> list[str] | None:
    """The class names that came with the adapter, if any.

    Raises:
        S2AError: Another number than the model has classes.
    """
    labels = getattr(adapted, "labels", None)
    if labels is None:
        return None
    if len(labels) != adapted.num_classes:
        raise S2AError(
            f"The adapted model has {len(labels)} labels and {adapted.num_classes} classes; set adapted.labels to the "
            "names of its classes, or to None."
        )
    return [str(label) for label in labels]


def image_format(adapted: Adapted) -> dict[str, Any]:
    """Size, mean, standard deviation, interpolation and kind of resizing (``crop`` or ``squash``), as JSON has them."""
    card = _card(adapted)
    if isinstance(card.get("image"), Mapping):
        return dict(card["image"])
    resolved = resolve_model_data_config(adapted.backbone)
    sides = [int(side) for side in adapted.image_size]
    return {
        "size": sides[0] if sides[0] == sides[1] else sides,
        "mean": [float(value) for value in resolved["mean"]],
        "std": [float(value) for value in resolved["std"]],
        "interpolation": str(resolved["interpolation"]),
        "resize": "squash" if resolved.get("crop_mode") == "squash" else "crop",
    }


def facts_of(adapted: Adapted) -> dict[str, str]:
    """Metadata of an ONNX file or a program: every value is JSON."""
    return {
        "labels": json.dumps(labels_of(adapted)),
        "image": json.dumps(image_format(adapted)),
        "method": json.dumps(adapted.name),
    }


def architecture_of(adapted: Adapted, given: Mapping[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
    """The name that timm has for the backbone, and the arguments that build one of its form.

    Taken from the first of: ``given``; the backbone's attribute ``built_as`` (name and arguments, of models that go by
    a name of their own); the adapter's card; timm's own notes on the model.

    Args:
        adapted: The model.
        given: ``{"name": ..., "args": {...}}``.

    Raises:
        S2AError: timm knows no model of that name, or an argument is not of JSON.
    """
    model = adapted.backbone
    built_as: Any = getattr(model, "built_as", None)
    card = _card(adapted).get("backbone")
    config: Any = getattr(model, "pretrained_cfg", None) or {}
    arguments: dict[str, Any] = {}
    if given is not None:
        name, arguments = str(given["name"]), dict(given.get("args") or {})
    elif built_as is not None:
        name, arguments = str(built_as[0]), dict(built_as[1])
    elif isinstance(card, Mapping) and timm.is_model(_without_tag(str(card.get("name")))):
        name, arguments = str(card["name"]), dict(card.get("args") or {})
    else:
        name = str(config.get("architecture", ""))
        # Newer versions of timm note the arguments; where one that is no plain data matters, the comparison finds out.
        arguments = {key: value for key, value in getattr(model, "_model_args", {}).items() if _is_json(value)}
    name = _without_tag(name)
    if not timm.is_model(name):
        raise S2AError(
            f"timm knows no model {name!r}, so that nobody could load its checkpoint; pass backbone={{'name': timm's "
            "NAME, 'args': {...}}, or choose format 'onnx' or 'torch'."
        )
    arguments = {key: value for key, value in arguments.items() if key not in _NOT_STRUCTURE}
    if unwritten := [key for key, value in arguments.items() if not _is_json(value)]:
        raise S2AError(f"Argument {unwritten[0]!r} of the backbone cannot be written as JSON; give plain values.")
    return name, {**arguments, **_sizes(model)}


def _sizes(model: nn.Module) -> dict[str, Any]:
    """Image size of a model that is made for one."""
    patches = getattr(model, "patch_embed", None)
    sides = getattr(patches, "img_size", None)
    if sides is None:
        return {}
    found: dict[str, Any] = {"img_size": sides[0] if sides[0] == sides[1] else list(sides)}
    return found | ({"dynamic_img_size": True} if getattr(model, "dynamic_img_size", False) else {})


def _card(adapted: Adapted) -> Mapping[str, Any]:
    card = getattr(adapted, "card", None)
    return card if isinstance(card, Mapping) else {}


def _without_tag(name: str) -> str:
    return name.partition(".")[0]


def _is_json(value: Any) -> bool:
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return False
    return True
