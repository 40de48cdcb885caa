"""Estimates: the sums by hand, what is known and what is only guessed, and what is said about it."""

from __future__ import annotations

import dataclasses
import io
import json
from itertools import product
from typing import Any

import pytest
from bench.factories import make_record
from rich.console import Console
from s2a_bench.cells import estimate, provenance, record, run
from s2a_bench.cells.estimate import Cost, Costs, forecast, from_records, sentence
from s2a_bench.cells.outputs import Keep
from s2a_bench.cli import estimate as commands_estimate
from s2a_bench.cli.main import main
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.data.table.lookup import DATASETS

TRAIN = TrainConfig(epochs=5, warmup_epochs=1)


def cell(method: str = "bias", backbone: str = "mini_vit", **changes) -> CellConfig:
    options = changes.pop("options", {})
    return CellConfig(
        data=DataConfig(dataset="digits", **changes),
        backbone=BackboneConfig(backbone),
        method=MethodConfig(method, options),
        train=TRAIN,
    )


def costs(**by_pair: Cost) -> Costs:
    """``method__backbone=Cost``."""
    known = {}
    for name, cost in by_pair.items():
        method, _, backbone = name.partition("__")
        known[method, estimate.settings(cell(method, backbone)), backbone] = cost
    return Costs(known)


def here(method: str = "bias", backbone: str = "mini_vit", **changes) -> record.Record:
    """A record of this machine whose settings are those of ``cell``."""
    import s2a

    config = dataclasses.asdict(s2a.method_config(method))
    values = {
        "method": method,
        "backbone": backbone,
        "method_config": json.loads(json.dumps(config)),
        "train_config": dataclasses.asdict(TRAIN),
        "hardware": provenance.hardware("cpu"),
        "epochs": 5,
        "train_images": 1000,
        "scored_images": 200,
        "seconds": 50.0,
        "scoring_seconds": 1.0,
        "wall_seconds": 53.5,
    }
    return make_record(**values | changes)


def test_a_cell_by_hand():
    counts: Any = DATASETS["digits"].counts
    known = costs(bias__mini_vit=Cost(step=0.01, score=0.002, overhead=3.0, peak_mb=700.0))
    selected = cell(evaluate="select", limit_test=20)
    found = forecast([cell(), cell(evaluate="val"), cell(limit_train=10, limit_test=20), selected], known)
    expected = [
        3.0 + counts.both * 5 * 0.01 + counts.test * 0.002,
        3.0 + counts.train * 5 * 0.01 + counts.val * 0.002,
        3.0 + 10 * 5 * 0.01 + 20 * 0.002,
        3.0 + counts.train * 5 * 0.01 + (20 + 5 * 20) * 0.002,  # test once, val after each of the 5 epochs
    ]
    assert found.seconds == pytest.approx(sum(expected)) and found.longest == pytest.approx(max(expected))
    assert (found.peak_mb, found.extrapolated, dict(found.unknown)) == (700.0, 0, {})


def test_features_that_are_kept_cost_one_pass():
    known = costs(linear__mini_vit=Cost(step=0.01, score=0.002))
    counts: Any = DATASETS["digits"].counts
    assert forecast([cell("linear")], known).seconds == pytest.approx((counts.both + counts.test) * 0.002)
    fgvc = dataclasses.replace(cell("linear"), data=DataConfig(suite="fgvc", dataset="fgvc_cub"))
    counts = DATASETS["fgvc_cub"].counts
    assert forecast([fgvc], known).seconds == pytest.approx(counts.both * 5 * 0.01 + counts.test * 0.002)


def test_a_record_gives_back_its_own_time():
    own: Any = here()
    known, count, aside = from_records([own], "cpu")
    assert (count, aside) == (1, 0)
    cost = known.of(cell())
    assert cost is not None and not cost.extrapolated
    assert (cost.step, cost.score, cost.overhead) == pytest.approx((0.01, 0.005, 2.5))
    again = cost.overhead + own.train_images * own.epochs * cost.step + own.scored_images * cost.score
    assert again == pytest.approx(own.wall_seconds)


