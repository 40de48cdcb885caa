"""Writes an adapter folder."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from s2a import saved_file
from s2a.adapted import Adapted, classes_of, require_adapted, trainable_parameters
from s2a.backbones.number_format import HALVES
from s2a.backbones.view import input_channels
from s2a.errors import S2AError
from s2a.image_transform import ImageTransform, make_transform
from s2a.pretrained.backbone import check_image_size, describe_backbone
from s2a.pretrained.card import make_card
from s2a.pretrained.config import CARD_FILE, CONFIG_FILE, SCHEMA, STATE_FILE, check_labels, plain, write_config
from s2a.pretrained.folder import check_target, replacing_folder
from s2a.state import save


def save_pretrained(
    adapted: Adapted,
    folder: str | os.PathLike[str],
    *,
    labels: Iterable[str] | None = None,
    metrics: Mapping[str, Any] | None = None,
    backbone: Mapping[str, Any] | None = None,
    image: Mapping[str, Any] | ImageTransform | None = None,
    data: Mapping[str, Any] | None = None,
    licence: str | None = None,
) -> Path:
    """Writes a folder from which ``s2a.from_pretrained`` makes the adapted model again, with nothing else given.

    It holds ``adapter_model.safetensors`` (as ``s2a.save`` writes it), ``adapter_config.json`` (see
    ``s2a.pretrained.config``) and a model card, ``README.md``. It is written whole or not at all. The same model and
    arguments give the same bytes, as long as s2a, torch and timm have the same versions.

    What is left out is taken from the folder that the model came from, if it came from one: all but the metrics.

    Args:
        adapted: What ``s2a.attach`` or ``s2a.from_pretrained`` returned; its head is linear, or there is none.
        folder: Where to; a folder that is there already is replaced if it holds an adapter and nothing else.
        labels: Class names in the order of the outputs.
        metrics: Results by name, for example ``{"accuracy": 91.2}``: percent, MB of 1e6 bytes. Names of a bench record
            are put into words in the card.
        backbone: ``{"name": ..., "args": {...}, "weights": {"hub", "revision", "file", "sha256"}}``: timm's name with
            its tag, or a name of the entry-point group ``s2a.backbones``; the arguments it was made with; where its
            weights come from. ``None``: what timm noted in the model.
        image: ``size``, ``mean``, ``std``, ``interpolation`` and ``resize``, see ``s2a.image_transform``; ``None``:
            timm's for this model, cropped.
        data: What it was trained on: ``name``, ``data_id``, ``split_id``, ``counts``, ``licence`` or anything else.
        licence: Of the backbone's weights, which binds the adapter too; ``None``: what timm says.

    Returns:
        The folder's path.

    Raises:
        S2AError: What was given does not fit the model or cannot be written, or something else is in the folder's
            place; nothing was written.
    """
    adapted = require_adapted("save_pretrained", adapted)
    target = check_target(folder)
    config = make_config(adapted, labels, metrics, backbone, image, data, licence)
    with replacing_folder(target) as temporary:
        state = temporary / STATE_FILE
        save(adapted, state)
        header = saved_file.read(state).header
        config["checksum"], config["backbone"]["id"] = header["checksum"], header["backbone_id"]
        config["memory"]["adapter_bytes"] = state.stat().st_size
        write_config(temporary / CONFIG_FILE, config)
        (temporary / CARD_FILE).write_text(make_card(config), encoding="utf-8")
    return target


def make_config(
    adapted: Adapted,
    labels: Iterable[str] | None,
    metrics: Mapping[str, Any] | None,
    backbone: Mapping[str, Any] | None,
    image: Mapping[str, Any] | ImageTransform | None,
    data: Mapping[str, Any] | None,
    licence: str | None,
) -> dict[str, Any]:
    """The config of an adapted model, without what only the written state says.

    Raises:
        S2AError: As ``save_pretrained``.
    """
    former = adapted.card or {}
    classes = _check_head(adapted.head)
    for name, value in (("metrics", metrics), ("data", data)):
        if value is not None and not isinstance(value, Mapping):
            raise S2AError(f"{name} is a mapping, not {type(value).__name__}.")
    if licence is not None and (not isinstance(licence, str) or not licence.strip()):
        raise S2AError(f"licence {licence!r} is no text; give an identifier such as 'apache-2.0'.")
    described = describe_backbone(adapted, former.get("backbone") if backbone is None else backbone)
    own = str((getattr(adapted.backbone, "pretrained_cfg", None) or {}).get("license") or "")
    known = licence or (former.get("backbone") or {}).get("licence") or own
    transform = _transform_of(adapted, image)
    names = adapted.labels if labels is None and len(adapted.labels or ()) == classes else labels
    return {
        "schema": SCHEMA,
        "library": "s2a",
        "method": adapted.name,
        "package": type(adapted.method).__module__.partition(".")[0],
        "config": plain(dataclasses.asdict(adapted.config), "config"),
        "num_classes": classes,
        "checksum": "",
        "backbone": {
            **described,
            "id": "",
            "dtype": adapted._attached.dtype,
            "frozen_dtype": _frozen_dtype(adapted),
            "licence": plain(known, "licence") if known and known != "unknown" else None,
        },
        "image": None if transform is None else plain(dataclasses.asdict(transform), "image"),
        "labels": check_labels(names, classes),
        "metrics": None if metrics is None else plain(metrics, "metrics"),
        "data": plain(former.get("data") if data is None else data, "data"),
        "memory": _sizes(adapted),
        "versions": {"s2a": _version(), "timm": timm.__version__, "torch": torch.__version__},
    }


def _check_head(head: nn.Module) -> int:
    """Outputs of the head, 0 without one."""
    if type(head) in (nn.Linear, nn.Identity):
        return classes_of(head)
    raise S2AError(
        f"The head is a {type(head).__name__}; an adapter folder describes a linear one, or none. Save with s2a.save, "
        "and load with s2a.load(model, path, head=...)."
    )


def _transform_of(adapted: Adapted, image: Mapping[str, Any] | ImageTransform | None) -> ImageTransform | None:
    """What the folder says of images; ``None`` for a model that does not take three channels."""
    model = adapted.backbone
    if input_channels(model) != 3:
        if image is not None:
            raise S2AError(f"the model takes {input_channels(model)} channels; only RGB images can be described.")
        return None
    if image is None:
        return adapted.transform()
    transform = image if isinstance(image, ImageTransform) else make_transform(image)
    check_image_size(adapted, transform)
    return transform


def _frozen_dtype(adapted: Adapted) -> str | None:
    """The half-precision format that ``s2a.cast_frozen`` gave the frozen weights of a backbone in another format."""
    if adapted._attached.dtype in ("bfloat16", "float16"):
        return None
    formats = {
        m.weight.dtype
        for m in adapted.backbone.modules()
        if isinstance(m, nn.Linear | nn.Conv2d) and isinstance(m.weight, torch.Tensor) and not m.weight.requires_grad
    }
    half = [dtype for dtype in HALVES if dtype in formats]
    return str(half[0]).removeprefix("torch.") if half else None


def _sizes(adapted: Adapted) -> dict[str, int]:
    parameters = list(adapted.parameters())
    trained = adapted._trained | trainable_parameters(adapted).keys()
    return {
        "params_trained": sum(p.numel() for name, p in adapted.named_parameters() if name in trained),
        "params_total": sum(p.numel() for p in parameters),
        "backbone_bytes": sum(t.numel() * t.element_size() for t in adapted.backbone.parameters()),
        "adapter_bytes": 0,
    }


def _version() -> str:
    return str(sys.modules["s2a"].__version__)  # Importing it would turn the direction of imports round.
