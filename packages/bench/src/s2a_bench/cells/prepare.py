"""A cell before its first step: its model, its images, the memory of a step, and what the loop trains on."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import s2a
import torch
from torch import nn

from s2a_bench.cells import features, measure
from s2a_bench.cells.identity import IdentifiedCell, OpenCell, adapt, data_format
from s2a_bench.cells.train import Images
from s2a_bench.data import loading as data
from s2a_bench.errors import InputError


@dataclasses.dataclass(frozen=True)
class PreparedCell:
    """A cell before its first step.

    Attributes:
        cell: The cell.
        adapted: The backbone with its method and head, on the cell's device.
        loaded: Its images.
        memory: What one step holds, see ``measure.memory``.
    """

    cell: IdentifiedCell
    adapted: s2a.Adapted
    loaded: data.TaskData
    memory: dict[str, Any]


def load(opened: OpenCell) -> tuple[s2a.Adapted, data.TaskData]:
    """Model, on the cell's device, and data of a cell.

    Raises:
        ValueError: A model that cannot be built, data that are not what was prepared.
    """
    cell, config = opened.cell, opened.cell.config
    expected, adapted = data_format(cell), opened.adapted
    if adapted is None:
        adapted, found = adapt(config)
        if found != expected:
            raise InputError(
                f"Backbone {config.backbone.name} expects other images here ({found}) than where the cell was "
                f"identified ({expected}); use the same version of timm."
            )
    loaded = data.load_data(config.data, **dataclasses.asdict(expected), opened=opened.dataset)
    return adapted.to(config.device), loaded


def prepare(opened: OpenCell) -> PreparedCell:
    """Data, model and memory of a cell: everything that comes before training.

    Raises:
        ValueError: A model that cannot be built, images that cannot be read.
    """
    config = opened.cell.config
    adapted, loaded = load(opened)
    first = loaded.train.batch(torch.arange(min(config.train.batch_size, len(loaded.train)))).to(config.device)
    return PreparedCell(opened.cell, adapted, loaded, measure.memory(adapted, first, config.train))


@dataclasses.dataclass(frozen=True)
class TrainingInput:
    """What the loop trains on.

    Attributes:
        model: The adapted backbone, or its head alone.
        train: Images, or features of a frozen backbone in their place.
        scored: Gives what is scored; of the test set to be called after the last epoch.
        val: Gives what chooses the epoch; ``None``: the last one counts.
    """

    model: nn.Module
    train: Images
    scored: Callable[[], Images]
    val: Callable[[], Images] | None = None


def training_input(prepared: PreparedCell, *, cached: bool, folder: Path | None = None) -> TrainingInput:
    """Images, or with ``cached`` features that the frozen backbone computes once.

    Args:
        prepared: The cell.
        cached: Whether features take the images' place, which ``features.usable`` must allow.
        folder: Where features are kept and shared; ``None``: in memory.
    """
    adapted, loaded = prepared.adapted, prepared.loaded
    val = loaded.val
    if not cached:
        return TrainingInput(adapted, loaded.train, lambda: loaded.scored, None if val is None else lambda: val)
    config = prepared.cell.config
    key = features.key(prepared.cell.facts, config.device)

    def features_of(images: Images, name: str) -> Images:
        return features.compute(adapted, images, config.train, {**key, "list": name}, folder)

    scored = functools.cache(lambda: features_of(loaded.scored, "scored"))
    val_of = None if val is None else functools.cache(lambda: features_of(val, "val"))
    return TrainingInput(features.HeadOnly(adapted), features_of(loaded.train, "train"), scored, val_of)
