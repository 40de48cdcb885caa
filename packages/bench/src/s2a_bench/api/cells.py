"""``run``: one cell in this process."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path

from s2a_bench.api.arguments import FilePath
from s2a_bench.cells.outputs import Keep, remove_checkpoint
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig
from s2a_bench.sweeps.events import Listener, notify


def run(cell: CellConfig, output: FilePath | None = None, listeners: Sequence[Listener] = ()) -> Record:
    """Runs one cell in this process, without sweep, report and tracking.

    Args:
        cell: The whole input.
        output: Folder to which the record, checkpoints while the cell runs, and what it trained (unless larger than
            50 MB) are written; ``None``: nowhere.
        listeners: Receive ``started``, ``step``, ``epoch`` and ``finished``.

    Returns:
        The record; one that failed has the status ``"failed"`` and the cause in ``error``.

    Raises:
        InputError: Bad input, before anything ran: one sentence.
        S2AError: A method or a value that its config does not take, before anything ran.
    """
    from s2a_bench.cells import record as records
    from s2a_bench.cells import run as cells_run

    cell_id = cells_run.identify(cell)
    keep = None if output is None else Keep(Path(output).absolute())
    if keep is not None:
        records.check_place(keep.output, cell_id)
    notify(listeners, "started", cell_id)
    on_epoch = functools.partial(notify, listeners, "epoch", cell_id)
    record = cells_run.run(cell, on_epoch, keep, on_step=functools.partial(notify, listeners, "step", cell_id))
    if keep is not None:
        records.write(record, keep.output)
        remove_checkpoint(record, keep.output)
    notify(listeners, "finished", record)
    return record
