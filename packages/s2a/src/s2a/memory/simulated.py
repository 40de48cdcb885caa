"""The peak of a whole training step, by running it on tensors without data and keeping a ledger of their storages.

A step is: forward pass, cross-entropy, backward pass, AdamW, gradients set to ``None``.
Nothing is computed and nothing of the model's size is allocated: a ViT-B/16 at batch 32 takes seconds on any machine.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensor,
    FakeTensorMode,
)

from s2a.backbones import input_channels
from s2a.errors import S2AError
from s2a.memory.ledger import Entry, Ledger
from s2a.memory.no_data import copy_without_data
from s2a.ops.loops import shortened_by
from s2a.paging import paged_weights, pager_of

CATEGORIES: tuple[str, ...] = ("weights", "input", "gradients", "optimiser state", "held activations", "transient")
"""What bytes at the peak can be. Held: made in the forward pass and still there with the loss. Transient: all else."""

OPTIMISERS: dict[str, dict[str, Any]] = {
    "foreach": {"foreach": True},
    "single": {"foreach": False, "fused": False},
    "fused": {"fused": True},
}
"""AdamW's three implementations. With default arguments ``torch.optim.AdamW`` takes ``foreach`` on CUDA."""

LARGEST = 20
"""Storages that a ``Peak`` names."""


@dataclasses.dataclass(frozen=True)
class Live:
    """One storage that is there at the peak.

    Attributes:
        bytes: Rounded up to 512.
        category: One of ``CATEGORIES``.
        shape: Of the tensor that it was made as.
        dtype: Likewise.
        operator: What made it; empty for weights and input.
        module: Where: the innermost running module, or the autograd node whose backward pass ran.
    """

    bytes: int
    category: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    operator: str
    module: str

    def __str__(self) -> str:
        what = f"{self.operator} in {self.module}" if self.operator else self.category
        kind = str(self.dtype).removeprefix("torch.")
        return f"{self.bytes / 1e6:9.2f} MB  {self.category:<16} {list(self.shape)} {kind}  {what}"


@dataclasses.dataclass(frozen=True)
class Peak:
    """The simulated peak of one training step, in bytes.

    Attributes:
        total: Most bytes held at once.
        phase: ``"forward"``, ``"backward"`` or ``"optimizer"``: when that was.
        categories: Category -> bytes at that moment; all of ``CATEGORIES``, their sum is ``total``.
        largest: The largest storages at that moment.
        phases: Phase -> most bytes held in it.
        after_forward: Bytes held when the loss is there.
        held: Held activations at that moment.
        flops: Floating-point operations of the step's products, convolutions and attention, forward and backward, what
            is computed again included; as ``torch.utils.flop_counter`` counts them (a multiply-add is two).
    """

    total: int
    phase: str
    categories: dict[str, int]
    largest: tuple[Live, ...]
    phases: dict[str, int]
    after_forward: int
    held: int
    flops: int = 0

    def __str__(self) -> str:
        lines = [f"{self.total / 1e6:.1f} MB in the {self.phase} phase"]
        lines += [f"{size / 1e6:9.2f} MB  {name}" for name, size in self.categories.items()]
        return "\n".join([*lines, "largest:", *map(str, self.largest)])


def simulated_peak(
    adapted: nn.Module,
    batch_size: int = 32,
    *,
    image_size: int | Sequence[int] | None = None,
    optimizer: Literal["foreach", "single", "fused"] = "foreach",
    autocast: torch.dtype | None = None,
    loss_fn: Callable[[Tensor], Tensor] | None = None,
    input_shape: Sequence[int] | None = None,
    steps: int = 2,
) -> Peak:
    """Most bytes that a training step holds at once: weights, buffers, batch, gradients, optimiser state, temporaries.

    The model is copied without its data and trained on a blank batch; itself it stays as it is. Every storage counts
    once, rounded up to 512 bytes, from the operator that makes it until its last tensor dies. The batch is held for the
    whole step, as a loop's variable holds it. Left out: what kernels use inside themselves (workspaces of cuBLAS and
    cuDNN), fragmentation, and the values that ``attach`` keeps for ``detach``.

    Args:
        adapted: What ``s2a.attach`` returned, or, with ``input_shape``, any module from a batch to logits. The step is
            simulated in training mode, on the device that its parameters are on.
        batch_size: Images per step.
        image_size: Side, or height and width; ``None``: the adapted model's own.
        optimizer: Key of ``OPTIMISERS``.
        autocast: Dtype of an autocast around forward pass and loss; ``None``: none.
        loss_fn: Logits to a scalar; ``None``: cross-entropy.
        input_shape: Of one input, instead of ``image_size``.
        steps: The step that counts. In the first there is no optimiser state before its end.

    Raises:
        S2AError: Sizes that are none, a module without parameters to train, or a forward pass that looks at values.
    """
    step = StepSimulation(
        adapted,
        image_size=image_size,
        optimizer=optimizer,
        autocast=autocast,
        loss_fn=loss_fn,
        input_shape=input_shape,
    )
    return step.peak(batch_size, steps)


