"""A sweep with a search: its trials, the choice, then the final cells with the chosen configs, in this order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from s2a_bench.cells.learning import describe_problems
from s2a_bench.cells.record import Record
from s2a_bench.config import CellConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps import plan as planning
from s2a_bench.sweeps.events import Listener, StageEnd, notify
from s2a_bench.sweeps.plan import Plan, count_cells, identify, results
from s2a_bench.sweeps.ray.runtime import Engine
from s2a_bench.sweeps.request import Request, RunOptions
from s2a_bench.sweeps.search import choice as search
from s2a_bench.sweeps.search.asha import Halving
from s2a_bench.sweeps.search.choice import Choice, Mode, Search
from s2a_bench.sweeps.stage import failure_line, run_stage


@dataclasses.dataclass(frozen=True)
class Searches:
    """The searches of a sweep.

    Attributes:
        mode: Of all of them.
        each: One for each method, dataset and backbone, with the cell ids of its trials.
        trials: The cells of all trials by id; one that several searches share is there once.
    """

    mode: Mode
    each: tuple[tuple[Search, tuple[str, ...]], ...]
    trials: Mapping[str, CellConfig]


def check_scheduler(mode: Mode, options: RunOptions) -> None:
    """Refuses to stop trials where no two of them would run side by side.

    Raises:
        InputError: ASHA without Ray.
    """
    if mode.scheduler == "none":
        return
    if options.resources.serial:
        raise InputError(
            "--search-scheduler asha compares trials while they run, and --serial runs one after the other; leave one "
            "of the two out."
        )
    if find_spec("ray") is None:
        raise InputError(
            "--search-scheduler asha is Ray Tune's, and Ray is not installed: pip install 's2a-bench[ray]'."
        )


def plan_searches(cells: Sequence[CellConfig], mode: Mode) -> Searches:
    """The searches that cells ask for, with the ids of their trials.

    Args:
        cells: The final cells, with the configs they would have without a search.
        mode: What ``--search`` asks for.

    Raises:
        ValueError: Bad input: one sentence.
    """
    search.check_lists(cells)
    asked = search.searches(cells, mode)
    trials = identify(trial for each in asked for trial in each.trials)
    by_config = {_key(cell): cell_id for cell_id, cell in trials.items()}
    each = tuple((one, tuple(_id(trial, by_config) for trial in one.trials)) for one in asked)
    if mode.scheduler != "none":
        # In the order of a grid each trial would be better than those before, up to the best: none would stop.
        trials = {cell_id: trials[cell_id] for _, ids in each for cell_id in sorted(ids)}
    return Searches(mode, each, trials)


def run_search(
    cells: Sequence[CellConfig],
    mode: Mode,
    request: Request,
    options: RunOptions,
    listeners: Sequence[Listener],
) -> list[StageEnd]:
    """Runs the missing trials, chooses, then runs the missing final cells; with ``evaluate="val"`` no final ones.

    The final cells are made when their search is over: until then nothing of a test set is opened.

    Args:
        cells: The final cells, with the configs they would have without a search.
        mode: What ``--search`` asks for.
        request: What they were made from.
        options: How to run them.
        listeners: Receive progress events.

    Returns:
        How the stage of the trials ended, and that of the final cells where there are any.

    Raises:
        ValueError: Bad input, before anything ran.
        SweepStopped: The output folder cannot be written any more.
        KeyboardInterrupt: As it came.
    """
    known = plan_searches(cells, mode)
    notify(listeners, "message", _announcement(known), "info")
    # Only what the final cells trained is kept.
    trying = dataclasses.replace(options, keep=dataclasses.replace(options.keep, adapters=False))
    with Engine() as engine:  # Ray starts once, for trials and final cells
        end = run_stage(
            known.trials,
            request,
            trying,
            listeners,
            find=functools.partial(plan_trials, mode=mode),
            choose=functools.partial(_choose, known),
            halving=functools.partial(_halving, known) if mode.scheduler != "none" else None,
            engine=engine,
        )
        _tell_choices(known, end, options.keep.output, listeners)
        if request.evaluate != "test" or not end.choices:
            return [end]
        chosen = identify(cell for choice in end.choices for cell in search.final_cells(choice))
        return [end, run_stage(chosen, request, options, listeners, find=plan_finals, engine=engine)]


def plan_trials(cells: Mapping[str, CellConfig], output: Path, mode: Mode) -> Plan:
    """As ``plan.plan``, but a trial that has ended (``choice.settled``) is done: it is not run again."""
    plan = planning.plan(cells, output)
    found = results(plan, output)
    ended = {cell_id for cell_id, record in found.items() if record is not None and search.settled(record, mode)}
    return dataclasses.replace(plan, done=plan.done | ended, again=plan.again - ended)


def plan_finals(cells: Mapping[str, CellConfig], output: Path) -> Plan:
    """As ``plan.plan``; records that are there already are told how their config was chosen."""
    for cell_id, cell in cells.items():
        search.stamp(cell_id, cell, output)
    return planning.plan(cells, output)


def point_text(point: Mapping[str, Any]) -> str:
    """``train.lr=0.01, method.alpha=default``: searched values in words."""
    return ", ".join(f"{key}={'default' if value is None else value}" for key, value in point.items())


def search_text(each: Search) -> str:
    """``s2a:bits=8 on digits, mini_vit``: a search in words."""
    first = each.finals[0]
    options = ",".join(f"{key}={value}" for key, value in first.method.options.items())
    method = f"{first.method.name}:{options}" if options else first.method.name
    return f"{method} on {first.data.dataset}, {first.backbone.name}"


def _key(cell: CellConfig) -> str:
    return repr(dataclasses.asdict(cell))


def _id(cell: CellConfig, known: dict[str, str]) -> str:
    """The id of a trial; of two ways to ask for the same one, ``identify`` has kept only the first."""
    from s2a_bench.cells import run

    key = _key(cell)
    if key not in known:
        known[key] = run.identify(cell)
    return known[key]


def _halving(known: Searches, plan: Plan, output: Path) -> Halving:
    """Who competes with whom, and what those have shown that ended before."""
    groups: dict[str, str] = {}
    recipes: dict[str, TrainConfig] = {}
    for each, ids in known.each:
        name = search.search_id(ids)
        recipes[name] = each.finals[0].train
        for cell_id in ids:
            groups.setdefault(cell_id, name)
    found = results(plan, output).values()
    ended = tuple(record for record in found if record is not None and search.settled(record, known.mode))
    return Halving(groups, recipes, ended)


def _choose(known: Searches, found: Mapping[str, Record | None], output: Path) -> tuple[list[Choice], bool]:
    """Chooses where a search is complete and writes the choices down; whether every search has one."""
    choices = []
    for each, ids in known.each:
        choice = search.choose(each, ids, found)
        if choice is not None:
            search.write(choice, output)
            choices.append(choice)
    return choices, len(choices) == len(known.each)


def _announcement(known: Searches) -> str:
    each, count = len(known.each[0][1]), len(known.each)
    total = f"{count} searches of {each}" if count > 1 else f"1 search of {each}"
    cells = count_cells(len(known.trials))
    text = f"Search: {total} trials ({cells}, seed {search.SEED}), scored on val; no test set is opened."
    if known.mode.scheduler == "none":
        return text
    return f"{text} ASHA stops trials that fall behind; methods may differ in epochs and in looks at val."


def _tell_choices(known: Searches, end: StageEnd, output: Path, listeners: Sequence[Listener]) -> None:
    """Messages on where the choices were written, and on what went wrong.

    What went wrong: trials that failed, chosen ones that did not learn, searches for which nothing was chosen.
    """
    notify(listeners, "message", f"Search: {output / 'search'}", "info")
    for record in end.records:
        if record.status == "failed" and not search.settled(record, known.mode):
            notify(listeners, "message", failure_line(record, end.plan.cells[record.cell_id]), "error")
    decided = {choice.ids for choice in end.choices or ()}
    found = {record.cell_id: record for record in end.records}
    for choice in end.choices or ():
        if problem := describe_problems(found[choice.ids[choice.best]]):
            text = (
                f"Of {search_text(choice.search)} even the chosen trial {problem}. The final cells will hardly do "
                "better: try more --epochs, or --search N with more trials."
            )
            notify(listeners, "message", text, "warning")
    for each, ids in known.each:
        if ids not in decided:
            notify(listeners, "message", _undecided(each, ids, found), "error")


def _undecided(each: Search, ids: Sequence[str], found: Mapping[str, Record]) -> str:
    open_trials = sum((record := found.get(i)) is None or not search.settled(record, each.mode) for i in ids)
    stopped = sum((record := found.get(i)) is not None and record.status == "stopped" for i in ids)
    if open_trials:
        why = f"{open_trials} of {len(ids)} trials have not ended; the same command runs them again"
    elif stopped:
        why = (
            f"{stopped} of {len(ids)} trials were stopped and the loss of the others became infinite; without "
            "--search-scheduler asha they come to their end"
        )
    else:
        why = f"the loss of all {len(ids)} trials became infinite"
    return f"Nothing was chosen for {search_text(each)}: {why}."
