"""Output folders of any name: their database, artifacts, records and report lie in them, and nowhere else."""

from __future__ import annotations

import os
import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.factories import make_record
from s2a_bench.cells import record
from s2a_bench.cli.main import main
from s2a_bench.config import CellConfig
from s2a_bench.data.folder import find_dataset_folder
from s2a_bench.data.table.lookup import get_dataset
from s2a_bench.errors import InputError
from s2a_bench.reports.build import build
from s2a_bench.sweeps.checks.request import check_data
from s2a_bench.sweeps.events import StageEnd
from s2a_bench.sweeps.plan import plan
from s2a_bench.sweeps.request import Request
from s2a_bench.tracking import listener, sqlite_uris, store

NAMES = ["lr?1", "50%20off", "50%", "a?b=c&d", "a#b", "a b", "größe", 'it\'s "it"', "two\nlines", "-o", "~", "a:b@c"]

needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")
quiet = pytest.mark.filterwarnings("ignore")  # MLflow's own, about its dependencies


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("decodes", [True, False])
def test_a_path_is_found_again_in_its_uri(name, decodes, monkeypatch):
    monkeypatch.setattr(sqlite_uris, "_decodes_paths", lambda: decodes)
    path = Path("/data") / name / "mlflow.db"
    uri = sqlite_uris.sqlite_uri(path)
    assert uri.partition(":///")[0] in ("sqlite", "sqlite+pysqlite") and sqlite_uris.sqlite_path(uri) == path


@needs_mlflow
@pytest.mark.parametrize("name", NAMES)
def test_sqlalchemy_opens_the_same_file(name, tmp_path):
    from sqlalchemy import create_engine, text

    folder = tmp_path / name
    folder.mkdir()
    engine = create_engine(sqlite_uris.sqlite_uri(folder / "x.db"))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (i)"))
    engine.dispose()
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == [f"{name}/x.db"]


@quiet
@needs_mlflow
@pytest.mark.full
@pytest.mark.parametrize("name", ["lr?1", "50%20off", "größe\nb"])
def test_a_store_lies_in_its_output_folder(name, tmp_path):
    opened = store.open_store(None, tmp_path / name)
    experiment = opened.client.create_experiment("e", artifact_location=opened.artifacts)
    run = opened.client.create_run(experiment).info
    opened.client.log_text(run.run_id, "text", "note.txt")
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert (tmp_path / name / "mlflow.db").is_file() and list((tmp_path / name / "mlartifacts").rglob("note.txt"))
    again = store.open_store(opened.uri, tmp_path / name)
    assert again.client.get_run(run.run_id).info.run_id == run.run_id


@pytest.mark.parametrize("decodes", [True, False])
@pytest.mark.parametrize("name", NAMES)
def test_an_unchanged_database_is_not_opened_again(name, decodes, tmp_path, monkeypatch):
    monkeypatch.setattr(sqlite_uris, "_decodes_paths", lambda: decodes)
    output, opened = tmp_path / name, []
    found = make_record()
    record.write(found, output)

    def open_store(*_):
        opened.append(name)
        (output / "mlflow.db").touch()
        return object()

    monkeypatch.setattr(listener.stores, "open_store", open_store)
    for function in ("start_sweep", "log_cell", "finish_sweep"):
        monkeypatch.setattr(listener.runs, function, lambda *_: None)
    for _ in range(2):
        tracker = listener.Tracker("mini", None, output, lambda *_: None)
        tracker.planned(planned := plan({found.cell_id: CellConfig()}, output))
        tracker.ended(StageEnd(planned, [found], "FINISHED"))
    assert opened == [name]


def _retry_of_the_tracker(folder: Path) -> str:
    tracker = listener.Tracker("mini", "sqlite:////tmp/a b.db", folder, lambda *_: None)
    return tracker._incomplete(RuntimeError("gone")).partition("run: ")[2]


def _advice(function, *arguments) -> str:
    with pytest.raises(InputError) as caught:
        function(*arguments)
    return str(caught.value).split("`")[1]


@pytest.mark.parametrize("name", [name for name in NAMES if "\n" not in name])
def test_a_command_that_is_printed_names_the_folder_for_a_shell(name, tmp_path):
    folder = tmp_path / name
    names = ("caltech101", "cifar100")
    commands = [
        _retry_of_the_tracker(folder),
        _advice(build, folder),
        _advice(find_dataset_folder, get_dataset("vtab", names[0]), folder),
        _advice(check_data, Request(suite="vtab", datasets=names, data_dir=folder)),
    ]
    for command in commands:
        assert str(folder) in shlex.split(command)


@needs_mlflow
def test_a_relative_uri_becomes_absolute_whatever_the_folder_is_called(tmp_path, monkeypatch):
    (tmp_path / "lr?1").mkdir()
    monkeypatch.chdir(tmp_path / "lr?1")
    uri = store.check_uri("sqlite:///mine.db?timeout=5", tmp_path)
    assert sqlite_uris.sqlite_path(uri) == tmp_path / "lr?1" / "mine.db" and uri.endswith("timeout=5")


@quiet
@pytest.mark.full
@pytest.mark.parametrize("serial", [True, False])
@pytest.mark.parametrize("name", ["lr?1 50%20off", "größe"])
def test_a_whole_sweep_and_its_report_in_such_a_folder(name, serial, tmp_path, monkeypatch, capsys):
    if not serial and find_spec("ray") is None:
        pytest.skip("Ray is not installed")
    monkeypatch.chdir(tmp_path)
    line = "--random-weights --datasets digits --methods linear --limit-train 16 --limit-test 16 --epochs 1".split()
    assert main(["sweep", *line, *(["--serial"] if serial else []), "--output", name]) == 0
    assert main(["report", "--output", name]) == 0
    assert [path.name for path in tmp_path.iterdir()] == [name]
    (found,) = (tmp_path / name / "records").glob("*.json")
    assert record.read(found).status == "done" and (tmp_path / name / "report.html").is_file()
    assert find_spec("mlflow") is None or (tmp_path / name / "mlflow.db").is_file()


def test_a_name_that_is_no_text_is_refused_in_a_sentence(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "--methods", "bias", "--output", os.fsdecode(b"not-\xff")]) == 2
    assert "--output" in (text := capsys.readouterr().err) and "UTF-8" in text
    assert not list(tmp_path.iterdir())
