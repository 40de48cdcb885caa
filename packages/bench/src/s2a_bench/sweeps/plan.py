"""Which cells of a sweep are missing.

A finished cell is a valid record of status ``done``. Everything else is run: cells that failed before too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path

from s2a_bench.cells import record as records
from s2a_bench.cells.record import NewerRecord, Record
from s2a_bench.config import CellConfig
from s2a_bench.sweeps.checks.cells import identify_all


@dataclasses.dataclass(frozen=True)
class Plan:
    """A grid, measured against the records.

    Attributes:
        cells: Every cell by its id, in the order in which they are run.
        done: Those with a valid record.
        again: Those whose record says ``failed``.
        broken: Record files that could not be read, as sentences; their cells run again.
        newer: Cells whose record a newer version of s2a-bench wrote, with a sentence; they are left alone.
    """

    cells: Mapping[str, CellConfig]
    done: frozenset[str]
    again: frozenset[str]
    broken: tuple[str, ...]
    newer: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def todo(self) -> list[str]:
        """Cells to run, in order."""
        return [cell_id for cell_id in self.cells if cell_id not in self.done and cell_id not in self.newer]

    @property
    def problems(self) -> list[str]:
        """What is wrong with records, as sentences."""
        return [f"Running a cell again: {sentence}" for sentence in self.broken] + [*self.newer.values()]


def identify(cells: Iterable[CellConfig]) -> dict[str, CellConfig]:
    """Cells by their id, each once; whatever is wrong with them is found here, before anything runs.

    Raises:
        ValueError: Cells that cannot run: one sentence for each mistake.
    """
    return identify_all(cells)


def plan(cells: Mapping[str, CellConfig], output: Path) -> Plan:
    """Looks for the record of every cell."""
    done, again, broken, newer = set(), set(), [], {}
    for cell_id in cells:
        try:
            record = records.read(records.record_path(output, cell_id))
        except FileNotFoundError:
            continue
        except NewerRecord as error:
            newer[cell_id] = str(error)
        except (OSError, ValueError) as error:
            broken.append(str(error))
        else:
            if record.status != "stopped":  # what a search ended early is no result, and has not failed either
                (done if record.status == "done" else again).add(cell_id)
    return Plan(cells, frozenset(done), frozenset(again), tuple(broken), newer)


def results(plan: Plan, output: Path) -> dict[str, Record | None]:
    """The record of every cell of a plan; ``None`` where there is none."""
    found: dict[str, Record | None] = {}
    for cell_id in plan.cells:
        try:
            found[cell_id] = records.read(records.record_path(output, cell_id))
        except (OSError, ValueError):
            found[cell_id] = None
    return found


def count_cells(number: int) -> str:
    """``1 cell``, ``2 cells``."""
    return f"{number} cell" if number == 1 else f"{number} cells"
