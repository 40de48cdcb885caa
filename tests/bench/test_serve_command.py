"""`s2a-bench serve` as it is started: one service, asked, disturbed, and ended."""

from __future__ import annotations

import concurrent.futures
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import s2a
import torch

if importlib.util.find_spec("ray") is None or importlib.util.find_spec("prometheus_client") is None:
    pytest.skip("Ray Serve is not installed", allow_module_level=True)

from PIL import Image
from s2a_bench.cells.embedded import mini_vit
from s2a_bench.cli.main import main
from s2a_bench.inference.predict import predictions

pytestmark = [pytest.mark.ray, pytest.mark.timeout(240)]
_PATIENCE = 120.0


def save(folder: Path, method: str, classes: int, seed: int) -> None:
    torch.manual_seed(seed)
    adapted = s2a.attach(mini_vit(), s2a.method_config(method), classes)
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    image = {"size": 32, "mean": [0.5] * 3, "std": [0.25] * 3}
    s2a.save_pretrained(adapted, folder, labels=[f"{folder.name} {k}" for k in range(classes)], image=image)


def listeners() -> set[str]:
    """Addresses outside of loopback on which this machine listens, in the kernel's hexadecimal form."""
    found = set()
    for table, loopback in (
        ("tcp", ("0100007F",)),
        ("tcp6", (f"{'0' * 24}01000000", "0000000000000000FFFF00000100007F")),
    ):
        for line in Path("/proc/net", table).read_text().splitlines()[1:]:
            address, state = line.split()[1], line.split()[3]
            if state == "0A" and not address.startswith(loopback):
                found.add(address)
    return found


class Service:
    """The command, and a client of it."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.tasks = folder / "tasks"
        self.log = folder / "log"
        words = ["--tasks", str(self.tasks), "--port", str(self.port), "--threads", "1"]
        command = [sys.executable, "-m", "s2a_bench", "serve", *words]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)

    def wait(self) -> None:
        until = time.monotonic() + _PATIENCE
        while "Press Ctrl-C" not in self.log.read_text():
            assert self.process.poll() is None and time.monotonic() < until, self.log.read_text()
            time.sleep(0.2)

    def ask(self, method: str, path: str, body: bytes | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=100)
        try:
            connection.request(method, path, body, {"Content-Type": "image/png"} if body else {})
            answer = connection.getresponse()
            text = answer.read()
            return answer.status, text.decode() if path == "/metrics" else json.loads(text)
        finally:
            connection.close()

    def predict(self, task: str, image: Path) -> tuple[int, Any]:
        return self.ask("POST", f"/v1/tasks/{task}/predict?top=100", image.read_bytes())

    def right(self, task: str, image: Path) -> bool:
        """Whether the answer is that of `s2a-bench predict`."""
        status, answer = self.predict(task, image)
        (own,) = predictions(s2a.from_pretrained(self.tasks / task), [str(image)], 100, 1)
        top = [(each["label"], each["probability"]) for each in answer["predictions"][0]["top"]]
        same = [label for label, _ in top] == [label for label, _ in own.top]
        return status == 200 and same and all(abs(p - q) < 1e-5 for (_, p), (_, q) in zip(top, own.top, strict=True))


def replicas(service: Service) -> list[str]:
    """Process ids of the replicas that metrics are shown of."""
    return re.findall(r's2a_tasks_loaded\{replica="[^":]*:(\d+)"\}', service.ask("GET", "/metrics")[1])


@pytest.fixture(scope="module")
def service(tmp_path_factory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("service")
    save(folder / "tasks" / "birds", "s2a", 3, 0)
    save(folder / "tasks" / "cars", "lora", 4, 1)
    before = listeners()
    started = Service(folder)
    try:
        started.wait()
        started.opened = listeners() - before  # type: ignore[attr-defined]
        yield started
    finally:
        started.process.send_signal(signal.SIGTERM)
        started.process.wait(_PATIENCE)


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("images") / "a.png"
    Image.effect_noise((48, 40), 90).convert("RGB").save(path)
    return path


def test_each_task_answers_as_predict_does_and_nothing_is_open_to_other_machines(service, image):
    assert service.ask("GET", "/health") == (200, {"status": "ok"})
    assert all(service.right(task, image) for task in ("birds", "cars"))
    assert service.opened == set()


def test_a_task_that_comes_while_it_runs_is_served(service, image, tmp_path):
    assert service.predict("dogs", image)[0] == 404
    save(tmp_path / "dogs", "bias", 5, 2)
    shutil.move(tmp_path / "dogs", service.tasks / "dogs")
    assert service.right("dogs", image)
    assert [task["name"] for task in service.ask("GET", "/v1/tasks")[1]["tasks"]] == ["birds", "cars", "dogs"]


def test_a_killed_replica_loses_no_request(service, image):
    assert service.predict("birds", image)[0] == 200
    (pid,) = replicas(service)
    statuses: list[int] = []
    enough = threading.Event()

    def ask() -> None:
        while not enough.is_set():
            statuses.append(service.predict("birds", image)[0])

    def wait_for(count: int) -> None:
        until = time.monotonic() + _PATIENCE
        while len(statuses) < count and time.monotonic() < until:
            time.sleep(0.01)

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask) for _ in range(8)]
        wait_for(10)
        os.kill(int(pid), signal.SIGKILL)
        answered = len(statuses)
        wait_for(answered + 24)  # More than were under way: some were asked afterwards.
        enough.set()
        for each in asked:
            each.result()
    assert set(statuses) == {200} and len(statuses) >= answered + 24
    assert service.right("cars", image)
    # Whether the front or Ray asked again depends on how far a request was; that another process answers, does not.
    assert set(replicas(service)) - {pid}


def test_at_its_end_what_is_under_way_is_answered(service, image):
    clients = 16

    def ask(_: int) -> tuple[float, int, Any]:
        began = time.monotonic()
        try:
            return began, *service.predict("birds", image)
        except (OSError, http.client.HTTPException):  # it has ended
            return began, 0, None

    with concurrent.futures.ThreadPoolExecutor(clients) as pool:
        asked = pool.map(ask, range(300))
        time.sleep(0.2)
        ended = time.monotonic()
        service.process.send_signal(signal.SIGTERM)
        found = list(asked)
    assert service.process.wait(_PATIENCE) == 0
    # What a client began before may still reach the service after the signal: one request of each client at most.
    before = [(status, answer) for began, status, answer in found if began < ended]
    late = [answer for status, answer in before if status != 200]
    assert all(answer and "The service is ending." in str(answer) for answer in late) and len(late) <= clients
    assert len(before) - len(late) >= clients
    assert {status for _, status, _ in found} <= {200, 503, 0}
    assert service.log.read_text().endswith("The service has ended.\n")


def test_bad_input_is_said_at_once_and_nothing_is_started(capsys):
    words = ["serve", "gone", "--tasks", "nowhere", "--host", "0.0.0.0", "--port", "0", "--device", "gpu"]
    assert main(words) == 2
    said = capsys.readouterr().err
    for part in ("gone", "--tasks nowhere", "--host 0.0.0.0", "--port 0", "Unknown device 'gpu'"):
        assert part in said
