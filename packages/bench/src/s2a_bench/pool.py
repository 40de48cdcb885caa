"""The pool: Ray Tune runs the missing cells of a sweep, one trial per cell, on workers that stay warm.

Ray is imported where it is used, after the switches that it has only as environment variables are set.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import logging
import math
import os
import pickle
import secrets
import shutil
import signal
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from s2a_bench import faults
from s2a_bench import record as records
from s2a_bench.config import CellConfig, from_dict
from s2a_bench.keep import Keep, settle
from s2a_bench.sweep import Listener, Plan, Workers, failed, tell

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

_RAY_SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that makes every server listen on loopback only
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is an exception here, not a request to wind down slowly
}
"""What Ray offers only as environment variables; set before it is imported, unless the user has."""


class PoolError(RuntimeError):
    """Ray could not be started; nothing ran."""


def run_with_ray(
    plan: Plan, output: Path, listeners: Sequence[Listener], workers: Workers, keep: Keep | None = None
) -> None:
    """Runs the missing cells in parallel; every worker imports torch once and takes cell after cell.

    Raises:
        PoolError: Ray could not be started.
        OSError: A record could not be written.
    """
    output = output.absolute()
    mark = hashlib.sha256(str(output).encode()).hexdigest()[:6]
    with _ray(workers, mark):
        from ray import tune

        cells = [
            {
                "id": cell_id,
                "keep": dataclasses.replace(keep or Keep(output), output=output),
                "config": dataclasses.asdict(dataclasses.replace(plan.cells[cell_id], threads=workers.cpus)),
            }
            for cell_id in plan.todo
        ]
        try:
            tune.Tuner(
                tune.with_resources(_trial, {"cpu": workers.cpus, "gpu": workers.gpus}),
                param_space={"cell": tune.grid_search(cells)},
                tune_config=tune.TuneConfig(
                    reuse_actors=True,
                    max_concurrent_trials=workers.count,
                    trial_dirname_creator=lambda trial: trial.config["cell"]["id"],
                ),
                run_config=tune.RunConfig(
                    name="sweep",
                    storage_path=str(output / ".ray"),
                    verbose=0,
                    callbacks=[_events(plan, output, listeners)],
                ),
            ).fit()
        finally:
            shutil.rmtree(output / ".ray", ignore_errors=True)


def _trial(config: dict[str, Any]) -> None:
    """One cell in a worker."""
    from ray import tune

    from s2a_bench import run

    cell, keep = config["cell"], config["cell"]["keep"]
    record = run.run(from_dict(CellConfig, cell["config"]), lambda metrics: tune.report(dict(metrics)), keep)
    records.write(record, keep.output)
    settle(record, keep.output)
    tune.report({"status": record.status})


def _events(plan: Plan, output: Path, listeners: Sequence[Listener]) -> Any:
    from ray.tune import Callback

    class Events(Callback):
        """Passes Tune's events on, and leaves a record for workers that died."""

        # Given as arguments, not closed over: Tune pickles the class, and what it closes over with it.
        def __init__(self, plan: Plan, output: Path, listeners: Sequence[Listener]) -> None:
            self.plan, self.output, self.listeners = plan, output, listeners
            self.oom_kills = faults.oom_kills()

        def __getstate__(self) -> dict[str, Any]:
            """Nothing: Tune stores its callbacks for a restore that the records make needless."""
            return {}

        def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            tell(self.listeners, "started", _id(trial))

        def on_trial_result(
            self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
        ) -> None:
            if "epoch" in result and "status" not in result:
                tell(self.listeners, "epoch", _id(trial), result)

        def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            tell(self.listeners, "finished", records.read(records.record_path(self.output, _id(trial))))

        def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            record = failed(_id(trial), self.plan.cells[_id(trial)], *_cause(trial, self.oom_kills))
            records.write(record, self.output)
            tell(self.listeners, "finished", record)

    return Events(plan, output, listeners)


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


@contextlib.contextmanager
def _ray(workers: Workers, mark: str) -> Iterator[None]:
    """A Ray of our own: on loopback, behind a random token, in a temporary folder that goes with it.

    Ray and Tune print to stdout whatever they are told, so nobody listens to it meanwhile; what matters arrives as an
    event or an exception.

    Args:
        workers: What to make room for.
        mark: Names the temporary folder, so that the next sweep can remove what a killed one left.
    """
    for name, value in _RAY_SWITCHES.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    # Paths of Unix sockets have at most 107 bytes, of which Ray takes more than 60.
    root = Path(tempfile.gettempdir() if len(tempfile.gettempdir()) < 20 else "/tmp")
    for stale in root.glob(f"s2a-{mark}-*"):
        shutil.rmtree(stale, ignore_errors=True)
    folder = tempfile.mkdtemp(prefix=f"s2a-{mark}-", dir=root)
    with contextlib.redirect_stdout(io.StringIO()):
        import ray

        try:
            _start(workers, folder)
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)


def _start(workers: Workers, folder: str) -> None:
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    for last in (False, False, True):
        try:
            ray.init(
                address="local",
                num_cpus=workers.count * workers.cpus,
                num_gpus=math.ceil(workers.count * workers.gpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.CRITICAL,
                object_store_memory=100_000_000,
                _temp_dir=folder,
            )
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGTERM, on_terminate)  # Ray's own ends the process at once and cleans nothing up
            return
        except Exception as error:  # Ray gives a busy machine 30 seconds, no switch for it, and a plain Exception
            ray.shutdown()
            if last:
                raise PoolError(f"Ray could not be started ({' '.join(str(error).split())[:200]})") from error
