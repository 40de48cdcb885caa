"""What happens during a sweep, as events: receivers of progress get them in the driver's process."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

from s2a_bench.cells.record import Record

if TYPE_CHECKING:
    from s2a_bench.sweeps.plan import Plan
    from s2a_bench.sweeps.search.choice import Choice

Level = Literal["info", "warning", "error"]


@dataclasses.dataclass(frozen=True)
class StageEnd:
    """How a stage of a sweep ended. A sweep has one stage; one with a search has two: its trials, then its cells.

    Attributes:
        plan: The cells of the stage, and what was missing when it began.
        records: Those that exist, in the order of the plan.
        status: ``"FINISHED"``, ``"FAILED"`` (some cell failed or never ran, or a search chose nothing), or
            ``"KILLED"`` (an interrupt or an error ended the stage before all of its cells had run).
        choices: What the searches chose, where the stage was that of their trials; ``None`` for all other cells.
        disk_error: The output folder cannot be written any more.
    """

    plan: Plan
    records: Sequence[Record]
    status: Literal["FINISHED", "FAILED", "KILLED"]
    choices: Sequence[Choice] | None = None
    disk_error: bool = False


class Listener(Protocol):
    """Receives the events of a sweep, in the driver's process and thread.

    The methods here do nothing: derive from this class and write those that are wanted. An exception that one of them
    raises ends the sweep; what is done stays done.

    Order of a stage: ``planned``, then for each cell that runs ``started``, ``step`` and ``epoch`` (often),
    ``finished``; events of cells that run at once are mixed. Then ``ended``. ``message`` can come at any time.
    """

    def message(self, text: str, level: Level) -> None:
        """Something that a person should know, in one sentence or two."""

    def planned(self, plan: Plan) -> None:
        """It is known which cells are missing; they run next."""

    def started(self, cell_id: str) -> None:
        """A worker took a cell."""

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """A cell ended an epoch; ``metrics`` has ``epoch`` (from 1), ``loss``, ``lr``, ``seconds`` and ``eta_seconds``.

        Those are until the cell's last epoch would end. Where they are known, ``peak_mb``, the cell's memory so far,
        and ``val_accuracy``.
        """

    def step(self, cell_id: str, done: int, total: int) -> None:
        """A cell made ``done`` of the ``total`` steps of all its epochs; of cells in other processes now and then."""

    def finished(self, record: Record) -> None:
        """A cell's record was written; ``record.status`` says how it went."""

    def ended(self, end: StageEnd) -> None:
        """A stage is over."""


def notify(listeners: Sequence[Listener], event: str, *arguments: Any) -> None:
    """Passes an event on to every listener that has a method for it."""
    for listener in listeners:
        method = getattr(listener, event, None)
        if method is not None:
            method(*arguments)


def keep_stdout(listeners: Sequence[Listener]) -> list[Listener]:
    """The same listeners, but what they print goes where stdout is now: while Ray runs, stdout is switched off."""
    return [cast(Listener, _WithStdout(listener)) for listener in listeners]


class _WithStdout:
    """Passes every event on to a listener, with stdout as it was when this was made."""

    def __init__(self, listener: Listener) -> None:
        self._listener, self._stdout = listener, sys.stdout

    def __getattr__(self, event: str) -> Callable[..., None]:
        method = getattr(self._listener, event)

        def call(*arguments: Any) -> None:
            with contextlib.redirect_stdout(self._stdout):
                method(*arguments)

        return call
