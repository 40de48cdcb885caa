"""Figures: what is drawn where, what appears when it is pointed at, the same bytes, and nothing that runs."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bench.factories import GROUPS, make_grid, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench.cells.record import write
from s2a_bench.reports import build as report
from s2a_bench.reports.figures import canvas, confusion, epochs, labels, method_styles, scatter, style
from s2a_bench.reports.figures.scatter import Mark
from s2a_bench.reports.learning_curves import MOST_LINES, MOST_PANELS
from s2a_bench.reports.pictures import draw_pictures
from s2a_bench.reports.sections import make_sections

EVIL = "$x_1^2$ \\frac <script>alert('1')</script>\"'&_"


def draw(points, *, log=False, key=""):
    return ET.fromstring(scatter.draw_scatter(points, title="t", x_label="x", log=log, key=key))


def of_class(root, name):
    return [element for element in root.iter() if element.get("class") == name]


def words(element):
    return [text.text for text in element.iter("text")]


def center(element):
    """Middle of what is drawn by the paths of a group."""
    found = []
    for path in element.iter("path"):
        numbers = [float(n) for n in re.findall(r"-?\d+\.?\d*", path.get("d"))]
        found += list(zip(numbers[::2], numbers[1::2], strict=True))
    x, y = zip(*found, strict=True)
    return (min(x) + max(x)) / 2, (min(y) + max(y)) / 2


values = st.floats(0.01, 5000, allow_nan=False)
marks = st.lists(
    st.builds(
        Mark,
        label=st.sampled_from(["s2a, exact", "lora", "full", "s2a, rank 16, reduction 4", "x" * 60, "$a_b$, c"]),
        method=st.sampled_from(["s2a", "lora", "full", "other"]),
        x=values,
        y=st.floats(0, 100),
        spread=st.none() | st.floats(0, 5),
        ghost=st.none() | values,
        variant=st.integers(0, 20),
    ),
    min_size=1,
    max_size=20,
)


@given(marks, st.booleans())
@settings(max_examples=12, deadline=None)
def test_names_in_a_figure_never_overlap_nor_leave_it(points, log):
    root, boxes = draw(points, log=log), []
    with canvas.open_canvas() as ruler:
        for group in of_class(root, "name"):
            (text,) = group.iter("text")
            x, y = float(text.get("x", "")), float(text.get("y", ""))
            half = ruler.measure([text.text or ""], canvas.FONT, bold=True)[0] / 2
            # Lines of one name touch; a hair less keeps them apart.
            boxes.append((x - half + 0.1, x + half - 0.1, y - canvas.FONT + 2, y))
    assert len(points) > labels.MANY_MARKS or boxes or len(points) > 1
    for i, a in enumerate(boxes):
        assert a[0] >= 0 and a[1] <= canvas.WIDTH
        assert not any(a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3] for b in boxes[:i])
    assert len(of_class(root, "mark")) == len(points)


@given(st.lists(st.tuples(values, st.floats(0, 100)), min_size=2, max_size=8), st.booleans())
@settings(max_examples=25, deadline=None)
def test_marks_lie_in_the_order_of_their_values(points, log):
    root = draw([Mark(f"m{i}", "lora", x, y, hint=str(i)) for i, (x, y) in enumerate(points)], log=log)
    places = {int(mark[0].text or ""): center(mark) for mark in of_class(root, "mark")}
    for i, j in itertools.permutations(range(len(points)), 2):
        if points[i][0] > points[j][0]:
            assert places[i][0] >= places[j][0] - 0.02
        if points[i][1] > points[j][1]:
            assert places[i][1] <= places[j][1] + 0.02


def style_of(element: ET.Element | None) -> str:
    """An element's style."""
    assert element is not None
    return element.get("style", "")


def test_measured_is_filled_theoretical_hollow_and_a_line_ties_them():
    root = draw([Mark("a", "s2a", 10, 80, ghost=8), Mark("b", "lora", 20, 81)])
    assert [len(of_class(root, name)) for name in ("mark", "ghost", "tie")] == [2, 1, 1]
    (ghost,), mark = of_class(root, "ghost"), of_class(root, "mark")[0]
    assert "fill:var(--page)" in style_of(ghost.find("path")) and "stroke:var(--m-s2a)" in style_of(ghost[1])
    assert "fill:var(--m-s2a)" in style_of(mark.find("path"))
    assert center(ghost)[0] < center(mark)[0] and center(ghost)[1] == pytest.approx(center(mark)[1], abs=0.1)


