"""How large a batch of a model under a method fits into a memory budget."""

from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import timm
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode, unset_fake_temporarily

from s2a.adapted import Adapted
from s2a.attach import attach, refuse_adapted
from s2a.errors import S2AError
from s2a.fitting.budget import budget_bytes
from s2a.fitting.search import MOST_IMAGES, Largest, largest_batch
from s2a.lean.options import LeanOptions
from s2a.lean.plan import Plan
from s2a.memory.no_data import strip_data, tensors_without_data
from s2a.memory.simulated import Peak, StepSimulation
from s2a.planning.plan_memory import plan_memory, plan_smallest
from s2a.registry import entry_for

FEW_CHUNKS = 1 << 30
"""Bytes beside weights and state below which a batch may fit though a smaller one does not: there are few chunks then
(of some 10 MB per matrix, ``s2a.lean.linear.CHUNK``), which differ in size from batch to batch."""

FLOPS_BATCH = 2
"""Images of the step whose operations are counted."""


@dataclasses.dataclass(frozen=True)
class Fit:
    """The largest batch of training steps that a budget has room for.

    ``str`` says it in a sentence.

    Attributes:
        batch_size: Its images; 0: not even one fits.
        at_least: ``batch_size`` images fit, and larger batches were not tried.
        peak_bytes: Simulated peak of a step (``s2a.simulated_peak``) at that batch; of one image where none fits, which
            is the smallest budget that would do.
        budget_bytes: The budget.
        step_flops: Floating-point operations of a step's products, convolutions and attention per image, forward and
            backward, what is computed again included (a multiply-add is two). Operations, not seconds.
        relative_step_flops: Those, relative to the same method with exact activations and without checkpointing.
        plan: What lean activations keep, for the step of ``batch_size`` images; ``None`` without them.
        smallest: With lean activations: the same where every branch keeps the fewest bytes that can be planned. What is
            computed again takes room of its own for a moment: with small models it may take more than it saves.
    """

    batch_size: int
    at_least: bool
    peak_bytes: int
    budget_bytes: int
    step_flops: float
    relative_step_flops: float
    plan: Plan | None = None
    smallest: Fit | None = None

    @property
    def smallest_budget(self) -> int:
        """Bytes that a step of one image takes at least; only known where that does not fit, else ``peak_bytes``."""
        return min(self.peak_bytes, self.peak_bytes if self.smallest is None else self.smallest.peak_bytes)

    def __str__(self) -> str:
        if not (self.batch_size or (self.smallest and self.smallest.batch_size)):
            return (
                f"not even one image fits into {self.budget_bytes / 1e6:,.1f} MB; the smallest budget that would do is "
                f"{-(-self.smallest_budget // 10**5) / 10:,.1f} MB"
            )
        parts = [f"{self._batch()} as it comes" if self.smallest else self._batch()]
        if self.smallest and self.smallest.batch_size <= self.batch_size:
            parts.append("a plan makes no more room")
        elif self.smallest:
            more = round(self.smallest.relative_step_flops / self.relative_step_flops - 1, 2) + 0.0  # No "-0%".
            parts.append(f"{self.smallest._batch()} with the smallest plan, {more:+.0%} operations")
        return "batch " + "; ".join(parts)

    def _batch(self) -> str:
        return f"{'at least ' if self.at_least else ''}{self.batch_size:,}"


def fits(
    model: nn.Module | str,
    config: Any,
    budget: str | int,
    *,
    num_classes: int | None = None,
    image_size: int | Sequence[int] | None = None,
    autocast: torch.dtype | None = None,
    batch_sizes: Sequence[int] | None = None,
) -> Fit:
    """How large a batch fits: the largest whose step has a simulated peak within a budget.

    A step is that of ``s2a.simulated_peak``: forward pass, loss, backward pass, AdamW; weights, gradients and state
    included. It is simulated on tensors without data: nothing of the model's or the batch's size is allocated, and
    ``model`` stays as it is. The answer is exact for that simulation: one image more does not fit. A device needs more
    than is simulated (its context, workspaces of kernels, fragmentation): leave it a margin.

    Args:
        model: A timm model, with gradient checkpointing if it is switched on there, or the name of one.
        config: Any registered method's config, without a memory budget of its own.
        budget: ``"8GiB"``, ``"320MB"``, bytes; ``"free"``: what is free on the current CUDA device, less 5 %.
        num_classes: Of the head; ``None``: the model's own.
        image_size: Side, or height and width; ``None``: the model's own.
        autocast: Dtype of an autocast around forward pass and loss; ``None``: none.
        batch_sizes: Batches to choose from; ``None``: any.

    Raises:
        S2AError: Not a budget, a config or a model that ``s2a.attach`` takes.
    """
    entry_for(config)
    limit = budget_bytes(budget)

    def make(config: Any, again: bool, mode: FakeTensorMode) -> Adapted:
        copied = _without_data(model, image_size, mode)
        if not again and hasattr(copied, "set_grad_checkpointing"):
            copied.set_grad_checkpointing(False)
        return attach(copied, config, num_classes, image_size=image_size)

    return fit(make, config, limit, autocast=autocast, batch_sizes=batch_sizes, checkpointing=_checkpoints(model))


