"""What the driver does when Ray Tune tells it something: events for listeners, and the records of workers that died.

Imports Ray at once: only to be imported after ``runtime`` has set Ray's switches.
"""

from __future__ import annotations

import json
import pickle
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError
from ray.tune import Callback
from ray.tune.experiment import Trial

from s2a_bench import failures
from s2a_bench.cells import provenance
from s2a_bench.cells import record as records
from s2a_bench.cells.outputs import remove_checkpoint
from s2a_bench.cells.record import Record
from s2a_bench.sweeps.events import Listener, notify
from s2a_bench.sweeps.plan import Plan, count_cells
from s2a_bench.sweeps.ray import cluster, runtime
from s2a_bench.sweeps.ray.cluster import ClusterError, Join
from s2a_bench.sweeps.search import asha

_LOOK_SECONDS = 5.0
"""How often the nodes of a cluster are looked at."""


class SweepCallback(Callback):
    """Passes Tune's events on, and leaves a record for workers that died or do not see the output folder.

    One trial of Tune is one cell; a trial's ``config["cell"]`` is what ``pool`` made of it.
    """

    def __init__(self, plan: Plan, output: Path, listeners: Sequence[Listener], join: Join | None) -> None:
        """Nothing has happened yet.

        Args:
            plan: The cells.
            output: Where records go.
            listeners: Receive progress events.
            join: The cluster that is used; ``None``: a Ray of our own.
        """
        self.plan, self.output, self.listeners, self.join = plan, output, listeners, join
        self.oom_kills = failures.oom_kills()
        self.starts: dict[str, int] = {}
        self.nodes: dict[str, str] = {}
        self.texts: dict[str, str] = {}
        self.looks: dict[str, str] = {}
        self.looked = self.hopeful = time.monotonic()
        self.head: cluster.HeadWatch | None = None
        self.refused: Exception | None = None  # what ends the sweep; Tune would turn it into text

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune stores its callbacks for a restore that the records make needless."""
        return {}

    def on_step_end(self, iteration: int, trials: list[Trial], **info: Any) -> None:
        """Tune calls this again and again; now and then it is the time to look whether the cluster still has nodes."""
        if self.join is not None and time.monotonic() - self.looked >= _LOOK_SECONDS:
            self._look_at_nodes(self.join, trials)

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """A worker took the cell; after a lost node it starts again, which listeners need not know."""
        self.starts[_id(trial)] = self.starts.get(_id(trial), 0) + 1
        if self.starts[_id(trial)] == 1:
            notify(self.listeners, "started", _id(trial))

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        """The worker called ``tune.report``; which key is there says what it reports (see ``pool``)."""
        if "record" in result:  # the last report of a cell that came to its end
            self.texts[_id(trial)] = result["record"]
        elif "so_far" in result:  # val was looked at: what is known should the search stop the trial here
            self.looks[_id(trial)] = result["so_far"]
        elif "steps" in result:
            notify(self.listeners, "step", _id(trial), result["step"], result["steps"])
        elif "epoch" in result:
            notify(self.listeners, "epoch", _id(trial), result)
        elif "node" in result:  # the first report in a cluster
            self.nodes[_id(trial)] = result["node"]

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The cell came to its end, or the search stopped the trial: then there is no last report."""
        so_far, text = self.looks.pop(_id(trial), ""), self.texts.pop(_id(trial), "")
        record = Record(**json.loads(text)) if text else asha.stopped(Record(**json.loads(so_far)))
        path = records.record_path(self.output, _id(trial))
        try:
            written = records.read(path)
        except (OSError, ValueError):
            written = None
        if written != record:  # a worker that does not see the output folder only sends its record
            self._write(record)
            remove_checkpoint(record, self.output)
        notify(self.listeners, "finished", record)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """The worker died, with the last of its attempts; nobody but the driver can write the record."""
        kind, message, text = _cause(trial, self.oom_kills)
        if self.join is not None and kind == "WorkerDied":
            lost = cluster.lost_sentence(text, self.nodes.get(_id(trial)), self.starts.get(_id(trial), 1))
            kind, message = ("NodeLost", lost) if lost else (kind, message)
        cell, sent = self.plan.cells[_id(trial)], trial.config["cell"]
        here = provenance.hardware(cell.device, int(sent["asked"]["cpu"])) if self.join is None else None
        record = records.failed_record(cell, _id(trial), (kind, message, text), sent["facts"], here)
        self._write(record)
        notify(self.listeners, "finished", record)

    def _write(self, record: Record) -> None:
        try:
            records.write(record, self.output)
        except OSError as error:
            self.refused = error
            raise

    def head_lost(self, interrupt: Callable[[], None]) -> None:
        """Ends the sweep from another thread: without a head every call of Ray waits."""
        assert self.join is not None
        self.refused = ClusterError(
            f"The head of the Ray cluster at {self.join.address} has not answered for {cluster.HEAD_SILENCE:g} s; "
            "what is done is safe, and the same command goes on when there is a head again."
        )
        interrupt()

    def head_stuck(self) -> None:
        """The main thread waits in a call of Ray that nothing ends; Ray would end the process, without a word."""
        runtime.end_now(str(self.refused))

    def _look_at_nodes(self, join: Join, trials: list[Trial]) -> None:
        """Ends a sweep that could only wait for nodes that are gone."""
        if self.head is not None and not self.head.answers():
            return  # it would wait for a minute
        nodes, self.looked = ray.nodes(), time.monotonic()
        waiting = [trial.config["cell"]["asked"] for trial in trials if not trial.is_finished()]
        if not waiting or any(cluster.possible(asked, nodes) for asked in waiting):
            self.hopeful = self.looked
        elif self.looked - self.hopeful >= join.patience:
            self.refused = ClusterError(
                f"The Ray cluster at {join.address} has lost every node that could run the "
                f"{count_cells(len(waiting))} left, for {join.patience:g} s ({cluster.describe(nodes)})."
            )
            raise self.refused


def _id(trial: Trial) -> str:
    return trial.config["cell"]["id"]


def _cause(trial: Trial, oom_kills: int | None) -> tuple[str, str, str]:
    """Type, message and traceback of what ended a trial; a dead worker leaves only Ray's account of it."""
    path = trial.pickled_error_file
    error = pickle.loads(Path(path).read_bytes()) if path and Path(path).exists() else None
    text = str(error or trial.get_error() or "unknown")
    if isinstance(error, RayTaskError):
        return type(error.cause).__name__, str(error.cause), text
    if isinstance(error, RayActorError | OutOfMemoryError):
        _, _, detail = text.partition("Worker exit detail: ")
        detail = detail.partition(" Some common causes")[0].strip() or text.strip().splitlines()[0]
        return (*failures.worker_death(type(error).__name__, detail, oom_kills), text)
    return "WorkerDied", text.strip().splitlines()[-1], text
