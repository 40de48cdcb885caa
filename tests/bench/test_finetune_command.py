"""``s2a-bench finetune``: what it refuses, prints and returns, and what it chooses where nothing is said."""

from __future__ import annotations

import dataclasses
import io
import json
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import s2a_bench
import torch
from bench.factories import make_record
from bench.finetune_data import register_mini_backbones, write_classes, write_results
from bench.own_folders import picture, write_own
from rich.console import Console
from s2a_bench.cells.mini_backbones import MINI_BACKBONES
from s2a_bench.cells.record import write
from s2a_bench.cli.finetune import FinetuneConsole
from s2a_bench.cli.main import main
from s2a_bench.config import CellConfig, DataConfig, TrainConfig
from s2a_bench.errors import InputError
from s2a_bench.finetuning import choose, default_backbones, prepare, results
from s2a_bench.finetuning.remembered import Remembered
from s2a_bench.finetuning.request import FinetuneRequest
from s2a_bench.reports.build import build
from s2a_bench.sweeps.plan import Plan
from s2a_bench.tracking import store
from s2a_bench.tracking.store import NotInstalled

FAST = ("--backbone", "mini_vit", "--epochs", "1", "--device", "cpu")


@pytest.fixture
def without_mlflow(monkeypatch, tmp_path):
    register_mini_backbones(tmp_path / "installed")

    def refuse() -> None:
        raise NotInstalled("MLflow is not installed")

    monkeypatch.setattr(store, "check_installed", refuse)


def refused(capsys, folder: Path, *arguments: str) -> list[str]:
    """The sentences of a command that is refused; nothing may be written."""
    before = sorted(folder.rglob("*"))
    assert main(["finetune", *arguments]) == 2
    assert sorted(folder.rglob("*")) == before
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("s2a-bench: ") for line in lines)
    return [line.removeprefix("s2a-bench: ") for line in lines]


def test_all_mistakes_are_told_at_once_and_nothing_is_written(capsys, tmp_path):
    (tmp_path / "file").write_text("")
    arguments = [str(tmp_path / "nowhere"), "--output", str(tmp_path / "file"), "--backbone", "mini_vitt"]
    arguments += ["--method", "s3a", "--lr=-1", "--val", "0", "--device", "cuda:99", "--weights", str(tmp_path / "w")]
    arguments += ["--set", "train.foo=3", "--memory-budget", "8", "--patience=-1", "--seed=-1", "--image-size", "0"]
    said = refused(capsys, tmp_path, *arguments)
    wanted = ["no file or folder", "is a file", "mini_vitt", "s3a", "--lr -1", "--val 0", "cuda:99", "No weights file"]
    wanted += ["train.foo", "--memory-budget", "--patience", "--seed", "--image-size 0"]
    for words in wanted:
        assert sum(words in line for line in said) == 1, words
    assert len(said) == len(wanted)


def test_numbers_and_paths_that_are_none_are_told_with_the_rest(capsys, tmp_path):
    said = refused(capsys, tmp_path, "", "--output", f"{tmp_path}/a\0b", "--lr", "nan", "--val", "nan", "--epochs", "0")
    for words in ("folder ''", "zero byte", "--lr nan", "--val nan", "epochs=0"):
        assert sum(words in line for line in said) == 1, words
    with pytest.raises(InputError) as caught:
        s2a_bench.finetune(b"photos", output=4, epochs="5", weights=1.5, lr=float("inf"))  # pyright: ignore[reportArgumentType]
    for words in ("data=b'photos'", "output=4", "epochs='5'", "weights=1.5", "--lr inf"):
        assert sum(words in line for line in str(caught.value).splitlines()) == 1, words


def test_an_image_size_beyond_memory(capsys, tmp_path):
    raw = write_own(tmp_path, "leaves")
    said = refused(capsys, tmp_path, str(raw), "--output", str(tmp_path / "o"), *FAST, "--image-size", "1000000")
    assert len(said) == 1 and "mini_vit at 1000000 pixels" in said[0] and "--image-size" in said[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--lr", "fast"), "--lr 'fast'"),
        (("--epochs", "3", "--set", "train.epochs=4"), "train.epochs is given twice"),
        (("--lr", "find", "--set", "train.lr=0.1"), "exclude each other"),
        (("--val", "0.6", "--test", "0.5"), "leave no training images"),
        (("--method", "s2a:lrp_rank=-4"), "lrp_rank"),
        (("--augment", "wild"), "augment"),
    ],
)
def test_options_that_do_not_fit(arguments, words, capsys, tmp_path):
    write_own(tmp_path, "leaves")
    output = str(tmp_path / "out")
    said = refused(capsys, tmp_path, str(tmp_path / "leaves"), "--output", output, "--backbone", "mini_vit", *arguments)
    assert len(said) == 1 and words in said[0]


