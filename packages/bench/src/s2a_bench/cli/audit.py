"""``s2a-bench audit --peek``: trains recorded cells again and prints what the best epoch on test would have added."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from s2a_bench.audit.selection import select_records
from s2a_bench.cells.record import Record, read_all
from s2a_bench.cli.common import DONE, SOME_FAILED, File, Flag, Folder, Names, print_verbatim, read_records, say_next
from s2a_bench.cli.fitted_table import Column, print_table
from s2a_bench.cli.steps import show_training
from s2a_bench.config import BackboneConfig, CellConfig, MethodConfig
from s2a_bench.errors import InputError, Mistakes

if TYPE_CHECKING:
    from s2a_bench.audit.epochs import AuditRow, EpochAudit
    from s2a_bench.audit.trials import TriedConfig


@dataclasses.dataclass(frozen=True)
class Audit:
    """Measures what looking at the test set would have added to the records of a sweep. It changes none of them.

    Attributes:
        peek: Train the recorded cells again and score the test set after every epoch; print best epoch minus last.
            Behind a search, also train every config that it tried and print the best on test minus the chosen one.
        output: Folder of a sweep.
        datasets: Only these; all that have test records if left out.
        backbones: Only these.
        methods: Only these.
        seeds: Only these.
        data_dir: Where prepared datasets lie.
        weights: Local file of the backbone, where the sweep had one.
        device: cpu, cuda, cuda:0.
        skip_trials: Only the epochs, not the searches.
    """

    peek: Flag = False
    output: Path = Path("results")
    datasets: Names = ()
    backbones: Names = ()
    methods: Names = ()
    seeds: tuple[int, ...] = ()
    data_dir: Folder = None
    weights: File = None
    device: str = "cpu"
    skip_trials: Flag = False

    def run(self, console: Console) -> int:
        """Runs the command.

        Raises:
            ValueError: Nothing to audit, or bad names, values or paths.
        """
        wanted = {f.name: getattr(self, f.name) for f in dataclasses.fields(Wanted)}
        paths = {name: str(wanted[name]) for name in ("data_dir", "weights") if wanted[name] is not None}
        self._check()
        return audit_records(self.output, Wanted(**{**wanted, **paths}), console)

    def _pick(self) -> list[Record]:
        have = [found for _, found in read_all(self.output.absolute()) if isinstance(found, Record)]
        names = {name: getattr(self, name) for name in ("datasets", "backbones", "methods", "seeds")}
        return select_records(have, **names)

    def _check(self) -> None:
        from s2a_bench.sweeps.checks.backbones import check_weights
        from s2a_bench.sweeps.checks.devices import check_device_name
        from s2a_bench.sweeps.checks.request import check_folder

        mistakes = Mistakes()
        if not self.peek:
            mistakes.add(InputError("audit has one question so far: give --peek."))
        with mistakes.collecting():
            check_device_name(self.device)
        if self.data_dir is not None:
            with mistakes.collecting():
                check_folder(self.data_dir, "--data-dir")
        with mistakes.collecting():
            check_weights(BackboneConfig(weights=None if self.weights is None else str(self.weights)))
        with mistakes.collecting():
            _check_effects(self._pick(), self.data_dir, self.skip_trials)
        mistakes.raise_all()


def _check_effects(chosen: Sequence[Record], data_dir: Path | None, skip_trials: bool) -> None:
    """Refuses options that none of the chosen records heeds.

    Raises:
        InputError: Some can have no effect.
    """
    from s2a_bench.data.table.lookup import DATASETS, OWN

    mistakes = Mistakes()
    names = sorted({record.dataset for record in chosen})
    embedded = all(r.suite != OWN and r.dataset in DATASETS and DATASETS[r.dataset].embedded for r in chosen)
    if data_dir is not None and embedded:
        mistakes.add(InputError(f"--data-dir {data_dir} has no effect: {', '.join(names)} are embedded; leave it out."))
    if skip_trials and not any(record.search for record in chosen):
        mistakes.add(
            InputError("--skip-trials has no effect: no search chose the config of these records; leave it out.")
        )
    mistakes.raise_all()


@dataclasses.dataclass(frozen=True)
class Wanted:
    """Which records to audit, and what training them again takes; empty names take all."""

    datasets: tuple[str, ...] = ()
    backbones: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    data_dir: str | None = None
    weights: str | None = None
    device: str = "cpu"
    skip_trials: Flag = False


def audit_records(output: Path, wanted: Wanted, console: Console) -> int:
    """Audits the records under ``output``, and the searches behind them; what is there already is not made again.

    Returns:
        0, or 1 if some record's accuracy was not met again.

    Raises:
        ValueError: Nothing to audit, or a record that cannot be trained again: before anything ran.
    """
    from s2a_bench.audit import epochs
    from s2a_bench.sweeps.resources import check_device

    check_device(wanted.device)
    output = output.absolute()
    have = read_records(output)
    chosen = select_records(
        have, datasets=wanted.datasets, backbones=wanted.backbones, methods=wanted.methods, seeds=wanted.seeds
    )
    peeks = {record.cell_id: found for record in chosen if (found := epochs.read_audit(output, record)) is not None}
    todo = [
        (record, epochs.recreate_cell(record, wanted.data_dir, wanted.weights, wanted.device))
        for record in chosen
        if record.cell_id not in peeks
    ]
    searches = [] if wanted.skip_trials else _searches(chosen, wanted, output)
    print_verbatim(console, f"Audit: {len(chosen)} records, {len(todo)} to train again. {epochs.WARNING}")
    for number, (record, cell) in enumerate(todo, start=1):
        what = f"{record.method} on {record.dataset} ({number} of {len(todo)})"
        with show_training(console, what) as on_step:
            found = peeks[record.cell_id] = epochs.score_every_epoch(cell, record, on_step=on_step)
        epochs.write_audit(found, output)
        print_verbatim(
            console,
            f"[{number}/{len(todo)}] {record.method} on {record.dataset}, {record.backbone}, seed {record.seed}: last "
            f"{found.test[-1]:.1f} %, best {max(found.test):.1f} % at epoch {found.best_epoch} of {len(found.test)}",
        )
    found = [peeks[record.cell_id] for record in chosen]
    _print_table(console, epochs.summarise_audits(found), "What the best epoch on test would have added", "last %")
    code = _compare(found, console)
    if searches:
        _trials(searches, output, console)
    say_next(console, f"Scores of every epoch: {output / 'audit'} (no record was changed)")
    return code


_Search = tuple[Record, "list[TriedConfig]"]


def _searches(chosen: Sequence[Record], wanted: Wanted, output: Path) -> list[_Search]:
    """The searches behind records, with the final cells of everything that they tried."""
    from s2a_bench.audit import epochs, trials

    return [
        (
            record,
            trials.list_tried_configs(
                record, epochs.recreate_cell(record, wanted.data_dir, wanted.weights, wanted.device), output
            ),
        )
        for record in trials.select_searched(chosen)
    ]


def _trials(searches: Sequence[_Search], output: Path, console: Console) -> None:
    """Trains what was tried and not chosen, and prints what choosing by the test set would have added."""
    from s2a_bench.audit import trials
    from s2a_bench.sweeps import grid

    todo = [
        (record, one) for record, tried in searches for one in tried if trials.find_known_score(one, output) is None
    ]
    configs = "1 config" if len(todo) == 1 else f"{len(todo)} configs"
    print_verbatim(console, f"Searches: {len(searches)}, {configs} to train. {trials.WARNING}")
    for number, (record, one) in enumerate(todo, start=1):
        with show_training(console, f"{grid.label(_brief(one.cell, record))} ({number} of {len(todo)})") as on_step:
            found = trials.score_config(one, on_step)
        trials.write_score(found, output)
        shown = "the loss became infinite" if found.accuracy is None else f"{found.accuracy:.1f} % on test"
        print_verbatim(console, f"[{number}/{len(todo)}] {grid.label(_brief(one.cell, record))}: {shown}")
    measured = []
    for record, tried in searches:
        scores = [trials.find_known_score(one, output) for one in tried]
        accuracies = [score.accuracy for score in scores if score is not None and score.accuracy is not None]
        if accuracies:
            measured.append(trials.SearchAudit(record, tuple(accuracies)))
    title = "What choosing the trial by the test set would have added (one seed of each search)"
    _print_table(console, trials.summarise_searches(measured), title, "chosen %")


def _brief(cell: CellConfig, record: Record) -> CellConfig:
    """The cell with only those options that differ from the record's, for its label."""
    options = {key: value for key, value in cell.method.options.items() if value != record.method_config.get(key)}
    return dataclasses.replace(cell, method=MethodConfig(cell.method.name, options))


