"""Figure 5: which rows are a curve, what a map shows, and nothing where nothing was swept."""

from __future__ import annotations

import dataclasses
import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from bench.factories import GROUPS, make_grid, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.cells.record import write
from s2a_bench.reports import ablations as report_sweeps
from s2a_bench.reports import build as report
from s2a_bench.reports.figures import canvas, sizes
from s2a_bench.reports.figures.sizes import Curve, Tile
from s2a_bench.reports.pictures import draw_pictures
from s2a_bench.reports.sections import make_sections


def swept(points, seeds=(0, 1), datasets=tuple(GROUPS), **options):
    records = [
        make_record(
            dataset=dataset,
            seed=seed,
            method_config={"lrp_rank": rank, "lsb_reduction": reduction, "activations": "paper", **options},
            accuracy=50.0 + 0.1 * rank - reduction + seed,
        )
        for rank, reduction in points
        for dataset in datasets
        for seed in seeds
    ]
    (section,) = make_sections(records)
    return section


def slices(section):
    grid = report_sweeps.find_grid(section)
    assert grid is not None
    return report_sweeps.find_slices(grid, section)


def test_a_curve_holds_the_other_size_at_the_papers():
    section = swept([(5, 8), (15, 8), (30, 8), (30, 16), (30, 4), (5, 4)])
    rank, reduction = slices(section)
    assert (rank.key, rank.held) == ("lrp_rank", ("lsb_reduction", 8.0))
    assert (reduction.key, reduction.held) == ("lsb_reduction", ("lrp_rank", 30.0))
    assert [curve.name for curve in rank.curves] == sorted(set(GROUPS.values()))
    for curve in rank.curves:
        # Seeds 0 and 1 lie one point apart.
        assert [(x, pytest.approx(y)) for x, y, _ in curve.points] == [(5, 43.0), (15, 44.0), (30, 45.5)]
    # Three points from the widest to the narrowest branch of 4 and 16 are twelve of accuracy, told towards the widest.
    assert "natural +12.0" in report_sweeps.describe_change(reduction)
    assert "natural +2.5" in report_sweeps.describe_change(rank)


def test_a_part_that_is_off_or_another_option_is_no_point():
    section = swept([(0, 8), (5, 0), (5, 8), (15, 8)])
    assert slices(section) == []
    grid = report_sweeps.find_grid(section)
    assert grid and set(grid.rows) == {(0, 8), (5, 0), (5, 8), (15, 8)}  # but the map has them all


def test_a_sweep_of_some_tasks_is_drawn_over_these_and_a_hole_is_said():
    """One setting has all tasks, six have two of them, and one of these lacks one."""
    some = [*GROUPS][:2]
    records = list(swept([(30, 8)]).records) + [
        entry
        for point in ((5, 8), (15, 8), (5, 4), (15, 4), (30, 4), (5, 2))
        for entry in swept([point], datasets=some[:1] if point == (5, 2) else some).records
    ]
    (section,) = make_sections(record for _, record in records)
    grid = report_sweeps.find_grid(section)
    assert grid is not None
    assert (grid.datasets, grid.partial) == (tuple(d for d in section.datasets if d in some), ((5.0, 2.0),))
    assert {p: pytest.approx(grid.stat(p).mean) for p in grid.rows} == {
        (rank, reduction): 50.5 + 0.1 * rank - reduction for rank in (5, 15, 30) for reduction in (4, 8)
    }
    (drawn,) = draw_pictures([section], ["s2a"])
    (map_,) = (picture for picture in drawn if picture.kind == "map")
    assert all(name in map_.caption for name in some)
    root = ET.fromstring(map_.inline)
    words = [text.text for text in root.iter("text")]
    assert (words.count("not run"), words.count("incomplete")) == (2, 1)
    assert {"43.0", "47.0", "49.5"} <= set(words)
    assert "rank of the prompt 30, reduction of the branch 4: accuracy 49.5 ± 0.5 %" in "".join(root.itertext())


