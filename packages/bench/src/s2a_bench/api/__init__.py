"""The Python API: what the command line does, as functions that return data and print nothing.

Importing this package is cheap: torch, Ray and MLflow are imported by the functions that need them.
"""

from __future__ import annotations

from s2a_bench.api.arguments import Axes, FilePath, Names, Settings
from s2a_bench.api.cells import run
from s2a_bench.api.finetuning import finetune
from s2a_bench.api.inference import export, predict, prepare_predict
from s2a_bench.api.sweeps import Finished, Job, execute, prepare, report, sweep

__all__ = [
    "Axes",
    "FilePath",
    "Finished",
    "Job",
    "Names",
    "Settings",
    "execute",
    "export",
    "finetune",
    "predict",
    "prepare",
    "prepare_predict",
    "report",
    "run",
    "sweep",
]
