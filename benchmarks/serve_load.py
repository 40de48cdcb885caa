"""Load on `s2a-bench serve`, every answer checked against its task's own model; then the same on a process per task.

    python benchmarks/serve_load.py [--backbone mini_vit] [--tasks 10] [--requests 2000] [--clients 16] [--replicas 1]

One service on loopback, in turn under
- load: random tasks and images, one image a request
- faults: the same, while a replica is killed and an adapter's folder is replaced
- bad: the same, with 200 requests among them that must be refused
and then N processes with a model of their own each, fed through pipes, without HTTP: the same requests.
"""

from __future__ import annotations

import argparse
import functools
import http.client
import io
import json
import os
import random
import shutil
import signal
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import s2a
import torch
from multitask import METHODS, trained
from PIL import Image
from s2a_bench.cells import backbones
from s2a_bench.config import BackboneConfig
from s2a_bench.inference.predict import to_input
from s2a_bench.serving import service
from s2a_bench.serving.request import TOKEN_VARIABLE, Limits, ServeRequest, prepare_serve
from serve_processes import Call, Outcome, Right, in_threads, memory, run_processes, same

IMAGES = 40
TOKEN = "the token of this benchmark".replace(" ", "-")
AUTHORISED = {"Authorization": f"Bearer {TOKEN}"}
say = functools.partial(print, file=sys.stdout, flush=True)  # while Ray runs, what it prints itself goes nowhere


def make_adapters(folder: Path, args: argparse.Namespace, form: Any, model: Any) -> None:
    """A folder per task, methods in turn, and one more that is to replace the first."""
    image = {"size": form.size, "mean": list(form.mean), "std": list(form.std)}
    for number in [*range(args.tasks), args.tasks]:
        kind = list(METHODS)[number % len(METHODS)] if number < args.tasks else next(iter(METHODS))
        classes = 2 + number if number < args.tasks else 3
        adapted = trained(model, kind, classes, form.size, number)
        name = f"task{number}" if number < args.tasks else "../later"
        s2a.save_pretrained(
            adapted,
            folder / name,
            labels=[f"{number}.{k}" for k in range(classes)],
            image=image,
        )


def make_images(side: int) -> list[bytes]:
    """JPEG files of noise with shapes, larger than the model's input."""
    rng, found = np.random.default_rng(0), []
    for _ in range(IMAGES):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        file = io.BytesIO()
        coarse.resize((3 * side, 2 * side), Image.Resampling.BICUBIC).save(file, "JPEG")
        found.append(file.getvalue())
    return found


def expected(folder: Path, weights: str | None, images: Sequence[bytes]) -> list[dict[str, float]]:
    """Per image, label -> probability by the task's own model."""
    adapted = s2a.from_pretrained(folder, weights=weights)
    inputs = torch.stack([to_input(data, "image", adapted.transform()) for data in images])
    with torch.no_grad():
        rows = torch.cat([adapted(part) for part in inputs.split(8)]).double().softmax(1).tolist()
    return [dict(zip(adapted.labels or [], row, strict=True)) for row in rows]


