"""A fine-tuning from prepared images to its results; it prints nothing, listeners receive all that happens."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from s2a_bench import failures
from s2a_bench.cells import identity, measure, outputs
from s2a_bench.cells import record as records
from s2a_bench.cells import run as cells_run
from s2a_bench.cells.identity import IdentifiedCell
from s2a_bench.cells.outputs import Keep
from s2a_bench.cells.record import NewerRecord, Record
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError
from s2a_bench.files import write_atomic
from s2a_bench.finetuning import adapter, choose, page, prepare, results
from s2a_bench.finetuning import metrics as metrics_door
from s2a_bench.finetuning.choose import Chosen
from s2a_bench.finetuning.prepare import PreparedData
from s2a_bench.finetuning.remembered import Remembered
from s2a_bench.finetuning.request import FinetuneRequest
from s2a_bench.finetuning.result import FinetuneFailed, Result
from s2a_bench.sweeps.events import Listener, StageEnd, notify
from s2a_bench.sweeps.output_lock import only_writer
from s2a_bench.sweeps.plan import Plan
from s2a_bench.tracking.listener import Tracker


def train_prepared(
    request: FinetuneRequest, data: PreparedData, settled: Callable[[], None], listeners: Sequence[Listener]
) -> Result:
    """Runs a fine-tuning on prepared images, or finds that it is finished.

    Args:
        request: What is asked for.
        data: Its images, in their temporary folder still or in the output folder.
        settled: Called when the images are in the output folder; the temporary folder can go.
        listeners: Receive progress events.

    Raises:
        InputError: As ``run.finetune``, and the other errors too.
    """
    say = functools.partial(notify, listeners, "message")
    remembered = Remembered(request.output)
    chosen = choose.choose_cell(request, data, choose.device_of(request), remembered, say)
    cell = identity.identify_cell(chosen.cell)
    # Everything is known to be good: from here on the output folder is written.
    with only_writer(request.output, "fine-tuning"):
        results.recover(request.output)
        data = prepare.install(data, request.output)
        settled()
        chosen = _with_root(chosen, data)
        remembered.save(request.output)
        search = None
        if request.lr == "find":
            chosen, search = _find_rate(chosen, data, remembered, request.output, listeners)
        cell = identity.identify_cell(chosen.cell)
        return _Finetuning(request, data, chosen, cell, search, listeners).run()


def _with_root(chosen: Chosen, data: PreparedData) -> Chosen:
    placed = dataclasses.replace(chosen.cell.data, root=str(data.root))
    return dataclasses.replace(chosen, cell=dataclasses.replace(chosen.cell, data=placed))


def _find_rate(
    chosen: Chosen, data: PreparedData, remembered: Remembered, output: Path, listeners: Sequence[Listener]
) -> tuple[Chosen, dict[str, Any]]:
    """The cell with the learning rate of a range test, which is run once."""
    from s2a_bench.cells.lr_finder import find_rate

    key = remembered.key("lr", chosen.cell, data.manifest.data_id)
    if (known := remembered.get(key)) is None:
        what = "looking for a learning rate"
        found = find_rate(chosen.cell, progress=lambda done, total: notify(listeners, "progress", what, done, total))
        known = {"rate": found.rate, "reason": found.reason, "points": [list(point) for point in found.points]}
        remembered.put(key, known)
        remembered.save(output)
    notify(listeners, "message", f"Learning rate {known['rate']:.2g}: {known['reason']}", "info")
    train = dataclasses.replace(chosen.cell.train, lr=known["rate"])
    return dataclasses.replace(chosen, cell=dataclasses.replace(chosen.cell, train=train)), known


@dataclasses.dataclass(frozen=True)
class _Finetuning:
    """A fine-tuning whose cell is known, under the output folder's lock."""

    request: FinetuneRequest
    data: PreparedData
    chosen: Chosen
    cell: IdentifiedCell
    search: dict[str, Any] | None
    listeners: Sequence[Listener]

    @property
    def output(self) -> Path:
        return self.request.output

    def run(self) -> Result:
        """Trains, unless it is finished, and writes the results."""
        cell_id = self.cell.cell_id
        record, found = self._finished()
        tracker = Tracker(
            "own", self.request.tracking_uri, self.output, functools.partial(notify, self.listeners, "message")
        )
        done = frozenset() if found is None else frozenset({cell_id})
        plan = Plan({cell_id: self.cell.config}, done, frozenset(), ())
        listeners = [tracker, *self.listeners]
        notify(listeners, "planned", plan)
        if found is None or record is None:
            record, found = self._train(plan, listeners)
        notify(listeners, "ended", StageEnd(plan, [record], "FINISHED"))
        uri = None if tracker.missing else tracker.uri
        return Result(
            self.output / results.ADAPTER,
            found,
            record,
            self.output / results.PAGE,
            found["labels"],
            not done,
            uri,
        )

    def _finished(self) -> tuple[Record | None, dict[str, Any] | None]:
        """Record and metrics of a cell that was trained before; its results are in the output folder again."""
        try:
            record = records.read(records.record_path(self.output, self.cell.cell_id))
        except NewerRecord:
            raise
        except (OSError, ValueError):
            return None, None
        if record.status != "done":
            return None, None
        return record, results.find(self.output, self.cell.cell_id)

    def _train(self, plan: Plan, listeners: Sequence[Listener]) -> tuple[Record, dict[str, Any]]:
        cell_id, held, found = self.cell.cell_id, [], {}
        keep = Keep(self.output, self.request.checkpoint_every, adapters=False)
        notify(listeners, "started", cell_id)
        try:
            with self._closing(plan, listeners):
                record = cells_run.run(
                    self.cell,
                    lambda metrics: notify(listeners, "epoch", cell_id, metrics),
                    keep,
                    on_trained=held.append,
                    on_step=lambda done, total: notify(listeners, "step", cell_id, done, total),
                )
                if record.status == "done":
                    # Before the record, which says that the cell is finished: results are never missing then.
                    found = self._write_results(held[0])
                records.write(record, self.output)
                outputs.remove_checkpoint(record, self.output)
        except KeyboardInterrupt:
            self._keep_best(held, listeners)
            raise
        notify(listeners, "finished", record)
        if record.status != "done":
            notify(listeners, "ended", StageEnd(plan, [record], "FAILED"))
            raise FinetuneFailed(f"The training failed: {failures.cause(record).rstrip('.')}.", record)
        return record, found

    def _keep_best(self, held: Sequence[cells_run.Trained], listeners: Sequence[Listener]) -> None:
        """Writes the best epoch of an interrupted training."""
        if not held or not held[0].interrupted:
            notify(
                listeners, "message", "Interrupted before the first epoch was over: there is nothing to keep.", "info"
            )
            return
        found = self._write_results(held[0])
        kept = f"epoch {found['best_epoch']}, {found['val_accuracy']:.1f} % of the validation images"
        text = f"Interrupted after epoch {found['epochs_run']} of {found['epochs']}: the best so far ({kept}) is in "
        notify(listeners, "message", f"{text}{self.output / results.ADAPTER}; the same command goes on.", "info")

    @contextlib.contextmanager
    def _closing(self, plan: Plan, listeners: Sequence[Listener]) -> Iterator[None]:
        """Ends the tracker's run where the training was cut off or the disk is full."""
        try:
            yield
        except BaseException as error:
            sentence = failures.disk_sentence(error, self.output) if isinstance(error, Exception) else None
            notify(listeners, "ended", StageEnd(plan, [], "KILLED", disk_error=sentence is not None))
            if sentence is not None:
                raise InputError(sentence) from error
            raise

    def _write_results(self, trained: cells_run.Trained) -> dict[str, Any]:
        """Adapter, metrics and page of what was trained, complete or not at all."""
        about = self._circumstances(trained)
        found = metrics_door.build(self.cell.config, trained.record, trained, about)
        mistakes = adapter.find_mistakes(trained, self.data, found)

        def fill(folder: Path) -> None:
            adapter.save(trained, folder / results.ADAPTER, self.cell.config, self.data, found)
            write_atomic(folder / results.METRICS, json.dumps(found, indent=1) + "\n")
            write_atomic(folder / results.PAGE, page.render(found, mistakes, self.output / results.ADAPTER))

        results.install(self.output, self.cell.cell_id, fill)
        return found

    def _circumstances(self, trained: cells_run.Trained) -> metrics_door.Circumstances:
        manifest = self.data.manifest
        return metrics_door.Circumstances(
            source=str(self.data.source),
            labels=tuple(manifest.classes),
            counts={name: manifest.counts.get(name, 0) for name in ("train", "val", "test")},
            own=dict(manifest.own or {}),
            weights=self.chosen.weights,
            weights_file=self.chosen.weights_file,
            budget=self.chosen.budget,
            # Not after Ctrl-C: a second one during this would lose the best epoch.
            simulated_mb=None if trained.interrupted else _simulated_mb(trained, self.cell.config),
            lr_search=self.search,
            notes=self.chosen.notes,
        )


def _simulated_mb(trained: cells_run.Trained, cell: CellConfig) -> float | None:
    """Peak of one of the training's steps, simulated; a second or two for a model of usual size."""
    try:
        return measure.simulated(trained.adapted, cell.train)["simulated_mb"]
    except Exception:  # a model that cannot be simulated: one number less, and what was trained is not lost
        return None
