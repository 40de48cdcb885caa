"""Errors and warnings of the library."""

from __future__ import annotations


class S2AError(ValueError):
    """A model, config or file that cannot be used: what was given, what is allowed, what to do."""


class UnsupportedModel(S2AError):
    """The model belongs to no family of the backbone table, or lacks what the method needs."""


class StateMismatch(S2AError):
    """A saved state does not belong to the given backbone."""


class NothingToPage(S2AError):
    """No frozen weight of the model can be paged."""


class BrokenPackageWarning(UserWarning):
    """An installed package of methods cannot be imported; its methods are missing, all others are there."""
