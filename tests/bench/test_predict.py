"""``s2a-bench predict`` and ``s2a_bench.predict``: pictures in, names and probabilities out."""

from __future__ import annotations

import csv
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import s2a
import s2a_bench
import torch
from bench.adapters import LABELS, MEAN, SIDE, STD, write_adapter
from bench.command_line import refused
from bench.small_folders import picture
from PIL import Image
from s2a_bench.cli import predict as predict_command
from s2a_bench.cli.main import main
from s2a_bench.errors import InputError
from s2a_bench.inference import predict as predicting

pytestmark = pytest.mark.usefixtures("elsewhere")
NAMES = ["a.png", "b/🦊.png", "b/two\nlines.png", "-x.png", "z\udcff.png"]


@pytest.fixture
def adapted(tmp_path) -> Any:
    """An adapter in ``out/adapter``, as ``finetune`` leaves it, and pictures of several sizes in ``in``."""
    for number, name in enumerate(NAMES):
        path = Path("in", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        picture(number, 37 + number, 52 - 5 * number).save(path)
    return write_adapter(Path("out/adapter"))


def by_hand(adapted: Any, path: Path) -> list[float]:
    """Probabilities of one image, by numpy and Pillow alone up to the model."""
    image = Image.open(path).convert("RGB")
    short, (width, height) = round(SIDE * 8 / 7), image.size
    shape = (short, int(short * height / width)) if width <= height else (int(short * width / height), short)
    pixels = np.asarray(image.resize(shape, Image.Resampling.BILINEAR), np.float64) / 255
    top, left = round((shape[1] - SIDE) / 2), round((shape[0] - SIDE) / 2)
    cut = (pixels[top : top + SIDE, left : left + SIDE] - np.array(MEAN)) / np.array(STD)
    with torch.no_grad():
        logits = adapted(torch.from_numpy(cut.transpose(2, 0, 1)[None]).float())[0].double().numpy()
    shares = np.exp(logits - logits.max())
    return list(shares / shares.sum())


def test_predictions_are_those_of_the_model(adapted):
    """Whatever the batches are; the images in order, the classes by their probability."""
    told: list[tuple[int, int]] = []
    for batch_size in (1, 2, 32):
        told.clear()
        found = s2a_bench.predict(
            "out", "in", top=3, batch_size=batch_size, progress=lambda done, total: told.append((done, total))
        )
        assert [each.path for each in found] == sorted(f"in/{name}" for name in NAMES)
        assert told[-1] == (5, 5) and len(told) == -(-5 // batch_size)
        for each in found:
            shares = by_hand(adapted, Path(each.path))
            order = sorted(range(5), key=lambda index: -shares[index])[:3]
            assert [label for label, _ in each.top] == [LABELS[index] for index in order]
            assert [p for _, p in each.top] == pytest.approx([shares[index] for index in order], abs=1e-5)
            assert (each.label, each.probability) == each.top[0] and each.error is None


def test_a_photo_is_turned_upright(adapted):
    image, exif = picture(7, 40, 60), Image.Exif()
    exif[0x0112] = 6  # The camera was turned: a viewer rotates by 90 degrees.
    image.save("in/upright.png")
    for name in ("turned.png", "turned.tiff"):
        image.transpose(Image.Transpose.ROTATE_90).save(f"in/{name}", exif=exif)
        turned, upright = s2a_bench.predict("out", [f"in/{name}", "in/upright.png"])
        assert turned.top == upright.top


def test_json_is_a_list_of_predictions(adapted, capsys):
    assert main(["predict", "out", "in", "--json", "--top", "2"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert all(row.keys() == {"path", "label", "probability", "top"} for row in rows)
    assert [os.fsencode(row["path"]) for row in rows] == sorted(os.fsencode(f"in/{name}") for name in NAMES)
    assert rows == [
        {"path": each.path, "label": each.label, "probability": each.probability, "top": [list(p) for p in each.top]}
        for each in s2a_bench.predict("out", "in", top=2)
    ]


def test_bad_images_are_named_and_skipped(adapted, capsys):
    Path("in/bad.jpg").write_bytes(b"no image")
    Path("in/line.png").write_bytes(b"")
    Image.new("I;16", (20, 20)).save("in/deep.png")
    assert main(["predict", "out", "in", "--json"]) == 1
    out, err = capsys.readouterr()
    assert len(json.loads(out)) == 5
    assert all(word in err for word in ("in/bad.jpg", "in/line.png", "in/deep.png", "3 of 8 images"))
    found = {each.path: each for each in s2a_bench.predict("out", "in")}
    bad = found["in/bad.jpg"]
    assert (bad.label, bad.probability, bad.top) == (None, None, []) and "cannot be decoded" in str(bad.error)
    Path("only").mkdir()
    Path("only/bad.jpg").write_bytes(b"no image")
    assert main(["predict", "out", "only", "--json"]) == 1
    assert json.loads(capsys.readouterr().out) == []


def test_a_narrow_image_does_not_fill_memory(adapted):
    Image.new("RGB", (2, 200_000)).save("in/thin.png")
    (found,) = s2a_bench.predict("out", "in/thin.png")
    assert "too narrow" in str(found.error)


def test_the_table_shows_every_name_on_the_terminal(adapted, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["predict", "out/adapter", "in", "--top", "2"]) == 0
    out = capsys.readouterr().out
    for name in ("in/a.png", "in/b/🦊.png", "in/b/two\\nlines.png", "in/-x.png", "in/z\\udcff.png"):
        assert name in out
    assert any(label in out for label in LABELS)


def test_csv_holds_names_of_any_form(adapted, capsys):
    """Read back by the csv module, with the bytes of the names."""
    assert main(["predict", "out", "in", "--csv", "new/p.csv", "--top", "2"]) == 0
    assert "new/p.csv" in capsys.readouterr().out
    text = Path("new/p.csv").read_bytes().decode("utf-8", "surrogateescape")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    wanted = s2a_bench.predict("out", "in", top=2)
    assert [(row["path"], row["label"], float(row["probability"])) for row in rows] == [
        (each.path, each.label, each.probability) for each in wanted
    ]
    assert [(row["label_2"], float(row["probability_2"])) for row in rows] == [each.top[1] for each in wanted]
    assert [path.name for path in Path("new").iterdir()] == ["p.csv"]


def test_names_come_from_standard_input(adapted, capsys, monkeypatch):
    data = b"in/b/two\nlines.png\0in/a.png\0in/gone.png\0"
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(data)))
    assert main(["predict", "out", "-", "--null", "--json"]) == 1
    out, err = capsys.readouterr()
    assert [row["path"] for row in json.loads(out)] == ["in/b/two\nlines.png", "in/a.png"]
    assert "in/gone.png" in err
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"")))
    assert "There are no images" in refused_here(capsys, "predict", "out", "-")


