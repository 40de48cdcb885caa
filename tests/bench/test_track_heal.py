"""MLflow as a view that heals: shared, copied, moved, damaged and edited stores, on real sqlite databases."""

from __future__ import annotations

import dataclasses
import os
import shutil
import sqlite3
import subprocess
import sys
import urllib.parse
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.factories import make_grid, make_record
from s2a_bench.cells.record import Record, write
from s2a_bench.config import CellConfig
from s2a_bench.errors import InputError
from s2a_bench.files import locked
from s2a_bench.sweeps.events import StageEnd
from s2a_bench.sweeps.plan import plan
from s2a_bench.tracking import outputs
from s2a_bench.tracking import runs as track
from s2a_bench.tracking.listener import Tracker
from test_selection import split_rings

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # MLflow's own, about its dependencies
    pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed"),
]


@pytest.fixture
def shared(fresh_database, tmp_path) -> str:
    """The address of a store that several outputs use."""
    shutil.copy(fresh_database, tmp_path / "shared.db")
    return f"sqlite:///{tmp_path}/shared.db"


def fill(output: Path, records: list[Record]) -> list[Record]:
    for each in records:
        write(each, output)
    return records


def sweep(output: Path, records: list[Record], uri: str | None = None, status: str = "FINISHED") -> list[str]:
    """What a sweep whose cells are all done tells its tracker; the messages that it gives."""
    said: list[str] = []
    tracker = Tracker("mini", uri, output, lambda text, level: said.append(text))
    found = plan({record.cell_id: CellConfig() for record in records}, output)
    tracker.planned(found)
    tracker.ended(StageEnd(found, records, status))  # type: ignore[arg-type]
    return said


def runs(uri_or_output: str | Path, kind: str = "cell", output: Path | None = None) -> list:
    """The runs of a kind that the MLflow pages show, of one output or of all."""
    from mlflow import MlflowClient

    where = uri_or_output if isinstance(uri_or_output, str) else f"sqlite:///{uri_or_output}/mlflow.db"
    client = MlflowClient(where)
    experiment = client.get_experiment_by_name("mini")
    assert experiment is not None
    found = client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")
    wanted = None if output is None else outputs.output_id(output)
    return [run for run in found if wanted in (None, run.data.tags.get("output_id"))]


def files_of(run) -> Path:
    return Path(urllib.parse.unquote(urllib.parse.urlsplit(run.info.artifact_uri).path))


def check_whole(where: str | Path, output: Path, records: list[Record]) -> None:
    """Asserts that a store shows exactly these records for an output, with their files under it."""
    found = runs(where, "cell", output if isinstance(where, str) else None)
    assert sorted(run.data.tags["cell_id"] for run in found) == sorted(record.cell_id for record in records)
    accuracies = {run.data.tags["cell_id"]: run.data.metrics.get("accuracy") for run in found}
    assert accuracies == {record.cell_id: record.accuracy for record in records}
    (parent,) = runs(where, "sweep", output if isinstance(where, str) else None)
    assert {run.data.tags["mlflow.parentRunId"] for run in found} == {parent.info.run_id}
    for run in found:
        assert files_of(run).is_relative_to(output) and (files_of(run) / "record.json").is_file()


def test_two_outputs_live_side_by_side_in_one_store(tmp_path, shared):
    """The same cells, with other numbers: neither touches the other's runs, parents or files."""
    one = fill(tmp_path / "one", make_grid(["lora"], ["digits"], (0, 1)))
    two = fill(tmp_path / "two", [dataclasses.replace(record, accuracy=12.0) for record in one])
    assert sweep(tmp_path / "one", one, shared) == []
    ids = {run.info.run_id for run in runs(shared)}
    assert sweep(tmp_path / "two", two, shared) == []
    assert ids < {run.info.run_id for run in runs(shared)}
    for _ in range(2):
        assert track.rebuild(tmp_path / "one", shared) == track.rebuild(tmp_path / "two", shared) == 0
        check_whole(shared, tmp_path / "one", one)
        check_whole(shared, tmp_path / "two", two)
    shutil.rmtree(tmp_path / "one")
    more = fill(tmp_path / "two", [make_record(method="bias")])
    assert track.rebuild(tmp_path / "two", shared) == len(more)
    assert not (tmp_path / "one").exists(), "nothing is written into another output's folder"


