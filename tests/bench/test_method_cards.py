"""Everything that the bench knows of a method comes from its card, so that a new method is one file."""

from __future__ import annotations

import dataclasses
import gzip
import importlib.util
import itertools
import json
import math
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
import s2a
from bench.factories import make_grid
from doc_blocks import blocks
from s2a import registry
from s2a.card import SHAPES, Recipe
from s2a.registry import get_card, get_entry
from s2a_bench.cells import recipes, run
from s2a_bench.cli import methods as cards
from s2a_bench.config import TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.reports.figures import method_styles
from s2a_bench.reports.pictures import draw_pictures
from s2a_bench.reports.sections import make_sections
from s2a_bench.sweeps import grid
from s2a_bench.sweeps.search import choice, spaces

ROOT = Path(__file__).parents[2]
OURS = [m for m in s2a.list_methods() if get_entry(m).method.__module__.split(".")[0] in ("s2a", "s2a_baselines")]


# Our own cards


def test_every_method_has_a_colour_and_a_shape_of_its_own():
    assert len(OURS) == 11
    styles = {method: get_card(method).style for method in OURS}
    for one, other in itertools.combinations(styles.values(), 2):
        assert one is not None and other is not None
        assert len({one.light, other.light}) == len({one.dark, other.dark}) == len({one.shape, other.shape}) == 2


def test_every_method_has_a_place_of_its_own_in_tables():
    orders = [get_card(method).order for method in OURS]
    assert len(set(orders)) == len(OURS)
    assert max(orders) < get_card("a_method_of_another_package").order


@pytest.mark.parametrize("method", OURS)
def test_every_card_is_full(method):
    card = get_card(method)
    for name in ("title", "trains", "place", "count", "keeps", "inference", "source", "evidence", "deviations"):
        assert getattr(card, name).strip(), name


def _luminance(colour: str) -> float:
    """Relative luminance of WCAG 2.2."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def test_every_colour_is_seen_on_its_page():
    """Graphics need a contrast of 3 (WCAG 2.2, 1.4.11): on white, and on the report's dark page."""
    styles = [get_card(method).style for method in OURS]
    pairs = [*method_styles.SPARE_COLOURS, *((style.light, style.dark) for style in styles if style)]
    dark_page = re.search(r"prefers-color-scheme:\s*dark.*?--page:\s*(#[0-9a-f]+)", _css(), re.DOTALL)
    assert dark_page
    code = dark_page[1] if len(dark_page[1]) == 7 else "#" + "".join(2 * digit for digit in dark_page[1][1:])
    for light, dark in pairs:
        assert 1.05 / (_luminance(light) + 0.05) >= 3, light
        assert (_luminance(dark) + 0.05) / (_luminance(code) + 0.05) >= 3, dark


def _css() -> str:
    return (ROOT / "packages/bench/src/s2a_bench/reports/report.css").read_text()


# Recipes: ids of cells depend on them, so that a changed default would make published records anew.

_RATES = {"full": 1e-3, "linear": 3e-2, "vpt": 1e-1}
"""The defaults under which records were published; 1e-2 for every other method of ours."""


@pytest.mark.parametrize("suite", ["mini", "vtab", "fgvc", "cifar", "domainnet", "imagenet"])
def test_the_recipe_of_every_method_is_what_it_was(suite):
    schedule: dict[str, Any] = (
        {"epochs": 12, "warmup_epochs": 1} if suite == "mini" else {"epochs": 80, "warmup_epochs": 10}
    )
    for method in OURS:
        assert recipes.train_config(suite, method, "mini_vit") == TrainConfig(lr=_RATES.get(method, 1e-2), **schedule)


def test_the_default_cell_of_every_method_is_a_published_one():
    with gzip.open(ROOT / "docs/records/mini.jsonl.gz", "rt") as lines:
        published = {record["cell_id"]: record for record in map(json.loads, lines)}
    cells = grid.expand(grid.Request(datasets=("digits",), methods=tuple(OURS), seeds=(0,)))
    assert [published[run.identify(cell)]["method"] for cell in cells] == [cell.method.name for cell in cells]


def test_defaults_without_a_card_are_the_benchs_own():
    assert Recipe().learning_rate == TrainConfig().lr
    assert recipes.train_config("vtab", "a_method_of_another_package", "mini_vit") == TrainConfig()