class StepSimulation:
    """Steps of one model, simulated for several batch sizes: what they have in common is made once.

    Args:
        adapted: As for ``simulated_peak``, and so are the others. What is changed there later is not seen.
        image_size: Likewise.
        optimizer: Likewise.
        autocast: Likewise.
        loss_fn: Likewise.
        input_shape: Likewise.
        copied: Whether steps run on a copy, so that the model keeps its data and its state. One on tensors without data
            may be taken itself: it ends up in training mode, and what is planned for it later is simulated too.

    Raises:
        S2AError: As ``simulated_peak``.
    """

    def __init__(
        self,
        adapted: nn.Module,
        *,
        image_size: int | Sequence[int] | None = None,
        optimizer: Literal["foreach", "single", "fused"] = "foreach",
        autocast: torch.dtype | None = None,
        loss_fn: Callable[[Tensor], Tensor] | None = None,
        input_shape: Sequence[int] | None = None,
        copied: bool = True,
    ) -> None:
        self._shape = _shape(adapted, image_size, input_shape)
        if optimizer not in OPTIMISERS:
            raise S2AError(f"optimizer={optimizer!r} is unknown; choose one of {', '.join(map(repr, OPTIMISERS))}.")
        if not any(p.requires_grad for p in adapted.parameters()):
            raise S2AError("Nothing trains in this model, so it has no training step; attach a method first.")
        self._adapted, self._copied = adapted, copied
        self._options = OPTIMISERS[optimizer]
        self._autocast, self._loss_fn = autocast, loss_fn or _cross_entropy
        self._device = next(adapted.parameters()).device
        self._mode = _mode_of(adapted)
        self._copy: tuple[nn.Module, torch.optim.Optimizer] | None = None

    def peak(self, batch_size: int, steps: int = 2) -> Peak:
        """As ``simulated_peak``; a step is the first one only in the first call."""
        for name, number in (("batch_size", batch_size), ("steps", steps)):
            if type(number) is not int or number < 1:
                raise S2AError(f"{name}={number!r} must be an integer of at least 1.")
        return _summary(*self._simulated(batch_size, steps))

    def flops(self, batch_size: int) -> int:
        """``Peak.flops`` of a step, without simulating the optimiser's."""
        return self._simulated(batch_size, 0)[0].flops

    def _simulated(self, batch_size: int, steps: int) -> tuple[Ledger, int]:
        """The ledger of the last of so many steps, and when its loss was there; 0: one without an optimiser's."""
        ledger = Ledger(self._device, self._mode)
        devices = [self._device] if self._device.type == "cuda" else []
        kept, self._copy = self._copy, None
        try:
            with torch.random.fork_rng(devices), self._mode as mode:
                # 1. A copy without data, or that of the call before, whose optimiser has its state.
                model = (
                    kept[0]
                    if kept
                    else copy_without_data(self._adapted, mode)
                    if self._copied
                    else self._adapted.train()
                )
                with _no_collection(), ledger, ledger.following(model), shortened_by(ledger):
                    _enter_weights(model, ledger)
                    optimiser = torch.optim.AdamW(_groups(model), lr=1e-3, **self._options) if kept is None else kept[1]
                    _enter_state(optimiser, ledger)
                    stepped, shape = optimiser if steps else None, (batch_size, *self._shape)
                    step = functools.partial(_step, model, shape, stepped, self._autocast, self._loss_fn, ledger)
                    # 2. The steps. Where the first leaves nothing but state behind, it was as good as a later one.
                    after_forward = step(steps > 1 and kept is None)
                    alike = _only_state_stays(ledger)
                    # Which copy of a weight comes next, a first step only learns.
                    pager = pager_of(model)
                    learns = kept is None and pager is not None and pager.prefetches(self._device)
                    for _ in range(0 if alike and not learns else steps - 1):
                        after_forward = step(False)
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise S2AError(
                f"The model decides by values what it computes ({error}); a simulation has none, measure it on a "
                "device."
            ) from None
        if alike and steps > 1:
            self._copy = model, optimiser  # A step of the next call is no first one.
        return ledger, after_forward


def _shape(adapted: Any, image_size: Any, input_shape: Sequence[int] | None) -> tuple[int, ...]:
    """Shape of one input."""
    if input_shape is not None:
        if image_size is not None:
            raise S2AError("image_size and input_shape both say how large an input is; give one of them.")
        shape = tuple(input_shape)
    else:
        if not hasattr(adapted, "image_size"):
            raise S2AError("The model does not say how large its images are; give input_shape=(3, height, width).")
        size = adapted.image_size if image_size is None else image_size
        sides = (size, size) if isinstance(size, int) else tuple(size)
        if len(sides) != 2:
            raise S2AError(f"image_size={image_size!r} must be a side, or height and width, in pixels.")
        shape = (input_channels(adapted.backbone), *sides)
    if any(type(n) is not int or n < 1 for n in shape):
        raise S2AError(f"An input of shape {shape} has no elements; every size must be an integer of at least 1.")
    return shape