def test_data_that_do_not_do(capsys, tmp_path):
    raw, no_val = write_classes(tmp_path / "raw", 13), write_own(tmp_path, "noval", {"train": 8, "val": 0, "test": 4})
    for arguments, words in (
        ((str(raw), "--output", str(raw / "out")), "lies in the folder of images"),
        ((str(write_classes(tmp_path / "few", 3)), "--output", str(tmp_path / "o")), "4"),
        ((str(write_classes(tmp_path / "one", 9, ("a",))), "--output", str(tmp_path / "o")), "class"),
        (
            (str(no_val), "--output", str(tmp_path / "o")),
            "val",
        ),
        (("nothere", "--data-dir", str(tmp_path), "--output", str(tmp_path / "o")), "nothere"),
    ):
        said = refused(capsys, tmp_path, *arguments, *FAST)
        assert any(words in line for line in said), said


def test_how_images_are_prepared_has_no_effect_on_prepared_ones(capsys, tmp_path):
    ready = write_own(tmp_path, "leaves")
    arguments = ("--test", "0", "--label-column", "kind", "--no-near-duplicates", "--skip-unreadable")
    (said,) = refused(capsys, tmp_path, str(ready), "--output", str(tmp_path / "o"), *FAST, *arguments)
    assert said.startswith("--test, --label-column, --no-near-duplicates, --skip-unreadable: ")


def test_a_fine_tuning_and_a_sweep_do_not_write_over_each_other(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "load", lambda *_: pytest.fail("said without a look at anything large"))
    images, tuned, swept, cells = (tmp_path / name for name in ("raw", "tuned", "swept", "cells"))
    write_classes(images)
    results.install(tuned, "one", write_results("one"))
    write(make_record(suite="own", evaluated_on="select", best_epoch=1, val_accuracy=50.0), tuned)
    for folder in (swept, cells):
        write(make_record(), folder)
    build(swept)
    for arguments in (["report"], ["sweep", "--datasets", "digits", "--methods", "bias", "--random-weights"]):
        before = {path: path.stat().st_mtime_ns for path in tuned.rglob("*")}
        assert main([*arguments, "--output", str(tuned)]) == 2
        said = capsys.readouterr().err
        assert f"{tuned} holds a fine-tuning" in said and "--output" in said and said.count("\n") == 1
        assert {path: path.stat().st_mtime_ns for path in tuned.rglob("*")} == before
    with pytest.raises(InputError, match="holds a fine-tuning"):
        s2a_bench.report(tuned)
    with pytest.raises(InputError, match="holds a fine-tuning"):
        s2a_bench.sweep(datasets="digits", methods="bias", random_weights=True, output=tuned)
    for folder in (swept, cells):
        (said,) = refused(capsys, tmp_path, str(images), "--output", str(folder), *FAST)
        assert said.startswith(f"{folder} holds ") and "of a sweep" in said and "--output" in said
        with pytest.raises(InputError, match="of a sweep"):
            s2a_bench.finetune(images, output=folder)


def test_weights_of_another_architecture(capsys, tmp_path):
    from s2a_bench.assets import data_file

    raw = write_own(tmp_path, "leaves")
    file = str(data_file("backbones/mini_swin.safetensors"))
    said = refused(capsys, tmp_path, str(raw), "--output", str(tmp_path / "o"), *FAST, "--weights", file)
    assert len(said) == 1 and "mini_vit" in said[0] and "mini_swin.safetensors" in said[0]
    assert "it lacks cls_token, pos_embed" in said[0] and "name the backbone" in said[0]


def test_the_last_lines_say_where_everything_is(capsys, tmp_path, without_mlflow):
    write_own(tmp_path, "leaves")
    output = tmp_path / "my output"
    arguments = ["finetune", "leaves", "--data-dir", str(tmp_path), "--output", str(output), *FAST]
    assert main(arguments) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("epoch 1/1 ") for line in lines) == 1
    assert lines[-1] == f"Next: s2a-bench predict {shlex.quote(str(output / 'adapter'))} photo.jpg"
    for line in (f"Adapter: {output / 'adapter'}", f"Report: {output / 'report.html'}"):
        assert line in lines
    assert not (output / "data").exists(), "a prepared folder is used where it lies"
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert "trained before" in again and "epoch 1/1" not in again


