"""What the processes run that ``test_faults`` kills: real commands, forked from a server that has imported torch."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest

EPOCHS = 12
"""Of every small cell."""

_SERVER = multiprocessing.get_context("forkserver")
_SERVER.set_forkserver_preload(["bench.fault_imports"])


def start(target: Callable[..., None], *arguments: object) -> BaseProcess:
    """A process that runs ``target``; it is the fork of a server, so nothing of pytest is in it."""
    process = _SERVER.Process(target=target, args=arguments)
    before = os.environ.get("PYTHONPATH")
    # The server that the first process starts imports by this path, not by ours.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        process.start()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return process


def command(log: Path, arguments: list[str], tracked: bool = False) -> BaseProcess:
    """Starts ``s2a-bench ARGUMENTS``; what it prints goes into ``log``."""
    return start(_command, str(log), arguments, tracked)


def _command(log: str, arguments: list[str], tracked: bool) -> None:
    from s2a_bench.cli import main as cli
    from s2a_bench.tracking import store as track_store

    handle = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    os.dup2(handle, 1)
    os.dup2(handle, 2)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] = "60"  # a server on a busy machine; one that is gone refuses at once
    if not tracked:  # as where MLflow is not installed: seconds less for every process
        track_store.find_spec = lambda name: None
    sys.argv = ["s2a-bench", *arguments]
    sys.exit(cli.main())


def eat_memory(folder: str, output: str, cell: object) -> None:
    """Runs a cell in a memory cgroup; after its first epoch takes more memory than that has."""
    import torch
    from s2a_bench.cells import run
    from s2a_bench.cells.outputs import Keep

    torch.set_num_threads(1)
    (Path(folder) / "cgroup.procs").write_text(str(os.getpid()))
    kept = []

    def greedy(metrics: object) -> None:
        while True:
            kept.append(bytearray(b"x" * 10_000_000))

    run.run(cell, greedy, Keep(Path(output), 0))  # type: ignore[arg-type]


def limited(output: str, cells: dict, more: int) -> None:
    """Runs cells where the process may have ``more`` bytes than it has now."""
    import torch
    from s2a_bench.cells.outputs import Keep
    from s2a_bench.sweeps.local import run_locally
    from s2a_bench.sweeps.plan import Plan

    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    most = pages * os.sysconf("SC_PAGE_SIZE") + more
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    run_locally(Plan(cells, frozenset(), frozenset(), ()), [], Keep(Path(output)))


def wait_for(what: Callable[[], object], process: BaseProcess | None = None, seconds: float = 300) -> None:
    """Waits until something holds; fails if the process ends before."""
    end = time.monotonic() + seconds
    while not what():
        assert process is None or process.is_alive(), f"ended with {process.exitcode} before it was told to"
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


def ended(process: BaseProcess, seconds: float = 300) -> int | None:
    """Exit code of a process that ends by itself, or by the signal it was sent."""
    process.join(seconds)
    assert process.exitcode is not None, "it does not end"
    return process.exitcode


@contextlib.contextmanager
def no_orphans(*processes: BaseProcess) -> Iterator[None]:
    """Ends what a failed test has left running."""
    try:
        yield
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()


def arguments(output: Path, *more: str, seeds: int = 1) -> list[str]:
    """A serial sweep of small cells that write a checkpoint after every epoch."""
    return [
        *("sweep", "--serial", "--random-weights", "--datasets", "digits", "--methods", "s2a", "--limit-train", "48"),
        *("--limit-test", "48", "--epochs", str(EPOCHS), "--batch-size", "8", "--checkpoint-every", "0"),
        *("--output", str(output), "--seeds", *map(str, range(seeds)), *more),
    ]


def records(output: Path) -> list[Path]:
    return sorted((output / "records").glob("*.json"))


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A real file system of a few megabytes."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "s2a-test", str(folder)], capture_output=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here ({done.stderr.decode().strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(disk: Path) -> Path:
    """Takes every byte that is left."""
    path = disk / "filler"
    with contextlib.suppress(OSError), path.open("ab", buffering=0) as file:
        for block in (65536, 512, 1):
            with contextlib.suppress(OSError):
                while file.write(b"x" * block):
                    pass
    return path