def _mode_of(model: nn.Module) -> FakeTensorMode:
    """The mode of tensors without data that a model's tensors belong to, or a new one."""
    found = (p.fake_mode for p in model.parameters() if isinstance(p, FakeTensor))
    return next(found, None) or FakeTensorMode(allow_non_fake_inputs=True)


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """Switches Python's cycle collector off: when it runs is chance, so what only it could free counts as held."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _enter_weights(model: nn.Module, ledger: Ledger) -> None:
    """Parameters and buffers are there before the first operator runs; what is paged lies elsewhere."""
    ledger.elsewhere = {weight.untyped_storage()._cdata for weight in paged_weights(model)}
    for tensor in (*model.parameters(), *model.buffers()):
        ledger.note(tensor, category="weights")


def _enter_state(optimiser: torch.optim.Optimizer, ledger: Ledger) -> None:
    """The optimiser's state is known, and there if it is there."""
    for state in optimiser.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                ledger.note(value, category="optimiser state")
                ledger.category(value, "optimiser state")


def _groups(model: nn.Module) -> list[dict[str, Any]]:
    """Matrices, and vectors that weight decay leaves out: AdamW's ``foreach`` temporaries are as large as a group."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [p for p in trained if p.ndim > 1], [p for p in trained if p.ndim <= 1]
    return [{"params": group} for group in groups if group]


def _cross_entropy(logits: Tensor) -> Tensor:
    return F.cross_entropy(logits, logits.new_zeros(len(logits), dtype=torch.long))


def _step(
    model: nn.Module,
    shape: tuple[int, ...],
    optimiser: torch.optim.Optimizer | None,
    autocast: torch.dtype | None,
    loss_fn: Callable[[Tensor], Tensor],
    ledger: Ledger,
    with_state: bool,
) -> int:
    """One training step; the event at which the loss was there.

    ``with_state``: as if the optimiser's state, which its first step makes, had been there from the beginning. A second
    step of a model that keeps nothing else of the first does the same as the first, beside that state.
    """
    ledger.flops = 0
    reference = next(model.parameters())
    # Categories are set as soon as a tensor's role is known; what has none at the end is an activation or transient.
    ledger.begin("forward")
    images = torch.empty(shape, device=reference.device, dtype=reference.dtype)
    ledger.category(images, "input")
    with torch.autocast(reference.device.type, autocast, enabled=autocast is not None):
        logits = model(images)
        loss = loss_fn(logits)
    after_forward = ledger.now
    ledger.begin("backward")
    loss.backward()
    for parameter in model.parameters():
        if parameter.grad is not None:
            ledger.category(parameter.grad, "gradients")
    if optimiser is None:
        model.zero_grad(set_to_none=True)
        return after_forward
    ledger.begin("optimizer")
    optimiser.step()
    _enter_state(optimiser, ledger)
    if with_state:
        ledger.there_from_the_start("optimiser state")
        ledger.begin("optimizer")
        optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return after_forward


def _only_state_stays(ledger: Ledger) -> bool:
    """Whether a step has left nothing behind that the next one would find, but the optimiser's state."""
    return all(entry.category in ("weights", "optimiser state") for entry in ledger.at(ledger.now))


def _summary(ledger: Ledger, after_forward: int) -> Peak:
    """The largest of the phases' peaks, and what was held at that event."""
    phases = {phase: size for phase, (size, _) in ledger.peaks.items() if phase}
    phase = max(phases, key=lambda name: phases[name])
    total, event = ledger.peaks[phase]
    categories = dict.fromkeys(CATEGORIES, 0)
    found = ledger.at(event)
    for entry in found:
        categories[_category(entry, after_forward)] += entry.bytes * entry.copies
    held = ledger.at(after_forward)
    return Peak(
        total,
        phase,
        categories,
        tuple(_live(entry, after_forward) for entry in _each(found)[:LARGEST]),
        phases,
        sum(entry.bytes * entry.copies for entry in held),
        sum(entry.bytes * entry.copies for entry in held if _category(entry, after_forward) == "held activations"),
        ledger.flops,
    )


def _each(entries: Sequence[Entry]) -> list[Entry]:
    """Entries as often as there are copies of them, up to ``LARGEST`` each."""
    return [entry for entry in entries for _ in range(min(entry.copies, LARGEST))]


def _category(entry: Entry, after_forward: int) -> str:
    """A storage's own category, or by whether it was there when the forward pass had ended."""
    if entry.category:
        return entry.category
    return "held activations" if entry.lives_at(after_forward) else "transient"


def _live(entry: Entry, after_forward: int) -> Live:
    category = _category(entry, after_forward)
    return Live(entry.bytes, category, entry.shape, entry.dtype, str(entry.operator), entry.module)
