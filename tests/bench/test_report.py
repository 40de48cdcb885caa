"""The report: what it says, what it refuses to say, and that nothing in a record can break it."""

from __future__ import annotations

import dataclasses
import html.parser
import re
import shutil
import xml.etree.ElementTree as ET

import pytest
from bench.factories import GROUPS, make_grid, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console
from s2a_bench.cells.evaluation import NO_TEST
from s2a_bench.cells.record import write
from s2a_bench.errors import InputError
from s2a_bench.reports import build as report
from s2a_bench.reports import notes, tables, terminal
from s2a_bench.reports import text as report_text
from s2a_bench.reports.sections import make_sections
from s2a_bench.reports.svg import axes, labels
from s2a_bench.reports.svg import scatter as figures
from s2a_bench.reports.svg.points import Mark

EVIL = "<script>alert('1')</script>\"'&<img src=x onerror=alert(2)>|`*"


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page; checks that elements nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.text, self._open = [], [], "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "br"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.text += data


def build(folder, records):
    for record in records:
        write(record, folder)
    return report.build(folder)


def only(records):
    (section,) = make_sections(records)
    return section


def test_the_same_records_give_the_same_bytes(tmp_path):
    records = [*make_grid(), make_record(method="adapter", status="failed")]
    paths = build(tmp_path / "a", records)
    first = [path.read_bytes() for path in (paths.html, paths.markdown, *paths.figures)]
    again = report.build(tmp_path / "a")
    assert [path.read_bytes() for path in (again.html, again.markdown, *again.figures)] == first
    # Nor does it matter where they lie and in which order they came.
    other = build(tmp_path / "b", list(reversed(records)))
    assert [path.read_bytes() for path in (other.html, other.markdown, *other.figures)] == first


def test_the_page_stands_alone(tmp_path):
    text = build(tmp_path, make_grid()).html.read_text()
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert re.fullmatch(r"#s\d+|records/[0-9a-f]{16}\.json", value)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"url\(|@import", text)
    policy = next(value for _, name, value in page.attributes if name == "content")
    assert policy.startswith("default-src 'none';")


def test_nothing_in_a_record_is_markup(tmp_path):
    evil = {
        "suite": EVIL,
        "backbone": EVIL,
        "checkpoint_id": EVIL,
        "split_id": EVIL,
        "data_id": EVIL,
        "git_sha": EVIL,
        "group": EVIL,
        "versions": {EVIL: EVIL},
        "hardware": {EVIL: EVIL},
        "started_at": EVIL,
        "train_config": {EVIL: EVIL, "lr": 1.0},
    }
    records = [
        make_record(**evil, dataset=d, method=m, method_config={EVIL: o}, seed=s)
        for d in (EVIL, "b") for m in (EVIL, "s2a") for o in (EVIL, 1) for s in (0, 1)
    ]  # fmt: skip
    error = {"type": EVIL, "message": EVIL, "traceback": EVIL}
    records.append(make_record(**evil, dataset="b", method="s2a", seed=5, status="failed", error=error))
    paths = build(tmp_path, records)
    page = Page(paths.html.read_text())
    assert not {"script", "img"} & set(page.tags)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count("<script>alert('1')</script>") > 20
    assert paths.figures
    for path in paths.figures:
        names = {element.tag.rpartition("}")[2] for element in ET.fromstring(path.read_text()).iter()}
        assert names <= {"svg", "style", "title", "line", "text", "polyline", "g", "circle", "polygon"}
    markdown = paths.markdown.read_text()
    assert not re.search(r"(?<!\\)<(script|img)", markdown)


def test_markdown_tables_keep_their_columns(tmp_path):
    records = make_grid(["lora"], group="x|y")
    for value in ("c|d", "e|f"):
        records += make_grid(["s2a"], method_config={"a|b": value}, group="x|y")
    lines = build(tmp_path, records).markdown.read_text().splitlines()
    blocks = re.findall(r"(?:^\|.*\n)+", "\n".join(lines) + "\n", re.M)
    assert len(blocks) >= 3
    for block in blocks:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1


