"""Attaches a method to a timm model, and takes it off again."""

from __future__ import annotations

import copy
import logging
from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import nn

from s2a.adapted import Adapted, classes_of, new_head, refuse_reset, require_adapted
from s2a.backbones import Edits, classifier_name, describe, refuse_cut_gradients, separate_passes
from s2a.backbones.number_format import HALVES, compute_format, frozen_dtype, trained_dtype, widen_trained
from s2a.errors import S2AError
from s2a.identity import Identity, identify, tensor_places
from s2a.lean import FusedBranch, LeanOptions, make_lean
from s2a.planning import plan_memory
from s2a.registry import entry_for

log = logging.getLogger("s2a")

M = TypeVar("M", bound=nn.Module)


def attach(
    model: nn.Module,
    config: Any,
    num_classes: int | None = None,
    *,
    image_size: int | Sequence[int] | None = None,
    trainable_dtype: torch.dtype | None = None,
) -> Adapted:
    """Puts a method on a timm model, in place; exactly the method's parameters and the head are trainable.

    On a backbone in half precision what trains is float32 all the same, as smaller steps than a value's last bit would
    be lost; the frozen weights stay as they are and products run in the backbone's format (full fine-tuning, where
    everything trains, makes all of it float32). ``detach`` gives the backbone back in its own format.

    Args:
        model: A timm model of a supported family (see ``s2a.backbones``).
        config: Any registered method's config, ``s2a.S2AConfig()`` for example.
        num_classes: Classes of the new head. ``None`` keeps the model's classifier: same class count, its weights
            as the start.
        image_size: Side, or height and width, of the images to come; ``None`` takes the model's own.
        trainable_dtype: Dtype of what trains: ``None`` is float32, or float64 on a model in that; the model's own dtype
            may be asked for.

    Returns:
        The adapted model, in the training mode that ``model`` was in.

    Raises:
        S2AError: Not a method's config, values that do not fit the model, or a model that is already adapted.
        UnsupportedModel: A model of no supported family, with quantised weights, or whose features are not pooled.
    """
    return attach_identified(model, config, num_classes, image_size=image_size, trainable_dtype=trainable_dtype)


def attach_identified(
    model: nn.Module,
    config: Any,
    num_classes: int | None = None,
    *,
    image_size: int | Sequence[int] | None = None,
    trainable_dtype: torch.dtype | None = None,
    identity: Identity | None = None,
) -> Adapted:
    """``attach``, of a model whose identity may be known: to find it takes a pass over all weights.

    Args:
        model: As for ``attach``.
        config: As for ``attach``.
        num_classes: As for ``attach``.
        image_size: As for ``attach``.
        trainable_dtype: As for ``attach``.
        identity: Of exactly these weights.

    Raises:
        S2AError: As ``attach``.
    """
    entry = entry_for(config)
    if not isinstance(model, nn.Module):
        raise S2AError(f"attach takes a timm model, not {type(model).__name__}.")
    refuse_adapted(model)
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise S2AError(f"num_classes={num_classes!r} must be an integer of at least 1, or None to keep the model's.")
    # 1. The model as the table of families sees it: blocks, classifier, image size.
    training = model.training
    view = describe(model, image_size)
    classifier = view.module(view.classifier)
    if num_classes is None and not isinstance(classifier, nn.Linear):
        raise S2AError(
            f"The model has no linear classifier to keep (num_classes=0?): {view.classifier} is a "
            f"{type(classifier).__name__}; pass num_classes to attach."
        )
    reference = _own_format(model)
    dtype = trained_dtype(model, trainable_dtype)
    identity = identity or identify(model)  # before anything is cast
    places = tensor_places(model)
    edits = Edits(model)
    try:
        # 2. Everything frozen, buffers remembered, the classifier set aside; all edits are in a log that undoes them.
        edits.replace(model, view.classifier, nn.Identity())
        for parameter in model.parameters():
            edits.freeze(parameter)
        for module in model.modules():
            for buffer, value in module._buffers.items():
                if value is not None:
                    edits.preserve(module, buffer)
        # 3. The method adds its parameters and hooks and switches on what trains; a new head.
        method = _moved(entry.method(config, view, edits), reference.device, dtype)
        head = _head(classifier if num_classes is None else None, method.feature_dim, view.features, num_classes)
        _moved(head, reference.device, dtype)
        edits.override(model, "s2a_method", entry.name)
        edits.override(model, "reset_classifier", refuse_reset)
        # 4. What the backward pass keeps.
        branches: tuple[FusedBranch, ...] = ()
        make_plan = None
        if isinstance(config, LeanOptions) and config.activations == "lean":
            codes = {key: getattr(config, key) for key in ("bits", "levels") if hasattr(config, key)}
            with compute_format(model, head, head.weight):  # It tries the model's parts.
                branches = make_lean(view, method, edits, in_place=config.in_place, recompute=config.recompute, **codes)
            make_plan = plan_memory if branches else None
        if dtype not in HALVES:
            widen_trained(model, edits, dtype)
        # 5. What calls leave between modules is told apart, call by call.
        separate_passes(model, edits)
        refuse_cut_gradients(view, edits)
        adapted = Adapted(view, config, entry.name, method, head, edits, identity, places, branches, make_plan)
        for part in (method, head):  # The backbone's modules keep the modes they were in.
            part.train(training)
        adapted.training = training
        if branches and config.has_budget:
            log.info("%s", plan_memory(adapted, config.saved_budget_mb, peak_budget=config.peak_budget))
    except BaseException:
        edits.undo()
        raise
    return adapted


