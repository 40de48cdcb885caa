"""Saves and loads what a method trained: safetensors, with config and backbone identity in the header."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from s2a.adapted import Adapted
from s2a.attach import attach
from s2a.backbones import classifier_name
from s2a.errors import S2AError, StateMismatch
from s2a.registry import method_config

FORMAT = "1"


def backbone_id(model: nn.Module, edits: Any = None) -> str:
    """Hash of a timm model's weights and buffers, its classifier left out: 16 hex digits.

    Args:
        model: The backbone.
        edits: The log of an adapted backbone; the values from before the edits are hashed.
    """
    classifier = None if edits is not None else classifier_name(model)
    digest = hashlib.sha256()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        if classifier and (name == classifier or name.startswith(f"{classifier}.")):
            continue
        value = (tensor if edits is None else edits.original(tensor)).detach().to("cpu", tensor.dtype).contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]


def trained_state(adapted: Adapted) -> dict[str, Tensor]:
    """Name -> tensor of all that the backbone alone does not give back.

    What trained since ``attach``, everything that the method added, frozen or not (LoRA-FA's A is drawn at random),
    and the persistent buffers that training changed.
    """
    trained = set(adapted._trained)
    added = {f"method.{name}" for name in adapted.method.state_dict(keep_vars=True)}
    state = {
        name: p.detach()
        for name, p in adapted.named_parameters()
        if name in trained or name in added or p.requires_grad
    }
    persistent = adapted.state_dict(keep_vars=True)
    for name, buffer in adapted.named_buffers():
        changed = name in persistent and not torch.equal(buffer, adapted._edits.original(buffer).to(buffer))
        if changed or name in added:
            state[name] = buffer
    return state


def save(adapted: Adapted, path: str | os.PathLike[str]) -> None:
    """Writes the trained state of an adapted model, atomically.

    Args:
        adapted: What ``s2a.attach`` returned.
        path: Of the ``.safetensors`` file; its folder must exist.

    Raises:
        S2AError: Not an adapted model, or a folder that does not exist.
    """
    if not isinstance(adapted, Adapted):
        raise S2AError(f"save takes what s2a.attach returned, not {type(adapted).__name__}.")
    target = Path(path)
    if not target.parent.is_dir():
        raise S2AError(f"{target.parent} is not a folder; create it, or save elsewhere.")
    header = {
        "format": FORMAT,
        "method": adapted.name,
        "config": json.dumps(dataclasses.asdict(adapted.config)),
        "num_classes": str(adapted.head.out_features),
        "image_size": json.dumps(adapted.image_size),
        "architecture": _architecture(adapted.backbone),
        "backbone_id": backbone_id(adapted.backbone, adapted._edits),
    }
    tensors = {name: t.cpu().contiguous().clone() for name, t in trained_state(adapted).items()}
    handle, temporary = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(tensors, temporary, metadata=header)
        Path(temporary).chmod(0o644)  # Both mkstemp and safetensors write for the owner alone.
        Path(temporary).replace(target)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise


def load(model: nn.Module, path: str | os.PathLike[str]) -> Adapted:
    """Attaches the saved method to its backbone and puts the trained state in.

    Args:
        model: The same timm model, with the same weights, that the state was trained on.
        path: What ``save`` wrote.

    Returns:
        The adapted model; its logits equal those of the saved one.

    Raises:
        S2AError: No such file, or not written by ``save``.
        StateMismatch: Another architecture, or other weights than those the state belongs to; ``model`` is unchanged.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, SafetensorError) as error:
        raise S2AError(f"{path} cannot be read as a saved method ({error}).") from error
    if header.get("format") != FORMAT:
        raise S2AError(f"{path} was not written by s2a.save (format {header.get('format')!r}, expected {FORMAT!r}).")
    if isinstance(model, Adapted) or getattr(model, "s2a_method", None):
        raise S2AError("The model is already adapted; call s2a.detach on the adapted model first.")
    given = _architecture(model)
    if given != header["architecture"]:
        raise StateMismatch(f"{path} belongs to {header['architecture']}, not to {given}; load it on the former.")
    identity = backbone_id(model)
    if identity != header["backbone_id"]:
        raise StateMismatch(
            f"{path} was trained on {given} with weights {header['backbone_id']}, these are {identity}; "
            "create the model with the checkpoint it was trained from."
        )
    config = method_config(header["method"], **json.loads(header["config"]))
    adapted = attach(model, config, int(header["num_classes"]), image_size=json.loads(header["image_size"]))
    own = adapted.state_dict()
    lost = sorted({name for name, p in adapted.named_parameters() if p.requires_grad} - tensors.keys())
    surplus = sorted(name for name, t in tensors.items() if name not in own or own[name].shape != t.shape)
    if lost or surplus:
        adapted._edits.undo()
        raise StateMismatch(
            f"{path} does not fit {header['method']!r}: missing {lost}, unknown or of another shape {surplus}."
        )
    adapted.load_state_dict(tensors, strict=False)
    return adapted


def _architecture(model: Any) -> str:
    config = getattr(model, "pretrained_cfg", None) or {}
    return str(config.get("architecture") or type(model).__name__)
