"""The training loop: AdamW, warm-up, cosine. No tracker, no sweep, no files."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import s2a
import torch
import torch.nn.functional as F
from s2a.errors import NothingToPage
from torch import Tensor, nn

from s2a_bench.config import TrainConfig
from s2a_bench.errors import InputError


class Images(Protocol):
    """What the loop needs of data (see ``data.Images``)."""

    labels: Tensor

    def __len__(self) -> int: ...

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Normalised images of some indices, ``(B, 3, H, W)``; augmented where a generator is given, if at all."""
        ...


class Checkpointer(Protocol):
    """Writes the training's state and restores it (see ``checkpoint.Checkpointer``)."""

    def restore(
        self, model: nn.Module, optimiser: torch.optim.Optimizer, order: torch.Generator
    ) -> list[dict[str, float]]:
        """Puts an earlier state into the arguments; the curve up to there, empty if there is none."""
        ...

    def save_epoch(
        self,
        model: nn.Module,
        optimiser: torch.optim.Optimizer,
        order: torch.Generator,
        curve: list[dict[str, float]],
    ) -> None:
        """Called at the end of every epoch."""
        ...


class Diverged(RuntimeError):
    """The loss became NaN or infinite."""


@contextlib.contextmanager
def precision(config: TrainConfig, device: torch.device) -> Iterator[None]:
    """The recipe's number format for forward pass and loss."""
    with torch.autocast(device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        yield


def set_checkpointing(backbone: Any, config: TrainConfig) -> None:
    """Switches the recipe's gradient checkpointing of a timm model on or off, block by block."""
    backbone.set_grad_checkpointing(config.checkpointing)


def for_recipe(config: Any, recipe: TrainConfig) -> Any:
    """A method's config whose memory budget, if it has one, is for the recipe's batch.

    Raises:
        InputError: A ``budget_batch`` of another size.
    """
    if not isinstance(config, s2a.LeanOptions) or not config.has_budget:
        return config
    if config.budget_batch not in (None, recipe.batch_size):
        raise InputError(
            f"method.budget_batch={config.budget_batch} is not train.batch_size={recipe.batch_size}: a memory budget "
            "is for the batch that is trained; leave method.budget_batch out."
        )
    return dataclasses.replace(config, budget_batch=recipe.batch_size)


def attach(model: nn.Module, config: Any, num_classes: int, image_size: int, recipe: TrainConfig) -> s2a.Adapted:
    """``s2a.attach`` with the recipe's number formats; a memory budget is for those and for the recipe's batch.

    Raises:
        InputError: As ``for_recipe``.
        S2AError: As ``s2a.attach``.
    """
    config = for_recipe(config, recipe)
    budget = isinstance(config, s2a.LeanOptions) and config.has_budget
    plain = dataclasses.replace(config, saved_budget_mb=None, peak_budget=None) if budget else config
    adapted = s2a.attach(model, plain, num_classes, image_size=image_size)
    if recipe.frozen_halves:
        s2a.cast_frozen(adapted, torch.bfloat16)
    if recipe.frozen_paged:
        # A method that freezes nothing, or a small model, trains as it is, as with ``frozen="bf16"``.
        with contextlib.suppress(NothingToPage):
            s2a.page_frozen(adapted)
    if budget:
        with precision(recipe, next(model.parameters()).device):
            s2a.plan_memory(
                adapted, config.saved_budget_mb, peak_budget=config.peak_budget, batch_size=recipe.batch_size
            )
        adapted.config = config
    return adapted


def schedule(step: int, total: int, warmup: int) -> float:
    """Factor on the peak learning rate at a step: linear warm-up, then cosine decay (paper section 4.1).

    ``(s + 1) / w`` for ``s < w``, then ``(1 + cos(pi * (s - w) / (T - w))) / 2``, for step ``s`` from 0, ``w`` steps of
    warm-up and ``T`` in all.
    """
    if step < warmup:
        return (step + 1) / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, total - warmup)))


def parameter_groups(model: nn.Module, config: TrainConfig) -> list[dict[str, object]]:
    """Optimiser groups of what trains: the head apart (``head_lr``), decay on matrices only."""
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    head_lr = config.lr if config.head_lr is None else config.head_lr
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            lr = head_lr if name.startswith("head.") else config.lr
            decay = config.weight_decay if parameter.ndim > 1 else 0.0
            groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": p, "lr": lr, "peak_lr": lr, "weight_decay": decay} for (lr, decay), p in groups.items()]


def class_weights(labels: Tensor) -> Tensor:
    """Weights of classes by their inverse frequency: ``N / (K * n_c)``, sklearn's ``"balanced"``.

    With ``n_c`` of ``N`` images in class ``c`` and ``K`` classes that have any; they average to 1 over the images.

    Args:
        labels: ``(N,)`` int64, of the training list.

    Returns:
        ``(largest label + 1,)`` float32; 0 for a class without images.
    """
    counts = labels.bincount()
    present = counts > 0
    return torch.where(present, len(labels) / (present.sum() * counts.clamp(min=1)), 0.0)


