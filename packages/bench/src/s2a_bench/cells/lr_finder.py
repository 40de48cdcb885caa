"""Finds a learning rate before training: a range test on the training images.

The rate rises exponentially from step to step and the loss of every batch is written down (Smith, "Cyclical Learning
Rates for Training Neural Networks", 2017, arXiv:1506.01186): while the rate is far too low nothing happens, then the
loss falls, at last it rises. The rate suggested is that of the steepest fall, as fastai's ``lr_find`` suggests with
``steep`` (https://docs.fast.ai/callback.schedule.html). The model that is tried is one of its own and is thrown away.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from s2a_bench.cells.identity import IdentifiedCell, OpenCell, open_cell
from s2a_bench.cells.prepare import load
from s2a_bench.cells.train import class_weights, parameter_groups, set_checkpointing, training_step
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError

STEPS = 60
"""Steps of a test."""

SPAN = 30.0
"""The rate rises from the recipe's own divided by this to the recipe's own times this."""

BLOW_UP = 4.0
"""A loss above the lowest one times this ends the test, as in fastai."""

LEAST_FALL = 0.05
"""A loss that falls by less than this share of where it began has not fallen."""

REACH = 5
"""A slope is fitted to a step and so many steps on either side."""


@dataclasses.dataclass(frozen=True)
class RateSearch:
    """What a range test found.

    Attributes:
        rate: The learning rate to train with (``train.lr``).
        points: Rate and training loss of each step, in their order.
        reason: Why it is this rate: one sentence.
    """

    rate: float
    points: list[tuple[float, float]]
    reason: str


def find_rate(
    cell: CellConfig | IdentifiedCell, *, steps: int = STEPS, progress: Callable[[int, int], None] | None = None
) -> RateSearch:
    """Runs a range test for a cell: its backbone, method, recipe and training images, with rising rates.

    The rate of step ``i`` of ``n``, from 0, is ``r * 30 ** (2 * i / (n - 1) - 1)`` for the recipe's own rate ``r``; a
    ``head_lr`` of its own rises in proportion. The same seed gives the same answer. Neither the validation nor the test
    images are used, and no random number generator of torch is left changed.

    Args:
        cell: The cell.
        steps: How many, at most: a loss that is not finite, or four times the lowest, ends the test.
        progress: Called after every step with its number, from 1, and ``steps``.

    Raises:
        ValueError: Bad input, as ``identity.open_cell``; fewer steps than a slope is fitted to.
    """
    if type(steps) is not int or steps < 2 * REACH + 2:
        raise InputError(f"steps={steps!r} of a learning-rate test must be a whole number from {2 * REACH + 2}.")
    config = cell if isinstance(cell, CellConfig) else cell.config
    points: list[tuple[float, float]] = []
    device = torch.device(config.device)
    with torch.random.fork_rng([device] if device.type == "cuda" else []), _threads(config.threads):
        for rate, loss in _losses(open_cell(cell), steps):
            if not math.isfinite(loss):
                break
            points.append((rate, loss))
            if progress is not None:
                progress(len(points), steps)
            if loss > BLOW_UP * min(seen for _, seen in points):
                break
    return suggest(points, config.train.lr)


def suggest(points: Sequence[tuple[float, float]], own: float) -> RateSearch:
    """The rate at which the loss falls fastest, before it is lowest.

    With losses ``L_i`` and equal steps of ``ln(rate)``, the slope at ``i`` is that of the line fitted to ``L_(i-5)`` to
    ``L_(i+5)``: ``sum(k * L_(i+k)) / sum(k^2)``; the smoothed loss is their mean. Centred windows, unlike fastai's
    running average, do not lag behind the rate.

    Args:
        points: Rate and loss of each step.
        own: The rate to keep where the test says nothing.
    """
    losses = np.array([loss for _, loss in points])
    if len(losses) < 2 * REACH + 2:
        return _keep(own, points, f"the loss blew up within {len(losses) + 1} steps")
    offsets = np.arange(-REACH, REACH + 1)
    windows = np.lib.stride_tricks.sliding_window_view(losses, len(offsets))
    smoothed, slopes = windows.mean(1), windows @ offsets / (offsets**2).sum()
    lowest = int(smoothed.argmin())
    # What differs between batches is no fall: four standard errors of a mean of so many of them.
    first = losses[: len(offsets)]
    noise = 4 * float(first.std()) / math.sqrt(len(offsets))
    fall = float(smoothed[0] - smoothed[lowest])
    if fall <= max(noise, LEAST_FALL * float(smoothed[0])):
        return _keep(own, points, f"the loss did not fall from {smoothed[0]:.2f} at any rate")
    steepest = int(slopes[: lowest + 1].argmin())
    rate = float(f"{points[steepest + REACH][0]:.2g}")  # finer than two digits no such test can tell
    return RateSearch(
        rate,
        list(points),
        f"The training loss falls fastest near {rate:g}, from {smoothed[0]:.2f} to {smoothed[lowest]:.2f}, and is "
        f"lowest near {points[lowest + REACH][0]:.2g} (the recipe's own rate: {own:g}).",
    )


def _keep(own: float, points: Sequence[tuple[float, float]], why: str) -> RateSearch:
    return RateSearch(own, list(points), f"The recipe's own rate, {own:g}, is kept: {why}.")


def _losses(opened: OpenCell, steps: int) -> Iterator[tuple[float, float]]:
    """Trains a model of its own with rising rates; the rate of each step and the loss before it."""
    adapted, loaded = load(opened)
    config, images = opened.cell.config.train, loaded.train
    device = next(adapted.parameters()).device
    torch.manual_seed(opened.cell.config.seed)
    set_checkpointing(adapted.backbone, config)
    optimiser = torch.optim.AdamW(parameter_groups(adapted, config), lr=config.lr)
    order = torch.Generator().manual_seed(opened.cell.config.seed)
    weights = class_weights(images.labels).to(device) if config.balance else None
    adapted.train()
    for step, indices in zip(range(steps), _batches(len(images), config.batch_size, order), strict=False):
        factor = SPAN ** (2 * step / (steps - 1) - 1)
        for group in optimiser.param_groups:
            group["lr"] = group["peak_lr"] * factor
        labels = images.labels[indices].to(device)
        loss = training_step(adapted, images.batch(indices, order).to(device), labels, optimiser, config, weights)
        yield config.lr * factor, loss


def _batches(count: int, size: int, order: torch.Generator) -> Iterator[Tensor]:
    """Batches of shuffled indices without end."""
    while True:
        yield from torch.randperm(count, generator=order).split(size)


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    """Within the block torch uses so many threads; 0: as many as before."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
