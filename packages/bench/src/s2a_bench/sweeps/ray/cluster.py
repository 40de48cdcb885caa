"""A Ray cluster that is already there: is it one, what do its nodes offer, do they see our files, which were lost.

Only plain values come in and go out; Ray itself is imported by ``pool``.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from s2a_bench.errors import InputError

RETRIES = 2
"""A cell whose node, or worker, was lost starts again elsewhere this many times before its record says ``failed``."""

PATIENCE = 120.0
"""Seconds without any node that could run what is left, after which the sweep ends."""

HEAD_SILENCE = 20.0
"""Seconds without a head, after which the sweep ends. Ray itself would end the whole process after 60, from within."""

_CONNECT_SECONDS = 5.0
_HTTP2_HELLO = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes((0, 0, 0, 4, 0, 0, 0, 0, 0))
_SETTINGS = 4  # type of the frame with which every HTTP/2 server, so every Ray head, answers


class ClusterError(RuntimeError):
    """The cluster went away, or has nothing left that could run a cell; what is done is safe."""


@dataclasses.dataclass(frozen=True)
class Join:
    """How to use a running cluster.

    Attributes:
        address: ``HOST:PORT`` of its head, or ``auto``: the one that runs on this machine.
        concurrent: Cells at once; ``None``: as many as fit.
        small: The cells are small enough for one core each; others get a whole node.
        patience: Seconds to wait for nodes when none is left that could run a cell.
    """

    address: str
    concurrent: int | None = None
    small: bool = True
    patience: float = PATIENCE


class HeadWatch:
    """Looks from a thread of its own whether a cluster's head can be connected to, for as long as the block lasts."""

    def __init__(
        self, address: str, lost: Callable[[], None], stuck: Callable[[], None], silence: float = HEAD_SILENCE
    ) -> None:
        """Nothing yet.

        Args:
            address: ``HOST:PORT`` of the head.
            lost: Called once, on the thread, when it has not answered for ``silence`` seconds.
            stuck: Called then, if the block has not been left half as long after.
            silence: In seconds.
        """
        self._host, _, port = address.rpartition(":")
        self._port, self._lost, self._stuck, self._silence = int(port), lost, stuck, silence
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="head watch", daemon=True)

    def __enter__(self) -> HeadWatch:
        """Starts to look."""
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Looks no longer."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        heard = time.monotonic()
        while not self._ended.wait(min(2.0, self._silence / 4)):
            if self.answers():
                heard = time.monotonic()
            elif time.monotonic() - heard >= self._silence:
                self._lost()
                if not self._ended.wait(self._silence / 2):
                    self._stuck()
                return

    def answers(self) -> bool:
        """Whether something accepts connections there now."""
        try:
            with socket.create_connection((self._host.strip("[]"), self._port), _CONNECT_SECONDS):
                return True
        except OSError:
            return False


Nodes = Sequence[Mapping[str, Any]]
"""What ``ray.nodes()`` gives."""


def check_address(address: str) -> None:
    """Checks that something like a Ray head answers; Ray itself would try for minutes.

    Raises:
        InputError: It does not.
    """
    if address == "auto":
        return
    found = re.fullmatch(r"(?P<host>[\w.-]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})", address, re.ASCII)
    if found is None or not 1 <= int(found["port"]) <= 65535:
        raise InputError(
            f"--ray-address {address!r} is no address of a cluster; give the HOST:PORT that `ray start --head` prints, "
            "or auto for the one that runs on this machine."
        )
    advice = "start the head with `ray start --head --port=PORT`, or leave --ray-address out to run on this machine."
    try:
        with socket.create_connection((found["host"].strip("[]"), int(found["port"])), _CONNECT_SECONDS) as connection:
            connection.sendall(_HTTP2_HELLO)
            answer = _read(connection, 9)
    except TimeoutError:
        raise InputError(
            f"Nothing that is a Ray head answers at --ray-address {address} within {_CONNECT_SECONDS:g} s; {advice}"
        ) from None
    except OSError as error:
        raise InputError(f"Cannot connect to --ray-address {address} ({error.strerror or error}); {advice}") from None
    if len(answer) < 9 or answer[3] != _SETTINGS:
        raise InputError(f"What listens at --ray-address {address} is no Ray head; {advice}")


def _read(connection: socket.socket, count: int) -> bytes:
    received = b""
    while len(received) < count and (part := connection.recv(count - len(received))):
        received += part
    return received