def _print_table(console: Console, rows: Sequence[AuditRow], title: str, first: str) -> None:
    columns = [Column("suite", 4, "left"), Column("backbone", 3, "left"), Column("method", justify="left")]
    columns += [Column(first), Column("best %"), Column("gain"), *map(Column, ("largest", "tasks", "cells"), (1, 2, 5))]
    texts = []
    for row in rows:
        numbers = [f"{row.last:.1f}", f"{row.best:.1f}", f"+{row.inflation:.2f}", f"+{row.largest:.2f}"]
        texts.append([row.suite, row.backbone, row.method, *numbers, str(row.datasets), str(row.cells)])
    print_table(console, title, columns, texts)


def _compare(found: Sequence[EpochAudit], console: Console) -> int:
    """Says which records were not met again: the same cell on the same machine gives the same number."""
    other = [each for each in found if each.test[-1] != each.record_accuracy]
    same = len(found) - len(other)
    print_verbatim(console, f"{same} of {len(found)} records were met again to the last image.")
    for each in other:
        print_verbatim(
            console,
            f"{each.cell_id}: the record says {each.record_accuracy:.2f} %, trained again it has {each.test[-1]:.2f} % "
            "(another machine, device or library version).",
            style="yellow",
        )
    return SOME_FAILED if other else DONE
