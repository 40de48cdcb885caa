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
from PIL import Image
from s2a_bench.cells import record, run
from s2a_bench.cells.record import Record
from s2a_bench.cli.main import main
from s2a_bench.config import CellConfig
from s2a_bench.data.table.lookup import DATASETS, Counts
from s2a_bench.data.table.types import VTAB_LISTS
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.search import choice as search
from s2a_bench.tracking import runs as track
from s2a_bench.tracking import store as track_store

METHODS = sorted(s2a.list_methods())
SMALL = ["--random-weights", "--limit-train", "16", "--limit-test", "16", "--epochs", "1", "--serial"]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


# The command


class Fake:
    """Cells that end at once: trials in an accuracy that depends on their recipe, others in 80."""

    def __init__(self) -> None:
        self.ran: list[CellConfig] = []
        self.outcome: dict[float, BaseException | str] = {}  # by learning rate
        self.highest: dict[str, float] = {}  # accuracy of a method's best trial, if not 70

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

    def play(self, cell: CellConfig, on_epoch: Any = None, keep: Any = None, **_: Any) -> Record:
        self.ran.append(cell)
        changes: dict[str, Any] = {"accuracy": 80.0}
        if cell.trial:
            highest = self.highest.get(cell.method.name, 70.0)
            changes["accuracy"] = highest - abs(math.log10(cell.train.lr / self.best(cell.method.name)))
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


def test_a_trial_whose_loss_is_not_finite_has_ended_and_is_not_run_again(fake, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")  # so that no line of the table is broken
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


def test_a_search_whose_best_trial_did_not_learn_says_so(fake, capsys):
    fake.highest["bias"] = 10.0  # of ten classes
    assert main([*SWEEP, "--search", "grid"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Of bias on digits, mini_vit even the chosen trial did not learn: its accuracy of 10.0 %" in said
    assert "Of full" not in said


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
    assert "12 cells to run, trials and final ones" in out and "Estimate: unknown" in out
    assert not fake.ran and not list(tmp_path.iterdir())
    assert main([*SWEEP, "--search", "3"]) == 0
    capsys.readouterr()
    assert main([*SWEEP, "--search", "3", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert (out.count("done"), out.count("after the search")) == (12, 0)
    assert "0 cells to run" in out and "Estimate: nothing to run." in out


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


# Ray, and MLflow


@pytest.mark.full
@pytest.mark.ray
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
    trial = track.names.run_tags(make_record(trial=True, evaluated_on="val"))
    assert (trial["trial"], trial["search"]) == ("true", "null")
    summary = {"mode": "grid", "trials": 12, "chosen": {"train.lr": 0.01}, "trial_ids": ["a"]}
    final = track.names.run_tags(make_record(search=summary))
    assert (final["search"], final["search.trials"], final["search.chosen.train.lr"]) == ("grid", "12", "0.01")
