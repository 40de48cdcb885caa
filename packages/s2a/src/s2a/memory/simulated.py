"""The peak of a training step, simulated: which storages are alive when, on tensors without data.

Every operator of a step runs on fake tensors, which have shapes and storages but no data; a storage counts from the operator
that made it until its last reference is gone, Python's own references included, as an allocator would see it. What a
kernel uses inside, the allocator's fragmentation and libraries' workspaces are not in it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeCopyMode, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from s2a.backbones import input_channels

if TYPE_CHECKING:
    from s2a.attach import Adapted

BLOCK = 512
"""Bytes that a storage is rounded up to, as CUDA's caching allocator does."""


@dataclasses.dataclass(frozen=True)
class Peak:
    """The largest moment of a training step.

    Attributes:
        phase: ``"forward"``, ``"backward"`` or ``"optimizer"``.
        parts: Bytes by kind: ``weights`` (parameters and buffers), ``input``, ``gradients``, ``optimizer`` (its state),
            ``held`` (alive when the loss is there: what the backward pass reads), ``transient`` (all else).
        held: Bytes alive when the loss is there, all kinds together.
        largest: The largest transient and held storages at the peak: bytes, operator, shape.
    """

    phase: str
    parts: dict[str, int]
    held: int
    largest: tuple[tuple[int, str, tuple[int, ...]], ...]

    @property
    def total(self) -> int:
        """All kinds together, in bytes."""
        return sum(self.parts.values())


class _Live(TorchDispatchMode):
    """Counts the storages of every operator's outputs while they live."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: dict[int, tuple[int, str, tuple[int, ...]]] = {}
        self.kinds: dict[int, str] = {}
        self.now = self.peak = 0
        self.phase = self.peak_phase = ""
        self.snapshot: dict[int, tuple[int, str, tuple[int, ...]]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_iter(out):
            if isinstance(tensor, Tensor):
                self.see(tensor, str(func))
        return out

    def see(self, tensor: Tensor, name: str, kind: str | None = None) -> None:
        """Counts a tensor's storage, once."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if kind is not None:
            self.kinds[key] = kind
        if key in self.sizes:
            return
        size = -(-storage.nbytes() // BLOCK) * BLOCK
        self.sizes[key] = (size, name, tuple(tensor.shape))
        self.now += size
        weakref.finalize(storage, self._gone, key)
        if self.now > self.peak:
            self.peak, self.peak_phase = self.now, self.phase
            self.snapshot = dict(self.sizes)

    def _gone(self, key: int) -> None:
        self.now -= self.sizes.pop(key)[0]
        self.kinds.pop(key, None)

    def restart(self) -> None:
        """Looks for the peak from here."""
        self.peak, self.snapshot = 0, {}


def simulated_peak(
    adapted: Adapted,
    batch_size: int = 32,
    *,
    optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer] | None = None,
    context: Callable[[], contextlib.AbstractContextManager[Any]] = contextlib.nullcontext,
) -> Peak:
    """The peak memory of one training step: forward, cross-entropy, backward, optimiser and gradients set to ``None``.

    The second of two steps counts: the optimiser has its state. The model is not changed and not copied: tensors of
    the simulation have no data. Kernels are those that PyTorch picks on a CPU.

    Args:
        adapted: What ``s2a.attach`` returned, in any mode; the step runs in training mode.
        batch_size: Images.
        optimizer: Trainable parameters to an optimiser; ``None``: ``torch.optim.AdamW``, one parameter after the other
            (its other forms make copies of all parameters at once).
        context: Of forward pass and loss: autocast, for example.
    """
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with FakeCopyMode(fake):
        model: Any = copy.deepcopy(adapted)
    model.train()
    shape = (batch_size, input_channels(model.backbone), *model.image_size)
    with fake, _collected(), _Live() as live, torch.random.fork_rng([]):
        for tensor in (*model.parameters(), *model.buffers()):
            live.see(tensor, "weight", "weights")
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(lambda p: live.see(p.grad, "gradient", "gradients"))
        parameters = [p for p in model.parameters() if p.requires_grad]
        stepper = (optimizer or _adamw)(parameters)
        dtype = next(model.head.parameters()).dtype
        images, labels = torch.empty(shape, dtype=dtype), torch.zeros(batch_size, dtype=torch.long)
        live.see(images, "input", "input")
        live.see(labels, "input", "input")
        held, alive = 0, set[int]()
        for _ in range(2):
            gc.collect()
            live.restart()
            live.phase = "forward"
            with context():
                loss = F.cross_entropy(model(images), labels)
            held, alive = live.now, set(live.sizes)
            live.phase = "backward"
            loss.backward()
            del loss
            live.phase = "optimizer"
            stepper.step()
            for state in stepper.state.values():
                for value in state.values():
                    if isinstance(value, Tensor):
                        live.see(value, "optimizer state", "optimizer")
            stepper.zero_grad(set_to_none=True)
            kinds = dict(live.kinds)
        return _peak(live, kinds, held, alive)


def _peak(live: _Live, kinds: dict[int, str], held: int, alive: set[int]) -> Peak:
    parts = dict.fromkeys(("weights", "input", "gradients", "optimizer", "held", "transient"), 0)
    others: list[tuple[int, str, tuple[int, ...]]] = []
    for key, storage in live.snapshot.items():
        kind = kinds.get(key, "held" if key in alive else "transient")
        parts[kind] += storage[0]
        if kind in ("held", "transient"):
            others.append(storage)
    others.sort(key=lambda entry: -entry[0])
    return Peak(live.peak_phase, parts, held, tuple(others[:12]))


def _adamw(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=False)


@contextlib.contextmanager
def _collected() -> Iterator[None]:
    """Garbage is collected before, and not in the middle: a cycle's end would be a matter of chance."""
    gc.collect()
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
