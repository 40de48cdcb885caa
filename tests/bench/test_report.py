"""The report: what it says, what it refuses to say, and that nothing in a record can break it."""

from __future__ import annotations

import base64
import dataclasses
import html.parser
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest
from bench.factories import make_grid, make_record, only_section
from s2a_bench.cells.evaluation import NO_TEST
from s2a_bench.cells.record import write
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.reports import build as report
from s2a_bench.reports import notes, tables
from s2a_bench.reports import text as report_text
from s2a_bench.reports.planned import find_missing, remember_cells
from s2a_bench.reports.sections import make_sections

EVIL = "<script>alert('1')</script>\"'&<img src=x onerror=alert(2)>|`*"


class Page(html.parser.HTMLParser):
    """Elements, attributes and text of a page; checks that elements nest."""

    def __init__(self, text):
        super().__init__(convert_charrefs=True)
        self.tags, self.attributes, self.scripts, self.text, self._open = [], [], [], "", []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in ("meta", "br", "input"):
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "script":
            self.scripts.append(data)
        elif self._open and self._open[-1] != "style":
            self.text += data


def build(folder, records):
    for record in records:
        write(record, folder)
    return report.build(folder)


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
    assert not {"link", "img", "iframe", "object", "embed", "form", "base"} & set(page.tags)
    check_script(page)
    for _, name, value in page.attributes:
        assert not name.startswith("on")
        if name in ("href", "src"):
            assert re.fullmatch(r"#s\d+|records/[0-9a-f]{16}\.json", value)
    assert "http" not in text.replace("http-equiv", "")
    assert not re.search(r"url\(|@import", text)


def check_script(page):
    """The page's one script is the file of the package, and the only one that its policy lets run."""
    (script,) = page.scripts
    assert page.tags.count("script") == 1
    assert script == (Path(report.__file__).parent / "report.js").read_text()
    policy = next(value for _, name, value in page.attributes if name == "content")
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    digest = subprocess.run(["openssl", "dgst", "-sha256", "-binary"], input=script.encode(), capture_output=True)
    assert rules["script-src"] == f"'sha256-{base64.b64encode(digest.stdout).decode()}'"
    assert rules["default-src"] == "'none'" and "unsafe" not in rules["script-src"]


def test_the_script_asks_for_nothing_and_makes_no_markup():
    script = (Path(report.__file__).parent / "report.js").read_text()
    markup = ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "</", "<!--")
    code = ("eval(", "Function(", "import(", "import ")
    requests = ("fetch(", "XMLHttpRequest", "http", "src", "location", "localStorage")
    for word in (*markup, *code, *requests):
        assert word not in script


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
    assert "img" not in page.tags
    check_script(page)
    assert not any(name.startswith("on") for _, name, _ in page.attributes)
    assert page.text.count("<script>alert('1')</script>") > 20
    assert paths.figures
    for path in paths.figures:
        names = {element.tag.rpartition("}")[2] for element in ET.fromstring(path.read_text()).iter()}
        assert names <= {"svg", "style", "title", "text", "g", "path"}
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
    data, method = DataConfig(dataset="textures"), MethodConfig("lora")
    train = TrainConfig(epochs=3, warmup_epochs=1)
    cells = {gone.cell_id: CellConfig(data=data, method=method, train=train, seed=2)}
    remember_cells(tmp_path, cells, ())
    failed = make_record(method="adapter", status="failed")
    for record in [*records, failed]:
        write(record, tmp_path)
    (tmp_path / "records" / "0123456789abcdef.json").write_text("{")
    paths = report.build(tmp_path)
    page = Page(paths.html.read_text())
    for text in (page.text, paths.markdown.read_text().replace("\\", "")):
        assert "Diverged: The loss is nan." in text
        assert "records/0123456789abcdef.json is not a valid record" in text
        assert "lora: textures seed 2" in text
        assert "1 planned, not run yet" in text
        assert str(tmp_path) not in text
    assert "Traceback ..." in page.text
    assert "details" in page.tags


def test_an_incomplete_row_has_no_average():
    records = [r for r in make_grid(["lora", "s2a"]) if not (r.method == "lora" and r.dataset == "texture")]
    s2a, lora = only_section(records).rows
    assert lora.averages is None
    assert lora.cells["digits"].stat is not None
    assert s2a.averages is not None
    assert any("No averages for lora" in note for note in notes.list_notes(only_section(records)))


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
    _, lora, s2a = only_section(records).rows
    assert lora.averages is not None
    assert s2a.averages is None
    assert not s2a.cells["digits"].counted
    assert report_text.format_cell(s2a, "digits").endswith("*")
    assert any(
        "s2a on digits" in where and "not comparable" in why
        for where, why in report_text.list_cell_remarks(only_section(records))
    )


