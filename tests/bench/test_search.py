"""The search: equal budgets, nothing of the test set, a choice that anyone can make again from the records."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import s2a
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from s2a_bench import grid, recipes, record, report_tables, run, search, search_spaces, stats, track, track_store
from s2a_bench.cli import main
from s2a_bench.config import CellConfig
from s2a_bench.dataset_types import VTAB_LISTS
from s2a_bench.datasets import DATASETS, Counts
from s2a_bench.record import Record

METHODS = sorted(s2a.list_methods())
SMALL = ["--random-weights", "--limit-train", "16", "--limit-test", "16", "--epochs", "1", "--serial"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# The spaces


@pytest.mark.parametrize("method", [*METHODS, "one_from_another_package"])
def test_every_grid_has_as_many_points_and_holds_the_default_recipe(method):
    points = search_spaces.grid(search_spaces.get(method))
    assert len(points) == search_spaces.GRID == 12
    assert len({json.dumps(point) for point in points}) == 12
    default = recipes.train_config("vtab", method)
    at_default = [p for p in points if (p["train.lr"], p["train.weight_decay"]) == (default.lr, default.weight_decay)]
    rest = [{k: v for k, v in point.items() if k.startswith("method.")} for point in at_default]
    if method in METHODS:
        config = s2a.method_config(method)
        assert any(all(getattr(config, k[7:]) == v for k, v in each.items()) for each in rest)


def test_the_learning_rates_reach_where_each_kind_of_method_needs_them():
    """Full diverges or collapses at the rates of small modules: its grid goes below 1e-4, the others' to 1e-1."""
    for method in METHODS:
        rates = [point["train.lr"] for point in search_spaces.grid(search_spaces.get(method))]
        assert (min(rates) < 1e-4) if method == "full" else (max(rates) >= 1e-1)


@pytest.mark.parametrize("method", METHODS)
def test_draws_are_distinct_stay_inside_and_a_longer_search_only_adds_some(method):
    space = search_spaces.get(method)
    points = search_spaces.draws(space, 200)
    assert len({json.dumps(point) for point in points}) == 200
    assert search_spaces.draws(space, 7) == points[:7]
    for axis in space:
        values = [point[axis.key] for point in points]
        if axis.logarithmic:
            assert axis.values[0] <= min(values) and max(values) <= axis.values[-1]
            # Log-uniform: the median of 200 draws lies near the geometric middle of the range.
            middle = math.sqrt(axis.values[0] * axis.values[-1])
            assert abs(math.log10(float(np.median(values)) / middle)) < 0.1 * math.log10(
                axis.values[-1] / axis.values[0]
            )
            assert all(float(f"{value:.3g}") == value for value in values), "a value can be typed"
        else:
            assert set(values) == set(axis.values)


def test_a_draw_is_at_the_same_place_of_every_methods_range():
    def places(method: str) -> list[float]:
        axis = next(axis for axis in search_spaces.get(method) if axis.key == "train.lr")
        low, high = axis.values[0], axis.values[-1]
        drawn = [point["train.lr"] for point in search_spaces.draws(search_spaces.get(method), 30)]
        return [math.log(lr / low) / math.log(high / low) for lr in drawn]

    for method in METHODS:
        assert places(method) == pytest.approx(places("full"), abs=0.02)


@pytest.mark.parametrize("method", ["full", "linear", "lora", "adaptformer", "s2a"])
def test_the_points_are_cells_of_their_own_that_every_model_takes(method):
    (found,) = search.searches(_cells(method), search.Mode())
    assert len({run.identify(trial) for trial in found.trials}) == 12


def _cells(*methods: str, **changes: Any) -> list[CellConfig]:
    return grid.expand(grid.Request(datasets=("digits",), methods=methods, **changes))