class Client:
    """A connection that asks again where the service says "in a moment", or is gone."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._open()

    def _open(self) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=60)

    def ask(self, path: str, body: bytes, kind: str) -> tuple[int, Any, int]:
        """Status, answer, tries."""
        status = tries = 0
        for tries in range(1, 30):
            try:
                self.connection.request("POST", path, body, {"Content-Type": kind, **AUTHORISED})
                answer = self.connection.getresponse()
                status, text = answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                self.connection.close()
                self._open()
                status, text = 0, b""
            if status not in (0, 503):
                return status, json.loads(text), tries
            time.sleep(0.2)
        return status, None, tries


def run_load(
    port: int,
    calls: Sequence[Call],
    images: Sequence[bytes],
    right: Right,
    clients: int,
) -> tuple[list[Outcome], float]:
    """All calls, by that many threads; outcomes in the calls' order, and seconds of all together."""
    outcomes: list[Outcome | None] = [None] * len(calls)
    left = iter(range(len(calls)))
    lock = threading.Lock()

    def work() -> None:
        client = Client(port)
        while True:
            with lock:
                number = next(left, None)
            if number is None:
                return
            outcomes[number] = ask(client, calls[number])

    def ask(client: Client, call: Call) -> Outcome:
        began = time.perf_counter()
        if call.bad is not None:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            try:
                status = call.bad(connection)
            finally:
                connection.close()
            wrong = None if status == call.status else f"status {status} for a bad request, {call.status} expected"
            return Outcome(time.perf_counter() - began, status, 1, wrong)
        allowed = right[call.task]  # looked up before the request: a replaced adapter may answer either way until then
        path = f"/v1/tasks/{call.task}/predict?top=1000"
        status, answer, tries = client.ask(path, images[call.image], "image/jpeg")
        seconds = time.perf_counter() - began
        if status != 200:
            return Outcome(seconds, status, tries, f"status {status}: {answer}")
        found = {each["label"]: each["probability"] for each in answer["predictions"][0]["top"]}
        if not any(same(found, each[call.image]) for each in [*allowed, *right[call.task]]):
            return Outcome(seconds, status, tries, f"{call.task}, image {call.image}: {found}")
        return Outcome(seconds, status, tries, None)

    seconds = in_threads(work, clients)
    return [each for each in outcomes if each is not None], seconds


def show(title: str, outcomes: Sequence[Outcome], seconds: float) -> None:
    """A line of numbers, and what was wrong."""
    good = sorted(each.seconds for each in outcomes if each.status == 200)
    cut = statistics.quantiles(good, n=100)
    wrong = [each.wrong for each in outcomes if each.wrong]
    say(
        f"{title:<24}{len(outcomes):>6} requests  {len(good) / seconds:>6.1f} answers/s  ms: "
        f"median {1e3 * cut[49]:.0f}, 90 % {1e3 * cut[89]:.0f}, 99 % {1e3 * cut[98]:.0f}, most {1e3 * good[-1]:.0f}  "
        f"tries above one: {sum(each.tries - 1 for each in outcomes)}  wrong or lost: {len(wrong)}"
    )
    for sentence in wrong[:5]:
        say(f"    {sentence}")


