"""Trials that a search stops early: when val is looked at, who competes with whom, and what that costs nobody."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import types
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import record, run
from s2a_bench.cells.identity import open_cell
from s2a_bench.cells.outputs import Keep, checkpoint_path, remove_checkpoint
from s2a_bench.cells.record import Record
from s2a_bench.cells.scores import accuracy
from s2a_bench.cells.train import train
from s2a_bench.cli import progress
from s2a_bench.cli.main import main
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.reports import statistics as stats
from s2a_bench.sweeps.ray import runtime
from s2a_bench.sweeps.search import asha as halving
from s2a_bench.sweeps.search import choice as search
from s2a_bench.sweeps.search import run_search
from s2a_bench.sweeps.search.asha import Halving
from s2a_bench.tracking import names as track_names
from s2a_bench.tracking import store as track_store

ray_only = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")

# When val is looked at


@given(st.integers(1, 300), st.integers(0, 300))
def test_looks_lie_after_the_warm_up_and_before_the_end_each_three_times_the_one_before(epochs, warmup):
    recipe = TrainConfig(epochs=epochs, warmup_epochs=min(warmup, epochs))
    try:
        found = halving.looks(recipe)
    except InputError as error:
        assert f"{epochs} epochs" in str(error) and "--search-scheduler asha" in str(error)
        assert recipe.warmup_epochs + 1 >= epochs or epochs == 1
        return
    assert all(recipe.warmup_epochs < epoch < epochs for epoch in found)
    assert all(b == 3 * a for a, b in itertools.pairwise(found))
    assert 3 * found[-1] >= epochs, "the last is in the last two thirds"


def test_the_papers_schedule_is_looked_at_twice():
    """80 epochs, 10 of them warm-up: a ninth would lie in the warm-up."""
    assert halving.looks(TrainConfig(epochs=80, warmup_epochs=10)) == (11, 33)
    assert halving.looks(TrainConfig(epochs=90, warmup_epochs=0)) == (10, 30)


def test_only_val_can_be_looked_at():
    with pytest.raises(InputError, match=r"looks=\[2\].*test.*scored once"):
        CellConfig(looks=(2,))


# What a look does to a cell: nothing


def small(**changes: Any) -> CellConfig:
    values: dict[str, Any] = {
        "data": DataConfig(dataset="digits", limit_train=32, limit_test=32, evaluate="val"),
        "backbone": BackboneConfig(),
        "method": MethodConfig("bias"),
        "train": TrainConfig(epochs=5, warmup_epochs=0, batch_size=8, lr=1e-2, drop_path=0.2),
        "threads": 1,
        "trial": True,
    }
    return CellConfig(**values | changes)


@pytest.mark.parametrize("method", ["bias", "linear"])
def test_looking_changes_neither_the_cell_nor_its_result(method):
    plain, looked = small(method=MethodConfig(method)), small(method=MethodConfig(method), looks=(1, 3))
    heard: list[dict[str, Any]] = []
    one = run.run(plain)
    two = run.run(looked, on_look=lambda so_far: heard.append(json.loads(json.dumps(dataclasses.asdict(so_far)))))
    assert one.cell_id == two.cell_id and one.status == "done"
    assert one.accuracy == two.accuracy
    assert [point["loss"] for point in one.curve] == [point["loss"] for point in two.curve]
    assert [len(so_far["curve"]) for so_far in heard] == [1, 3]
    assert set(halving.seen(two)) == {1, 3} and not halving.seen(one)
    assert (halving.count_looks(one), halving.count_looks(two)) == (1, 3)


def test_what_is_seen_is_the_accuracy_of_that_epoch():
    asked = small(train=TrainConfig(epochs=4, warmup_epochs=0, batch_size=8, lr=1e-2), looks=(2,))
    found = run.prepare(open_cell(asked))
    torch.manual_seed(asked.seed)
    expected = -1.0
    for metrics in train(found.adapted, found.loaded.train, asked.train, asked.seed):
        if metrics["epoch"] == 2:
            expected = accuracy(found.adapted, found.loaded.scored, asked.train)
            break
    assert halving.seen(run.run(asked)) == {2: expected}


def test_a_trial_that_was_killed_shows_again_what_it_had_shown(tmp_path):
    asked, keep = small(looks=(1, 3)), Keep(tmp_path, 0)
    whole = run.run(asked)

    def kill(metrics: dict[str, float]) -> None:
        if metrics["epoch"] == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.run(asked, kill, keep)
    heard: list[int] = []
    again = run.run(asked, None, keep, lambda so_far: heard.append(len(so_far.curve)))
    assert again.resumed == 1 and heard == [1, 3]
    assert halving.seen(again) == halving.seen(whole) and again.accuracy == whole.accuracy


def test_a_stopped_trial_is_a_record_of_its_own_kind(tmp_path):
    so_far = make_record(trial=True, evaluated_on="val", curve=[_point(1), _point(2, 40.0)], accuracy=None)
    found = halving.stopped(so_far)
    path = record.write(found, tmp_path)
    assert record.read(path) == found and found.status == "stopped"
    assert (found.seconds, found.accuracy, halving.count_looks(found)) == (4.0, None, 1)
    checkpoint_path(tmp_path, found.cell_id).parent.mkdir()
    checkpoint_path(tmp_path, found.cell_id).touch()
    remove_checkpoint(found, tmp_path)
    assert not checkpoint_path(tmp_path, found.cell_id).exists()
    assert track_names.run_tags(found)["status"] == "stopped"
    assert ("val_accuracy", 40.0, 2) in track_names.run_metrics(found)
    assert "val 40.0 % after epoch 2 of" in progress.ended(found, small())


def _point(epoch: int, seen: float | None = None) -> dict[str, float]:
    point: dict[str, float] = {"epoch": epoch, "loss": 1.0, "lr": 0.1, "seconds": 2.0}
    return point if seen is None else {**point, "val_accuracy": seen}


# Who is stopped


def _trial(cell_id: str) -> Any:
    return types.SimpleNamespace(trial_id=f"tune {cell_id}", config={"cell": {"id": cell_id}})


RECIPE = TrainConfig(epochs=12, warmup_epochs=1)


@pytest.fixture(scope="module")
def ray_as_the_pool_wants_it():
    """Ray reads its switches once in a process, when it is imported first."""
    for name, value in (runtime.RAY_SWITCHES | runtime.OWN_SWITCHES).items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("RAY_AUTH_TOKEN", "ab" * 32)


@ray_only
@pytest.mark.usefixtures("ray_as_the_pool_wants_it")
@pytest.mark.filterwarnings("ignore")
@given(
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from("AB"), st.integers(0, 9)), min_size=1, max_size=40),
    st.integers(0, 6),
)
def test_ray_stops_what_is_below_the_upper_third_of_its_own_search_and_interruptions_change_nothing(shown, restart):
    """Against ASHA in a few lines, with a restart of the scheduler after some trials have ended."""
    groups = {f"{name}{number}": name for name in "AB" for number in range(6)}
    recipes = dict.fromkeys("AB", RECIPE)
    part = halving.scheduler(Halving(groups, recipes))
    for cell_id in groups:
        part.on_trial_add(None, _trial(cell_id))  # type: ignore[arg-type]
    at: dict[tuple[str, int], list[float]] = {}
    progress: dict[str, int] = {}
    curves: dict[str, list[dict[str, float]]] = {}
    for count, (number, name, value) in enumerate(shown):
        cell_id = f"{name}{number}"
        look = progress.get(cell_id, 0)
        if look > 1:
            continue
        epoch = halving.looks(RECIPE)[look]
        decision = part.on_trial_result(None, _trial(cell_id), {"look": epoch, "val_accuracy": float(value)})  # type: ignore[arg-type]
        before = sorted(at.setdefault((name, epoch), []))
        # Below the value that two thirds of the others lie below, drawn as a line between them.
        place = (len(before) - 1) * 2 / 3
        low, high = before[int(place)] if before else 0, before[min(int(place) + 1, len(before) - 1)] if before else 0
        behind = bool(before) and value < low + (high - low) * (place - int(place)) - 1e-9
        assert (decision == "STOP") == behind
        at[name, epoch].append(float(value))
        progress[cell_id] = 2 if behind else look + 1
        curves.setdefault(cell_id, []).append(_point(epoch, float(value)))
        if count == restart:
            ended = tuple(
                make_record(cell_id=each, curve=curves[each], status="stopped", accuracy=None, trial=True)
                for each in curves
            )
            part = halving.scheduler(Halving(groups, recipes, ended))
            for each in groups:
                part.on_trial_add(None, _trial(each))  # type: ignore[arg-type]


# What is chosen


def _record(cell_id: str, **changes: Any) -> Record:
    curve = changes.pop("curve", [_point(epoch) for epoch in range(1, 13)])
    return make_record(cell_id=cell_id, trial=True, evaluated_on="val", curve=curve, **changes)


def test_a_stopped_trial_is_not_chosen_however_good_it_was_and_its_cost_is_counted():
    points = tuple({"train.weight_decay": 0.0, "train.lr": lr} for lr in (1e-3, 1e-2, 1e-1))
    found: dict[str, Record | None] = {
        "a": _record("a", accuracy=50.0),
        "b": _record("b", accuracy=None, status="stopped", curve=[_point(1), _point(2, 99.0)]),
        "c": _record("c", accuracy=None, status="failed", error={"type": "Diverged", "message": "NaN"}, curve=[]),
    }
    asked = search.Search((CellConfig(),), points, (CellConfig(),) * 3, search.Mode(scheduler="asha"))
    choice = search.choose(asked, list("abc"), found)
    assert choice is not None and choice.best == 0
    summary = choice.summary()
    assert (summary["scheduler"], summary["stopped"], summary["diverged"]) == ("asha", 1, 1)
    assert (summary["total_epochs"], summary["total_looks"]) == (12 + 2 + 0, 1 + 1 + 0)
    whole = dataclasses.replace(asked, mode=search.Mode())
    assert search.choose(whole, list("abc"), found) is None, "without the scheduler it has yet to come to its end"
    found["a"] = _record("a", accuracy=None, status="failed", error={"type": "Diverged", "message": "NaN"})
    assert search.choose(asked, list("abc"), found) is None


def test_a_plan_runs_a_stopped_trial_again_only_where_nothing_stops_it(tmp_path):
    record.write(_record("a" * 16, accuracy=None, status="stopped"), tmp_path)
    cells = {"a" * 16: small()}
    assert not run_search.plan_trials(cells, tmp_path, search.Mode(scheduler="asha")).todo
    plain = run_search.plan_trials(cells, tmp_path, search.Mode())
    assert plain.todo == ["a" * 16] and not plain.again, "it has not failed"


def test_a_row_says_that_its_search_stopped_trials():
    def searched(**more: Any) -> str | None:
        return stats.describe_search(make_record(search={"mode": "grid", "trials": 12, "chosen": {}, **more}))

    assert (searched(), searched(scheduler="none"), searched(scheduler="asha")) == (
        "grid of 12",
        "grid of 12",
        "grid of 12, asha",
    )


# The command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search-scheduler", "asha"], ["--search grid", "never stopped"]),
        (["--search-scheduler", "asha", "--search", "3", "--serial"], ["--serial"]),
        (["--search-scheduler", "asha", "--search", "3", "--epochs", "1"], ["1 epochs", "warm-up"]),
        (["--search-scheduler", "median", "--search", "3"], ["median", "asha"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_what_cannot_work_is_one_sentence_before_anything_runs(capsys, tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    try:
        assert main(["sweep", "--datasets", "digits", "--methods", "bias", "--random-weights", *arguments]) == 2
    except SystemExit as end:  # tyro's own
        assert end.code == 2
    err = capsys.readouterr().err
    assert all(word in err for word in words), err
    assert not list(tmp_path.iterdir())


def test_without_ray_it_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run_search, "find_spec", lambda name: None)
    assert main(["sweep", "--methods", "bias", "--search", "3", "--search-scheduler", "asha"]) == 2
    assert "Ray is not installed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


ASHA = ["sweep", "--datasets", "digits", "--methods", "linear", "--limit-train", "48", "--limit-test", "48"]
ASHA += ["--epochs", "6", "--max-concurrent", "2"]


@pytest.mark.full
@pytest.mark.ray
@ray_only
@pytest.mark.filterwarnings("ignore")
@pytest.mark.timeout(900)  # a busy machine starts Ray's processes slowly
def test_a_search_with_stops_ends_chooses_among_the_whole_and_runs_no_stopped_trial_again(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    searching = [*ASHA, "--search", "10", "--search-scheduler", "asha"]
    starts, start = [], runtime._start
    monkeypatch.setattr(runtime, "_start", lambda *given: (starts.append(given), start(*given)))
    assert main(searching) == 0
    assert len(starts) == 1, "trials and final cells share one Ray"
    found = [each for _, each in record.read_all(Path("results")) if isinstance(each, Record)]
    trials = [each for each in found if each.trial]
    stopped = [each for each in trials if each.status == "stopped"]
    (final,) = (each for each in found if not each.trial)
    assert len(trials) == 10 and stopped and {each.status for each in trials} == {"done", "stopped"}
    looks = halving.looks(TrainConfig(**final.train_config))
    assert {len(each.curve) for each in stopped} <= set(looks)
    assert all(each.hardware and each.measured_mb and each.accuracy is None for each in stopped)
    assert final.status == "done" and len(final.curve) == 6 and not halving.seen(final)
    assert final.search is not None
    assert final.search["total_epochs"] == sum(len(each.curve) for each in trials) < 60
    assert final.search["total_looks"] == sum(halving.count_looks(each) for each in trials)
    whole = [each for each in trials if each.status == "done"]
    assert final.search["val_accuracy"] == max(each.accuracy or 0 for each in whole)
    assert f"10, {len(stopped)} stopped" in capsys.readouterr().out

    written = sorted((p, p.read_bytes()) for p in Path("results").rglob("*.json"))
    monkeypatch.setattr(run, "run", lambda *_: pytest.fail("nothing is left to run"))
    assert main(searching) == 0
    assert sorted((p, p.read_bytes()) for p in Path("results").rglob("*.json")) == written
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    capsys.readouterr()
    assert main([*ASHA, "--search", "10", "--dry-run"]) == 0
    assert capsys.readouterr().out.count("missing") >= len(stopped)
