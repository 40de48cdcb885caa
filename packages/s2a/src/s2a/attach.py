"""Attaches a method to a timm model, and takes it off again."""

from __future__ import annotations

import copy
import functools
import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from s2a.adapted import Adapted
from s2a.backbones import Edits, describe, refuse_cut_gradients, separate_passes
from s2a.errors import S2AError
from s2a.lean import FusedBranch, LeanOptions, make_lean
from s2a.planning import plan_memory
from s2a.planning.knapsack import recompute_where_cheap
from s2a.registry import Method, entry_for

log = logging.getLogger("s2a")


def attach(
    model: nn.Module, config: Any, num_classes: int | None = None, *, image_size: int | Sequence[int] | None = None
) -> Adapted:
    """Puts a method on a timm model, in place; exactly the method's parameters and the head are trainable.

    Args:
        model: A timm model of a supported family (see ``s2a.backbones``).
        config: Any registered method's config, ``s2a.S2AConfig()`` for example.
        num_classes: Classes of the new head. ``None`` keeps the model's classifier: same class count, its weights
            as the start.
        image_size: Side, or height and width, of the images to come; ``None`` takes the model's own.

    Returns:
        The adapted model, in the training mode that ``model`` was in.

    Raises:
        S2AError: Not a method's config, values that do not fit the model, or a model that is already adapted.
        UnsupportedModel: A model of no supported family.
    """
    entry = entry_for(config)
    if isinstance(model, Adapted) or getattr(model, "s2a_method", None):
        name = model.name if isinstance(model, Adapted) else model.s2a_method
        raise S2AError(f"The model is already adapted by {name!r}; call s2a.detach on the adapted model first.")
    if not isinstance(model, nn.Module):
        raise S2AError(f"attach takes a timm model, not {type(model).__name__}.")
    if num_classes is not None and (type(num_classes) is not int or num_classes < 1):
        raise S2AError(f"num_classes={num_classes!r} must be an integer of at least 1, or None to keep the model's.")
    # 1. The model as the table of families sees it: blocks, classifier, image size.
    training = model.training
    view = describe(model, image_size)
    classifier = view.module(view.classifier)
    if num_classes is None and not isinstance(classifier, nn.Linear):
        raise S2AError("The model has no linear classifier to keep (num_classes=0?); pass num_classes to attach.")
    edits = Edits()
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
        reference = next(model.parameters())
        method = entry.method(config, view, edits).to(reference.device, reference.dtype)
        head = _head(classifier if num_classes is None else None, method.feature_dim, view.features, num_classes)
        head.to(reference.device, reference.dtype)
        edits.override(model, "s2a_method", entry.name)
        # 4. What the backward pass keeps.
        branches: tuple[FusedBranch, ...] = ()
        make_plan = None
        if isinstance(config, LeanOptions) and config.activations == "lean":
            codes = {key: getattr(config, key) for key in ("bits", "levels") if hasattr(config, key)}
            recompute_dtype = torch.bfloat16 if config.recompute == "bf16" else None
            branches = make_lean(
                view, method, edits, in_place=config.in_place, recompute_dtype=recompute_dtype, **codes
            )
            make_plan = functools.partial(plan_memory, batch_size=config.budget_batch) if branches else None
        # 5. What calls leave between modules is told apart, call by call.
        separate_passes(model, edits)
        refuse_cut_gradients(view, edits)
        adapted = Adapted(view, config, entry.name, method, head, edits, branches, make_plan)
        for part in (method, head):  # The backbone's modules keep the modes they were in.
            part.train(training)
        adapted.training = training
        # What is kept without a budget; a budget then plans anew.
        chosen = recompute_where_cheap([b.spec for b in branches], [b.saved_bits for b in branches])
        for branch, saved_bits in zip(branches, chosen, strict=True):
            branch.saved_bits = saved_bits
        if branches and (config.memory_budget_mb is not None or config.memory_budget is not None):
            size = config.budget_batch
            plan = plan_memory(adapted, config.memory_budget_mb, budget=config.memory_budget, batch_size=size)
            log.info("%s", plan)
    except BaseException:
        edits.undo()
        raise
    return adapted


def _head(kept: nn.Module | None, width: int, features: int, num_classes: int | None) -> nn.Linear:
    """A new classifier (timm's initialisation), or the kept one's weights with zeros for the added features."""
    if not isinstance(kept, nn.Linear):
        head = nn.Linear(width, num_classes or 0)
        nn.init.trunc_normal_(head.weight, std=0.02)
        nn.init.zeros_(head.bias)
        return head
    head = nn.Linear(width, kept.out_features)
    with torch.no_grad():
        nn.init.zeros_(head.weight)
        nn.init.zeros_(head.bias)
        if width >= features:
            head.weight[:, :features].copy_(kept.weight)
            if kept.bias is not None:
                head.bias.copy_(kept.bias)
    return head


def detach(adapted: Adapted) -> nn.Module:
    """The original backbone back, bit for bit: weights, classifier, hooks and ``requires_grad`` flags.

    The adapted model must not be used afterwards.

    Raises:
        S2AError: ``adapted`` did not come from ``attach``, or was detached before.
    """
    if not isinstance(adapted, Adapted):
        raise S2AError(f"detach takes what s2a.attach returned, not {type(adapted).__name__}.")
    model = adapted.backbone
    if not getattr(model, "s2a_method", None):
        raise S2AError("The model was detached already.")
    adapted._edits.undo()
    reference = next(model.parameters())
    classifier: Any = model.get_classifier()  # type: ignore[operator]
    classifier.to(reference.device)  # It was set aside while the rest of the model may have moved.
    if reference.dtype != adapted._dtype:
        classifier.to(reference.dtype)
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
    if not isinstance(adapted, Adapted):
        raise S2AError(f"merge takes what s2a.attach returned, not {type(adapted).__name__}.")
    if type(adapted.method).fold is Method.fold:
        adapted.method.fold(adapted.backbone)  # Says why not, before anything is copied.
    copied = copy.deepcopy(adapted)
    trained = {
        n: v.detach().clone() for n, v in (*copied.backbone.named_parameters(), *copied.backbone.named_buffers())
    }
    model: Any = detach(copied)
    with torch.no_grad():
        for name, tensor in (*model.named_parameters(), *model.named_buffers()):
            if name in trained:  # All but the classifier, which was set aside.
                tensor.copy_(trained[name])
        copied.method.fold(model)
    model.reset_classifier(adapted.head.out_features)
    classifier = model.get_classifier().to(adapted.head.weight.device, adapted.head.weight.dtype)
    classifier.load_state_dict(adapted.head.state_dict())
    return model.train(adapted.training)
