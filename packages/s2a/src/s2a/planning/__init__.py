"""Policy: what lean activations keep, with and without a budget."""

from s2a.lean.plan import Plan
from s2a.planning.plan_memory import plan_memory, plan_smallest

__all__ = ["Plan", "plan_memory", "plan_smallest"]
