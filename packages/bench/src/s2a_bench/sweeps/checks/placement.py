"""What can be wrong with how a sweep is run: output folder, store, checkpoints, workers, cluster, search."""

from __future__ import annotations

import dataclasses
import math
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from s2a_bench.cells.outputs import CHECKPOINT_SECONDS, Keep
from s2a_bench.errors import InputError, Mistakes
from s2a_bench.sweeps.ray.cluster import check_address
from s2a_bench.sweeps.search.choice import parse_mode


@dataclasses.dataclass(frozen=True)
class Placement:
    """How a sweep is to be run, as given on the command line.

    Attributes:
        device: torch device of the cells.
        output: Output folder.
        serial: Without Ray.
        max_concurrent: Cells at once; ``None``: chosen later.
        ray_address: Of a running cluster; ``None``: this machine.
        gpu_memory_gb: Memory of a GPU; ``None``: asked from this machine's.
        checkpoint_every: Seconds between checkpoints.
        search: ``none``, ``grid`` or a number of trials.
        search_scheduler: What stops trials early.
    """

    device: str = "cpu"
    output: Path = Path("results")
    serial: bool = False
    max_concurrent: int | None = None
    ray_address: str | None = None
    gpu_memory_gb: float | None = None
    checkpoint_every: float = CHECKPOINT_SECONDS
    search: str = "none"
    search_scheduler: Literal["none", "asha"] = "none"


def check_placement(mistakes: Mistakes, given: Placement) -> None:
    """Checks everything about how a sweep is run that is known without torch, Ray and MLflow."""
    with mistakes.collecting():
        Keep(given.output, given.checkpoint_every)
    with mistakes.collecting():
        check_output(given.output)
    with mistakes.collecting():
        check_max_concurrent(given.max_concurrent)
    with mistakes.collecting():
        check_gpu_memory(given.gpu_memory_gb, given.device)
    with mistakes.collecting():
        check_cluster(given.ray_address, given.serial)
    with mistakes.collecting():
        parse_mode(given.search, given.search_scheduler)
    with mistakes.collecting():
        check_scheduler(given.search_scheduler, given.serial)


def check_output(output: Path) -> None:
    """Checks that an output folder can be there: nothing on its path is a file.

    Raises:
        InputError: Something is.
    """
    for path in (output.absolute(), *output.absolute().parents):
        if path.exists():
            if not path.is_dir():
                raise InputError(
                    f"Cannot write to output folder {output} ({path} is a file); pass a writable one to --output."
                )
            return


def check_max_concurrent(count: int | None) -> None:
    """Checks ``--max-concurrent``.

    Raises:
        InputError: Fewer than one.
    """
    if count is not None and count < 1:
        raise InputError(f"--max-concurrent {count} is too small; it must be at least 1.")


def check_gpu_memory(gigabytes: float | None, device: str) -> None:
    """Checks ``--gpu-memory-gb``.

    Raises:
        InputError: Not a positive number, or the cells use no GPU.
    """
    if gigabytes is None:
        return
    if not (math.isfinite(gigabytes) and gigabytes > 0):
        raise InputError(f"--gpu-memory-gb {gigabytes:g} is no size of a card; give its memory in GB, 80 say.")
    if not device.startswith("cuda"):
        raise InputError(f"--gpu-memory-gb is about cards, but --device is {device}; leave one of them out.")


def check_cluster(address: str | None, serial: bool) -> None:
    """Checks ``--ray-address``: that Ray is installed and a head answers there.

    Raises:
        InputError: It does not, or the cells are to run in this process.
    """
    if address is None:
        return
    if serial:
        raise InputError("--serial runs the cells in this process, --ray-address on a cluster; give one of them.")
    if find_spec("ray") is None:
        raise InputError("--ray-address needs Ray, which is not installed; install it (pip install 'ray[tune]').")
    check_address(address)


def check_scheduler(scheduler: str, serial: bool) -> None:
    """Checks that trials can be stopped early: they have to run side by side.

    Raises:
        InputError: They would not.
    """
    if scheduler == "none":
        return
    if serial:
        raise InputError(
            "--search-scheduler asha compares trials while they run, and --serial runs one after the other; leave one "
            "of the two out."
        )
    if find_spec("ray") is None:
        raise InputError("--search-scheduler asha is Ray Tune's, and Ray is not installed: pip install 'ray[tune]'.")