def _head(kept: nn.Module | None, width: int, features: int, num_classes: int | None) -> nn.Linear:
    """A new classifier (timm's initialisation), or the kept one's weights with zeros for the added features."""
    if not isinstance(kept, nn.Linear):
        return new_head(width, num_classes or 0)
    head = nn.Linear(width, kept.out_features)
    with torch.no_grad():
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        if width >= features:
            head.weight[:, :features].copy_(kept.weight)
            if kept.bias is not None:
                head.bias.copy_(kept.bias)
    return head


def _moved(module: M, device: torch.device, dtype: torch.dtype) -> M:
    """``module.to(device, dtype)`` where anything differs; tensors without data (fake ones) cannot be moved."""
    tensors = (*module.parameters(), *module.buffers())
    moves = any(t.device != device or (t.is_floating_point() and t.dtype != dtype) for t in tensors)
    return module.to(device, dtype) if moves else module


def _own_format(model: nn.Module) -> nn.Parameter:
    """A parameter that has the device and the dtype of the model."""
    return next(p for p in model.parameters() if p.is_floating_point())


def refuse_adapted(model: nn.Module) -> None:
    """Checks that a model is not adapted yet, nor has an adapted one inside (compiled, in a wrapper).

    Raises:
        S2AError: It is, or has.
    """
    for path, module in model.named_modules():
        name = module.name if isinstance(module, Adapted) else module.__dict__.get("s2a_method")
        if name:
            where = f"The model inside, at model.{path}," if path else "The model"
            raise S2AError(f"{where} is already adapted by {name!r}; call s2a.detach on the adapted model first.")


def detach(adapted: Adapted) -> nn.Module:
    """The original backbone back, bit for bit: weights and their dtypes, classifier, hooks, ``requires_grad`` flags.

    The adapted model must not be used afterwards.

    Raises:
        S2AError: ``adapted`` did not come from ``attach``, or was detached before, or its frozen weights were changed
            since ``attach`` (then ``adapted`` stays as it is).
    """
    adapted = require_adapted("detach", adapted)
    model = adapted.backbone
    if not getattr(model, "s2a_method", None):
        raise S2AError("The model was detached already.")
    adapted.check_detachable()
    return _take_off(adapted)


def _take_off(adapted: Adapted) -> Any:
    model: Any = adapted.backbone
    dtype = frozen_dtype(model, adapted._edits)
    adapted._edits.undo()
    if dtype != adapted._dtype:
        model.to(dtype)  # The whole adapted model was moved to another dtype, but not what was set aside.
    classifier: Any = model.get_classifier()
    classifier.to(_own_format(model).device)  # It was set aside while the rest of the model may have moved.
    return model


def merge(adapted: Adapted) -> nn.Module:
    """Writes what was trained into a plain model: afterwards inference costs what the backbone costs.

    Args:
        adapted: What ``s2a.attach`` returned; it does not change.

    Returns:
        A timm model with the trained classifier; its logits are those of ``adapted`` in evaluation mode, up to
        rounding.

    Raises:
        S2AError: A method that adds what the backbone alone cannot compute, or no adapted model.
    """
    adapted = require_adapted("merge", adapted)
    if why := adapted.method.why_no_fold():  # Before anything is copied.
        raise S2AError(why)
    copied = copy.deepcopy(adapted)
    trained = {
        n: v.detach().clone() for n, v in (*copied.backbone.named_parameters(), *copied.backbone.named_buffers())
    }
    model = _take_off(copied)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in trained:  # All but the classifier, which was set aside.
                tensor.copy_(trained[name])
        copied.method.fold(model)
    # timm's reset_classifier may change the pooling, so the classifier is put in its place by itself.
    former = next(model.get_classifier().parameters(), _own_format(model))
    path, _, leaf = classifier_name(model).rpartition(".")
    setattr(model.get_submodule(path), leaf, copied.head.to(former.dtype).requires_grad_(True))
    model.num_classes = classes_of(adapted.head)
    return model.train(adapted.training)
