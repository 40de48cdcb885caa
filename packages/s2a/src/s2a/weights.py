"""Weights of a timm model from a file: safetensors, torch, or Google's ``.npz``. Nothing in a file is run."""

from __future__ import annotations

import argparse
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import timm
import torch
from torch import nn

from s2a.errors import S2AError

_STATES = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where a checkpoint of a training keeps its weights, as in timm: the first that is there."""


def create_with_weights(name: str, path: Path, **arguments: Any) -> nn.Module:
    """One of timm's models with the weights of a file, which timm's own filters bring into its present form.

    Args:
        name: timm's name of it.
        path: The file.
        **arguments: Of ``timm.create_model``.

    Raises:
        S2AError: The file does not hold weights of that model.
    """
    # Weights in Google's own layout, which only the model's class knows; NumPy reads them without running code.
    overlay: dict[str, Any] = {"file": str(path), "custom_load": True}
    if path.suffix != ".npz":
        overlay = {"state_dict": read_weights(path), "custom_load": False}
    try:
        model: Any = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except Exception as error:
        raise S2AError(f"{path} does not hold weights of {name} ({_first_line(error)}).") from error
    assert isinstance(model.pretrained_cfg, dict)
    model.pretrained_cfg.update(file=str(path), state_dict=None)  # else the model would hold its weights twice
    return model


def load_file(model: nn.Module, path: Path, name: str) -> None:
    """Loads a file whose names are the model's own, classifier included.

    Raises:
        S2AError: It does not hold weights of that model, which ``name`` names in the message.
    """
    state = read_weights(path)
    try:
        model.load_state_dict(state)
    except Exception as error:
        raise S2AError(f"{path} does not hold weights of {name} ({_first_line(error)}).") from error


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` or torch file by name, whatever version of timm is here.

    What timm's filter of an architecture unpacks (``teacher``, say) may lie deeper.

    Raises:
        S2AError: It holds something else.
    """
    with path.open("rb") as file:
        head = file.read(9)
    try:
        if head[8:] == b"{" and not head.startswith((b"PK", b"\x80")):
            found: Any = safetensors.torch.load_file(path)
        else:
            # Options of a training may lie beside the weights.
            with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
                found = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise S2AError(
            f"{path} holds Python objects that could run any code, or is no weights file; it was not read. Save the "
            f"model's state_dict() alone, best as .safetensors ({_first_line(error)})."
        ) from error
    except Exception as error:
        raise S2AError(f"{path} cannot be read as weights ({_first_line(error)}).") from error
    if isinstance(found, Mapping):
        key = next((key for key in _STATES if isinstance(found.get(key), Mapping)), None)
        found = timm.models.clean_state_dict(dict(found[key] if key else found))
        if any(isinstance(value, torch.Tensor | Mapping) for value in found.values()):
            return found
    raise S2AError(f"{path} holds no weights; give the state_dict() of a model, tensors by name.")


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:200]}"
