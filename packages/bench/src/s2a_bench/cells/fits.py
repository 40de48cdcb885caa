"""The largest batch that a memory budget has room for, and what a cell is to be trained with under one."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import s2a
import torch
from s2a.fitting import fit, largest_batch
from s2a.memory import StepSimulation, tensors_without_data
from s2a.planning import plan_smallest

from s2a_bench.cells.measure import MB, blank
from s2a_bench.cells.train import precision, set_checkpointing
from s2a_bench.config import CellConfig, TrainConfig
from s2a_bench.errors import InputError


def fit_row(
    backbone: str,
    method: str,
    budget: int,
    options: Mapping[str, Any] | None = None,
    train: TrainConfig | None = None,
    *,
    image_size: int | None = None,
    num_classes: int = 100,
    smallest: bool = True,
) -> dict[str, Any]:
    """One row of ``s2a-bench fits``, on tensors without data: no weights, no batch.

    Args:
        backbone: Mini backbone or timm model.
        method: Registered name.
        budget: Bytes.
        options: Of the method's config.
        train: The recipe, of which number formats and checkpointing count; ``None``: the default.
        image_size: Side in pixels; ``None``: the backbone's own.
        num_classes: Of the head.
        smallest: With lean activations: look for the largest batch with the smallest plan too.

    Returns:
        ``batch_size`` (0: not even one image), ``at_least``, ``peak_mb``, ``step_gflops`` per image,
        ``relative_step_flops``, ``plan``; with lean activations the same under ``smallest_plan``, else ``None``;
        ``smallest_budget_mb``: where nothing fits, what one image takes at least, else ``None``; ``answer`` in words.

    Raises:
        InputError: Unknown backbone or bad values.
        S2AError: What the method or the backbone cannot take.
    """
    train = train or TrainConfig()
    config = s2a.method_config(method, **(options or {}))
    sides = []

    def make(config: Any, checkpointing: bool, mode: Any) -> s2a.Adapted:
        adapted, side = _adapted(backbone, config, method, train, num_classes, image_size)
        set_checkpointing(adapted.backbone, dataclasses.replace(train, checkpointing=checkpointing))
        sides.append(side)
        return adapted

    checkpointing = train.checkpointing
    found = fit(
        lambda config, again, mode: make(config, again and checkpointing, mode),
        config,
        budget,
        autocast=_autocast(train),
        checkpointing=checkpointing,
        smallest=smallest,
    )
    best = max(found.batch_size, found.smallest.batch_size if found.smallest else 0)
    return {
        "backbone": backbone,
        "method": method,
        "image_size": sides[0],
        "budget_mb": budget / MB,
        "precision": train.precision,
        "frozen": train.frozen,
        "checkpointing": checkpointing,
        **_numbers(found),
        "smallest_plan": None if found.smallest is None else _numbers(found.smallest),
        "smallest_budget_mb": None if best else found.smallest_budget / MB,
        "answer": str(found),
    }


def _numbers(found: s2a.Fit) -> dict[str, Any]:
    return {
        "batch_size": found.batch_size,
        "at_least": found.at_least,
        "peak_mb": found.peak_bytes / MB,
        "step_gflops": found.step_flops / 1e9,
        "relative_step_flops": found.relative_step_flops,
        "plan": None if found.plan is None else str(found.plan),
    }


def choose(cell: CellConfig, budget: int, num_classes: int = 100) -> tuple[int, dict[str, Any]]:
    """Batch size and method options with which a cell's steps stay within a budget.

    The recipe's batch as it comes, if it fits; else the same batch under a plan for the budget; else the largest batch
    that fits, under the smallest plan or as it comes. Lean activations are switched on for a plan,
    unless the cell's options say what activations are to be or the method has none.

    Args:
        cell: Its method, backbone and recipe count.
        budget: Bytes of a step's simulated peak.
        num_classes: Of the head.

    Returns:
        The batch size, and the method's options; with ``peak_budget`` where a plan is to be made.

    Raises:
        InputError: Not even one image fits; the message has the smallest budget that would do.
    """
    train, options = cell.train, dict(cell.method.options)
    config = s2a.method_config(cell.method.name, **options)
    if isinstance(config, s2a.LeanOptions) and config.has_budget:
        raise InputError(
            f"method.{'peak_budget' if config.peak_budget else 'saved_budget_mb'} and a memory budget are two limits; "
            "give one of them."
        )

    def simulated(config: Any, plan: bool) -> StepSimulation:
        adapted, _ = _adapted(
            cell.backbone.name, config, cell.method.name, train, num_classes, cell.backbone.image_size
        )
        set_checkpointing(adapted.backbone, train)
        if plan:
            with precision(train, torch.device("cpu")):
                plan_smallest(adapted, train.batch_size)
        return StepSimulation(adapted, autocast=_autocast(train))

    with tensors_without_data():
        # 1. As it comes.
        step = simulated(config, False)
        if step.peak(train.batch_size).total <= budget:
            return train.batch_size, options
        usual = largest_batch(lambda batch: step.peak(batch).total, budget, most=train.batch_size)
        # 2. Under a plan: the same batch, or the largest that fits under the smallest plan.
        lean, planned = options | {"activations": "lean"}, None
        if isinstance(config, s2a.LeanOptions) and options.get("activations", "lean") == "lean":
            with contextlib.suppress(s2a.S2AError):  # Nothing in this model or under this method can be planned.
                small = simulated(s2a.method_config(cell.method.name, **lean), True)
                planned = largest_batch(
                    lambda batch: small.peak(batch).total, budget, guess=train.batch_size, most=train.batch_size
                )
    found = usual
    if planned is not None and planned.batch > usual.batch:
        found, options = planned, lean | {"peak_budget": f"{budget}B"}
    if not found.batch:
        least = -(-min(each.peaks[1] for each in (usual, planned or usual)) // 10**5) / 10
        raise InputError(
            f"A memory budget of {budget / MB:,.1f} MB has no room for a step of one image of {cell.backbone.name} "
            f"under {cell.method.name}; the smallest that would do is {least:,.1f} MB: give that or more, a smaller "
            "backbone or smaller images."
        )
    return found.batch, options


def _adapted(
    backbone: str, config: Any, method: str, train: TrainConfig, num_classes: int, image_size: int | None
) -> tuple[s2a.Adapted, int]:
    """The method on a backbone without data, and the side of its images."""
    options = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return blank(backbone, method, options, num_classes, train, without_data=True, image_size=image_size)


def _autocast(train: TrainConfig) -> torch.dtype | None:
    return torch.bfloat16 if train.precision == "bf16" else None
