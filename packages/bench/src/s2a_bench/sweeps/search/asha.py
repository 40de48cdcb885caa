"""Asynchronous successive halving inside a search: Ray Tune's ASHA stops trials that fall behind on val.

Ray's scheduler decides. What is added here is which trials compete with each other, when val is looked at, and what
earlier, interrupted runs of the same search have seen.
"""

from __future__ import annotations

import dataclasses
import math
import types
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from s2a_bench.cells.record import Record
from s2a_bench.config import TrainConfig
from s2a_bench.errors import InputError

if TYPE_CHECKING:
    from ray.tune.schedulers import TrialScheduler

REDUCTION = 3
"""Of the trials at a look, about one in so many goes on; the next look is so many times later."""

TIME, METRIC = "look", "val_accuracy"
"""Of what a trial reports to the scheduler."""


@dataclasses.dataclass(frozen=True)
class Halving:
    """Who competes with whom.

    Attributes:
        groups: Cell id of a trial -> its search.
        recipes: Search -> the recipe of its trials, as far as they share it: epochs and warm-up.
        ended: Records of trials that came to an end, or were stopped, before.
    """

    groups: Mapping[str, str]
    recipes: Mapping[str, TrainConfig]
    ended: tuple[Record, ...] = ()


def looks(recipe: TrainConfig) -> tuple[int, ...]:
    """Epochs after which a trial's val accuracy decides whether it goes on.

    The first is the first after the warm-up or a ninth of all epochs, whichever is later; then every third power on.
    The last epoch is none of them: whoever comes there is scored anyway.

    Raises:
        InputError: So few epochs that there is none.
    """
    epoch = max(recipe.warmup_epochs + 1, math.ceil(recipe.epochs / REDUCTION**2))
    found = []
    while epoch < recipe.epochs:
        found.append(epoch)
        epoch *= REDUCTION
    if not found:
        raise InputError(
            f"--search-scheduler asha has nothing to stop in {recipe.epochs} epochs, {recipe.warmup_epochs} of them "
            "warm-up: the first look comes after the warm-up and before the last epoch; give more epochs, or none."
        )
    return tuple(found)


def seen(record: Record) -> dict[int, float]:
    """Val accuracy in percent by epoch, of the looks before the last epoch."""
    return {int(point["epoch"]): point[METRIC] for point in record.curve if METRIC in point}


def count_looks(record: Record) -> int:
    """How often a trial's val list was scored."""
    return len(seen(record)) + (record.accuracy is not None)


def stopped(so_far: Record) -> Record:
    """The record of a trial that is ended after its last look, from the record that it had then."""
    seconds = sum(point["seconds"] for point in so_far.curve)
    return dataclasses.replace(so_far, status="stopped", accuracy=None, seconds=seconds)


def scheduler(halving: Halving) -> TrialScheduler:
    """One of Ray's ASHA schedulers for each search, behind one that asks the right one.

    What trials have shown before is told to them again, through the calls that Tune itself makes.
    """
    from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler

    class BySearch(FIFOScheduler):
        """Passes Tune's events on to the scheduler of the trial's search."""

        def __init__(self, parts: Mapping[str, AsyncHyperBandScheduler], groups: Mapping[str, str]) -> None:
            super().__init__()
            self._parts, self._groups = parts, groups

        def _of(self, trial: Any) -> AsyncHyperBandScheduler:
            return self._parts[self._groups[trial.config["cell"]["id"]]]

        def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_add(tune_controller, trial)

        def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
            return self._of(trial).on_trial_result(tune_controller, trial, result)

        def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
            self._of(trial).on_trial_complete(tune_controller, trial, result)

        def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
            self._of(trial).on_trial_remove(tune_controller, trial)

    parts = {
        name: AsyncHyperBandScheduler(
            time_attr=TIME,
            metric=METRIC,
            mode="max",
            max_t=recipe.epochs,
            grace_period=looks(recipe)[0],
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        for name, recipe in halving.recipes.items()
    }
    for record in halving.ended:
        trial: Any = types.SimpleNamespace(trial_id=record.cell_id)
        part = parts[halving.groups[record.cell_id]]
        part.on_trial_add(None, trial)  # type: ignore[arg-type]
        for epoch, accuracy in seen(record).items():
            part.on_trial_result(None, trial, {TIME: epoch, METRIC: accuracy})  # type: ignore[arg-type]
    return BySearch(parts, halving.groups)
