"""Errors that a user can act on."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Bad input, found before anything started: one sentence with what was given, what is allowed and what to do."""


def unknown(kind: str, given: str, known: Iterable[str]) -> InputError:
    """``InputError`` for a name that is not in a table, with the near matches first."""
    names = sorted({*known}) or ["none"]
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? Known: " if near else ""
    shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return InputError(f"Unknown {kind} {given!r}: {hint or 'known: '}{shown}.")
