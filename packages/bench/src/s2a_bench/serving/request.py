"""What a service is asked for, checked before Ray and torch are imported."""

from __future__ import annotations

import dataclasses
import ipaddress
import os
import re
import socket
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.data.readers.walk import path_exists
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.inference.checks import check_count, check_weights
from s2a_bench.serving.catalogue import STATE, Catalogue, Place, is_hub_id, name_adapter, read_facts
from s2a_bench.sweeps.checks.devices import check_device_name

TOKEN_VARIABLE = "S2A_SERVE_TOKEN"
"""Environment variable with the token that clients must show."""

_HOST = re.compile(r"[a-z0-9_]([a-z0-9._-]*[a-z0-9_])?(:[0-9]{1,5})?")


@dataclasses.dataclass(frozen=True)
class Limits:
    """What one request, and all together, may ask for.

    Attributes:
        body_bytes: Largest body of a request in bytes, and most that its images have together.
        images: Most images in one request.
        waiting: Most requests that wait for a model; further ones are turned away (503).
        seconds: Longest time of a request, after which it is given up (504).
        task_bytes: Memory of the loaded tasks of one replica, beside the backbone; those that were not used for the
            longest time are let go above it.
    """

    body_bytes: int = 20_000_000
    images: int = 32
    waiting: int = 256
    seconds: float = 60.0
    task_bytes: int = 1_000_000_000


@dataclasses.dataclass(frozen=True)
class ServeRequest:
    """A service.

    Attributes:
        adapters: Task name and adapter of those that were named.
        folder: Folder of further adapters, looked at anew for every request; ``None``: none.
        backbone_from: Adapter whose backbone is served.
        weights: File of the backbone's weights; ``None``: as that adapter says.
        host: Address to listen on.
        port: Of it.
        token: That clients must show (``Authorization: Bearer``); ``None``: none, on loopback only.
        device: torch device of the models.
        replicas: Models, each a process with the backbone and the tasks that it was asked for.
        threads: Threads, and cores, of each.
        batch_size: Most images in one pass.
        batch_seconds: Time that a pass waits for further images after an idle time.
        limits: Of requests.
        image_root: Clients may name images below it by path; ``None``: they may not.
        url_hosts: Hosts, ``name`` or ``name:port``, of which clients may name images by URL.
        ray_address: ``HOST:PORT`` or ``auto`` of a running Ray cluster; ``None``: a Ray of our own.
        notes: Sentences about adapters in the folder that cannot be served.
        unserved: Names of such tasks.
    """

    adapters: tuple[tuple[str, str], ...]
    folder: Path | None
    backbone_from: str
    weights: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = dataclasses.field(default=None, repr=False)
    device: str = "cpu"
    replicas: int = 1
    threads: int = 1
    batch_size: int = 16
    batch_seconds: float = 0.0
    limits: Limits = Limits()
    image_root: Path | None = None
    url_hosts: tuple[str, ...] = ()
    ray_address: str | None = None
    notes: tuple[str, ...] = ()
    unserved: tuple[str, ...] = ()

    @property
    def most_requests(self) -> int:
        """How many may be under way: as many as may wait, and as many as the replicas take."""
        return self.limits.waiting + self.requests_per_replica * self.replicas

    @property
    def requests_per_replica(self) -> int:
        """How many a replica takes at once: while one pass runs, the images of the next ones are decoded."""
        return 4 * self.batch_size

    @property
    def catalogue(self) -> Catalogue:
        """The tasks."""
        return Catalogue(self.adapters, self.folder)