@pytest.mark.parametrize("method", [*OURS, "a_method_of_another_package"])
@pytest.mark.parametrize("backbone", ["mini_vit", "vit_base_patch16_224.augreg_in21k", "resnet50"])
def test_the_search_space_holds_the_default_recipe(method, backbone):
    default = recipes.train_config("vtab", method, backbone)
    config = s2a.method_config(method) if method in OURS else None
    expected = {"train.lr": default.lr, "train.weight_decay": default.weight_decay}
    expected |= {a.key: getattr(config, a.key[7:]) for a in spaces.get(method, backbone) if a.key.startswith("method.")}
    assert expected in spaces.grid(spaces.get(method, backbone))


def test_a_sweep_that_names_no_method_compares_those_whose_cards_say_so():
    cells = grid.expand(grid.Request(datasets=("digits",), seeds=(0,)))
    assert {cell.method.name for cell in cells} == {"full", "linear", "bias", "lora", "s2a"}
    assert (cells[0].method.name, cells[-1].method.name) == ("full", "linear")  # the longest first


# Markers


@pytest.mark.parametrize("shape", SHAPES)
def test_every_shape_is_drawn_around_its_point(shape, monkeypatch):
    from s2a.card import Style

    monkeypatch.setattr(method_styles, "style", lambda method: Style("#000000", "#ffffff", shape))
    (drawn,) = ET.fromstring(method_styles.swatch("x"))
    if drawn.tag == "circle":
        assert (float(drawn.get("cx", "")), float(drawn.get("cy", "")), shape) == (8, 8, "circle")
        return
    points = [tuple(map(float, point.split(","))) for point in drawn.get("points", "").split()]
    assert sum(x for x, _ in points) / len(points) == pytest.approx(8, abs=0.1)
    assert sum(y for _, y in points) / len(points) == pytest.approx(8, abs=0.1)
    assert 6 <= max(math.dist(point, (8, 8)) for point in points) <= 8.5
    assert all(-0.5 <= value <= 16.5 for point in points for value in point)
    # Going round once, always the same way: the outline does not cross itself.
    angles = [math.atan2(y - 8, x - 8) for x, y in points]
    turns = [(b - a) % (2 * math.pi) for a, b in itertools.pairwise([*angles, angles[0]])]
    assert all(0 < turn < math.pi for turn in turns) and sum(turns) == pytest.approx(2 * math.pi)


def test_no_two_shapes_are_the_same():
    assert len(set(method_styles._POLYGONS.values())) == len(SHAPES) - 1
    assert method_styles._POLYGONS.keys() == {*SHAPES} - {"circle"}


def test_markers_of_methods_without_a_card_are_steady_and_unlike_those_with_one(monkeypatch):
    names = ["mine", "yours", "Ünnamed <b>", ""]
    before = [method_styles.style(name) for name in names]
    taken = {(style.light, style.dark) for method in OURS if (style := get_card(method).style)}
    assert not {(style.light, style.dark) for style in before} & taken
    assert before[0] != before[1]
    monkeypatch.setattr(registry, "_METHODS", {})  # nothing is installed any more, only records are left
    assert [method_styles.style(name) for name in names] == before


def test_names_of_colours_need_no_escaping_and_are_each_ones_own():
    names = [*OURS, "mine", "Mine", "a b", "a_b", "a-b", "", "x", "</style>", "ü"]
    variables = [method_styles.variable(name) for name in names]
    assert len(set(variables)) == len(names)
    assert all(re.fullmatch(r"[a-z][a-z0-9_-]*", name) for name in variables)


# A new method is one file

FILE = next(block.text for block in blocks("docs/add-method.md") if block.language == "python")
"""The page that shows how is true."""


