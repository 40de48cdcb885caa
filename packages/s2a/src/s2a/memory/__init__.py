"""Two calculators, kept apart: what autograd holds (measured) and what the paper's rules count (theoretical)."""

from s2a.memory.measured import SavedBytes, saved_bytes
from s2a.memory.theoretical import Theory, theoretical_memory

__all__ = ["SavedBytes", "Theory", "saved_bytes", "theoretical_memory"]
