"""The sweep: which cells of a grid are missing, and workers (Ray Tune) that run them. It neither tracks nor reports.

A finished cell is a valid record of status ``done``. Everything else is run: cells that failed before too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import fcntl
import hashlib
import io
import math
import os
import secrets
import shutil
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from s2a_bench import datasets
from s2a_bench import record as records
from s2a_bench.config import CellConfig, from_dict
from s2a_bench.errors import InputError
from s2a_bench.record import Record

if TYPE_CHECKING:
    from ray.tune.experiment import Trial

WORKER_BYTES = 2_000_000_000
"""Memory set aside for a worker when their number is chosen: Python, torch, a mini backbone and its data."""

_RAY_SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that makes every server listen on loopback only
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is an exception here, not a request to wind down slowly
}
"""What Ray offers only as environment variables; set before it is imported, unless the user has."""


class Listener(Protocol):
    """Told of what happens, in the driver's process."""

    def started(self, cell_id: str) -> None:
        """A worker took a cell."""

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """A cell ended an epoch."""

    def finished(self, record: Record) -> None:
        """A cell's record was written."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A grid, measured against the records.

    Attributes:
        cells: Every cell by its id, the longest first.
        done: Those with a valid record.
        again: Those whose record says ``failed``.
        broken: Record files that could not be read, as sentences; their cells run again.
    """

    cells: Mapping[str, CellConfig]
    done: frozenset[str]
    again: frozenset[str]
    broken: tuple[str, ...]

    @property
    def todo(self) -> list[str]:
        """Cells to run, in order."""
        return [cell_id for cell_id in self.cells if cell_id not in self.done]


@dataclasses.dataclass(frozen=True)
class Workers:
    """How many cells run at once, and what each is given."""

    count: int
    cpus: int
    gpus: float = 0.0


def plan(cells: Iterable[CellConfig], output: Path) -> Plan:
    """Identifies every cell, which finds all bad input, and looks for its record.

    Raises:
        ValueError: A cell that cannot run: one sentence.
    """
    from s2a_bench import run

    by_id: dict[str, CellConfig] = {}
    for cell in cells:
        by_id.setdefault(run.identify(cell), cell)
    done, again, broken = set(), set(), []
    for cell_id in by_id:
        path = records.record_path(output, cell_id)
        try:
            (done if records.read(path).status == "done" else again).add(cell_id)
        except FileNotFoundError:
            continue
        except ValueError as error:
            broken.append(str(error))
    return Plan(by_id, frozenset(done), frozenset(again), tuple(broken))


def results(plan: Plan, output: Path) -> dict[str, Record | None]:
    """The record of every cell of a plan; ``None`` where there is none."""
    found: dict[str, Record | None] = {}
    for cell_id in plan.cells:
        try:
            found[cell_id] = records.read(records.record_path(output, cell_id))
        except (OSError, ValueError):
            found[cell_id] = None
    return found


