"""Which cells of a sweep are missing, and the lock that makes one process at a time write to an output folder.

A finished cell is a valid record of status ``done``. Everything else is run: cells that failed before too.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from s2a_bench.cells import outputs as keeping
from s2a_bench.cells import record as records
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError
from s2a_bench.files import make_folder
from s2a_bench.sweeps.checks.cells import identify_all


@dataclasses.dataclass(frozen=True)
class Plan:
    """A grid, measured against the records.

    Attributes:
        cells: Every cell by its id, in the order in which they are run.
        done: Those with a valid record.
        again: Those whose record says ``failed``.
        broken: Record files that could not be read, as sentences; their cells run again.
    """

    cells: Mapping[str, CellConfig]
    done: frozenset[str]
    again: frozenset[str]
    broken: tuple[str, ...]

    @property
    def todo(self) -> list[str]:
        """Cells to run, in order."""
        return [cell_id for cell_id in self.cells if cell_id not in self.done]


def identify(cells: Iterable[CellConfig]) -> dict[str, CellConfig]:
    """Cells by their id, each once; whatever is wrong with them is found here, before anything runs.

    Raises:
        ValueError: Cells that cannot run: one sentence for each mistake.
    """
    return identify_all(cells)


def plan(cells: Mapping[str, CellConfig], output: Path) -> Plan:
    """Looks for the record of every cell."""
    done, again, broken = set(), set(), []
    for cell_id in cells:
        try:
            record = records.read(records.record_path(output, cell_id))
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            broken.append(str(error))
        else:
            if record.status != "stopped":  # what a search ended early is no result, and has not failed either
                (done if record.status == "done" else again).add(cell_id)
    return Plan(cells, frozenset(done), frozenset(again), tuple(broken))


def results(plan: Plan, output: Path) -> dict[str, Record | None]:
    """The record of every cell of a plan; ``None`` where there is none."""
    found: dict[str, Record | None] = {}
    for cell_id in plan.cells:
        try:
            found[cell_id] = records.read(records.record_path(output, cell_id))
        except (OSError, ValueError):
            found[cell_id] = None
    return found


@contextlib.contextmanager
def only_writer(output: Path) -> Iterator[None]:
    """Holds the output folder for this process and clears what a killed one left.

    Raises:
        InputError: The folder cannot be written, or another sweep holds it.
    """
    try:
        make_folder(output / "records")
        with tempfile.TemporaryFile(dir=output / "records") as probe:
            probe.write(b"a full disk may still have room for names")
        lock = (output / ".lock").open("a+", encoding="utf-8")
    except OSError as error:
        raise InputError(
            f"Cannot write to output folder {output} ({error}); pass a writable one to --output."
        ) from error
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise InputError(
                f"Another sweep (process {lock.read().strip() or 'unknown'}) is writing to {output}; "
                "wait for it to end, or pass another --output."
            ) from None
        lock.truncate(0)
        lock.write(str(os.getpid()))
        with contextlib.suppress(OSError):  # the number is for people; a disk that has just filled is told of later
            lock.flush()
        keeping.clean_up(output)
        shutil.rmtree(output / ".ray", ignore_errors=True)
        yield
