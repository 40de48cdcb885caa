"""The search: which trials decide a config, and what they decide. It runs nothing; trials are ordinary cells.

A trial trains on the train list and scores the val list once, after its last epoch (``evaluate="val"``), with a seed of
its own; the test set is not opened. Every method has as many trials, with as many epochs each. The best trial's config
is what the final cells then run with. What was chosen can always be told again from the records.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from s2a_bench.cells import recipes
from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, MethodConfig
from s2a_bench.data.folder import find_dataset_folder
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic
from s2a_bench.sweeps.search import asha as halving
from s2a_bench.sweeps.search import spaces as search_spaces

SEED = 1000
"""Of every trial; no final cell may have it."""

RULE = "best val accuracy after the last epoch; of equals the lower train.lr, the lower train.weight_decay, the first"

MOST = 200
"""Random trials per search at most: so many draws are distinct in every space."""


@dataclasses.dataclass(frozen=True)
class Mode:
    """What ``--search`` asks for.

    Attributes:
        draws: Random trials; ``None`` for the whole grid.
        scheduler: ``"asha"`` stops trials that fall behind; with ``"none"`` every trial comes to its end.
    """

    draws: int | None = None
    scheduler: Literal["none", "asha"] = "none"

    @property
    def name(self) -> str:
        """``"grid"`` or ``"random"``."""
        return "grid" if self.draws is None else "random"

    def points(self, method: str, backbone: str) -> list[dict[str, Any]]:
        """What a method's trials on a backbone try."""
        space = search_spaces.get(method, backbone)
        return search_spaces.grid(space) if self.draws is None else search_spaces.draws(space, self.draws)


@dataclasses.dataclass(frozen=True)
class Search:
    """One method on one dataset and backbone.

    Attributes:
        finals: The cells that wait for a config, alike but for their seeds.
        points: What each trial tries, by searched key.
        trials: Their cells, in the same order.
        mode: Where the points come from.
    """

    finals: tuple[CellConfig, ...]
    points: tuple[Mapping[str, Any], ...]
    trials: tuple[CellConfig, ...]
    mode: Mode


@dataclasses.dataclass(frozen=True)
class Choice:
    """What a complete search decided.

    Attributes:
        search: Whose.
        ids: Cell ids of its trials, in their order.
        accuracies: Of its trials on val; ``None`` where the loss was not finite, and where the trial was stopped.
        best: Index of the chosen trial.
        stopped: Which trials did not come to their last epoch because the others were ahead.
        epochs: Of its trials, those of the stopped ones too.
        looks: How often val was scored in each.
    """

    search: Search
    ids: tuple[str, ...]
    accuracies: tuple[float | None, ...]
    best: int
    stopped: tuple[bool, ...]
    epochs: tuple[int, ...]
    looks: tuple[int, ...]

    @property
    def point(self) -> Mapping[str, Any]:
        """The chosen values by key."""
        return self.search.points[self.best]

    @property
    def accuracy(self) -> float:
        """The chosen trial's, on val."""
        found = self.accuracies[self.best]
        assert found is not None
        return found

    @property
    def diverged(self) -> int:
        """How many trials ended in a loss that is not finite."""
        return self.accuracies.count(None) - sum(self.stopped)

    def summary(self) -> dict[str, Any]:
        """What the records of the final cells say about the search, as plain values."""
        return {
            "mode": self.search.mode.name,
            "trials": len(self.ids),
            "scheduler": self.search.mode.scheduler,
            "diverged": self.diverged,
            "stopped": sum(self.stopped),
            "total_epochs": sum(self.epochs),
            "total_looks": sum(self.looks),
            "seed": SEED,
            "rule": RULE,
            "chosen": dict(self.point),
            "val_accuracy": self.accuracy,
            "trial": self.ids[self.best],
            "trial_ids": list(self.ids),
        }


def parse_mode(text: str, scheduler: Literal["none", "asha"] = "none") -> Mode | None:
    """``none``, ``grid``, or a number of random trials; and what may stop them.

    Raises:
        InputError: Anything else, or a scheduler without a search.
    """
    if text == "none":
        if scheduler != "none":
            raise InputError(
                f"--search-scheduler {scheduler} stops trials of a search, and there is none; give --search grid or "
                "--search N too. Final cells are never stopped."
            )
        return None
    if text == "grid":
        return Mode(None, scheduler)
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MOST:
        return Mode(int(text), scheduler)
    raise InputError(
        f"--search {text}: write none (each method's default recipe), grid ({search_spaces.GRID} trials per method), "
        f"or a number of random trials from 1 to {MOST}."
    )


def searches(cells: Iterable[CellConfig], mode: Mode) -> list[Search]:
    """The searches that cells ask for: one for all that differ in nothing but the seed.

    Raises:
        InputError: A seed or a setting that belongs to the search.
    """
    groups: dict[str, list[CellConfig]] = {}
    for cell in cells:
        if cell.seed == SEED:
            raise InputError(f"Seed {SEED} is that of the search's own trials; give --seeds without it.")
        _check_free(cell)
        key = json.dumps(dataclasses.asdict(dataclasses.replace(cell, seed=0)), sort_keys=True)
        groups.setdefault(key, []).append(cell)
    found = []
    for finals in groups.values():
        points = mode.points(finals[0].method.name, finals[0].backbone.name)
        trials = tuple(_trial(finals[0], point, mode) for point in points)
        found.append(Search(tuple(finals), tuple(points), trials, mode))
    return found


