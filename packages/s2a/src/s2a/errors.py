"""Errors of the library."""

from __future__ import annotations


class S2AError(ValueError):
    """A model, config or file that cannot be used: what was given, what is allowed, what to do."""


class UnsupportedModel(S2AError):
    """The model belongs to no family of the backbone table, or lacks what the method needs."""


class StateMismatch(S2AError):
    """A saved state does not belong to the given backbone."""
