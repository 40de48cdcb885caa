"""Records in one file, and the list of experiments with how far each is."""

from __future__ import annotations

import dataclasses
import gzip
import json
import re
from pathlib import Path

import pytest
from bench.factories import make_grid, make_record
from s2a_bench.cells import record, records_file
from s2a_bench.cells.record import PROTOCOL, Record
from s2a_bench.cli.main import main
from s2a_bench.experiments import spec as experiment

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")


def _fill(output: Path, found: list[Record]) -> dict[str, bytes]:
    for each in found:
        record.write(each, output)
    return _content(output)


def _content(output: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (output / "records").glob("*.json")}


@pytest.mark.parametrize("name", ["all.jsonl", "all.jsonl.gz"])
def test_what_was_written_to_a_file_comes_back_byte_for_byte(tmp_path, capsys, name):
    before = _fill(tmp_path / "one", make_grid(["s2a", "bias"]))
    assert main(["records", "--export", name, "--output", "one"]) == 0
    assert main(["records", "--import", name, "--output", "two"]) == 0
    assert _content(tmp_path / "two") == before
    assert f"{len(before)} written" in capsys.readouterr().out
    first = Path(name).read_bytes()
    assert main(["records", "--export", name, "--output", "two"]) == 0
    assert Path(name).read_bytes() == first, "the same records, the same bytes"
    lines = (gzip.decompress(first) if name.endswith(".gz") else first).splitlines()
    assert [json.loads(line)["cell_id"] for line in lines] == sorted(key.removesuffix(".json") for key in before)


def test_a_finished_record_stays_and_one_that_failed_gives_way(tmp_path, capsys):
    done, mine = make_record(cell_id="a" * 16), make_record(cell_id="a" * 16, accuracy=12.0)
    again, failed = make_record(cell_id="b" * 16), make_record(cell_id="b" * 16, status="failed", accuracy=None)
    new, same = make_record(cell_id="c" * 16), make_record(cell_id="d" * 16)
    records_file.save([done, again, new, same], tmp_path / "all.jsonl")
    _fill(tmp_path / "here", [mine, failed, same])
    (tmp_path / "here" / "records" / ("e" * 16 + ".json")).write_text("{")
    assert main(["records", "--import", "all.jsonl", "--output", "here"]) == 0
    found = {i: record.read(record.record_path(tmp_path / "here", i * 16)) for i in "abcd"}
    assert found == {"a": mine, "b": again, "c": new, "d": same}
    assert "4 records in all.jsonl: 2 written" in (out := capsys.readouterr().out)
    assert "1 were there, 1 of cells that have another record here" in out


GOOD = json.dumps(dataclasses.asdict(make_record()))
OUTSIDE = json.dumps({**dataclasses.asdict(make_record()), "cell_id": "../../escaped"})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (f"{GOOD}\n{{", "Line 2 of"),
        (f"{GOOD}\n{GOOD}\n", "a second time"),
        (f"{GOOD}\n[1]\n", "expected a record of schema"),
        (GOOD.replace('"done"', '"fine"'), "status 'fine'"),
        (OUTSIDE, "'../../escaped'"),
        (GOOD.replace('"accuracy"', '"precision"'), "precision"),
        ("\0\ud800", "cannot be read"),
    ],
)
def test_a_file_with_anything_else_in_it_is_refused_and_nothing_is_written(tmp_path, capsys, text, words):
    (tmp_path / "all.jsonl").write_bytes(text.encode(errors="surrogatepass"))
    assert main(["records", "--import", "all.jsonl", "--output", "here"]) == 2
    assert words in (err := capsys.readouterr().err) and "all.jsonl" in err
    assert not (tmp_path / "here").exists()


def test_bad_requests_are_one_sentence(tmp_path, capsys):
    (tmp_path / "all.jsonl.gz").write_bytes(b"no gzip")
    (tmp_path / "empty" / "records").mkdir(parents=True)
    for arguments, words in (
        (["records"], "--import FILE or --export FILE"),
        (["records", "--import", "a", "--export", "b"], "one of them"),
        (["records", "--import", "missing.jsonl"], "missing.jsonl"),
        (["records", "--import", "all.jsonl.gz"], "cannot be read"),
        (["records", "--export", "out.jsonl"], "no records under"),
        (["records", "--export", "out.jsonl", "--output", "empty"], "no records under"),
        (["experiments", "--suite", "nowhere"], "nowhere"),
    ):
        assert main(arguments) == 2
        err = capsys.readouterr().err
        assert words in err and err.count("\n") == 1
    assert not Path("out.jsonl").exists() and not Path("results").exists()


def _usual(found: Record) -> bool:
    """Whether S2A's parts are all there, in their default sizes."""
    config = found.method_config
    return (config["lrp_rank"], config["lsb_reduction"], config["train_bias"]) == (30, 8, True)


def _listed(text: str) -> dict[str, tuple[str, str]]:
    found = re.findall(r"^ (\w+) .* (\d+) +(\d+|\?) *$", text, re.MULTILINE)
    return {name: (cells, done) for name, cells, done in found}


def test_every_experiment_is_listed_with_its_cells_and_those_that_are_done(tmp_path, capsys):
    """Against the records themselves: the published ones of the mini suite, counted by what they say they are."""
    assert main(["records", "--import", str(ROOT / "docs/records/mini.jsonl.gz")]) == 0
    capsys.readouterr()
    one = ["--backbones", "mini_vit", "--datasets", "digits", "count", "--seeds", "0", "1"]
    assert main(["experiments", *one]) == 0
    listed = _listed(capsys.readouterr().out)
    assert set(listed) == set(experiment.list_experiments())
    rows = {
        name: [row for row in experiment.load_experiment(name).rows if row.mini]
        for name in experiment.list_experiments()
    }
    # Two datasets and two seeds of every row; a row of Figure 5 that is the default stands there twice.
    twice = {"fig5": 1}
    assert {k: int(v[0]) for k, v in listed.items()} == {k: 4 * (len(r) - twice.get(k, 0)) for k, r in rows.items()}
    here = [
        found
        for _, found in record.read_all(Path("results"))
        if isinstance(found, Record) and found.protocol == PROTOCOL and found.backbone == "mini_vit"
    ]
    here = [r for r in here if r.dataset in ("digits", "count") and r.seed in (0, 1) and r.evaluated_on == "test"]
    exact = [r for r in here if r.method == "s2a" and r.method_config["activations"] == "exact"]
    lossy = [r for r in here if r.method == "s2a" and r.method_config["activations"] == "paper"]
    whole = [r for r in (*exact, *lossy) if _usual(r)]
    assert int(listed["table2"][1]) == len(whole)


def test_an_experiment_whose_data_is_not_here_is_counted_and_the_reason_is_said(capsys):
    assert main(["experiments", "--suite", "vtab", "--datasets", "svhn", "--seeds", "0"]) == 0
    out = capsys.readouterr().out
    listed = _listed(out)
    # Seven methods on three backbones.
    assert listed["table1"] == ("21", "?")
    assert out.count("?: ") == 1 and "data prepare" in out
