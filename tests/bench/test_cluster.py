"""A Ray cluster of somebody else's: its address, what its nodes offer, and a real one of which a node is killed."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

import pytest
from s2a_bench.cells import record
from s2a_bench.cells.outputs import Keep
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.events import Listener
from s2a_bench.sweeps.local import run_locally
from s2a_bench.sweeps.plan import Plan, identify, plan
from s2a_bench.sweeps.ray import cluster
from s2a_bench.sweeps.ray.cluster import Join, check_address, marker, requests, sees
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.resources import Placement, ResourceRequest
from s2a_bench.sweeps.workers import Workers

T = TypeVar("T")


def node(cpus: float, gpus: float = 0, alive: bool = True) -> dict:
    return {"Alive": alive, "Resources": {"CPU": cpus, "memory": 1e9} | ({"GPU": gpus} if gpus else {})}


@pytest.fixture
def listening():
    """A server that accepts, and does with the connection what the test says."""
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"

    def start(answer: Callable[[socket.socket], object]) -> str:
        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        return address

    yield start
    server.close()


@pytest.mark.parametrize("address", ["", "head", "head:", "head:0", "head:70000", "ray://head:10001", "a b:1", "h:٣"])
def test_what_is_no_address_is_bad_input(address):
    with pytest.raises(InputError, match=re.escape(repr(address)) + ".*HOST:PORT"):
        check_address(address)


def test_an_address_where_nothing_listens_is_bad_input_at_once():
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    started = time.monotonic()
    with pytest.raises(InputError, match=rf"127.0.0.1:{free} .*ray start --head"):
        check_address(f"127.0.0.1:{free}")
    assert time.monotonic() - started < 30


def test_another_server_is_no_ray_head(listening):
    address = listening(lambda connection: connection.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n"))
    with pytest.raises(InputError, match="no Ray head"):
        check_address(address)


def test_a_server_that_says_nothing_is_no_ray_head(listening, monkeypatch):
    monkeypatch.setattr(cluster, "_CONNECT_SECONDS", 0.3)
    with pytest.raises(InputError, match=r"within 0\.3 s"):
        check_address(listening(lambda connection: time.sleep(2)))


def test_wishes_that_exclude_each_other_are_bad_input():
    with pytest.raises(InputError, match="--serial"):
        ResourceRequest(ray_address="auto", serial=True).check("cpu")


def test_cells_ask_for_what_the_nodes_have():
    nodes = [node(4), node(8), node(16, 2), node(64, alive=False), node(0)]
    ask = lambda join, shares: requests(["a"], nodes, join, shares)["a"]  # noqa: E731
    assert ask(Join("x"), None) == {"cpu": 1, "gpu": 0}
    assert ask(Join("x", small=False), None) == {"cpu": 4, "gpu": 0}, "a whole node, of the smallest kind"
    assert ask(Join("x"), {"a": 0.5}) == {"cpu": 4, "gpu": 0.5}, "half of a card that goes with 8 cores"
    assert ask(Join("x"), {"a": 0.01}) == {"cpu": 1, "gpu": 0.01}


@pytest.mark.parametrize("nodes", [[], [node(0)], [node(8, alive=False)], [node(0, 1)]])
def test_a_cluster_without_room_is_bad_input(nodes):
    with pytest.raises(InputError, match="--device"):
        requests(["a"], nodes, Join("head:1"), {"a": 1.0})


def test_only_the_marked_folder_is_the_drivers(tmp_path):
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    other.mkdir()
    with marker(mine) as token, marker(other) as another:
        assert token != another
        assert sees(mine, token)
        assert not sees(other, token), "a folder of the same name on another machine"
        assert not sees(tmp_path / "missing", token)
    assert not list(mine.iterdir())
    assert not sees(mine, token)


def test_a_lost_node_is_told_from_a_dead_worker():
    died = "The actor died because its node has died. Node Id: 5a1c0ffee1234567"
    silent = "The actor 08378fe9 is unavailable: The actor is temporarily unavailable: RpcError: Socket closed"
    for text in (died, silent):
        sentence = cluster.lost_sentence(text, "node 5a1c0ffee123 (10.0.0.7)", 3)
        assert sentence is not None and "10.0.0.7" in sentence and "3 attempts" in sentence
    assert "5a1c0ffee123" in (cluster.lost_sentence(died, None, 1) or "")
    assert cluster.lost_sentence("Worker exit detail: the worker process received SIGKILL.", "n", 1) is None


class Heard(Listener):
    """Remembers events; may be told what to do at the end of an epoch."""

    def __init__(self, at_epoch: Callable[[str, Mapping], None] = lambda cell, metrics: None) -> None:
        self.events: list[tuple[str, str]] = []
        self.at_epoch = at_epoch

    def started(self, cell_id: str) -> None:
        self.events.append(("started", cell_id))

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        self.at_epoch(cell_id, metrics)

    def finished(self, record: Record) -> None:
        self.events.append((record.status, record.cell_id))


def few(seeds: tuple[int, ...], epochs: int = 2) -> dict[str, CellConfig]:
    request = Request(
        datasets=("digits",), methods=("s2a", "bias"), seeds=seeds, random_weights=True, limit_train=24, limit_test=24
    )
    recipe = TrainConfig(epochs=epochs, warmup_epochs=0, batch_size=8)
    return identify(dataclasses.replace(cell, train=recipe, threads=1) for cell in grid.expand(request))


def same_as_serial(found: Plan, output: Path, serial: Path) -> None:
    """Records of a cluster against those of this process: same ids, same accuracies."""
    run_locally(plan(found.cells, serial), [], Keep(serial))
    for cell_id in found.cells:
        theirs, ours = (record.read(record.record_path(place, cell_id)) for place in (output, serial))
        assert theirs.status == ours.status == "done", theirs.error
        assert theirs.accuracy == ours.accuracy
        assert [p["loss"] for p in theirs.curve] == pytest.approx([p["loss"] for p in ours.curve])


def patiently(start: Callable[[], T]) -> T:
    """Starts one of Ray's nodes; Ray gives it 30 seconds, which a busy machine may not have for it."""
    for _ in range(3):
        with contextlib.suppress(Exception):
            return start()
    pytest.skip("Ray started no node here, three times in a row")