def bad_calls(images: Sequence[bytes], count: int) -> list[Call]:
    """Requests that must be refused, of all kinds in turn."""

    def send(path: str, body: bytes, headers: dict[str, str], method: str = "POST") -> Callable[[Any], int]:
        def call(connection: http.client.HTTPConnection) -> int:
            try:
                connection.request(method, path, body, AUTHORISED | headers)
            except BrokenPipeError:  # refused before all was sent; the answer is there
                pass
            answer = connection.getresponse()
            answer.read()
            return answer.status

        return call

    task, jpeg, as_json = (
        "/v1/tasks/task0/predict",
        {"Content-Type": "image/jpeg"},
        {"Content-Type": "application/json"},
    )
    deep = b'{"images":' + b"[" * 100_000
    huge = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(huge, "PNG")  # 400 million pixels in some kB
    kinds = [
        (send(task, images[0][: len(images[0]) // 2], jpeg), 422),
        (send(task, b"no image", jpeg), 422),
        (send(task, b"", jpeg), 400),
        (send(task, huge.getvalue(), {"Content-Type": "image/png"}), 422),
        (send(task, b"x" * 21_000_000, jpeg), 413),
        (send(task, images[0], {"Content-Type": "text/plain"}), 415),
        (send(task, images[0], {}), 415),
        (send(task, b"{", as_json), 400),
        (send(task, deep, as_json), 400),
        (send(task, b'{"images": [{"path": "/etc/passwd"}]}', as_json), 403),
        (send(task, b'{"images": [{"url": "http://169.254.169.254/"}]}', as_json), 403),
        (send(task, json.dumps({"images": [{"base64": "AA=="}] * 33}).encode(), as_json), 413),
        (send(task + "?top=0", images[0], jpeg), 400),
        (send("/v1/tasks/nothing/predict", images[0], jpeg), 404),
        (send("/v1/tasks/..%2Ftask0/predict", images[0], jpeg), 404),
        (send(task, b"", {}, "GET"), 405),
        (send(task, images[0], jpeg | {"Authorization": "Bearer " + TOKEN[::-1]}), 401),
        (send(task, images[0], jpeg | {"Authorization": ""}), 401),
    ]
    return [Call("", 0, *kinds[number % len(kinds)]) for number in range(count)]


def metrics(port: int) -> dict[str, float]:
    """Name with labels -> value."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("GET", "/metrics", headers=AUTHORISED)
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def replicas(port: int) -> list[int]:
    """Process numbers of replicas that have answered."""
    return [int(key.split('"')[1].rpartition(":")[2]) for key in metrics(port) if key.startswith("s2a_tasks_loaded{")]


def main() -> None:
    """Measures and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", default="mini_vit")
    parser.add_argument("--weights")
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--tasks", type=int, default=10)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--port", type=int, default=8765)
    args = parser.parse_args()
    torch.manual_seed(0)
    config = BackboneConfig(args.backbone, weights=args.weights, image_size=args.image_size)
    model, form = backbones.create(config, 0)
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place, "tasks")
        make_adapters(folder, args, form, model.eval())
        images = make_images(form.size)
        names = [f"task{number}" for number in range(args.tasks)]
        right = {name: [expected(folder / name, args.weights, images)] for name in names}
        later = expected(Path(place, "later"), args.weights, images)
        os.environ[TOKEN_VARIABLE] = TOKEN
        request = prepare_serve(
            [],
            tasks=folder,
            weights=None if args.weights is None else Path(args.weights),
            port=args.port,
            replicas=args.replicas,
            threads=args.threads,
            limits=Limits(waiting=1000),
        )
        rng = random.Random(0)
        calls = [Call(rng.choice(names), rng.randrange(IMAGES)) for _ in range(args.requests)]
        began = time.perf_counter()
        with service.running(request):
            say(f"started in {time.perf_counter() - began:.0f} s; {request.replicas} x {request.threads} threads")
            measure(args, request, folder, calls, images, right, later)
        found, seconds, used = run_processes(
            folder, args.weights, calls, images, right | {"task0": [later]}, args.clients
        )
        show(f"{args.tasks} processes, pipes", found, seconds)
        say(f"memory of these {args.tasks} processes: {used:.0f} MB")


def measure(
    args: argparse.Namespace,
    request: ServeRequest,
    folder: Path,
    calls: list[Call],
    images: list[bytes],
    right: Right,
    later: list[dict[str, float]],
) -> None:
    """Everything that is asked of the service."""
    port = request.port
    run_load(port, calls[:200], images, right, args.clients)  # loads the tasks
    show("load", *run_load(port, calls, images, right, args.clients))
    counted = metrics(port)
    size = counted["s2a_batch_images_sum"] / counted["s2a_batch_images_count"]
    used = memory(replicas(port))
    say(f"images in a pass, as an image sees it: {size:.1f}; memory of the models' processes: {used:.0f} MB")
    show("one client", *run_load(port, calls[: args.requests // 10], images, right, 1))
    before = replicas(port)

    def disturb() -> None:
        time.sleep(1.0)
        os.kill(before[0], signal.SIGKILL)
        time.sleep(2.0)
        # Until the folder has moved the former answers are right, and from then on for requests under way only.
        right["task0"].append(later)
        shutil.move(folder / "task0", folder / ".former")
        shutil.move(folder.parent / "later", folder / "task0")
        right["task0"] = [later]

    thread = threading.Thread(target=disturb)
    thread.start()
    show("killed and replaced", *run_load(port, calls, images, right, args.clients))
    thread.join()
    say(f"replicas {before}, then {replicas(port)}; given to another one: {metrics(port)['s2a_retries_total']:.0f}")
    mixed = calls[: args.requests // 2] + bad_calls(images, 200)
    random.Random(1).shuffle(mixed)
    show("with 200 bad requests", *run_load(port, mixed, images, right, args.clients))
    statuses = {
        k: v for k, v in metrics(port).items() if k.startswith("s2a_requests_total") and 'status="200"' not in k
    }
    say("refused, by task and status: " + ", ".join(f"{k.partition('{')[2][:-1]} {v:.0f}" for k, v in statuses.items()))


if __name__ == "__main__":
    main()