@pytest.mark.parametrize("terminal", [False, True])
def test_epochs_are_shown_with_the_best_so_far_and_the_time_left(terminal):
    told = io.StringIO()
    console = Console(file=told, force_terminal=terminal, width=100)
    cell = CellConfig(data=DataConfig("own", "leaves", evaluate="select"), train=TrainConfig(epochs=3, warmup_epochs=0))
    curve = [(0.9, 50.0, 1.0, 125.0), (0.5, 75.0, 0.8, 60.0), (0.4, 75.0, 0.9, 0.0)]
    with FinetuneConsole(console) as listener:
        listener.progress("looking at the images", 5, 5)
        listener.planned(Plan({"c": cell}, frozenset(), frozenset(), ()))
        listener.started("c")
        for epoch, (loss, val, val_loss, left) in enumerate(curve, start=1):
            metrics = {"epoch": epoch, "loss": loss, "val_accuracy": val, "val_loss": val_loss, "eta_seconds": left}
            listener.epoch("c", metrics)
        listener.finished(None)
    text = told.getvalue()
    assert ("\x1b" in text) == terminal, "a file gets no control characters"
    assert "epoch 1/3  loss 0.9000  val 50.0 %  best 50.0 % (epoch 1)" in text
    assert "epoch 3/3  loss 0.4000  val 75.0 %  best 75.0 % (epoch 2)" in text, "of equals that of the lower loss"
    assert "about 2:05 left" in text


# What is chosen


@pytest.mark.parametrize("images", [1, 7, 40, 255, 256, 900, 5_000, 1_000_000])
def test_epochs_and_batch_follow_the_number_of_images(images):
    epochs, batch = choose.epochs_for(images), choose.batch_for(images)
    assert choose.FEWEST_EPOCHS <= epochs <= choose.MOST_EPOCHS
    assert choose.epochs_for(images + 1) <= epochs
    assert batch in (8, 16, 32)
    assert batch == 8 or images // batch >= 8
    if choose.FEWEST_EPOCHS < epochs < choose.MOST_EPOCHS:
        assert epochs * images >= choose.SEEN_IMAGES > (epochs - 1) * images


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("vit_small_patch14_dinov2.lvd142m", 224),  # trained at 518
        ("vit_base_patch16_384.augreg_in21k_ft_in1k", 224),
        ("vit_tiny_patch16_224.augreg_in21k_ft_in1k", None),
        ("swin_base_patch4_window12_384.ms_in22k", None),  # its windows are made for 384
        ("mini_vit", None),
        ("test_vit.r160_in1k", None),  # trained at 160
    ],
)
def test_images_are_of_224_pixels_or_of_the_checkpoint_s_smaller_size(name, size):
    assert default_backbones.image_size(name, None) == size
    assert default_backbones.image_size(name, 96) == 96


def test_default_backbones_are_models_with_weights_and_a_licence():
    import timm

    for name in {name for names in default_backbones.DEFAULT_BACKBONES.values() for name in names}:
        config = timm.get_pretrained_cfg(name)
        assert config is not None and config.hf_hub_id and config.license == "apache-2.0"
    assert default_backbones.OFFLINE_BACKBONE in MINI_BACKBONES


def test_a_weights_file_may_name_its_backbone():
    assert (
        default_backbones._architecture_of(Path("/w/vit_small_patch14_dinov2.fp16.safetensors"))
        == "vit_small_patch14_dinov2"
    )
    with pytest.raises(InputError, match="--backbone"):
        default_backbones._architecture_of(Path("/w/best.pth"))


def test_what_was_chosen_is_remembered_for_this_cell_wherever_it_lies(tmp_path):
    cell, moved = (CellConfig(data=DataConfig("own", "leaves", root=root)) for root in ("/a", "/b"))
    other = CellConfig(data=DataConfig("own", "leaves", root="/a"), seed=1)
    before = Remembered(tmp_path)
    key = before.key("fit", cell, "data", "8GiB")
    assert key == before.key("fit", moved, "data", "8GiB")
    assert len({key, before.key("fit", other, "data", "8GiB"), before.key("fit", cell, "data", "9GiB")}) == 3
    before.put(key, {"batch": 4})
    before.save(tmp_path)
    assert Remembered(tmp_path).get(key) == {"batch": 4}
    (tmp_path / "choices.json").write_text("{")
    assert Remembered(tmp_path).get(key) is None