@pytest.mark.parametrize("uri", [None, "shared"])
def test_a_copied_folder_writes_into_itself_and_a_moved_one_goes_on(tmp_path, fresh_database, shared, uri):
    uri = shared if uri else None
    first, copy, moved = tmp_path / "first", tmp_path / "copy 50%", tmp_path / "else where" / "moved"
    records = fill(first, make_grid(["lora"], ["digits"], (0, 1)))
    shutil.copy(fresh_database, first / "mlflow.db")
    assert sweep(first, records, uri) == []
    shutil.copytree(first, copy)
    before = sorted(first.rglob("*"))
    new = fill(copy, [make_record(method="bias")])
    assert sweep(copy, records + new, uri) == []
    assert sorted(first.rglob("*")) == before, "the original is not touched"
    where = uri or copy
    assert {run.data.tags["cell_id"] for run in runs(where, output=copy if uri else None)} == {
        record.cell_id for record in records + new
    }
    for run in runs(where, output=copy if uri else None):
        assert files_of(run).is_relative_to(copy) and (files_of(run) / "record.json").is_file()
    check_whole(uri or first, first, records)

    moved.parent.mkdir()
    first.rename(moved)
    first.write_text("in the way: nothing can be written to the old place")
    count = len(runs(uri or moved))
    assert track.rebuild(moved, uri) == 0
    check_whole(uri or moved, moved, records)
    assert len(runs(uri or moved)) == count, "the runs are the same ones, at their new place"
    assert sweep(moved, fill(moved, [*records, make_record(method="linear")]), uri) == []


def test_a_copy_without_the_files_of_its_runs_gets_them_again(tmp_path, fresh_database):
    records = fill(tmp_path / "first", make_grid(["lora"], ["digits"], (0, 1)))
    shutil.copy(fresh_database, tmp_path / "first" / "mlflow.db")
    sweep(tmp_path / "first", records)
    (tmp_path / "copy").mkdir()
    shutil.copy(tmp_path / "first" / "mlflow.db", tmp_path / "copy")
    shutil.copytree(tmp_path / "first" / "records", tmp_path / "copy" / "records")
    assert track.rebuild(tmp_path / "copy") == len(records)
    found = [run for run in runs(tmp_path / "copy") if files_of(run).is_relative_to(tmp_path / "copy")]
    assert len(found) == len(runs(tmp_path / "copy")) == len(records)


GONE = ["a cell", "a parent", "everything", "the experiment"]


@pytest.mark.parametrize("way", ["sweep", "track"])
@pytest.mark.parametrize("gone", split_rings(GONE, fast=["a cell", "a parent"]))
def test_what_was_deleted_in_the_pages_comes_back_without_new_cells(tmp_path, fresh_database, way, gone):
    from mlflow import MlflowClient

    records = fill(tmp_path, make_grid(["lora"], ["digits"], (0, 1)))
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    sweep(tmp_path, records)
    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    doomed = {"a cell": runs(tmp_path)[:1], "a parent": runs(tmp_path, "sweep")}
    doomed["everything"] = runs(tmp_path) + runs(tmp_path, "sweep")
    if gone == "the experiment":
        client.delete_experiment(runs(tmp_path)[0].info.experiment_id)
    for run in doomed.get(gone, []):
        client.delete_run(run.info.run_id)
    if way == "track":
        track.rebuild(tmp_path)
    else:
        assert sweep(tmp_path, records) == []
    check_whole(tmp_path, tmp_path, records)


def test_a_sweep_with_nothing_to_do_opens_no_untouched_store(tmp_path, fresh_database, monkeypatch):
    records = fill(tmp_path, make_grid(["lora"], ["digits"], (0, 1)))
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    sweep(tmp_path, records[:1])
    sweep(tmp_path, records)
    monkeypatch.setattr("s2a_bench.tracking.store.open_store", lambda uri, output: pytest.fail("opened"))
    assert sweep(tmp_path, records) == sweep(tmp_path, records[:1]) == []


