"""MLflow as a view of the records, on a real sqlite store."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import shutil
import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.factories import make_grid, make_record
from s2a_bench.cells.outputs import adapter_path, file_id
from s2a_bench.cells.record import Record, record_path, write
from s2a_bench.errors import InputError
from s2a_bench.sweeps.output_lock import only_writer
from s2a_bench.tracking import names as track_names
from s2a_bench.tracking import runs as track
from s2a_bench.tracking.runs import TrackingError

# MLflow's own imports and SQL warn of what is deprecated in its dependencies.
pytestmark = pytest.mark.filterwarnings("ignore")
needs_mlflow = pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")


@pytest.fixture
def store(fresh_database, tmp_path):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    return track.open_store(None, tmp_path)


def cells(store, suite="mini"):
    experiment = store.client.get_experiment_by_name(suite)
    return store.client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")


def sweeps(store, suite="mini"):
    experiment = store.client.get_experiment_by_name(suite)
    return store.client.search_runs([experiment.experiment_id], "tags.kind = 'sweep'")


def log_all(store, records, suite="mini"):
    sweep = track.start_sweep(store, suite, [record.cell_id for record in records])
    for record in records:
        track.log_cell(sweep, record)
    track.finish_sweep(sweep, records)
    return sweep


def test_every_field_of_a_record_is_found_under_its_own_name():
    record = make_record(scoring_seconds=1.5, wall_seconds=9.0, guessing_loss=2.3, guessing_accuracy=10.0, host_mb=0.0)
    record = dataclasses.replace(record, balanced_accuracy=79.0, macro_f1=78.0, val_accuracy=81.0, best_epoch=2)
    record = dataclasses.replace(record, limit_train=100, limit_test=50)
    found = set(track_names.run_params(record)) | set(track_names.run_tags(record))
    found |= {name for name, _, _ in track_names.run_metrics(record)}
    elsewhere = {"method_config", "train_config", "data_config", "curve", "error", "hardware", "versions"}
    assert {field.name for field in dataclasses.fields(Record)} - elsewhere <= found
    assert {"method.lrp_rank", "train.lr", "data.size", "hardware.cpu", "versions.torch", "loss", "lr"} <= found


def test_a_curve_does_not_hide_a_final_number():
    found = collections.defaultdict(list)
    for name, value, step in track_names.run_metrics(make_record(seconds=4.5)):
        found[name].append((step, value))
    assert found["seconds"] == [(0, 4.5)]
    assert [step for step, _ in found["epoch_seconds"]] == [1, 2, 3]


def test_layout_of_a_sweep(store, tmp_path):
    records = [*make_grid(["lora", "s2a"], ["digits"], (0, 1)), make_record(method="bias", status="failed")]
    sweep = track.start_sweep(store, "mini", [record.cell_id for record in records])
    for record in records:
        track.log_cell(sweep, record)
    report = tmp_path / "report.html"
    report.write_text("<p>report</p>")
    track.finish_sweep(sweep, records, [report, tmp_path / "absent.md"])

    parent = store.client.get_run(sweep.run_id)
    assert parent.info.status == "FAILED"
    assert parent.data.tags["sweep_id"] == track.sweep_id(record.cell_id for record in records)
    assert "lora" in parent.data.tags["mlflow.note.content"]
    assert parent.data.metrics.items() >= {"cells_done": 4, "cells_failed": 1}.items()
    assert [item.path for item in store.client.list_artifacts(sweep.run_id)] == ["report.html"]

    by_id = {run.data.tags["cell_id"]: run for run in cells(store)}
    assert by_id.keys() == {record.cell_id for record in records}
    for record in records:
        run = by_id[record.cell_id]
        assert run.data.tags["mlflow.parentRunId"] == sweep.run_id
        assert run.info.status == ("FINISHED" if record.status == "done" else "FAILED")
        assert run.data.params == track_names.run_params(record)
        assert run.data.metrics.get("accuracy") == record.accuracy
        for name in ("suite", "dataset", "method", "status", "git_sha", "checkpoint_id"):
            assert run.data.tags[name] == getattr(record, name)
        loss = store.client.get_metric_history(run.info.run_id, "loss")
        assert {m.step: m.value for m in loss} == {point["epoch"]: point["loss"] for point in record.curve}
        copy = tmp_path / "copies" / f"{record.cell_id}.json"
        copy.parent.mkdir(exist_ok=True)
        downloaded = store.client.download_artifacts(run.info.run_id, "record.json", str(copy.parent))
        shutil.move(downloaded, copy)
        assert copy.read_text() == write(record, tmp_path).read_text()
    failed = by_id[records[-1].cell_id]
    assert failed.data.tags["error.type"] == "Diverged"
    assert "traceback.txt" in [item.path for item in store.client.list_artifacts(failed.info.run_id)]
    assert (tmp_path / "mlartifacts").is_dir()


def test_logging_twice_changes_nothing(store):
    records = make_grid(["lora"], ["digits"])
    log_all(store, records)
    before = {run.info.run_id for run in cells(store)}
    log_all(store, records)
    assert {run.info.run_id for run in cells(store)} == before
    assert len(sweeps(store)) == 1


def test_a_changed_record_replaces_its_run(store):
    done = make_record()
    failed = dataclasses.replace(done, status="failed", accuracy=None, error={"type": "E", "message": "m"})
    sweep = log_all(store, [failed])
    track.log_cell(sweep, done)
    (run,) = cells(store)
    assert run.data.tags["status"] == "done"
    assert "error.type" not in run.data.tags
    # Also across processes: another sweep object knows nothing of the first one's memory.
    log_all(store, [failed])
    (run,) = cells(store)
    assert run.data.tags["status"] == "failed"


@pytest.mark.parametrize("step", ["log_batch", "log_text", "set_terminated"])
def test_what_was_cut_off_is_made_good(store, monkeypatch, step):
    record = make_record()
    sweep = track.start_sweep(store, "mini", [record.cell_id])

    def broken(*args, **kwargs):
        raise ConnectionError("the server is gone")

    with monkeypatch.context() as patch:
        patch.setattr(store.client, step, broken)
        with pytest.raises(TrackingError, match="the server is gone"):
            track.log_cell(sweep, record)
    # Neither the same sweep nor a resumed one keeps the half run.
    track.log_cell(track.start_sweep(store, "mini", [record.cell_id]), record)
    (run,) = cells(store)
    assert run.info.status == "FINISHED"
    assert run.data.metrics["accuracy"] == record.accuracy


def test_a_dead_store_is_a_tracking_error(store, monkeypatch):
    def broken(*args, **kwargs):
        raise OSError("no")

    sweep = track.start_sweep(store, "mini", ["a"])
    for name in ("get_experiment_by_name", "create_run", "log_batch", "search_runs"):
        monkeypatch.setattr(store.client, name, broken)
    for attempt in (
        lambda: track.start_sweep(store, "mini", ["a"]),
        lambda: track.log_cell(sweep, make_record()),
        lambda: track.finish_sweep(sweep, []),
    ):
        with pytest.raises(TrackingError):
            attempt()


def test_a_cell_of_two_sweeps_has_a_run_in_each(store):
    records = make_grid(["lora"], ["digits"], (0, 1, 2))
    first = log_all(store, records[:2])
    second = log_all(store, records[1:])
    for sweep, own in ((first, records[:2]), (second, records[1:])):
        children = [run for run in cells(store) if run.data.tags["mlflow.parentRunId"] == sweep.run_id]
        assert sorted(run.data.tags["cell_id"] for run in children) == sorted(record.cell_id for record in own)
        assert {run.data.tags["sweep_id"] for run in children} == {sweep.sweep_id}
    # A record that changes is shown by both.
    changed = dataclasses.replace(records[1], accuracy=12.0)
    log_all(store, [changed, records[2]])
    shown = [run for run in cells(store) if run.data.tags["cell_id"] == changed.cell_id]
    assert {run.data.tags["mlflow.parentRunId"] for run in shown} == {first.run_id, second.run_id}
    assert [run.data.metrics["accuracy"] for run in shown] == [12.0, 12.0]


def test_doubles_of_a_race_are_cleared(store):
    record = make_record()
    first, second = (track.start_sweep(store, "mini", [record.cell_id]) for _ in range(2))
    track.log_cell(first, record)
    track.log_cell(second, record)
    assert len(cells(store)) == 2
    log_all(store, [record])
    assert len(cells(store)) == 1


def test_suites_are_experiments_and_a_deleted_one_comes_back(store):
    log_all(store, [make_record()])
    log_all(store, [make_record(suite="vtab")], "vtab")
    assert len(cells(store)) == len(cells(store, "vtab")) == 1
    store.client.delete_experiment(store.client.get_experiment_by_name("mini").experiment_id)
    log_all(store, [make_record()])
    assert len(cells(store)) == 1


def test_long_curves_and_odd_values(store):
    curve = [{"epoch": e, "loss": 1.0 / e, "odd näme!": float(e)} for e in range(1, 1301)]
    config = {"deep": {"er": [1, 2]}, "tëxt:?": "x" * 10_000, "none": None}
    many = {f"key{i}": i for i in range(150)}
    error = {"type": "E", "message": "🙂" * 9000, "traceback": "t"}
    record = make_record(curve=curve, method_config=config, train_config=many, error=error)
    log_all(store, [record])
    (run,) = cells(store)
    assert len(store.client.get_metric_history(run.info.run_id, "loss")) == 1300
    assert run.data.params["method.deep.er"] == "1, 2"
    assert "method.none" not in run.data.params
    assert {f"train.key{i}" for i in range(150)} <= run.data.params.keys()


def test_rebuild_makes_a_store_of_the_records(fresh_database, tmp_path):
    shutil.copy(fresh_database, tmp_path / "mlflow.db")
    records = [*make_grid(["lora"], ["digits"]), make_record(suite="vtab", status="failed")]
    for record in records:
        write(record, tmp_path)
    (record_path(tmp_path, "0" * 16)).write_text("not a record")
    assert track.rebuild(tmp_path) == 4
    store = track.open_store(None, tmp_path)
    assert len(cells(store)) == 3
    assert len(cells(store, "vtab")) == 1
    runs = {run.info.run_id for run in cells(store)}
    assert track.rebuild(tmp_path) == 0
    write(make_record(method="lora", seed=7), tmp_path)
    assert track.rebuild(tmp_path) == 1
    assert runs < {run.info.run_id for run in cells(store)}


def test_rebuild_closes_what_a_dead_server_left_open(store, tmp_path):
    records = make_grid(["lora"], ["digits"])
    for record in records:
        write(record, tmp_path)
    (tmp_path / "report.html").write_text("<p>report</p>")
    sweep = track.start_sweep(store, "mini", [record.cell_id for record in records])
    for record in records:
        track.log_cell(sweep, record)  # and then the server was gone: nobody closed the parent
    before = {run.info.run_id for run in cells(store)}
    killed = track.start_sweep(store, "mini", ["never ended"])
    assert track.rebuild(tmp_path) == 0
    status = {run.info.run_id: run.info.status for run in sweeps(store)}
    assert status == {sweep.run_id: "FINISHED", killed.run_id: "KILLED"}
    assert [item.path for item in store.client.list_artifacts(sweep.run_id)] == ["report.html"]
    assert {run.info.run_id for run in cells(store)} == before
    track.start_sweep(store, "mini", ["never ended"])
    with only_writer(tmp_path):
        assert track.rebuild(tmp_path) == 0
    assert store.client.get_run(killed.run_id).info.status == "RUNNING", "a sweep that runs in the folder is left alone"


def test_the_adapter_of_a_cell_is_logged_if_it_is_the_records_own(store, tmp_path):
    path = adapter_path(tmp_path, "kept")
    path.parent.mkdir()
    path.write_bytes(b"trained")
    kept = make_record(cell_id="kept", adapter_id=file_id(path))
    stale = make_record(cell_id="stale", seed=1, adapter_id="0" * 16)
    adapter_path(tmp_path, "stale").write_bytes(b"of another run")
    log_all(store, [kept, stale])
    found = {run.data.tags["cell_id"]: run.info.run_id for run in cells(store)}
    there = store.client.download_artifacts(found["kept"], "adapter/kept.safetensors", str(tmp_path))
    assert Path(there).read_bytes() == b"trained"
    assert "adapter" not in [item.path for item in store.client.list_artifacts(found["stale"])]


def test_rebuild_leaves_a_finished_sweep_as_it_is(store, tmp_path):
    records = make_grid(["lora"], ["digits"])
    for record in records:
        write(record, tmp_path)
    sweep = log_all(store, records[:2])
    assert track.rebuild(tmp_path) == 1
    parents = {run.data.tags["cell_id"]: run.data.tags["mlflow.parentRunId"] for run in cells(store)}
    assert [parents[record.cell_id] == sweep.run_id for record in records] == [True, True, False]


def test_rebuild_without_records_is_bad_input(tmp_path):
    with pytest.raises(InputError, match="no records"):
        track.rebuild(tmp_path)


def test_sweep_id_is_of_the_set_of_cells():
    ids = {track.sweep_id(order) for order in itertools.permutations(["a", "b", "c"])}
    assert len(ids) == 1
    assert track.sweep_id(["a", "b"]) not in ids


@pytest.mark.parametrize(
    "uri",
    ["", "mlruns", "/somewhere", "file:///somewhere", "sqlite://", "sqlite:///", "sqlite:///:memory:",
     "sqlite:////no/such/folder/x.db", "ftp://host/x", "http://127.0.0.1:1", "http://nowhere.invalid:5000",
     "http://127.0.0.1:99999", "postgresql://me:secret@127.0.0.1:1/x"],
)  # fmt: skip
def test_bad_uris_are_bad_input(tmp_path, uri):
    with pytest.raises(InputError) as caught:
        track.open_store(uri, tmp_path)
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert "secret" not in sentence
    assert not list(tmp_path.iterdir())


@needs_mlflow
def test_a_file_that_is_no_database_is_bad_input(tmp_path):
    (tmp_path / "notes.db").write_text("these are my notes, do not touch")
    with pytest.raises(InputError, match="not an SQLite database"):
        track.open_store(f"sqlite:///{tmp_path}/notes.db", tmp_path)
    (tmp_path / "torn.db").write_bytes(b"SQLite format 3\0" + b"\xff" * 5000)
    with pytest.raises(InputError, match="cannot be used"):
        track.open_store(f"sqlite:///{tmp_path}/torn.db", tmp_path)
    assert (tmp_path / "notes.db").read_text() == "these are my notes, do not touch"


@needs_mlflow
def test_a_server_that_never_answers_is_bad_input(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(InputError, match="cannot be used"):
            track.open_store(f"http://127.0.0.1:{port}", tmp_path)


@needs_mlflow
def test_a_database_is_made_whole_or_not_at_all(tmp_path, monkeypatch):
    from mlflow.store.tracking import sqlalchemy_store

    def killed(uri, artifacts):
        raise RuntimeError("killed in the middle")

    monkeypatch.setattr(sqlalchemy_store, "SqlAlchemyStore", killed)
    with pytest.raises(InputError, match="killed in the middle"):
        track.open_store(None, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())


def test_a_relative_uri_becomes_absolute(fresh_database, tmp_path, monkeypatch):
    shutil.copy(fresh_database, tmp_path / "mine.db")
    monkeypatch.chdir(tmp_path)
    assert track.open_store("sqlite:///mine.db", tmp_path).uri == f"sqlite:///{tmp_path}/mine.db"


def test_neither_door_imports_mlflow_by_itself():
    code = "import sys, s2a_bench.tracking.runs, s2a_bench.reports.build; "
    code += "print({'mlflow', 'ray', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
