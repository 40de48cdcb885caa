"""Errors that a user can act on, one at a time or all together."""

from __future__ import annotations

import contextlib
import difflib
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


class InputError(ValueError):
    """Bad input, found before anything started: one sentence with what was given, what is allowed and what to do."""


class InputErrors(InputError):
    """Several mistakes in one input; the message has a line for each.

    Attributes:
        sentences: One per mistake, in the order in which they were found.
    """

    def __init__(self, sentences: Iterable[str]) -> None:
        self.sentences = tuple(sentences)
        super().__init__("\n".join(self.sentences))


class Mistakes:
    """Collects what is wrong with an input, so that all of it is reported together, each mistake once.

    ``with mistakes.collecting(): check(...)`` for every check, then ``mistakes.raise_all()``.
    """

    def __init__(self) -> None:
        self._errors: dict[str, ValueError] = {}

    def __bool__(self) -> bool:
        """Whether there is any."""
        return bool(self._errors)

    def add(self, error: ValueError) -> None:
        """Adds an error; of ``InputErrors`` each sentence."""
        for sentence in sentences(error):
            self._errors.setdefault(sentence, error)

    @contextlib.contextmanager
    def collecting(self) -> Iterator[None]:
        """Adds the input error that ends the block; other errors pass through."""
        try:
            yield
        except ValueError as error:
            if not is_input_error(error):
                raise
            self.add(error)

    def each(self, function: Callable[[T], R], values: Iterable[T]) -> list[R]:
        """``function`` of every value, those left out for which it raises an input error."""
        results = []
        for value in values:
            with self.collecting():
                results.append(function(value))
        return results

    @property
    def sentences(self) -> tuple[str, ...]:
        """What was collected, in order."""
        return tuple(self._errors)

    def raise_all(self) -> None:
        """Raises what was collected, if anything.

        Raises:
            ValueError: The only mistake as it was raised, several as ``InputErrors``.
        """
        if len(self._errors) > 1:
            raise InputErrors(self._errors)
        for error in self._errors.values():
            raise error


def is_input_error(error: BaseException) -> bool:
    """Whether an error is a sentence for the user: an ``InputError``, or an ``S2AError`` of the library."""
    library = sys.modules.get("s2a.errors")  # Importing it would import torch; what was raised is imported already.
    return isinstance(error, InputError) or (library is not None and isinstance(error, library.S2AError))


def sentences(error: BaseException) -> tuple[str, ...]:
    """What an input error says, one sentence per mistake."""
    return error.sentences if isinstance(error, InputErrors) else (str(error),)


def unknown(kind: str, given: str, known: Iterable[str]) -> InputError:
    """``InputError`` for a name that is not in a table, with the near matches first."""
    names = sorted({*known}) or ["none"]
    near = difflib.get_close_matches(given, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(near)}? Known: " if near else ""
    shown = ", ".join(names[:40]) + (", ..." if len(names) > 40 else "")
    return InputError(f"Unknown {kind} {given!r}: {hint or 'known: '}{shown}.")