def test_a_real_cell_is_forecast_by_its_twin(tmp_path):
    # Another seed of a cell that ran: the same work, so the time of the first, to the digit.
    asked = dataclasses.replace(
        cell(limit_train=24, limit_test=16), train=TrainConfig(epochs=2, warmup_epochs=0, batch_size=8), threads=1
    )
    done: Any = run.run(asked, keep=Keep(tmp_path))
    assert done.status == "done", done.error
    record.write(done, tmp_path)
    good: Any = [found for _, found in record.read_all(tmp_path)]
    known, count, _ = from_records(good, "cpu")
    found = forecast([dataclasses.replace(asked, seed=1)], known)
    assert count == 1 and not found.unknown and not found.extrapolated
    assert found.seconds == pytest.approx(done.wall_seconds)
    assert done.wall_seconds > done.seconds + done.scoring_seconds


def test_old_records_count_a_scored_image_as_a_step():
    known, _, _ = from_records([here(scoring_seconds=None, wall_seconds=None)], "cpu")
    assert known.of(cell()) == Cost(step=0.01, score=0.01, peak_mb=500.0)


@pytest.mark.parametrize(
    "changes",
    [{"status": "failed"}, {"hardware": {"device": "cuda", "gpu": "NVIDIA H100"}}, {"hardware": {}}],
)
def test_records_that_say_nothing_about_this_machine_are_left_aside(changes):
    known, count, _ = from_records([here(**changes)], "cpu")
    assert count == 0 and known.of(cell()) is None


def test_other_settings_and_other_backbones_are_extrapolated():
    # b is twice as slow as a in every method that ran on both: so is the one that ran on a alone.
    known = costs(
        bias__mini_vit=Cost(0.010, 0.002, 1.0),
        bias__mini_swin=Cost(0.020, 0.004, 1.0),
        full__mini_vit=Cost(0.030, 0.002, 1.0),
        full__mini_swin=Cost(0.060, 0.004, 1.0),
        lora__mini_vit=Cost(0.015, 0.002, 1.0, peak_mb=900.0),
    )
    near: Any = pytest.approx
    guessed = known.of(cell("lora", "mini_swin"))
    assert guessed == Cost(near(0.03), near(0.004), 1.0, None, extrapolated=True)
    ran: Any = known.of(cell("lora"))
    assert not ran.extrapolated
    rank: Any = known.of(cell("lora", options={"rank": 2}))
    assert (rank.step, rank.peak_mb, rank.extrapolated) == (0.015, 900.0, True)
    assert known.of(cell("s2a")) is None  # ran nowhere
    assert known.of(cell("lora", "mini_convnext")) is None  # nothing ran there
    found = forecast([cell("lora", "mini_swin"), cell("s2a"), cell("s2a", limit_train=5)], known)
    assert found.extrapolated == 1 and dict(found.unknown) == {"s2a on mini_vit": 2}


def test_what_a_dry_run_says():
    todo = [cell(), cell(limit_train=10), cell("s2a")]
    records = [here(), here(hardware={"device": "cuda", "gpu": "X"})]
    text = sentence(todo, records, "cpu", workers=2)
    counts: Any = DATASETS["digits"].counts
    total = 2 * 2.5 + (counts.both + 10) * 5 * 0.01 + 2 * counts.test * 0.005
    assert f"about {total:.0f} s of computing" in text and "with 2 workers" in text
    assert "up to 500 MB in a worker" in text
    assert "from 1 record (1 of other hardware left aside)" in text
    assert "unknown and not counted: 1 x s2a on mini_vit" in text
    assert "unknown" in sentence(todo, [], "cpu", 1) and "no finished record" in sentence(todo, [], "cpu", 1)
    assert "nothing comparable ran: 1 x s2a on mini_vit" in sentence(todo[2:], records, "cpu", 1)
    assert sentence([], records, "cpu", 1) == "Estimate: nothing to run."


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (99, "99 s"), (100, "2 min"), (5999, "100 min"), (6000, "1.7 h"), (360_000, "4 days")],
)
def test_durations(seconds, text):
    assert estimate.duration(seconds) == text


