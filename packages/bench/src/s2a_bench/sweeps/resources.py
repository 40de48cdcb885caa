"""Where the cells of a sweep run: how many at once on this machine, on which share of a card, or on which cluster."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from s2a_bench.cells import record as records
from s2a_bench.errors import InputError
from s2a_bench.sweeps import gpu_memory as shares
from s2a_bench.sweeps.plan import WORKER_BYTES, Plan, Workers, choose_workers
from s2a_bench.sweeps.ray import cluster
from s2a_bench.sweeps.ray.cluster import Join


@dataclasses.dataclass(frozen=True)
class Wish:
    """What the user says about it.

    Attributes:
        address: Of a running Ray cluster; ``None``: this machine.
        card_gb: Memory of a card, in GB; ``None``: what this machine's has.
        concurrent: Cells at once; ``None`` chooses.
        serial: In this process, one after the other.
    """

    address: str | None = None
    card_gb: float | None = None
    concurrent: int | None = None
    serial: bool = False

    def check(self, device: str) -> None:
        """Finds what is wrong before anything else is done.

        Raises:
            InputError: An address where no cluster is, a size that is none, or two wishes that exclude each other.
        """
        shares.check_card(self.card_gb)
        if self.card_gb is not None and not device.startswith("cuda"):
            raise InputError(f"--gpu-memory-gb is about cards, but --device is {device}; leave one of them out.")
        if self.address is None:
            return
        if self.serial:
            raise InputError("--serial runs the cells in this process, --ray-address on a cluster; give one of them.")
        if find_spec("ray") is None:
            raise InputError("--ray-address needs Ray, which is not installed; install it (pip install 'ray[tune]').")
        cluster.check_address(self.address)


@dataclasses.dataclass(frozen=True)
class Scale:
    """The decision.

    Attributes:
        workers: On this machine.
        shares: Of a card, by cell; ``None``: as ``workers`` says.
        join: The cluster to use in place of this machine.
        sentence: What to tell the user; empty: nothing.
    """

    workers: Workers
    shares: Mapping[str, float] | None = None
    join: Join | None = None
    sentence: str = ""


def decide(plan: Plan, output: Path, device: str, wish: Wish, *, small: bool) -> Scale:
    """Decides for the missing cells of a plan.

    Args:
        plan: The sweep.
        output: Its folder.
        device: torch device of the cells.
        wish: The user's.
        small: The cells are small enough for one core each.

    Raises:
        InputError: Fewer than one cell at once.
    """
    workers = choose_workers(len(plan.todo), device, wish.concurrent, small=small)
    join = Join(wish.address, wish.concurrent, small) if wish.address is not None else None
    if not device.startswith("cuda") or not plan.todo or wish.serial:
        return Scale(workers, None, join)
    # The cards of a cluster may be others than this machine's.
    card = wish.card_gb or (None if join else shares.card_gb())
    if card is None:
        whole = "Every cell gets a whole card; --gpu-memory-gb lets small cells share one."
        return Scale(workers, dict.fromkeys(plan.todo, 1.0), join, whole)
    given = shares.shares({cell_id: plan.cells[cell_id] for cell_id in plan.todo}, card, out_of_memory(plan, output))
    sentence = shares.sentence(given, card)
    return Scale(workers if join else sharing(len(plan.todo), workers.cards or 1, wish), given, join, sentence)


def sharing(cells: int, cards: int, wish: Wish) -> Workers:
    """Workers of this machine where cells share cards: cores, memory and the user bound them, cards through shares.

    Args:
        cells: How many are to run.
        cards: Of the machine.
        wish: The user's.
    """
    cpus = len(os.sched_getaffinity(0))
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    count = max(1, min(wish.concurrent or min(cpus, memory // WORKER_BYTES), cells))
    return Workers(count, max(1, cpus // count), 1.0, cards)


def out_of_memory(plan: Plan, output: Path) -> set[str]:
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
