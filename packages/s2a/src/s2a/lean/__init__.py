"""Lean activations: everything that the backward pass keeps is made small, and what can be computed again is."""

from s2a.lean.apply import make_lean
from s2a.lean.branch import Keep
from s2a.lean.budget import set_plan, survey
from s2a.lean.fused import Branch
from s2a.lean.options import LeanOptions
from s2a.lean.plan import Plan, make_plan

__all__ = ["Branch", "Keep", "LeanOptions", "Plan", "make_lean", "make_plan", "set_plan", "survey"]
