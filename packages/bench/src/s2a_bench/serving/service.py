"""Starts Ray and the service, and ends both."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import logging
import re
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

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
_DRAIN_SECONDS = 10.0
_LOOK_SECONDS = 1.0
_CONTROLLER = ("SERVE_CONTROLLER_ACTOR", "serve")
_LOGGING = {"log_level": "ERROR", "enable_access_log": False}


class ServiceFailed(RuntimeError):
    """The service could not be started, or ended by itself; the message says why."""


class FrontDeployment:
    """The deployment behind the address.

    Args:
        model: Handle of the replicas.
        request: The service.
    """

    _front: ClassVar[Any] = None  # Serve builds the application apart from the instance, in the same process.

    def __init__(self, model: Any, request: ServeRequest) -> None:
        from s2a_bench.serving.front import Front

        keep_on_loopback()
        FrontDeployment._front = Front(model, request)

    async def end(self) -> None:
        """Ends what is under way; see ``Front.end``."""
        await FrontDeployment._front.end()


def build_app() -> Any:
    """The application of the front in this process."""
    return FrontDeployment._front.app()


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
            try:
                # Serve ends its HTTP proxies before the replicas: what is under way must be over by then.
                with contextlib.suppress(Exception):
                    serve.get_app_handle(NAME).end.remote().result(timeout_s=request.limits.seconds + 5)
            finally:  # a second Ctrl-C waits for nothing
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
        with runtime.joined(Join(request.ray_address)) as nodes:
            _check_cluster(request, nodes)
            yield
        return
    gpus = 1.0 if request.device.startswith("cuda") else 0.0
    # A mark of its own: two services that are started at once must not end each other's Ray.
    mark = secrets.token_hex(3)
    workers = Workers(request.replicas, request.threads, gpus)
    try:
        with runtime.own_ray(workers, mark, store_bytes=_STORE_BYTES, log_to_driver=True):
            yield
    except runtime.PoolError as error:
        raise ServiceFailed(str(error)) from error


def _check_cluster(request: ServeRequest, nodes: Any) -> None:
    """Checks that a cluster has room for the replicas, and no Serve yet, which ``serve.shutdown`` would end too.

    Raises:
        InputError: It has no room, or a Serve.
    """
    import ray

    cuda, resources = request.device.startswith("cuda"), [node["Resources"] for node in nodes if node["Alive"]]
    room = sum(
        min(int(each.get("CPU", 0)) // request.threads, int(each.get("GPU", 0)) if cuda else request.replicas)
        for each in resources
    )
    if room < request.replicas:
        each = f"{request.threads} cores" + (" and a card" if cuda else "")
        raise InputError(
            f"The cluster at {request.ray_address} has room for {room} replicas of {each}, not for {request.replicas}; "
            "give fewer --threads or --replicas."
        )
    try:
        ray.get_actor(*_CONTROLLER)
    except ValueError:
        return
    raise InputError(
        f"Ray Serve runs on the cluster at {request.ray_address} already, and one cluster has one HTTP address; end it "
        "(serve shutdown), or use another cluster."
    )


def _deploy(request: ServeRequest) -> None:
    from ray import serve

    from s2a_bench.serving.model import Model

    limits = request.limits
    gpus = 1 if request.device.startswith("cuda") else 0
    # Nodes of a cluster have to reach each other.
    environment: dict[str, Any] = {} if request.ray_address else {"runtime_env": {"env_vars": {SWITCH: "1"}}}
    ending: dict[str, Any] = {"graceful_shutdown_wait_loop_s": 0.1, "graceful_shutdown_timeout_s": _DRAIN_SECONDS}
    deployment: Any = serve.deployment
    model = deployment(
        Model,
        name=MODEL,
        num_replicas=request.replicas,
        ray_actor_options={"num_cpus": request.threads, "num_gpus": gpus, **environment},
        max_ongoing_requests=request.requests_per_replica,
        max_queued_requests=limits.waiting,
        health_check_period_s=5,
        logging_config=_LOGGING,
        **ending,
    )
    front = deployment(
        serve.ingress(build_app)(FrontDeployment),
        name="front",
        ray_actor_options={"num_cpus": 0, **environment},
        max_ongoing_requests=2 * request.most_requests + 1000,  # the front itself says that there are too many
        logging_config=_LOGGING,
        **ending,
    )
    # Serve's own time limit is above ours, which says what happened.
    http = {"host": request.host, "port": request.port, "request_timeout_s": limits.seconds + 10}
    try:
        serve.start(proxy_location="HeadOnly", http_options=http, logging_config=_LOGGING)
        # The models need no token.
        models = model.bind(dataclasses.replace(request, token=None))
        serve.run(front.bind(models, request), name=NAME, route_prefix="/")
    except Exception as error:
        reason = _reason() or " ".join(str(error).split())[:300]
        raise ServiceFailed(f"The service could not be started: {reason}") from error


def _reason() -> str | None:
    """What a replica raised, out of Serve's account of it."""
    from ray import serve

    with contextlib.suppress(Exception):
        for deployment in serve.status().applications[NAME].deployments.values():
            lines = [line.strip() for line in deployment.message.splitlines()]
            if found := [line for line in lines if re.match(r"[\w.]*(Error|Mismatch|UnsupportedModel)\b.*: ", line)]:
                return found[-1].partition(": ")[2]
    return None


def _wait() -> None:
    """Waits until Ctrl-C, or until the service is gone.

    Raises:
        ServiceFailed: It is gone.
    """
    from ray import serve

    while True:
        time.sleep(_LOOK_SECONDS)
        try:
            status = serve.status().applications
        except Exception as error:
            raise ServiceFailed("Ray's processes are gone; start the service again.") from error
        if NAME not in status:
            raise ServiceFailed("The service was ended from elsewhere.")