def cannot_join(address: str, error: Exception) -> InputError:
    """The sentence for what ``ray.init`` said."""
    detail = " ".join(str(error).split())
    reason = detail[:300] + ("..." if len(detail) > 300 else "")
    return InputError(
        f"Cannot join the Ray cluster at --ray-address {address} ({reason}); this machine has to be one of its nodes "
        "(`ray start --address=HOST:PORT`), with the same versions of Ray and Python and the same token."
    )


def offers(nodes: Nodes) -> list[dict[str, float]]:
    """CPUs and GPUs of the nodes that live and have any."""
    found = []
    for node in nodes:
        resources = node.get("Resources", {})
        offer = {"cpu": float(resources.get("CPU", 0)), "gpu": float(resources.get("GPU", 0))}
        if node.get("Alive") and any(offer.values()):
            found.append(offer)
    return found


def requests(
    cells: Sequence[str], nodes: Nodes, join: Join, shares: Mapping[str, float] | None
) -> dict[str, dict[str, float]]:
    """What each cell asks of the cluster.

    Args:
        cells: Ids.
        nodes: Of the cluster.
        join: How to use it.
        shares: Of a card, by cell; ``None``: cells on the CPU.

    Returns:
        ``{"cpu": ..., "gpu": ...}`` for each id.

    Raises:
        InputError: No node could ever run one of them.
    """
    found = {}
    offered = offers(nodes)
    for cell in cells:
        share = shares[cell] if shares is not None else 0.0
        fit = [offer for offer in offered if offer["gpu"] >= share and offer["cpu"] >= 1]
        if not fit:
            what = "a GPU and a CPU core" if share else "a CPU core"
            raise InputError(
                f"No node of the Ray cluster at {join.address} has {what} for a cell ({describe(nodes)}); start nodes "
                "that have, or change --device."
            )
        if share:
            cpus = min(math.floor(round(share * offer["cpu"] / offer["gpu"], 6)) for offer in fit)
        else:
            cpus = 1 if join.small else min(math.floor(offer["cpu"]) for offer in fit)
        found[cell] = {"cpu": max(1, cpus), "gpu": share}
    return found


def possible(request: Mapping[str, float], nodes: Nodes) -> bool:
    """Whether a living node is large enough for a request, busy or not."""
    return any(offer["cpu"] >= request["cpu"] and offer["gpu"] >= request["gpu"] for offer in offers(nodes))


def describe(nodes: Nodes) -> str:
    """``2 nodes: 4 CPUs; 8 CPUs, 1 GPU``."""
    offered = offers(nodes)
    parts = [f"{o['cpu']:g} CPUs" + (f", {o['gpu']:g} GPUs" if o["gpu"] else "") for o in offered]
    return f"{len(offered)} nodes: {'; '.join(parts)}" if parts else "it has no node with CPUs or GPUs"


@contextlib.contextmanager
def marker(output: Path) -> Iterator[str]:
    """A file with a random token in the output folder, by which workers know whether they see the same folder."""
    token = secrets.token_hex(16)
    path = _marker(output)
    path.write_text(token, encoding="utf-8")
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def sees(output: Path, token: str) -> bool:
    """Whether the folder of this name, here, is the one that the driver marked."""
    with contextlib.suppress(OSError, UnicodeDecodeError):
        return _marker(output).read_text(encoding="utf-8") == token
    return False


def _marker(output: Path) -> Path:
    return output / ".cluster"


def lost_sentence(error: str, node: str | None, attempts: int) -> str | None:
    """One sentence if an error says that a node, not only a worker, was lost.

    Args:
        error: Text of Ray's exception.
        node: What is known of the node that the cell ran on.
        attempts: How often the cell was started.
    """
    if not re.search(r"node (has |was |is )?(died|dead|terminated|preempted)|is unavailable: ", error):
        return None
    # Ray names the node that died; for one that has only fallen silent there is what the worker said of itself.
    named = re.search(r"[Nn]ode [Ii][Dd]:? (?P<id>[0-9a-f]{8,})", error)
    where = node or (f"node {named['id'][:12]}" if named else "its node")
    tries = f"{attempts} attempts" if attempts > 1 else "1 attempt"
    return (
        f"Lost {where} while the cell ran on it, after {tries}; the same command runs it again on the nodes that live"
    )
