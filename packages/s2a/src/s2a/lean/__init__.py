"""Lean activations: everything that the backward pass keeps is made small, and what can be computed again is."""

from s2a.lean.apply import make_lean
from s2a.lean.fused import Branch
from s2a.lean.options import LeanOptions
from s2a.lean.recompute import recompute_from_codes, recompute_map_forward, recompute_tokens_forward
from s2a.lean.registry import WritesInPlace, register_lean_forward
from s2a.lean.spec import Keep

__all__ = [
    "Branch",
    "Keep",
    "LeanOptions",
    "WritesInPlace",
    "make_lean",
    "recompute_from_codes",
    "recompute_map_forward",
    "recompute_tokens_forward",
    "register_lean_forward",
]