def test_failures_gaps_and_broken_files_are_named(tmp_path):
    records = make_grid(["lora", "s2a"])
    gone = next(r for r in records if r.method == "lora" and r.dataset == "texture" and r.seed == 2)
    records.remove(gone)
    failed = make_record(method="adapter", status="failed")
    for record in [*records, failed]:
        write(record, tmp_path)
    (tmp_path / "records" / "0123456789abcdef.json").write_text("{")
    paths = report.build(tmp_path)
    page = Page(paths.html.read_text())
    for text in (page.text, paths.markdown.read_text().replace("\\", "")):
        assert "Diverged: The loss is nan." in text
        assert "records/0123456789abcdef.json is not a valid record" in text
        assert "lora: texture seed 2" in text
        assert str(tmp_path) not in text
    assert "Traceback ..." in page.text
    assert "details" in page.tags


def test_an_incomplete_row_has_no_average():
    records = [r for r in make_grid(["lora", "s2a"]) if not (r.method == "lora" and r.dataset == "texture")]
    lora, s2a = only(records).rows
    assert lora.averages is None
    assert lora.cells["digits"].stat is not None
    assert s2a.averages is not None
    assert any("No averages for lora" in note for note in notes.list_notes(only(records)))


def test_variants_are_rows_labelled_by_what_differs():
    records = []
    for rank in (16, 4, 8):
        for activations in ("paper", "exact"):
            config = {"lrp_rank": rank, "activations": activations, "bits": 4}
            records += make_grid(["s2a"], ["digits"], method_config=config)
    shown_labels = [row.label for row in only([*records, *make_grid(["lora"], ["digits"])]).rows]
    assert shown_labels[0] == "lora"
    assert shown_labels[1:] == [f"s2a (activations={a}, lrp_rank={r})" for a in ("exact", "paper") for r in (4, 8, 16)]


def test_a_recipe_parts_rows_only_where_it_was_swept():
    tuned = [
        make_record(dataset=d, seed=s, train_config={"lr": lr}) for d, lr in (("a", 0.1), ("b", 0.2)) for s in (0, 1)
    ]
    assert [row.label for row in only(tuned).rows] == ["s2a"]
    swept = [make_record(seed=s, train_config={"lr": lr, "clip": 1}) for lr in (0.1, 0.02) for s in (0, 1)]
    assert [row.label for row in only(swept).rows] == ["s2a (train.lr=0.02)", "s2a (train.lr=0.1)"]


@pytest.mark.parametrize(
    "change",
    [{"checkpoint_id": "x"}, {"epochs": 1}, {"evaluated_on": "val"}, {"evaluated_on": "select"}, {"protocol": 0},
     {"random_weights": True}, {"limit_train": 8}, {"data_config": {"size": 64}}, {"suite": "vtab"},
     {"backbone": "other"}],
    ids=str,
)  # fmt: skip
def test_what_must_not_be_mixed_gets_a_section_of_its_own(change):
    records = [make_record(seed=0), dataclasses.replace(make_record(seed=1), **change)]
    found = make_sections(records)
    assert sorted(len(section.records) for section in found) == [1, 1]


@pytest.mark.parametrize("change", [{"data_id": "again"}, {"group": "structured"}, {"scored_images": 3}], ids=str)
def test_a_cell_on_other_data_is_marked_and_left_out(change):
    records = make_grid(["lora", "bias", "s2a"])
    for i, r in enumerate(records):
        if r.method == "s2a" and r.dataset == "digits":
            records[i] = make_record(method="s2a", dataset="digits", seed=r.seed, **change)
    _, lora, s2a = only(records).rows
    assert lora.averages is not None
    assert s2a.averages is None
    assert not s2a.cells["digits"].counted
    assert report_text.format_cell(s2a, "digits").endswith("*")
    assert any(
        "s2a on digits" in where and "not comparable" in why
        for where, why in report_text.list_cell_remarks(only(records))
    )


