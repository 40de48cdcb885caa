"""Options that can have no effect are refused, each in a sentence that names it; elsewhere the same ones are taken."""

from __future__ import annotations

import shlex
from importlib.util import find_spec
from pathlib import Path

import pytest
from bench.command_line import refused
from bench.factories import make_record
from s2a.registry import get_entry, list_methods
from s2a_bench.cells import record
from s2a_bench.cli.main import main
from s2a_bench.errors import InputError
from s2a_bench.sweeps import resources
from s2a_bench.sweeps.checks import methods
from s2a_bench.sweeps.resources import ResourceRequest

pytestmark = pytest.mark.usefixtures("elsewhere")

BAD = {
    "--data-dir D": "--data-dir",
    "--data-dir D --datasets digits count": "--data-dir",
    "--limit-train 1001": "--limit-train 1001",
    "--limit-test 100000": "--limit-test 100000",
    "--experiment table3 --methods bias --backbones mini_vit": "--experiment table3",
    "--serial --max-concurrent 2": "--max-concurrent with --serial",
    "--device cuda --serial --gpu-memory-gb 80": "--gpu-memory-gb with --serial",
    "--search-scheduler asha": "--search-scheduler asha",
    "--search 2 --evaluate val --keep-adapters": "--keep-adapters",
    "--search 2 --evaluate select": "--evaluate select does not go with --search",
    "--set train.patience=3": "train.patience has no effect with --evaluate test",
    "--evaluate val --sweep train.patience=0,3": "train.patience has no effect with --evaluate val",
    "--no-feature-cache --methods bias s2a": "--no-feature-cache",
    "--no-feature-cache --experiment table3": "--no-feature-cache",
    "--methods s2a:bits=8 --set method.bits=4": "method.bits",
    "--methods s2a:bits=8 bias --sweep method.bits=4,8": "method.bits",
    "--methods linear lst --set train.checkpointing=true": "train.checkpointing",
    "--methods linear --set train.drop_path=0.1": "train.drop_path",
    "--methods linear --set train.lr=0.1 train.head_lr=0.2": "train.lr",
    "--methods linear --sweep train.lr=0.1,0.2 --set train.head_lr=0.2": "train.lr",
    "--methods full --set train.frozen=bf16 train.precision=bf16": "train.frozen",
    "--methods full --set train.frozen=paged": "train.frozen",
}

GOOD = [
    "--limit-train 1000 --limit-test 1000",
    "--datasets digits count --limit-test 1000",
    "--experiment table3 --methods bias",
    "--experiment table3 --backbones mini_vit",
    "--search grid --seeds 0 1",
    "--search grid --evaluate val --seeds 0 1",
    "--search grid --evaluate val --no-keep-adapters",
    "--search grid --keep-adapters",
    "--evaluate val --keep-adapters",
    "--evaluate select --set train.patience=3 train.balance=true",
    "--set train.patience=0",
    "--no-feature-cache --methods bias linear",
    "--no-feature-cache",
    "--methods s2a:bits=8 s2a --set method.bits=2",
    "--methods s2a --sweep method.bits=4,8",
    "--methods linear bias --set train.checkpointing=true train.drop_path=0.1",
    "--methods linear --set train.lr=0.1",
    "--methods linear bias --set train.lr=0.1 train.head_lr=0.2",
    "--methods linear --set train.checkpointing=false train.drop_path=0",
    "--methods full bias --set train.frozen=bf16 train.precision=bf16",
    "--serial --dry-run --keep-adapters",
    "--set train.epochs=2 --epochs 2",
]


@pytest.mark.parametrize(("line", "words"), BAD.items())
def test_an_option_that_can_have_no_effect_is_refused_alone(capsys, line, words):
    sentence = refused(capsys, "sweep", *shlex.split(line))
    assert words in sentence
    assert not list(Path().iterdir())