def test_trials_differ_from_the_final_cells_in_what_is_searched_and_nothing_else():
    cells = _cells("lora", seeds=(0, 1, 2), limit_train=50, epochs=7)
    (found,) = search.searches(cells, search.Mode())
    assert found.finals == tuple(cells)
    for trial, point in zip(found.trials, found.points, strict=True):
        assert (trial.data.evaluate, trial.seed, trial.trial) == ("val", search.SEED, True)
        assert (trial.train.lr, trial.train.weight_decay) == (point["train.lr"], point["train.weight_decay"])
        assert trial.method.options.get("alpha") == point["method.alpha"]
        back = dataclasses.replace(
            trial,
            data=dataclasses.replace(trial.data, evaluate="test"),
            method=cells[0].method,
            train=dataclasses.replace(trial.train, lr=cells[0].train.lr, weight_decay=cells[0].train.weight_decay),
            seed=0,
            trial=False,
        )
        assert back == cells[0]


def test_one_search_for_each_method_dataset_and_backbone():
    request = grid.Request(datasets=("digits", "count"), methods=("s2a", "s2a:bits=8", "bias"), seeds=(0, 1))
    found = search.searches(grid.expand(request), search.Mode(3))
    assert len(found) == 6
    assert all(len(each.finals) == 2 and len(each.trials) == 3 for each in found)


# The choice


RATES = st.sampled_from([1e-4, 1e-3, 1e-2])


@given(
    st.lists(st.tuples(st.none() | st.sampled_from([10.0, 20.0, 30.0]), RATES, RATES), min_size=1, max_size=8),
    st.randoms(),
)
def test_the_choice_is_the_best_then_the_gentlest_then_the_first(trials, shuffler):
    """Against a tournament: every trial is compared with the leader, in words, one rule after the other."""
    leader: int | None = None
    for i, (accuracy, lr, decay) in enumerate(trials):
        if accuracy is None:
            continue
        if leader is None:
            leader = i
            continue
        best, best_lr, best_decay = trials[leader]
        if accuracy > best or (accuracy == best and (lr < best_lr or (lr == best_lr and decay < best_decay))):
            leader = i

    ids = [f"{i:016}" for i in range(len(trials))]
    points = tuple({"train.weight_decay": decay, "train.lr": lr} for _, lr, decay in trials)
    asked = search.Search((CellConfig(),), points, (CellConfig(),) * len(trials), search.Mode())
    found = [_trial_record(cell_id, accuracy) for cell_id, (accuracy, _, _) in zip(ids, trials, strict=True)]
    shuffler.shuffle(found)
    choice = search.choose(asked, ids, {each.cell_id: each for each in found})
    assert (choice.best if choice else None) == leader


def _trial_record(cell_id: str, accuracy: float | None) -> Record:
    if accuracy is None:
        return make_record(cell_id=cell_id, status="failed", trial=True)  # Diverged
    return make_record(cell_id=cell_id, accuracy=accuracy, trial=True, evaluated_on="val")


@pytest.mark.parametrize("error", [None, {"type": "WorkerDied", "message": "killed"}])
def test_there_is_no_choice_before_every_trial_has_ended(error):
    points = tuple({"train.weight_decay": 0.0, "train.lr": lr} for lr in (1e-3, 1e-2))
    asked = search.Search((CellConfig(),), points, (CellConfig(),) * 2, search.Mode())
    found: dict[str, Record | None] = {"a": _trial_record("a", 99.0), "b": None}
    if error:
        found["b"] = make_record(cell_id="b", status="failed", error=error)
    assert search.choose(asked, ["a", "b"], found) is None
    found["b"] = _trial_record("b", 50.0)
    choice = search.choose(asked, ["a", "b"], found)
    assert choice is not None and choice.best == 0


# The command


