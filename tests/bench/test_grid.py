"""From a request to its cells: every combination once, options where they belong, mistakes in one sentence."""

from __future__ import annotations

import dataclasses
import json
from typing import Literal

import pytest
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a.errors import S2AError
from s2a.registry import presets_of
from s2a_bench.cells import recipes
from s2a_bench.config import MethodConfig
from s2a_bench.data.table import lookup as datasets
from s2a_bench.errors import InputError
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.grid import expand, label
from s2a_bench.sweeps.request import Request
from s2a_bench.sweeps.settings import coerce, parse_method, parse_settings, parse_value
from s2a_bench.tracking import names as track_names

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
JSON = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=8)


def test_the_default_compares_all_methods_on_the_default_tasks():
    cells = expand(Request())
    assert {cell.data.dataset for cell in cells} == set(datasets.SUITES["mini"].defaults)
    assert {cell.method.name for cell in cells} == {"linear", "bias", "lora", "full", "s2a"}
    assert {cell.backbone.name for cell in cells} == {"mini_vit"}
    assert len(cells) == 5 * len(datasets.SUITES["mini"].defaults)


@given(
    st.sets(st.sampled_from(datasets.SUITES["mini"].datasets), min_size=1),
    st.sets(st.sampled_from(("linear", "bias", "full", "s2a", "s2a:bits=8")), min_size=1),
    st.sets(st.integers(0, 9), min_size=1),
)
def test_cells_are_the_product_of_the_names_each_once(tasks, methods, seeds):
    cells = expand(Request(datasets=tuple(tasks), methods=tuple(methods), seeds=tuple(seeds)))
    found = [(grid.label(cell).split(" on ")[0], cell.data.dataset, cell.seed) for cell in cells]
    assert sorted(found) == sorted((m, d, s) for m in methods for d in tasks for s in seeds)


def test_what_is_named_twice_is_one_cell():
    once = expand(Request(suite="vtab", datasets=("caltech101",), methods=("s2a",), seeds=(1,)))
    twice = expand(Request(suite="vtab", datasets=("caltech101", "caltech_101"), methods=("s2a", "s2a"), seeds=(1, 1)))
    assert once == twice


def test_cells_come_dataset_by_dataset_and_on_each_the_long_ones_first():
    cells = expand(Request(datasets=("textures", "digits"), seeds=(0, 1)))
    where = [cell.data.dataset for cell in cells]
    assert where == sorted(where, key=["textures", "digits"].index) and len(set(where)) == 2
    for dataset in ("textures", "digits"):
        names = [cell.method.name for cell in cells if cell.data.dataset == dataset]
        assert names == sorted(names, key=lambda name: {"full": 0, "linear": 2}.get(name, 1))


def test_each_cell_has_its_methods_recipe_unless_told_otherwise():
    for cell in expand(Request(settings=("train.weight_decay=0.5",), epochs=4, batch_size=16)):
        expected = recipes.train_config(
            "mini", cell.method.name, cell.backbone.name, weight_decay=0.5, epochs=4, batch_size=16
        )
        assert cell.train == expected


@given(JSON)
def test_values_of_set_are_json(value):
    if not isinstance(value, str):
        assert parse_value(json.dumps(value)) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("exact", "exact"),
        ("None", None),
        ("True", True),
        ("(1, 2)", (1, 2)),
        ("1e-3", 1e-3),
        ("'8'", "8"),
        ("8GiB", "8GiB"),
        ("0.6GB", "0.6GB"),
    ],
)
def test_values_of_set_are_python_literals_or_words(text, value):
    assert parse_value(text) == value


@pytest.mark.parametrize("text", ["[1,", "1.2.3", "'open", "-", "{", "", "8Gigs"])
def test_half_a_value_is_refused(text):
    with pytest.raises(InputError, match="no value"):
        parse_value(text)


def test_a_label_may_carry_options_also_with_commas_in_them():
    found = parse_method("s2a:bits=8,sites=[0,1],activations=exact")
    assert found == MethodConfig("s2a", {"bits": 8, "sites": (0, 1), "activations": "exact"})
    assert parse_method("linear") == MethodConfig("linear", {})


def test_a_preset_is_its_options_and_a_labels_own_go_over_shared_ones():
    plus = presets_of("s2a")["plus"]
    assert parse_method("s2a:preset=plus,lrp_rank=2").options == {**plus, "lrp_rank": 2}
    assert parse_method("s2a:preset=paper").options == {}
    settings = ("method.activations=exact", "method.lsb_reduction=4")
    cells = expand(Request(methods=("s2a:preset=plus", "bias"), settings=settings, datasets=("digits",)))
    found = {cell.method.name: cell.method.options for cell in cells}
    assert found == {"s2a": {**plus, "lsb_reduction": 4}, "bias": {"activations": "exact"}}
    assert [label(cell).split(" on ")[0] for cell in cells if cell.method.name == "s2a"] == [
        "s2a:preset=plus,lsb_reduction=4"
    ]
    shared = expand(Request(methods=("s2a:lrp_rank=9",), settings=("method.preset=plus",), datasets=("digits",)))
    assert shared[0].method.options == {**plus, "lrp_rank": 9}