def fit(
    make: Callable[[Any, bool, FakeTensorMode], Adapted],
    config: Any,
    budget: int,
    *,
    autocast: torch.dtype | None = None,
    batch_sizes: Sequence[int] | None = None,
    checkpointing: bool = False,
    smallest: bool = True,
) -> Fit:
    """``fits`` for whoever makes the adapted model.

    Args:
        make: Called within ``tensors_without_data``, whose mode it gets, with a config and whether the model's gradient
            checkpointing is to stay on: the adapted model, on tensors without data.
        config: The method's.
        budget: Bytes.
        autocast: As for ``fits``.
        batch_sizes: Likewise.
        checkpointing: Whether the model runs under gradient checkpointing.
        smallest: With lean activations: also look for the largest batch with the smallest plan.

    Raises:
        S2AError: As ``fits``.
    """
    lean = isinstance(config, LeanOptions) and config.activations == "lean"
    if lean and config.has_budget:
        raise S2AError(
            "The config has a memory budget of its own, so the plan would depend on the batch that is looked for; "
            "leave peak_budget and saved_budget_mb out."
        )
    choices = _checked(batch_sizes)
    with tensors_without_data() as mode:
        adapted = make(config, True, mode)
        exact = None
        if lean or checkpointing:
            stock = dataclasses.replace(config, **STOCK) if lean else config
            exact = _Peaks(make(stock, False, mode), autocast).flops_of(FLOPS_BATCH)
        peaks = _Peaks(adapted, autocast)
        found = peaks.largest(budget, choices)
        usual = _fit(found, peaks, budget, exact)
        if not adapted._branches:
            return usual
        with _autocast(adapted, autocast):
            images = max(1, found.batch)
            if not smallest:
                return dataclasses.replace(usual, plan=plan_memory(adapted, batch_size=images))
            before, after = plan_smallest(adapted, images)
        # Where the plan has its room, an image takes so many bytes less: that is where to look first.
        less = (before.predicted - after.predicted) / images
        guess = _guess(found, budget, less, choices)
        fewest = _fit(peaks.largest(budget, choices, guess), peaks, budget, exact)
    return dataclasses.replace(usual, plan=before, smallest=dataclasses.replace(fewest, plan=after))


STOCK: dict[str, Any] = {
    "activations": "exact",
    "saved_budget_mb": None,
    "peak_budget": None,
    "in_place": False,
    "offload": False,
    "recompute": "auto",
}
"""Options of a lean config's exact counterpart."""


