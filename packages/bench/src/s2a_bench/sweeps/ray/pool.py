"""The pool: Ray Tune runs the missing cells of a sweep, one trial per cell, on workers that stay warm.

Ray is imported where it is used, after ``runtime`` has set its switches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import pickle
import shutil
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_bench import failures as faults
from s2a_bench.cells import provenance
from s2a_bench.cells import record as records
from s2a_bench.cells.outputs import Keep, remove_checkpoint
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, from_dict
from s2a_bench.errors import InputError
from s2a_bench.sweeps.gpu_memory import cores
from s2a_bench.sweeps.plan import Listener, Plan, Workers, tell
from s2a_bench.sweeps.ray import cluster, runtime
from s2a_bench.sweeps.ray.cluster import ClusterError, Join
from s2a_bench.sweeps.ray.runtime import Engine, joined
from s2a_bench.sweeps.search import asha
from s2a_bench.sweeps.search.asha import Halving

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

_LOOK_SECONDS = 5.0
"""How often the nodes of a cluster are looked at."""


def run_with_ray(
    plan: Plan,
    output: Path,
    listeners: Sequence[Listener],
    workers: Workers,
    keep: Keep | None = None,
    *,
    shares: Mapping[str, float] | None = None,
    join: Join | None = None,
    halving: Halving | None = None,
    engine: Engine | None = None,
) -> None:
    """Runs the missing cells in parallel; every worker imports torch once and takes cell after cell.

    Args:
        plan: What is to run.
        output: Where records go.
        listeners: Who is told.
        workers: How many cells at once on this machine, and with what.
        keep: What else the cells leave there.
        shares: Of a card, by cell; ``None``: as ``workers`` says.
        join: A running cluster to use in place of this machine, and of ``workers``.
        halving: Which trials of a search may be stopped early; ``None``: every cell comes to its end.
        engine: Whose Ray to use on this machine; ``None``: one for this sweep alone.

    Raises:
        PoolError: Ray could not be started.
        InputError: The cluster could not be joined, or none of its nodes could run a cell.
        ClusterError: It has lost every node that could run what is left.
        OSError: A record could not be written.
    """
    output = output.absolute()
    keep = dataclasses.replace(keep or Keep(output), output=output)
    with contextlib.ExitStack() as stack:
        if join is None:
            mark = hashlib.sha256(str(output).encode()).hexdigest()[:6]
            (engine or stack.enter_context(Engine())).start(workers, mark)
            asked = {cell_id: _here(workers, shares[cell_id] if shares else None) for cell_id in plan.todo}
            token, concurrent = "", workers.count
        else:
            nodes = stack.enter_context(joined(join))
            asked = cluster.requests(plan.todo, nodes, join, shares)
            token, concurrent = stack.enter_context(cluster.marker(output)), join.concurrent
        from ray import tune

        from s2a_bench.cells import identity

        cells = [
            {
                "id": cell_id,
                "keep": keep,
                "config": dataclasses.asdict(
                    dataclasses.replace(plan.cells[cell_id], threads=int(asked[cell_id]["cpu"]))
                ),
                "facts": identity.known_facts(cell_id),
                "asked": asked[cell_id],
                "token": token,
            }
            for cell_id in plan.todo
        ]
        events = _events(plan, output, listeners, join)
        if join is not None:
            lost = functools.partial(events.head_lost, stack.enter_context(runtime.interruptible()))
            events.head = stack.enter_context(cluster.HeadWatch(runtime.head_address(), lost, events.head_stuck))
        try:
            tune.Tuner(
                tune.with_resources(_trial, _resources),
                param_space={"cell": tune.grid_search(cells)},
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    max_concurrent_trials=concurrent,
                    trial_dirname_creator=lambda trial: trial.config["cell"]["id"],
                    scheduler=asha.scheduler(halving) if halving else None,
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=str(output / ".ray"),
                    verbose=0,
                    callbacks=[events],
                    failure_config=tune.FailureConfig(max_failures=cluster.RETRIES if join else 0),
                ),
            ).fit()
        except (Exception, KeyboardInterrupt) as error:
            if events.refused is not None:
                raise events.refused from error
            raise
        finally:
            shutil.rmtree(output / ".ray", ignore_errors=True)


def _here(workers: Workers, share: float | None) -> dict[str, float]:
    """What a cell asks of this machine; with a share of a card, the same share of the cores that go with the card."""
    if share is None:
        return {"cpu": workers.cpus, "gpu": workers.gpus}
    return {"cpu": cores(share, workers.count * workers.cpus, workers.cards or 1), "gpu": share}


def _resources(config: dict[str, Any]) -> Any:
    from ray import tune

    return tune.PlacementGroupFactory([{name.upper(): amount for name, amount in config["cell"]["asked"].items()}])


def _trial(config: dict[str, Any]) -> None:
    """One cell in a worker, which may be on another machine: it writes the record if it sees the driver's folder."""
    from ray import tune

    from s2a_bench.cells import identity, run

    cell, keep, token = config["cell"], config["cell"]["keep"], config["cell"]["token"]
    node = _node() if token else ""
    sees = not token or cluster.sees(keep.output, token)
    if token:
        tune.report({"node": node})
    known = from_dict(CellConfig, cell["config"])

    def look(so_far: Record) -> None:
        # Where the search stops the trial here, this is the last that is heard of it.
        text = json.dumps(dataclasses.asdict(so_far), allow_nan=False)
        point = so_far.curve[-1]
        tune.report({asha.TIME: point["epoch"], asha.METRIC: point[asha.METRIC], "so_far": text})

    try:
        to_run = identity.with_facts(known, cell["id"], cell["facts"])
        record = run.run(to_run, lambda metrics: tune.report(dict(metrics)), keep if sees else None, look)
        if record.cell_id != cell["id"]:
            raise InputError(
                f"The worker's data, checkpoint or version of s2a-bench is another one: cell {record.cell_id} there, "
                f"{cell['id']} on the driver; make them the same."
            )
    except ValueError as error:  # what is good on the driver may not be there
        message = f"On {node}: {error}" if token else str(error)
        cause = (type(error).__name__, message, traceback.format_exc())
        record = records.failed_record(known, cell["id"], cause, cell["facts"], provenance.hardware(known.device))
    if sees:
        records.write(record, keep.output)
        remove_checkpoint(record, keep.output)
    elif keep.adapters:
        record.notes.append("The trained state was not kept: the worker does not see the output folder.")
    tune.report({"status": record.status, "record": json.dumps(dataclasses.asdict(record), allow_nan=False)})