def test_a_name_with_a_dash_follows_two_dashes(adapted, capsys):
    os.chdir("in")
    assert main(["predict", "--json", "../out", "--", "-x.png"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["path"] == "-x.png"


def refused_here(capsys, *arguments: str) -> str:
    """As ``refused``, where an adapter's files are about."""
    assert main([*arguments]) == 2
    out, err = capsys.readouterr()
    assert not out
    return err


def test_all_mistakes_are_said_before_torch_does_anything(capsys, monkeypatch):
    monkeypatch.setattr(s2a, "from_pretrained", None)
    assert main(["predict", "no", "gone.jpg", "*.tif", "--top", "0", "--batch-size", "-1", "--device", "gpu"]) == 2
    lines = capsys.readouterr().err.splitlines()
    words = ["no folder no", "gone.jpg", "*.tif", "top 0", "batch_size -1", "'gpu'"]
    assert len(lines) == len(words) and all(word in line for word, line in zip(words, lines, strict=True))
    assert "--null has no effect" in refused(capsys, "predict", "x", "a.jpg", "--null")
    Path("folder").mkdir()
    assert "--csv folder is a folder" in refused(capsys, "predict", "x", "a.jpg", "--csv", "folder")


def test_a_csv_file_takes_no_place_of_anything(adapted, capsys, monkeypatch):
    """Said before the work; what is only found when it is written loses no prediction."""
    before = Path("in/a.png").read_bytes()
    Path("taken").write_text("")
    for place, words in (("in/a.png", "would be lost"), ("taken/x.csv", "taken is a file"), ("in", "is a folder")):
        assert words in refused_here(capsys, "predict", "out", "in", "--csv", place)
    assert Path("in/a.png").read_bytes() == before

    def full(path: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict_command, "replacing", full)
    assert main(["predict", "out", "in/a.png", "--csv", "x.csv"]) == 1
    said = capsys.readouterr()
    assert "x.csv could not be written (No space left on device)" in said.err and "in/a.png" in said.out


def test_images_of_a_size_that_the_model_does_not_take(adapted, capsys):
    config = json.loads(Path("out/adapter/adapter_config.json").read_text())
    config["image"]["size"] = SIDE - 1
    Path("out/adapter/adapter_config.json").write_text(json.dumps(config))
    assert f"image size {SIDE - 1} is not that of the model" in refused_here(capsys, "predict", "out", "in/a.png")


def test_an_adapter_without_names_gives_numbers(adapted):
    write_adapter(Path("plain/adapter"), labels=None)
    found = s2a_bench.predict("plain", "in")
    assert {label for each in found for label, _ in each.top} == {"0", "1", "2", "3", "4"}


def test_the_backbones_weights_can_be_given(adapted, capsys):
    Path("out/adapter/backbone.safetensors").rename("mine.safetensors")
    assert "weights" in refused_here(capsys, "predict", "out", "in")
    assert main(["predict", "out", "in", "--json", "--weights", "mine.safetensors"]) == 0


def test_memory_that_runs_out_is_a_sentence(adapted, monkeypatch, capsys):
    def full(self, images):
        raise MemoryError("no room")

    monkeypatch.setattr(s2a.Adapted, "forward", full)
    assert "smaller --batch-size" in refused_here(capsys, "predict", "out", "in")


def test_logits_that_are_no_numbers_are_refused(adapted, monkeypatch, capsys):
    monkeypatch.setattr(s2a.Adapted, "forward", lambda self, images: torch.full((len(images), 5), float("nan")))
    assert "not finite" in refused_here(capsys, "predict", "out", "in")


def test_an_interrupt_waits_for_no_queue(adapted, monkeypatch):
    """Images that nobody reads any more are not decoded."""
    read: list[str] = []
    whole = predicting.read_image
    monkeypatch.setattr(predicting, "read_image", lambda path, transform: read.append(path) or whole(path, transform))
    model = predicting.load_adapter("out/adapter", None, "cpu")
    stream: Any = predicting.predictions(model, ["in/a.png"] * 50, 1, 2)
    next(stream)
    stream.close()
    assert len(read) <= 2 * (predicting._AHEAD + 1)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((5, ["a.png"]), "folder=5"), (("adapter", 5), "images=5"), (("adapter", b"a.png"), "images=b'a.png'")],
)
def test_arguments_of_the_wrong_type(arguments, words):
    with pytest.raises(InputError, match=words):
        s2a_bench.predict(*arguments)
