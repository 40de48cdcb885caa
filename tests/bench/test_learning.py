"""A cell that did not learn says so: in its record, on the command line, in every table and mean that holds it."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from bench.factories import make_grid, make_record
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from s2a_bench.cells import learning, run
from s2a_bench.cells.outputs import Keep
from s2a_bench.cli.main import main
from s2a_bench.cli.progress import ended
from s2a_bench.config import CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.reports import notes, tables
from s2a_bench.reports.paper import list_deviations
from s2a_bench.reports.sections import make_sections
from s2a_bench.reports.terminal import terminal_table
from s2a_bench.reports.text import list_cell_remarks
from s2a_bench.sweeps.stage import unlearned_sentence
from scipy import stats

COUNTS = st.lists(st.integers(0, 50), min_size=1, max_size=12).filter(lambda counts: sum(counts) > 0)


@given(COUNTS)
def test_guessing_has_the_entropy_and_the_share_of_the_most_frequent_class(counts):
    assert learning.guessing_loss(counts) == pytest.approx(float(stats.entropy(counts)), abs=1e-12)
    labels = np.repeat(np.arange(len(counts)), counts)
    best = max((labels == guess).mean() for guess in range(len(counts)))
    assert learning.guessing_accuracy(counts) == pytest.approx(100 * best)


def curve(*losses):
    return [{"epoch": index + 1, "loss": loss} for index, loss in enumerate(losses)]


def wreck(**changes):
    """LoRA on a pretrained ViT-S and Caltech101 with a rate ten times too high, much as it was measured."""
    values = {"classes": 102, "scored_images": 6084, "accuracy": 1.2, "curve": curve(4.9, 5.6, 5.2, 4.9, 4.7, 4.6, 4.4)}
    return make_record(**(values | changes))


def test_a_wreck_of_a_high_learning_rate_is_named_with_both_signs():
    loss, accuracy = learning.find_problems(wreck())
    assert "4.40" in loss and f"{math.log(102):.2f}" in loss
    assert "1.2 %" in accuracy and "1.0 %" in accuracy


@pytest.mark.parametrize(
    "losses",
    [
        (69.0, 50.0, 21.0),  # falls, and is still far above guessing
        (4.62, 4.62, 4.62),  # does not move
        (4.7, 1.2, 0.5, 3.9),  # rose again
        (4.7, 2.0, 6.0),
    ],
)
def test_each_kind_of_bad_curve_is_named_though_the_accuracy_is_above_chance(losses):
    (problem,) = learning.find_problems(wreck(accuracy=9.0, curve=curve(*losses)))
    assert f"{losses[-1]:.2f}" in problem


@pytest.mark.parametrize("losses", [(4.6, 3.0, 1.0), (8.3, 9.7, 5.0, 1.55), (4.6, 0.5, 0.52), (0.9, 0.2, 0.21), (2.0,)])
def test_a_training_that_learned_is_left_alone(losses):
    assert learning.find_problems(wreck(accuracy=60.0, curve=curve(*losses))) == []


@given(st.integers(2, 100), st.integers(50, 5000), st.data())
def test_a_loss_that_falls_epoch_by_epoch_to_half_of_guessings_is_never_named(classes, images, data):
    guess = math.log(classes)
    losses = sorted(data.draw(st.lists(st.floats(0, 3 * guess), min_size=1, max_size=9)), reverse=True)
    record = make_record(
        classes=classes, scored_images=images, accuracy=100.0, curve=curve(*losses, 0.5 * min(losses[-1], guess))
    )
    assert learning.find_problems(record) == []


@pytest.mark.parametrize(("share", "images"), [(0.5, 200), (0.736, 42670), (0.01, 6084), (0.1, 797)])
def test_chance_is_told_from_learning_at_its_level(share, images):
    """Of 10,000 models that guess, about 1 % pass for one that learned; one six standard errors above always does."""
    drawn = np.random.default_rng(0).binomial(images, share, size=10_000)
    record = make_record(guessing_accuracy=100 * share, scored_images=images)
    hits, repeats = np.unique(drawn, return_counts=True)
    named = sum(
        n
        for k, n in zip(hits, repeats, strict=True)
        if learning.find_problems(dataclasses.replace(record, accuracy=100 * k / images))
    )
    assert 0.97 <= named / 10_000 <= 0.999
    above = share + 6 * math.sqrt(share * (1 - share) / images)
    assert learning.find_problems(dataclasses.replace(record, accuracy=100 * min(1.0, above))) == []


def test_the_most_frequent_class_counts_not_the_number_of_classes():
    """Diabetic retinopathy: 73.6 % of its test images show none; a model that always says so learned nothing."""
    constant = make_record(classes=5, scored_images=42670, accuracy=73.6, guessing_accuracy=73.58, guessing_loss=0.87)
    assert "73.6 %" in learning.describe_problems(constant)
    assert learning.find_problems(dataclasses.replace(constant, guessing_accuracy=None)) == []  # an older record


@given(COUNTS, st.floats(0.0, 0.9))
def test_under_label_smoothing_guessing_is_the_best_constant_prediction(counts, smoothing):
    labels = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    targets = torch.eye(len(counts), dtype=torch.float64)[labels].mean(0) * (1 - smoothing) + smoothing / len(counts)
    logits = targets.clamp_min(1e-300).log().expand(len(labels), -1)
    found = F.cross_entropy(logits, labels, label_smoothing=smoothing)
    assert learning.guessing_loss(counts, smoothing) == pytest.approx(float(found), abs=1e-9)


def test_a_perfect_model_under_label_smoothing_learned_and_a_constant_one_did_not():
    for smoothing, counts in ((0.1, [700, 100, 100, 50, 50]), (0.9, [100] * 5)):
        guess = learning.guessing_loss(counts, smoothing)
        logits = torch.tensor([1 - smoothing + smoothing / 5, *[smoothing / 5] * 4]).log()[None]
        perfect = float(F.cross_entropy(logits, torch.tensor([0]), label_smoothing=smoothing))
        assert learning.least_loss(5, smoothing) == pytest.approx(perfect, abs=1e-6)
        values = {
            "classes": 5,
            "accuracy": 95.0,
            "guessing_loss": guess,
            "train_config": {"label_smoothing": smoothing},
        }
        assert learning.find_problems(make_record(**values, curve=curve(guess, perfect))) == []
        assert learning.find_problems(make_record(**values, curve=curve(guess, guess))) != []


@pytest.mark.parametrize("status", ["failed", "stopped"])
def test_nothing_is_said_of_what_did_not_come_to_its_end(status):
    assert learning.find_problems(dataclasses.replace(wreck(), status=status)) == []


@pytest.mark.parametrize(
    "changes",
    [{"classes": 0}, {"classes": 1}, {"classes": 10**15}, {"guessing_loss": 0.0}, {"curve": []}, {"scored_images": 0}],
)
def test_where_nothing_can_be_told_nothing_breaks(changes):
    for smoothing in (0.0, 0.1, 1.0):
        record = wreck(guessing_accuracy=100.0, train_config={"label_smoothing": smoothing}, **changes)
        assert isinstance(learning.find_problems(record), list)


def mixed():
    """Three methods on two tasks; one seed of lora on one of them is a wreck."""
    records = make_grid(["bias", "lora", "linear"], ["digits", "texture"], (0, 1))
    for index, record in enumerate(records):
        if (record.method, record.dataset, record.seed) == ("lora", "texture", 1):
            records[index] = dataclasses.replace(record, accuracy=9.0)
    return records


def test_no_mean_holds_a_wreck_silently():
    (section,) = make_sections(mixed())
    columns = {column.title: column for column in tables.summary_columns(section)}
    marked = {
        (row.label, title) for row in section.rows for title, column in columns.items() if "†" in column.text(row)
    }
    assert marked == {("lora", "mean of 2 tasks"), ("lora", "texture")}
    assert any("did not learn" in note and "lora on texture, seed 1" in note for note in notes.list_notes(section))
    assert any(where == "lora on texture" and "9.0 %" in why for where, why in list_cell_remarks(section))


def test_a_mean_that_leaves_a_wreck_out_is_not_marked():
    """A seed on other images than its column takes part in no mean; it is still listed with its reason."""
    records = make_grid(["bias", "lora"], ["digits"], (0, 1, 2))
    records[-1] = dataclasses.replace(records[-1], accuracy=9.0, split_id="other")
    (section,) = make_sections(records)
    assert not any("†" in column.text(row) for row in section.rows for column in tables.summary_columns(section))
    ((where, why),) = list_cell_remarks(section)
    assert where == "lora on digits" and "seed 2 did not learn" in why and "1 left out" in why


def test_the_terminal_leaves_out_spreads_of_tasks_but_no_mark():
    records = mixed()
    records[0] = dataclasses.replace(records[0], split_id="other")  # bias on digits, seed 0
    records[1] = dataclasses.replace(records[1], split_id="other")
    console = Console(width=300, record=True)
    console.print(terminal_table(records))
    lines = {line.split()[0]: line for line in console.export_text().splitlines() if line.strip()}
    assert lines["lora"].count("†") == 2 and "*" in lines["bias"]
    assert "±" not in lines["bias"], "its mean is missing"


def test_a_wreck_is_not_compared_with_the_paper_as_if_it_were_a_result():
    assert "a cell that did not learn" in list_deviations([wreck()], "mini", "vit")


def test_a_sweep_names_each_kind_of_cell_once_whatever_its_seeds():
    records = make_grid(["lora", "bias"], ["digits", "texture"], range(5), accuracy=9.0)
    sentence = unlearned_sentence([*records, *make_grid(["full"], ["digits"])])
    assert sentence.startswith("20 of 23 finished cells did not learn: lora on digits (mini_vit), ")
    assert sentence.count("lora on digits") == 1 and " and 1 more." in sentence
    assert unlearned_sentence(make_grid()) == ""


CELL = CellConfig(
    data=DataConfig(dataset="digits", limit_train=64, limit_test=100),
    method=MethodConfig("lora"),
    train=TrainConfig(epochs=2, warmup_epochs=0, lr=1.0),
)


def test_a_real_cell_with_an_absurd_rate_is_done_and_says_that_it_did_not_learn(tmp_path):
    record = run.run(CELL, keep=Keep(tmp_path))
    assert record.status == "done"
    assert record.did_not_learn == learning.find_problems(record) != []
    assert "did not learn" in ended(record, CELL)
    sane = run.run(dataclasses.replace(CELL, train=TrainConfig(epochs=4, warmup_epochs=0, lr=1e-2)))
    assert sane.did_not_learn == []


@pytest.mark.full
def test_the_command_says_so_and_the_report_marks_it(tmp_path, capsys):
    arguments = ["sweep", "--datasets", "digits", "--methods", "lora", "linear", "--limit-train", "64"]
    arguments += ["--limit-test", "100", "--epochs", "2", "--seeds", "0", "--serial"]
    assert main([*arguments, "--set", "train.lr=1", "--output", str(tmp_path)]) == 0
    shown = capsys.readouterr()
    said = " ".join((shown.out + shown.err).split())
    assert "did not learn" in said and "lora on digits (mini_vit)" in said
    records = [json.loads(path.read_text()) for path in (tmp_path / "records").glob("*.json")]
    assert {r["method"]: bool(r["did_not_learn"]) for r in records}["lora"]
    page = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "†" in page.split("## How to read")[0] and "did not learn" in page.split("## How to read")[0]