class _Peaks:
    """Simulated steps of one adapted model."""

    def __init__(self, adapted: Adapted, autocast: torch.dtype | None) -> None:
        self._in_chunks = bool(adapted._branches)
        self._step = StepSimulation(adapted, autocast=autocast, copied=False)
        self.last: Peak | None = None
        self._of: dict[int, Peak] = {}

    def __call__(self, batch: int) -> int:
        self.last = self._of[batch] = self._step.peak(batch)
        self._batch = batch
        return self.last.total

    def largest(self, budget: int, choices: Sequence[int] | None, guess: int | None = None) -> Largest:
        """The largest batch that fits."""
        options: Any = {} if guess is None else {"guess": guess}
        if choices is None:
            found = largest_batch(self, budget, per_image=self.per_image, **options)
            return self._beyond(found, budget)
        # Of the batches given: their number in order is what is looked for.
        found = largest_batch(lambda n: self(choices[n - 1]), budget, most=len(choices), **options)
        peaks = {choices[n - 1]: size for n, size in found.peaks.items()}
        return Largest(choices[found.batch - 1] if found.batch else 0, found.at_least, peaks)

    def _beyond(self, found: Largest, budget: int) -> Largest:
        """Looks whether a larger batch fits though one image more does not.

        A batch in few chunks has its largest chunks just before it is cut into one more: the peak falls there. Under
        it lies what is held at the loss, which only grows with the batch.
        """
        here = self._of.get(found.batch)
        if here is None or not self._in_chunks or found.at_least:
            return found
        held = here.held + here.categories["input"]
        fixed = here.after_forward - held
        if here.total - fixed > FEW_CHUNKS:
            return found
        for share in (2.0, 1.5, 1.25, 1.1):
            batch = int(found.batch * share)
            if batch in found.peaks or batch > MOST_IMAGES or fixed + held * share > budget:
                continue
            if self(batch) <= budget:
                more = largest_batch(self, budget, guess=batch + 1, per_image=self.per_image, fitting=batch)
                peaks = found.peaks | {batch: self._of[batch].total} | more.peaks
                return self._beyond(Largest(more.batch, more.at_least, peaks), budget)
            found.peaks[batch] = self._of[batch].total
        return found

    def per_image(self) -> float:
        """About the bytes that an image adds to the peak: what is neither weights nor as large as they are."""
        assert self.last is not None
        fixed = ("weights", "gradients", "optimiser state")
        return (self.last.total - sum(self.last.categories[name] for name in fixed)) / self._batch

    def flops_of(self, batch: int) -> float:
        """Operations of a step, per image."""
        return self._step.flops(batch) / batch

    @property
    def flops(self) -> float:
        """Operations of the last step, per image."""
        assert self.last is not None
        return self.last.flops / self._batch


def _fit(found: Largest, peaks: _Peaks, budget: int, exact: float | None) -> Fit:
    batch = found.batch or min(found.peaks)
    relative = 1.0 if not exact else peaks.flops / exact
    return Fit(found.batch, found.at_least, found.peaks[batch], budget, peaks.flops, relative)


def _guess(found: Largest, budget: int, less: float, choices: Sequence[int] | None) -> int | None:
    """The largest batch, estimated from peaks that take so many bytes less per image."""
    here = found.batch
    away = max(found.peaks, key=lambda batch: abs(batch - here))
    if choices is not None or here == away or not here:
        return None
    slope = (found.peaks[away] - found.peaks[here]) / (away - here)
    fixed = found.peaks[here] - slope * here
    return int((budget - fixed) / (slope - less)) if slope > less else None


def _checked(batch_sizes: Sequence[int] | None) -> list[int] | None:
    if batch_sizes is None:
        return None
    sizes = list(batch_sizes) if isinstance(batch_sizes, Iterable) else []
    if not sizes or any(type(size) is not int or not 1 <= size <= MOST_IMAGES for size in sizes):
        raise S2AError(f"batch_sizes={batch_sizes!r} must be integers of 1 to {MOST_IMAGES:,}, or None for any.")
    return sorted(set(sizes))


@contextlib.contextmanager
def _autocast(adapted: Adapted, dtype: torch.dtype | None) -> Iterator[None]:
    device = next(adapted.parameters()).device.type
    with torch.autocast(device, dtype, enabled=dtype is not None):
        yield


def _checkpoints(model: Any) -> bool:
    return isinstance(model, nn.Module) and any(getattr(m, "grad_checkpointing", False) for m in model.modules())


def _without_data(model: nn.Module | str, image_size: int | Sequence[int] | None, mode: FakeTensorMode) -> Any:
    """A copy of a model, or one of that name, on tensors without data."""
    if isinstance(model, str):
        made = _named(model, image_size)
        strip_data(made)
        return made
    if not isinstance(model, nn.Module):
        raise S2AError(f"fits takes a timm model or the name of one, not {type(model).__name__}.")
    refuse_adapted(model)
    with FakeCopyMode(mode):
        return copy.deepcopy(model)


def _named(name: str, image_size: int | Sequence[int] | None) -> nn.Module:
    """A timm model without data; for images of that size, if it can be made for a size."""
    if not timm.is_model(name):
        raise S2AError(f"timm has no model {name!r}; timm.list_models() has those that it knows.")
    # Made outside the mode of tensors without data: timm reads values of its own meanwhile.
    with unset_fake_temporarily(), torch.device("meta"):
        if image_size is not None:
            with contextlib.suppress(TypeError):  # It takes images of any size.
                return timm.create_model(name, img_size=image_size)
        return timm.create_model(name)