def test_a_figure_names_its_means_that_hold_a_cell_that_did_not_learn():
    def named(*sizes):
        section = swept([(5, 8), (15, 8), (30, 8), *((30, size) for size in sizes)])
        (drawn,) = draw_pictures([section], ["s2a"])
        return [row.label for row in section.rows if row.unlearned], {
            picture.name: picture.caption for picture in drawn if "did not learn" in picture.caption
        }

    assert named(4, 16) == ([], {})
    (label,), captions = named(4, 16, 46)  # an accuracy of about 7 % on ten classes
    assert all(f"did not learn: {label}." in caption for caption in captions.values())
    kinds = {name.partition("mini_vit-")[2] for name in captions}
    assert {"map", "lsb-reduction", "params"} <= kinds and "lrp-rank" not in kinds


def test_an_unfinished_sweep_names_its_means_that_hold_a_cell_that_did_not_learn():
    """No row has every task, so none has an average; the map and the curve are over the tasks that all of them have."""
    some = [*GROUPS][:2]
    points = [(rank, reduction) for rank in (5, 15, 30) for reduction in (4, 8)]
    records = [record for _, record in swept(points, datasets=some).records]
    records.append(make_record(method="linear", dataset=[*GROUPS][2]))

    def named(wreck):
        (section,) = make_sections(
            dataclasses.replace(r, accuracy=9.0) if (r.method_config, r.dataset) == wreck else r for r in records
        )
        (drawn,) = draw_pictures([section], ["s2a"])
        return {p.kind: p.caption.partition("did not learn: ")[2] for p in drawn if p.kind in ("map", "sweep")}

    assert named(None) == {"map": "", "sweep": ""}
    captions = named((next(r.method_config for r in records if r.method_config["lrp_rank"] == 15), some[0]))
    assert captions["map"].startswith("s2a, rank 15")


def test_nothing_is_drawn_where_nothing_was_swept(tmp_path):
    for record in make_grid():
        write(record, tmp_path)
    assert not [p for p in report.build(tmp_path).figures if "lrp" in p.name or "map" in p.name]


def test_the_map_has_every_combination_and_dashes_what_was_not_run():
    values: dict[tuple[float, float], float] = {(5, 8): 40.0, (15, 8): 45.0, (5, 4): 50.0}
    tiles = {point: Tile(value, f"accuracy {value} %") for point, value in values.items()}
    picture = ET.fromstring(sizes.draw_heat_map(tiles, title="t", x_label="a", y_label="b"))
    groups = [group for group in picture.iter("g") if group.get("class") in ("none", "tile")]
    assert sorted(group.get("class", "") for group in groups) == ["none", "tile", "tile", "tile"]
    words = [text.text for text in picture.iter("text")]
    assert {"40.0", "45.0", "50.0", "not run"} <= set(words)
    looks = {group[0].text or "": group[1].get("style") or "" for group in groups}
    shade = {h: float(re.findall(r"opacity:([\d.]+)", look)[0]) for h, look in looks.items() if "var(--tile)" in look}
    assert sorted(shade, key=lambda hint: shade[hint]) == [
        "a 5, b 8: accuracy 40.0 %",
        "a 15, b 8: accuracy 45.0 %",
        "a 5, b 4: accuracy 50.0 %",
    ]
    assert "stroke-dasharray" in looks["a 15, b 4: not run"]


@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=6), min_size=1, max_size=4))
@settings(max_examples=30, deadline=None)
def test_names_at_the_ends_of_curves_never_overlap_nor_leave_the_picture(values):
    lines = [Curve(f"group {i}", tuple((float(x), y, None) for x, y in enumerate(ys))) for i, ys in enumerate(values)]
    picture = ET.fromstring(sizes.draw_curves(lines, title="t", x_label="x"))
    names = [group for group in picture.iter("g") if group.get("class") == "name"]
    heights = sorted(float(group[0].get("y") or 0) for group in names)
    assert len(heights) == len(lines)
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(heights))
    assert heights[0] > 0 and heights[-1] < canvas.HEIGHT


def test_a_report_of_a_sweep_has_both_curves_and_the_map(tmp_path):
    for _, record in swept([(rank, reduction) for rank in (5, 15, 30) for reduction in (16, 8, 4)]).records:
        write(record, tmp_path)
    paths = report.build(tmp_path)
    names = {path.name.removeprefix("scatter-mini-mini_vit-") for path in paths.figures}
    assert {"lrp-rank.svg", "lsb-reduction.svg", "map.svg"} <= names
    for path in paths.figures:
        ET.fromstring(path.read_text())
    for name in re.findall(r"\(figures/([^)]+)\)", paths.markdown.read_text()):
        assert (tmp_path / "figures" / name).is_file()