def test_a_failure_before_the_checkpoint_was_known_stays_with_its_table():
    records = make_grid(["lora"], ["digits"])
    failed = make_record(method="s2a", status="failed", checkpoint_id="", data_config={}, seed=1)
    assert [record for _, record in only([*records, failed]).failed] == [failed]


def accuracies(method, values, **changes):
    return [make_record(method=method, seed=seed, accuracy=v, **changes) for seed, v in enumerate(values)]


@pytest.mark.parametrize(
    ("a", "b", "winner"),
    [
        ([90.0, 90.2, 89.9], [80.0, 80.3, 79.8], "lora"),
        ([80.5, 81.0, 79.9], [80.0, 80.6, 79.7], None),  # inside the noise
        ([90.0], [80.0], None),  # one seed
        ([90.0, 90.0, 90.0], [89.9, 89.9, 89.9], None),  # no noise seen at all
    ],
)
def test_bold_only_outside_the_noise(tmp_path, a, b, winner):
    records = accuracies("lora", a) + accuracies("bias", b)
    assert only(records).best.get("dataset digits") == winner
    assert (winner is not None) == ("<strong>" in build(tmp_path, records).html.read_text())


def test_notes_say_what_does_not_compare():
    def joined(*records):
        return " ".join(notes.list_notes(only(records)))

    assert "random" in joined(make_record(random_weights=True))
    assert "limit_train=32" in joined(make_record(limit_train=32))
    assert "validation images" in joined(make_record(evaluated_on="val"))
    selected = {"evaluated_on": "select", "best_epoch": 2, "val_accuracy": 81.0}
    assert "validation images, which chose the epoch" in joined(make_record(**selected))
    assert "optimistic" not in joined(make_record(**selected))
    assert "optimistic: digits" in joined(make_record(**selected, notes=[NO_TEST]))
    assert "Synthetic images" in joined(make_record(synthetic=True))
    seen = "pretrained on CIFAR-10"
    assert seen in joined(make_record(suite="cifar", dataset="cifar10", backbone="mini_swin"))
    assert seen not in joined(make_record(suite="cifar", dataset="cifar100", backbone="mini_swin"))
    assert seen not in joined(make_record(suite="cifar", dataset="cifar10", backbone="resnet50"))
    assert "lossily" in joined(make_record(lossy=True))
    assert "One seed" in joined(make_record())
    assert "different hardware" in joined(make_record(), make_record(seed=1, hardware={"device": "cuda"}))
    assert "uncommitted" in joined(make_record(git_dirty=True))
    assert "Batch sizes" in joined(make_record(), make_record(method="lora", train_config={"batch_size": 8}))
    plain = joined(make_record(synthetic=False), make_record(seed=1, synthetic=False))
    for word in ("random", "limit", "validation", "Rendered", "lossily", "One seed", "hardware", "uncommitted"):
        assert word not in plain


def test_wide_suites_show_groups_and_keep_every_task(tmp_path):
    names = [f"task{i:02d}" for i in range(19)]
    text = Page(build(tmp_path, make_grid(["lora", "s2a"], names, (0, 1))).html.read_text()).text
    assert all(name in text for name in names)
    titles = [column.title for column in tables.summary_columns(only(make_grid(["lora"], names)))]
    assert not set(titles) & set(names)


def test_no_records_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no records"):
        report.build(tmp_path)


def test_stale_figures_go_and_foreign_files_stay(tmp_path):
    build(tmp_path, make_grid() + make_grid(backbone="mini_swin"))
    foreign = tmp_path / "figures" / "mine.svg"
    foreign.write_text("mine")
    shutil.rmtree(tmp_path / "records")
    paths = build(tmp_path, make_grid())
    assert set((tmp_path / "figures").iterdir()) == {*paths.figures, foreign}


