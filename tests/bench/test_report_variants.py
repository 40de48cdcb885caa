"""Variants of a method in a report: which records are rows of their own, and how they are called."""

from __future__ import annotations

from bench.factories import default_options, make_grid, make_record, only_section
from s2a_bench.reports import text as report_text
from s2a_bench.reports.sections import make_sections


def test_variants_are_rows_labelled_by_what_differs():
    records = []
    for rank in (16, 4, 8):
        for activations in ("paper", "exact"):
            config = {"lrp_rank": rank, "activations": activations, "bits": 4}
            records += make_grid(["s2a"], ["digits"], method_config=config)
    shown_labels = [row.label for row in only_section([*records, *make_grid(["lora"], ["digits"])]).rows]
    assert shown_labels[-1] == "lora"  # rows are by accuracy, and equals by options
    assert shown_labels[:-1] == [f"s2a, {a}rank {r}" for a in ("exact, ", "") for r in (4, 8, 16)]


def labels_of(method, *configs):
    rows = only_section(
        [record for config in configs for record in make_grid([method], ["digits"], method_config=config)]
    ).rows
    return [row.label for row in sorted(rows, key=lambda row: row.variant)]


def test_a_variants_name_says_what_differs_from_the_defaults_and_within_the_table():
    usual = default_options()
    # What all rows share is not in their names, though it is not the default; what is the default is not either.
    assert labels_of("s2a", usual | {"bits": 2}) == ["s2a"]
    assert labels_of("s2a", usual, usual | {"lrp_rank": 5}) == ["s2a, rank 5", "s2a"]
    assert labels_of("s2a", usual | {"lsb_reduction": 4, "bits": 2}, usual | {"lrp_rank": 5, "bits": 2}) == [
        "s2a, rank 5",
        "s2a, reduction 4",
    ]
    # Switched off is said in words, a sparse config counts as one of defaults.
    assert labels_of("s2a", usual | {"lrp_rank": 0, "train_bias": False}, usual) == ["s2a, no prompt, no bias", "s2a"]
    assert labels_of("lora", {"rank": 16}, {"rank": 4}) == ["lora, rank 4", "lora, rank 16"]
    assert labels_of("lora", {"activations": "lean"}, {"activations": "exact"}) == ["lora", "lora, lean"]
    # An option that came later and the same method without it are two rows, so both are told apart.
    assert len(set(labels_of("s2a", {"lrp_rank": 30}, {}))) == 2
    # Of a method that is not installed here nothing is known: every option that differs is named.
    assert labels_of("foreign", {"a": "x"}, {"a": "y"}) == ["foreign, a=x", "foreign, a=y"]


def test_a_preset_is_called_by_its_name():
    import s2a.registry  # torch with it, which the other tests here need not

    usual = default_options()
    plus = usual | s2a.registry.presets_of("s2a")["plus"]
    assert labels_of("s2a", usual, plus) == ["s2a", "s2a, plus"]
    assert labels_of("s2a", usual | {"activations": "lean"}, plus) == ["s2a, lean", "s2a, plus"]
    # What goes over the preset is said beside it; another rank of the updates is no longer the preset.
    assert labels_of("s2a", plus, plus | {"lsb_reduction": 4}) == ["s2a, reduction 4", "s2a"]
    labels = labels_of("s2a", usual, plus | {"update_rank": 2})
    assert labels == ["s2a, lean, rank 4, update rank 2", "s2a"]


def test_names_are_unique_whatever_methods_are_called():
    records = make_grid(["x"], ["digits"], method_config={"a": "1"}) + make_grid(["x"], ["digits"], method_config={})
    records += make_grid(["x, a=1"], ["digits"])
    names = [row.label for row in only_section(records).rows]
    assert len(set(names)) == 3