@pytest.fixture
def local_cluster(tmp_path):
    """A head without CPUs and a node with one, on loopback behind a token; and a way to add a node that is blind.

    A blind node has a mount namespace in which the output folder is another, empty one: as on another machine.
    """
    for name, value in {"RAY_AUTH_MODE": "token", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}.items():
        os.environ.setdefault(name, value)  # as ``pool`` does it: Ray reads them once in a process
    os.environ.setdefault("RAY_AUTH_TOKEN", "ab" * 32)
    from ray.cluster_utils import Cluster

    size = 80_000_000
    folder = tempfile.mkdtemp(prefix="s2a-", dir="/tmp")  # names of Unix sockets are short
    head = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": size, "temp_dir": folder}
    local = patiently(lambda: Cluster(initialize_head=True, head_node_args=head))
    blind: list[subprocess.Popen[bytes]] = []

    def add_blind(folder: Path) -> None:
        # As ``Cluster.add_node`` does it, which cannot put the node into another namespace.
        script = tmp_path / "blind.py"
        script.write_text(
            "import time\n"
            "from ray._private.node import Node\n"
            "from ray._private.parameter import RayParams\n"
            f"params = RayParams(num_cpus=1, num_gpus=0, object_store_memory={size}, include_log_monitor=False)\n"
            f"params.update(redis_address={local.redis_address!r}, gcs_address={local.gcs_address!r})\n"
            "params.update(min_worker_port=0, max_worker_port=0, node_manager_port=0)\n"
            "params.dashboard_agent_listen_port = None\n"
            "Node(params, head=False, shutdown_at_exit=True, spawn_reaper=True)\n"
            "time.sleep(3600)\n"
        )
        hidden = f"mount -t tmpfs none '{folder}' && exec {sys.executable} '{script}'"
        command = ["unshare", "--mount", "sh", "-c", hidden]
        with (tmp_path / "blind.log").open("wb") as log:
            blind.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    yield local, add_blind
    for process in blind:
        os.kill(process.pid, signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    local.shutdown()
    shutil.rmtree(folder, ignore_errors=True)


def parent(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("PPid:")))


