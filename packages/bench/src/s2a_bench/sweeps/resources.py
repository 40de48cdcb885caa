"""Where the cells of a sweep run: how many at once on this machine, on which share of a GPU, or on which cluster."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.sweeps.plan import Plan
from s2a_bench.sweeps.ray import cluster
from s2a_bench.sweeps.ray.cluster import Join
from s2a_bench.sweeps.workers import WORKER_BYTES, Workers, choose_workers


@dataclasses.dataclass(frozen=True)
class ResourceRequest:
    """Limits given by the user.

    Attributes:
        ray_address: Of a running Ray cluster; ``None``: this machine.
        gpu_memory_gb: Memory of a GPU, in GB; ``None``: what this machine's has.
        max_concurrent: Cells at once; ``None`` chooses.
        serial: In this process, one after the other.
    """

    ray_address: str | None = None
    gpu_memory_gb: float | None = None
    max_concurrent: int | None = None
    serial: bool = False

    def check(self, device: str) -> None:
        """Finds what is wrong before anything else is done.

        Raises:
            InputError: An address where no cluster is, a size that is none, two limits that exclude each other, or
                one that can have no effect.
        """
        mistakes = Mistakes()
        with mistakes.collecting():
            self._check_gpu_memory(device)
        with mistakes.collecting():
            self._check_side_by_side()
        with mistakes.collecting():
            self._check_cluster()
        mistakes.raise_all()

    def _check_gpu_memory(self, device: str) -> None:
        size = self.gpu_memory_gb
        if size is not None and not (math.isfinite(size) and size > 0):
            raise InputError(f"--gpu-memory-gb {size:g} must be a positive number: the memory of a GPU in GB, 80 say.")
        if size is not None and not device.startswith("cuda"):
            raise InputError(f"--gpu-memory-gb is about GPUs, but --device is {device}; leave one of them out.")

    def _check_side_by_side(self) -> None:
        """Refuses limits on what runs side by side where nothing does."""
        given = [
            flag
            for flag, value in (("--max-concurrent", self.max_concurrent), ("--gpu-memory-gb", self.gpu_memory_gb))
            if value is not None
        ]
        if not given:
            return
        flags = " and ".join(given)
        if self.serial:
            raise InputError(
                f"{flags} with --serial can have no effect: the cells run one after the other; leave one of them out."
            )
        if find_spec("ray") is None and self.max_concurrent != 1:
            raise InputError(
                f"{flags} can have no effect: Ray is not installed, and the cells run one after the other; leave it "
                "out, or pip install 's2a-bench[ray]'."
            )

    def _check_cluster(self) -> None:
        if self.ray_address is None:
            return
        if self.serial:
            raise InputError("--serial runs the cells in this process, --ray-address on a cluster; give one of them.")
        if find_spec("ray") is None:
            raise InputError("--ray-address needs Ray, which is not installed: pip install 's2a-bench[ray]'.")
        cluster.check_address(self.ray_address)


@dataclasses.dataclass(frozen=True)
class Placement:
    """Where the missing cells of a plan run.

    Attributes:
        workers: On this machine.
        shares: Of a GPU, by cell; ``None``: as ``workers`` says.
        join: The cluster to use in place of this machine.
        sentence: What the user should know about it; empty: nothing.
    """

    workers: Workers
    shares: Mapping[str, float] | None = None
    join: Join | None = None
    sentence: str = ""


def check_device(device: str, here: bool = True) -> None:
    """Checks the name of a torch device.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:0``.
        here: The device must be one of this machine; of a cluster's devices only its workers know.

    Raises:
        InputError: Not a device, or no CUDA device is here.
    """
    import torch

    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise InputError(f"Unknown device {device!r}: write cpu, cuda or cuda:0.") from None
    if here and kind == "cuda" and not torch.cuda.is_available():
        raise InputError(f"Device {device!r} was asked for but torch finds no CUDA device here; use --device cpu.")


def place(plan: Plan, output: Path, device: str, request: ResourceRequest, *, small: bool) -> Placement:
    """Decides where the missing cells of a plan run.

    Args:
        plan: The sweep.
        output: Its folder.
        device: torch device of the cells.
        request: The user's limits.
        small: The cells are small enough for one core each.

    Raises:
        InputError: Fewer than one cell at once.
    """
    workers = choose_workers(len(plan.todo), device, request.max_concurrent, small=small)
    join = None
    if request.ray_address is not None:
        join = Join(request.ray_address, request.max_concurrent, small)
    if not device.startswith("cuda") or not plan.todo or request.serial:
        return Placement(workers, None, join)
    from s2a_bench.sweeps import gpu_memory  # torch with it

    # The GPUs of a cluster may be others than this machine's.
    size = request.gpu_memory_gb or (None if join else gpu_memory.smallest_gpu_gb())
    if size is None:
        whole = "Every cell gets a whole card; --gpu-memory-gb lets small cells share one."
        return Placement(workers, dict.fromkeys(plan.todo, 1.0), join, whole)
    todo = {cell_id: plan.cells[cell_id] for cell_id in plan.todo}
    shares = gpu_memory.shares(todo, size, cells_out_of_memory(plan, output))
    if join is None:
        workers = workers_sharing_gpus(len(plan.todo), workers.cards or 1, request.max_concurrent)
    return Placement(workers, shares, join, gpu_memory.sentence(shares, size))


def workers_sharing_gpus(cells: int, cards: int, concurrent: int | None) -> Workers:
    """Workers of this machine where cells share GPUs: cores, memory and the user limit them, GPUs through shares.

    Args:
        cells: How many are to run.
        cards: GPUs of the machine.
        concurrent: Cells at once, at most; ``None`` chooses.
    """
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = max(1, min(concurrent or min(cpus, memory // WORKER_BYTES), cells))
    return Workers(count, max(1, cpus // count), 1.0, cards)


def cells_out_of_memory(plan: Plan, output: Path) -> set[str]:
    """Cells whose record says that memory ran out."""
    found = set()
    for cell_id in plan.again:
        try:
            error = records.read(records.record_path(output, cell_id)).error or {}
        except (OSError, ValueError):
            continue
        if error.get("type") == "OutOfMemory":
            found.add(cell_id)
    return found


def estimate_sentence(
    todo: Sequence[CellConfig], output: Path, device: str, request: ResourceRequest, *, small: bool
) -> str:
    """What missing cells will take in time and memory, in words, from the records of an output folder.

    Args:
        todo: The missing cells.
        output: The folder.
        device: torch device of the cells.
        request: The user's limits.
        small: The cells are small enough for one core each.

    Raises:
        InputError: Fewer than one cell at once.
    """
    from s2a_bench.cells import estimate  # torch with it

    count = 1
    if todo and not request.serial:
        count = choose_workers(len(todo), device, request.max_concurrent, small=small).count
    known = [found for _, found in records.read_all(output) if isinstance(found, Record)]
    return estimate.sentence(todo, known, device, count)