def test_variants_of_a_method_have_numbers_as_in_the_table():
    root = draw([Mark("s2a", "s2a", 1, 80), Mark("s2a, rank 5", "s2a", 2, 81, variant=1), Mark("lora", "lora", 3, 70)])
    assert [text for group in of_class(root, "digit") for text in words(group)] == ["2"]
    assert ">2</text>" in method_styles.swatch("s2a", 1) and "<text" not in method_styles.swatch("s2a", 0)


def test_where_all_are_one_method_its_name_is_left_out():
    root = draw([Mark("s2a, rank 5", "s2a", 10, 80), Mark("s2a, rank 9", "s2a", 1000, 20)], log=True)
    assert {text for group in of_class(root, "name") for text in words(group)} == {"rank 5", "rank 9"}


def test_of_many_variants_in_one_place_only_the_best_has_a_name_far_from_its_mark():
    root = draw([Mark(f"s2a, rank {k}", "s2a", 100 + k, 80 + k / 10, variant=k) for k in range(10)])
    assert "rank 9" in [text for group in of_class(root, "name") for text in words(group)]


def test_hints_have_units():
    (pictures,) = draw_pictures(make_sections(make_grid()), ["s2a"])
    texts = {p.kind: "".join(ET.fromstring(p.inline).itertext()) for p in pictures if p.kind != "curves"}
    assert re.search(r"lora: accuracy \d\d\.\d ± \d\.\d %, measured [\d.]+ MB, theoretical [\d.]+ MB", texts["memory"])
    assert re.search(r"lora: accuracy .* %, trainable [\d.]+ % of the backbone", texts["params"])
    assert re.search(r"lora: accuracy .* %, [\d.]+ ms per training image", texts["time"])
    assert [p.kind for p in pictures] == ["memory", "params", "time", "curves"]


def test_names_come_out_as_they_are():
    records = make_grid([EVIL, "s2a"], curve=[{"epoch": e, "loss": 1 / e} for e in (1, 2)])
    (pictures,) = draw_pictures(make_sections(records), [EVIL, "s2a"])
    for picture in pictures:
        root = ET.fromstring(picture.alone)
        assert "<script" not in picture.alone and "<script" not in picture.inline
        assert EVIL in "".join(root.itertext())
        tags = {element.tag.rpartition("}")[2] for element in root.iter()}
        assert tags <= {"svg", "style", "title", "text", "g", "path"}
        assert not [e for e in root.iter() if e.get("id") or any("href" in key for key in e.attrib)]


def test_every_colour_is_one_of_the_style_sheet_and_every_figure_has_a_name():
    sizes = [{"lrp_rank": rank, "lsb_reduction": reduction} for rank in (1, 2, 3) for reduction in (4, 8)]
    records = make_grid() + [make_record(method_config=size) for size in sizes]
    (pictures,) = draw_pictures(make_sections(records), [])
    sheet = style.css({record.method for record in records}) + style.ALONE
    named = set(re.findall(r"(--[\w-]+):", sheet))
    for picture in pictures:
        assert set(re.findall(r"var\((--[\w-]+)", picture.inline)) <= named
        assert not re.search(r"#[0-9a-f]{3,6}\b", picture.inline)
        for svg in re.findall(r"<svg [^>]*>", picture.inline):
            assert 'role="img"' in svg and re.search(r'aria-label="[^"]+"', svg)
        root = ET.fromstring(picture.alone)
        assert root.get("aria-label") and root[0].tag.endswith("title") and root[0].text


# The same bytes, wherever it runs


