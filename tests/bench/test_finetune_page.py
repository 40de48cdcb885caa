"""The page and the results folder of a fine-tuning, from made-up metrics: no torch is needed."""

from __future__ import annotations

import base64
import contextlib
import html.parser
import io
import json
from pathlib import Path

import numpy as np
import pytest
from bench.finetune_data import write_results
from PIL import Image
from s2a_bench.finetuning import page, results
from s2a_bench.finetuning.pictures import Mistake, find_mistakes, thumbnail

HOSTILE = '<script>alert("1")</script>&\'`'


def made_up(classes: int, status: str = "done", wrong: int = 3) -> dict:
    """Metrics of a model of so many classes, some of which are confused with the next one."""
    labels = [f"class {i} {HOSTILE}" for i in range(classes)]
    counts = [[i, i, 5] for i in range(classes)] + [[i, (i + 1) % classes, i + 1] for i in range(wrong)]
    supports = [5 + (i < wrong) * (i + 1) for i in range(classes)]
    return {
        "status": status, "cell_id": "c" * 16, "accuracy": 91.25, "accuracy_on": "test", "balanced_accuracy": 90.5,
        "macro_f1": 89.75, "val_accuracy": 92.5, "best_epoch": 2, "epochs": 9, "epochs_run": 3, "seed": 0,
        "labels": labels,
        "per_class": [
            {"label": n, "precision": 80.0, "recall": 99.0 - i / 7, "f1": 90.0 - i / 9, "support": supports[i]}
            for i, n in enumerate(labels)
        ],
        "confusion": {"counts": sorted(counts)},
        "curve": [{"epoch": e, "loss": 1 / e, "val_loss": 1.1 / e, "val_accuracy": 80.0 + e} for e in (1, 2, 3)],
        "data": {
            "name": HOSTILE, "source": f"/data/{HOSTILE}", "data_id": "d", "split_id": "s",
            "counts": {"train": 900, "val": 100, "test": 100},
        },
        "image": {"size": 32, "interpolation": "bicubic"},
        "backbone": {"name": "mini_vit", "weights": "embedded", "checkpoint_id": "e"},
        "method": {"name": "s2a", "options": {"activations": "lean"}},
        "params": {"total": 10, "trainable": 1}, "memory": {"budget": "8GiB", "measured_mb": 4.0, "peak_mb": None},
        "times": {"training": 12.0, "total": 300.0}, "images_per_second": 10.0, "config": {"train": {"lr": 0.1}},
        "hardware": {"device": "cpu"}, "versions": {"torch": "2"}, "notes": [f"A note {HOSTILE}"],
    }  # fmt: skip