def loss_of(logits: Tensor, labels: Tensor, config: TrainConfig, weights: Tensor | None = None) -> Tensor:
    """The recipe's loss of a batch: cross-entropy, with class weights ``sum(w_y * l) / sum(w_y)`` over its images.

    Args:
        logits: ``(B, C)``.
        labels: ``(B,)`` int64.
        config: The recipe.
        weights: Of the classes, see ``class_weights``; ``None``: all images count the same.
    """
    if weights is None:
        return F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing)
    # Not cross_entropy's own weights: with label smoothing these would also weight the targets of other classes.
    losses = F.cross_entropy(logits, labels, label_smoothing=config.label_smoothing, reduction="none")
    weights = weights[labels]
    return (losses * weights).sum() / weights.sum()


def training_step(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    optimiser: torch.optim.Optimizer,
    config: TrainConfig,
    weights: Tensor | None = None,
) -> float:
    """One step of the recipe, what ``s2a.simulated_peak`` simulates; it ends without gradients.

    Args:
        model: In training mode, without gradients.
        images: ``(B, 3, H, W)`` on the model's device; let go here once the forward pass has ended.
        labels: ``(B,)``.
        optimiser: Over ``parameter_groups``.
        config: The recipe.
        weights: Of the classes, on the model's device, see ``loss_of``.

    Returns:
        The loss; where it is not finite, nothing was changed.
    """
    with precision(config, images.device):
        logits = model(images)
        del images  # What the backward pass needs of them, autograd holds.
        loss = loss_of(logits, labels, config, weights)
    value = loss.item()
    # Checked before the backward pass: weights and the optimiser's state stay as they were.
    if not math.isfinite(value):
        return value
    loss.backward()
    if config.clip_norm:
        nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], config.clip_norm)
    optimiser.step()
    optimiser.zero_grad(set_to_none=True)
    return value


def train(
    model: nn.Module,
    images: Images,
    config: TrainConfig,
    seed: int,
    checkpointer: Checkpointer | None = None,
    look: Callable[[int], dict[str, float]] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> Iterator[dict[str, float]]:
    """Trains ``model`` in place.

    Args:
        model: Images to logits; its device is used.
        images: The training images.
        config: The recipe.
        seed: Of the order of the images and of their augmentation.
        checkpointer: Restores an interrupted training and writes its state; ``None``: neither.
        look: Given an epoch that has ended, further metrics of it; it may leave the model in evaluation mode. Whoever
            iterates may stop at any epoch; the schedule is that of all epochs.
        on_step: Called after every step with how many are done, those before an interruption too, and how many there
            are in all epochs.

    Yields:
        After every epoch (those before an interruption at once): ``epoch`` (from 1), ``loss`` (mean), ``lr`` (peak
        group, last step), ``seconds`` (of the epoch), ``images_per_second``.

    Raises:
        Diverged: A loss that is not finite.
    """
    device = next(model.parameters()).device
    optimiser = torch.optim.AdamW(parameter_groups(model, config), lr=config.lr)
    optimiser.zero_grad(set_to_none=True)
    order = torch.Generator().manual_seed(seed)
    steps = -(-len(images) // config.batch_size)
    model.train()
    # A resumed training yields the earlier epochs again, then goes on with the next step.
    curve = [] if checkpointer is None else checkpointer.restore(model, optimiser, order)
    yield from curve
    weights = class_weights(images.labels).to(device) if config.balance else None
    total, step = steps * config.epochs, steps * len(curve)
    for epoch in range(len(curve) + 1, config.epochs + 1):
        started, loss_sum, lr = time.perf_counter(), 0.0, 0.0
        # One generator decides the order and the augmentation, so that a checkpoint can restore both.
        for indices in torch.randperm(len(images), generator=order).split(config.batch_size):
            factor = schedule(step, total, steps * config.warmup_epochs)
            for group in optimiser.param_groups:
                group["lr"] = group["peak_lr"] * factor
            lr = config.lr * factor
            labels = images.labels[indices].to(device)
            value = training_step(model, images.batch(indices, order).to(device), labels, optimiser, config, weights)
            if not math.isfinite(value):
                raise Diverged(f"The loss is {value} at step {step + 1} of {total} (epoch {epoch}); lower train.lr.")
            loss_sum += value * len(indices)
            step += 1
            if on_step is not None:
                on_step(step, total)
        seconds = time.perf_counter() - started
        metrics = {
            "epoch": epoch,
            "loss": loss_sum / len(images),
            "lr": lr,
            "seconds": seconds,
            "images_per_second": len(images) / seconds,
        }
        if look is not None:
            metrics |= look(epoch)
            model.train()
        if checkpointer is not None:
            curve = [*curve, metrics]
            checkpointer.save_epoch(model, optimiser, order, curve)
        yield metrics
