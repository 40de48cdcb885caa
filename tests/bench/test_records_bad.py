"""Files that are no records, or that a newer version wrote: what they are in the way of, which must be nothing else."""

from __future__ import annotations

import copy
import dataclasses
import gzip
import json
import os
import threading
from pathlib import Path

import pytest
from bench.factories import make_grid, make_record
from hypothesis import given, settings
from hypothesis import strategies as st
from s2a_bench import config
from s2a_bench.cells import outputs, record, records_file
from s2a_bench.cells.record import NewerRecord, Record
from s2a_bench.cli.main import main
from s2a_bench.config import CellConfig
from s2a_bench.reports.build import build
from s2a_bench.sweeps.plan import plan, results
from s2a_bench.tracking import names

SUMMARY = {"mode": "grid", "trials": 2, "scheduler": "none", "chosen": {"train.lr": 0.01}, "trial_ids": ["a", "b"]}
VALUES = dataclasses.asdict(make_record(cell_id="c0", search=SUMMARY))
ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, **changes: object) -> Path:
    """The record of cell ``c0`` with other values, as a file that no program of ours wrote."""
    path = record.record_path(folder, "c0")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**VALUES, **changes}))
    return path


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("accuracy", "99"), ("accuracy", 100.5), ("accuracy", -1), ("accuracy", None), ("accuracy", True),
        ("accuracy", float("nan")), ("accuracy", float("inf")), ("accuracy", 10**400), ("accuracy", [80]),
        ("seed", None), ("seed", 0.0), ("seed", "0"), ("seed", True), ("seed", 10**30),
        ("hardware", None), ("hardware", []), ("hardware", {"cores": [2]}), ("versions", {"torch": None}),
        ("measured_mb", -0.1), ("peak_mb", "500"), ("params_total", 1.5), ("images_per_second", float("-inf")),
        ("epochs", 0), ("curve", None), ("curve", [{"epoch": 1, "loss": None}]), ("curve", [[1, 2]]),
        ("curve", [{"epoch": 2, "loss": 1.0}, {"epoch": 1, "loss": 1.0}]), ("curve", [{"loss": float("nan")}]),
        ("status", "fine"), ("status", None), ("evaluated_on", "train"), ("suite", "a\nb"), ("method", ""),
        ("notes", "text"), ("notes", ["\ud800"]), ("error", "text"), ("search", {"mode": "grid"}), ("trial", 1),
        ("train_config", {"batch_size": "32"}), ("train_config", {"lr": float("nan")}), ("train_config", {"epochs": 0}),
        ("method_config", {"deep": {"er": float("nan")}}), ("started_at", 0), ("git_dirty", 0),
        ("schema", True), ("schema", 1.0), ("schema", None), ("schema", 0), ("protocol", None),
    ],
)  # fmt: skip
def test_a_value_of_another_type_or_out_of_range_is_no_record(tmp_path, name, value):
    path = written(tmp_path, **{name: value})
    with pytest.raises(ValueError, match="is not a valid record") as caught:
        record.read(path)
    assert name in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500
    found = plan({"c0": CellConfig()}, tmp_path)
    assert found.todo == ["c0"] and len(found.broken) == 1 and results(found, tmp_path) == {"c0": None}


def nested(depth: int) -> bytes:
    return json.dumps(VALUES).replace('"notes": []', '"notes": ' + "[" * depth + "]" * depth).encode()


CONTENTS = {
    "nothing": b"",
    "200,000 brackets": b"[" * 200_000,
    "deep brackets in a field": nested(100_000),
    "not so deep ones": nested(100),
    "not UTF-8": json.dumps(VALUES).replace("digits", "\xff").encode("latin-1").replace(b"\\u00ff", b"\xff"),
    "NaN": json.dumps(VALUES).replace("80.0", "NaN").encode(),
    "an endless number": json.dumps(VALUES).replace("80.0", "1" * 5000).encode(),
    "a value twice": json.dumps(VALUES).replace('"seed": 0', '"seed": 0, "seed": 1').encode(),
    "a list": b"[]",
    "null": b"null",
    "two records": 2 * json.dumps(VALUES).encode(),
    "UTF-16": json.dumps(VALUES).encode("utf-16"),
    "an unknown field for another": json.dumps(VALUES).replace('"peak_mb"', '"peak_nb"').encode(),
}


