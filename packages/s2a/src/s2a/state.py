"""Saves and loads what a method trained: safetensors, with config and backbone identity in the header."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from s2a import saved_file
from s2a.adapted import Adapted, classes_of, require_adapted
from s2a.attach import attach_identified, refuse_adapted
from s2a.backbones import classifier_name, family_of
from s2a.errors import S2AError, StateMismatch
from s2a.identity import Identity, architecture_of, identify, is_unchanged, pack, same_weights, unpack, whole
from s2a.lean import LeanOptions
from s2a.registry import method_config
from s2a.saved_file import SavedFile

log = logging.getLogger("s2a")


def backbone_id(model: nn.Module) -> str:
    """Identity of a timm model's weights and buffers, classifier left out: 16 hex digits, the same in bfloat16."""
    return identify(model).id


def trained_state(adapted: Adapted) -> dict[str, Tensor]:
    """Name -> tensor of all that the backbone alone does not give back.

    The head, everything that the method added, frozen or not (LoRA-FA's A is drawn at random), what trained since
    ``attach``, and the persistent buffers that training changed.
    """
    return _collect(adapted)[1]


def _collect(adapted: Adapted) -> tuple[Identity, dict[str, Tensor], dict[str, bool]]:
    """Identity, tensors, and those of the backbone beyond the method's own -> whether they trained."""
    adapted.note_trained()
    identity, others = adapted.identify_now()
    tensors = _tensors(adapted)
    expected = _expected(adapted)
    used = {name for name in adapted._trained if not _below_classifier(adapted, name)}
    if lost := sorted(name for name in used if name not in tensors and not name.startswith("head.")):
        raise S2AError(f"{lost} trained but left the model since (a module was replaced?); save cannot write it.")
    if unused := sorted(name for name in tensors if name.startswith("backbone.") and _below_classifier(adapted, name)):
        log.warning("%s: not saved, since the logits come from the adapted model's own head.", ", ".join(unused))
    found = {id(t) for t in others.values()}
    changed = {n: n in used for n, t in tensors.items() if n in used or id(t) in found}
    for name, buffer in adapted.named_buffers():
        plain = name.removeprefix("backbone.")
        before = [i.tensors[plain] for i in (adapted._attached, identity) if plain in i.tensors]
        if before:
            moved = any(not is_unchanged(buffer, value) for value in before if value.known)
        else:
            moved = not torch.equal(buffer, adapted._edits.original(buffer).to(buffer))
        if name in tensors and name.startswith("backbone.") and moved:
            changed[name] = False
    changed = {name: trains for name, trains in changed.items() if name not in expected}
    return identity, {n: t.detach() for n, t in tensors.items() if n in expected or n in changed}, changed


def _tensors(adapted: Adapted) -> dict[str, Tensor]:
    """Parameters and persistent buffers."""
    persistent = adapted.state_dict(keep_vars=True)
    buffers = {name: buffer for name, buffer in adapted.named_buffers() if name in persistent}
    return {**dict(adapted.named_parameters()), **buffers}


def _expected(adapted: Adapted) -> set[str]:
    """Names that every file of this method on this backbone has."""
    own = {n for n in _tensors(adapted) if n.startswith(("method.", "head."))}
    return own | {name for name in adapted._attach_trained if not name.startswith("head.")}


def _below_classifier(adapted: Adapted, name: str) -> bool:
    return name.startswith(f"backbone.{adapted._classifier}.")


