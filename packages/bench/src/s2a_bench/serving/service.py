"""Starts Ray and the service, and ends both."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import logging
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

from s2a_bench.errors import InputError
from s2a_bench.serving.loopback import SWITCH, keep_on_loopback
from s2a_bench.serving.request import ServeRequest
from s2a_bench.sweeps.ray import runtime
from s2a_bench.sweeps.ray.cluster import Join
from s2a_bench.sweeps.workers import Workers

NAME = "s2a"
"""Of Serve's application."""
MODEL = "model"
"""Of the deployment with the models."""

_STORE_BYTES = 500_000_000
_DRAIN_SECONDS = 20.0
_LOOK_SECONDS = 1.0


class ServiceFailed(RuntimeError):
    """The service could not be started, or ended by itself; the message says why."""


def run(request: ServeRequest, ready: Callable[[], None]) -> None:
    """Serves until it is interrupted (Ctrl-C, SIGTERM); requests that are under way are answered then.

    Args:
        request: The service.
        ready: Called when it answers.

    Raises:
        InputError: Ray Serve is not installed; no Ray cluster at the address.
        ServiceFailed: It could not be started, or is gone.
        KeyboardInterrupt: It was ended.
    """
    with running(request):
        ready()
        _wait()


@contextlib.contextmanager
def running(request: ServeRequest) -> Iterator[None]:
    """The service answers as long as the block lasts.

    Raises:
        InputError: As ``run``.
        ServiceFailed: It could not be started.
    """
    check_installed()
    with _ray(request):
        from ray import serve

        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        try:
            _deploy(request)
            yield
        finally:
            serve.shutdown()


def check_installed() -> None:
    """Checks that Ray Serve is there.

    Raises:
        InputError: It is not.
    """
    # Ray itself must not be imported before its switches are set.
    needed = ("ray", "fastapi", "uvicorn", "grpc", "prometheus_client")
    if lost := [name for name in needed if importlib.util.find_spec(name) is None]:
        raise InputError(
            f'serve needs Ray Serve, of which {", ".join(lost)} is not installed; pip install "s2a-bench[serve]".'
        )


@contextlib.contextmanager
def _ray(request: ServeRequest) -> Iterator[None]:
    if request.ray_address is not None:
        with runtime.joined(Join(request.ray_address)):
            yield
        return
    gpus = 1.0 if request.device.startswith("cuda") else 0.0
    mark = hashlib.sha256(f"{request.host}:{request.port}".encode()).hexdigest()[:6]
    try:
        with runtime.own_ray(Workers(request.replicas, request.threads, gpus), mark, _STORE_BYTES):
            yield
    except runtime.PoolError as error:
        raise ServiceFailed(str(error)) from error


def _deploy(request: ServeRequest) -> None:
    from ray import serve

    from s2a_bench.serving.model import Model

    limits = request.limits
    serve.start(
        proxy_location="HeadOnly",
        # Serve's own time limit is above ours, which says what happened.
        http_options={
            "host": request.host,
            "port": request.port,
            "request_timeout_s": limits.seconds + 10,
        },
    )
    gpus = 1 if request.device.startswith("cuda") else 0
    # Nodes of a cluster have to reach each other.
    environment: dict[str, Any] = {} if request.ray_address else {"runtime_env": {"env_vars": {SWITCH: "1"}}}
    model = serve.deployment(
        Model,
        name=MODEL,
        num_replicas=request.replicas,
        ray_actor_options={"num_cpus": request.threads, "num_gpus": gpus, **environment},
        max_ongoing_requests=4 * request.batch_size,
        max_queued_requests=limits.waiting,
        health_check_period_s=5,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_DRAIN_SECONDS,
    )

    def build() -> Any:  # Serve takes a function without arguments, and runs it in the front's process
        return _build_front(request)

    front = serve.deployment(
        serve.ingress(build)(),
        name="front",
        ray_actor_options={"num_cpus": 0, **environment},
        max_ongoing_requests=4 * limits.waiting + 1000,
        graceful_shutdown_wait_loop_s=0.1,
        graceful_shutdown_timeout_s=_DRAIN_SECONDS,
    )
    try:
        serve.run(front.bind(model.bind(request)), name=NAME, route_prefix="/")
    except Exception as error:
        raise ServiceFailed(
            f"The service could not be started: {_reason() or ' '.join(str(error).split())[:300]}"
        ) from error


def _build_front(request: ServeRequest) -> Any:
    """The front's application, in its own process."""
    from ray import serve

    from s2a_bench.serving.front import Front

    keep_on_loopback()
    return Front(serve.get_deployment_handle(MODEL, app_name=NAME), request).app()


def _reason() -> str | None:
    """What a replica raised, out of Serve's account of it."""
    from ray import serve

    for deployment in serve.status().applications[NAME].deployments.values():
        lines = [line.strip() for line in deployment.message.splitlines()]
        if found := [line for line in lines if re.match(r"[\w.]*(Error|Mismatch|UnsupportedModel)\b.*: ", line)]:
            return found[-1].partition(": ")[2]
    return None


def _wait() -> None:
    """Returns never: until Ctrl-C, or until there is no service any more."""
    from ray import serve

    while True:
        time.sleep(_LOOK_SECONDS)
        try:
            status = serve.status().applications
        except Exception as error:
            raise ServiceFailed("Ray's processes are gone; start the service again.") from error
        if NAME not in status:
            raise ServiceFailed("The service was ended from elsewhere.")
