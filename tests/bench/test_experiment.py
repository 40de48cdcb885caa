"""The paper's experiments as files: complete, true to the paper's other copies here, and refused when malformed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import s2a
from s2a_bench.cells.backbones import MINI_BACKBONES
from s2a_bench.cli import main as cli
from s2a_bench.errors import InputError
from s2a_bench.experiments import spec as experiment
from s2a_bench.experiments.memory_tables import PAPER_ROWS
from s2a_bench.sweeps.grid import Request, expand, parse_method

ROOT = Path(__file__).resolve().parents[2]
PAPER = ROOT.parent / "shared/paper/tables.json"
GOOD = """
title = "Two"
source = "here"
question = "Which?"
families = ["vit", "swin"]
[[rows]]
name = "Linear"
method = "linear"
expected.vit = { memory_mb = 344, vtab_natural = 68.26 }
[[rows]]
name = "S2A"
method = "s2a:bits=8"
mini = false
"""


def test_all_of_the_papers_experiments_are_there():
    assert experiment.list_experiments() == ("fig1", "fig5", "table1", "table2", "table3", "table4")


@pytest.mark.parametrize("name", experiment.list_experiments())
@pytest.mark.parametrize("suite", ["mini", "vtab", "fgvc"])
def test_every_row_is_a_cell_on_every_backbone(name, suite):
    found = experiment.load_experiment(name)
    datasets = ("digits",) if suite == "mini" else ()
    cells = expand(Request(suite=suite, experiment=name, datasets=datasets, seeds=(0,)))
    backbones = {cell.backbone.name for cell in cells}
    assert backbones == set(found.backbones(suite)) and (suite == "mini") == (backbones <= set(MINI_BACKBONES))
    rows = {s2a.method_config((m := parse_method(label)).name, **m.options) for label in found.methods(suite)}
    assert rows == {s2a.method_config(cell.method.name, **cell.method.options) for cell in cells}


def test_memory_and_parameters_are_those_of_the_memory_table():
    """``paper.ROWS`` was written from the paper by itself: two copies that must agree."""
    families = {real: family for family, (_, real) in experiment.FAMILIES.items()}
    assert {name.partition(".")[0] for name in families} == {row.backbone for row in PAPER_ROWS}
    short = {real.partition(".")[0]: family for real, family in families.items()}
    seen = 0
    for table in ("table1", "table2"):
        for row in experiment.load_experiment(table).rows:
            method = parse_method(row.method)
            for printed in PAPER_ROWS:
                same = (printed.method, dict(printed.options)) == (method.name, dict(method.options))
                if printed.table == int(table[-1]) and same:
                    expected = row.expected[short[printed.backbone]]
                    assert expected["memory_mb"] == printed.memory_mb
                    assert expected.get("params_percent") == printed.params_percent
                    seen += 1
    assert seen == len(PAPER_ROWS)


@pytest.mark.skipif(not PAPER.exists(), reason="a copy of the paper's tables lies beside some checkouts only")
def test_every_printed_number_is_the_papers():
    tables = json.loads(PAPER.read_text())
    keys = {
        "table1": "table1",
        "table2": "table2_quantization",
        "table3": "table3_lrp_vs_vpt",
        "table4": "table4_ablation",
    }
    for name, key in keys.items():
        for family, (_, real) in experiment.FAMILIES.items():
            printed = tables[key][real.partition(".")[0]]
            rows = [row.expected[family] for row in experiment.load_experiment(name).rows if family in row.expected]
            ours = sorted(tuple(v for k, v in row.items()) for row in rows)
            theirs = sorted(tuple(v for v in values if not isinstance(v, bool)) for values in printed.values())
            assert ours == theirs
    fig5 = tables["fig5_scaling"]
    labels = [row.method for row in experiment.load_experiment("fig5").rows]
    assert labels == [f"s2a:lrp_rank={r}" for r in fig5["lrp_rank"]] + [
        f"s2a:lsb_reduction={r}" for r in fig5["lsb_reduction"]
    ]


def test_the_request_wins_over_the_experiment():
    narrowed = Request(
        experiment="table1", datasets=("digits",), backbones=("mini_vit",), methods=("bias",), seeds=(3,)
    )
    assert [(c.backbone.name, c.method.name, c.seed) for c in expand(narrowed)] == [("mini_vit", "bias", 3)]
    fig5 = expand(Request(experiment="fig5", datasets=("digits",)))
    assert {c.method.options.get("lrp_rank") for c in fig5} == {5, 15, 30, None}  # what a mini backbone can hold


def test_an_experiment_of_ones_own(tmp_path, capsys):
    path = tmp_path / "two.toml"
    path.write_text(GOOD)
    found = experiment.load_experiment(str(path))
    assert (found.name, found.backbones("mini"), found.methods("mini")) == (
        "two",
        ("mini_vit", "mini_swin"),
        ("linear",),
    )
    assert found.rows[0].expected == {"vit": {"memory_mb": 344, "vtab_natural": 68.26}}
    assert cli.main(["sweep", "--experiment", str(path), "--datasets", "digits", "--dry-run"]) == 0
    assert "linear on digits" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (("title =", "titel ="), ["no title"]),
        (("mini = false", "minni = false"), ["row 2", "'minni'"]),
        (("mini = false", "mini = 3"), ["row 2", "mini=3", "bool"]),
        (('"swin"', '"resnet"'), ["'resnet'", "convnext"]),
        (("expected.vit", "expected.vut"), ["row 1", "'vut'", "vit"]),
        (("memory_mb", "memory"), ["row 1", "'memory'", "memory_mb"]),
        (("344", '"344"'), ["row 1", "must be a number"]),
        (("{ memory_mb = 344, vtab_natural = 68.26 }", "3"), ["row 1", "table"]),
        (('["vit", "swin"]', "[]"), ["no families"]),
        (('["vit", "swin"]', '"vit"'), ["families", "list"]),
        (("[[rows]]", "[[row]]"), ["no rows"]),
        (('method = "linear"', ""), ["row 1", "no method"]),
        (("question =", "question =="), ["not TOML"]),
    ],
)
def test_malformed_files(change, words):
    with pytest.raises(InputError) as error:
        experiment.parse_experiment("mine", GOOD.replace(*change))
    assert all(word in str(error.value) for word in ["mine", *words]), str(error.value)


def test_unknown_names(tmp_path):
    with pytest.raises(InputError, match="did you mean table1"):
        experiment.load_experiment("tabel1")
    with pytest.raises(InputError, match="cannot be read"):
        experiment.load_experiment(str(tmp_path / "none.toml"))
    bad = tmp_path / "bad.toml"
    bad.write_text(GOOD.replace("linear", "linaer"))
    with pytest.raises(s2a.S2AError, match="linaer"):
        expand(Request(experiment=str(bad)))