def test_a_failure_before_the_checkpoint_was_known_stays_with_its_table():
    records = make_grid(["lora"], ["digits"])
    failed = make_record(method="s2a", status="failed", checkpoint_id="", data_config={}, seed=1)
    assert [record for _, record in only_section([*records, failed]).failed] == [failed]


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
    assert only_section(records).best.get("dataset digits") == winner
    assert (winner is not None) == ("<strong>" in build(tmp_path, records).html.read_text())


def test_notes_say_what_does_not_compare():
    def joined(*records):
        return " ".join(notes.list_notes(only_section(records)))

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
    titles = [column.title for column in tables.summary_columns(only_section(make_grid(["lora"], names)))]
    assert not set(titles) & set(names)


def test_rows_are_by_mean_accuracy_and_those_without_one_last():
    records = [r for r in make_grid() if (r.method, r.dataset) != ("lora", "texture")]
    section = only_section(records)
    means = [row.averages.mean_of_tasks.mean for row in section.rows if row.averages]
    assert means == sorted(means, reverse=True) and len(means) == 4
    assert section.rows[-1].method == "lora"
    assert "rows without one at the end" in tables.describe_order(section)


def test_what_all_rows_share_is_one_line_and_costs_follow_the_mean():
    records = make_grid(["full", "lora"], images_per_second=1.3)
    columns, shared = tables.fold_columns(only_section(records))
    assert [column.title for column in columns[:5]] == [
        "mean of 4 tasks", "measured MB", "theoretical MB", "trainable %", "digits"
    ]  # fmt: skip
    assert shared == "All rows: 500 peak MB, 1.3 images/s, seeds 0-2."
    # Of a single row nothing is folded, and what nobody recorded has no column.
    columns, shared = tables.fold_columns(only_section(make_grid(["s2a"], peak_mb=None)))
    assert not shared and "peak MB" not in [column.title for column in columns]
    # Equal accuracies stay in view.
    columns, _ = tables.fold_columns(only_section([make_record(method=m, accuracy=50.0) for m in ("lora", "bias")]))
    assert columns[-4:] and "digits" in [column.title for column in columns]


def test_hover_texts_have_units(tmp_path):
    page = Page(build(tmp_path, make_grid()).html.read_text())
    titles = [value for tag, name, value in page.attributes if name == "title" and tag in ("td", "th")]
    assert any(
        re.fullmatch(r"s2a, digits: 87\.\d\d %, ± \d\.\d\d points, standard deviation between 3 seeds", t)
        for t in titles
    )
    assert "lora: 60 measured MB" in titles
    assert any("in MB (1e6 bytes)" in title for title in titles)


def test_only_what_a_sweep_planned_is_called_missing(tmp_path):
    # Two sweeps in one folder: their product was never asked for.
    records = make_grid(["lora"], ["digits"], (0,)) + make_grid(["s2a"], ["texture"], (1,))
    paths = build(tmp_path, records)
    assert "not run" not in paths.markdown.read_text()
    assert not only_section(records).missing
    # A damaged note, or one of other types, makes nothing missing either.
    for text in ("{", "[]", '{"a": 1, "b": {"suite": 3}, "c": {"suite": "mini", "surprise": 1}}'):
        (tmp_path / ".planned.json").write_text(text)
        assert find_missing(tmp_path) == ()
        report.build(tmp_path)
    # Cells that are done are forgotten, trials are never noted.
    cells = {"a" * 16: CellConfig(seed=5), records[0].cell_id: CellConfig(), "b" * 16: CellConfig(trial=True)}
    (tmp_path / ".planned.json").unlink()
    remember_cells(tmp_path, cells, (records[0].cell_id,))
    assert [(r.cell_id, r.seed) for r in find_missing(tmp_path)] == [("a" * 16, 5)]


def test_a_section_without_results_shows_what_failed(tmp_path):
    records = [
        make_record(method=m, status="failed", dataset=d) for m in ("lora", "s2a") for d in ("digits", "texture")
    ]
    paths = build(tmp_path, records)
    text = Page(paths.html.read_text()).text
    assert "Failed cells (4)" in text and "0 cells done, 4 failed" in text
    assert "What to know" not in text and "Sorted by" not in text
    assert not paths.figures


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