def test_the_legend_has_the_full_options_and_the_defaults():
    usual = default_options()
    records = make_grid(["s2a"], ["digits"], method_config=usual | {"bits": 2})
    records += make_grid(["s2a"], ["digits"], method_config=usual | {"lrp_rank": 5, "bits": 2})
    legend = dict(report_text.list_names(only_section(records)))
    assert legend["s2a, rank 5"] == "bits=2, lrp_rank=5"
    assert legend["s2a"] == "bits=2, lrp_rank=30"
    assert "bits=4" in legend["defaults of s2a"] and "lrp_rank=30" in legend["defaults of s2a"]


def test_a_recipe_parts_rows_only_where_it_was_swept():
    tuned = [
        make_record(dataset=d, seed=s, train_config={"lr": lr}) for d, lr in (("a", 0.1), ("b", 0.2)) for s in (0, 1)
    ]
    assert [row.label for row in only_section(tuned).rows] == ["s2a"]
    swept = [make_record(seed=s, train_config={"lr": lr, "clip": 1}) for lr in (0.1, 0.02) for s in (0, 1)]
    assert [row.label for row in only_section(swept).rows] == ["s2a, lr 0.02", "s2a, lr 0.1"]


def missing_of(records, planned):
    (section,) = make_sections(records, [make_record(status="failed", **changes) for changes in planned])
    return {(label, dataset): seeds for label, dataset, seeds in section.missing}


def test_planned_cells_of_another_recipe_are_of_another_row():
    """A sweep over train.lr that was cut off after the first rate: its rows are not split by recipe yet."""
    low, high = {"lr": 0.01, "clip": 1}, {"lr": 0.1, "clip": 1}
    records = [make_record(train_config=low, seed=seed) for seed in (0, 1)]
    planned = [{"train_config": low, "seed": 2}, *({"train_config": high, "seed": seed} for seed in (0, 1, 2))]
    assert missing_of(records, planned) == {("s2a", "digits"): (2,), ("s2a, lr 0.1", "digits"): (0, 1, 2)}
    # After one cell of the other rate they are split.
    records.append(make_record(train_config=high))
    assert missing_of(records, planned[:3]) == {("s2a, lr 0.01", "digits"): (2,), ("s2a, lr 0.1", "digits"): (0, 1)}
    # So they are for a dataset of which nothing was run.
    texture = [change | {"dataset": "texture"} for change in planned[:2]]
    assert missing_of(records, texture) == {("s2a, lr 0.01", "texture"): (2,), ("s2a, lr 0.1", "texture"): (0,)}


def test_planned_cells_of_a_recipe_for_each_dataset_are_of_one_row():
    records = [make_record(method="lora", train_config={"lr": lr}, dataset=d) for d, lr in (("a", 0.1), ("b", 0.2))]
    planned = [{"method": "lora", "train_config": {"lr": 0.3}, "dataset": "c"}]
    assert missing_of(records, planned) == {("lora", "c"): (0,)}


def test_planned_cells_are_not_of_the_row_that_a_search_chose():
    search = {"mode": "grid", "trials": 12, "chosen": {"train.lr": 0.1}}
    plain = {"method": "lora", "train_config": {"lr": 0.1}}
    records = [make_record(**plain, search=search)]
    planned = [plain | {"seed": 1}, plain | {"seed": 2, "search": search}]
    assert missing_of(records, planned) == {("lora, no search", "digits"): (1,), ("lora", "digits"): (2,)}
    assert missing_of([*records, make_record(**plain)], planned) == {
        ("lora", "digits"): (1,),
        ("lora, searched (grid of 12)", "digits"): (2,),
    }


def test_planned_cells_without_a_row_have_a_name_that_no_row_has():
    named = {
        label
        for label, _ in missing_of(
            make_grid(["foreign"], ["digits"], (0,), method_config={"a": "x"}),
            [{"method": "foreign", "method_config": config} for config in ({}, {"a": "y"}, {"a": "x", "b": 1})],
        )
    }
    assert len(named) == 3 and "foreign" not in named
    # The table has no row of it: what is not the default is said.
    assert missing_of(
        make_grid(["lora"], ["digits"], (0,)), [{"method_config": default_options() | {"lrp_rank": 5}}]
    ) == {("s2a, rank 5", "digits"): (0,)}