def test_shared_options_reach_the_methods_that_have_them_and_yield_to_a_labels_own():
    request = Request(methods=("linear", "s2a", "s2a:bits=2"), settings=("method.bits=8",), datasets=("digits",))
    found = {(cell.method.name, cell.method.options.get("bits")) for cell in expand(request)}
    assert found == {("linear", None), ("s2a", 8), ("s2a", 2)}


@pytest.mark.parametrize(
    ("request_", "words"),
    [
        (Request(suite="mnii"), ["suite", "'mnii'", "mini"]),
        (Request(datasets=("digit",)), ["dataset", "'digit'", "digits"]),
        (Request(datasets=("caltech101",)), ["caltech101", "--suite vtab"]),
        (Request(methods=("s2",)), ["method", "'s2'", "s2a"]),
        (Request(methods=("s2a:bitz=4",)), ["bitz", "bits"]),
        (Request(methods=("s2a:bits",)), ["'bits'", "KEY=VALUE"]),
        (Request(methods=("s2a:bits=four",)), ["bits", "four"]),
        (Request(methods=("s2a:preset=pluss",)), ["preset='pluss' is unknown", "paper, plus"]),
        (Request(methods=("s2a:lrp_std=x",)), ["lrp_std", "number"]),
        (Request(methods=("s2a:train_bias=1",)), ["train_bias", "true or false"]),
        (Request(settings=("method.lrp_rnk=3",)), ["method.lrp_rnk", "method.lrp_rank"]),
        (Request(methods=("linear",), settings=("method.bits=8",)), ["linear", "method.bits"]),
        (Request(settings=("train.lrr=1",)), ["train.lrr", "train.lr"]),
        (Request(settings=("train.lr=fast",)), ["train.lr", "number"]),
        (Request(settings=("train.lr=1e999",)), ["train.lr", "number"]),
        (Request(settings=("train.epochs=1.5",)), ["train.epochs", "integer"]),
        (Request(settings=("trian.lr=1",)), ["'trian'", "train"]),
        (Request(settings=("lr=1",)), ["train.KEY=VALUE"]),
        (Request(settings=("train.lr",)), ["train.lr", "KEY=VALUE"]),
        (Request(settings=("train.lr=1", "train.lr=2")), ["train.lr", "twice"]),
        (Request(settings=("train.epochs=2",), epochs=3), ["train.epochs", "twice"]),
        (Request(epochs=0), ["train.epochs=0", "at least 1"]),
        (Request(seeds=(-1,)), ["-1"]),
        (Request(backbones=("a", "b"), weights="w.safetensors"), ["--weights", "one backbone"]),
    ],
    ids=lambda value: None if isinstance(value, list) else "",
)
def test_mistakes_are_named_with_what_would_do(request_, words):
    with pytest.raises((InputError, S2AError)) as error:
        expand(request_)
    sentence = str(error.value)
    assert "\n" not in sentence
    for word in words:
        assert word in sentence


def test_the_same_setting_twice_is_no_contradiction():
    assert parse_settings(("train.lr=1", "train.lr=1.0"))["train"] == {"lr": 1}
    (cell,) = expand(Request(datasets=("digits",), methods=("s2a",), settings=("train.epochs=3",), epochs=3))
    assert cell.train.epochs == 3


@pytest.mark.parametrize(
    ("value", "hint", "fitted"),
    [
        (1, float, 1.0),
        ([1, 2], tuple[int, ...], (1, 2)),
        (None, float | None, None),
        ("exact", Literal["exact", "paper"], "exact"),
        ([0, 1], str | tuple[int, ...], (0, 1)),
        ("all", str | tuple[int, ...], "all"),
    ],
)
def test_values_take_the_type_of_their_field(value, hint, fitted):
    found = coerce(value, hint, "x")
    assert found == fitted
    assert type(found) is type(fitted)


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (True, int),
        (1.0, int),
        ("1", int),
        (True, float),
        (float("inf"), float),
        ("NaN", float),
        ([1, "a"], tuple[int, ...]),
    ],
)
def test_values_of_another_type_are_refused(value, hint):
    with pytest.raises(InputError, match="wrong type"):
        coerce(value, hint, "x")