def save(adapted: Adapted, path: str | os.PathLike[str]) -> None:
    """Writes the trained state of an adapted model, atomically.

    Args:
        adapted: What ``s2a.attach`` returned.
        path: Of the ``.safetensors`` file; its folder must exist.

    Raises:
        S2AError: Not an adapted model, a folder that does not exist, or values that are not finite.
    """
    adapted = require_adapted("save", adapted)
    if not getattr(adapted.backbone, "s2a_method", None):
        raise S2AError("The model was detached; save it before.")
    target = Path(path)
    if not target.parent.is_dir():
        raise S2AError(f"{target.parent} is not a folder; create it, or save elsewhere.")
    if target.is_dir():
        raise S2AError(f"{target} is a folder; give the path of a file.")
    identity, state, changed = _collect(adapted)
    if empty := sorted(name for name, t in state.items() if t.is_meta):
        raise S2AError(f"{_some(empty)} have no values (meta device); give the model values first.")
    tensors = {name: whole(t).cpu().contiguous().clone() for name, t in state.items()}
    if bad := saved_file.not_finite(tensors, _may_be_infinite(adapted)):
        raise S2AError(f"{_some(bad)} have values that are not finite: training diverged; nothing is saved.")
    header = {
        "format": saved_file.FORMAT,
        "method": adapted.name,
        "config": json.dumps(dataclasses.asdict(adapted.config)),
        "num_classes": str(classes_of(adapted.head)),
        "image_size": json.dumps(adapted.image_size),
        "head": json.dumps(_form_of(adapted.head)),
        "changed": json.dumps(changed),
        "architecture": identity.architecture,
        "backbone_id": identity.id,
        "backbone": json.dumps(pack(identity), separators=(",", ":")),
    }
    saved_file.write(target, header, tensors)


def load(
    model: nn.Module,
    path: str | os.PathLike[str],
    *,
    head: nn.Module | None = None,
    check_backbone: bool = True,
) -> Adapted:
    """Attaches the saved method to its backbone and puts the trained state in.

    Args:
        model: The same timm model, with the same weights, that the state was trained on; in any number format.
        path: What ``save`` wrote.
        head: A module of the saved head's form, where that was not a linear layer; it becomes part of the result.
        check_backbone: False takes another architecture's name or other weights, as long as every name and shape
            fits: the logits are then not those of the saved model.

    Returns:
        The adapted model; its logits equal those of the saved one, up to the number format of ``model``: where the log
        says that it is another one, ``model.to`` or ``s2a.cast_frozen`` gives the saved one's.

    Raises:
        S2AError: No such file, not written by ``save``, or damaged; ``model`` is unchanged.
        StateMismatch: Another architecture, or other weights than those the state belongs to; ``model`` is unchanged.
    """
    return load_file(model, saved_file.read(path), head=head, check_backbone=check_backbone)


def load_file(
    model: nn.Module,
    file: SavedFile,
    *,
    head: nn.Module | None = None,
    check_backbone: bool = True,
    plan: bool = True,
    identity: Identity | None = None,
    exact: bool = False,
    before_values: Callable[[Adapted], None] | None = None,
) -> Adapted:
    """As ``load``, of a file whose header was read.

    Args:
        model: As for ``load``.
        file: The file.
        head: As for ``load``.
        check_backbone: As for ``load``.
        plan: Whether a memory budget of the config is planned for now. A plan takes passes, and may not be possible
            here; who only predicts needs none. The config keeps its budget either way.
        identity: Of the model's weights, where it is known.
        exact: Attach with exact activations whatever the config says, so without a plan: for predictions alone.
        before_values: Called before the saved values are written into the adapted model.

    Raises:
        S2AError, StateMismatch: As ``load``.
    """
    if not isinstance(model, nn.Module):
        raise S2AError(f"load takes a timm model, not {type(model).__name__}.")
    refuse_adapted(model)
    family_of(model)
    if check_backbone:
        _check_architecture(file, model)
    _check_head(file, head)
    with _as_s2a_error(file):
        config = method_config(file.method, **file.config)
    if check_backbone:
        _check_weights(file, model, identity)
    used = config
    if exact and isinstance(config, LeanOptions):
        used = config = config.exact()
    elif not plan and isinstance(config, LeanOptions) and config.has_budget:
        used = dataclasses.replace(config, saved_budget_mb=None, peak_budget=None)
    with _as_s2a_error(file):
        # The number of classes is that of the head's tensors: ``_check_head`` compared them.
        adapted = attach_identified(
            model, used, max(1, file.num_classes), image_size=file.image_size, identity=identity
        )
    adapted.config = config
    try:
        if before_values is not None:
            before_values(adapted)
        with _as_s2a_error(file):
            _put_state(adapted, file, head)
    except BaseException:
        adapted._edits.undo()
        raise
    return adapted