class Tags(html.parser.HTMLParser):
    """Checks that tags close in order, and collects them with their text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1:] == ["title"] and "svg" in self.open:
            return  # what appears when a picture is pointed at
        self.words += f"{data}\n"


@pytest.mark.parametrize("classes", [2, 12, 13, 101, 400])
def test_pages_of_few_and_many_classes_are_whole_and_run_nothing(classes):
    text = page.render(
        made_up(classes, wrong=2),
        [Mistake(HOSTILE, HOSTILE, HOSTILE, 0.987, "data:image/jpeg;base64,AA")],
        Path("/o/my adapter"),
    )
    found = Tags(text)
    assert not found.open
    names = [tag for tag, _ in found.tags]
    assert "script" not in names and "link" not in names and "iframe" not in names
    for tag, attributes in found.tags:
        assert not [name for name in attributes if name.startswith("on")], tag
        if tag == "img":
            assert attributes["src"].startswith("data:image/jpeg;base64,")
            assert attributes["alt"] == HOSTILE
    for words in (f"class 1 {HOSTILE}", "91.2 %", "99 %", f"A note {HOSTILE}"):
        assert words in found.words
    assert "s2a-bench predict '/o/my adapter' photo.jpg" in found.words
    tiles = [a for t, a in found.tags if "tile" in (a.get("class") or "").split()]
    assert len(tiles) == (classes + 2 if 12 < classes <= 300 else 0)
    rows_of_pairs = found.words.count(" of 7")
    assert (rows_of_pairs > 0) == (classes > 12), "the most confused pairs stand in a table where the matrix does not"


@pytest.mark.parametrize("classes", [3, 13])
def test_a_long_class_name_is_shortened_in_tables_and_whole_when_pointed_at(classes):
    metrics, long = made_up(classes, wrong=2), "a class name that goes on " * 8
    metrics["labels"][1] = metrics["per_class"][1]["label"] = long
    found = Tags(page.render(metrics, [], Path("/o")))
    assert long not in found.words.split("\n")
    whole = [tag for tag, attributes in found.tags if attributes.get("title") == long]
    assert set(whole) <= {"th", "td"}
    assert len(whole) == 3  # each class; the matrix's row and column, or the pairs true and named


def test_the_peak_of_a_cpu_is_said_to_be_the_process():
    metrics = made_up(2)
    metrics["memory"] |= {"peak_mb": 1234.0, "simulated_mb": 20.0}
    metrics["hardware"] |= {"cpu": "X", "cores": 2, "threads": 1}
    facts = dict(page.facts(metrics))
    assert "20.0 MB simulated peak, 1,234.0 MB at most in the whole process" in facts["memory of a step"]
    assert facts["hardware"] == "cpu, X, cores: 2, threads: 1"
    metrics["hardware"]["device"] = "cuda"
    assert "1,234.0 MB peak" in dict(page.facts(metrics))["memory of a step"]


def test_the_weakest_class_stands_first_and_the_best_epoch_is_marked():
    found = Tags(page.render(made_up(101), [], Path("/o")))
    table = found.words[found.words.index("The weakest first.") :]
    assert table.index("class 100 ") < table.index("class 0 ")
    assert "best epoch 2" in found.words


def test_an_interrupted_training_says_so_and_one_class_right_has_no_mistakes():
    text = page.render(made_up(2, status="interrupted"), [], Path("/o"))
    assert "Interrupted after epoch 3 of 9" in text
    assert "None of the test images is named wrongly." in text


def test_mistakes_are_the_most_confident_first():
    assert find_mistakes([0, 1, 2, 0], [1, 1, 0, 2], [0.5, 0.99, 0.9, 0.9], 2) == [2, 3]


def test_thumbnails_are_upright_small_and_missing_images_none(tmp_path):
    image = Image.new("RGB", (600, 300), "white")
    image.paste("black", (0, 0, 300, 300))  # left half
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: the left half comes to the top
    image.save(tmp_path / "a.jpg", exif=exif)
    uri = thumbnail(tmp_path / "a.jpg", 100)
    shown = Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))).convert("L")
    assert shown.size == (50, 100)
    top, bottom = (np.asarray(shown)[row, 25] for row in (20, 80))
    assert top < 40 and bottom > 215
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    clear = Image.open(io.BytesIO(base64.b64decode(thumbnail(tmp_path / "clear.png").partition(",")[2])))
    assert min(clear.convert("L").tobytes()) > 245
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    assert thumbnail(tmp_path / "bad.jpg") == thumbnail(tmp_path / "absent.jpg") == ""


# Results in the output folder


def cells_of(folder: Path) -> set[str]:
    values = {(folder / "adapter" / "adapter_config.json").read_text(), (folder / "report.html").read_text()}
    return values | {json.loads((folder / "metrics.json").read_text())["cell_id"]}


class Killed(BaseException):
    """As a kill: nothing that is meant for errors takes it."""


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("step", range(1, 12))
def test_results_survive_a_kill_at_any_move(step, back, tmp_path, monkeypatch):
    results.install(tmp_path, "one", write_results("one"))
    if back:
        results.install(tmp_path, "two", write_results("two"))
    real, count = Path.rename, 0

    def rename(self, target):
        nonlocal count
        count += 1
        if count == step:
            raise Killed
        return real(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    with contextlib.suppress(Killed):
        if back:
            results.find(tmp_path, "one")
        else:
            results.install(tmp_path, "two", write_results("two"))
    monkeypatch.setattr(Path, "rename", real)
    results.recover(tmp_path)
    now = cells_of(tmp_path)
    assert now in ({"one"}, {"two"}), "never parts of both"
    if now == {"two"}:
        assert cells_of(tmp_path / "previous" / "one") == {"one"}
    assert results.find(tmp_path, "one") is not None
    if back:
        assert results.find(tmp_path, "two") is not None
    assert not list(tmp_path.glob(".results*"))


def test_results_of_the_same_cell_take_the_place_of_interrupted_ones(tmp_path):
    results.install(tmp_path, "one", write_results("one", "interrupted"))
    assert results.find(tmp_path, "one") is None
    results.install(tmp_path, "one", write_results("one"))
    found = results.find(tmp_path, "one")
    assert found is not None and found["status"] == "done"
    assert not (tmp_path / "previous").exists()


def test_results_that_cannot_be_written_leave_the_old_ones(tmp_path):
    results.install(tmp_path, "one", write_results("one"))

    def fill(folder: Path) -> None:
        write_results("two")(folder)
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        results.install(tmp_path, "two", fill)
    assert cells_of(tmp_path) == {"one"}
    assert not list(tmp_path.glob(".results*"))
