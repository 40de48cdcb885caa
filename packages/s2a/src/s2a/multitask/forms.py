"""Passes over the backbone for tasks that differ in their tensors alone: one module for all of them.

Two tasks have one form if their methods, configs and the names and shapes of their own tensors are the same. A pass
then takes a task's tensors as arguments (``torch.func.functional_call``), and a batch that mixes tasks is one pass
under ``torch.vmap``: products with frozen weights are made for all images at once, those with a task's own tensors run
by run in one batched product. So do S-LoRA (https://arxiv.org/abs/2311.03285) and Punica
(https://arxiv.org/abs/2310.18547) for LoRA with kernels of their own; here it is any method, by PyTorch's way of
evaluating an ensemble (https://docs.pytorch.org/tutorials/intermediate/ensembling.html).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import threading
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from s2a.adapted import Adapted
from s2a.backbones.number_format import HALVES
from s2a.multitask.share import share_copy

log = logging.getLogger("s2a")

Tensors = Mapping[str, Tensor]
"""Name in the adapted model -> tensor, of what is one task's own, the head left out."""
_PREFIX = "adapted."
_RUN_COST = 0.5
"""What a run costs beside its images, in images: on mini_vit, a CPU, 16 runs of one image took the time of 21 to 23
images of one task, 4 runs of four that of 20 (``benchmarks/multitask.py``). See ``run_length``."""


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
        adapted: One of them, on a shared copy of the backbone, from which its own tensors and its head are taken out:
            each pass brings those of its task.
        own: Names of these tensors.
    """

    def __init__(self, adapted: Adapted, own: Collection[str]) -> None:
        _expect_slow_operators()
        head = next(adapted.head.parameters(), None)
        # Number formats are chosen by the head's.
        adapted.head = nn.Identity() if head is None else nn.Linear(1, 1, device="meta", dtype=head.dtype)
        _take_out(adapted, own)
        self._lock = threading.Lock()
        # functional_call puts tensors into a module while it runs, so that every call has one to itself; the template
        # never runs, and can be copied at any time.
        self._template = _Features(adapted)
        self._idle: dict[bool, list[_Features]] = {False: [], True: []}
        self.mixes: bool | None = None  # ``None``: not tried yet.

    @contextlib.contextmanager
    def _module(self, mixing: bool = False) -> Iterator[_Features]:
        idle = self._idle[mixing]
        with self._lock:
            module = idle.pop() if idle else None
        if module is None:
            module = share_copy(self._template)
            for part in module.modules():
                if mixing and type(part).__module__.startswith("timm.") and hasattr(part, "fused_attn"):
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

    def can_mix(self, images: Tensor) -> bool:
        """Whether passes of this form over such images can be mixed.

        Autocast does not reach operators under ``torch.vmap``: where formats meet, passes are not mixed.
        """
        meet = images.dtype in HALVES or torch.is_autocast_enabled(images.device.type)
        return bool(self.mixes) and not meet

    def try_mixing(self, tensors: Tensors, images: Tensor) -> None:
        """Finds out, once, whether passes can be mixed: ``torch.vmap`` does not know every operator.

        Args:
            tensors: Of a task.
            images: One or more, ``(B, 3, H, W)``.

        Raises:
            RuntimeError: The trial had no room.
        """
        if self.mixes is not None or not tensors or images.dtype in HALVES:
            return
        wanted = self.features(tensors, images).expand(2, -1, -1)
        try:
            found = self.features_of_runs([tensors, tensors], images.expand(2, *images.shape))
            mixes, why = bool((found - wanted).abs().max() <= _tolerance(wanted)), "another result"
        except Exception as error:  # Whatever an operator without a batching rule raises.
            if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
                raise
            mixes, why = False, f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
        self.mixes = mixes
        if not mixes:
            name = self._template.adapted.name
            log.warning("tasks of %r cannot be mixed in one pass (%s): theirs run one after the other.", name, why)


@functools.cache
def _expect_slow_operators() -> None:
    """``torch.vmap`` runs a few operators run by run (LST's attention) and asks users to report each to PyTorch."""
    warnings.filterwarnings("ignore", "There is a performance drop because we have not yet implemented the batching")


def _take_out(adapted: Adapted, own: Collection[str]) -> None:
    """Puts tensors without data in the place of an adapted model's own, wherever one has several places."""
    empty: dict[int, Tensor] = {}
    for name, parameter in adapted.named_parameters():
        if name in own:
            empty[id(parameter)] = nn.Parameter(parameter.detach().to("meta"), requires_grad=False)
    for name, buffer in adapted.named_buffers():
        if name in own:
            empty[id(buffer)] = buffer.to("meta")
    for module in adapted.modules():
        for table in (module._parameters, module._buffers):
            for leaf, tensor in table.items():
                if id(tensor) in empty:
                    table[leaf] = empty[id(tensor)]  # type: ignore[assignment]


def _prefixed(tensors: Tensors) -> dict[str, Tensor]:
    return {_PREFIX + name: tensor for name, tensor in tensors.items()}


def _tolerance(wanted: Tensor) -> float:
    """The largest difference that other orders of sums make; TF32 products of a CUDA device round to 10 bits."""
    unit = 100 * torch.finfo(wanted.dtype).eps if wanted.device.type == "cpu" else 1e-2
    return unit * max(1.0, wanted.abs().max().item())


def run_length(counts: Sequence[int]) -> int:
    """Images n of a run, for tasks with so many images: runs are filled up, so that short ones waste fewer images.

    The power of two n with the least sum over tasks of ceil(count / n) * (n + c), c being ``_RUN_COST``.
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
    if len(tensors) == 1 or not form.can_mix(images[0]):
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
