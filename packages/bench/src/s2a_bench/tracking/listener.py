"""A sweep listener that logs every record to MLflow when its cell finishes, and completes the store at the end."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from s2a_bench.cells.record import Record
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic
from s2a_bench.sweeps.events import Level, Listener, StageEnd
from s2a_bench.sweeps.plan import Plan, results
from s2a_bench.tracking import runs
from s2a_bench.tracking import store as stores
from s2a_bench.tracking.names import LAYOUT
from s2a_bench.tracking.runs import TrackingError
from s2a_bench.tracking.sqlite_uris import sqlite_path
from s2a_bench.tracking.store import Store


class Tracker(Listener):
    """Logs records to MLflow on its own thread. Errors do not stop the sweep; ``ended`` logs what is missing.

    A file ``.tracked.json`` in the output folder stores a hash of the records that a database holds, and the size and
    time of its file, so that a sweep with nothing to do need not open it.

    Attributes:
        uri: Absolute URI of the store; known when a stage was planned.
        missing: Why nothing is tracked; ``""``: it is.
    """

    def __init__(self, suite: str, uri: str | None, output: Path, message: Callable[[str, Level], None]) -> None:
        """Checks the store's address; it is opened when there is something to log.

        Args:
            suite: Of the sweep: names the experiment.
            uri: The store; ``None``: ``<output>/mlflow.db``.
            output: Folder of the sweep.
            message: Receives what a person should know.

        Raises:
            InputError: Not the address of a store.
        """
        self.missing = ""
        # The default store's folder is made by the check: only where a sweep is about to run.
        self.uri = "" if uri is None else stores.check_uri(uri, output)
        self._suite, self._given, self._output, self._message = suite, uri, output, message
        self._store: Store | None = None

    def planned(self, plan: Plan) -> None:
        """Opens the store, unless there is nothing to log; one that cannot be used is only a message.

        Raises:
            NotInstalled: MLflow is not installed and ``uri`` was given.
        """
        self._plan = plan
        try:
            self.uri = stores.check_uri(self._given, self._output)
            if not plan.todo and self._is_stamped([each for each in results(plan, self._output).values() if each]):
                return
            self._store = stores.open_store(self._given, self._output)
        except stores.NotInstalled as error:
            if self._given is not None:
                raise
            self._go_without(error)
        except InputError as error:  # records are the truth, a view of them stops nothing
            self._go_without(error)
        else:
            self.missing = ""
            aside = self._store.aside if isinstance(self._store, Store) else None
            if aside is not None:
                text = f"{self._output / 'mlflow.db'} could not be used; it is {aside} now, and a new one is made"
                self._message(f"{text} from the records.", "warning")
            self._thread = ThreadPoolExecutor(1, "tracker")
            self._sweep = self._thread.submit(runs.start_sweep, self._store, self._suite, plan.cells)
            self._broken = False

    def _go_without(self, error: InputError) -> None:
        self.missing = str(error)
        self._message(f"Nothing is tracked: {self.missing}", "warning")

    def finished(self, record: Record) -> None:
        """Hands the record to the thread."""
        if self._store is not None:
            self._thread.submit(self._log, record)

    def ended(self, end: StageEnd) -> None:
        """Makes the store hold every record of the stage, and the report; a store that has gone is only a message."""
        try:
            self._close(end.records, end.status)
        except Exception as error:  # whatever MLflow does, results do not depend on it
            if not end.disk_error:  # its database may lie on the same disk
                self._message(self._incomplete(error), "warning")

    def _close(self, found: Sequence[Record], status: str) -> None:
        """Logs all records.

        Args:
            found: The records.
            status: See ``runs.finish_sweep``.

        Raises:
            TrackingError: MLflow failed, twice.
        """
        store = self._store
        if store is None:
            return
        self._thread.shutdown(wait=True)
        with contextlib.suppress(TrackingError):
            self._log_all(self._sweep.result(), found, status)
            self._store = None  # an interrupt from here on does not close it again
            return
        self._log_all(runs.start_sweep(store, self._suite, self._plan.cells), found, status)
        self._store = None

    def _incomplete(self, error: Exception) -> str:
        """What to say about a store that does not hold everything, with the command that makes it good."""
        words = ["s2a-bench", "track", "--output", str(self._output)]
        words += ["--tracking-uri", self._given] if self._given else []
        retry = shlex.join(words)
        return f"MLflow is incomplete ({error}). The records are safe; later, run: {retry}"

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
            if isinstance(self._store, Store):
                runs.heal(self._store)  # what was deleted in MLflow's pages, and what a killed process left open
            self._stamp(found)

    @property
    def _stamps(self) -> Path:
        return self._output / ".tracked.json"

    def _is_stamped(self, found: Sequence[Record]) -> bool:
        """Whether a store held these records when it was last written to here, and nobody has written since.

        Of a server that is not known: it is asked every time.
        """
        signature, stamps = self._signature(), self._read_stamps()
        return bool(signature) and stamps.get(self.uri) == signature and stamps.get(self._key()) == _hash_records(found)

    def _signature(self) -> str:
        """Size and time of a database's file; ``""`` where there is none."""
        with contextlib.suppress(OSError):
            if self.uri.startswith("sqlite"):
                found = sqlite_path(self.uri).stat()
                return f"{found.st_size} {found.st_mtime_ns} {found.st_ino}"
        return ""

    def _stamp(self, found: Sequence[Record]) -> None:
        stamps = {**self._read_stamps(), self._key(): _hash_records(found), self.uri: self._signature()}
        with contextlib.suppress(OSError):  # without a stamp the next sweep opens the store and sees for itself
            write_atomic(self._stamps, json.dumps(stamps, indent=1))

    def _read_stamps(self) -> dict[str, str]:
        with contextlib.suppress(OSError, ValueError, RecursionError):
            stamps = json.loads(self._stamps.read_text(encoding="utf-8"))
            return stamps if isinstance(stamps, dict) else {}
        return {}

    def _key(self) -> str:
        return f"{self.uri} {runs.sweep_id(self._plan.cells)}"


def _hash_records(found: Sequence[Record]) -> str:
    texts = sorted(json.dumps(dataclasses.asdict(record), sort_keys=True) for record in found)
    return hashlib.sha256("\n".join([str(LAYOUT), *texts]).encode()).hexdigest()[:16]