@contextlib.contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Holds the output folder for this process and clears what a killed one left.

    Raises:
        InputError: The folder cannot be written, or another sweep holds it.
    """
    try:
        (output / "records").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=output / "records"):
            pass
        lock = (output / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(f"Cannot write to output folder {output} ({error}); pass a writable one to --output.") from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"Another sweep (process {lock.read().strip() or 'unknown'}) is writing to {output}; "
                "wait for it to end, or pass another --output."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        for stale in (output / "records").glob(".*.tmp"):
            stale.unlink(missing_ok=True)
        shutil.rmtree(output / ".ray", ignore_errors=True)
        yield


def choose_workers(cells: int, device: str, concurrent: int | None = None, *, small: bool = True) -> Workers:
    """Workers for a number of cells on this machine.

    Args:
        cells: How many are to run.
        device: torch device of the cells.
        concurrent: The user's wish; ``None`` chooses.
        small: The cells are small enough for one core each; others get the machine to themselves.

    Raises:
        InputError: Fewer than one worker.
    """
    cpus = len(os.sched_getaffinity(0))
    if concurrent is not None and concurrent < 1:
        raise InputError(f"--max-concurrent {concurrent} is too small; it must be at least 1.")
    cuda = device.startswith("cuda")
    devices = _cuda_devices() if cuda else 0
    if concurrent is None:
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        concurrent = max(1, min(cpus, memory // WORKER_BYTES)) if small else 1
        concurrent = devices if cuda else concurrent
    count = max(1, min(concurrent, cells))
    return Workers(count, max(1, cpus // count), min(1.0, devices / count))


def _cuda_devices() -> int:
    import torch

    return max(1, torch.cuda.device_count())


def ray_available() -> bool:
    """Whether Ray Tune is installed."""
    return find_spec("ray") is not None


def run_here(plan: Plan, output: Path, listeners: Sequence[Listener]) -> None:
    """Runs the missing cells one after the other in this process.

    Raises:
        OSError: A record could not be written.
    """
    from s2a_bench import run

    for cell_id in plan.todo:
        _tell(listeners, "started", cell_id)
        try:
            record = run.run(plan.cells[cell_id], lambda m, c=cell_id: _tell(listeners, "epoch", c, m))
        except ValueError as error:  # what was good at the start has gone bad since, a data folder say
            record = failed(cell_id, plan.cells[cell_id], type(error).__name__, str(error), traceback.format_exc())
        records.write(record, output)
        _tell(listeners, "finished", record)


def run_with_ray(plan: Plan, output: Path, listeners: Sequence[Listener], workers: Workers) -> None:
    """Runs the missing cells in parallel; every worker imports torch once and takes cell after cell.

    Raises:
        OSError: A record could not be written.
    """
    output = output.absolute()
    mark = hashlib.sha256(str(output).encode()).hexdigest()[:6]
    with _ray(workers, mark):
        from ray import tune

        cells = [
            {"id": cell_id, "output": str(output), **_payload(plan.cells[cell_id], workers)} for cell_id in plan.todo
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
                    name="sweep", storage_path=str(output / ".ray"), verbose=0, callbacks=[_callback(plan, output, listeners)]
                ),
            ).fit()
        finally:
            shutil.rmtree(output / ".ray", ignore_errors=True)


def failed(cell_id: str, cell: CellConfig, kind: str, message: str, trace: str) -> Record:
    """The record of a cell whose run came to no end of its own, with the cause."""
    return Record(
        cell_id=cell_id,
        status="failed",
        suite=cell.data.suite,
        dataset=cell.data.dataset,
        group=datasets.get(cell.data.suite, cell.data.dataset).group,
        backbone=cell.backbone.name,
        method=cell.method.name,
        method_config=dict(cell.method.options),
        train_config=dataclasses.asdict(cell.train),
        seed=cell.seed,
        epochs=cell.train.epochs,
        evaluated_on=cell.data.evaluate,
        random_weights=cell.backbone.random_weights,
        limit_train=cell.data.limit_train,
        limit_test=cell.data.limit_test,
        started_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        error={"type": kind, "message": message, "traceback": trace},
    )


def _tell(listeners: Sequence[Listener], event: str, *arguments: Any) -> None:
    for listener in listeners:
        getattr(listener, event)(*arguments)


def _payload(cell: CellConfig, workers: Workers) -> dict[str, Any]:
    return {"config": dataclasses.asdict(dataclasses.replace(cell, threads=workers.cpus))}


def _trial(config: dict[str, Any]) -> None:
    """One cell in a worker."""
    from ray import tune

    from s2a_bench import run

    cell = config["cell"]
    record = run.run(from_dict(CellConfig, cell["config"]), on_epoch=lambda metrics: tune.report(dict(metrics)))
    records.write(record, Path(cell["output"]))
    tune.report({"status": record.status})


def _callback(plan: Plan, output: Path, listeners: Sequence[Listener]) -> Any:
    from ray.tune import Callback

    class Tell(Callback):
        """Passes Tune's events on, and leaves a record for workers that died."""

        def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            _tell(listeners, "started", trial.config["cell"]["id"])

        def on_trial_result(
            self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
        ) -> None:
            if "epoch" in result and "status" not in result:
                _tell(listeners, "epoch", trial.config["cell"]["id"], result)

        def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            _tell(listeners, "finished", records.read(records.record_path(output, trial.config["cell"]["id"])))

        def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
            cell_id = trial.config["cell"]["id"]
            record = failed(cell_id, plan.cells[cell_id], *_cause(trial))
            records.write(record, output)
            _tell(listeners, "finished", record)

    return Tell()


def _cause(trial: Trial) -> tuple[str, str, str]:
    """Type, message and traceback of what ended a trial; a dead worker leaves only Ray's account of it."""
    import pickle

    from ray.exceptions import RayActorError, RayTaskError

    path = trial.pickled_error_file
    error = pickle.loads(Path(path).read_bytes()) if path and Path(path).exists() else None
    text = str(error or trial.get_error() or "unknown")
    if isinstance(error, RayTaskError):
        return type(error.cause).__name__, str(error.cause), text
    if isinstance(error, RayActorError):
        _, _, detail = text.partition("Worker exit detail: ")
        detail = detail.partition(" Some common causes")[0].strip() or text.strip().splitlines()[0]
        return "WorkerDied", f"The worker process was killed, ran out of memory or crashed ({detail})", text
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
            ray.init(
                address="local",
                num_cpus=workers.count * workers.cpus,
                num_gpus=math.ceil(workers.count * workers.gpus),
                include_dashboard=False,
                log_to_driver=False,
                logging_level="CRITICAL",
                object_store_memory=100_000_000,
                _temp_dir=folder,
            )
            yield
        finally:
            ray.shutdown()
            shutil.rmtree(folder, ignore_errors=True)
