"""Tensors of a weights file, of a folder, or of a file in several parts."""

from __future__ import annotations

import argparse
import json
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import timm
import torch

from s2a.errors import S2AError

_STATES = ("state_dict_ema", "model_ema", "state_dict", "model")
"""Where a checkpoint of a training keeps its weights, as in timm: the first that is there."""

IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""Names under which weights lie in a folder of the Hugging Face hub; the first that is there is taken."""


READABLE = "give a .safetensors file, or a .pth file with the state_dict() of a model"
"""What to do about a file that cannot be read."""


def weight_files(path: Path) -> list[Path]:
    """The files that a path stands for: itself, the weights in a folder, or the parts that an index names.

    Args:
        path: A weights file, a folder as the Hugging Face hub has it, or an ``.index.json``.

    Raises:
        S2AError: No weights in the folder, or a part is missing.
    """
    if path.is_dir():
        found = next((path / name for name in IN_FOLDERS if (path / name).is_file()), None)
        if found is None:
            raise S2AError(f"{path} holds no weights: none of {', '.join(IN_FOLDERS)}; give the file itself.")
        path = found
    if not path.name.endswith(".index.json"):
        return [path]
    parts = read_json(path).get("weight_map")
    if not isinstance(parts, dict) or not parts or not all(_is_plain_name(name) for name in parts.values()):
        raise S2AError(f"{path} is no index of weights: it has no weight_map from tensors to file names.")
    files = [path.with_name(name) for name in sorted(set(parts.values()))]
    if lost := [file.name for file in files if not file.is_file()]:
        raise S2AError(f"{path} names {', '.join(lost)}, not there; get all {len(files)} parts.")
    return files


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors of a ``.safetensors`` or torch file by name, whatever version of timm is here.

    What timm's filter of an architecture unpacks (``teacher``, say) may lie deeper. Each tensor has its own storage. A
    safetensors file is mapped privately where the system maps files: changing a tensor never changes the file. Other
    files are read.

    Args:
        path: A file, a folder with one, or the index of a file in parts.

    Raises:
        S2AError: It holds something else.
    """
    found: dict[str, Any] = {}
    for file in weight_files(path):
        found |= _read_file(file)
    return found


def tensor_names(path: Path) -> set[str]:
    """Names of the tensors in a file, a folder or an index; those of safetensors are read without the tensors."""
    names: set[str] = set()
    for file in weight_files(path):
        if _is_safetensors(file):
            try:
                with safetensors.safe_open(file, "pt") as opened:
                    names |= set(opened.keys())
            except Exception as error:
                raise S2AError(f"{file} cannot be read as weights ({first_line(error)}); {READABLE}.") from error
        else:
            names |= _read_file(file).keys()
    return names


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        S2AError: It holds something else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise S2AError(f"{path} cannot be read as JSON ({first_line(error)}).") from error
    if not isinstance(found, dict):
        raise S2AError(f"{path} holds no JSON object.")
    return found


def first_line(error: Exception) -> str:
    """An error of a library in a few words."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:2])[:200]}"


def _read_file(path: Path) -> dict[str, Any]:
    try:
        found = _read_safetensors(path) if _is_safetensors(path) else _read_torch(path)
    except pickle.UnpicklingError as error:
        raise S2AError(
            f"{path} holds Python objects that could run any code, or is no weights file; it was not read. Save the "
            f"model's state_dict() alone, best as .safetensors ({first_line(error)})."
        ) from error
    except Exception as error:
        raise S2AError(f"{path} cannot be read as weights ({first_line(error)}); {READABLE}.") from error
    if isinstance(found, Mapping):
        key = next((key for key in _STATES if isinstance(found.get(key), Mapping)), None)
        found = timm.models.clean_state_dict(dict(found[key] if key else found))
        if any(isinstance(value, torch.Tensor | Mapping) for value in found.values()):
            return found
    raise S2AError(f"{path} holds no weights; give the state_dict() of a model, tensors by name.")


def _read_safetensors(path: Path) -> Any:
    """Maps the file; reads it where no file can be mapped."""
    try:
        return safetensors.torch.load_file(path)
    except (OSError, RuntimeError):
        return safetensors.torch.load(path.read_bytes())


def _read_torch(path: Path) -> Any:
    """Reads the file into memory; it is not mapped.

    ``torch.save`` shortens a file that is there before it reads the tensors: over a mapped one, it would end the
    process.
    """
    # Options of a training may lie beside the weights.
    with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals([argparse.Namespace]):
        return torch.load(path, map_location="cpu", weights_only=True, mmap=False)


def _is_safetensors(path: Path) -> bool:
    """Whether a file begins with the length of a header that it holds, and the header.

    A pickle's or a zip's first eight bytes are a length of many gigabytes.
    """
    with path.open("rb") as file:
        head = file.read(9)
    return head[8:] == b"{" and 8 + int.from_bytes(head[:8], "little") <= path.stat().st_size


def _is_plain_name(name: Any) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name