def _put_state(adapted: Adapted, file: SavedFile, head: nn.Module | None) -> None:
    """Everything is checked before anything is written."""
    weight: Any = adapted.head.weight
    if head is not None:
        adapted.head = head.to(weight.device).train(adapted.training)
    elif file.head["kind"] == "none":
        adapted.head = nn.Identity()
    elif not file.head.get("bias"):
        bare = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        adapted.head = bare.to(weight.device, weight.dtype).train(adapted.training)
    own = _tensors(adapted)
    changed = dict.fromkeys(_moved_buffers(adapted, file), False) if file.changed is None else file.changed
    allowed = {n: t for n, t in own.items() if n.startswith("backbone.") and not _below_classifier(adapted, n)}
    if unknown := sorted(changed.keys() - allowed.keys()):
        raise StateMismatch(f"{file.path} does not fit {file.method!r}: the backbone has no {_some(unknown)}.")
    expected = _expected(adapted) | changed.keys()
    lost = sorted(expected - file.shapes.keys())
    surplus = sorted(n for n, (_, shape) in file.shapes.items() if n not in expected or own[n].shape != shape)
    if lost or surplus:
        raise StateMismatch(
            f"{file.path} does not fit {file.method!r}: missing {lost}, unknown or of another shape {surplus}."
        )
    for name, (dtype, _) in file.shapes.items():
        wanted = str(own[name].dtype).removeprefix("torch.")
        if dtype != wanted and not (own[name].is_floating_point() and dtype in saved_file.FLOATS.values()):
            raise StateMismatch(f"{file.path} is damaged: {name} is {dtype}, where {wanted} is expected.")
    tensors = file.tensors()
    fitted = {name: tensor.to(own[name].dtype) for name, tensor in tensors.items()}
    if bad := saved_file.not_finite(fitted, _may_be_infinite(adapted)):
        raise S2AError(f"{file.path}: {_some(bad)} have values that are not finite in the model's number format.")
    for name, trains in changed.items():
        if isinstance(parameter := own[name], nn.Parameter):
            adapted._edits.train(parameter)
            parameter.requires_grad_(bool(trains))
    identity = adapted._identity
    adapted.load_state_dict(fitted, strict=False)
    adapted._identity = identity
    adapted._trained |= {name for name in changed if isinstance(own[name], nn.Parameter)}
    _say_formats(file, tensors, own)


def _say_formats(file: SavedFile, tensors: dict[str, Tensor], own: dict[str, Tensor]) -> None:
    narrowed = [n for n, t in tensors.items() if t.is_floating_point() and t.dtype.itemsize > own[n].element_size()]
    if narrowed:
        log.warning("%s: %s rounded to %s, as the model is.", file.path, _some(narrowed), own[narrowed[0]].dtype)


def _moved_buffers(adapted: Adapted, file: SavedFile) -> list[str]:
    """Format 1 does not say which norm statistics it holds: those in the file."""
    persistent = adapted.state_dict(keep_vars=True)
    return [n for n, _ in adapted.named_buffers() if n.startswith("backbone.") and n in persistent and n in file.shapes]


def _check_architecture(file: SavedFile, model: nn.Module) -> None:
    given, wanted = architecture_of(model), file.header["architecture"]
    if given != wanted:
        raise StateMismatch(f"{file.path} belongs to {wanted}, not to {given}; load it on the former.")