def test_the_dry_run_of_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = [
        "sweep",
        "--datasets",
        "digits",
        "--methods",
        "bias",
        "--epochs",
        "5",
        "--set",
        "train.warmup_epochs=1",
    ]
    record.write(here(), tmp_path / "results")
    assert main([*arguments, "--dry-run"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "1 cell: 0 done, 1 to run." in out
    assert "Estimate: about" in out and "from 1 record" in out


def test_table_1_is_whole():
    cells = commands_estimate.cells_of(commands_estimate.Asked())
    assert len(cells) == 27 * 3 * 7 * 3
    assert {c.train.epochs for c in cells} == {80} and len({c.data.dataset for c in cells}) == 27
    assert all(estimate.images(c) is not None for c in cells)
    vtab = [c for c in cells if c.data.suite == "vtab"]
    assert {(estimate.images(c) or (0,))[0] for c in vtab} == {1000}


def test_the_estimate_is_the_sum_over_its_cells(monkeypatch):
    # Every step takes 2 ms, scoring 1 ms an image: the hours by hand, from the published sizes of the sets.
    monkeypatch.setattr(estimate, "measure_cost", lambda cell, seconds: Cost(0.002, 0.001))
    out = io.StringIO()
    asked = commands_estimate.Asked(backbones=("mini_vit",), methods=("bias", "linear"), seeds=(0, 1))
    assert commands_estimate.print_estimate(asked, True, Console(file=out)) == 0
    found = json.loads(out.getvalue())
    rows = {row["method"]: row for row in found["rows"]}
    sets = [d for d in DATASETS.values() if d.suite in ("vtab", "fgvc") and d.name != "fgvc_caltech101_all"]
    by_hand = {"bias": 0.0, "linear": 0.0}
    for (method, dataset), _ in product(product(by_hand, sets), range(2)):
        counts: Any = dataset.counts
        once = method == "linear" and dataset.suite == "vtab"
        by_hand[method] += (counts.both * (0.001 if once else 80 * 0.002) + counts.test * 0.001) / 3600
    assert {method: row["hours"] for method, row in rows.items()} == pytest.approx(by_hand)
    assert found["hours"] == pytest.approx(sum(by_hand.values())) and found["cells"] == 27 * 2 * 2


def test_a_measured_cost_is_that_of_the_step():
    tiny = dataclasses.replace(cell("full"), train=TrainConfig(batch_size=8))
    full = estimate.measure_cost(tiny, seconds=0.2)
    assert 0 < full.score < full.step < 1.0  # forward alone; forward, backward and update


def test_the_command_by_records(capsys, tmp_path):
    record.write(here(), tmp_path)
    narrow = ["--backbones", "mini_vit", "--epochs", "20", "--records", str(tmp_path)]
    assert main(["estimate", *narrow, "--methods", "bias", "s2a", "--json"]) == 0
    rows = {row["method"]: row for row in json.loads(capsys.readouterr().out)["rows"]}
    assert rows["bias"]["step_ms"] == pytest.approx(10.0) and not rows["bias"]["extrapolated"]
    assert rows["s2a"]["hours"] is None and rows["s2a"]["step_ms"] is None
    assert main(["estimate", *narrow, "--methods", "bias", "s2a"]) == 0
    out = capsys.readouterr().out
    assert "?" in out and "1 rows unknown and not counted" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "sentence_part"),
    [
        (["--methods", "lore"], "lora"),
        (["--backbones", "vit_bace_patch16_224", "--methods", "bias"], "vit_base_patch16_224"),
        (["--seconds", "0"], "above 0"),
        (["--batch-size", "0"], "at least 1"),
        (["--experiment", "table9"], "table1"),
        (["--device", "gpu"], "cuda"),
        (["--records", "nowhere"], "no finished record"),
    ],
)
def test_bad_input_is_one_sentence(capsys, tmp_path, monkeypatch, arguments, sentence_part):
    monkeypatch.chdir(tmp_path)
    assert main(["estimate", *arguments]) == 2
    err = capsys.readouterr().err
    assert sentence_part in err and len(err.strip().splitlines()) == 1


def test_settings_know_what_changes_a_step():
    same = estimate.settings(cell())
    assert same == estimate.settings(dataclasses.replace(cell(), seed=3, train=dataclasses.replace(TRAIN, lr=0.5)))
    for change in ({"precision": "bf16"}, {"checkpointing": True}, {"batch_size": 16}):
        assert same != estimate.settings(dataclasses.replace(cell(), train=dataclasses.replace(TRAIN, **change)))


def test_a_record_that_stopped_early_is_of_fewer_epochs():
    """2 of 5 epochs in 20 s on 1000 images: 10 ms an image; looks at val are no overhead."""
    curve = [{"epoch": e, "seconds": 10.0, "val_seconds": 1.5} for e in (1, 2)]
    stopped = here(evaluated_on="select", best_epoch=1, curve=curve, seconds=20.0, wall_seconds=26.0)
    cost = estimate.cost_of(stopped)
    assert (cost.step, cost.overhead) == (pytest.approx(0.01), pytest.approx(26 - 20 - 1 - 3))