def damage(path: Path, kind: str) -> None:
    """Makes a database one that MLflow cannot use."""
    content = path.read_bytes()
    if kind == "truncated":
        path.write_bytes(content[: len(content) // 2 // 4096 * 4096])
    elif kind == "cut to its head":
        path.write_bytes(content[:60])
    elif kind == "garbage":
        path.write_text("these are my notes, do not touch")
    elif kind == "garbage in the middle":
        path.write_bytes(content[:4096] + os.urandom(len(content) - 4096))
    elif kind == "a folder":
        path.unlink()
        path.mkdir()
        (path / "x").touch()
    else:
        with sqlite3.connect(path) as connection:
            if kind == "a newer version":
                connection.execute("UPDATE alembic_version SET version_num = 'ffffffffffff'")
            elif kind == "an interrupted migration":
                connection.execute("DROP TABLE metrics")
            else:
                for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'").fetchall():
                    connection.execute(f'DROP TABLE "{name}"')
                connection.execute("CREATE TABLE customers (name TEXT)")
        connection.close()


KINDS = ["truncated", "cut to its head", "garbage", "garbage in the middle", "a folder", "a newer version"]
KINDS += ["an interrupted migration", "another program's"]


@pytest.mark.parametrize("kind", split_rings(KINDS, fast=["truncated", "a newer version"]))
def test_a_default_database_that_cannot_be_used_is_set_aside_and_made_anew(tmp_path, fresh_database, kind):
    first, output = tmp_path / "first", tmp_path / "out"  # MLflow keeps what it has opened for the whole process
    records = fill(first, make_grid(["lora"], ["digits"], (0, 1)))
    shutil.copy(fresh_database, first / "mlflow.db")
    sweep(first, records[:1])
    shutil.copytree(first, output)
    path = output / "mlflow.db"
    damage(path, kind)
    damaged = path.read_bytes() if path.is_file() else None
    said = sweep(output, records[:1])
    (sentence,) = said
    aside = output / "mlflow.db.bad"
    assert str(aside) in sentence and "made from the records" in sentence
    assert aside.is_dir() if damaged is None else aside.read_bytes() == damaged
    assert len(runs(output)) == 2, "the record that belongs to no sweep is there too"
    assert track.rebuild(output) == 0
    assert not [path for path in output.iterdir() if path.name.startswith(".mlflow.db.")]


@pytest.mark.parametrize("kind", ["garbage", "truncated", "a newer version"])
def test_a_database_that_was_named_is_left_alone_and_the_sweep_goes_on_untracked(tmp_path, shared, kind):
    records = fill(tmp_path / "out", [make_record()])
    path = tmp_path / "shared.db"
    damage(path, kind)
    before = path.read_bytes()
    (sentence,) = sweep(tmp_path / "out", records, shared)
    assert "Nothing is tracked" in sentence or (kind == "truncated" and "MLflow is incomplete" in sentence)
    with pytest.raises((InputError, track.TrackingError)):
        track.rebuild(tmp_path / "out", shared)
    assert path.read_bytes() == before
    assert sorted(tmp_path.glob("*shared.db*")) == [path]


def test_a_good_database_is_taken_as_it_is(tmp_path, monkeypatch):
    from s2a_bench.tracking import database

    assert track.open_store(None, tmp_path).aside is None
    assert track.open_store(None, tmp_path).aside is None
    monkeypatch.setattr(database, "_find_missing_columns", lambda path: ["a column"])
    assert track.open_store(None, tmp_path).aside is None, "no database of this version has it"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".output.json", "mlflow.db"]


def test_a_database_that_is_busy_is_not_taken_for_a_broken_one(tmp_path, fresh_database, monkeypatch):
    from s2a_bench.tracking import database

    shutil.copy(fresh_database, tmp_path / "mlflow.db")

    def busy(path):
        raise sqlite3.OperationalError("database is locked")

    monkeypatch.setattr(database, "_check", busy)
    with pytest.raises(InputError, match="database is locked"):
        track.open_store(None, tmp_path)
    assert not (tmp_path / "mlflow.db.bad").exists()


def test_temporary_folders_of_killed_processes_go_and_those_of_living_ones_stay(tmp_path):
    code = (
        "import os, signal, sys; from pathlib import Path; from s2a_bench.tracking import database\n"
        "from mlflow.store.tracking import sqlalchemy_store\n"
        "sqlalchemy_store.SqlAlchemyStore = lambda *a: os.kill(os.getpid(), signal.SIGKILL)\n"
        "database.create(Path(sys.argv[1]), '')"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "mlflow.db")], check=False)
    (left,) = tmp_path.iterdir()
    assert left.name.startswith(".mlflow.db.")
    living = tmp_path / ".mlflow.db.living"
    living.mkdir()
    with locked(living, wait=True):
        track.open_store(None, tmp_path)
    assert not left.exists() and living.is_dir()


