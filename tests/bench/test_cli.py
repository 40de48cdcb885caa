"""The command line from its arguments to its exit code and its words."""

from __future__ import annotations

import socket
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.command_line import refused
from bench.factories import make_record
from s2a_bench.cells import backbones, record, run
from s2a_bench.cli.main import main
from s2a_bench.tracking import runs as track
from s2a_bench.tracking import store as track_store
from s2a_bench.tracking.runs import TrackingError

pytestmark = pytest.mark.usefixtures("elsewhere")
ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--datasets", "digits", "--methods", "s2a", "--limit-train", "16", "--limit-test", "16", "--epochs", "1"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "vtap"], ["suite", "vtap", "vtab"]),
        (["--methods", "s2b"], ["method", "s2b", "s2a"]),
        (["--backbones", "mini_vti"], ["backbone", "mini_vti", "mini_vit"]),
        (["--datasets", "digts"], ["dataset", "digts", "digits"]),
        (["--set", "method.lrp_rnk=2"], ["method.lrp_rnk", "method.lrp_rank"]),
        (["--set", "train.learning_rate=2"], ["train.learning_rate"]),
        (["--methods", "lora", "--set", "method.rank=-1"], ["rank=-1"]),
        (["--methods", "s2a:lrp_rank=5000"], ["lrp_rank=5000", "min(N, C)"]),
        (["--methods", "s2a:lsb_reduction=7"], ["7"]),
        (["--random-weights", "--weights", "x.pth"], ["--weights", "--random-weights"]),
        (["--weights", "absent.pth"], ["absent.pth", "--weights"]),
        (["--backbones", "vit_base_patch16_224.augreg_in21k"], ["augreg_in21k", "--weights", "--random-weights"]),
        (["--suite", "vtab", "--datasets", "caltech101"], ["caltech101", "data prepare caltech101 --from"]),
        (["--suite", "vtab", "--datasets", "caltech101", "--data-dir", "D"], ["D", "data prepare caltech101 --from"]),
        (["--epochs", "0"], ["train.epochs=0"]),
        (["--limit-train", "0"], ["limit_train=0"]),
        (["--seeds", "-1"], ["-1"]),
        (["--device", "tpu9"], ["device", "tpu9"]),
        (["--max-concurrent", "0"], ["--max-concurrent 0"]),
        (["--tracking-uri", "sqlite:////nowhere/at/all.db"], ["/nowhere/at", "does not exist"]),
        (["--tracking-uri", "gopher://x"], ["gopher"]),
        (["--keep-adapters", "--no-keep-adapters"], ["exclude each other"]),
    ],
    ids=lambda value: " ".join(value) if value and value[0].startswith("--") else "",
)
def test_bad_input_is_one_sentence_and_exit_2_before_anything_runs(capsys, arguments, words):
    defaults = [] if {"--weights", "--backbones"} & {*arguments} else ["--random-weights"]
    names = ["--datasets", "digits"] if not {"--datasets", "--suite"} & {*arguments} else []
    sentence = refused(capsys, "sweep", *names, *defaults, *arguments)
    for word in words:
        assert word in sentence


