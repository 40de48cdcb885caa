"""``s2a-bench export`` and ``s2a_bench.export`` from their arguments to a file that other programs load."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import s2a
import s2a_bench
import timm
import torch
from bench.adapters import LABELS, MEAN, write_adapter
from bench.small_folders import picture
from s2a.exporting.export import SUFFIXES
from s2a_bench.cells import embedded
from s2a_bench.cli.main import main
from s2a_bench.inference import checks

pytestmark = pytest.mark.usefixtures("elsewhere")


def pictures(folder: str, count: int) -> None:
    Path(folder).mkdir()
    for number in range(count):
        picture(number, 40, 50).save(Path(folder, f"{number}.png"))


def test_a_merged_adapter_becomes_a_timm_model(capsys):
    adapted = write_adapter(Path("out/adapter"), "lora", rank=4)
    pictures("in", 20)
    assert main(["export", "out", "--to", "model", "--images", "in", "--json"]) == 0
    row = json.loads(capsys.readouterr().out)
    assert row["format"] == "timm" and row["images"] == 16 and row["image_source"] == "given"
    assert row["largest_difference"] <= row["tolerance"]
    model: Any = timm.create_model("local-dir:model", pretrained=True).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(images), adapted(images), rtol=1e-4, atol=1e-4)
    assert model.pretrained_cfg["label_names"] == LABELS and tuple(model.pretrained_cfg["mean"]) == MEAN


@pytest.mark.compile
def test_a_method_that_does_not_merge_is_exported_whole(capsys):
    adapted = write_adapter(Path("adapter"), "s2a", activations="lean")
    assert main(["export", "adapter", "--to", "model"]) == 2
    assert "'onnx' or 'torch'" in capsys.readouterr().err and not Path("model").exists()
    report = s2a_bench.export("adapter", "m.pt2", "torch")
    assert report == s2a.ExportReport(Path("m.pt2").absolute(), report.largest_difference, 8, True, "torch")
    images = torch.randn(5, 3, 32, 32)
    with torch.no_grad():
        found = torch.export.load("m.pt2").module()(images)
        torch.testing.assert_close(found, adapted(images), rtol=1e-4, atol=1e-4)


def test_rendered_images_are_said_to_be_rendered(capsys):
    write_adapter(Path("adapter"), "bias")
    assert main(["export", "adapter", "--to", "model.safetensors"]) == 0
    out = capsys.readouterr().out
    assert "8 rendered images" in out and "--images DIR" in out


def test_all_mistakes_are_said_at_once(capsys):
    arguments = ["--to", "no/m.txt", "--format", "onnx", "--images", "gone", "--weights", "gone.pth"]
    assert main(["export", "nothing", *arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    words = ["no folder nothing", "must end in .onnx", "No weights file at", "no file or folder gone"]
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))
    with pytest.raises(s2a_bench.InputError, match="choose one of timm, onnx, torch"):
        checks.check_export_path(Path("m"), "tf")
    with pytest.raises(s2a_bench.InputError, match="does not exist; create it"):
        checks.check_export_path(Path("no/m"), "timm")


def test_images_that_cannot_be_read_are_no_comparison(capsys):
    write_adapter(Path("adapter"), "bias")
    Path("bad.png").write_bytes(b"x")
    assert main(["export", "adapter", "--to", "model", "--images", "bad.png"]) == 2
    assert "None of the images can be read" in capsys.readouterr().err and not Path("model").exists()
    pictures("in", 1)
    assert main(["export", "adapter", "--to", "model", "--images", "bad.png", "in", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["images"] == 1


def test_suffixes_are_those_of_the_library():
    assert checks.SUFFIXES == SUFFIXES


@pytest.mark.parametrize("name", ["mini_vit", "mini_swin", "mini_convnext"])
def test_a_mini_backbone_becomes_a_model_that_timm_knows(name):
    """Timm does not know it by its own name; the exported config has the name and the sizes of timm's class."""
    adapted = s2a.attach(getattr(embedded, name)(), s2a.method_config("bias"), 7).eval()
    with torch.no_grad():
        for parameter in s2a.trainable_parameters(adapted).values():
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    s2a.export(adapted, "model")
    model: Any = timm.create_model("local-dir:model", pretrained=True).eval()
    images = torch.randn(3, 3, *adapted.image_size)
    with torch.no_grad():
        torch.testing.assert_close(model(images), adapted(images), rtol=1e-4, atol=1e-4)
    assert tuple(model.pretrained_cfg["input_size"]) == (3, *adapted.image_size)