def can_unshare() -> bool:
    try:
        return subprocess.run(["unshare", "--mount", "true"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False


@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")  # Ray's own, about its dependencies
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.skipif(not can_unshare(), reason="needs the right to make a mount namespace (root)")
@pytest.mark.timeout(900)  # a busy machine starts Ray's processes slowly
def test_a_killed_node_loses_nothing_and_a_worker_without_the_folder_sends_its_record(tmp_path, local_cluster):
    from s2a_bench.sweeps.ray.pool import run_with_ray

    local, add_blind = local_cluster
    output = tmp_path / "output"
    (output / "records").mkdir(parents=True)
    sighted = patiently(lambda: local.add_node(num_cpus=1, object_store_memory=80_000_000))
    raylet = sighted.all_processes["raylet"][0].process.pid
    killed: list[str] = []

    def kill(cell_id: str, metrics: Mapping[str, float]) -> None:
        if not killed and parent(int(metrics["pid"])) == raylet:
            killed.append(cell_id)
            add_blind(output)
            local.remove_node(sighted, allow_graceful=False)

    found = plan(few(seeds=(0,), epochs=3), output)
    heard = Heard(kill)
    workers = Workers(1, 1)  # of this machine, which is not used
    run_with_ray(found, [heard], Keep(output, adapters=True), Placement(workers, join=Join(local.address)))

    assert killed, "a cell ran on the node that was to be killed"
    assert plan(found.cells, output).todo == []
    assert sorted(heard.events) == sorted((event, c) for event in ("started", "done") for c in found.cells)
    sent = record.read(record.record_path(output, killed[0]))
    assert any("does not see the output folder" in note for note in sent.notes), "it ran again, on the blind node"
    assert not list(output.glob("adapters/*")), "what was written there went elsewhere"
    assert {path.name for path in output.iterdir()} <= {"records", "checkpoints", "adapters"}
    same_as_serial(found, output, tmp_path / "serial")


@pytest.mark.full
@pytest.mark.ray
@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(900)  # a busy machine starts Ray's processes slowly
def test_a_head_that_dies_ends_the_driver_with_a_sentence_and_keeps_the_records(tmp_path, local_cluster):
    local, _ = local_cluster
    patiently(lambda: local.add_node(num_cpus=1, object_store_memory=80_000_000))
    output = tmp_path / "out"
    line = [sys.executable, "-m", "s2a_bench", "sweep", "--ray-address", local.address, "--output", str(output)]
    line += ["--random-weights", "--datasets", "digits", "--methods", "linear", "s2a", "--limit-train", "48"]
    line += ["--limit-test", "48", "--epochs", "5000", "--batch-size", "8", "--checkpoint-every", "0"]
    short = [word if word != "5000" else "2" for word in line]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    assert subprocess.run(short, env=environment, capture_output=True, check=False, timeout=300).returncode == 0
    before = {path: path.read_bytes() for path in (output / "records").iterdir()}
    with (tmp_path / "log").open("wb") as log:
        driver = subprocess.Popen(line, env=environment, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 200
        while not list(output.glob("checkpoints/*.pt")):
            assert driver.poll() is None and time.monotonic() < end, (tmp_path / "log").read_text()
            time.sleep(0.1)
        os.kill(local.head_node.all_processes["gcs_server"][0].process.pid, signal.SIGKILL)
        assert driver.wait(timeout=120) == 1
    finally:
        driver.kill()
    text = (tmp_path / "log").read_text()
    assert f"The head of the Ray cluster at {local.address} has not answered" in text and "same command" in text
    assert "Traceback" not in text
    assert before.items() <= {path: path.read_bytes() for path in (output / "records").iterdir()}.items()


def test_a_head_is_lost_when_it_has_been_silent_for_long_and_not_before():
    heard: list[str] = []
    server = socket.create_server(("127.0.0.1", 0))
    address = f"127.0.0.1:{server.getsockname()[1]}"
    lost, stuck = threading.Event(), threading.Event()
    with cluster.HeadWatch(address, lost.set, stuck.set, silence=1.0) as watch:
        assert watch.answers() and not lost.wait(1.5)
        server.close()
        assert not watch.answers()
        assert lost.wait(10) and stuck.wait(10), "nobody left the block"
    gone = threading.Event()
    with cluster.HeadWatch(address, gone.set, lambda: heard.append("stuck"), silence=0.2):
        assert gone.wait(10)
    assert not heard, "the block was left in time"


class FakeTrial:
    def __init__(self, asked: dict[str, float], finished: bool = False) -> None:
        self.config = {"cell": {"id": "c", "asked": asked}}
        self.finished = finished

    def is_finished(self) -> bool:
        return self.finished


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_a_sweep_ends_when_no_node_is_left_for_it_and_not_before(tmp_path, monkeypatch):
    import ray
    from s2a_bench.sweeps.ray import callbacks

    alive: list[dict] = []
    clock = [0.0]
    monkeypatch.setattr(ray, "nodes", lambda: alive)
    monkeypatch.setattr(callbacks, "time", type("Clock", (), {"monotonic": staticmethod(lambda: clock[0])}))
    watch = callbacks.SweepCallback(Plan({}, frozenset(), frozenset(), ()), tmp_path, [], Join("head:1", patience=60))
    trials: list[Any] = [FakeTrial({"cpu": 2, "gpu": 0}), FakeTrial({"cpu": 99, "gpu": 0}, finished=True)]

    def at(seconds: float, *nodes: dict) -> None:
        clock[0], alive[:] = seconds, nodes
        watch.on_step_end(0, trials)

    at(10, node(2))
    at(20, node(1))
    at(60, node(1), node(2, alive=False))
    at(69, node(4))  # one comes back
    at(120)
    with pytest.raises(cluster.ClusterError, match="head:1 has lost every node that could run the 1 cell left"):
        at(130)
    trials[0].finished = True
    at(500)
