"""S2A Bench: compares fine-tuning methods for vision backbones in accuracy and memory.

``sweep`` runs a grid of cells, ``run`` one cell, ``report`` writes the report of a folder of records; ``finetune``
trains on somebody's own images, ``predict`` and ``export`` use the adapter. They return data, print nothing, and are
imported when they are first used, so that importing this package is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from s2a_bench.api import export, finetune, predict, report, run, sweep
    from s2a_bench.cells.record import Record
    from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
    from s2a_bench.errors import InputError
    from s2a_bench.finetuning.result import FinetuneFailed, Result
    from s2a_bench.inference.prediction import Prediction
    from s2a_bench.reports.build import ReportPaths
    from s2a_bench.sweeps.events import Level, Listener, StageEnd
    from s2a_bench.sweeps.plan import Plan
    from s2a_bench.sweeps.stage import SweepStopped

_HOMES = {
    "api": ("export", "finetune", "predict", "report", "run", "sweep"),
    "cells.record": ("Record",),
    "config": ("BackboneConfig", "CellConfig", "DataConfig", "MethodConfig", "TrainConfig"),
    "errors": ("InputError",),
    "finetuning.result": ("FinetuneFailed", "Result"),
    "inference.prediction": ("Prediction",),
    "reports.build": ("ReportPaths",),
    "sweeps.events": ("Level", "Listener", "StageEnd"),
    "sweeps.plan": ("Plan",),
    "sweeps.stage": ("SweepStopped",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "BackboneConfig",
    "CellConfig",
    "DataConfig",
    "FinetuneFailed",
    "InputError",
    "Level",
    "Listener",
    "MethodConfig",
    "Plan",
    "Prediction",
    "Record",
    "ReportPaths",
    "Result",
    "StageEnd",
    "SweepStopped",
    "TrainConfig",
    "export",
    "finetune",
    "predict",
    "report",
    "run",
    "sweep",
]


def __getattr__(name: str) -> Any:
    """Imports a public name from where it is defined."""
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    """The public names, imported already or not."""
    return sorted({*globals(), *__all__})
