"""What a sweep is asked for (suite, names, seeds and settings, as given), and how it is to be run."""

from __future__ import annotations

import dataclasses
from typing import Literal

from s2a_bench.cells.outputs import Keep
from s2a_bench.sweeps.resources import ResourceRequest


@dataclasses.dataclass(frozen=True)
class RunOptions:
    """How a sweep is run, as opposed to what it runs: nothing here changes a cell or its result.

    Attributes:
        keep: The output folder (an absolute path), and what cells leave there besides their records.
        resources: Limits on where and how many at once.
    """

    keep: Keep
    resources: ResourceRequest = dataclasses.field(default_factory=ResourceRequest)


@dataclasses.dataclass(frozen=True)
class Request:
    """What a sweep is asked for; empty names take the suite's defaults.

    Attributes:
        suite: Key of ``datasets.SUITES``.
        datasets: Names or aliases within the suite.
        backbones: timm or mini backbones.
        methods: Labels ``name`` or ``name:key=value,key=value``.
        seeds: One cell each.
        settings: ``method.KEY=VALUE`` (every named method that has the option) and ``train.KEY=VALUE``.
        axes: ``method.KEY=V1,V2`` and ``train.KEY=V1,V2``: all combinations are run.
        experiment: Name or file of an experiment: its methods and backbones where none are named here.
        epochs: Short for ``train.epochs``.
        batch_size: Short for ``train.batch_size``.
        data_dir: Root of prepared datasets.
        augment: See ``DataConfig``.
        mirror: See ``DataConfig``.
        weights: Local file for the one backbone.
        random_weights: Do without pretrained weights.
        image_size: Side in pixels; ``None`` takes the checkpoint's own.
        evaluate: See ``DataConfig``.
        limit_train: See ``DataConfig``.
        limit_test: See ``DataConfig``.
        device: torch device.
    """

    suite: str = "mini"
    datasets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    settings: tuple[str, ...] = ()
    axes: tuple[str, ...] = ()
    experiment: str | None = None
    epochs: int | None = None
    batch_size: int | None = None
    data_dir: str | None = None
    weights: str | None = None
    random_weights: bool = False
    image_size: int | None = None
    evaluate: Literal["test", "val", "select"] = "test"
    limit_train: int | None = None
    limit_test: int | None = None
    augment: str = "default"
    mirror: bool = True
    device: str = "cpu"