def _node() -> str:
    """Where this worker runs, in words."""
    import ray

    return f"node {ray.get_runtime_context().get_node_id()[:12]} ({ray.util.get_node_ip_address()})"


def _events(plan: Plan, output: Path, listeners: Sequence[Listener], join: Join | None = None) -> Any:
    from ray.tune import Callback

    class Events(Callback):
        """Passes Tune's events on, and leaves a record for workers that died or do not see the folder."""

        # Given as arguments, not closed over: Tune pickles the class, and what it closes over with it.
        def __init__(self, plan: Plan, output: Path, listeners: Sequence[Listener], join: Join | None) -> None:
            self.plan, self.output, self.listeners, self.join = plan, output, listeners, join
            self.oom_kills = faults.oom_kills()
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
            if self.join is not None and time.monotonic() - self.looked >= _LOOK_SECONDS:
                self._look(self.join, trials)

        def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            self.starts[_id(trial)] = self.starts.get(_id(trial), 0) + 1
            if self.starts[_id(trial)] == 1:
                tell(self.listeners, "started", _id(trial))

        def on_trial_result(
            self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
        ) -> None:
            if "record" in result:
                self.texts[_id(trial)] = result["record"]
            elif "so_far" in result:
                self.looks[_id(trial)] = result["so_far"]
            elif "epoch" in result:
                tell(self.listeners, "epoch", _id(trial), result)
            elif "node" in result:
                self.nodes[_id(trial)] = result["node"]

        def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            so_far, text = self.looks.pop(_id(trial), ""), self.texts.pop(_id(trial), "")
            record = Record(**json.loads(text)) if text else asha.stopped(Record(**json.loads(so_far)))
            path = records.record_path(self.output, _id(trial))
            try:
                written = records.read(path)
            except (OSError, ValueError):
                written = None
            if written != record:
                self._write(record)
                remove_checkpoint(record, self.output)
            tell(self.listeners, "finished", record)

        def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            kind, message, text = _cause(trial, self.oom_kills)
            if self.join is not None and kind == "WorkerDied":
                lost = cluster.lost_sentence(text, self.nodes.get(_id(trial)), self.starts.get(_id(trial), 1))
                kind, message = ("NodeLost", lost) if lost else (kind, message)
            cell = self.plan.cells[_id(trial)]
            threads = int(trial.config["cell"]["asked"]["cpu"])
            here = provenance.hardware(cell.device, threads) if self.join is None else None
            facts = trial.config["cell"]["facts"]
            record = records.failed_record(cell, _id(trial), (kind, message, text), facts, here)
            self._write(record)
            tell(self.listeners, "finished", record)

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

        def _look(self, join: Join, trials: list[Trial]) -> None:
            """Ends a sweep that could only wait for nodes that are gone."""
            import ray

            if self.head is not None and not self.head.answers():
                return  # it would wait for a minute
            nodes, self.looked = ray.nodes(), time.monotonic()
            waiting = [trial.config["cell"]["asked"] for trial in trials if not trial.is_finished()]
            if not waiting or any(cluster.possible(asked, nodes) for asked in waiting):
                self.hopeful = self.looked
            elif self.looked - self.hopeful >= join.patience:
                self.refused = ClusterError(
                    f"The Ray cluster at {join.address} has lost every node that could run the {len(waiting)} cells "
                    f"left, for {join.patience:g} s ({cluster.describe(nodes)})."
                )
                raise self.refused

    return Events(plan, output, listeners, join)


def _id(trial: Trial) -> str:
    return trial.config["cell"]["id"]


def _cause(trial: Trial, oom_kills: int | None) -> tuple[str, str, str]:
    """Type, message and traceback of what ended a trial; a dead worker leaves only Ray's account of it."""
    from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

    path = trial.pickled_error_file
    error = pickle.loads(Path(path).read_bytes()) if path and Path(path).exists() else None
    text = str(error or trial.get_error() or "unknown")
    if isinstance(error, RayTaskError):
        return type(error.cause).__name__, str(error.cause), text
    if isinstance(error, RayActorError | OutOfMemoryError):
        _, _, detail = text.partition("Worker exit detail: ")
        detail = detail.partition(" Some common causes")[0].strip() or text.strip().splitlines()[0]
        return (*faults.worker_death(type(error).__name__, detail, oom_kills), text)
    return "WorkerDied", text.strip().splitlines()[-1], text
