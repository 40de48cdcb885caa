"""Calculators, kept apart: what autograd holds (measured), a step's peak (simulated), the paper's rules (theory)."""

from s2a.memory.measured import SavedBytes, saved_bytes
from s2a.memory.no_data import strip_data, tensors_without_data
from s2a.memory.simulated import Live, Peak, StepSimulation, simulated_peak
from s2a.memory.theoretical import Theory, theoretical_memory

__all__ = [
    "Live",
    "Peak",
    "SavedBytes",
    "StepSimulation",
    "Theory",
    "saved_bytes",
    "simulated_peak",
    "strip_data",
    "tensors_without_data",
    "theoretical_memory",
]