class Fake:
    """Cells that end at once: trials in an accuracy that depends on their recipe, others in 80."""

    def __init__(self) -> None:
        self.ran: list[CellConfig] = []
        self.outcome: dict[float, BaseException | str] = {}  # by learning rate

    def identify(self, cell: CellConfig) -> str:
        config = s2a.method_config(cell.method.name, **cell.method.options)
        train, method = dataclasses.asdict(cell.train), dataclasses.asdict(config)
        return record.cell_id(
            {
                "data": [cell.data.dataset, cell.data.evaluate],
                "m": [cell.method.name, method],
                "t": train,
                "s": cell.seed,
            }
        )

    def best(self, method: str) -> float:
        return {"full": 1e-4, "bias": 3e-3}.get(method, 1e-2)

    def play(self, cell: CellConfig, on_epoch: Any = None, keep: Any = None) -> Record:
        self.ran.append(cell)
        changes: dict[str, Any] = {"accuracy": 80.0}
        if cell.trial:
            changes["accuracy"] = 70 - abs(math.log10(cell.train.lr / self.best(cell.method.name)))
            outcome = self.outcome.get(cell.train.lr)
            if isinstance(outcome, BaseException):
                raise outcome
            if outcome:
                changes = {"status": "failed", "error": {"type": outcome, "message": "It ended."}}
        return make_record(
            **changes,
            cell_id=self.identify(cell),
            dataset=cell.data.dataset,
            method=cell.method.name,
            method_config=dict(cell.method.options),
            train_config=dataclasses.asdict(cell.train),
            seed=cell.seed,
            evaluated_on=cell.data.evaluate,
            trial=cell.trial,
            search=json.loads(json.dumps(cell.search)),
        )


@pytest.fixture
def fake(monkeypatch) -> Fake:
    state = Fake()
    monkeypatch.setattr(run, "identify", state.identify)
    monkeypatch.setattr(run, "run", state.play)
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)  # untracked: MLflow has tests of its own
    return state


SWEEP = ["sweep", *SMALL, "--datasets", "digits", "--methods", "full", "bias", "--seeds", "0", "1", "2"]


def _records() -> list[Record]:
    return [found for _, found in record.read_all(Path("results")) if isinstance(found, Record)]


def test_trials_first_then_the_final_cells_with_what_was_chosen(fake, capsys):
    assert main([*SWEEP, "--search", "grid"]) == 0
    assert [cell.trial for cell in fake.ran] == [True] * 24 + [False] * 6
    assert {cell.data.evaluate for cell in fake.ran[:24]} == {"val"}
    for cell in fake.ran[24:]:
        assert cell.data.evaluate == "test"
        assert (cell.train.lr, cell.train.weight_decay) == (fake.best(cell.method.name), 1e-4)
    for found in _records():
        if found.trial:
            assert found.search is None
            continue
        assert found.search is not None
        assert (found.search["mode"], found.search["trials"], found.search["seed"]) == ("grid", 12, search.SEED)
        assert found.search["val_accuracy"] == 70.0
        assert found.search["chosen"]["train.lr"] == found.train_config["lr"]
        tried = [record.read(record.record_path(Path("results"), i)) for i in found.search["trial_ids"]]
        assert found.search["trial"] == max(tried, key=lambda r: r.accuracy or 0).cell_id
    files = [json.loads(path.read_text()) for path in Path("results/search").glob("*.json")]
    assert sorted(each["method"] for each in files) == ["bias", "full"]
    out = capsys.readouterr().out
    assert "2 searches of 12 trials" in out and "train.lr=0.0001" in out

    count, written = len(fake.ran), sorted((p, p.read_bytes()) for p in Path("results").rglob("*.json"))
    assert main([*SWEEP, "--search", "grid"]) == 0
    assert len(fake.ran) == count, "with everything done nothing runs"
    assert sorted((p, p.read_bytes()) for p in Path("results").rglob("*.json")) == written


def test_the_report_has_no_trials_but_says_how_many_there_are(fake):
    assert main([*SWEEP, "--search", "grid"]) == 0
    text = Path("results/report.md").read_text()
    assert "scored on val" not in text and "scored on test" in text.lower()
    assert "6 cells done" in text and "24 trials of searches on val" in text


def test_a_report_of_nothing_but_trials_stands(fake):
    assert main([*SWEEP, "--search", "2", "--evaluate", "val"]) == 0
    assert main(["report"]) == 0
    assert "4 trials of searches on val" in Path("results/report.md").read_text()


def test_without_a_search_nothing_is_searched(fake):
    assert main(SWEEP) == 0
    assert not any(cell.trial for cell in fake.ran) and len(fake.ran) == 6
    assert all(found.search is None for found in _records())
    assert not Path("results/search").exists()


def test_a_longer_random_search_only_runs_what_is_new_and_every_method_has_as_many(fake):
    assert main([*SWEEP, "--search", "3"]) == 0
    assert main([*SWEEP, "--search", "5"]) == 0
    trials = [cell for cell in fake.ran if cell.trial]
    assert [sum(cell.method.name == name for cell in trials) for name in ("full", "bias")] == [5, 5]