def shown(table, width):
    console = Console(width=width, record=True, file=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def test_terminal_table_fits_the_terminal():
    records = make_grid() + make_grid(["s2a"], method_config={"activations": "exact"})
    wide = shown(terminal.terminal_table(records, 200), 200)
    assert all(name.partition("_")[0] in wide for name in GROUPS)
    narrow = shown(terminal.terminal_table(records, 80), 80)
    assert max(map(len, narrow.splitlines())) <= 80
    assert "texture" not in narrow
    for text in (wide, narrow):
        for method in ("full", "linear", "bias", "lora", "s2a", "610", "101.5"):
            assert method in text
        assert "…" not in text


def test_terminal_table_shows_names_literally():
    assert "[red]x[/red]" in shown(terminal.terminal_table(make_grid(["[red]x[/red]"])), 200)


values = st.floats(0.01, 5000, allow_nan=False)
marks = st.lists(
    st.builds(
        Mark,
        label=st.sampled_from(
            ["s2a (activations=exact)", "lora", "full", "s2a (lrp_rank=16, lsb_reduction=4)", "x" * 60]
        ),
        method=st.sampled_from(["s2a", "lora", "full", "other"]),
        x=values,
        y=st.floats(0, 100),
        spread=st.none() | st.floats(0, 5),
        ghost=st.none() | values,
    ),
    min_size=1,
    max_size=20,
)


@given(marks, st.booleans())
@settings(max_examples=60, deadline=None)
def test_names_in_a_figure_never_overlap(points, log):
    svg = figures.draw_scatter(points, ["s2a", "lora", "full", "other"], title="t", x_label="x", log=log, alone=True)
    boxes = []
    for element in ET.fromstring(svg).iter():
        if element.get("class") == "name":
            x, y = float(element.attrib["x"]), float(element.attrib["y"])
            half = len(element.text or "") * labels.GLYPH_WIDTH / 2
            boxes.append((x - half, x + half, y - labels.FONT + 2, y))
    assert len(points) > labels.MANY_MARKS or boxes or len(points) > 1
    for i, a in enumerate(boxes):
        assert a[0] >= 0
        assert a[1] <= axes.WIDTH
        assert not any(a[0] < b[1] and b[0] < a[1] and a[2] < b[3] and b[2] < a[3] for b in boxes[:i])


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("lora", "lora"),
        ("s2a (activations=exact)", "s2a exact"),
        ("s2a (lrp_rank=5, lsb_reduction=16)", "s2a rank 5 reduction 16"),
        ("s2a (activations=exact, lsb_reduction=0, train_bias=false)", "s2a exact reduction 0 no bias"),
        ("full (train.lr=0.01)", "full lr 0.01"),
        ("bias (search=grid of 12, asha)", "bias search grid of 12 asha"),
    ],
)
def test_a_variants_name_in_a_figure_is_short(label, words):
    points = [Mark(label, "s2a", 10, 80), Mark("other", "lora", 1000, 20)]
    root = ET.fromstring(figures.draw_scatter(points, ["s2a", "lora"], title="t", x_label="x", log=True, alone=True))
    names = [element.text or "" for element in root.iter() if element.get("class") == "name"]
    assert words in " ".join(names)


def test_of_many_variants_in_one_place_only_the_best_has_a_name_far_from_its_mark():
    crowd = [Mark(f"s2a (lrp_rank={k}, lsb_reduction=8)", "s2a", 100 + k, 80 + k / 10) for k in range(10)]
    root = ET.fromstring(figures.draw_scatter(crowd, ["s2a"], title="t", x_label="x", log=False, alone=True))
    leads = [element for element in root.iter() if element.get("class") == "lead"]
    names = " ".join(element.text or "" for element in root.iter() if element.get("class") == "name")
    assert "rank 9" in names and len(leads) <= 1


def test_measured_is_filled_and_theoretical_hollow():
    points = [Mark("a", "s2a", 10, 80, ghost=8), Mark("b", "lora", 20, 81)]
    root = ET.fromstring(figures.draw_scatter(points, ["s2a", "lora"], title="t", x_label="x", log=False, alone=True))
    classes = [element.get("class") for element in root.iter()]
    assert (classes.count("mark"), classes.count("ghost"), classes.count("tie")) == (2, 1, 1)