def check_lists(cells: Iterable[CellConfig]) -> None:
    """Whether what the final cells need lies in its place, without opening any of it.

    Raises:
        InputError: A list is not there.
    """
    for cell in cells:
        dataset = datasets.get_dataset(cell.data.suite, cell.data.dataset, cell.data.root)
        if dataset.embedded or cell.data.evaluate != "test":
            continue
        folder = find_dataset_folder(dataset, cell.data.root)
        for name in (dataset.lists.both, dataset.lists.test):
            if not (folder / f"{name}.txt").is_file():
                raise InputError(
                    f"{folder / name}.txt is not there and the final cells need it; prepare {dataset.name} again, or "
                    "search alone with --evaluate val."
                )


def with_point(cell: CellConfig, point: Mapping[str, Any]) -> CellConfig:
    """A cell with searched values in their places."""
    options, train = dict(cell.method.options), {}
    for key, value in point.items():
        scope, _, name = key.partition(".")
        if scope == "train":
            train[name] = value
        elif value is None:
            options.pop(name, None)
        else:
            options[name] = value
    return dataclasses.replace(
        cell,
        method=MethodConfig(cell.method.name, options),
        train=dataclasses.replace(cell.train, **train),
    )


def _trial(cell: CellConfig, point: Mapping[str, Any], mode: Mode) -> CellConfig:
    data = dataclasses.replace(cell.data, evaluate="val")
    looks = halving.looks(cell.train) if mode.scheduler == "asha" else ()
    return dataclasses.replace(with_point(cell, point), data=data, seed=SEED, trial=True, looks=looks)


def _check_free(cell: CellConfig) -> None:
    """Refuses a cell in which a searched key has been set: its method would have fewer trials than the others."""
    default = recipes.train_config(cell.data.suite, cell.method.name, cell.backbone.name)
    for axis in search_spaces.get(cell.method.name, cell.backbone.name):
        scope, _, name = axis.key.partition(".")
        given = getattr(cell.train, name) if scope == "train" else cell.method.options.get(name)
        if given is not None and not (scope == "train" and given == getattr(default, name)):
            raise InputError(
                f"{axis.key}={given} was given for {cell.method.name}, but the search chooses {axis.key}; leave "
                "it out, or run with --search none."
            )


def settled(record: Record, mode: Mode) -> bool:
    """Whether a trial has come to its end: a loss that is not finite is one, a killed worker is not.

    One that was stopped early has in a search that stops trials; in any other it has yet to come to its end.
    """
    if record.status == "stopped":
        return mode.scheduler != "none"
    return record.status == "done" or (record.error or {}).get("type") == "Diverged"


def choose(search: Search, ids: Sequence[str], found: Mapping[str, Record | None]) -> Choice | None:
    """The choice of a search from its trials' records.

    Args:
        search: Which.
        ids: Cell ids of its trials, in their order.
        found: Records by cell id.

    Returns:
        ``None`` while a trial has no end, and where none came to its last epoch with a loss that is finite.
    """
    trials = [record for cell_id in ids if (record := found.get(cell_id)) is not None]
    if len(trials) < len(ids) or not all(settled(record, search.mode) for record in trials):
        return None
    accuracies = tuple(record.accuracy if record.status == "done" else None for record in trials)
    ranked = [
        (-accuracy, point["train.lr"], point["train.weight_decay"], index)
        for index, (accuracy, point) in enumerate(zip(accuracies, search.points, strict=True))
        if accuracy is not None
    ]
    if not ranked:
        return None
    return Choice(
        search,
        tuple(ids),
        accuracies,
        min(ranked)[-1],
        stopped=tuple(record.status == "stopped" for record in trials),
        epochs=tuple(len(record.curve) for record in trials),
        looks=tuple(halving.count_looks(record) for record in trials),
    )


def final_cells(choice: Choice) -> list[CellConfig]:
    """The cells that waited, with the chosen config; their records will say how it was chosen."""
    summary = choice.summary()
    return [dataclasses.replace(with_point(cell, choice.point), search=summary) for cell in choice.search.finals]


def search_id(ids: Sequence[str]) -> str:
    """16 hex digits for the trials of a search."""
    return hashlib.sha256("\n".join(ids).encode()).hexdigest()[:16]


def write(choice: Choice, output: Path) -> Path:
    """Writes ``<output>/search/<search id>.json`` atomically, with all that was tried: a view of the records."""
    first = choice.search.finals[0]
    content = {
        "search_id": search_id(choice.ids),
        "suite": first.data.suite,
        "dataset": first.data.dataset,
        "backbone": first.backbone.name,
        "method": first.method.name,
        "epochs": first.train.epochs,
        **choice.summary(),
        "tried": [
            {"cell_id": cell_id, "val_accuracy": accuracy, "epochs": epochs, "stopped": stopped, **point}
            for cell_id, accuracy, epochs, stopped, point in zip(
                choice.ids, choice.accuracies, choice.epochs, choice.stopped, choice.search.points, strict=True
            )
        ],
    }
    path = output / "search" / f"{content['search_id']}.json"
    write_atomic(path, json.dumps(content, indent=1, allow_nan=False) + "\n")
    return path


def stamp(cell_id: str, cell: CellConfig, output: Path) -> None:
    """Lets the record of a finished cell, one that ran for another reason before, say how its config was chosen now."""
    try:
        record = records.read(records.record_path(output, cell_id))
    except (OSError, ValueError):
        return
    if record.status == "done" and cell.search is not None and record.search != cell.search:
        record.search = dict(cell.search)
        records.write(record, output)
