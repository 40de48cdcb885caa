"""Checkpoints: a training that was cut off ends in the same bits, and a file that is not its own is never used."""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
from pathlib import Path

import pytest
import torch
from bench.factories import make_record
from hypothesis import given
from hypothesis import strategies as st
from s2a_bench.cells import checkpoint, record, run
from s2a_bench.cells.outputs import Keep, adapter_path, checkpoint_path, clean_up, recorded_adapter, remove_checkpoint
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig, TrainConfig
from s2a_bench.errors import InputError
from safetensors.torch import load_file
from test_selection import split_rings
from torch import nn

EPOCHS = 4
RECIPE = TrainConfig(epochs=EPOCHS, warmup_epochs=1, batch_size=8, drop_path=0.3, clip_norm=1.0)


def cell(method: str = "bias", **options) -> CellConfig:
    """Stochastic depth draws from torch's generator, the order of the images from the loop's own."""
    return CellConfig(
        DataConfig(dataset="digits", limit_train=20, limit_test=20),
        BackboneConfig(random_weights=True),
        MethodConfig(method, options),
        RECIPE,
        threads=1,
    )


class Cut(BaseException):
    """Ends a run as a kill does: nobody catches it."""


def cut_after(epoch: int):
    def on_epoch(metrics):
        if metrics["epoch"] == epoch:
            raise Cut

    return on_epoch


def curve(found):
    return [{name: point[name] for name in ("epoch", "loss", "lr")} for point in found.curve]


@pytest.mark.parametrize(
    ("method", "options"),
    split_rings(
        [("s2a", {}), ("full", {}), ("lora", {"dropout": 0.2}), ("lst", {}), ("vpt", {"dropout": 0.2}), ("linear", {})],
        fast=[("s2a", {}), ("vpt", {"dropout": 0.2}), ("linear", {})],
    ),
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_training_that_was_cut_off_ends_in_the_same_bits(tmp_path, method, options):
    asked = cell(method, **options)
    whole = run.run(asked, keep=Keep(tmp_path / "whole", float("inf"), adapters=True))
    assert whole.status == "done", whole.error
    keep = Keep(tmp_path / "cut", 0, adapters=True)
    for epoch in (1, 3):
        with pytest.raises(Cut):
            run.run(asked, cut_after(epoch), keep)
    told = []
    found = run.run(asked, lambda metrics: told.append(metrics["epoch"]), keep)
    assert (found.status, found.notes) == ("done", [])
    assert (whole.resumed, found.resumed) == (0, 2)
    assert told == [1, 2, 3, 4], "whoever listens hears of every epoch"
    assert curve(found) == curve(whole)
    assert found.accuracy == whole.accuracy
    ours, theirs = (load_file(adapter_path(tmp_path / name, found.cell_id)) for name in ("cut", "whole"))
    assert ours.keys() == theirs.keys() != set()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs), "every bit of the trained state"
    assert found.seconds == sum(point["seconds"] for point in found.curve)


def test_without_the_random_streams_the_bits_differ(tmp_path, monkeypatch):
    """The recipe of these tests draws at random while it trains: else the test above could not fail."""
    whole = run.run(cell())
    with pytest.raises(Cut):
        run.run(cell(), cut_after(2), Keep(tmp_path, 0))
    monkeypatch.setattr(torch, "set_rng_state", lambda state: None)
    assert curve(run.run(cell(), keep=Keep(tmp_path, 0))) != curve(whole)