def test_names_of_datasets_are_made_of_what_was_given():
    for given, name in (
        ("/x/Flowers 102", "Flowers-102"),
        ("/x/leaves.csv", "leaves"),
        ("/x/leaves.tar.gz", "leaves"),
        ("/x/caltech101", "own-caltech101"),
        ("/x/VTAB", "own-VTAB"),
        ("/x/日本", "images"),
        ("/x/" + "a" * 200, "a" * 56),
    ):
        assert prepare.dataset_name(Path(given)) == name


def test_data_are_the_same_again_where_all_that_prepares_them_is(tmp_path):
    lines = ["path,label,other"]
    for i in range(20):
        picture(i % 2, i).save(tmp_path / f"{i}.png")
        lines.append(f"{i}.png,{i % 2},{(i + 1) % 2}")
    (tmp_path / "t.csv").write_text("\n".join(lines))
    request = FinetuneRequest(str(tmp_path / "t.csv"), tmp_path / "out")

    def prepared(request: FinetuneRequest) -> prepare.PreparedData:
        with prepare.staging(request.output) as stage:
            return prepare.prepare(request, stage, lambda *_: None)

    with prepare.staging(request.output) as stage:
        first = prepare.install(prepare.prepare(request, stage, lambda *_: None), request.output)
    assert prepared(request) == first
    for changes in (
        {"label_column": "other"},
        {"path_column": "path"},
        {"near_duplicates": False},
        {"skip_unreadable": True},
        {"test": 0.2},
        {"seed": 1},
    ):
        found = prepared(dataclasses.replace(request, **changes))
        assert found.staged and found.stamp != first.stamp, changes


def test_temporary_folders_of_dead_processes_go(tmp_path):
    dead, living = (tmp_path / f".out.{process}.preparing" for process in (2**22 + 5, 1))
    for folder in (dead, living):
        (folder / "data").mkdir(parents=True)
    with prepare.staging(tmp_path / "out") as stage:
        assert stage.is_dir() and not dead.exists() and living.exists()
    assert not stage.exists() and not (tmp_path / "out").exists()


def test_the_request_s_defaults_are_those_of_the_function():
    import inspect

    import s2a_bench

    taken = inspect.signature(s2a_bench.finetune).parameters
    for name, field in FinetuneRequest.__dataclass_fields__.items():
        if name not in ("data", "output", "settings"):
            assert taken[name].default == field.default, name
    assert json.dumps(taken["output"].default) == '"finetuned"'


def test_a_budget_decides_batch_and_plan_once_and_not_against_a_batch_that_was_asked_for(tmp_path, monkeypatch):
    asked = []

    def fake(cell, budget, classes):
        asked.append(budget)
        assert classes == 3
        return 16, {**cell.method.options, "peak_budget": "1GiB"}

    monkeypatch.setitem(sys.modules, "s2a_bench.cells.fits", SimpleNamespace(choose=fake))
    cell = CellConfig(data=DataConfig("own", "leaves"), train=TrainConfig(batch_size=32))
    data: Any = SimpleNamespace(manifest=SimpleNamespace(data_id="d", classes=("a", "b", "c")))
    request = FinetuneRequest(data="d", output=tmp_path, memory_budget="1GiB")
    remembered = Remembered(tmp_path)
    fitted, words, notes = choose._fit_memory(request, cell, data, remembered)
    assert (fitted.train.batch_size, fitted.method.options["peak_budget"], words) == (16, "1GiB", "1GiB")
    assert asked == [2**30] and len(notes) == 2 and "batch is 16 instead of 32" in notes[0]
    remembered.save(tmp_path)
    assert choose._fit_memory(request, cell, data, Remembered(tmp_path)) == (fitted, words, notes)
    assert len(asked) == 1, "the same command takes what it chose"
    strict = FinetuneRequest(data="d", output=tmp_path, memory_budget="1GiB", batch_size=32)
    with pytest.raises(InputError, match="the largest batch that does is 16"):
        choose._fit_memory(strict, cell, data, remembered)
    free = FinetuneRequest(data="d", output=tmp_path)
    assert choose._fit_memory(free, cell, data, remembered) == (cell, None, ())