def test_a_trial_whose_loss_is_not_finite_has_ended_and_is_not_run_again(fake, capsys):
    fake.outcome[fake.best("bias")] = "Diverged"
    assert main([*SWEEP, "--search", "grid"]) == 0
    finals = [cell for cell in fake.ran if not cell.trial and cell.method.name == "bias"]
    # 1e-3 and 1e-2 are nearly as far from the best; the nearer one by logarithm wins.
    assert {cell.train.lr for cell in finals} == {1e-3 if abs(math.log10(1 / 3)) < math.log10(1e-2 / 3e-3) else 1e-2}
    assert "12, 2 diverged" in capsys.readouterr().out
    count = len(fake.ran)
    assert main([*SWEEP, "--search", "grid"]) == 0
    assert len(fake.ran) == count


def test_a_crashed_trial_keeps_its_method_from_the_test_set_and_no_other(fake, capsys):
    fake.outcome[1e-1] = "WorkerDied"  # in bias's grid, not in full's
    assert main([*SWEEP, "--search", "grid"]) == 1
    assert {cell.method.name for cell in fake.ran if not cell.trial} == {"full"}
    out = capsys.readouterr().out
    assert "Nothing was chosen for bias on digits, mini_vit: 2 of 12 trials have not ended" in out
    fake.outcome.clear()
    fake.ran.clear()
    assert main([*SWEEP, "--search", "grid"]) == 0
    assert [cell.trial for cell in fake.ran] == [True] * 2 + [False] * 3


def test_a_search_in_which_every_loss_is_infinite_chooses_nothing(fake, capsys):
    for lr in (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3):
        fake.outcome[lr] = "Diverged"
    assert main(["sweep", *SMALL, "--datasets", "digits", "--methods", "full", "--search", "grid"]) == 1
    assert not [cell for cell in fake.ran if not cell.trial]
    assert "Nothing was chosen for full on digits, mini_vit: the loss of all 12" in capsys.readouterr().out


def test_ctrl_c_in_the_search_ends_before_any_final_cell_and_the_same_command_goes_on(fake):
    fake.outcome[1e-1] = KeyboardInterrupt()
    assert main([*SWEEP, "--search", "grid"]) == 130
    assert all(cell.trial for cell in fake.ran) and not Path("results/search").exists()
    before, _ = len(fake.ran), fake.outcome.clear()
    assert main([*SWEEP, "--search", "grid"]) == 0
    assert len(fake.ran) - before == 30 - (before - 1)


def test_a_cell_that_ran_before_is_told_how_its_config_was_chosen(fake):
    """The default recipe of ``s2a`` is what its search will choose: the same cell, which need not run again."""
    sweep = ["sweep", *SMALL, "--datasets", "digits", "--methods", "s2a"]
    assert main(sweep) == 0
    assert main([*sweep, "--search", "grid"]) == 0
    assert sum(not cell.trial for cell in fake.ran) == 1
    (final,) = [found for found in _records() if not found.trial]
    assert final.search is not None and final.search["mode"] == "grid"


