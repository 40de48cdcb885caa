"""How long cells will take and how much memory: from finished records, or from steps measured now. Nothing is trained.

The rule: seconds of a cell = overhead + training images x epochs x seconds per image of a step + scored images x
seconds per scored image. Where a frozen backbone's features are kept (``features``), its training images count once, as
scored ones; that is an upper bound, since a later seed finds them there.
"""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import s2a
import torch
from s2a.registry import entry_for
from torch import Tensor

from s2a_bench.cells import backbones, features, measure, provenance, recipes
from s2a_bench.cells.record import Record
from s2a_bench.cells.scores import accuracy
from s2a_bench.cells.train import attach
from s2a_bench.config import BackboneConfig, CellConfig, TrainConfig
from s2a_bench.data import augment
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError


@dataclasses.dataclass(frozen=True)
class Cost:
    """What a method costs on a backbone.

    Attributes:
        step: Seconds per image of a training step, loading included.
        score: Seconds per scored image.
        overhead: Seconds per cell for everything else.
        peak_mb: The largest peak seen, in MB; ``None``: not measured.
        extrapolated: Not measured for this very method on this very backbone.
    """

    step: float
    score: float
    overhead: float = 0.0
    peak_mb: float | None = None
    extrapolated: bool = False


@dataclasses.dataclass(frozen=True)
class Forecast:
    """An estimate for some cells.

    Attributes:
        seconds: Of all cells whose cost is known, one after the other.
        longest: Of the longest of them.
        peak_mb: The largest of their peaks; ``None`` if none is known.
        extrapolated: How many of them rest on another method or backbone.
        unknown: ``"METHOD on BACKBONE"`` -> number of cells that are not in ``seconds``.
    """

    seconds: float
    longest: float
    peak_mb: float | None
    extrapolated: int
    unknown: Mapping[str, int]


class Costs:
    """Costs by method and backbone, with what can be said about pairs that never ran."""

    def __init__(self, exact: Mapping[tuple[str, str, str], Cost]) -> None:
        """From ``(method, its settings, backbone)`` to cost; see ``settings``."""
        self._exact = dict(exact)
        self._pairs: dict[tuple[str, str], Cost] = {}
        pairs: dict[tuple[str, str], list[Cost]] = {}
        for (method, _, backbone), cost in self._exact.items():
            pairs.setdefault((method, backbone), []).append(cost)
        for pair, costs in pairs.items():
            self._pairs[pair] = dataclasses.replace(_middle(costs), extrapolated=True)

    def of(self, cell: CellConfig) -> Cost | None:
        """The cost of a cell's steps; ``None`` where nothing comparable ran.

        In this order: the same method with the same settings; the method with its config in another batch or precision;
        the method with other settings; the method on another
        backbone, times how much longer the methods that ran on both take here.
        """
        method, backbone = cell.method.name, cell.backbone.name
        asked = settings(cell)
        exact = self._exact.get((method, asked, backbone))
        return (
            exact
            or self._same_config(method, asked, backbone)
            or self._pairs.get((method, backbone))
            or self._from_elsewhere(method, backbone)
        )

    def _same_config(self, method: str, asked: str, backbone: str) -> Cost | None:
        """Of the method with this very config, in another batch or precision."""
        config = json.loads(asked)[0]
        costs = [
            cost
            for (name, settings, place), cost in self._exact.items()
            if (name, place) == (method, backbone) and json.loads(settings)[0] == config
        ]
        return dataclasses.replace(_middle(costs), extrapolated=True) if costs else None

    def _from_elsewhere(self, method: str, backbone: str) -> Cost | None:
        guesses = []
        for (name, other), cost in self._pairs.items():
            if name != method:
                continue
            shared = [m for m, b in self._pairs if b == backbone and (m, other) in self._pairs]
            ratios = [self._pairs[m, backbone].step / self._pairs[m, other].step for m in shared]
            if ratios:
                ratio = statistics.median(ratios)
                guesses.append(
                    Cost(cost.step * ratio, cost.score * ratio, cost.overhead, peak_mb=None, extrapolated=True)
                )
        return _middle(guesses) if guesses else None


def _middle(costs: Sequence[Cost]) -> Cost:
    peaks = [cost.peak_mb for cost in costs if cost.peak_mb is not None]
    return Cost(
        step=statistics.median(cost.step for cost in costs),
        score=statistics.median(cost.score for cost in costs),
        overhead=statistics.median(cost.overhead for cost in costs),
        peak_mb=max(peaks, default=None),
        extrapolated=any(cost.extrapolated for cost in costs),
    )


def settings(cell: CellConfig) -> str:
    """What of a cell, besides method and backbone, changes the cost of a step."""
    config = s2a.method_config(cell.method.name, **cell.method.options)
    return _settings(dataclasses.asdict(config), dataclasses.asdict(cell.train))


