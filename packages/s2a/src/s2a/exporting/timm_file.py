"""A plain timm checkpoint of the merged model: one file, or a folder in the layout of timm's models on the hub."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from timm.models import filter_pretrained_cfg
from torch import Tensor, nn

from s2a.adapted import Adapted
from s2a.attach import merge
from s2a.errors import S2AError
from s2a.exporting.description import architecture_of, first_line, image_format, input_shape, labels_of
from s2a.registry import Method, get_entry, list_methods

WEIGHTS, CONFIG = "model.safetensors", "config.json"
"""Files of a folder."""


def write_timm(adapted: Adapted, path: Path, backbone: Mapping[str, Any] | None) -> list[Callable[[Tensor], Tensor]]:
    """Writes the merged model.

    Args:
        adapted: In float32 on the CPU.
        path: A ``.safetensors`` file, or an empty folder.
        backbone: See ``architecture_of``.

    Returns:
        What was written, loaded by timm in every way in which it can be.

    Raises:
        S2AError: The method does not merge, or timm builds another model.
    """
    model = _merged(adapted)
    name, arguments = architecture_of(adapted, backbone)
    config = _config(adapted, model, name, arguments)
    tensors = {key: tensor.detach().contiguous().clone() for key, tensor in model.state_dict().items()}
    file = path
    if path.is_dir():
        (path / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        file = path / WEIGHTS
    save_file(tensors, file, metadata={"format": "pt", **{k: _text(value) for k, value in config.items()}})
    file.chmod(0o644)  # safetensors writes for the owner alone
    ways: list[dict[str, Any]] = [
        {"model_name": name, "checkpoint_path": str(file), "num_classes": config["num_classes"], **arguments}
    ]
    if file is not path:
        ways.append({"model_name": f"local-dir:{path}", "pretrained": True})
    return [_built(name, arguments, way) for way in ways]


def _merged(adapted: Adapted) -> Any:
    """The plain model with the trained weights; a head without bias gets one of zeros, as timm's heads have it.

    Raises:
        S2AError: The method adds what the backbone cannot compute, or the head is not timm's.
    """
    head = adapted.head
    if type(head) not in (nn.Linear, nn.Identity):
        raise S2AError(
            f"The head is a {type(head).__name__}, where timm's models have a linear layer; choose format 'onnx' or "
            "'torch', which keep it."
        )
    if why := adapted.method.why_no_fold():
        others = [get_entry(name) for name in list_methods() if name != adapted.name]
        able = [entry.name for entry in others if entry.method.fold is not Method.fold]
        raise S2AError(
            f"Method {adapted.name!r} cannot be merged into a plain timm checkpoint ({', '.join(able)} can); choose "
            f"format 'onnx' or 'torch', which keep what it adds in the graph. {why}"
        )
    if isinstance(head, nn.Linear) and head.bias is None:
        head.bias = nn.Parameter(torch.zeros(head.out_features))
    try:
        return merge(adapted)
    except S2AError as error:
        raise S2AError(f"{str(error).rstrip('.')}. Formats 'onnx' and 'torch' take every method.") from error


def _config(adapted: Adapted, model: Any, name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """``config.json`` as timm reads it."""
    image = image_format(adapted)
    shape = input_shape(adapted)
    source = filter_pretrained_cfg(dict(model.pretrained_cfg), remove_source=True, remove_null=True)
    dropped = ("architecture", "label_offset", "label_names", "test_input_size", "test_crop_pct", "min_input_size")
    kept = {key: value for key, value in source.items() if key not in (*dropped, "custom_load", "state_dict")}
    described = {**kept, "input_size": shape, "num_classes": adapted.num_classes, "custom_load": False}
    if image is not None:
        crops = image["resize"] == "crop"
        described |= {key: image[key] for key in ("mean", "std", "interpolation")}
        described["crop_pct"] = _crop_fraction(shape[1]) if crops else 1.0
        described["crop_mode"] = "center" if crops else "squash"
    labels = labels_of(adapted)
    return {
        "architecture": name,
        "num_classes": adapted.num_classes,
        "num_features": int(model.num_features),
        **({"label_names": labels} if labels else {}),
        "model_args": arguments,
        "pretrained_cfg": described,
    }


def _crop_fraction(size: int) -> float:
    """The fraction for which timm resizes the short side to ``round(size * 8 / 7)``: ``floor(size / fraction)``."""
    short = round(size * 8 / 7)
    return 0.875 if math.floor(size / 0.875) == short else size / (short + 0.5)


def _built(name: str, arguments: dict[str, Any], way: dict[str, Any]) -> Any:
    try:
        return timm.create_model(**way).eval()
    except Exception as error:
        raise S2AError(
            f"timm's {name} with {arguments} is not this backbone ({first_line(error)}); pass the "
            "arguments it was created with, backbone={'name': ..., 'args': {...}}, or choose format 'onnx' or 'torch'."
        ) from error


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
