"""Lean activations: everything that the backward pass keeps is made small, and what can be computed again is."""

from s2a.lean.apply import make_lean
from s2a.lean.branch import Keep
from s2a.lean.budget import plan_saved, set_plan
from s2a.lean.fused import Branch
from s2a.lean.options import LeanOptions
from s2a.lean.plan import Plan

__all__ = ["Branch", "Keep", "LeanOptions", "Plan", "make_lean", "plan_saved", "set_plan"]