SCRIPT = """
import sys
from s2a_bench.reports.figures import scatter
from s2a_bench.reports.figures.scatter import Mark
assert "matplotlib" not in sys.modules
points = [Mark("s2a, rank 5", "s2a", 10, 80, 1.5, 8, 1, "hint"), Mark("lora", "lora", 40, 85)]
print(scatter.draw_scatter(points, title="t", x_label="x", log=True))
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.full
def test_another_process_without_a_home_folder_draws_the_same_bytes_and_says_nothing(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 30\nlines.linewidth: 9\n")
    nowhere = tmp_path / "file"
    nowhere.write_text("")
    environment = os.environ | {"HOME": str(nowhere), "MPLCONFIGDIR": str(nowhere / "x"), "PYTHONHASHSEED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", SCRIPT],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    points = [Mark("s2a, rank 5", "s2a", 10, 80, 1.5, 8, 1, "hint"), Mark("lora", "lora", 40, 85)]
    assert done.stdout.strip() == scatter.draw_scatter(points, title="t", x_label="x", log=True)


def test_settings_of_the_process_stay_as_they_are_and_change_nothing():
    import matplotlib

    points = [Mark("lora", "lora", 40, 85)]
    before = scatter.draw_scatter(points, title="t", x_label="x", log=True)
    with matplotlib.rc_context({"font.size": 30, "axes.grid": True, "svg.fonttype": "path", "text.parse_math": True}):
        assert scatter.draw_scatter(points, title="t", x_label="x", log=True) == before
        assert matplotlib.rcParams["font.size"] == 30


def test_without_matplotlib_a_report_has_no_figures_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(canvas, "is_available", lambda: False)
    for record in make_grid():
        write(record, tmp_path)
    paths = report.build(tmp_path)
    assert paths.figures == ()
    assert paths.html.read_text().count(canvas.MISSING) == 1
    assert paths.markdown.read_text().count("matplotlib is not installed") == 1


# Learning curves


def curve(*losses, val=()):
    points = [{"epoch": e, "loss": loss, "lr": 0.1} for e, loss in enumerate(losses, 1)]
    return [point | ({"val_accuracy": val[i]} if val else {}) for i, point in enumerate(points)]


def curves_of(records):
    (pictures,) = draw_pictures(make_sections(records), [])
    return [picture for picture in pictures if picture.kind == "curves"]


def test_a_curve_is_the_mean_of_the_seeds_over_the_epochs_all_have():
    records = [
        make_record(method="lora", seed=0, curve=curve(2.0, 1.0, 0.5)),
        make_record(method="lora", seed=1, curve=curve(4.0, 3.0)),
    ]
    (picture,) = curves_of(records)
    assert "lora, digits: training loss 3 after epoch 1, 2 after epoch 2, mean of 2 seeds" in picture.inline
    assert picture.name.endswith("-curves-loss") and "mean over seeds" in picture.caption


def test_a_curve_holds_the_seeds_that_the_table_counts():
    """The third seed stood on other data: the table leaves it out."""
    records = [
        make_record(method="lora", seed=seed, curve=curve(*losses), **changes)
        for seed, losses, changes in ((0, (2, 1), {}), (1, (4, 3), {}), (2, (99, 99), {"data_id": "other"}))
    ]
    (picture,) = curves_of(records)
    assert "training loss 3 after epoch 1, 2 after epoch 2, mean of 2 seeds" in picture.inline


def test_validation_accuracy_is_drawn_where_there_is_any_and_nothing_where_there_is_no_curve():
    loss, val = curves_of([make_record(curve=curve(2, 1, val=(50, 60)))])
    assert "validation accuracy 50 % after epoch 1, 60 % after epoch 2" in val.inline
    assert "validation" not in loss.inline
    assert curves_of([make_record(curve=[])]) == curves_of([make_record(curve=curve(1.0))]) == []


def test_many_datasets_and_rows_stay_readable_and_the_rest_is_said():
    datasets = [f"d{i:02}" for i in range(19)]
    records = [
        make_record(method="s2a", dataset=d, group=f"g{i % 3}", method_config={"lrp_rank": r}, accuracy=r)
        for i, d in enumerate(datasets)
        for r in range(1, 7)
    ] + make_grid([f"m{i}" for i in range(11)], datasets, (0,), group="g0")
    records = [record for record in records if record.method == "s2a"] + [
        make_record(method=f"m{i}", dataset=d, group=f"g{k % 3}") for i in range(10) for k, d in enumerate(datasets)
    ]
    (picture,) = curves_of(records)
    root = ET.fromstring(picture.inline)
    *panels, key = root
    assert len(panels) == MOST_PANELS
    drawn = {panel.get("aria-label", "").rpartition(", ")[2] for panel in panels}
    assert {int(d[1:]) % 3 for d in drawn} == {0, 1, 2}, "every group is there"
    assert f"{MOST_PANELS} of 19 datasets" in picture.caption
    assert all(d in picture.caption for d in set(datasets) - drawn)
    assert len(of_class(key, "name")) == MOST_LINES
    assert all(len(of_class(panel, "curve")) == MOST_LINES for panel in panels)
    # Of the variants of a method the most accurate are drawn, each with dashes of its own.
    names = [name or "" for name in words(key)]
    assert sum(name.startswith("s2a") for name in names) == 2 and not any("rank 1" in n or "rank 4" in n for n in names)
    looks = [(e.get("style") or "") for e in of_class(panels[0], "curve") for e in e.iter("path")]
    assert len(set(looks)) == MOST_LINES


def test_panels_become_one_file():
    (picture,) = curves_of(make_grid(curve=curve(2, 1)))
    root = ET.fromstring(picture.alone)
    boxes = [e for e in root if e.tag.endswith("svg")]
    assert len(boxes) == len(GROUPS) + 1
    assert len({(e.get("x"), e.get("y")) for e in boxes}) == len(boxes)
    assert "xmlns" in picture.alone[:200]


# A single training


def test_a_curve_over_epochs_marks_the_best_and_every_point_has_its_value():
    lines = [epochs.Line("training", [(1, 2.0), (2, 1.5), (3, 1.25)]), epochs.Line("validation", [(1, 1.9), (3, 1.4)])]
    text = epochs.draw_epochs(lines, title="t", y_label="loss", best=2)
    root = ET.fromstring(text)
    hints = [point[0].text for point in of_class(root, "point")]
    assert hints == [f"training, epoch {e}: {v}" for e, v in ((1, 2), (2, 1.5), (3, 1.25))] + [
        "validation, epoch 1: 1.9",
        "validation, epoch 3: 1.4",
    ]
    assert "best epoch 2" in words(root)


def test_a_rate_is_marked_where_it_is_on_the_axis():
    points = [(10.0**k, 2.0 - 0.1 * k) for k in range(-6, 0)]
    root = ET.fromstring(epochs.draw_rates(points, title="t", chosen=1e-3))
    assert "chosen: 0.001" in words(root)
    assert next(p[0].text for p in of_class(root, "point")) == "learning rate 1e-06: loss 2.6"


@pytest.mark.parametrize("classes", [2, 30, 31, 120])
def test_a_confusion_matrix_names_classes_and_counts_up_to_thirty(classes):
    names = [f"${EVIL} {i:03}" for i in range(classes)]
    counts = {(i, i): 3 for i in range(classes)} | {(0, 1): 1}
    root = ET.fromstring(confusion.draw_confusion(counts, names, title="t"))
    tiles = of_class(root, "tile") + of_class(root, "tile wrong")
    assert len(tiles) == classes + 1
    assert f"{names[0]} named {names[1]}: 1 of 4 images" in [tile[0].text for tile in tiles]
    seen = [text for text in words(root) if text and text.startswith(names[0][:10])]
    assert len(seen) == (2 * classes if classes <= 30 else 0)
    assert words(root).count("3") == (classes if classes <= 30 else 0)
    # Rows are true classes: the only mistake lies above the diagonal, right of its true class.
    (wrong,), first = of_class(root, "tile wrong"), tiles[0]
    assert center(wrong)[0] > center(first)[0] and center(wrong)[1] == pytest.approx(center(first)[1], abs=0.1)
    box = [float(n) for n in root.get("viewBox", "").split()]
    for tile in tiles:
        assert 0 < center(tile)[0] < box[2] and 0 < center(tile)[1] < box[3]


def test_no_module_imports_pyplot():
    source = Path(canvas.__file__).parents[2]
    assert not [p for p in source.rglob("*.py") if re.search(r"^\s*(from|import) .*pyplot", p.read_text(), re.M)]
