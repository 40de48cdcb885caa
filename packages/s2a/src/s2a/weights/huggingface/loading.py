"""Puts tensors of Hugging Face's layout into a timm model, with what the configs beside them say."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from s2a.errors import S2AError
from s2a.weights.files import first_line, read_json
from s2a.weights.huggingface.layouts import MODEL_TYPES, Layout

log = logging.getLogger(__name__)

CONFIGS = ("config.json", "preprocessor_config.json")
"""Beside the weights: of the model, and of its images."""

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
"""Pillow's numbers, as ``preprocessor_config.json`` has them, and timm's names."""


def load(model: nn.Module, layout: Layout, state: Mapping[str, Any], path: Path, name: str) -> None:
    """Loads weights of a layout, all of them; a classifier of another shape than the model's is left out.

    Args:
        model: The timm model; unchanged if something does not fit.
        layout: Of ``state``.
        state: Tensors by the names of ``transformers``.
        path: Where they come from, with the configs beside them.
        name: The model's, for messages.

    Raises:
        S2AError: They are not weights of that model, or the config beside them asks for something it cannot do.
    """
    refused = f"{path} (Hugging Face's layout of a {layout.name}) does not hold weights of {name}"
    if not isinstance(model, layout.family):
        raise S2AError(f"{refused}, which is a {type(model).__name__}; name a backbone of that family.")
    config = _read_beside(path, "config.json")
    kind = config.get("model_type")
    if kind is None:
        config = {}  # of something else
    elif kind not in layout.model_types:
        raise S2AError(
            f"{refused}: config.json beside it is of a {kind!r}, not of a {' or '.join(layout.model_types)}."
        )
    images = _image_format(path)
    prefix = layout.prefix(state) or ""
    tensors = {key.removeprefix(prefix): value for key, value in state.items() if isinstance(value, Tensor)}
    try:
        found = layout.convert(tensors, config, model)
    except Exception as error:
        raise S2AError(f"{refused} ({first_line(error)}).") from error
    own = model.state_dict()
    kept = _fit_classifier(model, found, own)
    if reason := _difference(found, {key: value for key, value in own.items() if key not in kept}):
        raise S2AError(f"{refused}: {reason}.")
    try:
        layout.configure(config, model)
    except S2AError as error:
        raise S2AError(f"{refused} as config.json beside it describes it: {error}.") from error
    model.load_state_dict({**own, **found})
    if isinstance(cfg := getattr(model, "pretrained_cfg", None), dict):
        cfg.update(images)


def configs_beside(file: Path) -> list[Path]:
    """The configs of ``transformers`` beside a weights file; none if ``config.json`` is of no type understood here."""
    if model_type_beside(file) not in MODEL_TYPES:
        return []
    return [beside for name in CONFIGS if (beside := _folder(file) / name).is_file()]


def model_type_beside(path: Path) -> str | None:
    """``model_type`` of ``config.json`` beside a weights file or in a folder; ``None`` without one."""
    with contextlib.suppress(S2AError):
        kind = _read_beside(path, "config.json").get("model_type")
        return kind if isinstance(kind, str) else None
    return None


def _image_format(path: Path) -> dict[str, Any]:
    """Mean, standard deviation and interpolation that the weights were trained with, by timm's names."""
    given, found = _read_beside(path, "preprocessor_config.json"), {}
    for key, name in (("image_mean", "mean"), ("image_std", "std")):
        values = given.get(key)
        if isinstance(values, list) and len(values) == 3 and all(isinstance(v, int | float) for v in values):
            found[name] = tuple(float(v) for v in values)
    if given.get("resample") in _INTERPOLATIONS:
        found["interpolation"] = _INTERPOLATIONS[given["resample"]]
    return found


def _fit_classifier(model: nn.Module, found: dict[str, Tensor], own: Mapping[str, Tensor]) -> set[str]:
    """Takes a classifier that is not the model's out of ``found``.

    All or none: a model with two (DeiT) would otherwise mix a trained one with one that is not.

    Returns:
        Names of the model's tensors that keep their values.
    """
    names: Any = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    prefixes = tuple(f"{name}." for name in ([names] if isinstance(names, str) else names))
    ours = {name: value.shape for name, value in own.items() if name.startswith(prefixes)}
    theirs = {name: value.shape for name, value in found.items() if name.startswith(prefixes)}
    if ours == theirs:
        return set()
    if theirs:
        log.info("Classifier left out: %s in the file, %s in the model.", _shapes(theirs), _shapes(ours) or "none")
    for name in theirs:
        del found[name]
    return set(ours)


def _difference(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """In which names and shapes the two differ, as part of a sentence; empty where they do not."""
    other = [n for n in found if n in wanted and found[n].shape != wanted[n].shape]
    lost = [n for n in wanted if n not in found]
    surplus = [n for n in found if n not in wanted]
    parts = []
    if other:
        shapes = f"{other[0]} is {tuple(found[other[0]].shape)}, the model's {tuple(wanted[other[0]].shape)}"
        parts.append(f"{len(other)} tensors have another shape ({shapes})")
    parts += [
        f"{len(names)} tensors {what} ({', '.join(names[:3])}{' ...' if len(names) > 3 else ''})"
        for names, what in ((lost, "are missing"), (surplus, "are not the model's"))
        if names
    ]
    return "; ".join(parts)


def _shapes(shapes: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {tuple(shape)}" for name, shape in shapes.items())


def _folder(path: Path) -> Path:
    return path if path.is_dir() else path.parent


def _read_beside(path: Path, name: str) -> dict[str, Any]:
    file = _folder(path) / name
    return read_json(file) if file.is_file() else {}
