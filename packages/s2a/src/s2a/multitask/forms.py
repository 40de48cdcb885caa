"""Passes over the backbone for tasks that differ in their tensors alone: one module for all of them.

Two tasks have one form if their methods, configs and the names and shapes of their own tensors are the same. A pass
then takes a task's tensors as arguments (``torch.func.functional_call``), and a batch that mixes tasks is one pass
under ``torch.vmap``: products with frozen weights are made for all images at once, those with a task's own tensors run
by run in one batched product.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from s2a.adapted import Adapted
from s2a.multitask.share import share_copy

log = logging.getLogger("s2a")

Tensors = Mapping[str, Tensor]
"""Name in the adapted model -> tensor, of what is one task's own, the head left out."""
_PREFIX = "adapted."
_RUN_COST = 0.5
"""What a run costs beside its images, in images; see ``run_length``."""


class _Features(nn.Module):
    """``forward_features`` as a module's forward, for ``functional_call``."""

    def __init__(self, adapted: Adapted) -> None:
        super().__init__()
        self.adapted = adapted

    def forward(self, images: Tensor) -> Tensor:
        return self.adapted.forward_features(images)


class Form:
    """What tasks of one form run on. A call may run on any thread.

    Args:
        adapted: One of them, on a shared copy of the backbone. Other tensors take the place of its own in every pass.
    """

    def __init__(self, adapted: Adapted) -> None:
        self._lock = threading.Lock()
        self._first = _Features(adapted)
        # functional_call puts tensors into the module while it runs, so that every call has a module to itself.
        self._idle: dict[bool, list[_Features]] = {False: [self._first], True: []}
        self.mixes: bool | None = None  # ``None``: not tried yet.

    @contextlib.contextmanager
    def _module(self, mixing: bool = False) -> Iterator[_Features]:
        idle = self._idle[mixing]
        with self._lock:
            module = idle.pop() if idle else None
        if module is None:
            module = share_copy(self._first)
            for part in module.modules():
                if mixing and hasattr(part, "fused_attn"):
                    part.fused_attn = False  # type: ignore[assignment] - vmap runs fused attention image by image.
        try:
            yield module
        finally:
            with self._lock:
                idle.append(module)

    def features(self, tensors: Tensors, images: Tensor) -> Tensor:
        """Features ``(B, C)`` of images ``(B, 3, H, W)``, all of one task."""
        with self._module() as module:
            return functional_call(module, _prefixed(tensors), (images,))

    def features_of_runs(self, tensors: Sequence[Tensors], images: Tensor) -> Tensor:
        """Features of runs of images, each run of one task.

        Args:
            tensors: Of the task of each of R runs.
            images: ``(R, n, 3, H, W)``.

        Returns:
            ``(R, n, C)``.
        """
        stacked = {name: torch.stack([of_run[name] for of_run in tensors]) for name in tensors[0]}
        with self._module(mixing=True) as module:
            return torch.vmap(lambda own, run: functional_call(module, _prefixed(own), (run,)))(stacked, images)

    def try_mixing(self, one: Tensors, other: Tensors, images: Tensor) -> None:
        """Finds out, once, whether passes of this form can be mixed: ``torch.vmap`` does not know every operator.

        Args:
            one: Of a task.
            other: Of another.
            images: ``(2, 3, H, W)``.
        """
        wanted = torch.stack([self.features(one, images), self.features(other, images)])
        try:
            found = self.features_of_runs([one, other], images.expand(2, *images.shape))
            self.mixes = bool((found - wanted).abs().max() <= tolerance(wanted))
            why = "another result"
        except Exception as error:  # Whatever an operator without a batching rule raises.
            self.mixes, why = False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        if not self.mixes:
            name = self._first.adapted.name
            log.warning("tasks of %r cannot be mixed in one pass (%s): theirs run one after the other.", name, why)


def _prefixed(tensors: Tensors) -> dict[str, Tensor]:
    return {_PREFIX + name: tensor for name, tensor in tensors.items()}


def tolerance(wanted: Tensor) -> float:
    """The largest difference by which results may differ that other orders of sums give, in their number format."""
    return 100 * torch.finfo(wanted.dtype).eps * max(1.0, wanted.abs().max().item())


def run_length(counts: Sequence[int]) -> int:
    """Images n of a run, for tasks with so many images: runs are filled up, so that short ones waste fewer images.

    The power of two with the least cost, images and fill together and ``_RUN_COST`` for every run.
    """
    candidates = [1 << i for i in range(max(counts).bit_length())]

    def cost(n: int) -> float:
        runs = sum(-(-count // n) for count in counts)
        return runs * (n + _RUN_COST)

    return min(candidates, key=cost)


def mixed_features(form: Form, tensors: Sequence[Tensors], images: Sequence[Tensor]) -> list[Tensor]:
    """Features of several tasks of one form, each of its own images.

    Args:
        form: Of the tasks.
        tensors: Of each task.
        images: Of each task, ``(B_t, 3, H, W)`` with B_t of 1 or more.
    """
    if not tensors[0]:  # They differ in their heads alone.
        features: Any = form.features({}, torch.cat(list(images))).split([len(x) for x in images])
        return list(features)
    if len(tensors) == 1 or not form.mixes:
        return [form.features(own, x) for own, x in zip(tensors, images, strict=True)]
    counts = [len(x) for x in images]
    n = run_length(counts)
    runs, owners = [], []
    for own, x in zip(tensors, images, strict=True):
        missing = -len(x) % n
        filled = torch.cat([x, x[-1:].expand(missing, *x.shape[1:])]) if missing else x
        runs.append(filled.unflatten(0, (-1, n)))
        owners += [own] * (len(filled) // n)
    found = form.features_of_runs(owners, torch.cat(runs)).flatten(0, 1)
    parts: Any = found.split([-(-count // n) * n for count in counts])
    return [part[:count] for part, count in zip(parts, counts, strict=True)]
