"""Checks of what becomes of an adapted model: detached, saved, copied, merged."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
from pathlib import Path

import torch
from torch import nn

from s2a.adapted import trainable_parameters
from s2a.attach import attach, detach, merge
from s2a.errors import S2AError
from s2a.state import load, save
from s2a.testing.case import Case, differences, require, snapshot


def check_detach(case: Case) -> None:
    """Detaching restores the backbone bit for bit, before and after training, and it can be adapted again."""
    model = copy.deepcopy(case.model)
    size = (case.images.shape[-2], case.images.shape[-1])
    before = snapshot(model)
    for steps in (False, True):
        adapted = attach(model, case.config, case.num_classes, image_size=size)
        if steps:
            case.trained(adapted)
            adapted.train(case.model.training)
        back = detach(adapted)
        require("detach returned another object", back is not model)
        require("detach did not restore", differences(before, snapshot(model)))


def check_state(case: Case) -> None:
    """Saved and loaded, copied, pickled, or moved by ``state_dict``: the logits are the same bit for bit."""
    adapted = case.attached()
    case.trained(adapted)
    logits = case.logits(adapted)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save(adapted, path)
        loaded = load(copy.deepcopy(case.model), path)
    require("save and load change the logits", not torch.equal(logits, case.logits(loaded)))
    stream = io.BytesIO()
    try:
        torch.save(adapted, stream)
    except (AttributeError, TypeError, pickle.PicklingError) as error:
        raise AssertionError(f"the adapted model cannot be pickled: {error}") from error
    stream.seek(0)
    pickled = torch.load(stream, weights_only=False)
    require("pickling changes the logits", not torch.equal(logits, case.logits(pickled)))
    other = case.attached()
    other.load_state_dict(adapted.state_dict())
    require("state_dict does not carry the logits", not torch.equal(logits, case.logits(other)))


def check_copy(case: Case) -> None:
    """A deep copy is the same function, and independent: training or detaching it does not touch the original."""
    adapted = case.attached()
    logits = case.logits(adapted)
    copied = copy.deepcopy(adapted)
    require("a deep copy has other logits", not torch.equal(logits, case.logits(copied)))
    require(
        "a deep copy gets no gradient somewhere", sorted(trainable_parameters(copied).keys() - case.trained(copied))
    )
    detach(copied)
    require("training and detaching a deep copy changed the original", not torch.equal(logits, case.logits(adapted)))


def check_merge(case: Case) -> None:
    """A method that can be merged becomes a plain model of the same logits; one that cannot says so, undisturbed."""
    adapted = case.attached()
    case.trained(adapted)
    logits = case.logits(adapted)
    if adapted.method.why_no_fold():
        try:
            merge(adapted)
        except S2AError:
            require("refusing to merge changed the logits", not torch.equal(logits, case.logits(adapted)))
            return
        raise AssertionError("the method cannot fold, yet merging went through.")
    merged = merge(adapted).eval()
    with torch.no_grad():
        plain = merged(case.images)
    scale = float(logits.abs().max())
    require("merging changes the logits", not torch.allclose(plain, logits, 1e-3, 1e-4 * scale))
    require("a merged model has other parts than the plain one", _layout(merged) != _layout(case.model))
    require("merging changed the adapted model", not torch.equal(logits, case.logits(adapted)))


def _layout(model: nn.Module) -> list[tuple[str, type, int]]:
    return [(n, type(m), len(m._forward_hooks) + len(m._forward_pre_hooks)) for n, m in model.named_modules()]
