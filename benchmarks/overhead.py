"""What the harness costs beside training: start to the first step, per cell on a warm worker, and with nothing to do.

``python benchmarks/overhead.py [CELLS]`` prints a Markdown table; CELLS (500) is the size of the sweep that is done
already. Wall-clock seconds, and in brackets seconds of processor time of everything that was started, which other work
on the machine changes less.
"""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from s2a_bench import Listener

METHODS = ("full", "linear", "bias", "lora", "s2a")
REPEATS = 4


class Stopwatch(Listener):
    """A listener that notes when things happen."""

    def __init__(self) -> None:
        self.first_step: float | None = None
        self.begun: dict[str, float] = {}
        self.cells: list[tuple[float, float]] = []  # seconds since the last cell ended, seconds of the loop
        self._last = 0.0

    def started(self, cell_id: str) -> None:
        """Notes the first start."""
        self.begun[cell_id] = time.time()
        self._last = self._last or time.time()

    def epoch(self, cell_id: str, metrics: Mapping[str, float]) -> None:
        """The first epoch of all tells when the first step began."""
        if self.first_step is None:
            self.first_step = time.time() - metrics["seconds"]

    def finished(self, record: Any) -> None:
        """Notes the time since the last cell's end, which is all that this one cost."""
        assert record.status == "done", record.error
        now = time.time()
        self.cells.append((now - self._last, record.seconds))
        self._last = now


def child(mode: str, began: float, output: Path) -> None:
    """A sweep of a few small cells on one worker, in this fresh process; prints JSON."""
    from s2a_bench.cells.outputs import Keep
    from s2a_bench.sweeps import grid, output_lock
    from s2a_bench.sweeps import plan as sweep
    from s2a_bench.sweeps.local import run_locally
    from s2a_bench.sweeps.ray import pool
    from s2a_bench.sweeps.request import Request
    from s2a_bench.sweeps.resources import Placement
    from s2a_bench.sweeps.workers import Workers

    request = Request(
        datasets=("digits",),
        methods=("bias",),
        seeds=tuple(range(REPEATS)),
        epochs=2,
        limit_train=256,
        limit_test=64,
        settings=("train.warmup_epochs=1",),
    )
    cells = sweep.identify(grid.expand(request))
    watch = Stopwatch()
    with output_lock.only_writer(output):
        plan = sweep.plan(cells, output)
        if mode == "ray":
            pool.run_with_ray(plan, [watch], Keep(output), Placement(Workers(1, 1)))
        else:
            run_locally(plan, [watch], Keep(output))
    assert watch.first_step is not None
    warm = [whole - loop for whole, loop in watch.cells[1:]]
    print(json.dumps({"first_step": watch.first_step - began, "warm": warm}))


def processor_seconds() -> float:
    """Of all children that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def call(*arguments: str) -> tuple[str, float, float]:
    """Output, wall-clock and processor seconds of a fresh Python."""
    began, used = time.perf_counter(), processor_seconds()
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout, time.perf_counter() - began, processor_seconds() - used


def prepare(count: int, output: Path) -> list[str]:
    """Records of ``count`` cells as if they had run; returns the sweep's arguments."""
    from s2a_bench.cells import record, run
    from s2a_bench.cells.outputs import Keep
    from s2a_bench.data.table.lookup import SUITES
    from s2a_bench.sweeps import grid
    from s2a_bench.sweeps import plan as sweep

    names = SUITES["mini"].datasets
    seeds = [str(seed) for seed in range(-(-count // (len(names) * len(METHODS))))]
    request = grid.Request(
        datasets=names, methods=METHODS, seeds=tuple(map(int, seeds)), epochs=80, limit_train=64, limit_test=64
    )
    cells = sweep.identify(grid.expand(request))
    short = dataclasses.replace(next(iter(cells.values())))
    short = dataclasses.replace(short, train=dataclasses.replace(short.train, epochs=1, warmup_epochs=0))
    template = run.run(short, keep=Keep(output))
    curve = [{**template.curve[0], "epoch": epoch} for epoch in range(1, 81)]
    for number, (cell_id, cell) in enumerate(cells.items()):
        made = dataclasses.replace(
            template,
            cell_id=cell_id,
            dataset=cell.data.dataset,
            method=cell.method.name,
            seed=cell.seed,
            curve=curve,
            epochs=80,
            accuracy=50.0 + number % 40,
        )
        record.write(made, output)
    shape = ["--datasets", *names, "--methods", *METHODS, "--seeds", *seeds]
    return [*shape, "--epochs", "80", "--limit-train", "64", "--limit-test", "64", "--output", str(output)]


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    if arguments[:1] == ["child"]:
        child(arguments[1], float(arguments[2]), Path(arguments[3]))
        return
    count = int(arguments[0]) if arguments else 500
    from s2a_bench.cells import provenance

    hardware = provenance.hardware("cpu")
    print(f"{hardware['cpu']}, {hardware['cores']} cores, {hardware['threads']} threads, load {os.getloadavg()[0]:.1f}")
    print("\n| what | wall (processor) seconds | target |\n|---|---|---|")
    with tempfile.TemporaryDirectory() as scratch:
        for mode in ("serial", "ray"):
            out, wall, used = call(__file__, "child", mode, str(time.time()), f"{scratch}/{mode}")
            found = json.loads(out.splitlines()[-1])
            print(f"| {mode}: process start to first step | {found['first_step']:.1f} | |")
            warm = found["warm"]
            print(
                f"| {mode}: overhead of a cell on a warm worker, median of {len(warm)} (largest) | "
                f"{statistics.median(warm):.2f} ({max(warm):.2f}) | < 2 s |"
            )
            print(f"| {mode}: the sweep of {REPEATS} cells in all | {wall:.1f} ({used:.1f}) | |", flush=True)
        output = Path(scratch, "done")
        sweep = ["-m", "s2a_bench", "sweep", *prepare(count, output)]
        # The first run also writes all of these records into a new MLflow store.
        runs = (("first sweep", [], ""), ("second sweep", [], "< 15 s"), ("dry run", ["--dry-run"], "< 15 s"))
        for what, extra, target in runs:
            out, wall, used = call(*sweep, *extra)
            assert "nothing to run" in out, out
            print(f"| {what} with all of {count} cells done | {wall:.1f} ({used:.1f}) | {target} |", flush=True)
    print(f"\nload at the end {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main(sys.argv[1:])
