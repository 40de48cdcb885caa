"""The paper's tables beside ours: every cell has the tag that its records deserve."""

from __future__ import annotations

import dataclasses
import re

import pytest
from bench.factories import make_grid, make_record
from s2a_bench.cells.record import write
from s2a_bench.data.table import lookup as datasets
from s2a_bench.experiments import spec as experiment
from s2a_bench.reports import build as report
from s2a_bench.reports import paper as report_compare
from s2a_bench.reports import paper_text as report_words
from s2a_bench.reports.paper import DIFFERS, NOT_COMPARABLE, NOT_RUN, REPRODUCED, compare_with_paper
from s2a_bench.reports.sections import make_sections
from s2a_bench.sweeps.grid import parse_method

VIT = experiment.FAMILIES["vit"][1]
RECIPE = {"epochs": 80, "batch_size": 32, "lr": 0.001, "precision": "fp32", "checkpointing": False}


def config(label):
    from s2a import method_config

    method = parse_method(label)
    return method.name, dataclasses.asdict(method_config(method.name, **method.options))


def faithful(name="table1", suite="vtab", shift=0.0, seeds=(0, 1, 2), methods=None, **changes):
    """Records of a run as the paper's would be: every task at the printed mean of its group, plus a shift."""
    records = []
    for row in experiment.load_experiment(name).rows:
        printed = row.expected["vit"]
        if methods is not None and row.name not in methods:
            continue
        method, options = config(row.method)
        for dataset in datasets.get_suite(suite).defaults:
            group = datasets.get_dataset(suite, dataset).group
            mean = printed["fgvc" if suite == "fgvc" else f"vtab_{group}"]
            values = {
                "suite": suite,
                "dataset": dataset,
                "group": group,
                "backbone": VIT,
                "method": method,
                "method_config": options,
                "train_config": RECIPE,
                "epochs": 80,
                "data_config": {"size": 224},
                "split_id": "vtab-1k",
                "synthetic": False,
                "classes": 100,
                "params_percent": printed.get("params_percent", 1.0),
                "theoretical_mb": printed.get("memory_mb", 1.0),
            }
            for seed in seeds:
                wobble = 0.02 * (seed - 1)
                records.append(make_record(**values | {"seed": seed, "accuracy": mean + shift + wobble} | changes))
    return records


def only(records):
    found, _ = compare_with_paper(make_sections(records))
    (table,) = [c for c in found if c.experiment.name == "table1"]
    return table


def cell(table, row, column):
    (line,) = [line for line in table.lines if line.name == row]
    return line.values[table.columns.index(column)]


def test_a_run_that_gives_the_printed_numbers_is_reproduced_in_every_cell():
    table = only([*faithful(), *faithful(suite="fgvc")])
    assert table.counts == {REPRODUCED: 7 * 8, DIFFERS: 0, NOT_COMPARABLE: 0, NOT_RUN: 0}
    assert table.reasons == ()


def test_the_mean_of_tasks_is_the_one_of_the_papers_text():
    """Section 4.2: 71.99 for S2A and 69.72 for Full on ConvNeXt-B."""
    rows = {
        row.name: row.expected["convnext"]
        for row in experiment.load_experiment("table1").rows
        if "convnext" in row.expected
    }
    assert report_compare.mean_of_printed(rows["S2A"], "tasks") == pytest.approx(71.99, abs=0.005)
    assert report_compare.mean_of_printed(rows["Full"], "tasks") == pytest.approx(69.72, abs=0.005)
    assert report_compare.mean_of_printed(rows["Full"], "groups") == pytest.approx((81.10 + 86.71 + 51.26) / 3)
    assert report_compare.mean_of_printed({"fgvc": 90.0}, "tasks") is None


@pytest.mark.parametrize(("shift", "state"), [(0.9, REPRODUCED), (-0.9, REPRODUCED), (1.2, DIFFERS), (-1.2, DIFFERS)])
def test_an_accuracy_is_reproduced_within_a_point(shift, state):
    assert cell(only(faithful(shift=shift)), "Full", "natural").state == state


def test_beyond_a_point_the_noise_between_seeds_decides():
    quiet, loud = faithful(shift=1.5, methods=("Full", "S2A")), []
    for record in quiet:
        swing = 12.0 * (record.seed - 1)
        loud.append(dataclasses.replace(record, accuracy=(record.accuracy or 0.0) + swing))
    assert cell(only(quiet), "Full", "natural").state == DIFFERS
    assert cell(only(loud), "Full", "natural").state == REPRODUCED
    # One seed knows no noise.
    assert cell(only(faithful(shift=1.5, seeds=(0,))), "Full", "natural").state == DIFFERS


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"random_weights": True}, "random weights"),
        ({"synthetic": True}, "synthetic"),
        ({"lossy": True}, "lossily"),
        ({"limit_train": 64}, "limited"),
        ({"limit_test": 64}, "limited"),
        ({"evaluated_on": "val"}, "scored on validation"),
        ({"evaluated_on": "select"}, "the epoch chosen on validation"),
        ({"epochs": 12}, "12 epochs"),
        ({"split_id": "s2a-seed0-v1"}, "s2a-seed0-v1"),
        ({"data_config": {"size": 384}}, "384"),
        ({"backbone": "vit_base_patch16_224.dino"}, "vit_base_patch16_224.dino"),
        ({"train_config": RECIPE | {"batch_size": 64}}, "batch size 64"),
    ],
)
def test_what_is_not_like_the_papers_run_is_not_comparable_and_says_why(changes, word):
    """Also where the number happens to agree."""
    value = cell(only(faithful(methods=("Full", "S2A"), **changes)), "Full", "natural")
    assert value.state == NOT_COMPARABLE
    assert any(word in reason for reason in value.reasons)