def _install(folder: Path, monkeypatch: pytest.MonkeyPatch, source: str = FILE) -> None:
    """Imports a method's file; the method is forgotten after the test."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))
    path = folder / "my_method.py"
    path.write_text(source)
    spec = importlib.util.spec_from_file_location("my_method", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "my_method", module)
    spec.loader.exec_module(module)


def test_a_new_method_is_one_file(tmp_path, monkeypatch):
    _install(tmp_path, monkeypatch)
    # Recipe and search space.
    assert recipes.train_config("mini", "mine", "mini_vit").lr == 2e-3
    points = spaces.grid(spaces.get("mine", "mini_vit"))
    assert len(points) == spaces.GRID
    assert {(p["train.lr"], p["method.start"]) for p in points} == {*itertools.product((2e-4, 2e-3, 2e-2), (0.5, 1.0))}
    # A sweep compares it without being told to, and its long cells first; it trains.
    cells = grid.expand(grid.Request(datasets=("digits",), seeds=(0,), epochs=1, limit_train=32, limit_test=32))
    assert [cell.method.name for cell in cells][:2] == ["mine", "full"]
    (search,) = choice.searches(cells[:1], choice.Mode())
    assert len({run.identify(trial) for trial in search.trials}) == spaces.GRID
    record = run.run(cells[0])
    assert (record.status, record.method, record.method_config) == ("done", "mine", {"start": 1.0})
    # Of rows of the same accuracy its card says the order; it has its own marker, and the figures have its colours.
    equal = make_sections(make_grid(["s2a", "mine", "linear", "full"], ["digits"], (0, 1), accuracy=50.0))
    assert [row.method for row in equal[0].rows] == ["full", "mine", "linear", "s2a"]
    shown = make_sections(make_grid(["s2a", "mine", "linear", "full"], ["digits"], (0, 1)))
    for picture in draw_pictures(shown, ["full", "mine", "linear", "s2a"])[0]:
        assert "--m-mine:#112233;" in picture.alone and "--m-mine:#ddeeff;" in picture.alone
        if picture.kind == "curves":
            continue
        (mark,) = (
            element
            for element in ET.fromstring(picture.alone).iter()
            if element.get("class") == "mark" and "mine:" in "".join(element.itertext())
        )
        (path,) = (element for element in mark if element.tag.endswith("path"))
        assert len(re.findall("[ML]", path.get("d", ""))) == 10  # a star
        assert "fill:var(--m-mine)" in path.get("style", "")
    # The command line knows it.
    rows: dict[str, Any] = dict(cards.card("mine").rows)
    assert (cards.card("mine").title, rows["Learning rate"], rows["Options"]) == (
        "My method",
        "0.002 up to a width of 128; 0.00067 at 384, 0.00033 at 768, 0.00025 at 1024",
        "start=1.0",
    )
    assert rows["Searched"] == "learning rates 0.0002, 0.002, 0.02 (as far lower when wider); start 0.5 or 1.0"


def test_a_method_without_a_card_runs_and_is_reported_too(tmp_path, monkeypatch):
    source = re.sub(r"    card = Card\(.*?\n    \)\n", "", FILE, flags=re.DOTALL)
    _install(tmp_path, monkeypatch, source)
    cells = grid.expand(grid.Request(datasets=("digits",), methods=("mine", "full"), seeds=(0,)))
    assert {cell.method.name: cell.train.lr for cell in cells} == {"mine": 1e-3, "full": 1e-3}
    assert len(spaces.grid(spaces.get("mine", "mini_vit"))) == spaces.GRID
    shown = make_sections(make_grid(["mine", "s2a"], ["digits"], (0, 1)))
    assert [row.method for row in shown[0].rows] == ["s2a", "mine"]
    assert all(
        f"--m-mine:{method_styles.style('mine').light};" in p.alone for p in draw_pictures(shown, ["mine", "s2a"])[0]
    )


def test_a_search_space_of_another_size_is_refused(tmp_path, monkeypatch):
    _install(tmp_path, monkeypatch, FILE.replace("(2e-4, 2e-3, 2e-2)", "(2e-4, 2e-3)"))
    with pytest.raises(InputError, match="'mine' has 8 points, but every method is searched with 12"):
        spaces.get("mine", "mini_vit")


@pytest.mark.parametrize(
    ("backbone", "width"),
    [("vit_small_patch14_dinov2.lvd142m", 384), ("vit_base_patch16_224.augreg_in21k", 768), ("convnext_base", 1024)],
)
@pytest.mark.parametrize("method", OURS)
def test_a_wide_backbone_has_smaller_rates_and_clipped_gradients(method, backbone, width):
    """One recipe for a backbone of 0.7 M parameters and one of 86 M destroyed methods on the latter."""
    recipe = get_card(method).recipe
    found = recipes.train_config("vtab", method, backbone)
    assert found.lr == recipe.rate_at(width)
    small = recipes.train_config("vtab", method, "mini_vit").lr
    assert found.lr < small if recipe.width_power else found.lr == small  # LST's network is its own
    assert (found.clip_norm, recipes.train_config("vtab", method, "mini_vit").clip_norm) == (1.0, 0.0)
    assert recipes.changes("vtab", method, backbone, dataclasses.asdict(found)) == {}
    cell = grid.expand(grid.Request(backbones=(backbone,), methods=(method,), datasets=("digits",), seeds=(0,)))[0]
    assert (cell.train.lr, cell.train.clip_norm) == (found.lr, 1.0)


def test_a_backbone_that_timm_does_not_know_keeps_the_cards_rates():
    assert recipes.learning_rates("s2a", "a_backbone_of_an_older_timm")[0] == get_card("s2a").recipe.learning_rate
