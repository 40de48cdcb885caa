"""Runs the missing cells of a sweep with Ray Tune: one trial per cell, on workers that stay warm.

Ray is imported where it is used, after ``runtime`` has set its switches.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import json
import shutil
import time
import traceback
from collections.abc import Sequence
from typing import Any

from s2a_bench.cells import provenance
from s2a_bench.cells import record as records
from s2a_bench.cells.outputs import Keep, remove_checkpoint
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, from_dict
from s2a_bench.errors import InputError
from s2a_bench.sweeps.events import Listener
from s2a_bench.sweeps.plan import Plan
from s2a_bench.sweeps.ray import cluster, runtime
from s2a_bench.sweeps.ray.runtime import Engine, joined
from s2a_bench.sweeps.resources import Placement
from s2a_bench.sweeps.search import asha
from s2a_bench.sweeps.search.asha import Halving
from s2a_bench.sweeps.workers import Workers

_STEP_SECONDS = 5.0
"""How often a worker says which step it is at: every report goes through the driver."""


def run_with_ray(
    plan: Plan,
    listeners: Sequence[Listener],
    keep: Keep,
    placement: Placement,
    *,
    halving: Halving | None = None,
    engine: Engine | None = None,
) -> None:
    """Runs the missing cells in parallel; every worker imports torch once and takes cell after cell.

    Args:
        plan: What is to run.
        listeners: Receive progress events.
        keep: The output folder, and what the cells leave there besides their records.
        placement: How many cells at once, with what share of a GPU, here or on which cluster.
        halving: Which trials of a search may be stopped early; ``None``: every cell comes to its end.
        engine: Whose Ray to use on this machine; ``None``: one for these cells alone.

    Raises:
        PoolError: Ray could not be started.
        InputError: The cluster could not be joined, or none of its nodes could run a cell.
        ClusterError: It has lost every node that could run what is left.
        OSError: A record could not be written.
    """
    output = keep.output.absolute()
    keep = dataclasses.replace(keep, output=output)
    join, shares = placement.join, placement.shares
    with contextlib.ExitStack() as stack:
        if join is None:
            mark = hashlib.sha256(str(output).encode()).hexdigest()[:6]
            (engine or stack.enter_context(Engine())).start(placement.workers, mark)
            asked = {cell: _here(placement.workers, shares[cell] if shares else None) for cell in plan.todo}
            token, concurrent = "", placement.workers.count
        else:
            nodes = stack.enter_context(joined(join))
            asked = cluster.requests(plan.todo, nodes, join, shares)
            token, concurrent = stack.enter_context(cluster.marker(output)), join.concurrent
        from pyarrow.fs import LocalFileSystem  # Ray Tune needs it
        from ray import tune

        from s2a_bench.cells import identity
        from s2a_bench.sweeps.ray.callbacks import SweepCallback

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
        callback = SweepCallback(plan, output, listeners, join)
        if join is not None:
            lost = functools.partial(callback.head_lost, stack.enter_context(runtime.interruptible()))
            callback.head = stack.enter_context(cluster.HeadWatch(runtime.head_address(), lost, callback.head_stuck))
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
                    storage_filesystem=LocalFileSystem(),  # else the path is read as a URI
                    verbose=0,
                    callbacks=[callback],
                    failure_config=tune.FailureConfig(max_failures=cluster.RETRIES if join else 0),
                ),
            ).fit()
        except (Exception, KeyboardInterrupt) as error:
            # Tune turns what a callback raises into an error of its own; the first cause is what helps.
            if callback.refused is not None:
                raise callback.refused from error
            raise
        finally:
            shutil.rmtree(output / ".ray", ignore_errors=True)


def _here(workers: Workers, share: float | None) -> dict[str, float]:
    """What a cell asks of this machine; with a share of a card, the same share of the cores that go with the card."""
    if share is None:
        return {"cpu": workers.cpus, "gpu": workers.gpus}
    from s2a_bench.sweeps.gpu_memory import cores  # torch with it

    return {"cpu": cores(share, workers.count * workers.cpus, workers.cards or 1), "gpu": share}


def _resources(config: dict[str, Any]) -> Any:
    from ray import tune

    return tune.PlacementGroupFactory([{name.upper(): amount for name, amount in config["cell"]["asked"].items()}])


def _trial(config: dict[str, Any]) -> None:
    """One cell in a worker, which may be on another machine: it writes the record if it sees the driver's folder.

    What it reports, ``callbacks.SweepCallback`` reads: in a cluster ``node`` first; ``epoch`` with the loop's metrics;
    ``step`` and ``steps`` now and then; ``so_far`` with the record after a look at val; at last ``record``.
    """
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

    spoken = time.monotonic()

    def step(done: int, total: int) -> None:
        nonlocal spoken
        if time.monotonic() - spoken >= _STEP_SECONDS:
            spoken = time.monotonic()
            tune.report({"step": done, "steps": total})

    try:
        to_run = identity.with_facts(known, cell["id"], cell["facts"])
        record = run.run(to_run, lambda metrics: tune.report(dict(metrics)), keep if sees else None, look, on_step=step)
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
    elif keep.adapters is not False:
        record.notes.append("The trained state was not kept: the worker does not see the output folder.")
    tune.report({"status": record.status, "record": json.dumps(dataclasses.asdict(record), allow_nan=False)})


def _node() -> str:
    """Where this worker runs, in words."""
    import ray

    return f"node {ray.get_runtime_context().get_node_id()[:12]} ({ray.util.get_node_ip_address()})"
