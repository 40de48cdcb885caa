"""Lean activations: everything that the backward pass keeps is made small, and what can be computed again is."""

from s2a.lean.apply import make_lean
from s2a.lean.branch import Keep
from s2a.lean.options import LeanOptions

__all__ = ["Keep", "LeanOptions", "make_lean"]
