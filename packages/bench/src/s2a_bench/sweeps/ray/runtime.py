"""Starts a local Ray instance, or connects to a running cluster.

Ray is imported where it is used, after the switches that it has only as environment variables are set.
"""

from __future__ import annotations

import contextlib
import io
import logging
import math
import os
import secrets
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from s2a_bench.sweeps.ray import cluster
from s2a_bench.sweeps.ray.cluster import Join
from s2a_bench.sweeps.ray.folder import end_processes, private_folder
from s2a_bench.sweeps.workers import Workers

RAY_SWITCHES = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C is an exception here, not a request to wind down slowly
}
"""What Ray offers only as environment variables; set before it is imported, unless the user has."""

OWN_SWITCHES = {
    "RAY_AUTH_MODE": "token",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # the one switch that makes every server listen on loopback only
}
"""The same for a Ray of our own. A cluster that is joined has its own rules."""


_LEAVE_SECONDS = 10.0


class PoolError(RuntimeError):
    """Ray could not be started; nothing ran."""


class Engine:
    """A Ray of our own that the sweeps of one command share: it is started by the first that has cells to run."""

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self._room: tuple[int, int] | None = None

    def __enter__(self) -> Engine:
        """Starts nothing yet."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Ends Ray's processes."""
        self._room = None
        self._stack.close()

    def start(self, workers: Workers, mark: str) -> None:
        """Makes room for workers; a Ray that runs and has it is kept, one that has not is started anew.

        Args:
            workers: What to make room for.
            mark: Names the temporary folder, so that the next sweep can remove what a killed one left.

        Raises:
            PoolError: Ray could not be started.
        """
        cpus, cards = _room(workers)
        if self._room is None or cpus > self._room[0] or cards > self._room[1]:
            self.__exit__(None, None, None)
            self._stack.enter_context(own_ray(workers, mark))
            self._room = (cpus, cards)


def _room(workers: Workers) -> tuple[int, int]:
    """Cores and cards."""
    cards = math.ceil(workers.count * workers.gpus) if workers.cards is None else workers.cards
    return workers.count * workers.cpus, cards


def set_switches() -> None:
    """What a Ray of our own needs in the environment. Ray reads it when it is imported, so it comes before."""
    for name, value in (RAY_SWITCHES | OWN_SWITCHES).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextlib.contextmanager
def own_ray(
    workers: Workers, mark: str, *, store_bytes: int = 100_000_000, log_to_driver: bool = False
) -> Iterator[None]:
    """A Ray of our own: on loopback, behind a random token, in a temporary folder that goes with it.

    Ray and Tune print to stdout whatever they are told, so nobody listens to it meanwhile; what matters arrives as an
    event or an exception.

    Args:
        workers: What to make room for.
        mark: Names the temporary folder, so that the next sweep can remove what a killed one left.
        store_bytes: Memory for what processes hand to each other, where it is large.
        log_to_driver: What its processes write is printed, on standard error.

    Raises:
        PoolError: Ray could not be started.
    """
    set_switches()
    with contextlib.ExitStack() as stack:
        try:
            folder = stack.enter_context(private_folder(mark))
        except OSError as error:
            raise PoolError(f"Ray could not be started ({error})") from error
        stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        import ray

        try:
            _start(workers, folder, store_bytes, log_to_driver)
            yield
        finally:
            ray.shutdown()


@contextlib.contextmanager
def joined(join: Join) -> Iterator[cluster.Nodes]:
    """A cluster of somebody else's: nothing of it is started or stopped here. Gives its nodes."""
    for name, value in RAY_SWITCHES.items():
        os.environ.setdefault(name, value)
    cluster.check_address(join.address)
    on_terminate = signal.getsignal(signal.SIGTERM)
    with contextlib.redirect_stdout(io.StringIO()):
        import ray

        try:
            try:
                ray.init(address=join.address, log_to_driver=False, logging_level=logging.CRITICAL)
            except Exception as error:  # Ray has a plain exception for every cause
                raise cluster.cannot_join(join.address, error) from error
            _give_back_signal(on_terminate)
            yield ray.nodes()
        finally:
            _leave()


def head_address() -> str:
    """``HOST:PORT`` of the cluster that was joined."""
    import ray

    return ray.get_runtime_context().gcs_address


def end_now(sentence: str) -> None:
    """Ends the process from any thread with a sentence and exit code 1; records on the disk are whole at any time."""
    print(f"s2a-bench: {sentence}", file=sys.stderr, flush=True)
    os._exit(1)


def _leave() -> None:
    """Leaves a cluster; one whose head is gone would keep us for a minute and then end the process."""
    import ray

    leaving = threading.Thread(target=ray.shutdown, name="leave", daemon=True)
    leaving.start()
    leaving.join(_LEAVE_SECONDS)


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], None]]:
    """Gives what another thread may call to interrupt this one as Ctrl-C does, though it waits inside of Ray.

    SIGINT itself is ignored in a job that a shell has put into the background. Only the main thread can be interrupted.
    """
    main = threading.main_thread()
    if threading.current_thread() is not main:
        yield lambda: None
        return
    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
    try:
        yield lambda: signal.pthread_kill(main.ident or 0, signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)


def _give_back_signal(handler: Any) -> None:
    """Takes SIGTERM back from Ray, whose own handler ends the process at once and cleans nothing up."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, handler)


def _start(workers: Workers, folder: Path, store_bytes: int, log_to_driver: bool) -> None:
    import ray

    on_terminate = signal.getsignal(signal.SIGTERM)
    cpus, cards = _room(workers)
    for last in (False, False, True):
        try:
            ray.init(
                address="local",
                num_cpus=cpus,
                num_gpus=cards,
                include_dashboard=False,
                log_to_driver=log_to_driver,
                logging_level=logging.CRITICAL,
                object_store_memory=store_bytes,
                _temp_dir=str(folder),
            )
            return
        except Exception as error:  # Ray gives a busy machine 30 seconds, no switch for it, and a plain Exception
            ray.shutdown()
            end_processes(folder.parent)  # those of a start that failed, of which ``shutdown`` knows nothing
            if last:
                raise PoolError(f"Ray could not be started ({' '.join(str(error).split())[:200]})") from error
        finally:
            _give_back_signal(on_terminate)