def test_a_sweep_whose_ids_changed_leaves_no_planned_cells_behind(tmp_path):
    """Ids follow weights, data and protocol: after an upgrade the former ones will never be run."""
    swept = [CellConfig(seed=seed, method=MethodConfig("lora", {"rank": 4})) for seed in (0, 1)]
    other = CellConfig(seed=7)
    remember_cells(tmp_path, {"a" * 16: swept[0], "b" * 16: swept[1], "f" * 16: other}, ())
    # The first cell was done under its new id before the second run of the command.
    remember_cells(tmp_path, {"c" * 16: swept[0], "d" * 16: swept[1]}, ("c" * 16,))
    assert [record.cell_id[0] for record in find_missing(tmp_path)] == ["d", "f"]
    write(make_record(cell_id="d" * 16), tmp_path)
    assert [(record.cell_id[0], record.seed) for record in find_missing(tmp_path)] == [("f", 7)]


def test_planned_cells_without_a_table_are_listed_once(tmp_path):
    """Of the second backbone, and of the longer training, nothing was run."""
    train = TrainConfig(epochs=3, warmup_epochs=1)
    cells = {
        f"{seed}" * 16: CellConfig(
            backbone=BackboneConfig("mini_swin"), method=MethodConfig("lora"), train=train, seed=seed
        )
        for seed in (0, 1)
    }
    cells["2" * 16] = CellConfig(method=MethodConfig("lora"), train=TrainConfig(epochs=9, warmup_epochs=1))
    cells["3" * 16] = CellConfig(data=DataConfig(dataset="textures"), method=MethodConfig("lora"), train=train, seed=9)
    remember_cells(tmp_path, cells, ())
    paths = build(tmp_path, make_grid(["lora"], ["digits"]))
    for text in (Page(paths.html.read_text()).text, paths.markdown.read_text().replace("\\", "")):
        assert "4 planned, not run yet" in text
        assert text.count("in no table") == 1
        placed, _, unplaced = text.partition("in no table")
        assert placed.count("lora: textures seed 9") == 1
        assert unplaced.count("mini · mini_swin, 3 epochs, ") == unplaced.count("lora: digits seeds 0, 1") == 1
        assert unplaced.count("mini · mini_vit, 9 epochs, ") == 1
        assert "seed 9" not in unplaced


def test_why_there_is_no_star_is_true():
    def order(*records):
        return tables.describe_order(only_section([record for several in records for record in several]))

    noise = "no row is best by more than the noise"
    close = accuracies("bias", [80.0, 80.6, 79.7])
    assert noise in order(accuracies("lora", [80.5, 81.0, 79.9]), close)
    assert "; no ★: one seed each, the noise is unknown." in order(
        accuracies("lora", [90.0]), accuracies("bias", [80.0])
    )
    mixed = order(accuracies("lora", [90.0]), close)
    assert "some cells have one seed" in mixed and noise not in mixed
    # A single row with numbers: there is nothing to compare.
    assert "★" not in order(close, [make_record(method="lora", status="failed")])


def test_a_star_is_explained_only_where_the_table_shows_one():
    """The best of one dataset, in a table that shows groups."""
    names = [f"d{i}" for i in range(tables.WIDE + 1)]
    records = [
        make_record(method=method, dataset=name, group=f"g{i % 2}", seed=seed, accuracy=accuracy + 5 * seed)
        for i, name in enumerate(names)
        for seed in (0, 1)
        for method, accuracy in (("lora", 80.0), ("bias", 80.0))
    ]
    better = [
        r if (r.method, r.dataset) != ("lora", "d0") else dataclasses.replace(r, accuracy=83 + r.seed / 100)
        for r in records
    ]
    worse = [r if (r.method, r.dataset) != ("bias", "d0") else dataclasses.replace(r, accuracy=80 + r.seed / 100)
             for r in better]  # fmt: skip
    section = only_section(worse)
    assert section.best == {"dataset d0": "lora"}
    assert "no ★" in tables.describe_order(section)
    assert "★: best of its column" in tables.describe_order(section, tables.task_lines(section))


def test_ids_and_names_are_sorted_as_text(tmp_path):
    """An id of 16 hex digits may begin with digits, or be nothing else."""
    page = build(tmp_path, make_grid(["lora"], ["digits"])).html.read_text()
    headings = re.findall(r"<th[^>]*>(?:record|method|dataset|seed|status|accuracy|seconds)</th>", page)
    as_text = {re.sub("<.*?>", "", heading) for heading in headings if 'data-sort="text"' in heading}
    assert as_text == {"record", "method", "dataset", "status"}
    script = (Path(report.__file__).parent / "report.js").read_text()
    assert 'dataset.sort === "text"' in script
    ((pattern),) = re.findall(r"/(\S+)/\.test\(text\)", script)
    for text in ("80", "80.25", "+1.5 *", "-2", "87.1 ± 0.4 ★", "1200", "3%"):
        assert re.match(pattern, text)
    for text in ("12ab34cd56ef7890", "1e5", "1.5x", "3D-shapes"[:2], "—", "— (2 of 4)", "failed", ""):
        assert not re.match(pattern, text)