def test_a_sweep_that_was_killed_is_closed_by_the_next_one(tmp_path, fresh_database):
    records = fill(tmp_path, make_grid(["lora"], ["digits"], (0, 1)))
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    store = track.open_store(None, tmp_path)
    killed = track.start_sweep(store, "mini", ["never ended", records[0].cell_id])
    track.log_cell(killed, records[0])
    assert sweep(tmp_path, records) == []
    status = {run.data.tags["sweep_id"]: run.info.status for run in runs(tmp_path, "sweep")}
    assert status == {killed.sweep_id: "KILLED", track.sweep_id(r.cell_id for r in records): "FINISHED"}


def test_an_interrupted_sweep_is_marked_as_killed(tmp_path, fresh_database):
    records = fill(tmp_path, make_grid(["lora"], ["digits"], (0, 1)))
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    assert sweep(tmp_path, records, status="KILLED") == []
    assert [run.info.status for run in runs(tmp_path, "sweep")] == ["KILLED"]


def test_runs_from_before_folders_had_ids_are_taken_over(tmp_path, shared):
    from mlflow import MlflowClient

    records = fill(tmp_path / "one", make_grid(["lora"], ["digits"], (0, 1)))
    sweep(tmp_path / "one", records, shared)
    client = MlflowClient(shared)
    for run in runs(shared) + runs(shared, "sweep"):
        client.delete_tag(run.info.run_id, "output_id")
    ids = {run.info.run_id for run in runs(shared)}
    other = fill(tmp_path / "two", [dataclasses.replace(record, accuracy=12.0) for record in records])
    sweep(tmp_path / "two", other, shared)
    assert ids < {run.info.run_id for run in runs(shared)}, "they may be another's: they are not deleted"
    track.rebuild(tmp_path / "one", shared)
    check_whole(shared, tmp_path / "one", records)
    assert {run.info.run_id for run in runs(shared, output=tmp_path / "one")} == ids


def test_the_id_of_a_folder_stays_with_it_and_a_copy_gets_its_own(tmp_path):
    first = tmp_path / "first"
    first.mkdir()
    known = outputs.output_id(first)
    assert outputs.output_id(first) == known
    shutil.copytree(first, tmp_path / "copy")
    copied = outputs.output_id(tmp_path / "copy")
    assert copied != known and outputs.output_id(tmp_path / "copy") == copied
    first.rename(tmp_path / "moved")
    assert outputs.output_id(tmp_path / "moved") == known
    (tmp_path / "moved" / ".output.json").write_text("[" * 200_000)
    assert outputs.output_id(tmp_path / "moved") not in (known, copied)
    damaged = '"a": 1, "d": {"cells": ["c"]}, "e": {"suite": null, "cells": []}, "f": {"suite": "mini", "cells": [1]}'
    (tmp_path / "moved" / ".sweeps.json").write_text(f'{{{damaged}, "b": {{"suite": "mini", "cells": ["c"]}}}}')
    assert outputs.remembered_sweeps(tmp_path / "moved") == {"b": ("mini", ["c"])}