def _check_weights(file: SavedFile, model: nn.Module, identity: Identity | None = None) -> None:
    override = "To load it on these weights all the same: check_backbone=False."
    wanted, given = file.header["backbone_id"], architecture_of(model)
    if file.backbone is None:
        if _exact_id(model) != wanted:
            raise StateMismatch(
                f"{file.path} was trained on {given} with weights {wanted}, these are {_exact_id(model)}; create the "
                f"model with the checkpoint it was trained from, in the number format it had. {override}"
            )
        return
    now = identity or identify(model)
    try:
        before = unpack(file.header["architecture"], file.backbone, list(now.tensors))
    except (ValueError, TypeError, KeyError, IndexError, AttributeError) as error:
        raise S2AError(f"{file.path} is damaged: its header does not say which backbone it belongs to.") from error
    if before.id != wanted:
        raise StateMismatch(f"{file.path} is damaged: its header names two backbones ({before.id} and {wanted}).")
    if before.layout != now.layout:
        raise StateMismatch(
            f"{file.path} was trained on a {given} of other sizes ({len(before.tensors)} tensors, this one has "
            f"{len(now.tensors)}); create the model with the arguments and the checkpoint it was trained from: "
            f"{before.named_checkpoint()}."
        )
    other = [name for name in now.tensors if not same_weights(before.tensors[name], now.tensors[name])]
    if other:
        note = ""
        if {before.dtype, now.dtype} == {"bfloat16", "float16"}:
            note = "; bfloat16 and float16 copies of the same weights cannot be compared"
        raise StateMismatch(
            f"{file.path} was trained on {before.named_checkpoint()}, this is {now.named_checkpoint()}: "
            f"{len(other)} of {len(now.tensors)} tensors differ ({_some(other)}){note}; create the model with the "
            f"checkpoint it was trained from. {override}"
        )
    rounded = [n for n in now.tensors if before.tensors[n].known and before.tensors[n].exact != now.tensors[n].exact]
    if rounded:
        log.warning(
            "%s was trained on %s weights, these are %s: the same up to rounding.", file.path, before.dtype, now.dtype
        )


def belongs_to(file: SavedFile, model: nn.Module) -> bool:
    """Whether a model has the architecture and weights that a file was trained on."""
    try:
        _check_architecture(file, model)
        _check_weights(file, model)
    except S2AError:
        return False
    return True


def _check_head(file: SavedFile, head: nn.Module | None) -> None:
    """Before anything is attached: a damaged class count must not make a head of any size."""
    kind, form = file.head["kind"], file.head.get("form")
    shapes = {n.removeprefix("head."): shape for n, (_, shape) in file.shapes.items() if n.startswith("head.")}
    if head is not None:
        if not isinstance(head, nn.Module):
            raise S2AError(f"head takes a module, not {type(head).__name__}.")
        own = {name: tuple(t.shape) for name, t in head.state_dict().items()}
        if own != shapes:
            raise StateMismatch(f"{file.path} has a head of tensors {shapes}, the given one has {own}.")
    elif kind == "own":
        raise S2AError(
            f"{file.path} was saved with a head of its own, {form}; make one of that form and call "
            "s2a.load(model, path, head=it)."
        )
    elif kind == "linear":
        wrong = [f"head.{n}" for n, shape in sorted(shapes.items()) if shape[:1] != (file.num_classes,)]
        if wrong:
            raise StateMismatch(
                f"{file.path} does not fit {file.method!r}: missing [], unknown or of another shape {wrong}."
            )
        if not 1 <= file.num_classes < 2**31 or "weight" not in shapes:
            raise StateMismatch(f"{file.path} does not fit {file.method!r}: missing ['head.weight'].")


@contextlib.contextmanager
def _as_s2a_error(file: SavedFile) -> Iterator[None]:
    """A damaged header can make any value of a config: whatever it runs into is said as one error."""
    try:
        yield
    except S2AError:
        raise
    except Exception as error:
        raise S2AError(
            f"{file.path} cannot be put on this model: method {file.method!r} with the saved config fails ({error})."
        ) from error


def _form_of(head: nn.Module) -> dict[str, Any]:
    if type(head) is nn.Linear:
        return {"kind": "linear", "bias": head.bias is not None}
    if type(head) is nn.Identity:
        return {"kind": "none"}
    return {"kind": "own", "form": " ".join(repr(head).split())[:2000]}


def _may_be_infinite(adapted: Adapted) -> set[str]:
    """Buffers of a method may hold infinity (masks)."""
    return {f"method.{name}" for name, _ in adapted.method.named_buffers()}


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def _exact_id(model: nn.Module) -> str:
    """Hash of a model's values in their own number format, as format 1 has it."""
    classifier = classifier_name(model)
    digest = hashlib.sha256()
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, tensor in sorted(tensors.items()):
        if name == classifier or name.startswith(f"{classifier}."):
            continue
        value = tensor.detach().cpu().contiguous()
        digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
