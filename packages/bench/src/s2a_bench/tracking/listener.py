"""A sweep listener that logs every record to MLflow when its cell finishes, and completes the store at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2a_bench.cells.record import Record, write_atomic
from s2a_bench.sweeps.plan import Plan, results
from s2a_bench.tracking import runs, store
from s2a_bench.tracking.runs import TrackingError
from s2a_bench.tracking.store import Store


class Tracker:
    """Logs records to MLflow on its own thread. Errors do not stop the sweep; ``close`` logs what is missing.

    A file ``.tracked.json`` in the output folder stores a hash of the records that a store holds, so that a sweep with
    nothing to do need not open it.

    Attributes:
        uri: Absolute URI of the store.
        missing: Why nothing is tracked, if MLflow is not installed and no URI was given; else ``""``.
    """

    def __init__(self, plan: Plan, suite: str, uri: str | None, output: Path) -> None:
        """Opens the store, unless there is nothing to log.

        Raises:
            InputError: It cannot be used, or MLflow is not installed and ``uri`` was given.
        """
        self.missing = ""
        self.uri = store.check_uri(uri, output)
        self._plan, self._suite, self._given, self._output = plan, suite, uri, output
        self._store: Store | None = None
        if plan.todo or not self._stamped([record for record in results(plan, output).values() if record]):
            try:
                self._store = store.open_store(uri, output)
            except store.NotInstalled as error:
                if uri is not None:
                    raise
                self.missing = str(error)
                return
            self._thread = ThreadPoolExecutor(1, "tracker")
            self._sweep = self._thread.submit(runs.start_sweep, self._store, suite, plan.cells)
            self._broken = False

    def started(self, cell_id: str) -> None:
        """Does nothing: a cell is logged when it has finished."""

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """Does nothing: curves are logged with their record."""

    def finished(self, record: Record) -> None:
        """Hands the record to the thread."""
        if self._store is not None:
            self._thread.submit(self._log, record)

    def close(self, found: Sequence[Record], status: str) -> None:
        """Makes the store hold every record of the sweep, and its report.

        Args:
            found: The records.
            status: See ``runs.finish_sweep``.

        Raises:
            TrackingError: MLflow failed, twice; the sentence ends with the command that makes it good.
        """
        if self._store is None:
            return
        self._thread.shutdown(wait=True)
        with contextlib.suppress(TrackingError):
            self._log_all(self._sweep.result(), found, status)
            return
        try:
            self._log_all(runs.start_sweep(self._store, self._suite, self._plan.cells), found, status)
        except TrackingError as error:
            retry = f"s2a-bench track --output {self._output}" + (
                f" --tracking-uri {self._given}" if self._given else ""
            )
            raise TrackingError(f"MLflow is incomplete ({error}). The records are safe; later, run: {retry}") from error

    def _log(self, record: Record) -> None:
        if not self._broken:  # do not wait again for a server that did not answer
            try:
                runs.log_cell(self._sweep.result(), record)
            except TrackingError:
                self._broken = True

    def _log_all(self, sweep: runs.Sweep, found: Sequence[Record], status: str) -> None:
        for record in found:
            runs.log_cell(sweep, record)
        report = [self._output / "report.html", self._output / "report.md"]
        runs.finish_sweep(sweep, found, report, status)
        if status != "KILLED":
            self._stamp(found)

    @property
    def _stamps(self) -> Path:
        return self._output / ".tracked.json"

    def _stamped(self, found: Sequence[Record]) -> bool:
        scheme, _, path = self.uri.partition(":///")
        if scheme == "sqlite" and not Path(path).is_file():
            return False
        return self._read_stamps().get(self._key()) == _hash_records(found)

    def _stamp(self, found: Sequence[Record]) -> None:
        stamps = {**self._read_stamps(), self._key(): _hash_records(found)}
        with contextlib.suppress(OSError):  # without a stamp the next sweep opens the store and sees for itself
            write_atomic(self._stamps, json.dumps(stamps, indent=1))

    def _read_stamps(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError):
            stamps = json.loads(self._stamps.read_text(encoding="utf-8"))
            return stamps if isinstance(stamps, dict) else {}
        return {}

    def _key(self) -> str:
        return f"{self.uri} {runs.sweep_id(self._plan.cells)}"


def _hash_records(found: Sequence[Record]) -> str:
    texts = sorted(json.dumps(dataclasses.asdict(record), sort_keys=True) for record in found)
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()[:16]
