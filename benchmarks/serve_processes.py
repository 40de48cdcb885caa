"""A process per task with a model of its own, fed through pipes: what `serve_load.py` compares the service with."""

from __future__ import annotations

import dataclasses
import http.client
import multiprocessing
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import s2a
import torch
from s2a_bench.inference.predict import to_input

Right = dict[str, list[list[dict[str, float]]]]
"""Task -> answers that are right now, each a list over the images of label -> probability."""
TOLERANCE = 1e-5


@dataclasses.dataclass
class Outcome:
    """What a client saw of one request: seconds, HTTP status at the end, tries, and what was wrong, if anything."""

    seconds: float
    status: int
    tries: int
    wrong: str | None


@dataclasses.dataclass
class Call:
    """A request: a task's image, or one that is bad, with the status that it must get."""

    task: str
    image: int
    bad: Callable[[http.client.HTTPConnection], int] | None = None
    status: int = 200


def in_threads(work: Callable[[], None], count: int) -> float:
    """Seconds in which that many threads have all done the same work."""
    began = time.perf_counter()
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


def same(found: dict[str, float], wanted: dict[str, float]) -> bool:
    return found.keys() == wanted.keys() and all(abs(found[k] - wanted[k]) < TOLERANCE for k in wanted)


def memory(pids: Sequence[int]) -> float:
    """MB that only these processes have, shared pages in parts."""
    lines = [Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines() for pid in pids]
    return sum(int(line.split()[1]) for text in lines for line in text if line.startswith("Pss:")) / 1e3


def serve_own(folder: str, weights: str | None, pipe: Any) -> None:
    """A process of its own for one task: image files in, probabilities out."""
    torch.set_num_threads(1)
    adapted = s2a.from_pretrained(folder, weights=weights)
    transform = adapted.transform()
    pipe.send("ready")
    while (data := pipe.recv()) is not None:
        with torch.no_grad():
            row = adapted(to_input(data, "image", transform)[None])[0].double().softmax(0)
        pipe.send(dict(zip(adapted.labels or [], row.tolist(), strict=True)))


def run_processes(
    folder: Path, weights: str | None, calls: Sequence[Call], images: Sequence[bytes], right: Any, clients: int
) -> tuple[list[Outcome], float, float]:
    """The same calls on a process per task."""
    context = multiprocessing.get_context("spawn")
    pipes, processes, locks = {}, [], {}
    for task in right:
        ours, theirs = context.Pipe()
        process = context.Process(target=serve_own, args=(str(folder / task), weights, theirs), daemon=True)
        process.start()
        pipes[task], locks[task] = ours, threading.Lock()
        processes.append(process)
    for pipe in pipes.values():
        pipe.recv()
    outcomes: list[Outcome] = []
    left, lock = iter(calls), threading.Lock()

    def work() -> None:
        while True:
            with lock:
                call = next(left, None)
            if call is None:
                return
            began = time.perf_counter()
            with locks[call.task]:
                pipes[call.task].send(images[call.image])
                found = pipes[call.task].recv()
            ok = any(same(found, each[call.image]) for each in right[call.task])
            outcomes.append(Outcome(time.perf_counter() - began, 200, 1, None if ok else f"{call.task}: {found}"))

    seconds = in_threads(work, clients)
    used = memory([process.pid or 0 for process in processes])
    for pipe in pipes.values():
        pipe.send(None)
    for process in processes:
        process.join()
    return outcomes, seconds, used