def test_embedded_weights_that_are_missing_are_bad_input(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(backbones, "data_file", lambda name: tmp_path / name)
    assert "s2a-bench pretrain --backbone mini_vit" in refused(capsys, "sweep", "--datasets", "digits")


def test_an_output_that_cannot_be_written_is_bad_input(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    assert "--output" in refused(capsys, "sweep", *SMALL, "--random-weights", "--output", "file")


def test_a_tracking_server_that_does_not_answer_is_bad_input(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, never listening: connections are refused
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert uri in refused(capsys, "sweep", *SMALL, "--random-weights", "--tracking-uri", uri)


def test_bad_input_leaves_no_trace(capsys, tmp_path):
    refused(capsys, "sweep", "--methods", "s2b")
    assert not list(tmp_path.iterdir())


@pytest.fixture
def fake(monkeypatch):
    """A sweep whose cells end at once, and a tracker that only counts."""

    class Fake:
        def __init__(self) -> None:
            self.ran: list[int] = []
            self.outcome: dict[int, BaseException | str] = {}
            self.logged: list[str] = []
            self.opened = self.tracker_fails = 0
            self.finished: list[str] = []

    state = Fake()

    def play(cell, on_epoch=None, keep=None, **_):
        state.ran.append(cell.seed)
        outcome = state.outcome.get(cell.seed)
        if isinstance(outcome, BaseException):
            raise outcome
        error = {"type": "Diverged", "message": outcome, "traceback": "..."} if outcome else None
        accuracy, status = (None, "failed") if outcome else (80.0, "done")
        return make_record(cell_id=f"{cell.seed:016}", seed=cell.seed, status=status, error=error, accuracy=accuracy)

    def log(sweep, done):
        if state.tracker_fails:
            state.tracker_fails -= 1
            raise TrackingError("the server has gone")
        state.logged.append(done.cell_id)

    def opened(uri, output):
        state.opened += 1
        Path(output, "mlflow.db").touch()
        return object()

    monkeypatch.setattr(run, "identify", lambda cell: f"{cell.seed:016}")
    monkeypatch.setattr(run, "run", play)
    monkeypatch.setattr(track_store, "open_store", opened)
    monkeypatch.setattr(track, "start_sweep", lambda *args: None)
    monkeypatch.setattr(track, "log_cell", log)
    monkeypatch.setattr(track, "finish_sweep", lambda sweep, found, paths, status: state.finished.append(status))
    return state


SWEEP = ["sweep", "--serial", *SMALL, "--seeds", "0", "1", "2"]


def test_a_sweep_runs_once_and_the_second_time_touches_nothing(capsys, fake):
    assert main(SWEEP) == 0
    out = capsys.readouterr().out
    assert "3 cells: 0 done, 3 to run." in out
    assert fake.ran == [0, 1, 2]
    assert {*fake.logged} == {f"{seed:016}" for seed in range(3)}
    assert fake.finished == ["FINISHED"]
    assert Path("results/report.html").is_file()
    assert str(Path("results/report.html").absolute()) in out
    assert f"MLflow: s2a-bench ui --output {Path('results').absolute()}" in out

    assert main(SWEEP) == 0
    assert "3 cells: 3 done, nothing to run." in capsys.readouterr().out
    assert (fake.ran, fake.opened) == ([0, 1, 2], 1)


def test_a_store_that_was_deleted_is_filled_again_from_the_records(fake):
    assert main(SWEEP) == 0
    Path("results/mlflow.db").unlink()
    assert main(SWEEP) == 0
    assert (fake.ran, fake.opened) == ([0, 1, 2], 2)
    assert fake.finished == ["FINISHED", "FINISHED"]


def test_failed_cells_are_named_with_their_cause_and_tried_again(capsys, fake):
    fake.outcome[1] = "The loss is nan"
    assert main(SWEEP) == 1
    out = capsys.readouterr().out
    assert "FAILED s2a on digits, mini_vit, seed 1, train.epochs=1: Diverged: The loss is nan" in out
    assert "2 of 3 cells are done" in out
    assert fake.finished == ["FAILED"]
    del fake.outcome[1]
    assert main(SWEEP) == 0
    assert fake.ran == [0, 1, 2, 1]
    assert "2 done, 1 to run, 1 of them failed before" in capsys.readouterr().out


def test_ctrl_c_keeps_what_is_done_and_says_so(capsys, fake):
    fake.outcome[1] = KeyboardInterrupt()
    assert main(SWEEP) == 130
    assert "1 of 3 cells are done" in capsys.readouterr().out
    assert fake.finished == ["KILLED"]
    del fake.outcome[1]
    assert main(SWEEP) == 0
    assert fake.ran == [0, 1, 1, 2]


@pytest.mark.parametrize("failures", [1, 2])
def test_a_tracker_that_stumbles_is_made_good_at_the_end(capsys, fake, failures):
    fake.tracker_fails = failures
    assert main(SWEEP) == 0
    assert {*fake.logged} == {f"{seed:016}" for seed in range(3)}
    assert "MLflow is incomplete" not in capsys.readouterr().out


def test_a_tracker_that_has_gone_costs_a_sentence_and_is_retried_by_the_next_sweep(capsys, fake):
    fake.tracker_fails = 100
    assert main(SWEEP) == 0
    out = capsys.readouterr().out
    assert out.count("MLflow is incomplete (the server has gone)") == 1
    assert "s2a-bench track --output" in out
    fake.tracker_fails = 0
    assert main(SWEEP) == 0
    assert {*fake.logged} == {f"{seed:016}" for seed in range(3)}
    assert fake.ran == [0, 1, 2]


def test_a_dry_run_shows_the_cells_and_writes_nothing(capsys, fake, tmp_path):
    assert main([*SWEEP, "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert out.count("missing") == 3
    assert not list(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore")  # MLflow's own, about its dependencies
@pytest.mark.skipif(find_spec("mlflow") is None, reason="MLflow is not installed")
def test_a_real_cell_goes_all_the_way(capsys):
    command = ["sweep", "--serial", "--random-weights", *SMALL]
    assert main(command) == 0
    out = capsys.readouterr().out
    (path,) = Path("results/records").glob("*.json")
    found = record.read(path)
    assert (found.status, found.random_weights, found.train_images, found.scored_images) == ("done", True, 16, 16)
    assert f"{found.accuracy:.1f} %" in out
    store = track_store.open_store(None, Path("results"))
    experiment = store.client.get_experiment_by_name("mini")
    assert experiment is not None
    runs = store.client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")
    assert [r.data.tags["cell_id"] for r in runs] == [found.cell_id]
    assert main(["report"]) == 0
    assert main(["track"]) == 0
    assert len(store.client.search_runs([experiment.experiment_id], "tags.kind = 'cell'")) == 1


def test_without_mlflow_a_sweep_runs_untracked_and_says_so_once(capsys, monkeypatch):
    monkeypatch.setattr(track_store, "find_spec", lambda name: None)
    sweep = ["sweep", "--serial", "--random-weights", *SMALL]
    assert "MLflow is not installed" in refused(capsys, *sweep, "--tracking-uri", "sqlite:///mine.db")
    assert main(sweep) == 0
    out = capsys.readouterr().out
    assert out.count("MLflow is not installed") == 1 and "s2a-bench ui" not in out
    assert len([*Path("results/records").glob("*.json")]) == 1 and not Path("results/mlflow.db").exists()
    assert main(["track"]) == 2
    assert capsys.readouterr().err.count("MLflow is not installed") == 1


def test_data_commands(capsys, tmp_path):
    assert main(["data", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in ("digits", "caltech101"))
    assert main(["data", "list", "--data-dir", str(tmp_path)]) == 0
    assert "missing" in capsys.readouterr().out
    assert main(["data", "list", "caltech101", "fgvc_cub"]) == 0
    out = capsys.readouterr().out
    assert all(
        word in out for word in ("caltech-101.zip", "test 6084", "CC BY 4.0", "CUB_200_2011.tgz", "trainval 5994")
    )
    assert "did you mean vtab" in refused(capsys, "data", "list", "vtba")
    assert "vtab/cifar" in refused(capsys, "data", "list", "cifar")  # also a suite
    assert main(["data", "list", "vtab/cifar"]) == 0
    here = ["--from", str(tmp_path), "--data-dir", "d"]
    assert "caltech101" in refused(capsys, "data", "prepare", "caltech102", *here)
    assert "x" in refused(capsys, "data", "prepare", "caltech101", "--from", "x", "--data-dir", "d")
    assert "embedded" in refused(capsys, "data", "verify", "digits", "--data-dir", "d")


def test_of_several_datasets_those_that_are_there_are_prepared(capsys, tmp_path):
    """One folder of downloads, some in folders of their own; what is missing is named and keeps nobody back."""
    from s2a_bench.data.synthetic import plans
    from s2a_bench.data.table.lookup import DATASETS

    downloads, root = tmp_path / "downloads", tmp_path / "root"
    bad = refused(capsys, "data", "prepare", "fgvc_dtd", "--synthetic", "--data-dir", str(root), "--seed", "-1")
    assert "--seed -1" in bad and not root.exists()
    for useless in (["--seed", "3"], ["--full"]):
        assert "--synthetic" in refused(
            capsys, "data", "prepare", "fgvc_dtd", "--from", str(tmp_path), "--data-dir", str(root), *useless
        )
    both = ["--synthetic", "--split", "x.json"]
    assert "--split" in refused(capsys, "data", "prepare", "fgvc_dtd", "--data-dir", str(root), *both)
    for name in ("fgvc_dtd", "fgvc_eurosat"):
        (downloads / name).mkdir(parents=True)
        plans.make_source(DATASETS[name], downloads / name)
    wanted = ["fgvc_dtd", "fgvc_eurosat", "fgvc_pets"]
    assert main(["data", "prepare", *wanted, "--from", str(downloads), "--data-dir", str(root)]) == 1
    out = capsys.readouterr().out
    assert "contains no known format of fgvc_pets" in out and "0 of 3 datasets are ready" in out  # miniatures
    assert "some images are missing or added" in out and not list(root.iterdir())
    made = ["data", "prepare", *wanted[:2], "--synthetic", "--data-dir", str(root)]
    assert main(made) == 0 and sorted(p.name for p in root.iterdir()) == wanted[:2]
    assert main([*made[:4], "--synthetic", "--data-dir", str(root), "--seed", "1"]) == 1  # others are there already
    assert "prepared from other images" in capsys.readouterr().out
    assert sorted(p.name for p in root.iterdir()) == wanted[:2]


def test_commands_without_what_they_need_are_refused(capsys):
    assert "records" in refused(capsys, "report", "--output", "nothing")
    assert "records" in refused(capsys, "track", "--output", "nothing")
    assert "--data" in refused(capsys, "pretrain", "--data", "nothing")
    assert "mini_vit" in refused(capsys, "pretrain", "--data", ".", "--backbone", "mini_vti")


def test_a_misspelt_flag_exits_2(capsys):
    with pytest.raises(SystemExit) as end:
        main(["sweep", "--epoch", "3"])
    assert end.value.code == 2
    assert "--epochs" in capsys.readouterr().err


def test_help_is_quick_because_it_imports_nothing_heavy():
    code = (
        "import sys; from s2a_bench.cli.main import main\n"
        "try: main(['sweep', '--help'])\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'ray', 'mlflow', 'timm', 'sklearn'} & {*sys.modules}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