def prepare_serve(
    adapters: Sequence[str],
    *,
    tasks: Path | None = None,
    weights: Path | None = None,
    host: str = "127.0.0.1",
    port: int = 8000,
    token_file: Path | None = None,
    device: str = "cpu",
    replicas: int = 1,
    threads: int | None = None,
    batch_size: int = 16,
    batch_wait_ms: float = 0.0,
    limits: Limits | None = None,
    image_root: Path | None = None,
    url_hosts: Sequence[str] = (),
    ray_address: str | None = None,
) -> ServeRequest:
    """Checks what a service is asked for; all mistakes at once.

    Args:
        adapters: ``[NAME=]ADAPTER``, a folder or a hub id.
        tasks: Folder of further adapters.
        weights: As in ``ServeRequest``, as are the others.
        host: Not a loopback address: a token is needed.
        port: 1 to 65535.
        token_file: File with the token; the environment's ``S2A_SERVE_TOKEN`` if left out.
        device: A torch device.
        replicas: At least 1.
        threads: Of each replica; ``None``: this machine's cores among the replicas, on a cluster 1.
        batch_size: At least 1.
        batch_wait_ms: Milliseconds, at least 0.
        limits: ``None``: the default ones.
        image_root: A folder.
        url_hosts: Names of hosts.
        ray_address: Of a cluster.

    Raises:
        InputError: What is wrong, all of it.
    """
    mistakes = Mistakes()
    named = mistakes.each(name_adapter, adapters)
    places: dict[str, str] = {}
    for name, adapter in named:
        if places.setdefault(name, adapter) != adapter:
            mistakes.add(
                InputError(f"Two adapters are called {name}: {places[name]} and {adapter}; give NAME=ADAPTER for one.")
            )
    for flag, path in (("--tasks", tasks), ("--image-root", image_root)):
        if path is not None and not (path_exists(path) and path.is_dir()):
            mistakes.add(InputError(f"{flag} {path} is no folder; create it, or give another."))
    with mistakes.collecting():
        check_weights(weights)
    token = None
    with mistakes.collecting():
        token = _read_token(token_file)
    with mistakes.collecting():
        _check_host(host, token)
    with mistakes.collecting():
        _check_port(host, port, probe=ray_address is None and _is_address(host))
    with mistakes.collecting():
        check_device_name(device)
    for flag, value in (("--replicas", replicas), ("--batch-size", batch_size)):
        with mistakes.collecting():
            check_count(flag, value)
    if threads is not None:
        with mistakes.collecting():
            check_count("--threads", threads)
    limits = limits or Limits()
    with mistakes.collecting():
        _check_limits(limits, batch_wait_ms)
    for each in url_hosts:
        if not _HOST.fullmatch(each):
            mistakes.add(
                InputError(f"--url-hosts {each} is no host; give its name, or name:port, in small letters, without //.")
            )
    adapters_of = Catalogue(list(places.items()), tasks)
    if not adapters and (tasks is None or (tasks.is_dir() and not adapters_of.names())):
        where = f"--tasks {tasks} holds no adapter" if tasks else "No adapter is given"
        none = f"{where}; give at least one, the folder that finetune wrote: its backbone is the one served."
        for problem in adapters_of.problems() or [none]:
            mistakes.add(InputError(problem))
    for name, adapter in places.items():
        if adapters_of.find(name) is None:
            mistakes.add(InputError(f"{adapter} has no {STATE}: its weights are missing; take another copy."))
    # The named first, in their order: the first of all says which backbone it is.
    ordered = dict.fromkeys([*places, *adapters_of.names()])
    found = [place for name in ordered if (place := adapters_of.find(name))]
    # What was named must be right. A folder changes while it is served: what is wrong in it is said, and not served.
    backbone_from, notes = "", {}
    with mistakes.collecting():
        backbone_from, notes = _check_backbones(found, places)
    mistakes.raise_all()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return ServeRequest(
        adapters=tuple((name, _absolute(adapter)) for name, adapter in places.items()),
        folder=None if tasks is None else tasks.absolute(),
        backbone_from=_absolute(backbone_from),
        weights=None if weights is None else weights.absolute(),
        host=host,
        port=port,
        token=token,
        device=device,
        replicas=replicas,
        # The nodes of a cluster may have fewer cores than this machine.
        threads=threads or (max(1, cores // replicas) if ray_address is None else 1),
        batch_size=batch_size,
        batch_seconds=batch_wait_ms / 1000,
        limits=limits,
        image_root=None if image_root is None else image_root.resolve(),
        url_hosts=tuple(url_hosts),
        ray_address=ray_address,
        notes=(*notes.values(), *adapters_of.problems()),
        unserved=tuple(notes),
    )


def is_loopback(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _absolute(adapter: str) -> str:
    """Of a folder: replicas run elsewhere. A hub id stays what it is."""
    return adapter if is_hub_id(adapter) else str(Path(adapter).absolute())


def _read_token(file: Path | None) -> str | None:
    if file is None:
        found, where = os.environ.get(TOKEN_VARIABLE), f"The environment's {TOKEN_VARIABLE}"
        if found is None:
            return None
    else:
        where = f"--token-file {file}"
        try:
            found = file.read_text(encoding="ascii").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is no plain text"
            raise InputError(f"{where} cannot be read ({reason}); give a file with one line.") from error
    if len(found) < 16 or not found.isascii() or not found.isprintable() or " " in found:
        raise InputError(
            f"{where} is no token; it must have at least 16 letters, digits or marks and no space, for example what "
            "`openssl rand -hex 32` prints."
        )
    return found


def _check_host(host: str, token: str | None) -> None:
    if not _is_address(host):
        raise InputError(
            f"--host {host} is no address; give 127.0.0.1 (this machine only), 0.0.0.0 (all networks) or an address of "
            "this machine."
        )
    if not is_loopback(host) and token is None:
        raise InputError(
            f"--host {host} can be reached by other machines, so that clients must show a token; set {TOKEN_VARIABLE} "
            "or give --token-file FILE."
        )


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True


def _check_port(host: str, port: int, probe: bool) -> None:
    if not 1 <= port <= 65535:
        raise InputError(f"--port {port} must be a number from 1 to 65535.")
    if not probe:  # the head of a cluster listens, wherever it is
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind((host, port))
    except OSError as error:
        raise InputError(
            f"--host {host} --port {port} cannot be listened on ({error.strerror or error}); give another."
        ) from error


def _check_limits(limits: Limits, batch_wait_ms: float) -> None:
    mistakes = Mistakes()
    flags = {"--max-images": limits.images, "--max-waiting": limits.waiting}
    for flag, value in flags.items():
        with mistakes.collecting():
            check_count(flag, value)
    for flag, value in (("--max-body-mb", limits.body_bytes), ("--task-memory-mb", limits.task_bytes)):
        if not 0 < value <= 10**12:
            mistakes.add(InputError(f"{flag} must be above 0, and a million at most."))
    if not 0 < limits.seconds <= 86_400:
        mistakes.add(InputError(f"--timeout {limits.seconds:g} must be seconds above 0, a day (86400) at most."))
    if not 0 <= batch_wait_ms <= 10_000:
        mistakes.add(InputError(f"--batch-wait-ms {batch_wait_ms:g} must be from 0 to 10000 milliseconds."))
    mistakes.raise_all()


def _check_backbones(places: Sequence[Place], named: Container[str]) -> tuple[str, dict[str, str]]:
    """The adapter whose backbone is served, and by name what is wrong with others that were not named.

    Args:
        places: All adapters, the named ones first. The first that says its backbone decides.
        named: Names of those that must be right.

    Raises:
        InputError: One of these is not.
    """
    mistakes, notes = Mistakes(), dict[str, str]()
    first: tuple[Place, dict[str, Any]] | None = None
    for place in places:
        try:
            first = _check_backbone(place, first) or first
        except InputError as error:
            if place.name in named:
                mistakes.add(error)
            else:
                notes[place.name] = str(error)
    hubs = [place for place in places if place.stamp is None]
    if first is None and not hubs:
        for sentence in notes.values():
            mistakes.add(InputError(sentence))
    mistakes.raise_all()
    return (first[0] if first else hubs[0]).adapter if first or hubs else "", notes


def _check_backbone(place: Place, first: tuple[Place, dict[str, Any]] | None) -> tuple[Place, dict[str, Any]] | None:
    """An adapter and what it says of itself; ``None`` for a hub id, of which nothing is known yet.

    Raises:
        InputError: It cannot be served, or not beside the first.
    """
    facts = read_facts(place)
    if not facts:
        return None
    _check_partial(place, facts)
    if first is None:
        return place, facts
    own, other = facts["backbone"], first[1]["backbone"]
    if (own.get("name"), own.get("id")) != (other.get("name"), other.get("id")):
        raise InputError(
            f"{place.adapter} belongs to the backbone {own.get('name')} ({own.get('id')}), {first[0].adapter} to "
            f"{other.get('name')} ({other.get('id')}); one service has one backbone: start two."
        )
    formats = [(each.get("dtype"), each.get("frozen_dtype")) for each in (own, other)]
    if formats[0] != formats[1]:
        raise InputError(
            f"{place.adapter} has the backbone in {formats[0][1] or formats[0][0]}, {first[0].adapter} in "
            f"{formats[1][1] or formats[1][0]}; one service has one number format: start two."
        )
    return first


def _check_partial(place: Place, facts: Mapping[str, Any]) -> None:
    if not isinstance(facts["backbone"].get("name"), str):
        raise InputError(f"{place.adapter} does not say its backbone; take another copy of the adapter.")
    if facts.get("method") == "full":
        raise InputError(
            f"{place.adapter} is of full fine-tuning, which trains the whole backbone: nothing is shared; serve it on "
            "its own (docs/serving.md)."
        )