def _settings(method: Mapping[str, Any], train: Mapping[str, Any]) -> str:
    keys = ("batch_size", "precision", "checkpointing", "frozen")
    kept = {key: train.get(key, getattr(TrainConfig, key)) for key in keys}
    return json.dumps([method, kept], sort_keys=True)


def hardware_key(hardware: Mapping[str, Any]) -> tuple[str, str]:
    """Kind and name of the device that a record's times belong to."""
    kind = str(hardware.get("device", "")).partition(":")[0]
    return kind, str(hardware.get("gpu") or hardware.get("cpu", ""))


def from_records(records: Iterable[Record], device: str) -> tuple[Costs, int, int]:
    """Costs from finished records of this machine's hardware.

    Returns:
        The costs, how many records they rest on, and how many of other hardware were left aside.
    """
    here, found, aside = hardware_key(provenance.hardware(device)), {}, 0
    count = 0
    for record in records:
        if record.status != "done" or not record.seconds or not record.train_images:
            continue
        if hardware_key(record.hardware) != here:
            aside += 1
            continue
        count += 1
        key = (
            record.method,
            _settings(recipes.completed(record.method, record.method_config), record.train_config),
            record.backbone,
        )
        found.setdefault(key, []).append(cost_of(record))
    return Costs({key: _middle(costs) for key, costs in found.items()}), count, aside


def from_measurements(path: Path) -> tuple[Costs, dict[str, Any]]:
    """Costs from a file of ``benchmarks/device.py``, measured on whatever device it ran.

    Returns:
        The costs, and the hardware they were measured on.

    Raises:
        InputError: Not such a file, or one without a measured epoch.
    """
    found: dict[tuple[str, str, str], Cost] = {}
    try:
        content = json.loads(path.read_text())
        hardware = dict(content["hardware"])
        if not isinstance(hardware.get("gpu") or hardware["cpu"], str) or not isinstance(hardware["threads"], int):
            raise ValueError("hardware without a name")
        for row in content["epochs"]:
            config = s2a.method_config(row["method"], **row["options"])
            key = (row["method"], _settings(dataclasses.asdict(config), row["train"]), row["backbone"])
            step, score = row["epoch_seconds"] / row["images"], row["scoring_seconds"] / row["images"]
            peak = None if row["peak_mb"] is None else float(row["peak_mb"])
            if not (0 < step < math.inf and 0 <= score < math.inf):
                raise ValueError(f"{row['epoch_seconds']} seconds of {row['images']} images")
            found[key] = Cost(step, score, peak_mb=peak)
    except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError, RecursionError, OSError) as error:
        said = f"{path} is not a file that benchmarks/device.py wrote ({error!r:.200}); give one that it did."
        raise InputError(said) from error
    if not found:
        raise InputError(f"{path} has no measured epoch; run benchmarks/device.py with more time (--limit).")
    return Costs(found), hardware


def cost_of(record: Record) -> Cost:
    """What one finished record says. Where it does not say how long scoring took, a scored image counts as a step's."""
    assert record.seconds is not None
    epochs = record.epochs if record.best_epoch is None else len(record.curve)  # it may have stopped early
    step = record.seconds / (record.train_images * epochs)
    if record.feature_cache and record.images_per_second:
        return Cost(step := 1 / record.images_per_second, step, peak_mb=record.peak_mb)
    score, overhead = step, 0.0
    if record.scoring_seconds is not None and record.scored_images:
        score = record.scoring_seconds / record.scored_images
        if record.wall_seconds is not None and not record.resumed:
            looks = sum(point.get("val_seconds", 0.0) for point in record.curve)
            overhead = max(0.0, record.wall_seconds - record.seconds - record.scoring_seconds - looks)
    return Cost(step, score, overhead, record.peak_mb)


def images(cell: CellConfig) -> tuple[int, int] | None:
    """Training and scored images of a cell by the table of datasets; ``None`` where it does not say.

    An image that is scored after every epoch counts as often; a training that stops early is not foreseen.
    """
    dataset = datasets.get_dataset(cell.data.suite, cell.data.dataset, cell.data.root)
    lists = dataset.lists
    names = (lists.both, lists.test) if cell.data.evaluate == "test" else (lists.train, lists.val)
    if cell.data.evaluate == "select":
        names = (lists.train, lists.test, lists.val)
    counts = [dataset.count(name) for name in names]
    limits = (cell.data.limit_train, cell.data.limit_test, cell.data.limit_test)
    if None in counts:
        return None
    train, scored, *val = (
        int(min(count or 0, math.inf if limit is None else limit)) for count, limit in zip(counts, limits, strict=False)
    )
    # Where the backbone runs once, so does that over val.
    return train, scored + sum(val) * (1 if keeps_features(cell) else cell.train.epochs)


def seconds(cell: CellConfig, cost: Cost) -> float | None:
    """Seconds of a cell by the rule of this module; ``None`` where the table does not say how many images it has."""
    counts = images(cell)
    if counts is None:
        return None
    train, scored = counts
    per_image = cell.train.epochs * cost.step
    if keeps_features(cell):
        per_image = cost.score
    return cost.overhead + train * per_image + scored * cost.score


