"""Figure 5: which rows are a curve, what a map shows, and nothing where nothing was swept."""

from __future__ import annotations

import itertools
import re
import xml.etree.ElementTree as ET

import pytest
from bench.factories import GROUPS, make_grid, make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells.record import write
from s2a_bench.reports import ablations as report_sweeps
from s2a_bench.reports import build as report
from s2a_bench.reports.pictures import draw_pictures
from s2a_bench.reports.sections import make_sections
from s2a_bench.reports.svg import axes
from s2a_bench.reports.svg import curves as figures_sweep
from s2a_bench.reports.svg.curves import Curve


def swept(points, seeds=(0, 1), **options):
    records = [
        make_record(
            dataset=dataset,
            seed=seed,
            method_config={"lrp_rank": rank, "lsb_reduction": reduction, "activations": "paper", **options},
            accuracy=50.0 + 0.1 * rank - reduction + seed,
        )
        for rank, reduction in points
        for dataset in GROUPS
        for seed in seeds
    ]
    (section,) = make_sections(records)
    return section


def test_a_curve_holds_the_other_size_at_the_papers():
    section = swept([(5, 8), (15, 8), (30, 8), (30, 16), (30, 4), (5, 4)])
    rank, reduction = report_sweeps.find_slices(section)
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
    assert set(report_sweeps.size_grid(section)) == {(5, 8), (15, 8)}
    assert report_sweeps.find_slices(section) == []


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


def test_nothing_is_drawn_where_nothing_was_swept(tmp_path):
    for record in make_grid():
        write(record, tmp_path)
    assert not [p for p in report.build(tmp_path).figures if "lrp" in p.name or "map" in p.name]


def test_the_map_has_every_combination_and_dashes_what_was_not_run():
    picture = ET.fromstring(
        figures_sweep.draw_heat_map({(5, 8): 40.0, (15, 8): 45.0, (5, 4): 50.0}, title="t", x_label="x", y_label="y")
    )
    classes = [rect.get("class", "") for rect in picture.iter("rect")]
    assert sorted(classes) == ["none", "tile", "tile", "tile"]
    words = [text.text for text in picture.iter("text")]
    assert {"40.0", "45.0", "50.0"} <= set(words)
    shade = [float(rect.get("fill-opacity") or 0) for rect in picture.iter("rect") if rect.get("class") == "tile"]
    assert min(shade) < sorted(shade)[1] < max(shade)


@given(st.lists(st.lists(st.floats(0, 100), min_size=1, max_size=6), min_size=1, max_size=4))
def test_names_at_the_ends_of_curves_never_overlap_nor_leave_the_picture(values):
    lines = [Curve(f"group {i}", tuple((float(x), y, None) for x, y in enumerate(ys))) for i, ys in enumerate(values)]
    picture = ET.fromstring(figures_sweep.draw_curves(lines, title="t", x_label="x"))
    heights = sorted(float(text.get("y") or 0) for text in picture.iter("text") if text.get("class") == "name")
    assert len(heights) == len(lines)
    assert all(b - a >= 13.9 for a, b in itertools.pairwise(heights))
    assert heights[0] > 0 and heights[-1] < axes.HEIGHT


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
