"""Runs cells one after the other in this process."""

from __future__ import annotations

import functools
import traceback
from collections.abc import Sequence

from s2a_bench.cells import outputs
from s2a_bench.cells import record as records
from s2a_bench.cells.outputs import Keep
from s2a_bench.sweeps.events import Listener, notify
from s2a_bench.sweeps.plan import Plan


def run_locally(plan: Plan, listeners: Sequence[Listener], keep: Keep) -> None:
    """Runs the missing cells one after the other in this process.

    Args:
        plan: What is to run.
        listeners: Receive progress events.
        keep: The output folder, and what the cells leave there besides their records.

    Raises:
        OSError: A record could not be written.
    """
    from s2a_bench.cells import identity, provenance, run

    for cell_id in plan.todo:
        notify(listeners, "started", cell_id)
        try:
            cell = identity.with_facts(plan.cells[cell_id], cell_id)
            on_epoch = functools.partial(notify, listeners, "epoch", cell_id)
            record = run.run(cell, on_epoch, keep, on_step=functools.partial(notify, listeners, "step", cell_id))
        except ValueError as error:  # what was good at the start has gone bad since, a data folder say
            cell, cause = plan.cells[cell_id], (type(error).__name__, str(error), traceback.format_exc())
            hardware = provenance.hardware(cell.device)
            record = records.failed_record(cell, cell_id, cause, identity.known_facts(cell_id), hardware)
        records.write(record, keep.output)
        outputs.remove_checkpoint(record, keep.output)
        notify(listeners, "finished", record)
