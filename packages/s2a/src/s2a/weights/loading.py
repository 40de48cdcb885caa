"""Puts the weights of a file into a timm model."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
from torch import nn

from s2a.errors import S2AError
from s2a.weights import huggingface
from s2a.weights.files import first_line, read_weights, tensor_names, weight_files
from s2a.weights.mapping import AssignFrom, align_classifier, make_with

OTHERS = "give a file of this architecture, or name the backbone that the file belongs to"
"""What to do about weights of another architecture."""


def create_with_weights(name: str, path: Path, **arguments: Any) -> nn.Module:
    """One of timm's models with the weights of a file, which timm's own filters bring into its present form.

    The model's tensors are the memory of what was read wherever the file holds them as they are
    (``s2a.weights.mapping``): nothing is copied. A safetensors file is mapped, and a page of it is read when it is
    first used: until the model is gone or on another device, it may be deleted or replaced
    (``safetensors.torch.save_file`` replaces it), but not written to. Torch files are read whole.

    Weights in the layout of Hugging Face ``transformers`` are converted (``s2a.weights.huggingface``); what the
    ``config.json`` and ``preprocessor_config.json`` beside them say (epsilon of norms, mean and standard deviation of
    images) becomes the model's.

    Args:
        name: timm's name of it.
        path: The file, a folder as the Hugging Face hub has it, or the ``.index.json`` of a file in parts.
        **arguments: Of ``timm.create_model``.

    Raises:
        S2AError: The file does not hold weights of that model.
    """
    # Weights in Google's own layout, which only the model's class knows; NumPy reads them without running code.
    overlay: dict[str, Any] = {"file": str(path), "custom_load": True}
    state: dict[str, Any] = {}
    if path.suffix != ".npz":
        state = read_weights(path)
        if (layout := huggingface.find_layout(state)) is not None:

            def make() -> nn.Module:
                made = timm.create_model(name, **arguments)
                huggingface.load(made, layout, state, path, name)
                return made

            model: Any = make_with(state, make)
            model.pretrained_cfg["file"] = str(path)
            return model
        overlay = {"custom_load": False}

    def create() -> Any:
        given = {**overlay, "state_dict": dict(state) or None}  # timm's filters may change it
        return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=given, **arguments)

    try:
        model = make_with(state, create)
    except Exception as error:
        raise S2AError(f"{path} does not hold weights of {name} ({_reason(path, error)}); {OTHERS}.") from error
    assert isinstance(model.pretrained_cfg, dict)
    model.pretrained_cfg.update(file=str(path), state_dict=None)  # else the model would hold its weights twice
    return model


def load_file(model: nn.Module, path: Path, name: str) -> None:
    """Loads a file whose names are the model's own, classifier included, or one in Hugging Face's layout.

    Raises:
        S2AError: It does not hold weights of that model, which ``name`` names in the message.
    """
    state = read_weights(path)
    if (layout := huggingface.find_layout(state)) is not None:
        with AssignFrom(state):
            huggingface.load(model, layout, state, path, name)
    else:
        try:
            with AssignFrom(state):
                model.load_state_dict(state)
        except Exception as error:
            raise S2AError(f"{path} does not hold weights of {name} ({_reason(path, error)}); {OTHERS}.") from error
    align_classifier(model)


def source_files(path: Path) -> list[Path]:
    """Every file that decides what a model loaded from ``path`` computes.

    The weights (all parts), and for Hugging Face's layout the configs beside them.

    Args:
        path: As in ``create_with_weights``.

    Raises:
        S2AError: No weights there.
    """
    files = weight_files(path)
    configs = huggingface.configs_beside(files[0])
    if configs and huggingface.find_layout(tensor_names(path)) is not None:
        return files + configs
    return files


def _reason(path: Path, error: Exception) -> str:
    """What went wrong, in a few words."""
    kind = huggingface.model_type_beside(path)
    if kind and kind not in huggingface.MODEL_TYPES:
        known = ", ".join(huggingface.MODEL_TYPES)
        return f"its config.json says model_type {kind!r}; of Hugging Face's layouts {known} are understood"
    return "; ".join(_differences(str(error))) or first_line(error)


def _differences(message: str) -> list[str]:
    """What ``load_state_dict`` complains of, shortened."""
    found = []
    for words, kind in (("it lacks", "Missing"), ("it has", "Unexpected")):
        for listed in re.findall(rf"{kind} key\(s\) in state_dict: (.*)", message):
            names = [name.strip('" .') for name in listed.split(",")]
            found.append(f"{words} {_some(names)}")
    if shapes := re.findall(r"size mismatch for (\S+): ", message):
        found.append(f"other shapes: {_some(shapes)}")
    return found


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