def test_a_run_without_a_folder_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run.run(cell()).status == "done"
    assert not list(tmp_path.iterdir())


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A checkpoint of ``cell()`` after its second epoch, and the record of the whole training."""
    folder = tmp_path_factory.mktemp("made")
    torch.set_num_threads(1)
    with pytest.raises(Cut):
        run.run(cell(), cut_after(2), Keep(folder, 0))
    return checkpoint_path(folder, run.identify(cell())), run.run(cell())


IDENTITY = {"cell": "0" * 16, "protocol": 2, "code": "c", "torch": "t", "device": "cpu"}


def test_no_damage_goes_unseen(tmp_path_factory):
    path = tmp_path_factory.mktemp("damage") / "x.pt"
    checkpoint.write(path, IDENTITY, {"a": torch.arange(50.0), "b": [{"c": 1.5}]})
    good = path.read_bytes()
    state = checkpoint.read(path, IDENTITY)
    assert torch.equal(state["a"], torch.arange(50.0)) and state["b"] == [{"c": 1.5}]

    @given(st.integers(0, len(good) - 1), st.integers(1, 255), st.booleans())
    def damaged(place, change, cut):
        data = good[:place] if cut else good[:place] + bytes([good[place] ^ change]) + good[place + 1 :]
        path.write_bytes(data)
        with pytest.raises(checkpoint.Unusable):
            checkpoint.read(path, IDENTITY)

    damaged()
    path.write_bytes(good + b"more")
    with pytest.raises(checkpoint.Unusable):
        checkpoint.read(path, IDENTITY)


@pytest.mark.parametrize("name", list(IDENTITY))
def test_a_checkpoint_of_another_is_refused_in_words(tmp_path, name):
    path = tmp_path / "x.pt"
    checkpoint.write(path, {**IDENTITY, name: "other"}, {"a": 1})
    with pytest.raises(checkpoint.Unusable, match=f"another|other code.*other, not {IDENTITY[name]}"):
        checkpoint.read(path, IDENTITY)


@pytest.mark.parametrize("how", ["half", "empty", "garbage", "of another cell", "a folder"])
def test_a_bad_checkpoint_costs_a_sentence_and_a_new_start(tmp_path, made, how):
    source, whole = made
    path = checkpoint_path(tmp_path, source.stem)
    path.parent.mkdir()
    data = source.read_bytes()
    if how == "a folder":
        path.mkdir()
    elif how == "of another cell":
        other = dataclasses.replace(cell(), seed=1)
        with pytest.raises(Cut):
            run.run(other, cut_after(2), Keep(tmp_path, 0))
        checkpoint_path(tmp_path, run.identify(other)).rename(path)
    else:
        path.write_bytes({"half": data[: len(data) // 2], "empty": b"", "garbage": os.urandom(5000)}[how])
    found = run.run(cell(), keep=Keep(tmp_path))
    (note,) = found.notes
    assert path.name in note and "was not used" in note and "began anew" in note
    assert (found.status, found.resumed, curve(found)) == ("done", 0, curve(whole))


def test_changed_code_makes_a_new_start(tmp_path, made, monkeypatch):
    source, whole = made
    path = checkpoint_path(tmp_path, source.stem)
    path.parent.mkdir()
    path.write_bytes(source.read_bytes())
    monkeypatch.setattr(checkpoint, "code_id", lambda module: "changed")
    found = run.run(cell(), keep=Keep(tmp_path))
    assert "made by other code" in found.notes[0]
    assert (found.resumed, curve(found)) == (0, curve(whole))


class Bomb:
    def __reduce__(self):
        return (Path.touch, (Path(os.environ["S2A_TEST_BOMB"]),))


def test_nothing_in_a_checkpoint_is_run(tmp_path, monkeypatch):
    monkeypatch.setenv("S2A_TEST_BOMB", str(tmp_path / "exploded"))
    path = tmp_path / "x.pt"
    checkpoint.write(path, IDENTITY, {"a": Bomb()})  # well-formed, its checksum and owner right
    with pytest.raises(checkpoint.Unusable, match="torch cannot load it"):
        checkpoint.read(path, IDENTITY)
    assert not (tmp_path / "exploded").exists()
    pickle.loads(pickle.dumps(Bomb()))
    assert (tmp_path / "exploded").exists(), "the bomb works"


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("every", "epoch_seconds", "write_seconds", "expected"),
    [
        (0.0, 1.0, 0.0, [1, 2, 3, 4, 5, 6]),
        (3.0, 1.0, 0.0, [3, 6]),
        (2.5, 2.0, 0.0, [2, 4, 6]),
        (0.0, 1.0, 0.15, [1, 4]),  # writing takes at most a twentieth of the time: 0.15 s every 3 s
    ],
)
def test_checkpoints_come_by_time_and_never_take_much_of_it(
    tmp_path, monkeypatch, every, epoch_seconds, write_seconds, expected
):
    clock, wrote = Clock(), []
    checkpointer = checkpoint.Checkpointer(Keep(tmp_path, every), make_record(), "cpu", clock)

    def write(path, identity, state):
        wrote.append(len(state["curve"]))
        clock.now += write_seconds

    monkeypatch.setattr(checkpoint, "write", write)
    model = nn.Linear(2, 2)
    optimiser = torch.optim.AdamW(model.parameters())
    for epoch in range(1, 7):
        clock.now += epoch_seconds
        checkpointer.save_epoch(model, optimiser, torch.Generator(), [{"epoch": float(e)} for e in range(1, epoch + 1)])
    assert wrote == expected


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_disk_that_fills_costs_the_checkpoint_but_not_the_cell(tmp_path, monkeypatch, made, call):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        if call == "write":
            patch.setattr(checkpoint, "_header", full)
        elif call == "fsync":
            patch.setattr(os, "fsync", full)
        else:
            patch.setattr(Path, "replace", full)
        found = run.run(cell(), keep=Keep(tmp_path, 0, adapters=False))
    assert (found.status, curve(found)) == ("done", curve(made[1]))
    assert found.notes == ["No checkpoint could be written (No space left on device); training went on without."]
    assert not list((tmp_path / "checkpoints").iterdir())


def test_a_checkpoint_goes_when_it_is_needless_and_only_then(tmp_path):
    def left(**changes):
        path = checkpoint_path(tmp_path, "c0")
        path.parent.mkdir(exist_ok=True)
        path.touch()
        remove_checkpoint(make_record(cell_id="c0", **changes), tmp_path)
        return path.exists()

    error = {"message": "m", "traceback": "t"}
    assert not left()
    assert left(status="failed", error={"type": "WorkerDied", **error})
    assert left(status="failed", error={"type": "OutOfMemory", **error})
    assert not left(status="failed", error={"type": "Diverged", **error})


def test_what_killed_processes_left_is_cleared_and_nothing_else(tmp_path):
    record.write(make_record(cell_id="done"), tmp_path)
    record.write(make_record(cell_id="failed", status="failed"), tmp_path)
    good = [checkpoint_path(tmp_path, "failed"), checkpoint_path(tmp_path, "runs"), adapter_path(tmp_path, "done")]
    good += [tmp_path / f".report.html.{os.getpid()}.tmp", tmp_path / "mine.tmp"]
    dead = 2**22 + 1  # above every process number of Linux
    bad = [checkpoint_path(tmp_path, "done"), tmp_path / "checkpoints" / f".runs.pt.{dead}.tmp"]
    bad += [tmp_path / "records" / f".x.json.{os.getpid()}.tmp", tmp_path / "adapters" / ".done.safetensors.abc"]
    bad += [tmp_path / f".report.md.{dead}.tmp"]
    for path in (*good, *bad):
        path.parent.mkdir(exist_ok=True)
        path.touch()
    clean_up(tmp_path)
    assert [path.exists() for path in good] == [True] * len(good)
    assert [path.exists() for path in bad] == [False] * len(bad)
    assert len(list((tmp_path / "records").iterdir())) == 2


def test_what_a_cell_trained_is_kept_unless_it_is_refused_or_large(tmp_path, monkeypatch):
    found = run.run(cell(), keep=Keep(tmp_path / "default"))
    assert recorded_adapter(found, tmp_path / "default") is not None and found.notes == []
    refused = run.run(cell(), keep=Keep(tmp_path / "refused", adapters=False))
    assert (refused.status, refused.adapter_id, refused.notes) == ("done", "", [])
    assert not (tmp_path / "refused" / "adapters").exists()
    monkeypatch.setattr(run, "ADAPTER_BYTES", 1000)
    large = run.run(cell(), keep=Keep(tmp_path / "large"))
    assert (large.status, large.adapter_id) == ("done", "") and not (tmp_path / "large" / "adapters").exists()
    (note,) = large.notes
    assert "was not kept" in note and "--keep-adapters" in note
    asked = run.run(cell(), keep=Keep(tmp_path / "asked", adapters=True))
    assert recorded_adapter(asked, tmp_path / "asked") is not None and asked.notes == []
    assert found.accuracy == refused.accuracy == large.accuracy == asked.accuracy


@pytest.mark.parametrize("obstacle", ["a full disk", "a file in the folder's place", "a state that no file can hold"])
def test_an_adapter_that_cannot_be_written_costs_no_result(tmp_path, monkeypatch, obstacle):
    import s2a

    def full(adapted, path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    def unable(adapted, path):
        raise NotImplementedError("a quantised tensor")

    if obstacle == "a full disk":
        monkeypatch.setattr(s2a, "save", full)
    elif obstacle == "a state that no file can hold":
        monkeypatch.setattr(s2a, "save", unable)
    else:
        (tmp_path / "adapters").touch()
    found = run.run(cell(), keep=Keep(tmp_path))
    assert (found.status, found.adapter_id) == ("done", "") and found.accuracy is not None
    (note,) = found.notes
    assert "could not be kept" in note and "\n" not in note


@pytest.mark.parametrize("frozen", ["fp32", "bf16"])
def test_an_adapter_gives_the_cells_model_back(tmp_path, frozen):
    import s2a
    from s2a_bench.cells import backbones
    from s2a_bench.cells.scores import accuracy
    from s2a_bench.data import loading as data

    recipe = RECIPE if frozen == "fp32" else dataclasses.replace(RECIPE, frozen="bf16", precision="bf16")
    asked = dataclasses.replace(cell("s2a"), train=recipe)
    found = run.run(asked, keep=Keep(tmp_path, adapters=True))
    path = recorded_adapter(found, tmp_path)
    assert path is not None and path == adapter_path(tmp_path, found.cell_id)
    model, expected = backbones.create(asked.backbone, asked.seed)
    loaded = data.load_data(
        asked.data, size=expected.size, mean=expected.mean, std=expected.std, interpolation=expected.interpolation
    )
    assert accuracy(s2a.load(model, path), loaded.scored, asked.train) == found.accuracy
    path.write_bytes(b"another's")
    assert recorded_adapter(found, tmp_path) is None, "a file that the record does not speak of is not its adapter"
    assert recorded_adapter(make_record(), tmp_path) is None


@pytest.mark.parametrize("seconds", [-1.0, float("nan")])
def test_a_distance_that_is_no_time_is_bad_input(tmp_path, seconds):
    with pytest.raises(InputError, match="--checkpoint-every"):
        Keep(tmp_path, seconds)


def test_records_from_before_are_read(tmp_path):
    path = record.write(make_record(cell_id="old"), tmp_path)
    values = json.loads(path.read_text())
    for name in ("resumed", "notes", "adapter_id"):
        del values[name]
    path.write_text(json.dumps(values))
    found = record.read(path)
    assert (found.resumed, found.notes, found.adapter_id) == (0, [], "")


@given(st.data())
def test_no_part_of_a_record_reads_as_one(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("torn")
    path = record.write(make_record(cell_id="c0"), folder)
    text = path.read_bytes()
    path.write_bytes(text[: data.draw(st.integers(0, len(text) - 2))])
    with pytest.raises(ValueError, match="not a valid record"):
        record.read(path)
