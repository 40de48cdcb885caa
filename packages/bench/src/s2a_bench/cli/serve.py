"""``s2a-bench serve``: many adapters of one backbone behind one HTTP address."""

from __future__ import annotations

import dataclasses
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console

from s2a_bench.cli.common import DONE, SOME_FAILED, File, Folder, Number, argument, print_verbatim
from s2a_bench.serving.request import Limits, ServeRequest, is_loopback, prepare_serve

_MB = 1_000_000


@dataclasses.dataclass(frozen=True)
class Serve:
    """Answers images over HTTP with many adapters of one backbone, which is in memory once. Ctrl-C ends it.

    Attributes:
        adapters: Adapter folders, output folders of finetune, or hub ids owner/name; the task is called like the
            folder, or give NAME=ADAPTER.
        tasks: Folder of further adapters, NAME or NAME/adapter in it; looked at for every request, so that tasks come,
            change and go while the service runs.
        weights: File of the backbone's weights; as the first adapter says if left out.
        host: Address to listen on; not this machine alone (0.0.0.0): clients must show a token.
        port: Of this machine.
        token_file: File with the token that clients must show; the environment's S2A_SERVE_TOKEN if left out.
        device: cpu, cuda.
        replicas: Processes with a model each.
        threads: Cores of each; if left out the machine's cores divided among the replicas, on a cluster 1.
        batch_size: Most images in one pass, of any tasks.
        batch_wait_ms: Milliseconds that a pass waits for further images after an idle time; while one runs, the next
            is collected anyway.
        task_memory_mb: Memory of each replica's tasks; above it those not used for the longest time are let go.
        max_body_mb: Largest request.
        max_images: Most images in one request.
        max_waiting: Most requests that wait; further ones are turned away.
        timeout: Seconds until a request is given up.
        image_root: Clients may name images below this folder by path.
        url_hosts: Hosts of which clients may name images by URL.
        ray_address: HOST:PORT of a running Ray cluster to run on; auto: the one that runs here.
    """

    adapters: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[NAME=]ADAPTER ...")] = ()
    tasks: Folder = None
    weights: File = None
    host: str = "127.0.0.1"
    port: int = 8000
    token_file: File = None
    device: str = "cpu"
    replicas: int = 1
    threads: Number = None
    batch_size: int = 16
    batch_wait_ms: float = 0.0
    task_memory_mb: float = 1000.0
    max_body_mb: float = 20.0
    max_images: int = 32
    max_waiting: int = 256
    timeout: float = 60.0
    image_root: Folder = None
    url_hosts: Annotated[tuple[str, ...], argument("HOST ...")] = ()
    ray_address: Annotated[str | None, argument("HOST:PORT")] = None

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            InputError: Bad input, or Ray Serve is not installed.
        """
        request = prepare_serve(
            self.adapters,
            tasks=self.tasks,
            weights=self.weights,
            host=self.host,
            port=self.port,
            token_file=self.token_file,
            device=self.device,
            replicas=self.replicas,
            threads=self.threads,
            batch_size=self.batch_size,
            batch_wait_ms=self.batch_wait_ms,
            limits=Limits(
                body_bytes=_in_bytes(self.max_body_mb),
                images=self.max_images,
                waiting=self.max_waiting,
                seconds=self.timeout,
                task_bytes=_in_bytes(self.task_memory_mb),
            ),
            image_root=self.image_root,
            url_hosts=self.url_hosts,
            ray_address=self.ray_address,
        )
        for note in request.notes:
            print(f"s2a-bench: not served: {note}", file=sys.stderr)
        from s2a_bench.serving import service

        print_verbatim(console, "Starting Ray Serve and loading the backbone ...")
        try:
            service.run(request, lambda: _print_ready(console, request, self.token_file))
        except KeyboardInterrupt:
            print_verbatim(console, "The service has ended.")
        except service.ServiceFailed as error:
            print(f"s2a-bench: {error}", file=sys.stderr)
            return SOME_FAILED
        return DONE


def _in_bytes(megabytes: float) -> int:
    """0 for what is no number of megabytes, which the check refuses."""
    return int(megabytes * _MB) if 0 < megabytes < 1e9 else 0


def _print_ready(console: Console, request: ServeRequest, token_file: Path | None) -> None:
    names = [name for name in request.catalogue.names() if name not in request.unserved]
    shown = ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
    base = f"http://{f'[{request.host}]' if ':' in request.host else request.host}:{request.port}"
    print_verbatim(console, f"{len(names)} tasks: {shown}")
    if request.folder is not None:
        print_verbatim(console, f"Adapters that come into {request.folder} are tasks as soon as they are there.")
    print_verbatim(console, f"Listening on {base}/v1/tasks" + ("" if request.token is None else ", with the token."))
    token = "$S2A_SERVE_TOKEN" if token_file is None else f"$(cat {shlex.quote(str(token_file))})"
    header = "" if request.token is None else f' -H "Authorization: Bearer {token}"'
    local = base if is_loopback(request.host) else f"http://THIS-MACHINE:{request.port}"
    task = names[0] if names else "NAME"
    command = f"curl --data-binary @new.jpg -H Content-Type:image/jpeg{header} {local}/v1/tasks/{task}/predict"
    print_verbatim(console, f"Try: {command}")
    print_verbatim(console, "Press Ctrl-C to end.")
