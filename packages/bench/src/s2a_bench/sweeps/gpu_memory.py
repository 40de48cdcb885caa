"""How much of a card a cell needs: its memory is predicted without one, so that many small cells share a card.

The prediction errs on the large side. A cell that ran out of memory all the same gets a whole card the next time.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import s2a
import torch
from torch import Tensor, nn

from s2a_bench.cells import backbones
from s2a_bench.cells.train import attach, precision, set_checkpointing
from s2a_bench.config import BackboneConfig, CellConfig, TrainConfig
from s2a_bench.data.table import lookup

GB = 1e9
"""One GB, as MB elsewhere: powers of ten."""

CONTEXT_GB = 0.8
"""What a process takes of a card before its first tensor: the CUDA context and the libraries' workspaces."""

MARGIN = 1.25
"""On what is computed: the allocator's rounding and fragments, and kernels whose choice differs from the CPU's."""

SCORING_BATCH = 128
"""Images per step of ``scores.accuracy``."""

_STEP, _FORWARD = 3, 3
"""Tensors of the size of the largest layer's input and output that live at once, besides what is kept: a gradient that
comes in, one that goes out and a kernel's own; in scoring the residual stream in place of the gradients."""

_GRAIN = 100
"""Shares are whole percents."""


@dataclasses.dataclass(frozen=True)
class Need:
    """Predicted memory of a cell on a card, in bytes.

    Attributes:
        weights: Parameters and buffers.
        trained: Gradients and AdamW's two moments of what trains.
        saved: What autograd keeps for one batch.
        step: Workspace of a training step.
        scoring: Workspace of scoring, where nothing is kept.
    """

    weights: int
    trained: int
    saved: int
    step: int
    scoring: int

    @property
    def gigabytes(self) -> float:
        """Everything with the margin, in GB: training's or scoring's peak, whichever is larger."""
        held = self.weights + self.trained + max(self.saved + self.step, self.scoring)
        return CONTEXT_GB + MARGIN * held / GB


def predict(cell: CellConfig) -> Need:
    """Predicts a cell's memory from two small batches on the CPU: what is kept grows linearly with the batch.

    Args:
        cell: Any cell that ``run.identify`` accepts. Its device does not matter.
    """
    options = json.dumps(dict(cell.method.options), sort_keys=True)
    # Weights from a file have the sizes of random ones; the file need not be read again.
    backbone = dataclasses.replace(cell.backbone, weights=None, random_weights=True)
    classes = lookup.get_dataset(cell.data.suite, cell.data.dataset, cell.data.root).classes
    found = _sizes(backbone, cell.method.name, options, classes, cell.train.number_format)
    batch = cell.train.batch_size
    return Need(
        weights=found.weights,
        trained=12 * found.trainable,
        saved=max(0, found.saved[0] + (batch - 2) * (found.saved[1] - found.saved[0])),
        step=_STEP * found.widest * batch,
        scoring=_FORWARD * found.widest * SCORING_BATCH,
    )


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Bytes of weights, number of trainable values, bytes saved for 2 and 3 images, bytes of the largest layer."""

    weights: int
    trainable: int
    saved: tuple[int, int]
    widest: int


@functools.lru_cache(maxsize=256)
def _sizes(backbone: BackboneConfig, method: str, options: str, classes: int, train: TrainConfig) -> _Sizes:
    with torch.random.fork_rng([]):
        model, expected = backbones.create(backbone)
        adapted = attach(model, s2a.method_config(method, **json.loads(options)), classes, expected.size, train)
        set_checkpointing(adapted.backbone, train)
        images = torch.zeros(3, 3, expected.size, expected.size)
        with precision(train, images.device):
            widest = _widest(adapted, images[:1])
            adapted.train()
            # Not from one image: there, tensors that are expanded over the batch need no copy.
            saved = tuple(s2a.saved_bytes(adapted, images[:count]).total for count in (2, 3))
    held = {t.data_ptr(): t.numel() * t.element_size() for t in (*adapted.parameters(), *adapted.buffers())}
    weights = sum(held.values()) - s2a.host_bytes(adapted)
    trainable = sum(p.numel() for p in s2a.trainable_parameters(adapted).values())
    return _Sizes(weights, trainable, (saved[0], saved[1]), widest)


def _widest(model: nn.Module, images: Tensor) -> int:
    """Bytes of the largest input and output, together, of any module that has no modules in it."""
    largest = 0

    def look(module: nn.Module, args: Any, output: Any) -> None:
        nonlocal largest
        tensors = [value for value in (*args, output) if isinstance(value, Tensor)]
        largest = max(largest, sum(t.numel() * t.element_size() for t in tensors))

    handles = [m.register_forward_hook(look) for m in model.modules() if not any(m.children())]
    training = model.training
    try:
        model.eval()
        with torch.inference_mode():
            model(images)
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    return largest


def fraction(gigabytes: float, card_gb: float) -> float:
    """A cell's share of a card, in whole percents, rounded up; 1 where it does not even fit one card.

    Args:
        gigabytes: What it needs.
        card_gb: What the card has.
    """
    # Rounded before it is rounded up: a need of 0.07 of 1 is 7 %, whatever binary fractions make of it.
    return min(_GRAIN, max(1, math.ceil(round(_GRAIN * gigabytes / card_gb, 6)))) / _GRAIN


def shares(cells: Mapping[str, CellConfig], card_gb: float, whole: Iterable[str] = ()) -> dict[str, float]:
    """The share of a card of every cell.

    Args:
        cells: By their ids.
        card_gb: Memory of one card.
        whole: Ids of cells that get a card to themselves, whatever is predicted: those that ran out of memory.
    """
    alone = set(whole)
    return {
        cell_id: 1.0 if cell_id in alone else fraction(predict(cell).gigabytes, card_gb)
        for cell_id, cell in cells.items()
    }


def cores(share: float, cpus: int, cards: int) -> int:
    """Processor cores for a cell with a share of a card: the same share of the card's part of the machine's cores."""
    return max(1, math.floor(round(share * cpus / cards, 6)))


def smallest_gpu_gb() -> float | None:
    """Memory of the smallest GPU of this machine, in GB; ``None`` without one."""
    sizes = [torch.cuda.get_device_properties(i).total_memory for i in range(torch.cuda.device_count())]
    return min(sizes) / GB if sizes else None


def sentence(given: Mapping[str, float], card: float) -> str:
    """What was decided, for the terminal: ``Shares of a card of 80 GB: 4 cells 2 %, 1 cell 100 % (...)``."""
    counts: dict[float, int] = {}
    for share in given.values():
        counts[share] = counts.get(share, 0) + 1
    parts = [f"{n} cell{'s' if n > 1 else ''} {share:.0%}" for share, n in sorted(counts.items())]
    return f"Shares of a card of {card:g} GB, by predicted memory: {', '.join(parts)}."
