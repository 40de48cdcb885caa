"""The Python API: the command line's results as data, nothing printed, progress through listeners."""

from __future__ import annotations

import dataclasses
import inspect
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import s2a_bench
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a.errors import S2AError
from s2a_bench import BackboneConfig, CellConfig, DataConfig, InputError, MethodConfig, Record, TrainConfig
from s2a_bench.api.arguments import setting_texts
from s2a_bench.cells import record, run
from s2a_bench.cli.main import main
from s2a_bench.cli.sweep import Sweep
from s2a_bench.reports.listener import ReportWriter
from s2a_bench.sweeps import stage
from s2a_bench.sweeps.events import Listener, StageEnd, keep_stdout, notify
from s2a_bench.sweeps.plan import Plan
from s2a_bench.sweeps.ray.cluster import ClusterError
from s2a_bench.sweeps.settings import parse_axes, parse_settings
from s2a_bench.tracking import store as track_store

pytestmark = pytest.mark.usefixtures("elsewhere")


class Heard(Listener):
    """Remembers events; may be told to do something at the first epoch of a cell."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.messages: list[tuple[str, str]] = []
        self.interrupt_at: str | None = None

    def message(self, text: str, level: s2a_bench.Level) -> None:
        self.messages.append((level, text))

    def planned(self, plan: Plan) -> None:
        self.events.append(("planned", ",".join(plan.todo)))

    def started(self, cell_id: str) -> None:
        self.events.append(("started", cell_id))

    def epoch(self, cell_id: str, metrics: Any) -> None:
        self.events.append((f"epoch {metrics['epoch']}", cell_id))
        if cell_id == self.interrupt_at:
            raise KeyboardInterrupt

    def finished(self, record: Record) -> None:
        self.events.append((record.status, record.cell_id))

    def ended(self, end: StageEnd) -> None:
        self.events.append((end.status, ",".join(record.cell_id for record in end.records)))


@pytest.fixture
def untracked(monkeypatch):
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)


@pytest.fixture
def fake(monkeypatch, untracked):
    """Cells that end at once; ``fake[seed]`` is the message of one that fails."""
    failing: dict[int, str] = {}

    def play(cell, on_epoch=None, keep=None, **_):
        if on_epoch:
            on_epoch({"epoch": 1, "loss": 1.0})
        changes: dict[str, Any] = {"cell_id": f"c{cell.seed}", "seed": cell.seed}
        if cell.seed in failing:
            error = {"type": "RuntimeError", "message": failing[cell.seed], "traceback": ""}
            changes |= {"status": "failed", "accuracy": None, "error": error}
        return make_record(**changes)

    monkeypatch.setattr(run, "identify", lambda cell: f"c{cell.seed}")
    monkeypatch.setattr(run, "run", play)
    return failing


SHAPE: dict[str, Any] = {"datasets": "digits", "methods": "bias", "seeds": (0, 1, 2), "serial": True}


# The same as the command line


def test_the_arguments_and_their_defaults_are_those_of_the_command_line():
    ours = {name: each.default for name, each in inspect.signature(s2a_bench.sweep).parameters.items()}
    theirs = {field.name: field.default for field in dataclasses.fields(Sweep)}
    # Two flags are one argument here: True, False, or None for neither.
    assert (theirs.pop("keep_adapters"), theirs.pop("no_keep_adapters"), ours.pop("keep_adapters")) == (
        False,
        False,
        None,
    )
    assert ours.keys() - {"listeners"} == theirs.keys() - {"dry_run"}
    for name, default in theirs.items():
        if name != "dry_run":
            assert ours[name] == (str(default) if isinstance(default, Path) else default), name


def test_records_are_those_of_the_command_line_and_nothing_is_printed(capfd):
    arguments = ["--datasets", "digits", "--methods", "s2a", "bias", "--limit-train", "32", "--limit-test", "32"]
    arguments += ["--epochs", "2", "--set", "train.lr=0.005", "--sweep", "method.bits=4,8", "--serial"]
    assert main(["sweep", *arguments, "--random-weights", "--output", "there", "--seeds", "0", "3"]) == 0
    capfd.readouterr()
    ours = s2a_bench.sweep(
        datasets=["digits"],
        methods=["s2a", "bias"],
        limit_train=32,
        limit_test=32,
        epochs=2,
        set={"train.lr": 0.005},
        sweep={"method.bits": [4, 8]},
        serial=True,
        random_weights=True,
        seeds=[0, 3],
        output="here",
    )
    assert capfd.readouterr() == ("", "")
    theirs = [found for _, found in record.read_all(Path("there")) if isinstance(found, Record)]
    assert {each.cell_id: each.accuracy for each in ours} == {each.cell_id: each.accuracy for each in theirs}
    assert len(ours) == 6, "bias has no bits"
    tracked = find_spec("mlflow") is not None
    assert all((Path("here") / name).is_file() for name in ["report.html", *(["mlflow.db"] if tracked else [])])
    paths = s2a_bench.report("here")
    assert paths.html == Path("here/report.html").absolute() and all(path.is_file() for path in paths.figures)
    assert capfd.readouterr() == ("", "")


# Events


def test_listeners_receive_the_events_of_a_stage_in_order(fake):
    fake[1] = "out of luck"
    heard = Heard()
    records = s2a_bench.sweep(**SHAPE, listeners=[heard])
    assert heard.events == [
        ("planned", "c0,c1,c2"),
        *[("started", "c0"), ("epoch 1", "c0"), ("done", "c0")],
        *[("started", "c1"), ("epoch 1", "c1"), ("failed", "c1")],
        *[("started", "c2"), ("epoch 1", "c2"), ("done", "c2")],
        ("FAILED", "c0,c1,c2"),
    ]
    assert [each.status for each in records] == ["done", "failed", "done"]
    assert records[1].error is not None and records[1].error["message"] == "out of luck"
    texts = [text for _, text in heard.messages]
    assert any(text.startswith("Nothing is tracked: ") for text in texts)
    assert "3 cells: 0 done, 3 to run." in texts
    assert [level for level, text in heard.messages if text.startswith("FAILED bias on digits")] == ["error"]


def test_a_listener_may_have_only_the_methods_it_needs(fake):
    class Count:
        seen = 0

        def finished(self, record: Record) -> None:
            self.seen += 1

    count: Any = Count()
    s2a_bench.sweep(**SHAPE, listeners=[count])
    assert count.seen == 3


def test_what_a_listener_prints_is_seen_although_stdout_is_switched_off_meanwhile(capsys):
    import contextlib
    import io

    class Loud(Listener):
        def message(self, text: str, level: s2a_bench.Level) -> None:
            print(text)

    listeners = keep_stdout([Loud()])
    with contextlib.redirect_stdout(io.StringIO()):
        print("of Ray")
        notify(listeners, "message", "of the listener", "info")
        notify(listeners, "no such event")
    assert capsys.readouterr().out == "of the listener\n"


# Ends that are none


def test_an_interrupt_passes_and_the_same_call_goes_on(fake):
    heard = Heard()
    heard.interrupt_at = "c1"
    with pytest.raises(KeyboardInterrupt):
        s2a_bench.sweep(**SHAPE, listeners=[heard])
    assert heard.events[-1] == ("KILLED", "c0")
    assert any(text.startswith("Interrupted: 1 of 3 cells are done") for _, text in heard.messages)
    again = Heard()
    assert [each.status for each in s2a_bench.sweep(**SHAPE, listeners=[again])] == ["done"] * 3
    assert [cell for event, cell in again.events if event == "started"] == ["c1", "c2"]
    assert not [event for event, _ in _third(fake) if event == "started"]


def _third(fake) -> list[tuple[str, str]]:
    heard = Heard()
    s2a_bench.sweep(**SHAPE, listeners=[heard])
    return heard.events


def test_cells_that_never_ran_because_the_cluster_went_away_are_not_passed_over(fake, monkeypatch):
    def one(plan, listeners, keep, placement, **options):
        record.write(make_record(cell_id="c0", seed=0), keep.output)
        raise ClusterError("The head has gone.")

    monkeypatch.setattr(stage.pool, "run_with_ray", one)
    monkeypatch.setattr(stage, "find_spec", lambda name: object())
    heard = Heard()
    with pytest.raises(s2a_bench.SweepStopped, match="2 cells were not run") as stopped:
        s2a_bench.sweep(**dict(SHAPE, serial=False), listeners=[heard])
    assert [each.cell_id for each in stopped.value.records] == ["c0"]
    assert ("error", "The head has gone.") in heard.messages


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"suite": "vtap"}, ["vtap", "vtab"]),
        ({"datasets": "digts"}, ["digts", "digits"]),
        ({"methods": ["s2b"]}, ["s2b", "s2a"]),
        ({"methods": [3]}, ["methods=[3]", "list of words"]),
        ({"seeds": "0"}, ["seeds=('0',)", "list of integers"]),
        ({"seeds": True}, ["seeds=True"]),
        ({"epochs": "3"}, ["epochs='3'", "an integer"]),
        ({"limit_train": 1.5}, ["limit_train=1.5"]),
        ({"evaluate": "train"}, ["evaluate='train'", "test, val, select"]),
        ({"set": {"train.learning_rate": 1}}, ["train.learning_rate"]),
        ({"set": {"train.lr": object}}, ["set={'train.lr'", "number"]),
        ({"set": {"train.lr": float("nan")}}, ["set={'train.lr'"]),
        ({"set": ["train.lr"]}, ["train.lr", "KEY=VALUE"]),
        ({"set": 5}, ["set=5"]),
        ({"sweep": {"method.bits": 4}}, ["method.bits", "list"]),
        ({"search": "all"}, ["all", "grid"]),
        ({"search": 2.5}, ["search=2.5"]),
        ({"search_scheduler": "asha"}, ["--search grid"]),
        ({"serial": "yes"}, ["serial='yes'", "true or false"]),
        ({"checkpoint_every": -1}, ["-1"]),
        ({"checkpoint_every": "1"}, ["checkpoint_every='1'"]),
        ({"data_dir": 3}, ["data_dir=3", "path"]),
        ({"output": None}, ["output=None", "path"]),
        ({"tracking_uri": "gopher://x"}, ["gopher"]),
        ({"tracking_uri": 5}, ["tracking_uri=5"]),
        ({"device": "tpu9"}, ["tpu9"]),
        ({"max_concurrent": 0, "serial": False}, ["--max-concurrent 0"]),
    ],
    ids=str,
)
def test_bad_input_is_one_sentence_before_anything_runs(monkeypatch, capfd, arguments, words):
    monkeypatch.setattr(run, "run", lambda *args: pytest.fail("a cell ran"))
    asked: dict[str, Any] = {"datasets": "digits", "methods": "bias", "random_weights": True, "serial": True}
    with pytest.raises((InputError, S2AError)) as error:
        s2a_bench.sweep(**asked | arguments)
    assert all(word in str(error.value) for word in words), error.value
    assert "\n" not in str(error.value)
    assert not list(Path().rglob("*.json"))
    assert capfd.readouterr() == ("", "")


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aZ ,[(='"),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(["train.lr", "method.bits", "method.rank"]), VALUES))
def test_values_of_a_mapping_arrive_as_they_are(given_values):
    found = parse_settings(setting_texts(given_values, "set"))
    assert {f"{scope}.{key}": value for scope in found for key, value in found[scope].items()} == given_values


@given(st.lists(VALUES, min_size=1, max_size=4))
def test_so_do_those_of_an_axis(values):
    found = parse_axes(setting_texts({"method.bits": values}, "sweep"))["method"]["bits"]
    assert found == [value for index, value in enumerate(values) if value not in values[:index]]


# One cell


def small(**changes: Any) -> CellConfig:
    return dataclasses.replace(
        CellConfig(
            data=DataConfig(dataset="digits", limit_train=16, limit_test=16),
            backbone=BackboneConfig(random_weights=True),
            method=MethodConfig("bias"),
            train=TrainConfig(epochs=2, warmup_epochs=0, batch_size=8),
        ),
        **changes,
    )


def test_a_cell_runs_without_and_with_an_output_folder(capfd, tmp_path):
    heard = Heard()
    found = s2a_bench.run(small(), listeners=[heard])
    assert [event for event, _ in heard.events] == ["started", "epoch 1", "epoch 2", "done"]
    assert {cell_id for _, cell_id in heard.events} == {found.cell_id}
    assert not list(tmp_path.iterdir())
    written = s2a_bench.run(small(), "out")
    file = json.loads(record.record_path(Path("out"), found.cell_id).read_text())
    assert file == json.loads(json.dumps(dataclasses.asdict(written)))
    assert written.accuracy == found.accuracy
    with pytest.raises(InputError, match="digts"):
        s2a_bench.run(small(data=DataConfig(dataset="digts")))
    assert capfd.readouterr() == ("", "")


@pytest.mark.full
def test_the_module_of_the_same_name_can_be_called_too(tmp_path):
    """``import s2a_bench.run`` binds the name of the function to the module, in this process for good: so not here."""
    (tmp_path / "cell.json").write_text(json.dumps(dataclasses.asdict(small())))
    code = (
        "import s2a_bench, json, pathlib\n"
        "from s2a_bench.config import from_dict\n"
        "cell = from_dict(s2a_bench.CellConfig, json.loads(pathlib.Path('cell.json').read_text()))\n"
        "before = s2a_bench.run(cell)\n"
        "import s2a_bench.run\n"
        "from s2a_bench.run import run, identify, main\n"
        "after = s2a_bench.run(cell, output='out')\n"
        "assert before.accuracy == after.accuracy and run(cell).cell_id == identify(cell) == after.cell_id\n"
        "assert main(['cell.json', 'out']) == 0\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "out" / "records").iterdir())) == 1


def test_importing_the_package_and_its_names_imports_nothing_heavy():
    code = (
        "import s2a_bench, sys\n"
        "names = [getattr(s2a_bench, name) for name in s2a_bench.__all__ if name != 'ReportPaths']\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'timm', 'rich', 'tyro', 'sklearn'} & {*sys.modules}), len(names) > 10)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[] True"
    assert {*s2a_bench.__all__} <= {*dir(s2a_bench)}
    with pytest.raises(AttributeError, match="sweeep"):
        s2a_bench.sweeep  # type: ignore[attr-defined]  # noqa: B018


# The report before the end


def test_a_report_is_written_as_soon_as_a_dataset_is_done(tmp_path):
    datasets = {"a": "digits", "b": "digits", "c": "location"}
    cells = {name: CellConfig(data=DataConfig(dataset=dataset)) for name, dataset in datasets.items()}
    heard = Heard()
    writer = ReportWriter(tmp_path, heard.message)
    writer.planned(Plan(cells, frozenset(), frozenset(), ()))

    def finish(name: str) -> None:
        ended = make_record(cell_id=name, dataset=datasets[name])
        record.write(ended, tmp_path)
        writer.finished(ended)

    finish("a")
    assert writer._early is None
    finish("b")
    assert writer._early is not None and writer._early.result().html.is_file()
    assert "location" not in (tmp_path / "report.md").read_text()
    finish("c")  # the last dataset: the report of all follows at the end
    assert heard.messages == [("info", f"Report so far: {tmp_path / 'report.html'}")]
    plan = Plan(cells, frozenset(cells), frozenset(), ())
    writer.ended(StageEnd(plan, [make_record(cell_id=name) for name in cells], "FINISHED"))
    assert writer.paths is not None and "location" in (tmp_path / "report.md").read_text()


def test_trials_of_a_search_are_no_dataset_that_is_done(tmp_path):
    cells = {"a": CellConfig(data=DataConfig(evaluate="val"), trial=True), "b": CellConfig(data=DataConfig())}
    writer = ReportWriter(tmp_path, Heard().message)
    writer.planned(Plan({"a": cells["a"]}, frozenset(), frozenset(), ()))
    writer.finished(make_record(cell_id="a", dataset="digits", trial=True))
    assert writer._early is None and not list(tmp_path.iterdir())