def test_axes_are_multiplied_and_repeat_nothing():
    axes = ("method.lrp_rank=5,15,5", "method.lsb_reduction=[8],4".replace("[8]", "8"), "train.lr=1e-3,1e-2")
    cells = expand(Request(datasets=("digits",), methods=("s2a", "linear"), axes=axes, settings=("train.epochs=2",)))
    points = [(c.method.name, *c.method.options.values(), c.train.lr) for c in cells]
    ours = {("s2a", rank, reduction, lr) for rank in (5, 15) for reduction in (8, 4) for lr in (1e-3, 1e-2)}
    assert set(points) == ours | {("linear", 1e-3), ("linear", 1e-2)} and len(points) == len(set(points))
    assert {c.train.epochs for c in cells} == {2}


def test_values_of_an_axis_may_be_lists_and_words():
    axes = ('method.sites=[1,2],"all"', "method.activations=exact,paper")
    cells = expand(Request(datasets=("digits",), methods=("s2a",), axes=axes))
    found = {(str(c.method.options["sites"]), c.method.options["activations"]) for c in cells}
    assert found == {(sites, kept) for sites in ("(1, 2)", "all") for kept in ("exact", "paper")}


@pytest.mark.parametrize(
    ("axes", "settings", "words"),
    [
        (("method.lrp_rank",), (), ["--sweep method.lrp_rank", "KEY=V1,V2"]),
        (("lrp_rank=1,2",), (), ["lrp_rank=1,2", "method.KEY"]),
        (("data.x=1,2",), (), ["'data'", "method", "train"]),
        (("method.lrp_rank=1", "method.lrp_rank=2"), (), ["method.lrp_rank", "twice"]),
        (("method.lrp_rank=1,2",), ("method.lrp_rank=3",), ["--set", "--sweep", "method.lrp_rank"]),
        (("method.lrp_rank=1,",), (), ["method.lrp_rank=1,"]),
        (("method.lpr_rank=1,2",), (), ["lpr_rank", "method.lrp_rank"]),
        (("train.lr=fast,2",), (), ["train.lr", "fast"]),
        (("method.lrp_rank=-1,2",), (), ["lrp_rank=-1"]),
    ],
)
def test_bad_axes(axes, settings, words):
    with pytest.raises(ValueError) as error:
        expand(Request(methods=("s2a",), datasets=("digits",), axes=axes, settings=settings))
    assert all(word in str(error.value) for word in words), str(error.value)


def test_seeds_follow_the_suite():
    def seeds(**request):
        return {cell.seed for cell in expand(Request(methods=("linear",), **request))}

    assert seeds(suite="vtab", datasets=("dtd",)) == seeds(suite="fgvc", datasets=("cub",)) == {0, 1, 2}
    assert seeds(datasets=("digits",)) == seeds(suite="cifar") == {0}
    assert seeds(suite="vtab", datasets=("dtd",), seeds=(7,)) == {7}


SWEPT = Request(
    datasets=("digits", "count"),
    methods=("s2a", "lora"),
    seeds=(0, 1),
    axes=("method.lrp_rank=5,15", "train.lr=1e-3,2e-3", "train.epochs=3,12", "train.precision=fp32,bf16"),
)


def _record(cell):
    """As ``run`` makes it: the whole config, as JSON has it."""
    import s2a

    config = dataclasses.asdict(s2a.method_config(cell.method.name, **cell.method.options))
    return make_record(
        suite=cell.data.suite,
        dataset=cell.data.dataset,
        backbone=cell.backbone.name,
        method=cell.method.name,
        method_config=json.loads(json.dumps(config)),
        train_config=dataclasses.asdict(cell.train),
        seed=cell.seed,
    )


def test_no_two_cells_of_a_sweep_have_one_name_on_the_screen_or_in_mlflow():
    cells = expand(SWEPT)
    assert len(cells) == 2 * 2 * 8 * (2 + 1)
    for names in ([grid.label(cell) for cell in cells], [track_names.run_name(_record(cell)) for cell in cells]):
        assert len(set(names)) == len(cells)
        assert any(
            "lrp_rank=5" in name and "train.lr=0.002" in name and "train.precision=bf16" in name for name in names
        )


def test_a_name_leaves_out_what_is_the_default():
    (cell,) = expand(Request(datasets=("digits",), methods=("s2a",)))
    assert grid.label(cell) == "s2a on digits, mini_vit, seed 0"
    assert track_names.run_name(_record(cell)) == "s2a digits seed 0 mini_vit"
    (short,) = expand(Request(datasets=("digits",), methods=("s2a",), epochs=24))
    assert short.train.warmup_epochs != cell.train.warmup_epochs, "it follows from the epochs"
    assert grid.label(short) == "s2a on digits, mini_vit, seed 0, train.epochs=24"


def test_a_run_of_a_method_that_is_not_installed_has_a_name_with_all_its_options():
    name = track_names.run_name(make_record(method="somebodys", method_config={"k": 3, "on": True}))
    assert name.startswith("somebodys:k=3,on=true digits seed 0 mini_vit")
