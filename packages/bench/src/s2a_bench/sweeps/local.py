"""Runs cells one after the other in this process."""

from __future__ import annotations

import traceback
from collections.abc import Sequence

from s2a_bench.cells import outputs
from s2a_bench.cells import record as records
from s2a_bench.cells.outputs import Keep
from s2a_bench.sweeps.events import Listener, notify
from s2a_bench.sweeps.plan import Plan, failed


def run_locally(plan: Plan, listeners: Sequence[Listener], keep: Keep) -> None:
    """Runs the missing cells one after the other in this process.

    Args:
        plan: What is to run.
        listeners: Receive progress events.
        keep: The output folder, and what the cells leave there besides their records.

    Raises:
        OSError: A record could not be written.
    """
    from s2a_bench.cells import run

    for cell_id in plan.todo:
        notify(listeners, "started", cell_id)
        try:
            record = run.run(plan.cells[cell_id], lambda m, c=cell_id: notify(listeners, "epoch", c, m), keep)
        except ValueError as error:  # what was good at the start has gone bad since, a data folder say
            record = failed(cell_id, plan.cells[cell_id], type(error).__name__, str(error), traceback.format_exc())
        records.write(record, keep.output)
        outputs.settle(record, keep.output)
        notify(listeners, "finished", record)
