"""Runs MLflow's server on a store, on this machine alone, until it is told to end."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import IO

from s2a_bench.errors import InputError
from s2a_bench.tracking.store import Store

HOST, FIRST_PORT = "127.0.0.1", 5000
_PATIENCE, _GRACE = 180, 10
"""Seconds for the server to start, and to end."""

# One process serves one person; jobs are for evaluations of language models, and start a process each.
_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


class ServerStopped(RuntimeError):
    """MLflow's server ended by itself; the message holds what it said last."""


def choose_port(wanted: int | None) -> int:
    """A free port of this machine: the wanted one, or the first free one from 5000.

    Raises:
        InputError: The wanted one is in use, or is none.
    """
    if wanted is not None:
        if not 1 <= wanted <= 65535:
            raise InputError(f"--port {wanted} is no port; give a number from 1 to 65535.")
        if not _is_free(wanted):
            raise InputError(f"Port {wanted} is in use or not allowed; give another with --port, or leave it out.")
        return wanted
    for port in range(FIRST_PORT, FIRST_PORT + 100):
        if _is_free(port):
            return port
    raise InputError(f"Ports {FIRST_PORT} to {FIRST_PORT + 99} are all in use; give a free one with --port.")


def _is_free(port: int) -> bool:
    with contextlib.closing(socket.socket()) as probe:
        if os.name == "posix":  # a port whose last connections are being closed is free
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):
            probe.bind((HOST, port))
            return True
    return False


@contextlib.contextmanager
def run_server(store: Store, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """MLflow's server on a store; it answers when the block begins, and all of its processes end with the block.

    Args:
        store: Which.
        port: Of this machine.

    Raises:
        ServerStopped: It did not start.
    """
    words = [sys.executable, "-m", "mlflow", "server", "--host", HOST, "--port", str(port), "--workers", "1"]
    # It makes folders for experiments that others create: not in the folder where this command was called.
    with tempfile.TemporaryDirectory(prefix="s2a-mlflow-") as folder, tempfile.TemporaryFile() as said:
        process = subprocess.Popen(
            [*words, "--backend-store-uri", store.uri],
            cwd=folder,
            env={**_ENVIRONMENT, **os.environ},
            stdin=subprocess.DEVNULL,
            stdout=said,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches this process, which then ends the server
        )
        try:
            _wait_until_it_answers(process, port, said)
            yield process
        finally:
            _end(process)


def wait(process: subprocess.Popen[bytes]) -> None:
    """Waits until the server has ended.

    Raises:
        ServerStopped: It has, by itself.
    """
    code = process.wait()
    raise ServerStopped(f"MLflow's server ended with exit code {code}; the same command starts it again.")


def _wait_until_it_answers(process: subprocess.Popen[bytes], port: int, said: IO[bytes]) -> None:
    # Not through a proxy: it is this machine.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    end = time.monotonic() + _PATIENCE
    while time.monotonic() < end:
        if process.poll() is not None:
            raise ServerStopped(f"MLflow's server did not start: {_last_line(said)}")
        with contextlib.suppress(urllib.error.URLError, OSError):
            if opener.open(f"http://{HOST}:{port}/health", timeout=2).status == 200:
                return
        time.sleep(0.2)
    raise ServerStopped(f"MLflow's server did not answer within {_PATIENCE} seconds: {_last_line(said)}")


def _last_line(said: IO[bytes]) -> str:
    said.seek(0)
    lines = said.read().decode(errors="replace").strip().splitlines()
    return lines[-1][-300:] if lines else "it said nothing"


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ends the server with the processes that it has started."""
    for kind in (signal.SIGTERM, getattr(signal, "SIGKILL", signal.SIGTERM)):
        with contextlib.suppress(OSError):
            if os.name == "posix":
                os.killpg(process.pid, kind)
            else:
                process.send_signal(kind)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
            if kind == signal.SIGTERM and _group_is_gone(process.pid):
                return


def _group_is_gone(group: int) -> bool:
    if os.name != "posix":
        return True
    end = time.monotonic() + 2
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except OSError:
            return True
        time.sleep(0.05)
    return False