def test_a_dry_run_shows_trials_and_final_cells_and_writes_nothing(fake, capsys, tmp_path):
    assert main([*SWEEP, "--search", "3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert (out.count("missing"), out.count("after the search")) == (6, 6)
    assert not fake.ran and not list(tmp_path.iterdir())
    assert main([*SWEEP, "--search", "3"]) == 0
    capsys.readouterr()
    assert main([*SWEEP, "--search", "3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert (out.count("done"), out.count("after the search")) == (12, 0)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--search", "all"], ["--search all", "grid", "none"]),
        (["--search", "0"], ["--search 0", "from 1"]),
        (["--search", "-3"], ["-3"]),
        (["--search", "2.5"], ["2.5"]),
        (["--search", "100000"], ["100000", "200"]),
        (["--search", "grid", "--seeds", "0", "1000"], ["1000", "--seeds"]),
        (["--search", "grid", "--set", "train.lr=0.5"], ["train.lr=0.5", "--search none"]),
        (["--search", "grid", "--set", "train.weight_decay=0"], ["train.weight_decay=0"]),
        (["--search", "2", "--methods", "lora:alpha=3"], ["method.alpha=3", "lora"]),
        (["--search", "grid", "--methods", "s2b"], ["s2b"]),
        (["--search", "grid", "--suite", "vtab", "--datasets", "svhn", "--data-dir", "D"], ["svhn", "data prepare"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_bad_input_is_one_sentence_before_anything_runs(capsys, arguments, words, tmp_path):
    datasets = [] if "--datasets" in arguments else ["--datasets", "digits"]
    assert main(["sweep", *SMALL, *datasets, *arguments]) == 2
    err = capsys.readouterr().err
    assert "\n" not in err.strip() or "╭" in err, err
    for word in words:
        assert word in err
    assert not list(tmp_path.iterdir())


def test_a_value_that_is_the_recipes_own_or_not_searched_may_be_given():
    cells = grid.expand(
        grid.Request(datasets=("digits",), methods=("bias",), settings=("train.lr=0.01", "train.clip_norm=1.0"))
    )
    (found,) = search.searches(cells, search.Mode())
    assert len(found.trials) == 12 and all(trial.train.clip_norm == 1.0 for trial in found.trials)


# The test set


SIZES = dict(zip(VTAB_LISTS, (6, 4, 10, 5), strict=True))
OPENED: list[str] | None = None


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if OPENED is not None and event in ("open", "os.listdir", "os.scandir"):
        OPENED.append(str(arguments[0]))


sys.addaudithook(_hook)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """Every path that this process opens, whichever way, in order."""
    global OPENED
    OPENED = []
    yield OPENED
    OPENED = None


@pytest.fixture
def svhn(tmp_path, monkeypatch) -> Path:
    """A small VTAB folder without manifest."""
    row = dataclasses.replace(DATASETS["svhn"], counts=Counts(*SIZES.values()))
    monkeypatch.setitem(DATASETS, "svhn", row)
    folder, random = tmp_path / "data" / "svhn", np.random.default_rng(0)
    for name, count in SIZES.items():
        (folder / "images" / name).mkdir(parents=True)
        lines = []
        for i in range(count):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            if name == "train800val200":  # the same images as in train and val
                source, k = ("train800", i) if i < SIZES["train800"] else ("val200", i - SIZES["train800"])
                pixels = np.asarray(Image.open(folder / f"images/{source}/{k:06d}.png"))
            Image.fromarray(pixels).save(folder / f"images/{name}/{i:06d}.png")
            lines.append(f"images/{name}/{i:06d}.png {i % 3}")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


VTAB = ["sweep", "--suite", "vtab", "--datasets", "svhn", "--data-dir", "data", "--backbones", "mini_vit"]
VTAB += ["--methods", "linear", "--epochs", "1", "--random-weights", "--serial"]


def _of_test(path: str) -> bool:
    return "/svhn/" in path and ("/test.txt" in path or "/images/test" in path or "/test-" in path)


def test_until_the_choice_is_written_nothing_of_the_test_set_is_opened(svhn, opened, monkeypatch):
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    assert main([*VTAB, "--search", "2"]) == 0
    chosen = next(i for i, path in enumerate(opened) if "/results/search/" in path)
    assert any("/images/val200/" in path for path in opened[:chosen]), "the spy sees images"
    assert not [path for path in opened[:chosen] if _of_test(path)]
    assert any(path.endswith("/test.txt") for path in opened[chosen:]), "and the final cell opens them"
    assert any("/images/test/" in path for path in opened[chosen:])


def test_a_search_alone_needs_no_test_set_and_a_whole_one_says_what_is_missing(svhn, opened, capsys, monkeypatch):
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    (svhn / "test.txt").unlink()
    for path in (svhn / "images" / "test").iterdir():
        path.unlink()
    assert main([*VTAB, "--search", "2"]) == 2
    err = capsys.readouterr().err
    assert "test.txt is not there" in err and "--evaluate val" in err
    assert not Path("results").exists()
    assert main([*VTAB, "--search", "2", "--evaluate", "val"]) == 0
    found = _records()
    assert [(each.status, each.trial, each.evaluated_on) for each in found] == [("done", True, "val")] * 2
    assert {(each.train_images, each.scored_images) for each in found} == {(6, 4)}
    assert len([*Path("results/search").glob("*.json")]) == 1
    assert not [path for path in opened if "/images/test/" in path]


# The views


def _searched(mode: str = "grid", trials: int = 12, **changes: Any) -> Record:
    chosen = {"method.scale": changes["method_config"]["scale"], "train.lr": changes["train_config"]["lr"]}
    return make_record(method="adaptformer", search={"mode": mode, "trials": trials, "chosen": chosen}, **changes)


def _row(dataset: str, scale: float, lr: float) -> dict[str, Any]:
    config = {"width": 64, "scale": scale}
    return {"dataset": dataset, "method_config": config, "train_config": {"epochs": 3, "batch_size": 32, "lr": lr}}


def test_what_a_search_chose_for_each_dataset_is_one_row_with_averages():
    found = [_searched(**_row("digits", 0.1, 0.01), seed=seed, accuracy=80.0 + seed) for seed in (0, 1)]
    found += [_searched(**_row("texture", 1.0, 0.1), seed=seed, accuracy=60.0 + seed) for seed in (0, 1)]
    (section,) = report_tables.sections(found)
    (row,) = section.rows
    assert row.label == "adaptformer"
    assert row.averages is not None and row.averages.mean_of_tasks.mean == 70.5


def test_searched_and_unsearched_and_searches_of_other_sizes_are_rows_of_their_own():
    plain = {"method": "adaptformer"} | _row("digits", 0.1, 0.01)
    found = [
        make_record(**plain),
        _searched(**_row("digits", 1.0, 0.1)),
        _searched("random", 5, **_row("digits", 0.2, 0.03)),
    ]
    (section,) = report_tables.sections(found)
    assert {row.label for row in section.rows} == {
        "adaptformer (scale=0.1)",
        "adaptformer (search=grid of 12)",
        "adaptformer (search=random 5)",
    }
    other = make_record(**({"method": "adaptformer"} | _row("texture", 0.1, 0.01)))
    with pytest.raises(stats.NotComparable, match="search"):
        stats.averages(
            [_searched(**_row("digits", 0.1, 0.01)), dataclasses.replace(other, method_config={"width": 64})]
        )


def test_seeds_of_one_task_with_different_choices_are_not_averaged():
    found = [_searched(**_row("digits", 0.1, 0.01), seed=0), _searched(**_row("digits", 1.0, 0.01), seed=1)]
    with pytest.raises(stats.NotComparable, match="method_config"):
        stats.task_mean(found)


def test_trials_are_in_no_table():
    trial = make_record(trial=True, evaluated_on="val", method="bias")
    (section,) = report_tables.sections([make_record(), trial, make_record(trial=True, status="failed", seed=9)])
    assert [each.method for _, each in section.records] == ["s2a"]


# Ray, and MLflow


@pytest.mark.filterwarnings("ignore")  # Ray's own, about its dependencies
@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
@pytest.mark.timeout(900)
def test_ray_and_this_process_choose_the_same(monkeypatch):
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    common = ["sweep", *SMALL, "--datasets", "digits", "--methods", "linear", "--search", "3", "--evaluate", "val"]
    assert main([*common, "--output", "here"]) == 0
    assert main([*[word for word in common if word != "--serial"], "--max-concurrent", "2", "--output", "ray"]) == 0
    here, ray = ({p.name: p.read_text() for p in Path(place, "search").iterdir()} for place in ("here", "ray"))
    assert here == ray and len(here) == 1


def test_mlflow_is_told_what_was_a_trial_and_what_was_chosen():
    trial = track.names.tags(make_record(trial=True, evaluated_on="val"))
    assert (trial["trial"], trial["search"]) == ("true", "null")
    summary = {"mode": "grid", "trials": 12, "chosen": {"train.lr": 0.01}, "trial_ids": ["a"]}
    final = track.names.tags(make_record(search=summary))
    assert (final["search"], final["search.trials"], final["search.chosen.train.lr"]) == ("grid", "12", "0.01")
