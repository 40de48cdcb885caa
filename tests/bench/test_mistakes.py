"""Mistakes on the command line are named together, and names are known without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from s2a.registry import list_methods
from s2a_bench.cells import run
from s2a_bench.cli.main import main
from s2a_bench.config import BackboneConfig, CellConfig, DataConfig, MethodConfig
from s2a_bench.errors import InputError, InputErrors, Mistakes
from s2a_bench.sweeps.checks import methods
from s2a_bench.sweeps.checks.backbones import check_backbone, timm_names
from s2a_bench.sweeps.checks.cells import identify_all
from s2a_bench.sweeps.checks.devices import check_device_name

HEAVY = ("torch", "timm", "s2a", "ray", "mlflow")
COMMANDS = (
    "sweep memory estimate methods experiments records report track audit finetune predict export pretrain".split()
)


def alone(*arguments: str, folder: Path) -> tuple[int, str, str, list[str]]:
    """Exit code, output, errors and heavy imports of a command in a process of its own."""
    code = (
        "import sys\n"
        "from s2a_bench.cli.main import main\n"
        f"try: code = main({[*arguments]!r})\n"
        "except SystemExit as end: code = end.code\n"
        f"print(code, *({set(HEAVY)!r} & {{*sys.modules}}), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=folder)
    *errors, last = done.stderr.splitlines()
    number, *heavy = last.split()
    return int(number), done.stdout, "\n".join(errors), heavy


def named(capsys, *arguments: str) -> list[str]:
    """The sentences of a command that is refused, one per mistake."""
    assert main([*arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("s2a-bench: ") for line in lines)
    assert len({*lines}) == len(lines), "each mistake once"
    return lines


def test_three_mistakes_are_named_without_torch(tmp_path):
    mistakes = ["--datasets", "digts", "--methods", "s2b", "--set", "train.learning_rate=1"]
    code, _, errors, heavy = alone("sweep", *mistakes, folder=tmp_path)
    assert (code, heavy) == (2, [])
    dataset, method, key = errors.splitlines()
    assert "'digts'" in dataset and "did you mean digits" in dataset
    assert "'s2b'" in method and "did you mean s2a" in method
    assert "'train.learning_rate'" in key and "train.lr" in key
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "arguments",
    [
        ["memory", "--backbone", "mini_vti", "--method", "s2b"],
        ["estimate", "--methods", "s2b", "--experiment", "table9"],
        ["experiments", "--suite", "vtap", "--backbones", "mini_vti"],
        ["methods", "s2b"],
        ["data", "list", "digts", "vtba"],
        ["audit", "--peek", "--output", "nowhere", "--device", "gpu"],
        ["pretrain", "--data", "nowhere", "--backbone", "mini_vti"],
        ["track", "--output", "nowhere", "--tracking-uri", "gopher://x"],
        ["finetune", "nowhere", "--device", "cpu", "--method", "s2b"],
        ["predict", "nowhere", "gone.jpg"],
        ["export", "nowhere", "--to", "m.txt", "--format", "onnx"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_mistakes_of_the_other_commands_too(arguments, tmp_path):
    code, _, errors, heavy = alone(*arguments, folder=tmp_path)
    assert (code, heavy) == (2, [])
    assert len(errors.splitlines()) == (1 if arguments[0] == "methods" else 2)


def test_help_imports_nothing_heavy(tmp_path):
    code = (
        "import contextlib, io, sys\n"
        "from s2a_bench.cli.main import main\n"
        f"for command in {[[], *([each] for each in COMMANDS), ['data', 'prepare']]!r}:\n"
        "    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.suppress(SystemExit):\n"
        "        main([*command, '--help'])\n"
        "    assert 'usage' in out.getvalue().lower(), command\n"
        f"print(sorted({set(HEAVY)!r} & {{*sys.modules}}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]"


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--suite", "vtap"], "'vtap'"),
        (["--experiment", "table9"], "'table9'"),
        (["--experiment", "absent.toml"], "absent.toml"),
        (["--backbones", "mini_vti"], "did you mean mini_vit"),
        (["--backbones", "vit_base_patch16_224.augreg_in22k"], "did you mean"),
        (["--methods", "s2b"], "did you mean s2a"),
        (["--methods", "s2a:lrp_rnk=5"], "did you mean lrp_rank"),
        (["--methods", "s2a:lrp_rank=five"], "s2a: lrp_rank='five'"),
        (["--methods", "s2a:lrp_rank"], "no KEY=VALUE"),
        (["--set", "method.lrp_rnk=5"], "did you mean method.lrp_rank"),
        (["--set", "method.lrp_rank=five"], "method.lrp_rank='five'"),
        (["--set", "trian.lr=1"], "did you mean train"),
        (["--set", "train.lr=fast"], "train.lr='fast'"),
        (["--set", "train.lr=-1"], "learning rates must be above 0"),
        (["--set", "train.lr=1", "train.lr=2"], "train.lr twice"),
        (["--sweep", "train.lr=1,-1"], "learning rates must be above 0"),
        (["--sweep", "method.lrp_rnk=1,2"], "did you mean method.lrp_rank"),
        (["--set", "train.lr=1", "--sweep", "train.lr=1,2"], "--sweep"),
        (["--epochs", "0"], "train.epochs=0"),
        (["--epochs", "3", "--set", "train.epochs=4"], "train.epochs is given twice"),
        (["--batch-size", "0"], "train.batch_size=0"),
        (["--image-size", "0"], "--image-size 0"),
        (["--limit-train", "0"], "limit_train=0"),
        (["--weights", "absent.pth"], "absent.pth"),
        (["--weights", ".", "--random-weights"], "exclude each other"),
        (["--device", "tpu9"], "'tpu9'"),
        (["--max-concurrent", "0"], "--max-concurrent 0"),
        (["--gpu-memory-gb", "80"], "--gpu-memory-gb"),
        (["--ray-address", "nowhere"], "--ray-address"),
        (["--checkpoint-every", "-1"], "--checkpoint-every -1"),
        (["--search", "some"], "--search some"),
        (["--search", "grid", "--search-scheduler", "asha", "--serial"], "--serial"),
        (["--tracking-uri", "gopher://x"], "gopher"),
        (["--output", "file/results"], "--output"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_every_kind_of_mistake_beside_another(capsys, arguments, words):
    Path("file").touch()
    lines = named(capsys, "sweep", "--seeds", "-1", *arguments)
    assert any("Seeds [-1]" in line for line in lines)
    assert [words in line for line in lines].count(True) == 1 and len(lines) <= 3


@pytest.mark.usefixtures("elsewhere")
def test_missing_data_is_one_sentence_beside_other_mistakes(capsys):
    data, method = sorted(named(capsys, "sweep", "--suite", "vtab", "--methods", "s2b"), key=lambda line: "s2b" in line)
    assert "19 of 19 datasets" in data and "caltech101" in data and "data prepare" in data
    assert "s2b" in method


@pytest.mark.usefixtures("elsewhere")
def test_values_that_only_the_methods_know_are_named_together(capsys):
    lines = named(capsys, "sweep", "--datasets", "digits", "--methods", "s2a:bits=5", "lora:rank=-1", "bias")
    assert len(lines) == 2 and "bits=5" in lines[0] and "rank=-1" in lines[1]


@pytest.mark.usefixtures("elsewhere")
def test_methods_that_a_backbone_cannot_take_are_named_together(capsys):
    methods = ["s2a:lrp_rank=5000", "s2a:lsb_reduction=7", "bias"]
    lines = named(capsys, "sweep", "--datasets", "digits", "count", "--random-weights", "--methods", *methods)
    assert len(lines) == 2 and "lrp_rank=5000" in lines[0] and "7" in lines[1]


@pytest.mark.usefixtures("elsewhere")
def test_what_has_to_be_fetched_is_tried_once(monkeypatch):
    tried = []

    def refuse(cell):
        tried.append(cell.backbone.name)
        raise InputError(f"{cell.backbone.name} cannot be had.")

    monkeypatch.setattr(run, "identify", refuse)
    cells = [
        CellConfig(DataConfig(dataset=dataset), BackboneConfig(name), MethodConfig(method), seed=seed)
        for name in ("one", "two")
        for dataset in ("digits", "count")
        for method in ("bias", "s2a")
        for seed in (0, 1)
    ]
    with pytest.raises(InputErrors) as refused:
        identify_all(cells)
    assert refused.value.sentences == ("one cannot be had.", "two cannot be had.")
    assert tried == ["one", "two"]


def test_the_methods_read_from_source_are_those_of_the_registry():
    read = methods.table_from_source()
    assert read.complete and not read.partial
    assert sorted(read.options) == list_methods()
    registered = methods._from_registry().options
    for name, options in registered.items():
        assert list(read.options[name]) == list(options)
        for key, option in options.items():
            assert read.options[name][key] == option, f"{name}.{key}"


def test_with_methods_of_another_package_an_unknown_name_is_passed_on(monkeypatch):
    class Point:
        value = module = "their_methods.all"

    monkeypatch.setattr(methods, "entry_points", lambda group: [Point()])
    table = methods.table_from_source.__wrapped__()
    table.check_name("theirs")  # not refused: only the registry knows
    assert "s2a" in table.options and "bias" not in table.options


def test_a_config_that_cannot_be_read_refuses_no_option(tmp_path, monkeypatch):
    text = (
        "from elsewhere import Base\n"
        "@register_method('odd', OddConfig)\nclass Odd: ...\n"
        "class OddConfig(Base):\n    size: Unheard = make(3)\n    kind: int = 2\n"
    )
    monkeypatch.setattr(methods, "_read", lambda package: [methods._File(text)])
    table = methods.table_from_source.__wrapped__()
    assert table.partial == {"odd"} and table.options["odd"]["kind"] == methods.Option(int, 2)
    table.check_option("odd", "of_the_base")


def test_the_backbones_read_from_source_are_timms():
    names = timm_names()
    assert names is not None
    assert names.models == {*timm.list_models()}
    for name in timm.list_models(pretrained=True):
        check_backbone(BackboneConfig(name))
    for old in names.old:
        assert timm.is_model(old)


@pytest.mark.parametrize("device", ["cpu", "cuda", "cuda:0", "meta", "mps", "gpu", "cuda:", "tpu9", "", "cpu:x"])
def test_devices_are_spelt_as_in_torch(device):
    def known(check) -> bool:
        try:
            check(device)
        except (RuntimeError, InputError):
            return False
        return True

    assert known(check_device_name) == known(torch.device)


def test_mistakes_are_collected_each_once_and_other_errors_pass():
    def refuse(text: str) -> None:
        raise InputError(text)

    mistakes = Mistakes()
    assert mistakes.each(lambda number: number if number else refuse("none"), [1, 0, 2, 0]) == [1, 2]
    with pytest.raises(InputError, match=r"^none$") as only:
        mistakes.raise_all()
    assert not isinstance(only.value, InputErrors)
    with mistakes.collecting():
        raise InputErrors(["none", "more"])
    with pytest.raises(InputErrors) as both:
        mistakes.raise_all()
    assert both.value.sentences == ("none", "more")
    with pytest.raises(KeyError), mistakes.collecting():
        raise KeyError("a fault")
    with pytest.raises(ValueError, match="a fault"), mistakes.collecting():
        raise ValueError("a fault")