@pytest.fixture
def stopped(monkeypatch):
    """A sweep that stops where it would begin; its arguments have been accepted then."""

    class Begun(Exception):
        pass

    def begin(*_):
        raise Begun

    monkeypatch.setattr("s2a_bench.cli.sweep._sweep", begin)
    monkeypatch.setattr("s2a_bench.cli.sweep._preview", begin)
    return Begun


@pytest.mark.parametrize("line", GOOD)
def test_options_that_have_one_are_taken(stopped, line):
    with pytest.raises(stopped):
        main(["sweep", *shlex.split(line)])


def test_a_folder_serves_whichever_dataset_is_not_embedded(capsys):
    """With data that are read from disk the folder is looked into: the sentence is another one."""
    assert "data prepare" in refused(capsys, "sweep", "--suite", "cifar", "--data-dir", "D", "--methods", "bias")


def test_augmented_images_have_no_features_to_cache(capsys):
    line = "--suite cifar --data-dir D --methods linear --no-feature-cache"
    assert main(["sweep", *shlex.split(line)]) == 2
    assert "--no-feature-cache has no effect" in capsys.readouterr().err


def test_without_ray_nothing_runs_side_by_side(monkeypatch):
    monkeypatch.setattr(resources, "find_spec", lambda name: None)
    for request in (ResourceRequest(max_concurrent=2), ResourceRequest(gpu_memory_gb=80)):
        with pytest.raises(InputError, match="Ray is not installed"):
            request.check("cuda")
    ResourceRequest(max_concurrent=1).check("cpu")
    ResourceRequest().check("cpu")


@pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed")
def test_with_ray_they_are_taken():
    ResourceRequest(max_concurrent=2).check("cpu")
    ResourceRequest(max_concurrent=2, gpu_memory_gb=80).check("cuda")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("experiments --data-dir D", "--data-dir"),
        ("experiments --limit-train 5000", "--limit-train 5000"),
        ("memory --paper --method bias", "--method"),
        ("memory --paper --backbone mini_swin --set method.bits=8", "--backbone and --set"),
        ("memory --paper --device cuda", "--device"),
        ("memory --method linear --set train.checkpointing=true", "train.checkpointing"),
        ("memory --method s2a:bits=8 --set method.bits=4", "method.bits"),
        ("estimate --experiment table2 --methods bias --backbones mini_vit", "--experiment table2"),
        ("pretrain --data . --backbone mini_swin --patch-drop 0.3", "--patch-drop 0.3"),
        ("pretrain --data . --epochs 3 --patch-drop 0.3", "--patch-drop 0.3"),
    ],
)
def test_the_other_commands_refuse_them_too(capsys, line, words):
    assert words in refused(capsys, *shlex.split(line))


def test_an_audit_refuses_what_its_records_do_not_heed(capsys):
    record.write(make_record(suite="mini", dataset="digits", search=None), Path("results").absolute())
    assert main(["audit", "--peek", "--data-dir", ".", "--skip-trials"]) == 2
    folder, trials = capsys.readouterr().err.splitlines()
    assert "--data-dir . has no effect" in folder and "--skip-trials has no effect" in trials


def test_an_estimate_from_records_measures_nothing(capsys):
    record.write(make_record(), Path("results").absolute())
    assert main(["estimate", "--records", "results", "--seconds", "1"]) == 2
    assert "--seconds 1 has no effect" in capsys.readouterr().err


def test_the_python_function_refuses_them_as_the_command_does():
    from s2a_bench import sweep

    with pytest.raises(InputError, match=r"--data-dir .* has no effect"):
        sweep(data_dir="D", methods="bias")


def test_what_is_read_from_source_of_the_methods_is_what_their_classes_say():
    table = methods.table_from_source()
    entries = {name: get_entry(name).method for name in list_methods()}
    assert table.fixed_features == {name for name, method in entries.items() if method.fixed_features} != set()
    assert table.frozen_backbone == {name for name, method in entries.items() if not method.trains_backbone}
    assert methods._from_registry().fixed_features == table.fixed_features
    assert methods._from_registry().frozen_backbone == table.frozen_backbone