def place(path: Path, kind: str) -> None:
    """Puts something that is no record where one belongs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if kind == "a folder":
        path.mkdir()
        (path / "x").touch()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "a dangling link":
        path.symlink_to("nowhere")
    elif kind == "a link to itself":
        path.symlink_to(path)
    else:
        path.write_bytes(CONTENTS[kind])


KINDS = [*CONTENTS, "a folder", "a pipe", "a dangling link", "a link to itself"]


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_record_is_named_set_aside_and_nothing_else_suffers(tmp_path, capsys, kind):
    good = make_grid(["s2a", "bias"], ["digits"], (0, 1))
    for each in good:
        record.write(each, tmp_path)
    path = record.record_path(tmp_path, "c0")
    place(path, kind)
    files = sorted(path.parent.iterdir())

    reader = threading.Thread(target=lambda: build(tmp_path), daemon=True)  # a pipe would be waited for without end
    reader.start()
    reader.join(60)
    assert not reader.is_alive()
    assert (tmp_path / "report.md").read_text().count("records/c0.json is not a valid record") == 1
    outputs.clean_up(tmp_path)
    assert main(["records", "--export", str(tmp_path / "all.jsonl"), "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("c0.json is not a valid record") == 1
    assert len(records_file.load(tmp_path / "all.jsonl")) == 4
    found = plan({"c0": CellConfig(), **{r.cell_id: CellConfig() for r in good}}, tmp_path)
    assert found.todo == ["c0"] and len(found.broken) == 1 and "c0.json" in found.broken[0]
    assert sorted(path.parent.iterdir()) == files, "who reads changes nothing"

    again = make_record(cell_id="c0")
    record.write(again, tmp_path)
    assert record.read(path) == again
    aside = path.with_name("c0.json.bad")
    assert aside.is_symlink() or aside.exists()
    if kind in CONTENTS:
        assert aside.read_bytes() == CONTENTS[kind]
    path.unlink()
    place(path, kind)
    record.write(again, tmp_path)
    assert path.with_name("c0.json.bad2") in path.parent.iterdir(), "neither takes the other's place"
    assert plan({"c0": CellConfig()}, tmp_path).todo == []


NEWER = {
    "a later schema": {"schema": 2},
    "a later schema of another form": {"schema": 7, "accuracy": {"test": 80}, "seed": None},
    "a field that came later": {"energy_joules": 5.0},
}


@pytest.mark.parametrize("changes", NEWER.values(), ids=NEWER.keys())
def test_a_record_of_a_newer_version_is_never_overwritten(tmp_path, capsys, changes):
    path = written(tmp_path, **changes)
    before = path.read_bytes()
    record.write(make_record(cell_id="c1"), tmp_path)
    with pytest.raises(NewerRecord, match="newer version"):
        record.read(path)
    found = plan({"c0": CellConfig(), "c1": CellConfig(), "c2": CellConfig()}, tmp_path)
    assert (found.todo, found.done, found.broken) == (["c2"], {"c1"}, ())
    assert "c0.json was written by a newer version" in found.newer["c0"]
    with pytest.raises(NewerRecord):
        record.write(make_record(cell_id="c0"), tmp_path)
    with pytest.raises(NewerRecord):
        record.check_place(tmp_path, "c0")
    records_file.save([make_record(cell_id="c0"), make_record(cell_id="c3")], tmp_path / "all.jsonl")
    assert main(["records", "--import", str(tmp_path / "all.jsonl"), "--output", str(tmp_path)]) == 0
    assert "1 written" in capsys.readouterr().out
    assert main(["records", "--export", str(tmp_path / "all.jsonl"), "--output", str(tmp_path)]) == 0
    assert capsys.readouterr().err.count("newer version") == 1
    (tmp_path / "new.jsonl").write_text(json.dumps({**VALUES, **changes}))
    assert main(["records", "--import", str(tmp_path / "new.jsonl"), "--output", str(tmp_path / "two")]) == 2
    assert "newer version" in capsys.readouterr().err and not (tmp_path / "two").exists()
    build(tmp_path)
    assert path.read_bytes() == before


def test_hidden_files_are_no_records_and_foreign_ones_are_named(tmp_path, capsys):
    one = make_record()
    record.write(one, tmp_path)
    folder = tmp_path / "records"
    (folder / f"._{one.cell_id}.json").write_bytes(b"\0\5\26\7\0\2\0\0Mac OS X")
    (folder / "package.json").write_text('{"name": "x"}')
    (folder / f"{one.cell_id} (conflicted copy).json").write_bytes(
        record.record_path(tmp_path, one.cell_id).read_bytes()
    )
    (folder / os.fsdecode(b"caf\xe9.json")).write_text("{}")
    assert main(["records", "--export", str(tmp_path / "all.jsonl"), "--output", str(tmp_path)]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 3 and "._" not in err and err.isascii()
    assert records_file.load(tmp_path / "all.jsonl") == [one]
    assert main(["report", "--output", str(tmp_path)]) == 0
    assert "3 broken files" in (tmp_path / "report.md").read_text()


def test_only_hidden_files_are_no_records_at_all(tmp_path, capsys):
    (tmp_path / "records").mkdir()
    (tmp_path / "records" / "._x.json").touch()
    for command in (["report"], ["records", "--export", "x.jsonl"]):
        assert main([*command, "--output", str(tmp_path)]) == 2
        assert "no records under" in capsys.readouterr().err


def test_a_byte_order_mark_and_other_line_ends_are_read_over(tmp_path):
    one, two = make_record(cell_id="c0", notes=["one\u2028two\x85three"]), make_record(cell_id="c1")
    path = record.write(one, tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert record.read(path) == one
    lines = [json.dumps(dataclasses.asdict(each), ensure_ascii=False) for each in (one, two)]
    (tmp_path / "all.jsonl.gz").write_bytes(gzip.compress(("\ufeff" + "\r\n\r\n".join(lines) + "\n\n").encode()))
    assert records_file.load(tmp_path / "all.jsonl.gz") == [one, two]


def test_a_message_with_the_name_of_a_file_that_is_no_text_can_be_read_again(tmp_path):
    error = {"type": "OSError", "message": "caf\udce9.jpg", "traceback": ""}
    path = record.write(make_record(cell_id="c0", status="failed", error=error), tmp_path)
    assert record.read(path).error == {"type": "OSError", "message": "caf\\udce9.jpg", "traceback": ""}
    build(tmp_path)


def test_every_published_record_is_one():
    counts = {path.name: len(records_file.load(path)) for path in (ROOT / "docs/records").iterdir()}
    assert counts == {"mini.jsonl.gz": 786, "caltech101.jsonl.gz": 5, "real.jsonl.gz": 152}


def test_a_recipe_as_it_is_written_is_a_recipe_as_it_is_read(tmp_path):
    """The table of checks knows every field of the recipe and of the record."""
    from s2a_bench.cells import record_fields

    assert {field.name for field in dataclasses.fields(config.TrainConfig)} <= record_fields._TRAIN.keys()
    assert {field.name for field in dataclasses.fields(Record)} == record_fields._FIELDS.keys()


LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=5),
    st.sampled_from([10**400, "\ud800", [], {}]),
)
JSON = st.recursive(
    LEAVES, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def places(value: object, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, each in inner for deeper in places(each, (*path, key)))]


PLACES = [path for path in places(VALUES) if path]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(PLACES), JSON, st.booleans())
def test_whatever_is_changed_in_a_record_is_read_as_it_is_or_refused(tmp_path_factory, path, value, remove):
    """A record that is read is one that every view can show."""
    changed = copy.deepcopy(VALUES)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    if remove:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    folder = tmp_path_factory.mktemp("changed")
    file = written(folder)
    file.write_text(json.dumps(changed))
    try:
        found = record.read(file)
    except ValueError as error:
        assert "c0.json" in str(error) and "\n" not in str(error)
    else:
        expected = {**{f.name: getattr(found, f.name) for f in dataclasses.fields(Record)}, **changed}
        assert dataclasses.asdict(found) == expected
        assert names.run_params(found) and names.run_tags(found) and names.run_metrics(found) and names.run_name(found)
        assert records_file.save([found], folder / "all.jsonl") == 1
    build(folder)