def test_memory_and_parameters_do_not_care_for_the_weights_or_the_data():
    table = only(faithful(random_weights=True, synthetic=True, epochs=1, methods=("Full", "S2A")))
    assert cell(table, "S2A", "trainable %").state == cell(table, "S2A", "theoretical MB").state == REPRODUCED


@pytest.mark.parametrize(
    ("changes", "column", "state"),
    [
        ({"theoretical_mb": 640 * 1.02}, "theoretical MB", REPRODUCED),
        ({"theoretical_mb": 640 * 1.04}, "theoretical MB", DIFFERS),
        ({"theoretical_mb": 640.0, "train_config": RECIPE | {"batch_size": 8}}, "theoretical MB", NOT_COMPARABLE),
        ({"theoretical_mb": 640.0, "train_config": RECIPE | {"precision": "bf16"}}, "theoretical MB", NOT_COMPARABLE),
        ({"params_percent": 0.95}, "trainable %", DIFFERS),
        ({"params_percent": 0.95, "classes": 397}, "trainable %", NOT_COMPARABLE),
        ({"params_percent": 0.904, "classes": 397}, "trainable %", REPRODUCED),
    ],
)
def test_sizes_are_compared_within_three_percent_and_with_the_papers_head(changes, column, state):
    records = [*faithful(methods=("Full",)), *faithful(methods=("S2A",), **changes)]
    assert cell(only(records), "S2A", column).state == state


def test_a_group_with_a_task_missing_is_not_the_printed_mean():
    records = [r for r in faithful(methods=("Full", "S2A")) if r.dataset != "caltech101"]
    table = only(records)
    assert cell(table, "Full", "natural").reasons == ("only 6 of 7 tasks (vtab)",)
    assert cell(table, "Full", "specialized").state == REPRODUCED
    assert cell(table, "Full", "mean of all tasks (the paper: 19)").state == NOT_COMPARABLE
    assert cell(table, "Full", "FGVC").state == NOT_RUN
    assert cell(table, "LoRA", "natural").state == NOT_RUN


def test_another_option_is_another_method():
    records = [*faithful(methods=("Full", "Linear")), *faithful(methods=("S2A",))]
    for record in records:
        if record.method == "s2a":
            record.method_config["lrp_rank"] = 16
    assert cell(only(records), "S2A", "natural").state == NOT_RUN


def test_what_a_record_leaves_out_has_its_default():
    """Older records, and cells of a later option's default, have no key for it."""
    records = faithful(methods=("LoRA",))
    for record in records:
        record.method_config.pop("activations", None)
    (section,) = make_sections(records)
    assert report_compare.find_rows(section, "lora")
    assert not report_compare.find_rows(section, "lora:activations=lean")


def test_a_mini_run_stands_beside_its_family_and_is_never_called_reproduced():
    records = [
        make_record(suite="mini", dataset=d, method=m, method_config=config(m)[1], seed=s, accuracy=76.0 + s)
        for d in datasets.get_suite("mini").datasets
        for m in ("full", "linear", "s2a")
        for s in (0, 1)
    ]
    table = only(records)
    assert (table.backbone, table.beside) == ("mini_vit", "vit_base_patch16_224")
    assert table.counts[REPRODUCED] == table.counts[DIFFERS] == 0
    assert {"the mini suite, not VTAB-1k"} <= set(table.reasons)


def test_a_table_of_which_nothing_was_run_says_how_to_run_it():
    beside = report_words.compare_sections(make_sections([make_record(backbone="resnet50")]))
    assert not beside.tables
    assert all(f"table{i}" in beside.absent for i in range(1, 5)) and "--experiment NAME" in beside.absent


def test_a_table_of_which_nothing_is_comparable_is_folded(tmp_path):
    records = make_grid(["full", "s2a"], method_config={})
    for record in records:
        write(record, tmp_path)
    paths = report.build(tmp_path)
    page, markdown = paths.html.read_text(), paths.markdown.read_text()
    assert not any(map(report_words.is_comparable, report_words.compare_sections(make_sections(records)).tables))
    for text in (page, markdown):
        assert "nothing is comparable (a mini backbone" in text
    # Folded on the page with all of its cells; a line in Markdown.
    assert re.search(r"<details><summary>Table 1:", page)
    assert "not comparable a" in page and "not comparable a" not in markdown


def test_pages_say_the_same_and_every_letter_has_its_reason(tmp_path):
    for record in faithful(methods=("Full", "S2A"), lossy=True):
        write(record, tmp_path)
    paths = report.build(tmp_path)
    page, markdown = paths.html.read_text(), paths.markdown.read_text()
    for text in (page, markdown):
        assert "images stored lossily" in text
        assert "not comparable a" in text
        assert "76.62" in text  # printed for S2A, natural
    assert {"scatter-paper-params.svg", "scatter-paper-memory.svg"} <= {p.name for p in paths.figures}
