"""Lean activations: everything that the backward pass keeps is made small, and what can be computed again is."""

from s2a.lean.apply import make_lean
from s2a.lean.fused import FusedBranch
from s2a.lean.options import LeanOptions
from s2a.lean.recompute import recompute_from_codes, recompute_map_forward, recompute_tokens_forward
from s2a.lean.registry import WritesInPlace, register_lean_forward
from s2a.lean.spec import SavedBits

__all__ = [
    "FusedBranch",
    "LeanOptions",
    "SavedBits",
    "WritesInPlace",
    "make_lean",
    "recompute_from_codes",
    "recompute_map_forward",
    "recompute_tokens_forward",
    "register_lean_forward",
]