def keeps_features(cell: CellConfig) -> bool:
    """Whether a cell's head trains on features that are computed once, as far as can be said without its data."""
    fixed = entry_for(s2a.method_config(cell.method.name, **cell.method.options)).method.fixed_features
    return fixed and augment.resolve(cell.data).name == "none"


def forecast(cells: Iterable[CellConfig], costs: Costs) -> Forecast:
    """Time and memory of some cells."""
    times, peaks, unknown, extrapolated = [], [], Counter(), 0
    for cell in cells:
        cost = costs.of(cell)
        time_of = None if cost is None else seconds(cell, cost)
        if cost is None or time_of is None:
            unknown[f"{cell.method.name} on {cell.backbone.name}"] += 1
            continue
        times.append(time_of)
        extrapolated += cost.extrapolated
        if cost.peak_mb is not None:
            peaks.append(cost.peak_mb)
    return Forecast(sum(times), max(times, default=0.0), max(peaks, default=None), extrapolated, unknown)


class _Noise:
    """One batch of noise, there already."""

    def __init__(self, count: int, size: int, classes: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.labels = torch.randint(0, classes, (count,), generator=generator)
        self._ready = torch.randn(count, 3, size, size, generator=generator)

    def __len__(self) -> int:
        return len(self.labels)

    def batch(self, indices: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return self._ready[indices]


def measure_cost(cell: CellConfig, seconds: float = 2.0, classes: int = 100) -> Cost:
    """Times a cell's training step and scoring on random weights and noise; no data, no loading.

    Args:
        cell: Of which backbone, method, recipe and device count.
        seconds: About how long each is timed, after one step to warm up.
        classes: Of the head.

    Raises:
        ValueError: A method that does not fit the backbone.
    """
    torch.manual_seed(0)
    config = BackboneConfig(cell.backbone.name, random_weights=True, image_size=cell.backbone.image_size)
    model, expected = backbones.create(config, 0, cell.train.drop_path)
    method = s2a.method_config(cell.method.name, **cell.method.options)
    adapted = attach(model, method, classes, expected.size, cell.train).to(cell.device)
    noise = _Noise(cell.train.batch_size, expected.size, classes)
    adapted.backbone.set_grad_checkpointing(cell.train.checkpointing)  # type: ignore[operator]
    with measure.peak(cell.device) as peak:
        step = 1 / features.step_speed(adapted, noise, cell.train, seconds)
    times: list[float] = []
    while not times or sum(times) < seconds / 2:
        began = time.perf_counter()
        accuracy(adapted, noise, cell.train)  # ends in a copy to the CPU, so that the device is done
        times.append(time.perf_counter() - began)
    score = statistics.median(times[1:] or times) / len(noise)
    # A process's peak is that of everything that ran in it; a device's is reset.
    return Cost(step, score, peak_mb=peak.get("peak_mb") if cell.device.startswith("cuda") else None)


def duration(seconds: float) -> str:
    """``"45 s"``, ``"12 min"``, ``"3.5 h"`` or ``"12 days"``."""
    for unit, size, limit in (("s", 1.0, 100.0), ("min", 60.0, 100.0), ("h", 3600.0, 100.0)):
        if seconds / size < limit:
            return f"{seconds / size:.0f} {unit}" if unit != "h" else f"{seconds / size:.1f} {unit}"
    return f"{seconds / 86400:.0f} days"


def sentence(todo: Sequence[CellConfig], records: Iterable[Record], device: str, workers: int) -> str:
    """What ``--dry-run`` says about the cells that are missing.

    Args:
        todo: The cells.
        records: Of the output folder.
        device: torch device of the cells.
        workers: How many run at once.
    """
    if not todo:
        return "Estimate: nothing to run."
    costs, count, aside = from_records(records, device)
    note = f" ({aside} of other hardware left aside)" if aside else ""
    if not count:
        return f"Estimate: unknown, there is no finished record of this hardware yet{note}."
    found = forecast(todo, costs)
    named = ", ".join(f"{cells} x {name}" for name, cells in found.unknown.items())
    if len(todo) == sum(found.unknown.values()):
        return f"Estimate: unknown; nothing comparable ran: {named}."
    parts = [f"about {duration(found.seconds)} of computing"]
    if workers > 1:
        wall = max(found.longest, found.seconds / workers)
        parts[0] += f", {duration(wall)} with {workers} workers"
    if found.peak_mb is not None:
        parts.append(f"up to {found.peak_mb:,.0f} MB in a worker")
    parts.append(f"from {count} record{'s' if count > 1 else ''}{note}")
    if found.extrapolated:
        parts.append(f"{found.extrapolated} of {len(todo)} cells extrapolated from other settings or backbones")
    if found.unknown:
        parts.append(f"unknown and not counted: {named}")
    return f"Estimate: {'; '.join(parts)}."
