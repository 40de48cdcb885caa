"""One method on one backbone, what checks ask of it, and what attaching must leave as it was."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from s2a.adapted import Adapted, trainable_parameters
from s2a.attach import attach

STEPS = 3
"""Optimiser steps of a check: a parameter behind two zero-initialised ones gets its first gradient in the third."""


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything of a model that attaching and detaching must leave as it was: values, flags, modes, hooks, layout."""
    found: dict[str, Any] = {}
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        found[f"value of {name}"] = tensor.detach().clone()
        found[f"requires_grad of {name}"] = tensor.requires_grad
        found[f"grad of {name}"] = tensor.grad
    for name, module in model.named_modules():
        found[f"module {name!r}"] = (type(module), module.training, sorted(module.__dict__), sorted(module._modules))
        found[f"hooks of {name!r}"] = (len(module._forward_pre_hooks), len(module._forward_hooks))
    return found


def differences(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What differs between two snapshots; values are compared bit for bit."""
    found = sorted(before.keys() ^ after.keys())
    for key in before.keys() & after.keys():
        one, other = before[key], after[key]
        if isinstance(one, Tensor) and isinstance(other, Tensor):
            if one.dtype != other.dtype or one.shape != other.shape or not torch.equal(one, other):
                found.append(key)
        elif one is not other and one != other:
            found.append(key)
    return found


@dataclasses.dataclass(frozen=True)
class Case:
    """One method on one backbone.

    Attributes:
        config: The method's config.
        model: The backbone as it came; checks work on copies.
        num_classes: Classes of the head.
        images: A batch of noise.
    """

    config: Any
    model: nn.Module
    num_classes: int
    images: Tensor

    def attached(self) -> Adapted:
        """A copy of the backbone under the method."""
        size = (self.images.shape[-2], self.images.shape[-1])
        return attach(copy.deepcopy(self.model), self.config, self.num_classes, image_size=size)

    def loss(self, adapted: nn.Module) -> Tensor:
        """Cross-entropy against labels that use all classes."""
        return F.cross_entropy(adapted(self.images), torch.arange(len(self.images)) % self.num_classes)

    def trained(self, adapted: Adapted) -> set[str]:
        """Trains some steps; the names of the parameters that met a gradient other than zero."""
        parameters = trainable_parameters(adapted)
        optimizer = torch.optim.AdamW(parameters.values(), lr=1e-3, weight_decay=0.0)
        reached: set[str] = set()
        adapted.train()
        for _ in range(STEPS):
            optimizer.zero_grad()
            self.loss(adapted).backward()
            reached |= {n for n, p in parameters.items() if p.grad is not None and bool((p.grad != 0).any())}
            optimizer.step()
        return reached

    def logits(self, adapted: nn.Module) -> Tensor:
        """Logits of the batch in evaluation mode."""
        adapted.eval()
        with torch.no_grad():
            return adapted(self.images)


def require(promise: str, broken: Sequence[str] | bool) -> None:
    """Checks a promise.

    Args:
        promise: The sentence of the error, without its full stop.
        broken: Names of what breaks it, or True where there is nothing to name.

    Raises:
        AssertionError: It is broken.
    """
    if isinstance(broken, bool):
        broken = [""] if broken else []
    if broken:
        shown = ", ".join(broken[:8]) + (f" and {len(broken) - 8} more" if len(broken) > 8 else "")
        raise AssertionError(f"{promise}{f': {shown}' if shown else ''}.")
