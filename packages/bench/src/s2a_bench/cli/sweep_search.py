"""`sweep --search`: the trials, the choice, then the final cells with the chosen configs, in this order."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from s2a_bench.cells.record import Record
from s2a_bench.cli import progress
from s2a_bench.cli import sweep_grid as commands
from s2a_bench.config import CellConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.sweeps import grid
from s2a_bench.sweeps import plan as sweeping
from s2a_bench.sweeps.ray.runtime import Engine
from s2a_bench.sweeps.search import choice as search
from s2a_bench.sweeps.search.asha import Halving
from s2a_bench.sweeps.search.choice import Choice, Mode, Search
from s2a_bench.tracking import store as track_store
from s2a_bench.tracking.listener import Tracker

_VERBATIM: Any = {"markup": False, "highlight": False, "soft_wrap": True}


@dataclasses.dataclass(frozen=True)
class _Identified:
    """A search with the cell ids of its trials."""

    search: Search
    ids: tuple[str, ...]


def sweep(request: grid.Request, mode: Mode, conduct: commands.Conduct, console: Console) -> int:
    """Runs the missing trials, chooses, then runs the missing final cells; with ``evaluate="val"`` no final ones.

    The final cells are made when their search is over: until then nothing of a test set is opened.

    Returns:
        0 if every cell is done, 1 if some failed or a search has no choice, 130 after Ctrl-C.

    Raises:
        ValueError: Bad input, before anything ran.
    """
    output = conduct.output.absolute()
    stops = mode.scheduler != "none"
    if stops:
        _check_ray(conduct)
    if conduct.tracking_uri is not None:
        track_store.check_uri(conduct.tracking_uri, output)
    wish = commands.wished(request, conduct)
    cells = grid.expand(commands.checked(request, here=wish.address is None))
    search.check_lists(cells)
    asked = search.searches(cells, mode)
    trials = sweeping.identify(trial for each in asked for trial in each.trials)
    by_config = {_key(cell): cell_id for cell_id, cell in trials.items()}
    known = [_Identified(each, tuple(_id(trial, by_config) for trial in each.trials)) for each in asked]
    if stops:  # In the order of a grid each trial would be better than those before, up to the best: none would stop.
        trials = {cell_id: trials[cell_id] for each in known for cell_id in sorted(each.ids)}
    finals = request.evaluate == "test"
    find = functools.partial(plan_trials, mode=mode)
    if conduct.dry_run:
        _dry_run(known, trials, request, conduct, console)
        return commands.DONE
    console.print(_announced(known, trials), **_VERBATIM)
    choices: list[Choice] = []

    def conclude(plan: sweeping.Plan, output: Path, tracker: Tracker, console: Console) -> int:
        choices.extend(_decide(known, plan, output, tracker, console))
        return commands.DONE

    trying = dataclasses.replace(conduct, keep_adapters=False)
    halved = functools.partial(_halving, known, mode) if stops else None
    with Engine() as engine:  # Ray starts once, for trials and final cells
        code = commands.run_cells(
            trials, request, trying, console, find=find, conclude=conclude, halving=halved, engine=engine
        )
        if code != commands.DONE:
            return code
        code = commands.DONE if len(choices) == len(known) else commands.SOME_FAILED
        if not finals or not choices:
            return code
        chosen = sweeping.identify(cell for choice in choices for cell in search.final_cells(choice))
        return max(code, commands.run_cells(chosen, request, conduct, console, find=plan_finals, engine=engine))


def plan_trials(cells: Mapping[str, CellConfig], output: Path, mode: Mode) -> sweeping.Plan:
    """As ``sweep.plan``, but a trial that has ended (``search.settled``) is done: it is not run again."""
    plan = sweeping.plan(cells, output)
    found = sweeping.results(plan, output)
    ended = {cell_id for cell_id, record in found.items() if record is not None and search.settled(record, mode)}
    return dataclasses.replace(plan, done=plan.done | ended, again=plan.again - ended)


def _check_ray(conduct: commands.Conduct) -> None:
    """Refuses to stop trials where no two of them would run side by side."""
    if conduct.serial:
        raise InputError(
            "--search-scheduler asha compares trials while they run, and --serial runs one after the other; leave one "
            "of the two out."
        )
    if find_spec("ray") is None:
        raise InputError("--search-scheduler asha is Ray Tune's, and Ray is not installed: pip install 'ray[tune]'.")


def _halving(known: Sequence[_Identified], mode: Mode, plan: sweeping.Plan, output: Path) -> Halving:
    """Who competes with whom, and what those have shown that ended before."""
    groups: dict[str, str] = {}
    recipes: dict[str, TrainConfig] = {}
    for each in known:
        name = search.search_id(each.ids)
        recipes[name] = each.search.finals[0].train
        for cell_id in each.ids:
            groups.setdefault(cell_id, name)
    found = sweeping.results(plan, output).values()
    ended = tuple(record for record in found if record is not None and search.settled(record, mode))
    return Halving(groups, recipes, ended)


def plan_finals(cells: Mapping[str, CellConfig], output: Path) -> sweeping.Plan:
    """As ``sweep.plan``; records that are there already are told how their config was chosen."""
    for cell_id, cell in cells.items():
        search.stamp(cell_id, cell, output)
    return sweeping.plan(cells, output)


def _key(cell: CellConfig) -> str:
    return repr(dataclasses.asdict(cell))


def _id(cell: CellConfig, known: dict[str, str]) -> str:
    """The id of a trial; of two ways to ask for the same one, ``identify`` has kept only the first."""
    from s2a_bench.cells import run

    key = _key(cell)
    if key not in known:
        known[key] = run.identify(cell)
    return known[key]


def _decide(
    known: Sequence[_Identified], plan: sweeping.Plan, output: Path, tracker: Tracker, console: Console
) -> list[Choice]:
    """Chooses where a search is complete, writes the choices down and shows them."""
    found = sweeping.results(plan, output)
    choices = []
    for each in known:
        choice = search.choose(each.search, each.ids, found)
        if choice is not None:
            search.write(choice, output)
            choices.append(choice)
    present = [record for record in found.values() if record is not None]
    commands.close(tracker, present, "FINISHED" if len(choices) == len(known) else "FAILED", console)
    console.print(_chosen_table(choices))
    console.print(f"Search: {output / 'search'}", **_VERBATIM)
    for record in present:
        if record.status == "failed" and not search.settled(record, known[0].search.mode):
            line = f"FAILED {grid.label(plan.cells[record.cell_id])}: {progress.cause(record)}"
            console.print(line, style="red", **_VERBATIM)
    decided = {search.search_id(choice.ids) for choice in choices}
    for each in known:
        if search.search_id(each.ids) not in decided:
            console.print(_undecided(each, found), style="red", **_VERBATIM)
    return choices


def _undecided(each: _Identified, found: Mapping[str, Record | None]) -> str:
    mode = each.search.mode
    open_trials = sum((record := found.get(i)) is None or not search.settled(record, mode) for i in each.ids)
    stopped = sum((record := found.get(i)) is not None and record.status == "stopped" for i in each.ids)
    if open_trials:
        why = f"{open_trials} of {len(each.ids)} trials have not ended; the same command runs them again"
    elif stopped:
        why = (
            f"{stopped} of {len(each.ids)} trials were stopped and the loss of the others became infinite; without "
            "--search-scheduler asha they come to their end"
        )
    else:
        why = f"the loss of all {len(each.ids)} trials became infinite"
    return f"Nothing was chosen for {_what(each.search)}: {why}."


def _what(each: Search) -> str:
    first = each.finals[0]
    options = ",".join(f"{key}={value}" for key, value in first.method.options.items())
    method = f"{first.method.name}:{options}" if options else first.method.name
    return f"{method} on {first.data.dataset}, {first.backbone.name}"


def _announced(known: Sequence[_Identified], trials: Mapping[str, CellConfig]) -> str:
    each = len(known[0].ids)
    total = f"{len(known)} searches of {each}" if len(known) > 1 else "1 search of " + str(each)
    text = f"Search: {total} trials ({len(trials)} cells, seed {search.SEED}), scored on val; no test set is opened."
    if known[0].search.mode.scheduler == "none":
        return text
    return f"{text} ASHA stops trials that fall behind; methods may differ in epochs and in looks at val."


def _point(point: Mapping[str, Any]) -> str:
    return ", ".join(f"{key}={'default' if value is None else value}" for key, value in point.items())


def _chosen_table(choices: Sequence[Choice]) -> Table:
    table = Table(title="Chosen on val", title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("search")
    table.add_column("chosen", no_wrap=True)
    table.add_column("val %", no_wrap=True)
    table.add_column("trials")
    for name in ("epochs", "looks"):
        table.add_column(name, justify="right", no_wrap=True)
    for choice in choices:
        counts = {"diverged": choice.diverged, "stopped": sum(choice.stopped)}
        trials = ", ".join([str(len(choice.ids)), *(f"{count} {what}" for what, count in counts.items() if count)])
        cost = (str(sum(choice.epochs)), str(sum(choice.looks)))
        chosen = _point(choice.point).replace(", ", "\n")
        table.add_row(_what(choice.search), chosen, f"{choice.accuracy:.1f}", trials, *cost)
    return table


def _dry_run(
    known: Sequence[_Identified],
    trials: Mapping[str, CellConfig],
    request: grid.Request,
    conduct: commands.Conduct,
    console: Console,
) -> None:
    """Prints trials and final cells, those that wait for the search too, and what is missing in time and memory."""
    output, mode = conduct.output.absolute(), known[0].search.mode
    plan = plan_trials(trials, output, mode)
    found = sweeping.results(plan, output)
    todo = [trials[cell_id] for cell_id in plan.todo]
    table = Table("cell", "record", "what", "epochs")
    for cell_id, cell in trials.items():
        table.add_row(cell_id, _state(cell_id, plan), f"trial: {grid.label(cell)}", str(cell.train.epochs))
    for each in known if request.evaluate == "test" else ():
        choice = search.choose(each.search, each.ids, found)
        if choice is None:
            todo += each.search.finals  # with another learning rate, which costs the same
            for cell in each.search.finals:
                table.add_row("after the search", "", grid.label(cell), str(cell.train.epochs))
            continue
        chosen = sweeping.identify(search.final_cells(choice))
        after = sweeping.plan(chosen, output)
        todo += [chosen[cell_id] for cell_id in after.todo]
        for cell_id, cell in chosen.items():
            what = f"{grid.label(cell)} ({_point(choice.point)})"
            table.add_row(cell_id, _state(cell_id, after), what, str(cell.train.epochs))
    console.print(table)
    console.print(f"{len(todo)} cells to run, trials and final ones.", **_VERBATIM)
    most = " Trials that are stopped take less." if mode.scheduler != "none" and plan.todo else ""
    console.print(commands.estimated(todo, request, conduct) + most, **_VERBATIM)


def _state(cell_id: str, plan: sweeping.Plan) -> str:
    return "done" if cell_id in plan.done else "failed" if cell_id in plan.again else "missing"
