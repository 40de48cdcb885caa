"""A sweep listener that writes the report: of all records at the end, and whenever a dataset is done."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from s2a_bench.cells.record import Record
from s2a_bench.reports.build import ReportPaths, build
from s2a_bench.reports.planned import remember_cells
from s2a_bench.sweeps.events import Level, Listener, StageEnd
from s2a_bench.sweeps.plan import Plan


class ReportWriter(Listener):
    """Writes the report when the cells of a sweep, not the trials of its search, have ended.

    Before that also whenever all cells of a dataset are done: who starts a sweep of many can look at it early. That
    runs on a thread, since the driver must not keep workers waiting.

    Attributes:
        paths: What was written at the end; ``None``: nothing yet, or nothing to report.
    """

    def __init__(self, output: Path, message: Callable[[str, Level], None]) -> None:
        """Nothing is written yet.

        Args:
            output: Folder of the sweep, absolute.
            message: Receives where an early report lies.
        """
        self.paths: ReportPaths | None = None
        self._output, self._message = output, message
        self._planned: Plan | None = None
        self._left: dict[str, set[str]] = {}
        self._thread: ThreadPoolExecutor | None = None
        self._early: Future[ReportPaths] | None = None

    def planned(self, plan: Plan) -> None:
        """Notes what is to run on every dataset."""
        self._planned = plan
        self._left = {}
        for cell_id in plan.todo:
            if not plan.cells[cell_id].trial:
                self._left.setdefault(plan.cells[cell_id].data.dataset, set()).add(cell_id)

    def started(self, cell_id: str) -> None:
        """Notes in the folder, at the first cell, what is to run: for reports of a sweep that is cut off."""
        if self._planned is not None:
            remember_cells(self._output, self._planned.cells, self._planned.done)
            self._planned = None

    def finished(self, record: Record) -> None:
        """Starts a report if the cell was the last one of its dataset and there are others."""
        left = self._left.get(record.dataset, set())
        left.discard(record.cell_id)
        if self._early is not None and self._early.done():
            self._say_early()
        if left or record.dataset not in self._left:
            return
        del self._left[record.dataset]
        if self._left and self._early is None:
            self._thread = self._thread or ThreadPoolExecutor(1, "report")
            self._early = self._thread.submit(build, self._output)

    def ended(self, end: StageEnd) -> None:
        """Writes the report of all records."""
        if self._thread is not None:
            self._thread.shutdown()
            self._thread = self._early = None
        if end.choices is None and end.status != "KILLED" and end.records:
            self.paths = build(self._output)

    def _say_early(self) -> None:
        early, self._early = self._early, None
        if early is not None and early.exception() is None:  # what is wrong now is said at the end, if it still is
            self._message(f"Report so far: {early.result().html}", "info")
